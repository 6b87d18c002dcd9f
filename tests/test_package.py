"The package as a whole: what may import what, metadata, lint and types, the wheel, and what must not stand in the repository."
import ast
import gzip
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distributions, metadata, requires
from importlib.resources import files
from pathlib import Path

import pytest
from notebooks import ROOT, copied
from packaging.specifiers import SpecifierSet
from tiny import tiny_data, tiny_model

import rag_finetune
from rag_finetune.data import deal, write_beir

PACKAGE = ROOT / "rag_finetune"
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("_"))

# module -> modules of this package that its exported cells may import: one direction, no loops
MAY_IMPORT = {
    "core": "",
    "data": "core",
    "synthetic": "core data",
    "review": "core data",
    "metrics": "core",
    "report": "core data metrics verdict",
    "models": "core",
    "retrieval": "core",
    "verdict": "core metrics",
    "ladder": "core models retrieval",
    "negatives": "core synthetic",
    "training": "core",
    "embedding": "core negatives models metrics retrieval training",
    "pairs": "core data negatives synthetic",
    "reranker": "core embedding losses metrics models negatives pairs retrieval training",
    "flag": "core data models reranker training",
    "tiers": "core negatives retrieval verdict",
    "rerankers": "core metrics models pairs reranker retrieval tiers verdict",
    "late": "core embedding models reranker training",
    "lora": "core models training",
    "losses": "core embedding",
    "probe": "core metrics models retrieval",
    "pipeline": "*",
    "cli": "*",
}
# what is slow to import, or changes what a machine must have: package -> modules that may import it, besides pipeline and cli
HEAVY = {
    "torch": "models ladder training embedding reranker rerankers flag late lora losses probe",
    "sentence_transformers": "models ladder training embedding reranker flag late lora losses probe",
    "transformers": "models training embedding reranker late lora losses tiers",
    "datasets": "data embedding reranker late lora losses",
    "accelerate": "training embedding reranker late lora losses",
    "peft": "lora training",
    "lancedb": "retrieval",
    "sklearn": "ladder synthetic probe tiers",
    "umap": "probe",
    "bertopic": "probe",
    "FlagEmbedding": "flag",
    "openai": "synthetic",
    "instructor": "synthetic",
    "streamlit": "review",
}

def imported(source):
    "Every module that `source` imports, at the top or inside a function, by its absolute name."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"rag_finetune.{node.module or ''}".rstrip(".") if node.level else node.module
            yield base
            if base == "rag_finetune": yield from (f"{base}.{alias.name}" for alias in node.names)

def siblings(names): return {name.split(".")[1] for name in names if name.startswith("rag_finetune.")}

def forbidden(module, source):
    "What `module` imports and may not."
    allowed = set(MAY_IMPORT) - {module, "cli"} if MAY_IMPORT[module] == "*" else set(MAY_IMPORT[module].split())
    if module not in ("pipeline", "cli"): allowed -= {"pipeline"}
    names = set(imported(source))
    heavy = {name.split(".")[0] for name in names} & HEAVY.keys() if MAY_IMPORT[module] != "*" else set()
    return (siblings(names) - allowed) | {name for name in heavy if module not in HEAVY[name].split()}

@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_it_may(module):
    assert module in MAY_IMPORT, "a new module: say in MAY_IMPORT what it may import"
    assert forbidden(module, (PACKAGE / f"{module}.py").read_text(encoding="utf-8")) == set()

@pytest.mark.parametrize(("module", "source", "found"), [
    ("metrics", "from .core import Run", set()), ("metrics", "from .data import load", {"data"}),
    ("metrics", "def f():\n    import torch.nn", {"torch"}), ("metrics", "from . import verdict", {"verdict"}),
    ("verdict", "import rag_finetune.models", {"models"}), ("ladder", "from sklearn.svm import SVC", set()),
    ("pipeline", "from .cli import app", {"cli"}), ("cli", "from .pipeline import run\nimport torch", set()),
])
def test_a_forbidden_import_is_found(module, source, found):
    assert forbidden(module, source) == found

def test_core_needs_numpy_alone():
    outside = {name.split(".")[0] for name in imported((PACKAGE / "core.py").read_text(encoding="utf-8"))} - sys.stdlib_module_names
    assert outside == {"numpy"}

@pytest.mark.parametrize("module", ["core", "data", "metrics", "negatives", "review", "synthetic", "verdict"])
def test_leaves_heavy_packages_unloaded(module):
    code = f"import sys, rag_finetune.{module}; print(*({set(HEAVY)} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []

# metadata

def settings():
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]

def test_metadata_is_that_of_settings_ini():
    about = metadata("rag_finetune")
    assert about["Version"] == settings()["version"] == rag_finetune.__version__
    assert about["Summary"] == settings()["description"]
    assert about["Requires-Python"] == f">={settings()['min_python']}"
    assert about["License-Expression"] == settings()["license"]
    assert len([line for line in requires("rag_finetune") if "extra ==" not in line]) == len(settings()["requirements"].split())

def test_every_dependency_says_why():
    extras = ("llm", "review", "topics", "int8", "flag", "gpu", "dev", "docs")
    for key in ("requirements", *(f"{extra}_requirements" for extra in extras)):
        block = (ROOT / "settings.ini").read_text(encoding="utf-8").split(f"\n{key} =\n")[1].split("\n\n")[0].splitlines()
        reasons = [line.strip().startswith("#") for line in block]
        assert reasons == [True, False] * (len(block) // 2), f"{key}: a reason, a requirement, a reason, a requirement"

def test_every_dependency_is_locked_and_the_lock_names_no_place():
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lock.splitlines() if not line.startswith("#")}
    keys = [f"{extra}requirements" for extra in ("", "llm_", "review_", "topics_", "int8_", "flag_", "dev_", "docs_")]
    wanted = [line for key in keys for line in settings()[key].split()]
    assert {re.sub(r"[-_.]+", "-", re.split(r"[=<>]", line)[0]).lower() for line in wanted} <= locked
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lock.splitlines()), "only name==version"

def test_what_is_locked_runs_on_the_oldest_python_that_is_promised():
    promised = settings()["min_python"] + ".0"   # Debian 12 has 3.11.2
    wants = {d.metadata["Name"]: d.metadata["Requires-Python"] for d in distributions()}
    assert {name: python for name, python in wants.items() if python and promised not in SpecifierSet(python)} == {}

def test_is_typed_and_brings_its_data():
    assert files("rag_finetune").joinpath("py.typed").is_file()
    assert files("rag_finetune.bundled").joinpath("transactions", "corpus.jsonl").is_file()

# lint, types, and what must not stand in the repository

@pytest.mark.parametrize("command", [["ruff", "check", "."], ["mypy"]], ids=["ruff", "mypy"])
def test_static(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

def tracked():
    "The text files that git tracks, with their texts."
    if not (ROOT / ".git").exists(): pytest.skip("not a git checkout: nothing tells which files belong to it")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        path = ROOT / name
        if path.suffix in (".png", ".svg", ".npz", ".safetensors") or not path.is_file(): continue
        content = path.read_bytes()
        yield name, (gzip.decompress(content) if path.suffix == ".gz" else content).decode()

MACHINE = re.compile(r"(?<![\w.:/])/(?:work|root|home|Users|opt|mnt|tmp)/\w[^\s\"'`)]*")

def test_no_file_names_a_place_on_one_machine():
    assert [(name, found[0]) for name, text in tracked() if (found := MACHINE.search(text))] == []

@pytest.mark.parametrize(("text", "found"), [("in /" + "home/ann/x.csv", True), ("(/" + "work/main)", True), ("see docs/home/x", False),
                                             ("https://example.org/" + "home/x", False), ("#!/usr/bin/env bash", False)])
def test_a_place_on_one_machine_is_found(text, found):
    assert bool(MACHINE.search(text)) == found

# the wheel

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The scripts' folder of a new environment with the wheel, beside (not in) this environment's packages."
    folder = tmp_path_factory.mktemp("wheel")
    python = [sys.executable, "-m"]
    with copied() as root:
        subprocess.run([*python, "build", "--wheel", "--no-isolation", "--outdir", folder, root], check=True, capture_output=True)
    subprocess.run([*python, "venv", "--without-pip", folder / "venv"], check=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    site = subprocess.run([scripts / "python", "-c", "import site; print(site.getsitepackages()[0])"],
                          check=True, capture_output=True, text=True).stdout.strip()
    # a path added by a .pth file does not have its own .pth files read, so an editable install of this repository stays behind
    Path(site, "beside.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    [wheel] = folder.glob("*.whl")
    outside([*python, "pip", "--python", scripts / "python", "install", "--no-deps", wheel], folder)
    return scripts

def outside(command, folder):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

@pytest.mark.slow
def test_the_wheel_brings_modules_data_and_types(installed, tmp_path):
    code = ("import rag_finetune, importlib.resources as r; print(rag_finetune.__file__); "
            "print(*sorted(f.name for f in r.files('rag_finetune').iterdir())); "
            "print(r.files('rag_finetune').joinpath('launch', 'review.py').is_file()); "
            "print(*sorted(p.name for p in r.files('rag_finetune.bundled').joinpath('transactions').iterdir())); "
            "from rag_finetune.data import bundled, load; print(*(len(d.queries) for d in load('handbook').values())); "
            "print(*sorted(p.relative_to(bundled()['handbook']).as_posix() for p in bundled()['handbook'].rglob('*') if p.is_file())); "
            "from rag_finetune.models import open_encoder; print(open_encoder('default').encode(['a', 'b']).shape)")
    where, modules, launcher, data, queries, handbook, vectors = outside([installed / "python", "-c", code], tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert {"py.typed", *(f"{name}.py" for name in MODULES)} <= set(modules.split())
    assert launcher == "True", "what Streamlit runs"
    assert set(data.split()) == {p.name for p in (ROOT / "data" / "transactions").iterdir()}
    assert (queries, vectors) == ("526 119 511", "(2, 384)")
    folder = ROOT / "data" / "handbook"
    kept = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".txt", ".pyc")}
    assert set(handbook.split()) == kept, "all but the script and its sources"

@pytest.mark.slow
def test_the_wheel_runs_the_main_job_in_another_folder(installed, tmp_path):
    write_beir(deal(tiny_data()), tmp_path / "things")
    model = tiny_model(tmp_path / "tiny")
    outside([installed / "rag-finetune", "run", "--data", "things", "--model", model, "--epochs", "1", "--out", "out"], tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {"base", "bm25", "tuned"} <= results["systems"].keys()
    assert results["verdict"]["decision"] in {"better", "worse", "no_difference", "not_enough"}

def test_make_leaves_the_interpreter_its_bytecode():
    "Pip compiles nothing here; where no bytecode may be written, each process would compile all that it imports, 15 s of it."
    shown = subprocess.run(["make", "--no-print-directory", "--eval", 'shown:; @echo "$${PYTHONDONTWRITEBYTECODE-not set}"', "shown"],
                           cwd=ROOT, check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True).stdout
    assert shown == "not set\n"
