"Each notebook is a lesson: question, picture, stated time, claims asserted, what goes wrong, questions, exercises that can be checked."
import os
import re
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
import pytest
from children import started
from IPython.core.interactiveshell import InteractiveShell
from notebooks import QUIET, ROOT, SECONDS, code_cells, copied, notebooks

LESSONS = [path for path in notebooks() if path.stem[0].isdigit()]
NAMES = [path.stem for path in LESSONS]
TIME = re.compile(r"Runs in about (\d+) seconds on two CPU cores, offline\.")
EXERCISE = re.compile(r"^def exercise_(\d+)\(", re.MULTILINE)

def missing(nb: nbformat.NotebookNode, name: str) -> list[str]:
    "What a notebook lacks to be a lesson, a line each; empty if nothing."
    texts = [c.source for c in nb.cells if c.cell_type == "markdown"]
    prose, code = "\n\n".join(texts), "\n\n".join(c.source for c in code_cells(nb))
    opening = texts[1] if len(texts) > 1 else ""
    lines = []
    if not re.fullmatch(r"# [^\n]+\n\n> [^\n]+\?", texts[0] if texts else ""):
        lines.append("the first cell is `# Title` and its question, `> ...?`, on one line each, and nothing else")
    if f"](../assets/pipeline/{name}.svg)" not in opening: lines.append("the second cell shows the pipeline with this lesson's box lit")
    elif not (ROOT / "assets" / "pipeline" / f"{name}.svg").is_file(): lines.append(f"assets/pipeline/{name}.svg exists")
    if not TIME.search(opening): lines.append("the second cell says `Runs in about N seconds on two CPU cores, offline.`")
    elif int(TIME.search(opening)[1]) > 45: lines.append("at most 45 seconds")
    if not any("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for c in code_cells(nb) for o in c.outputs):
        lines.append("a picture that a cell draws")
    if len(re.findall(r"^\s*(?:assert |test_eq\(|test_close\(|with ExceptionExpected)", code, re.MULTILINE)) < 3:
        lines.append("three claims asserted, at least")
    if not re.search(r"^## What goes wrong", prose, re.MULTILINE): lines.append("a section `## What goes wrong`")
    asked = re.search(r"^## Ask yourself\n(.*?)(?=^## |\Z)", prose, re.MULTILINE | re.DOTALL)
    if not asked or not 6 <= len(re.findall(r"^\d+\. ", asked[1], re.MULTILINE)) <= 10:
        lines.append("`## Ask yourself` with six to ten numbered questions")
    if not 2 <= len(exercises(nb)) <= 3: lines.append("`## Exercises` with two or three of them")
    if (words := len(prose.split())) > 2600: lines.append(f"at most 2,500 words of prose or so, not {words:,}")
    return lines + [line for n in exercises(nb) for line in _exercise(nb, n)]

def exercises(nb: nbformat.NotebookNode) -> list[str]:
    "The numbers of a lesson's exercises."
    return [n for c in code_cells(nb) for n in EXERCISE.findall(c.source)]

def _exercise(nb: nbformat.NotebookNode, n: str) -> list[str]:
    "What exercise `n` lacks."
    def defining(part): return [c for c in code_cells(nb) if re.search(rf"^def {part}_{n}\(", c.source, re.MULTILINE)]
    cells = {part: defining(part) for part in ("check", "solution")}
    lines = [f"exercise {n}: one cell with `def {part}_{n}(...)`" for part, found in cells.items() if len(found) != 1]
    for cell in cells["solution"]:
        folded = "hide-input" in cell.metadata.get("tags", []) and cell.metadata.get("jupyter", {}).get("source_hidden")
        if not folded: lines.append(f'exercise {n}: the solution\'s cell is folded: tags=["hide-input"] jupyter={{"source_hidden": true}}')
        if f"check_{n}(solution_{n})" not in cell.source: lines.append(f"exercise {n}: its solution is checked where it stands")
    return lines

@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_is_a_lesson(path):
    assert missing(nbformat.read(path, as_version=4), path.stem) == []

def test_all_of_them_take_less_than_a_quarter_of_an_hour():
    stated = {p.stem: int(TIME.search(nbformat.read(p, as_version=4).cells[1].source)[1]) for p in LESSONS}
    assert sum(stated.values()) < 900, stated

CHECKS = """
for n in {numbers!r}:
    check, solved, unsolved = (globals()[f"{{part}}_{{n}}"] for part in ("check", "solution", "exercise"))
    check(solved)
    try: check(unsolved)
    except Exception: pass
    else: raise AssertionError(f"check_{{n}} accepts the unsolved exercise")
"""

class Shell(InteractiveShell):
    def enable_gui(self, gui=None): pass  # plots are drawn, and no window opens

def run_each_cell(path: Path) -> None:
    "Run the notebook at `path`, in its folder, by IPython; for a process of its own."
    os.chdir(path.parent)
    os.environ.update(QUIET)
    sys.path.insert(0, "")
    shell = Shell.instance()
    shell.enable_matplotlib("inline")
    for cell in code_cells(nbformat.read(path, as_version=4)):
        result = shell.run_cell(cell.source)
        if error := result.error_before_exec or result.error_in_exec:
            raise AssertionError(f"cell {cell.id}:\n{''.join(traceback.format_exception(error))}")

@pytest.fixture(scope="module")
def processes():
    "A new process for each task, with libraries and package imported: that takes longer than some lessons."
    with ProcessPoolExecutor(1, started(), max_tasks_per_child=1) as pool: yield pool

@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=NAMES)
def test_runs_and_every_checker_accepts_the_solution_and_refuses_the_unsolved_exercise(path, processes):
    with copied() as root:
        copy = root / "nbs" / path.name
        nb = nbformat.read(copy, as_version=4)
        nb.cells.append(nbformat.v4.new_code_cell(CHECKS.format(numbers=exercises(nb))))
        nbformat.write(nb, copy)
        processes.submit(run_each_cell, copy).result(SECONDS)

# the check itself

def test_a_cell_that_fails_is_named_with_what_it_says(processes, tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in ("import torch", "assert 1 == 2, 'not so'", "1")])
    nbformat.write(nb, tmp_path / "x.ipynb")
    with pytest.raises(AssertionError, match=rf"cell {nb.cells[1].id}:[\s\S]*not so"):
        processes.submit(run_each_cell, tmp_path / "x.ipynb").result(SECONDS)

def change(nb, old, new):
    "The first cell that holds `old`, with `new` in its place."
    cell = next(c for c in nb.cells if old in c.source)
    cell.source = cell.source.replace(old, new)

@pytest.mark.parametrize(("old", "new", "says"), [
    ("\n\n> ", "\n\n", "and its question"), ("../assets/pipeline/06_retrieval.svg", "x.svg", "box lit"),
    ("on two CPU cores, offline.", "somewhere.", "Runs in about"), ("## What goes wrong", "## Trouble", "What goes wrong"),
    ("## Ask yourself", "## Think", "numbered questions"), ("def check_1(", "def examine_1(", "exercise 1: one cell"),
    ("check_1(solution_1)", "pass", "checked where it stands"),
])
def test_what_a_lesson_lacks_is_named(old, new, says):
    nb = nbformat.read(ROOT / "nbs" / "06_retrieval.ipynb", as_version=4)
    assert missing(nb, "06_retrieval") == []
    change(nb, old, new)
    assert any(says in line for line in missing(nb, "06_retrieval"))
