"Sphinx's settings, and what makes docments readable there; docs/build.py writes the pages' sources and calls Sphinx."
import ast
import inspect
import sys
import textwrap
from dataclasses import is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

from docutils import nodes
from fastcore.docments import docments
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build import ROOT, repository, rst, settings

log = logging.getLogger(__name__)

project = settings()["lib_name"]
author = settings()["author"]
html_show_copyright = False
release = settings()["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.githubpages", "sphinx_copybutton", "sphinx_design"]

nb_execution_mode = "off"  # the committed outputs are shown
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

smartquotes_action = "D"  # dashes; a quote in a docstring is code more often than not

html_theme = "furo"
html_title = project
html_favicon = str(ROOT / "docs" / "static" / "favicon.svg")
# MathJax, 2 MB in one file that asks for no other; the rest of the package is not needed
_mathjax = Path(next(iter(find_spec("sphinx-mathjax-offline").submodule_search_locations))) / "static" / "mathjax" / "tex-svg-full.js"
html_static_path = [str(ROOT / "docs" / "static"), str(_mathjax)]
mathjax_path = _mathjax.name
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_extra_path = [str(path) for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))]  # for download, as they are
html_copy_source = False
html_theme_options = {
    "source_repository": f"https://github.com/{repository()}/", "source_branch": settings()["branch"],
    "top_of_page_buttons": [],  # what a page is made from lies in several folders; each lesson offers its notebook
}
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

@cache   # Python reads a whole module again for each class in it
def source(obj) -> str | None:
    try: return textwrap.dedent(inspect.getsource(obj))
    except (OSError, TypeError): return None

def definition(obj) -> ast.FunctionDef | None:
    "The function as it is written, so that types keep their names."
    text = source(obj)
    node = ast.parse(text).body[0] if text else None
    return node if isinstance(node, ast.FunctionDef) else None

def annotated(node: ast.expr | None) -> tuple[ast.expr | None, str]:
    "The type and the expression of the help in `Annotated[type, typer.Option(help=...)]`; the type alone elsewhere."
    if not (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated"): return node, ""
    kind, *rest = node.slice.elts
    return kind, next((ast.unparse(k.value) for call in rest for k in call.keywords if k.arg == "help"), "")

def fields(obj: type) -> str:
    "What a class is made with, as its source has it; nothing for one that is not made by its fields."
    body = ast.parse(source(obj) or "pass").body[0]
    made_by_fields = is_dataclass(obj) or issubclass(obj, tuple)
    found = [s for s in getattr(body, "body", []) if isinstance(s, ast.AnnAssign)] if made_by_fields else []
    return f"({', '.join(ast.unparse(s) for s in found)})" if found else ""

def signature(app, what, name, obj, options, args, returns):
    "The signature as the source has it: `Qrels`, not the dict of dicts that it stands for."
    if getattr(obj, "_is_protocol", False): return "()", ""
    if isinstance(obj, type): return (fields(obj), "") if fields(obj) else None
    if not (node := definition(obj)): return None
    for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs): arg.annotation = annotated(arg.annotation)[0]
    if what == "method" and node.args.args and node.args.args[0].arg in ("self", "cls"): del node.args.args[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns else ""

def told(obj) -> dict[str, str]:
    "What the comments beside the arguments say, and the one beside the result; for a command, what its help says."
    found = {k: " ".join(v.split()) for k, v in docments(obj, full=False).items() if v}
    for arg in (node.args.args if (node := definition(obj)) else []):
        if said := annotated(arg.annotation)[1]: found.setdefault(arg.arg, eval(said, obj.__globals__))
    return {k: v for k, v in found.items() if v}

def docstring(app, what, name, obj, options, lines):
    "Docments as a list of parameters, and the source folded below."
    lines[:] = [] if what == "module" else [rst(line) for line in lines]  # the page says what a module is for
    if what not in ("function", "method", "class"): return
    comments = told(obj)
    lines += ["", *(f":param {rst(k)}: {rst(v)}" for k, v in comments.items() if k != "return")]
    if "return" in comments: lines.append(f":returns: {rst(comments['return'])}")
    if what != "method" and (code := source(obj)):
        short = name.rpartition(".")[2]
        lines += ["", f".. dropdown:: Source of {short}", "   :class-container: source", "", "   .. code-block:: python", ""]
        lines += [f"      {line}" if line else "" for line in code.splitlines()]
    lines.append("")

def skip(app, what, name, obj, skipped, options):
    "Leave out constants, which the page lists itself, and fields, which stand among a class's parameters."
    return None if isinstance(inspect.unwrap(obj), type | FunctionType | property) else True

def pictures_have_words(app, doctree, name):
    "A picture that only those see who see is an error."
    for picture in doctree.findall(nodes.image):
        if not picture.get("alt", "").strip(): log.warning("%s: a picture without alt text: %s", name, picture["uri"], location=picture)

def setup(app):
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-resolved", pictures_have_words)
