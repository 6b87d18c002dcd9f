"What a benchmark promises: seeds put together honestly, a stop that loses little, a test split's uses counted once."
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import THINGS, tiny_data, tiny_model

from rag_finetune.core import Dataset
from rag_finetune.data import split, write_beir
from rag_finetune.models import open_encoder
from rag_finetune.verdict import Interval, compare

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import ablation
import seeds
import speed


def copied(folder):
    "The code on which figures depend, in another place."
    (folder / "rag_finetune").mkdir()
    for name in seeds.CODE: shutil.copy(seeds.ROOT / "rag_finetune" / f"{name}.py", folder / "rag_finetune")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two seeds of a tiny set through the command: the second one later, the first after a run that was killed before its first checkpoint."
    folder, code = tmp_path_factory.mktemp("seeds"), copied(tmp_path_factory.mktemp("code"))   # so that an edit meanwhile does no harm
    write_beir(split(tiny_data(things=5, per_thing=12), {"train": .4, "dev": .2, "test": .4}, 0), folder / "data")
    model, work = str(tiny_model(folder / "tiny")), folder / "work"
    asked = ["--set", f"tiny={folder / 'data'}", "--model", model, "--epochs", "1", "--work", str(work), "--save", "--saved",
             str(folder / "seeds.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAG_FINETUNE_USES", str(folder / "uses.jsonl"))
        patch.setattr(seeds, "ROOT", code)
        begun = work / f"tiny-0-{seeds.key({'data': str(folder / 'data'), 'train_limit': None, 'model': model, 'epochs': 1})}"
        begun.mkdir(parents=True)
        (begun / "left over").touch()
        seeds.main([*asked, "--seeds", "0"])
        first = {f: f.stat().st_mtime_ns for f in work.glob("tiny-0-*.json.gz")}
        asked += ["--seeds", "0,1"]
        seeds.main(asked)
        yield folder, asked, first, json.loads((folder / "seeds.json").read_text())["sets"]["tiny"]


def test_every_figure_is_the_mean_of_the_seeds_and_its_interval_holds_them(made):
    *_, found = made
    assert {"base", "tuned", "bm25", seeds.CHOSEN, seeds.CHEAP} <= found["systems"].keys()
    for system, row in found["systems"].items():
        for metric, cell in row.items():
            by_seed = found["by_seed"][system][metric]
            assert len(by_seed) == 2 and cell["mean"] == pytest.approx(sum(by_seed) / 2)
            assert cell["low"] <= min(by_seed) and max(by_seed) <= cell["high"] and 0 <= cell["low"] and cell["high"] <= 1
    assert found["by_seed"]["bm25"]["nDCG@10"][0] == found["by_seed"]["bm25"]["nDCG@10"][1]       # nothing in it is drawn
    assert {(c["a"], c["b"]) for c in found["comparisons"]} == set(seeds.PAIRS)
    assert [r["seed"] for r in found["runs"]] == [0, 1] and found["verdict"]["sentence"]


def test_what_is_done_is_not_done_again_and_the_test_is_used_once(made, capsys):
    folder, asked, first, found = made
    assert len(first) == 1 and {f: f.stat().st_mtime_ns for f in first} == first       # untouched when the second seed came
    uses = (folder / "uses.jsonl").read_text().splitlines()
    assert len(uses) == 1 and "bench/seeds.py: one experiment" in json.loads(uses[0])["about"] and found["test_uses"]["count"] == 1
    next((folder / "work").glob("tiny-1-*.json.gz")).unlink()    # stopped after the run, before its file was written
    seeds.main(asked)
    said = capsys.readouterr().out
    assert "seed 0 ..." not in said and "seed 1 ..." in said and "Verdict: " in said
    assert (folder / "uses.jsonl").read_text().splitlines() == uses
    again = json.loads((folder / "seeds.json").read_text())["sets"]["tiny"]
    assert again["systems"] == found["systems"] and again["by_seed"] == found["by_seed"]


def test_finished_runs_are_enough_on_another_machine(made, tmp_path, capsys):
    folder, asked, *_, found = made
    values = tmp_path / "values"
    values.mkdir()
    for file in (folder / "work").glob("tiny-*.*"): shutil.copy(file, values)
    seeds.main([*asked[:asked.index("--work")], "--work", str(tmp_path / "empty"), "--values", str(values), "--seeds", "0,1",
                "--save", "--saved", str(tmp_path / "again.json")])
    assert " ..." not in capsys.readouterr().out and not [*(tmp_path / "empty").iterdir()]
    again = json.loads((tmp_path / "again.json").read_text())["sets"]["tiny"]
    assert again["systems"] == found["systems"] and again["test_uses"] == found["test_uses"]
    assert str(folder / "work") not in json.dumps([seeds.read(file) for file in values.glob("*.gz")])


def test_other_settings_and_other_code_are_other_runs(monkeypatch, tmp_path):
    settings = {"data": "/some/where/set", "train_limit": None, "model": "default", "epochs": None}
    monkeypatch.setattr(seeds, "texts", lambda path: {"test": "changed" if "changed" in path else "as it was"})
    assert seeds.key(settings) == seeds.key({**settings, "data": "/else/where/set"}) != seeds.key({**settings, "epochs": 3})
    assert seeds.key(settings) != seeds.key({**settings, "data": "/changed/set"})
    monkeypatch.setattr(seeds, "ROOT", copied(tmp_path))
    before = seeds.key(settings)
    with (tmp_path / "rag_finetune" / "embedding.py").open("a") as file: file.write("# changed\n")
    assert seeds.key(settings) != before


def test_seeds_that_disagree_widen_an_interval_and_take_a_claim_back():
    assert seeds.widened(Interval(.5, .4, .6, 100), [.5, .5, .5]) == Interval(.5, .4, .6, 100)
    # by hand: means .4, .5, .6: standard error .1 / sqrt 3, times Student's 4.303: .2484; with .1 as squares: .2678
    wide = seeds.widened(Interval(.5, .4, .6, 100), [.4, .5, .6])
    assert wide.low == pytest.approx(.5 - .2678, abs=1e-4) and wide.high == pytest.approx(.5 + .2678, abs=1e-4)
    values = {str(i): i / 200 for i in range(100)}
    better = compare({q: v + .1 + .001 * int(q) for q, v in values.items()}, values, "a", "b", "m")
    assert seeds.claim(seeds.widened(better, [.15, .15, .15], -1.), .01) == "better"
    assert seeds.claim(seeds.widened(better, [-.05, .15, .35], -1.), .01) == "not_enough"


def test_two_tiers_are_what_each_seed_chose_against_its_own_single_tier():
    def file(system, first, shift):
        names = ("base", "bm25", "tuned", "base+late", "tuned+late", "base+reranker", "bm25+reranker", "tuned+reranker")
        def by_query(s): return {f"q{i}": (i % 10) / 20 + (shift if s == system else 0) for i in range(60)}
        values = {s: {m: by_query(s) for m in seeds.METRICS} for s in names}
        return {"values": values, "slices": {}, "results": {
            "dataset": {"fingerprint": {"test": "t"}}, "verdict": {"chosen": system, "best_cheap": first, "sentence": ""},
            "environment": {}, "settings": {}, "resumed": True, "seconds": {}, "second_tier": {"system": system, "first": first}}}
    files = [file("tuned+late", "base", .1), file("tuned+reranker", "tuned", .2), file("tuned+late", "bm25", .3)]
    found = seeds.together(files, [0, 1, 2])
    two = next(c for c in found["comparisons"] if (c["a"], c["b"], c["metric"]) == (seeds.TWO, seeds.ONE, seeds.DECIDES))
    assert two["difference"] == pytest.approx(.2) and found["by_seed"][seeds.TWO][seeds.DECIDES] == pytest.approx([.325, .425, .525])
    # the seeds' spread alone: standard error .1 / sqrt 3, times 4.303
    assert two["low"] < .2 - .2484 and "cannot tell" in found["second_tier"]["sentence"]
    assert [r["second_tier"]["system"] for r in found["runs"]] == ["tuned+late", "tuned+reranker", "tuned+late"]
    assert {(c["a"], c["b"]) for c in found["comparisons"]} == {*seeds.PAIRS, *seeds.TIERS}


def test_an_ablation_has_each_arm_with_interval_and_goes_on_where_it_was(tmp_path, capsys):
    write_beir(split(tiny_data(things=5, per_thing=12), {"train": .4, "dev": .3, "test": .3}, 0), tmp_path / "data")
    arms = ("known-answers,labels,hard-only,near-misses,made-up-queries,paraphrases,from-tuned-taught-by-late,taught-by-first,tokens,"
            "flagembedding")
    asked = ["--set", f"tiny={tmp_path / 'data'}", "--model", str(tiny_model(tmp_path / "tiny")), "--seeds", "0,1", "--epochs", "1",
             "--train", "20", "--dev", "14", "--tokens", "16", "--work", str(tmp_path / "work"), "--save", "--saved",
             str(tmp_path / "ablation.json")]
    ablation.main([*asked, "--arms", "labels"])
    done = {f: f.stat().st_mtime_ns for f in (tmp_path / "work").glob("tiny-labels-*.json")}
    ablation.main([*asked, "--arms", arms])
    assert len(done) == 2 and all(f.stat().st_mtime_ns == at for f, at in done.items())
    found = json.loads((tmp_path / "ablation.json").read_text())["tiny, seeds 0,1"]
    assert {*found["arms"]} == {"first stage", "late", *arms.split(",")} and (found["train"], found["dev"]) == (20, 14)
    for name, figure in found["arms"].items():
        assert figure["low"] <= figure["mean"] <= figure["high"] and figure["n"] == 14
        if figure["by_seed"]: assert figure["mean"] == pytest.approx(sum(figure["by_seed"]) / 2), name
    assert {(c["a"], c["b"]) for c in found["comparisons"]} == {(a, b) for a in arms.split(",") for b in ("first stage", "late")} | {
        ("late", "first stage"), ("known-answers", "labels"), ("tokens", "labels"),
        *((a, "known-answers") for a in ("flagembedding", "made-up-queries", "taught-by-first"))}
    easy = found["easy"]
    assert {*easy["arms"]} == {f"{a}, easy" for a in arms.split(",")}
    assert [(c["a"], c["b"]) for c in easy["comparisons"]] == [
        ("hard-only, easy", "known-answers, easy"), ("known-answers, easy", "labels, easy")]


def test_a_querys_own_half_has_no_say_in_its_depth_and_weight():
    first = object.__new__(ablation.First)
    texts = {f"d{i}": f"text {i}" for i in range(6)}
    first.dev = Dataset(texts, {f"q{i}": f"query {i}" for i in range(8)}, {f"q{i}": {"d3": 1} for i in range(8)}, name="dev")
    first.on_dev = {q: {d: -float(i) for i, d in enumerate(texts)} for q in first.dev.queries}
    class Right:
        "Knows the answer of the even queries, and puts it last for the others."
        def predict(self, inputs): return np.array([(-1) ** int(q[-1]) * float(d == "text 3") for q, d in inputs])
    values, [for_even, for_odd] = first.values(Right(), (6, 2))
    assert for_odd == (6, 1.) and for_even[0] == 2                       # each is what suits the other half
    assert all(values[q] == pytest.approx(1 / np.log2(5)) for q in list(values) if int(q[-1]) % 2 == 0) and len(values) == 8


def test_rows_that_their_trainer_leaves_out_are_not_counted_for_it(tmp_path):
    folder, two = tiny_model(tmp_path), tiny_data(things=2, per_thing=32)
    assert speed.documented_recipe(open_encoder(folder, device="cpu"), two, epochs=2) == 2 * 2 * 2   # two steps an epoch, of a row for each
    queries = {f"q {d}": f"find my {d}" for d in THINGS}
    each = Dataset({d: f"the red {d}" for d in THINGS}, queries, {q: {q[2:]: 1} for q in queries}, "each")
    assert speed.documented_recipe(open_encoder(folder, device="cpu"), each, epochs=2) == 2 * len(THINGS)
