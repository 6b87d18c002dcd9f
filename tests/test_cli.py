"The commands as a user types them: help, bad input in one line with exit code 2, what an interruption keeps."
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_data, tiny_model
from typer.testing import CliRunner

from rag_finetune.cli import app
from rag_finetune.data import split, write_beir, write_qrels, write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "data"
    write_beir(split(tiny_data(), {"train": .6, "dev": .2, "test": .2}, 0), folder)
    return folder


def refused(arguments, *words):
    "Run a command that must be refused: one line on stderr that has `words`, exit code 2."
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    assert found.exit_code == 2, found.output
    lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in found.output
    for word in words: assert str(word) in lines[0]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def broken(data: Path, tmp_path: Path, name: str, change) -> Path:
    "A copy of the data folder in which one file is changed."
    copy = tmp_path / "broken"
    for file in data.rglob("*"):
        if file.is_file(): write(copy / file.relative_to(data), file.read_bytes())
    write(copy / name, change((copy / name).read_bytes()))
    return copy


CSVS = {
    "missing": (None, ["no such"]),
    "empty": ("", ["empty"]),
    "columns": ("a,b\n1,2\n", ["columns found: a, b", "text", "category"]),
    "invalid UTF-8": (b"text,category\nwhere is my card,card\n\xff\xfe,card\n", [":3"]),
    "over 1 MB": ("text,category\nshort,card\n" + "x" * 1_000_001 + ",card\n", [":3", "MB"]),
}


@pytest.mark.parametrize("case", CSVS)
def test_csv_that_cannot_be_used(case, tmp_path):
    text, words = CSVS[case]
    path = tmp_path / "rows.csv"
    if text is not None: write(path, text)
    refused(["run", "--data", path, "--out", tmp_path / "out"], "rows.csv", *words)
    assert not (tmp_path / "out").exists()


BEIRS = {
    "a line that does not parse": ("queries.jsonl", lambda b: b + b'{"_id": \n', ["queries.jsonl:"]),
    "a duplicate id": ("corpus.jsonl", lambda b: b + b.splitlines()[0] + b"\n", ["corpus.jsonl:", "car"]),
    "qrels to an unknown document": ("qrels/test.tsv", lambda b: b + b"q1\tghost\t1\n", ["test.tsv:", "ghost"]),
    "qrels to an unknown query": ("qrels/test.tsv", lambda b: b + b"ghost\tcar\t1\n", ["test.tsv:", "ghost"]),
    "a test query that is also in train": ("qrels/test.tsv", None, ["test"]),
}


@pytest.mark.parametrize("case", BEIRS)
def test_beir_folder_that_cannot_be_used(case, data, tmp_path):
    name, change, words = BEIRS[case]
    def add_a_train_query(content): return content + (data / "qrels" / "train.tsv").read_bytes().splitlines()[1] + b"\n"
    refused(["run", "--data", broken(data, tmp_path, name, change or add_a_train_query), "--out", tmp_path / "out"], *words)
    assert not (tmp_path / "out").exists()


def test_out_that_holds_something_is_left_alone(data, tmp_path):
    write(tmp_path / "out" / "thesis.txt", "two years of work")
    refused(["run", "--data", data, "--out", tmp_path / "out"], "exists and is not an empty folder")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_what_the_system_refuses_is_one_line_too(data, tmp_path):
    write(tmp_path / "file.txt", "mine")
    refused(["run", "--data", data, "--out", tmp_path / "file.txt" / "out"], "file.txt")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "deeper")
    refused(["run", "--data", data, "--out", tmp_path / "nowhere"], "nowhere")
    refused(["run", "--data", "x" * 5000, "--out", tmp_path / "out"], "too long")
    assert CliRunner().invoke(app, ["run", "--seed", "-1"]).exit_code == 2


def test_model_that_cannot_be_opened(data, tmp_path):
    refused(["run", "--data", data, "--model", "nobody/nothing", "--out", tmp_path / "out"], "default", "all-MiniLM-L6-v2")
    model = tiny_model(tmp_path / "tiny")
    write(model / "pytorch_model.bin", pickle.dumps({"weights": 1}))
    refused(["run", "--data", data, "--model", model, "--out", tmp_path / "out"], "pytorch_model.bin")
    assert not (tmp_path / "out").exists()


def test_too_few_queries_run_and_say_so(tmp_path):
    write_beir(split(tiny_data(per_thing=2), {"train": .4, "dev": .3, "test": .3}, 0), tmp_path / "data")
    model = tiny_model(tmp_path / "tiny")
    found = CliRunner().invoke(app, [
        "run", "--data", str(tmp_path / "data"), "--model", str(model), "--epochs", "1", "--out", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert "Verdict: cannot tell" in found.stdout and "queries would be needed" in found.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["verdict"]["decision"] == "not_enough"


def test_help_names_the_commands_and_their_options():
    assert {"run", "compare"} <= set(CliRunner().invoke(app, ["--help"]).stdout.split())
    text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "160"}).stdout
    for option in ("--data", "--model", "--out", "--train-limit", "--seed", "--epochs", "--worth"): assert option in text


def test_entail_says_how_far_it_can_be_believed(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RAG_FINETUNE_USES", str(tmp_path / "uses.jsonl"))
    out, model = tmp_path / "out", str(tiny_model(tmp_path / "tiny"))
    found = CliRunner().invoke(app, ["entail", str(data), "--out", str(out), "--reranker", model, "--epochs", "1"])
    assert found.exit_code == 0 and "saying one half" in found.stdout and "contradiction" in found.stdout
    assert {p.name for p in out.iterdir()} == {"reranker", "predictions.csv", "results.json"}
    refused(["entail", tmp_path / "none.csv", "--out", tmp_path / "never"], "none.csv")
    refused(["entail", data, "--out", out], "exists and is not an empty folder")


def test_compare_says_what_may_be_claimed(tmp_path):
    queries = [f"q{i}" for i in range(60)]
    write_qrels({q: {"right": 1} for q in queries}, tmp_path / "qrels.trec")
    write_run({q: {"right": 1., "wrong": 2. if i % 3 else 0.} for i, q in enumerate(queries)}, tmp_path / "before.trec", "before")
    write_run({q: {"right": 1., "wrong": 0.} for q in queries}, tmp_path / "after.trec", "after")
    files = [str(tmp_path / f) for f in ("qrels.trec", "before.trec", "after.trec")]
    found = CliRunner().invoke(app, ["compare", *files])
    assert found.exit_code == 0 and "after is better than before: nDCG@10" in found.stdout
    assert "before" in CliRunner().invoke(app, ["compare", *files[:2]]).stdout
    refused(["compare", *files, "--metric", "nDCG"], "nDCG")
    refused(["compare", tmp_path / "none.trec", files[1]], "none.trec")
    write(tmp_path / "bad.trec", "q0 Q0 right 1 high tag\n")
    refused(["compare", files[0], tmp_path / "bad.trec"], "bad.trec:1")
    write_run({"another": {"right": 1.}}, tmp_path / "foreign.trec", "foreign")
    refused(["compare", files[0], files[1], tmp_path / "foreign.trec"], "foreign.trec", "answers none of the 60 queries")
    refused(["compare", files[0], files[1], files[1]], "before.trec: given twice")
    write_run({q: {"right": 1.} for q in queries[:50]}, tmp_path / "silent.trec", "silent")
    some = CliRunner().invoke(app, ["compare", files[0], str(tmp_path / "silent.trec")])
    assert some.exit_code == 0 and "silent.trec: leaves out 10 of 60 queries, which count as 0" in some.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("step", "said"), [("cheap rungs on dev", "nothing was finished, so nothing is kept"),
                                            ("test, once", ": model, training; the same command with")])
def test_ctrl_c_says_what_is_kept(step, said, data, tmp_path):
    command = [sys.executable, "-c", "from rag_finetune.cli import app; app()", "run", "--data", str(data),
               "--model", str(tiny_model(tmp_path / "tiny")), "--out", str(tmp_path / "out")]
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    def heard(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are started deaf to it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=heard)
    for line in process.stderr:
        if line.startswith(step): break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; " in error and said in error and "Traceback" not in error
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_figures(data, tmp_path):
    model = str(tiny_model(tmp_path / "tiny"))
    def command(out, *more):
        return [sys.executable, "-c", "from rag_finetune.cli import app; app()", "run", "--data", str(data), "--model", model,
                "--out", str(tmp_path / out), *more]
    subprocess.run(command("whole"), check=True, capture_output=True)
    refused(command("never", "--resume")[3:], "never", "no run that was stopped")
    for name in ("training", "model"): write(tmp_path / "theirs" / name / "mine.txt", "mine")
    refused(command("theirs", "--resume")[3:], "theirs", "no run that was stopped")
    assert len(list(tmp_path.glob("theirs/*/mine.txt"))) == 2
    process = subprocess.Popen(command("cut"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("cut/training/*/step-*/manifest.json")): time.sleep(.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "cut" / "results.json").exists()
    refused(command("cut")[3:], "exists and is not an empty folder")
    refused(command("cut", "--resume", "--epochs", "2")[3:], "of another run: epochs (None there, 2 now)", "cut --resume goes on with it")
    subprocess.run(command("cut", "--resume"), check=True, capture_output=True)
    whole, cut = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("whole", "cut"))
    for part in ("systems", "verdict", "settings", "forgetting"): assert cut[part] == whole[part], part
    curves = [json.loads((tmp_path / out / "details.json").read_text())["curves"] for out in ("whole", "cut")]
    assert curves[0] == curves[1] and (whole["resumed"], cut["resumed"]) == (False, True)
    weights = [(tmp_path / out / "model" / "model.safetensors").read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "cut" / "training").exists() and not (tmp_path / "whole" / "training").exists()
