"""The docs site: notebooks, changelog and data cards made into Sphinx's sources in a temporary folder, then built, warnings as errors.

    python docs/build.py [FOLDER]   # default: _docs; nothing is executed and nothing is fetched
    python docs/build.py --ladder   # only assets/ladder.svg, the plot in README.md
"""
import ast
import json
import os
import re
import shutil
import sys
import tempfile
from configparser import ConfigParser
from html import escape
from pathlib import Path
from textwrap import shorten

import nbformat
from nbformat import NotebookNode
from pipeline import notebooks as with_box
from pipeline import pipeline_svg

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TIME = re.compile(r"\s*(Runs in about [^.\n]+)\.")
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+)(?:[: ]\s*(.*))?$")
DIRECTIVES = {"alt", "code-fold", "default_exp", "echo", "eval", "export", "exporti", "exports", "hide", "include", "output"}
TAGS = {("echo", "false"): "remove-input", ("output", "false"): "remove-output", ("code-fold", "true"): "hide-input"}
SHOWN = "bm25", "tfidf-lr", "frozen-lr", "base", "base+bm25", "adapter", "tuned"  # and what the verdict is about

def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])

def repository() -> str:
    "The owner and name under which this is published; a workflow's own, so that a fork's site links to the fork."
    return os.environ.get("GITHUB_REPOSITORY") or "{user}/{repo}".format(**settings())

def lessons() -> list[Path]: return sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))

def cards() -> list[Path]: return sorted((ROOT / "data").rglob("README.md"))

# one notebook

def directives(source: str) -> tuple[dict[str, str], str]:
    "The directives at the top of a cell, and the rest of it."
    found, lines = {}, source.splitlines()
    while lines and (match := DIRECTIVE.match(lines[0])):
        found[match[1]] = (match[2] or "").strip()
        del lines[0]
    return found, "\n".join(lines)

def described(markdown: str) -> str:
    "The last paragraph as plain text, for those who do not see the picture after it."
    paragraphs = [p for p in re.split(r"\n\s*\n", markdown.strip()) if not p.startswith(("#", "|", "```", "<"))]
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraphs[-1] if paragraphs else "")
    return re.sub(r"[*`>$]|\s+", lambda m: " " if m[0].isspace() else "", text).strip()

def has_picture(cell: NotebookNode) -> bool:
    return any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {}))

def only_imports(code: str) -> bool:
    "Whether a cell holds nothing but imports and a logger; magics and the like count as something else."
    try: statements = ast.parse(code).body
    except SyntaxError: return False
    return all(isinstance(s, ast.Import | ast.ImportFrom) or "getLogger" in ast.unparse(s) for s in statements)

def prompt(code: str) -> str:
    "What the line says that unfolds a folded cell."
    return "Show the solution" if "def solution_" in code else "Show the imports" if only_imports(code) else "Show the code"

def code_cell(cell: NotebookNode, before: str) -> NotebookNode | None:
    "The cell as a reader should see it, None where nothing should be seen; `before` is the text that leads to it."
    found, cell.source = directives(cell.source)
    if unknown := found.keys() - DIRECTIVES: raise ValueError(f"cell {cell.id}: no rule for #| {', '.join(unknown)}; see docs/build.py")
    if found.keys() & {"hide", "default_exp"} or found.get("include") == "false" or not cell.source.strip(): return None
    tags = cell.metadata.setdefault("tags", [])
    tags += [TAGS[d] for d in found.items() if d in TAGS] + ["hide-input"] * only_imports(cell.source)
    cell.metadata["mystnb"] = {"code_prompt_show": prompt(cell.source)}
    if has_picture(cell): cell.metadata["mystnb"]["image"] = {"alt": found.get("alt") or described(before)}
    return cell

def bar(path: Path, runs: str) -> str:
    "The line below a lesson's title: its time, the file, and where else to read it."
    links = [("Download the notebook", f'"{path.name}" download'), ("Open in Colab", f'"{colab(path)}"'),
             ("API", f'"api/{path.stem[3:]}.html"'), ("How to run it", '"where.html#run-a-lesson"')]
    items = [escape(runs)] * bool(runs) + [f"<a href={target}>{text}</a>" for text, target in links]
    return f'<div class="lesson-bar">{" · ".join(items)}</div>'

def colab(path: Path) -> str:
    return f"https://colab.research.google.com/github/{repository()}/blob/{settings()['branch']}/nbs/{path.name}"

def framed(lit: str | None) -> str:
    "The pipeline's picture for a page; on a telephone it scrolls inside its frame."
    return f'<div class="pipeline-frame" tabindex="0" role="region" aria-label="The pipeline">{pipeline_svg(lit, links=True)}</div>'

def text_cell(cell: NotebookNode) -> NotebookNode:
    "Text with the links of the site, and the pipeline's picture with links in it."
    cell.source = re.sub(r"!\[[^\]]*\]\(\.\./assets/pipeline/(\w+)\.svg\)", lambda m: f"\n\n{framed(m[1])}\n\n", linked(cell.source))
    return cell

def linked(text: str) -> str:
    "Links out of nbs/ as links of the site: pages to pages, pictures to pictures, everything else to the repository."
    ours = {p.relative_to(ROOT).as_posix() for p in cards()} | {"CHANGELOG.md", "CONTRIBUTING.md"}
    def target(match):
        to = match[1]
        if to in ours or to.startswith("assets/"): return f"]({to})"
        return f"](https://github.com/{repository()}/blob/{settings()['branch']}/{to})"
    text = text.replace("](index.ipynb", "](start.ipynb")
    return re.sub(r"\]\(\.\./(?!assets/pipeline/)([^)\s]+)\)", target, text)

def page(path: Path) -> NotebookNode:
    "A notebook as the site shows it, with its outputs."
    nb = nbformat.read(path, as_version=4)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # nbdev-clean removes it
    cells, before = [], ""
    for cell in nb.cells:
        seen = code_cell(cell, before) if cell.cell_type == "code" else text_cell(cell)
        if cell.cell_type == "markdown": before = cell.source
        if seen is not None: cells.append(seen)
    nb.cells = cells
    if path.stem[0].isdigit(): _head(nb, path)
    else: nb.cells[0].source = re.sub(r"^# .+", "# Get started", nb.cells[0].source)
    return nb

def _head(nb: NotebookNode, path: Path) -> None:
    "Put the lesson's line below its title; the time moves there from the introduction."
    title, _, rest = nb.cells[0].source.partition("\n")
    runs = next((m[1] for cell in nb.cells[:2] if (m := TIME.search(cell.source))), "")
    for cell in nb.cells[1:2]: cell.source = TIME.sub("", cell.source, count=1)
    nb.cells[0].source = f"{title}\n\n{bar(path, runs)}\n\n{TIME.sub('', rest, count=1)}"

# the other pages

def ladder() -> tuple[str, str]:
    "The plot of the result on the bundled data as SVG, and its verdict in words."
    from rag_finetune.report import ladder_plot
    saved = json.loads((ROOT / "assets" / "transactions.json").read_text(encoding="utf-8"))
    verdict = saved["verdict"]
    systems = {s: saved["systems"][s] for s in saved["systems"] if s in {*SHOWN, verdict["best_cheap"], verdict["chosen"]}}
    return ladder_plot(systems, verdict["chosen"], verdict["best_cheap"]), verdict["sentence"]

def ladder_figure() -> str:
    plot, sentence = ladder()
    return f'<figure class="ladder">{plot}<figcaption>{escape(sentence)}.</figcaption></figure>'

def ladder_file() -> str:
    "The plot as a file of its own, on white."
    return str(ladder()[0]).replace("<svg ", '<svg style="background: #fff" ', 1) + "\n"

def help_of(command: str) -> str:
    "What the terminal says about a command."
    from typer.testing import CliRunner

    from rag_finetune.cli import app
    terminal = {"COLUMNS": "92", "TERMINAL_WIDTH": "92", "TERM": "dumb"}
    said = CliRunner().invoke(app, [command, "--help"], prog_name="rag-finetune", env=terminal)
    assert said.exit_code == 0, said.output
    return f"```text\n{said.output.strip()}\n```"

def summary(path: Path) -> tuple[str, str]:
    "A notebook's title and the sentence below it."
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells[:2])
    return re.search(r"^# (.+)", text, re.MULTILINE)[1], re.search(r"^> (.+)", text, re.MULTILINE)[1]

def lesson_table() -> str:
    "Every lesson with its question."
    rows = [f"| [{path.stem[:2]} {summary(path)[0]}]({path.name}) | {summary(path)[1]} |" for path in lessons()]
    return "\n".join(["| lesson | its question |", "|---|---|", *rows])

def rst(text: str) -> str:
    "A comment or docstring for reStructuredText: `code` stays code, and nothing else is markup."
    parts = re.split(r"`([^`]+)`", text)
    return "".join(rf"\ ``{part}``\ " if i % 2 else re.sub(r"([*_|@\\])", r"\\\1", part) for i, part in enumerate(parts))

def names(module: str) -> tuple[str, str]:
    "The public types, and the constants, of a module, each with the comment beside it."
    lines = (ROOT / "rag_finetune" / f"{module}.py").read_text(encoding="utf-8").splitlines()
    types, constants = [], []
    for node in ast.parse("\n".join(lines)).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)) or node.targets[0].id.startswith("_"): continue
        name, value = node.targets[0].id, shorten(ast.unparse(node.value), 80, placeholder=" ...")
        said = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode().partition("# ")[2]
        if said: (constants if name.isupper() else types).append(f".. py:data:: {name}\n   :value: {value}\n\n   {rst(said)}\n")
    return "\n".join(types), "\n".join([".. rubric:: Constants\n", *constants] if constants else [])

def api(path: Path) -> str:
    "The page of one module: its types, its functions and classes, its constants."
    module = path.stem[3:]
    title, question = summary(path)
    types, constants = names(module)
    here = f".. py:module:: rag_finetune.{module}\n   :no-index:\n"
    everything = f".. automodule:: rag_finetune.{module}\n   :members:\n   :undoc-members:\n"
    return (f"# {module}\n\n> {question}\n\nThe lesson that makes it: [{title}](../{path.name}).\n\n"
            + "\n".join(["```{eval-rst}", here, types, everything, constants, "```", ""]))

def api_index() -> str:
    rows = "\n".join(f"| [`{p.stem[3:]}`]({p.stem[3:]}.md) | {summary(p)[0]} | {summary(p)[1]} |" for p in lessons())
    modules = "\n".join(p.stem[3:] for p in lessons())
    return ("# API reference\n\nEvery public function of every module, with what its arguments mean and its source folded below it. "
            "The {ref}`index <genindex>` lists all names.\n\n| module | lesson | question |\n|---|---|---|\n"
            f"{rows}\n\n```{{toctree}}\n:hidden:\n\n{modules}\n```\n")

def prepare(folder: Path) -> None:
    "Write Sphinx's sources into `folder`."
    missing = [p.stem for p in lessons() if p.stem not in with_box()]
    if missing: raise ValueError(f"no box in docs/pipeline.py for {', '.join(missing)}")
    for path in [*lessons(), ROOT / "nbs" / "index.ipynb"]:
        try: nbformat.write(page(path), folder / path.name.replace("index", "start"))
        except ValueError as error: raise ValueError(f"{path.name}: {error}") from None
    (folder / "api").mkdir()
    (folder / "api" / "index.md").write_text(api_index(), encoding="utf-8")
    for path in lessons(): (folder / "api" / f"{path.stem[3:]}.md").write_text(api(path), encoding="utf-8")
    filled = {"ladder": ladder_figure(), "pipeline": framed(None), "lessons": lesson_table(),
              "description": settings()["description"], "repository": repository()}
    for path in DOCS.glob("*.md"):
        text = re.sub(r"<!-- (\w+) -->", lambda m: filled.get(m[1]) or help_of(m[1]), path.read_text(encoding="utf-8"))
        (folder / path.name).write_text(text, encoding="utf-8")
    for path in [*cards(), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copytree(ROOT / "assets", folder / "assets", ignore=shutil.ignore_patterns("*.md", "*.json"))

def build(out: Path) -> int:
    "Build the site and put it at `out`, in place of what was there; the exit code is not 0, and `out` is as it was, where anything warns."
    from sphinx.cmd.build import build_main
    with tempfile.TemporaryDirectory() as folder:
        sources, site = Path(folder, "sources"), Path(folder, "site")
        sources.mkdir()
        prepare(sources)
        code = build_main(["-W", "--keep-going", "-q", "-b", "html", "-c", str(DOCS), "-d", f"{folder}/doctrees", str(sources), str(site)])
        if code == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.move(site, out)
    return code

if __name__ == "__main__":
    if sys.argv[1:] == ["--ladder"]:
        (ROOT / "assets" / "ladder.svg").write_text(ladder_file(), encoding="utf-8")
        sys.exit()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs").resolve()
    code = build(out)
    print(f"the site: {out / 'index.html'}" if code == 0 else "not built: each warning above is an error")
    sys.exit(code)
