"The notebooks run, are clean, carry the outputs of their present code, and the package and README.md are what they make."
import json
import shutil

import nbformat
import pytest
from notebooks import ROOT, as_readme, copied, execute, nbdev, notebooks, of_all, readme, repository, run_cells, stale, stamp

NAMES = [path.name for path in notebooks()]

@pytest.fixture(scope="module")
def copy():
    with copied() as root: yield root

def files(folder): return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.py"))}

@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not name[0].isdigit()])  # lessons run in test_lessons.py, exercises and all
def test_runs_from_top_to_bottom(name, copy):
    run_cells(copy / "nbs" / name)

@pytest.mark.parametrize("name", NAMES)
def test_carries_the_outputs_of_its_present_code(name):
    assert stale(nbformat.read(ROOT / "nbs" / name, as_version=4)) == [], "run `make notebooks`"

def test_are_clean():
    with copied() as root:
        nbdev("nbdev-clean", "--fname", "nbs", root=root)
        unclean = [p.name for p in notebooks(root) if p.read_bytes() != (ROOT / "nbs" / p.name).read_bytes()]
    assert unclean == [], "run `nbdev-clean`"

def test_the_package_is_what_they_export():
    with copied() as root:
        shutil.rmtree(root / "rag_finetune")  # so that a module whose notebook is gone is found, too
        (root / "rag_finetune").mkdir()
        shutil.copy(ROOT / "rag_finetune" / "__init__.py", root / "rag_finetune")
        nbdev("nbdev-export", root=root)
        exported = files(root / "rag_finetune")
    present = files(ROOT / "rag_finetune")
    assert present.keys() == exported.keys()
    assert [name for name in present if present[name] != exported[name]] == [], "run `nbdev-export`"

def test_readme_is_made_from_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), "run `make readme`"

# the tool itself

def notebook(*sources): return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])

def edit(nb): nb.cells[0].source += " + 1"
def remove(nb): del nb.cells[0]
def add(nb): nb.cells.append(nbformat.v4.new_code_cell("4"))
def move(nb): nb.cells.reverse()
def fail(nb): nb.cells[0].outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
def undrawn(nb): nb.cells[0].outputs = [nbformat.v4.new_output("stream", text="Error in callback <function _draw_all> ...\n")]
def progress(nb): nb.cells[0].outputs = [nbformat.v4.new_output("stream", text="Loading: 100%|███| 3/3 [00:00<00:00, 68.8it/s]\n")]

@pytest.mark.parametrize(("change", "says"), [(edit, "edited after"), (remove, "removed, added or moved"), (add, "never executed"),
                                              (move, "removed, added or moved"), (fail, "holds an error: ZeroDivisionError"),
                                              (undrawn, "error in a callback"),
                                              (progress, "shows a progress bar")])
def test_code_changed_after_it_was_executed_is_found(change, says):
    nb = notebook("1", "2", "3")
    assert stale(nb) == ["never executed"]
    stamp(nb)
    nb.cells.insert(1, nbformat.v4.new_markdown_cell("text may change at any time"))
    assert stale(nb) == []
    change(nb)
    [line] = stale(nb)
    assert says in line

def test_executing_keeps_outputs_and_hashes_and_leaves_a_clean_file(copy):
    path = copy / "nbs" / "tiny.ipynb"
    nbformat.write(notebook("x = 6", "print(1); print(2); x * 7"), path)
    execute(path)
    nb, before = nbformat.read(path, as_version=4), path.read_bytes()
    assert [o.get("text") or o.data["text/plain"] for o in nb.cells[1].outputs] == ["1\n2\n", "42"]
    assert stale(nb) == [] and nb.metadata.source_sha256 == of_all(nb)
    nbdev("nbdev-clean", "--fname", str(path), root=copy)
    assert path.read_bytes() == before
    execute(path)
    assert path.read_bytes() == before  # executing again leaves the tree clean
    path.unlink()

def test_a_notebook_that_fails_is_left_as_it_was(copy):
    path = copy / "nbs" / "failing.ipynb"
    nbformat.write(notebook("1 / 0"), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"): execute(path)
    assert path.read_bytes() == before
    path.unlink()

def test_readme_shows_title_and_links_that_work_on_any_host():
    front = "---\ndescription: what for\ntitle: name\n\n---\n\n"
    body = "![plot](../assets/plot.svg)\n\n\n\n[core](00_core.ipynb) [no](../LICENSE)\n"
    shown, raw = repository()
    assert shown.startswith("https://") and raw.startswith("https://")
    links = f"![plot]({raw}assets/plot.svg)\n\n[core]({shown}nbs/00_core.ipynb) [no]({shown}LICENSE)\n"
    assert as_readme(front + body).endswith(f"# name\n\n> what for\n\n{links}")

@pytest.mark.parametrize("name", ["transactions", "handbook", "banking77", "scifact", "medquad"])
def test_the_front_page_says_what_was_saved(name):
    said = json.loads((ROOT / "assets" / f"{name}.json").read_text(encoding="utf-8"))["verdict"]["sentence"]
    assert " ".join(said.split()) in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
