"""The notebooks as files: execute them so that their outputs can be trusted, check that they can be, make README.md.

    python tests/notebooks.py execute [NOTEBOOK ...]   # all by default: outputs, a hash of each code cell, clean
    python tests/notebooks.py check [NOTEBOOK ...]     # exit code 1 and one line for each cell whose outputs are not its own
    python tests/notebooks.py readme                   # README.md from nbs/index.ipynb

Outputs cannot be compared (floats and plots differ between processors), sources can: executing writes the SHA-256 of every code
cell's source into the cell's metadata, and that of all of them in order into the notebook's. A source edited, removed, added or
moved afterwards no longer fits its hash.
"""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults
from nbdev.serve_drv import exec_nb
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
KEY = "source_sha256"  # also named in [tool.nbdev] of pyproject.toml, or nbdev-clean would remove it
SECONDS = 600          # for one cell; a lesson takes 45 in all
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",                             # a progress bar's times are other ones every time
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm, with a path in it; ipywidgets would put a random id into the outputs instead
}
BAR = re.compile(r"\d%\|.*\|.*\[\d+:\d\d<")

def notebooks(root: Path = ROOT) -> list[Path]:
    "All notebooks of the repository at `root`, in reading order; Jupyter's own checkpoints and drafts (`_name`) are not among them."
    return sorted(p for p in (root / "nbs").glob("*.ipynb") if not p.name.startswith(("_", ".")))

def code_cells(nb: NotebookNode) -> list[NotebookNode]: return [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]

def sha256(text: str) -> str: return hashlib.sha256(text.encode()).hexdigest()

def of_all(nb: NotebookNode) -> str: return sha256("\n".join(sha256(c.source) for c in code_cells(nb)))

def stamp(nb: NotebookNode) -> None:
    "Write the hashes of the present sources; only for a notebook that has just been executed."
    for cell in code_cells(nb): cell.metadata[KEY] = sha256(cell.source)
    nb.metadata[KEY] = of_all(nb)

def stale(nb: NotebookNode) -> list[str]:
    "One line for every reason why the outputs may not be those of the present code; empty if there is none."
    if KEY not in nb.metadata: return ["never executed"]
    lines = [f"cell {c.id} was {'edited after it was' if KEY in c.metadata else 'never'} executed: {c.source.splitlines()[-1][:80]!r}"
             for c in code_cells(nb) if c.metadata.get(KEY) != sha256(c.source)]
    lines += [f"cell {c.id} holds an error: {o.ename}" for c in code_cells(nb) for o in c.outputs if o.output_type == "error"]
    lines += [f"cell {c.id} holds an error in a callback, such as drawing" for c in code_cells(nb) if "Error in callback" in str(c.outputs)]
    lines += [f"cell {c.id} shows a progress bar; its times always differ" for c in code_cells(nb) if BAR.search(str(c.outputs))]
    if not lines and nb.metadata.get(KEY) != of_all(nb): lines.append("code cells were removed, added or moved after it was executed")
    return lines

def run_cells(path: Path) -> NotebookNode:
    "The notebook at `path` with fresh outputs, out of a kernel of this environment in the notebook's folder; the file stays as it is."
    nb = nbformat.read(path, as_version=4)
    for cell in code_cells(nb): cell.outputs, cell.execution_count = [], None
    env = os.environ | QUIET
    with tempfile.TemporaryDirectory() as sockets:  # not a port, which anyone on the machine could connect to
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        client = NotebookClient(nb, kernel, timeout=SECONDS, coalesce_streams=True, record_timing=False,
                                resources={"metadata": {"path": str(path.parent)}})
        client.execute(env=env, cleanup_kc=True)
    return nb

def nbdev(command: str, *args: str, root: Path = ROOT) -> None:
    "Run the nbdev command of this environment in the repository at `root`."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # with it, nbdev leaves _modidx.py out
    subprocess.run([Path(sysconfig.get_path("scripts")) / command, *args], cwd=root, env=env, check=True, stdout=subprocess.DEVNULL)

@contextmanager
def copied() -> Iterator[Path]:
    "A copy of what the notebooks and the package are made of, in a temporary folder, so that nothing done there changes the tree."
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        root.mkdir()
        for part in ROOT.iterdir():
            if part.is_file() and not part.name.startswith("."): shutil.copy(part, root)
        for part in ("assets", "data", "nbs", "rag_finetune"):
            if (ROOT / part).exists(): shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        yield root

def execute(path: Path) -> None:
    "Execute the notebook at `path` in place: outputs, hashes, clean; on an error the file stays as it was."
    nb = run_cells(path)
    stamp(nb)
    nbformat.write(nb, path)
    nbdev("nbdev-clean", "--fname", str(path.resolve()))

def readme() -> str:
    "README.md's text: nbs/index.ipynb processed by nbdev (hidden cells left out), then turned into markdown by nbconvert."
    # not by the command nbdev-proc-nbs: where there is no Quarto, it downloads it and installs it with sudo
    with tempfile.TemporaryDirectory() as folder:
        processed = Path(folder) / "index.ipynb"
        exec_nb(ROOT / "nbs" / "index.ipynb", processed, FilterDefaults)
        nb = nbformat.read(processed, as_version=4)
    nb.metadata["language_info"] = {"name": "python"}  # nbdev-clean removes it; the fences of the code are named after it
    for cell in code_cells(nb):
        if cell.source.startswith("#| echo: false"): cell.metadata["transient"] = {"remove_source": True}  # nbconvert's name for it
    return as_readme(MarkdownExporter().from_notebook_node(nb)[0])

def repository() -> tuple[str, str]:
    "Where the code host shows a file of the repository, and where it serves one as it is, as settings.ini names it."
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    name, branch = "{user}/{repo}".format(**config["DEFAULT"]), config["DEFAULT"]["branch"]
    return f"https://github.com/{name}/blob/{branch}/", f"https://raw.githubusercontent.com/{name}/{branch}/"

def as_readme(markdown: str) -> str:
    "The processed index with its front matter as a heading and a quote, and links that work on any host, the package index too."
    front, body = re.match(r"\s*(?:---\n(.*?)\n---\n)?(.*)", markdown, re.DOTALL).groups()
    fields = dict(line.split(": ", 1) for line in (front or "").splitlines() if ": " in line)
    head = [f"# {fields['title']}"] if "title" in fields else []
    if "description" in fields: head.append(f"> {fields['description']}")
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    shown, raw = repository()
    body = re.sub(r"\]\((?=[\w-]+\.ipynb)", f"]({shown}nbs/", body)
    body = re.sub(r"(!\[[^\]]*\]\()\.\./", rf"\1{raw}", body).replace('src="../', f'src="{raw}').replace("](../", f"]({shown}")
    origin = "<!-- Made from nbs/index.ipynb by `make readme`; edit it there. -->"
    return "\n\n".join([origin, *head, re.sub(r"\n{3,}", "\n\n", body).strip()]) + "\n"

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["execute", "check", "readme"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of nbs/")
    args = parser.parse_args()
    chosen, failed = args.notebooks or notebooks(), False
    if args.command == "readme": (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    for path in chosen if args.command == "execute" else []:
        print(f"executing {path.name}", flush=True)
        execute(path)
    for path in chosen if args.command == "check" else []:
        for line in stale(nbformat.read(path, as_version=4)):
            print(f"{path.name}: {line}")
            failed = True
    return int(failed)

if __name__ == "__main__": sys.exit(main())
