"The main job as a user meets it: what may see what, what is written, and that the figures are those of the files."
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from tiny import tiny_data, tiny_model

from rag_finetune.core import DataError, Dataset, ranking
from rag_finetune.data import load, read_qrels, read_run, sample, split, write_beir
from rag_finetune.metrics import evaluate, ndcg, recall
from rag_finetune import pipeline, reranker
from rag_finetune.embedding import fine_tune
from rag_finetune.models import fingerprint, open_encoder
from rag_finetune.reranker import FastScorer, LateInteraction, open_multi_vector, open_reranker
from rag_finetune.pipeline import (
    BLENDS, CHEAP_BLENDS, FEW, MANY, METRICS, TUNED_BLENDS, RememberedPairs, Remembering, Rung, answer, blend, changed_queries, choose,
    comparisons, entail, judge, new_folder, not_taught, prepare, query_map, run, separation, slices, why_no_classifier, _both,
)
from rag_finetune.pairs import contradicting, pair_scores, right_and_wrong
from rag_finetune.retrieval import bm25, dense, rerank
from rag_finetune.tiers import Calibration, calibrate, head_of, to_depth
from rag_finetune.training import interpolated
from rag_finetune.verdict import compare

NOUNS = ("car", "dog", "cat", "house", "tree", "lamp", "door", "ship", "road", "book", "cup", "hat", "bag", "key", "bed", "box", "pen",
         "map", "jar", "fan", "net")
CHEAP = {"bm25", "base", "adapter", "neighbours", "tfidf-lr", "frozen-lr", *CHEAP_BLENDS}
TUNED = {"tuned", "tuned+bm25", "tuned-adapter", "tuned-lr", "tuned-neighbours", "tuned-lr+frozen-lr"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A tiny dataset on disk, a tiny model, and the outcome of the main job on them."
    folder = tmp_path_factory.mktemp("job")
    splits = split(tiny_data(per_thing=14), {"train": .5, "dev": .2, "test": .3}, 0)
    write_beir(splits, folder / "data")
    model = tiny_model(folder / "tiny")
    results = run(folder / "data", folder / "out", str(model), epochs=2)
    return folder, splits, model, results


# who may see what

def test_a_training_query_that_stands_in_test_is_dropped_and_told():
    data = tiny_data()
    splits = split(data, {"train": .6, "dev": .2, "test": .2}, 0)
    twin = next(iter(splits["test"].queries.values())).upper()
    first = next(iter(splits["train"].queries))
    splits["train"] = replace(splits["train"], queries={**splits["train"].queries, first: twin})
    found = prepare(splits)
    assert first not in found.splits["train"].queries and len(found.warnings) >= 1 and "1 query dropped" in found.warnings[0]


def test_dev_is_carved_out_of_the_budget_and_no_query_is_on_two_sides():
    splits = split(tiny_data(), {"train": .8, "test": .2}, 0)
    found = prepare(splits, train_limit=40)
    train, dev, test = (set(found.splits[s].queries) for s in ("train", "dev", "test"))
    assert found.carved and len(train) + len(dev) == 40 and len(dev) == 8 and not (train & dev or dev & test or train & test)
    assert prepare(splits, 40).splits["train"].queries == found.splits["train"].queries
    assert prepare(splits, 40, seed=1).splits["train"].queries != found.splits["train"].queries


def test_a_set_that_brings_its_dev_keeps_it_whole():
    splits = split(tiny_data(), {"train": .6, "dev": .2, "test": .2}, 0)
    found = prepare(splits, train_limit=20)
    assert not found.carved and found.splits["dev"].queries == splits["dev"].queries and len(found.splits["train"].queries) == 20


def test_a_set_without_splits_is_split_by_question():
    found = prepare({"all": tiny_data()})
    assert found.carved and set(found.splits) == {"train", "dev", "test"}


def test_nothing_to_train_or_test_on_is_an_error():
    splits = split(tiny_data(), {"train": .8, "test": .2}, 0)
    with pytest.raises(DataError, match="no test"): prepare({"train": splits["train"]})
    data = splits["train"]
    spaced = replace(data, queries={"query 7": "where", **data.queries})
    with pytest.raises(DataError, match="id 'query 7' has white space"): prepare({**splits, "train": spaced})
    with pytest.raises(DataError, match="the test split has no query with a relevant document"):
        prepare({**splits, "test": replace(splits["test"], qrels={})})


def test_banking77_within_a_budget(public_data):
    found = prepare(load(public_data / "banking77"), train_limit=1000)
    assert [len(found.splits[s].queries) for s in ("train", "dev", "test")] == [800, 200, 3080]
    assert found.carved and found.warnings[0].startswith("7 queries dropped")


# choosing

def test_dev_chooses_and_test_repeats_it():
    good, bad = {"q": {"a": 1., "b": 0.}}, {"q": {"a": 0., "b": 1.}}
    rungs = {"x": Rung(lambda s: good if s == 2 else bad, (1, 2, 3)), "y": Rung(lambda _: bad, (None,))}
    choice = choose(rungs, {"x+y": ("x", "y"), "x+y+x": ("x+y", "x"), "no": ("x", "gone")}, {"q": {"a": 1}}, {})
    assert choice.settings["x"] == 2 and choice.scores["x"] == choice.scores["x+y"] == 1 and "no" not in choice.settings
    again = answer(rungs, {"x+y": ("x", "y"), "x+y+x": ("x+y", "x"), "no": ("x", "gone")}, choice.settings)
    assert again == choice.runs


def test_a_blend_leans_where_its_weight_says():
    a, b = {"q": {"x": 1., "y": 0.}}, {"q": {"x": 0., "y": 1.}}
    assert ranking(blend(a, b, .9)["q"], 1) == ["x"] and ranking(blend(a, b, .1)["q"], 1) == ["y"]
    assert set(blend(a, b, "rrf")["q"]) == {"x", "y"} and "rrf" in BLENDS


def test_the_judge_keeps_every_answer_and_what_was_found():
    data = tiny_data()
    small = judge(sample(data, 2, 0), [{"q": {"lamp": 3., "door": 2.}}], depth=1)
    assert set(small.corpus) == {d for q in small.queries for d in data.qrels[q]} | {"lamp"}


def test_documents_are_classes_where_they_are_few_and_known():
    data = tiny_data()
    assert why_no_classifier(data, data) is None
    assert "only 0%" in why_no_classifier(replace(data, qrels={}), data)
    assert "1,001 documents are too many" in why_no_classifier(Dataset({str(i): "t" for i in range(1001)}, {}, {}), data)


def test_the_cheap_rungs_get_as_many_blends_as_the_fine_tuned_model():
    assert len(CHEAP_BLENDS) >= len(TUNED_BLENDS)
    assert not any("tuned" in name for parts in CHEAP_BLENDS.values() for name in parts)


# measuring

def test_slices_tell_known_documents_from_new_ones():
    data = tiny_data()
    cars = {q: g for q, g in data.qrels.items() if "car" in g}
    found = slices(replace(data, qrels={q: g for q, g in data.qrels.items() if q not in cars}), data)
    assert found["unseen"] == cars and len(found["seen"]) == len(data.qrels) - len(cars)
    assert slices(data, data) == {}


def test_every_system_is_compared_with_the_base_and_with_the_best_cheap():
    qrels = {f"q{i}": {"a": 1} for i in range(12)}
    runs = {s: {q: {"a": float(i % 2), "b": .5} for i, q in enumerate(qrels)} for s in ("base", "bm25", "tuned")}
    pairs = {(c.a, c.b) for c in comparisons(qrels, runs, "bm25")}
    assert pairs == {("bm25", "base"), ("tuned", "base"), ("tuned", "bm25")}
    assert {(c.a, c.b) for c in comparisons(qrels, runs, "base")} == {("bm25", "base"), ("tuned", "base")}
    assert {c.metric for c in comparisons(qrels, runs, "bm25")} == set(METRICS)
    better = {q: {"a": 1., "b": .5} for q in qrels}
    found = [c for c in comparisons(qrels, runs | {"tuned": better}, "bm25") if c.metric == "accuracy@1"]
    [gain] = [c for c in found if (c.a, c.b) == ("tuned", "base")]
    assert gain.p < .05 and gain.p_holm == pytest.approx(3 * gain.p)   # a family of three


def test_queries_that_moved_most_come_first():
    data = Dataset({"a": "A", "b": "B", "c": "C"}, {"up": "u", "down": "d", "same": "s"}, {q: {"a": 1} for q in ("up", "down", "same")})
    best, second, third = {"a": 3., "b": 2., "c": 1.}, {"a": 2., "b": 3., "c": 1.}, {"a": 1., "b": 3., "c": 2.}
    found = changed_queries(data, {"up": third, "down": best, "same": best}, {"up": best, "down": second, "same": best})
    assert [g["query"] for g in found["gained"]] == ["u"] and [g["query"] for g in found["lost"]] == ["d"]
    assert found["gained"][0] == {"query": "u", "relevant": "A", "base_first": "B", "tuned_first": "A", "base_rank": 3, "tuned_rank": 1}


def test_separation_counts_the_queries_that_fail_too(made):
    _, splits, model, _ = made
    encoder, test = Remembering(open_encoder(model, device="cpu")), splits["test"]
    found = separation(test, encoder)
    scores = encoder.encode_query(list(test.queries.values())) @ encoder.encode_document(list(test.corpus.values())).T
    for row, q, good, bad in zip(scores, test.queries, found["positive"], found["negative"], strict=True):
        right = [d in test.positives(q) for d in test.corpus]
        assert good == pytest.approx(max(s for s, r in zip(row, right) if r), abs=1e-5)
        assert bad == pytest.approx(max(s for s, r in zip(row, right) if not r), abs=1e-5)


def test_queries_that_are_all_one_point_have_no_map(made):
    _, splits, model, _ = made
    encoder, test = Remembering(open_encoder(model, device="cpu")), splits["test"]
    assert len(query_map(test, encoder, encoder)["base"]) == len(test.queries)
    same = replace(test, queries={q: f"unknown {i}" for i, q in enumerate(test.queries)})   # words that the model does not know
    assert query_map(same, encoder, encoder) == {}   # t-SNE would end the process


def test_each_text_is_encoded_once(made):
    encoder = Remembering(open_encoder(made[2], device="cpu"))
    first = encoder.encode_query(["the red car", "a dog", "the red car"])
    assert len(encoder.queries) == 2 and np.array_equal(first[0], first[2])
    assert encoder.encode_query(["a dog"])[0].tolist() == first[1].tolist()


# the whole of it

def test_everything_promised_is_written(made):
    folder, splits, _, results = made
    out = folder / "out"
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results) >= {"dataset", "systems", "skipped", "slices", "comparisons", "verdict", "environment", "seconds", "settings"}
    assert CHEAP | TUNED <= set(results["systems"]) and results["skipped"] == {}
    assert all(set(row) == set(METRICS) for row in results["systems"].values())
    assert set(results["verdict"]) >= {"decision", "sentence", "chosen", "best_cheap"}
    assert results["verdict"]["chosen"].startswith("tuned") and results["verdict"]["best_cheap"] in CHEAP
    assert {f.stem for f in (out / "runs").iterdir()} == set(results["systems"])
    assert "<html" in (out / "report.html").read_text()
    card = (out / "model" / "README.md").read_text()
    assert "Limits" in card and "95% interval" in card and results["verdict"]["sentence"] in card
    assert not [f for f in out.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]


def test_the_figures_are_those_of_the_files(made):
    folder, splits, _, results = made
    qrels = read_qrels(folder / "out" / "qrels.trec")
    assert qrels == splits["test"].qrels
    for name, row in results["systems"].items():
        found = evaluate(qrels, read_run(folder / "out" / "runs" / f"{name}.trec"), METRICS)
        for metric, figures in row.items(): assert np.mean(list(found[metric].values())) == pytest.approx(figures["mean"], abs=1e-9)


def test_the_saved_model_is_the_tuned_system(made):
    folder, splits, _, _ = made
    model, test = SentenceTransformer(str(folder / "out" / "model"), device="cpu"), splits["test"]
    scores = model.encode(list(test.queries.values())) @ model.encode(list(test.corpus.values())).T
    saved = read_run(folder / "out" / "runs" / "tuned.trec")
    for q, row in zip(test.queries, scores):
        for d, score in zip(test.corpus, row): assert saved[q][d] == pytest.approx(score, abs=1e-4)


def test_dev_chooses_how_far_to_go_and_what_was_forgotten_is_told(made):
    folder, _, model, results = made
    told = results["forgetting"]
    assert told["set"] == "transactions" and told["documents"] == 24 and told["share"] == results["settings"]["share"] > 0
    assert [p["share"] for p in told["curve"]] == [0., .25, .5, .75, 1.] and {p["other"]["n"] for p in told["curve"]} == {500}
    scores = {p["share"]: p["dev"]["mean"] for p in told["curve"] if p["share"]}
    assert scores[told["share"]] == max(scores.values())
    other = not_taught(_both(made[1]["train"], made[1]["dev"]))
    def worth(path): return ndcg(other.qrels, dense(other, open_encoder(str(path), device="cpu")), 10)
    gained = compare(worth(folder / "out" / "model"), worth(model))   # of the model that was saved, over the one that it began with
    assert told["comparison"]["difference"] == pytest.approx(gained.difference, abs=1e-6) and told["comparison"]["n"] == 500
    assert told["sentence"] in (folder / "out" / "model" / "README.md").read_text()


def test_what_was_not_taught_is_a_bundled_set_without_any_document_of_training():
    transactions, handbook = load("transactions")["train"], load("handbook")["train"]
    assert not_taught(transactions).name == "handbook" and not_taught(handbook).name == "transactions"
    joined = replace(handbook, corpus=handbook.corpus | dict(list(transactions.corpus.items())[:1]))
    assert not_taught(joined) is None
    asked = not_taught(transactions)
    assert set(asked.queries).isdisjoint(load("handbook")["test"].queries) and len(asked.queries) == 500


def test_the_same_seed_gives_the_same_figures(made):
    folder, _, model, results = made
    again = run(folder / "data", folder / "again", str(model), epochs=2)
    assert again["systems"] == results["systems"] and again["verdict"] == results["verdict"] and again["settings"] == results["settings"]


def test_a_carved_dev_is_given_back_before_the_test(made, tmp_path, monkeypatch):
    model = made[2]
    write_beir(split(tiny_data(per_thing=30), {"train": .8, "test": .2}, 0), tmp_path / "data")  # so many that an epoch has several steps
    carved = prepare(load(tmp_path / "data"))
    seen = []
    def watched(train, target, encoder, *args, **kwargs):
        seen.append((set(target.queries), set(train.queries)))
        return real(train, target, encoder, *args, **kwargs)
    real = pipeline.cheap_rungs
    monkeypatch.setattr(pipeline, "cheap_rungs", watched)
    results = run(tmp_path / "data", tmp_path / "out", str(model), epochs=3)
    assert results["dataset"]["dev_carved"] and "refit on train and dev" in results["seconds"]
    train, dev, test = (set(carved.splits[s].queries) for s in ("train", "dev", "test"))
    assert seen == [(dev, train), (test, train | dev)]                 # what the rungs learn from: dev only once it has chosen
    def trained(data):
        encoder = open_encoder(str(model), device="cpu")
        fine_tune(encoder, data, name=FEW[0].objective, epochs=3, stop_after=results["settings"]["epochs"], lr=FEW[0].lr)
        return fingerprint(interpolated(open_encoder(str(model), device="cpu"), encoder, results["settings"]["share"]))
    saved = fingerprint(open_encoder(str(tmp_path / "out" / "model"), device="cpu"))
    assert saved == trained(_both(carved.splits["train"], carved.splits["dev"])) != trained(carved.splits["train"])


def test_the_tests_labels_choose_nothing(made, tmp_path):
    folder, splits, model, results = made
    docs = list(splits["test"].corpus)
    turned = {q: {docs[(docs.index(d) + 1) % len(docs)]: g for d, g in grades.items()} for q, grades in splits["test"].qrels.items()}
    write_beir(splits | {"test": replace(splits["test"], qrels=turned)}, tmp_path / "data")
    wrong = run(tmp_path / "data", tmp_path / "out", str(model), epochs=2)
    assert wrong["settings"] == results["settings"]
    assert all(wrong["verdict"][k] == results["verdict"][k] for k in ("chosen", "best_cheap"))
    saved = (str(f / "model") for f in (folder / "out", tmp_path / "out"))
    assert len({fingerprint(open_encoder(path, device="cpu")) for path in saved}) == 1
    assert wrong["systems"] != results["systems"]


def test_many_documents_take_the_other_recipes(made, tmp_path, caplog):
    model = made[2]
    things = [f"{a} {b}" for a in ("red", "blue", "small", "old", "wet", "loud", "new") for b in NOUNS]
    lines = ["Question,Answer", *(f"where is the {t}?,the {t} stands here" for t in things)]
    (tmp_path / "many.csv").write_text("\n".join(lines))
    with caplog.at_level("INFO", logger="rag_finetune"): results = run(tmp_path / "many.csv", tmp_path / "out", str(model), epochs=1)
    assert results["dataset"]["documents"] == len(things) >= 128 and "frozen-lr" in results["skipped"]
    assert set(json.loads((tmp_path / "out" / "details.json").read_text())["curves"]) == {r.name for r in MANY}
    assert "mined negatives for" in caplog.text and results["settings"]["recipe"] in {r.name for r in MANY}


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not an empty folder"): new_folder(tmp_path)
    with pytest.raises(DataError, match="exists"): new_folder(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="cannot be made"): new_folder(tmp_path / "notes.txt" / "out")
    with pytest.raises(DataError, match="no such file"): run(tmp_path / "no.csv", tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    assert new_folder(tmp_path / "new") == tmp_path / "new" and new_folder(tmp_path / "new").is_dir()
    assert Path(tmp_path / "notes.txt").read_text() == "mine"


# ---- a second tier

@pytest.fixture(scope="module")
def doubled(made):
    "The same job with a reranker."
    folder, _, model, _ = made
    return run(folder / "data", folder / "doubled", str(model), epochs=2, reranker=str(model))


def test_a_reranker_stands_behind_every_kind_of_first_stage(made, doubled):
    folder, _, _, plain = made
    single, settings = set(plain["systems"]), doubled["settings"]
    added = set(doubled["systems"]) - single
    cheap, tuned = plain["verdict"]["best_cheap"], plain["verdict"]["chosen"]
    best = max((cheap, tuned), key=json.loads((folder / "doubled" / "details.json").read_text())["dev"].__getitem__)
    late, read = ("base", "bm25", cheap, "tuned", tuned), ("base", "bm25", "tuned", best)
    assert added == {f"{s}+late" for s in late} | {f"{s}+reranker" for s in read}
    assert {s: plain["systems"][s] for s in single} == {s: doubled["systems"][s] for s in single}   # of one tier nothing changed
    assert "its head is new" in doubled["skipped"]["untrained reranker"] and plain["second_tier"] is None
    assert all(settings[s][0] in (5, 10, 20, 50) and 0 < settings[s][1] <= 1 for s in added)


def test_the_saved_reranker_made_the_runs(made, doubled):
    folder, splits, _, _ = made
    test, out = splits["test"], folder / "doubled"
    scorer = FastScorer(open_reranker(out / "reranker", device="cpu"))
    for name in ("base", "bm25", "tuned"):
        first, (depth, weight) = read_run(out / "runs" / f"{name}.trec"), doubled["settings"][f"{name}+reranker"]
        again = to_depth(first, rerank(test, first, scorer, depth), depth, weight)
        saved = read_run(out / "runs" / f"{name}+reranker.trec")
        same = sum(ranking(again[q]) == ranking(saved[q]) for q in saved)
        assert same >= .95 * len(saved)                                   # a tie of the file's rounded scores may fall the other way


def test_the_second_tier_says_what_it_brings_and_what_it_costs(made, doubled):
    folder, splits, _, _ = made
    told, dev = doubled["second_tier"], json.loads((folder / "doubled" / "details.json").read_text())["dev"]
    behind = {s for s in dev if s.endswith(("+late", "+reranker"))}
    assert dev[told["system"]] == max(dev[s] for s in behind) and dev[told["first"]] == max(dev[s] for s in set(dev) - behind)
    values = [ndcg(splits["test"].qrels, read_run(folder / "doubled" / "runs" / f"{told[s]}.trec"), 10) for s in ("system", "first")]
    c, both = told["comparison"], compare(*values)
    assert c["difference"] == pytest.approx(both.difference, abs=1e-9) and c["p_holm"] == pytest.approx(min(1, 2 * both.p))   # of two
    first = read_run(folder / "doubled" / "runs" / f"{told['system'].rpartition('+')[0]}.trec")
    found = recall(splits["test"].qrels, first, told["documents"])
    assert told["ceiling"]["mean"] == pytest.approx(sum(found.values()) / len(found))
    assert {*told["untrained"]} == {"late"} and "+reranker" in told["untrained"]["late"] and "+late" in told["untrained"]["late"]
    assert [told["documents"], told["weight"]] == list(doubled["settings"][told["system"]])
    assert all(0 < t["low"] <= t["median"] <= t["high"] for t in told["milliseconds"].values())
    page = (folder / "doubled" / "report.html").read_text()
    assert "Did the second tier earn its latency?" in page and told["sentence"][1:] in page and told["untrained"]["late"] in page
    assert "Did the second tier" not in (folder / "out" / "report.html").read_text()


def test_a_reranker_that_brings_its_head_is_a_rung_before_its_training(made, doubled, tmp_path):
    folder, _, model, _ = made
    results = run(folder / "data", tmp_path / "out", str(model), epochs=1, reranker=str(folder / "doubled" / "reranker"))
    assert {"base+given-reranker", "bm25+given-reranker", "tuned+given-reranker", "base+reranker"} <= set(results["systems"])
    told, dev = results["second_tier"], json.loads((tmp_path / "out" / "details.json").read_text())["dev"]
    behind = {s for s in dev if s.endswith(("+late", "+given-reranker", "+reranker"))}
    assert dev[told["system"]] == max(dev[s] for s in behind)   # the one that came with its head may be the best
    assert {*told["untrained"]} == {"late", "given-reranker"} and "+given-reranker" in told["untrained"]["given-reranker"]
    assert results["skipped"] == {} and "the reranker as it came" in (tmp_path / "out" / "report.html").read_text()


def test_a_model_whose_tokens_cannot_be_compared_has_other_rerankers(made, tmp_path):
    router = Router.for_query_document([*open_encoder(made[2], "cpu")], [*open_encoder(made[2], "cpu")])
    base = Remembering(SentenceTransformer(modules=[router], device="cpu"))
    assert pipeline.SecondTier(str(made[2]), base, 0, tmp_path).given == {}
    with pytest.raises(DataError, match="no plain text transformer"): pipeline.SecondTier("late", base, 0, tmp_path)


@pytest.mark.parametrize(("kind", "epochs"), [("cross-encoder", 2), ("late", 1)])
def test_dev_is_given_back_to_the_reranker_too(kind, epochs, made, tmp_path, monkeypatch):
    model, seen, real = made[2], [], pipeline.train_reranker
    if epochs == 1: monkeypatch.setattr(pipeline, "MANY_QUERIES", 1)
    write_beir(split(tiny_data(per_thing=14), {"train": .8, "test": .2}, 0), tmp_path / "data")
    def watched(name, train, tuned, dev, planned, stop_after, *args):
        seen.append((set(train.queries), dev and set(dev.queries), planned, stop_after))
        return real(name, train, tuned, dev, planned, stop_after, *args)
    monkeypatch.setattr(pipeline, "train_reranker", watched)
    results = run(tmp_path / "data", tmp_path / "out", str(model), epochs=1, reranker="late" if kind == "late" else str(model))
    train, dev = (set(prepare(load(tmp_path / "data")).splits[s].queries) for s in ("train", "dev"))
    assert seen == [(train, dev, epochs, None), (train | dev, None, epochs, results["settings"]["reranker epochs"])]


def test_a_run_that_was_stopped_while_its_reranker_trained_goes_on_from_there(made, doubled, tmp_path, monkeypatch):
    folder, _, model, _ = made
    real, scores = reranker.reranked_score, []
    def stopped(*args):
        if len(scores) == 2: raise KeyboardInterrupt                      # before training, and after the first epoch
        return scores.append(real(*args)) or scores[-1]
    monkeypatch.setattr(reranker, "reranked_score", stopped)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt): run(folder / "data", out, str(model), epochs=2, reranker=str(model))
    with pytest.raises(DataError, match="reranker"): run(folder / "data", out, str(model), epochs=2, resume=True)
    first = scores.pop()
    monkeypatch.setattr(reranker, "reranked_score", lambda *args: scores.append(real(*args)) or scores[-1])
    results = run(folder / "data", out, str(model), epochs=2, reranker=str(model), resume=True)
    assert len(scores) == 2 and first not in scores[1:]                   # one epoch was left
    assert results["systems"] == doubled["systems"] and results["settings"] == doubled["settings"]


def test_the_reranker_says_what_it_is(made, doubled):
    card = (made[0] / "doubled" / "reranker" / "README.md").read_text()
    k, weight = doubled["settings"]["tuned+reranker"]
    alone, behind = (f"{doubled['systems'][s]['nDCG@10']['mean']:.3f}" for s in ("tuned", "tuned+reranker"))
    assert "pipeline_tag: text-ranking" in card and f"first {k} documents reranked" in card and f"a weight of {weight:g}" in card
    assert any(alone in line and behind in line for line in card.splitlines() if line.startswith("| nDCG@10"))


def test_a_fresh_head_is_asked_for_by_name(made, doubled, tmp_path, monkeypatch):
    folder, _, model, _ = made
    def opened(name, *_): raise DataError(f"opened {name}")
    monkeypatch.setattr(pipeline, "open_reranker", opened)
    with pytest.raises(DataError, match="opened default"): run(folder / "data", tmp_path / "out", str(model), reranker="fresh")
    card = pipeline.reranker_card({**doubled, "settings": {**doubled["settings"], "reranker": "fresh"}})
    assert "all-MiniLM-L6-v2 (embedded) with a fresh head" in card


def test_trained_tokens_are_a_second_tier_too(made, tmp_path):
    folder, splits, model, _ = made
    results = run(folder / "data", tmp_path / "out", str(model), epochs=1, reranker="default")
    assert {"base+late", "tuned+late", "base+reranker", "bm25+reranker", "tuned+reranker"} <= set(results["systems"])
    assert results["skipped"] == {} and results["settings"]["reranker"] == "late" and results["settings"]["reranker epochs"] in (0, 1, 2)
    many, one = open_multi_vector(tmp_path / "out" / "reranker", "cpu"), open_encoder(tmp_path / "out" / "model", "cpu")
    weights, before = many[0].state_dict(), one[0].state_dict()
    changed = {name for name in before if not (weights[name] == before[name]).all()}
    assert any(".layer.1." in name for name in changed) == (results["settings"]["reranker epochs"] > 0)
    assert not any(".layer.0." in name for name in changed)
    scorer = LateInteraction(many)
    first, (depth, weight) = read_run(tmp_path / "out" / "runs" / "tuned.trec"), results["settings"]["tuned+reranker"]
    again = to_depth(first, rerank(splits["test"], first, scorer, depth), depth, weight)
    saved = read_run(tmp_path / "out" / "runs" / "tuned+reranker.trec")
    assert sum(ranking(again[q]) == ranking(saved[q]) for q in saved) >= .98 * len(saved)
    assert "late interaction" in (tmp_path / "out" / "reranker" / "README.md").read_text()


# ---- questions and answers

def test_both_kinds_are_predicted_as_the_saved_model_says(made, tmp_path):
    folder, splits, model, _ = made
    results = entail(folder / "data", tmp_path / "out", str(model), epochs=2, k=4)
    with open(tmp_path / "out" / "predictions.csv", encoding="utf-8", newline="") as file: rows = list(csv.DictReader(file))
    scorer = FastScorer(open_reranker(tmp_path / "out" / "reranker", "cpu"))
    said = 1 / (1 + np.exp(-scorer.predict([(r["question"], r["answer"]) for r in rows])))
    np.testing.assert_allclose([float(r["probability"]) for r in rows], said, atol=1e-4)
    test = splits["test"]
    right = {(test.queries[q], test.corpus[d]) for q in test.queries for d in test.positives(q)}
    assert all(((r["question"], r["answer"]) in right) == (r["kind"] == "entailment") for r in rows) and len(rows) == 2 * len(right)
    error = np.mean([(float(r["probability"]) - (r["kind"] == "entailment")) ** 2 for r in rows])
    assert results["systems"]["reranker squared error"]["mean"] == pytest.approx(error, abs=1e-4)
    assert [(c["a"], c["b"]) for c in results["comparisons"]] == [
        ("reranker", "saying one half"), ("reranker", "bm25"), ("reranker", "base"), ("bm25+reranker", "bm25"), ("bm25+reranker", "base")]
    assert results["comparisons"][0]["difference"] == pytest.approx(.25 - error, abs=1e-4) and not (tmp_path / "out" / "training").exists()
    assert 0 < results["systems"]["base squared error"]["mean"] < .25 and results["systems"]["bm25 squared error"]["mean"] < .25


def test_the_probability_of_a_saved_reranker_is_calibrated_on_dev(made, tmp_path):
    folder, splits, model, _ = made
    dev, start = splits["dev"], open_reranker(str(model), "cpu", seed=0)
    pairs = right_and_wrong(dev, contradicting(dev, 1, bm25(dev), 0))
    def fitted(reranker): return calibrate(pair_scores(FastScorer(reranker), dev, pairs), np.array([label for *_, label in pairs])).numbers
    if fitted(start)[0] < 0: head_of(start).weight.data.neg_()
    start.save_pretrained(tmp_path / "start")
    slope = entail(folder / "data", tmp_path / "out", str(tmp_path / "start"), epochs=1, k=4)["settings"]["calibration"][0]
    left = fitted(open_reranker(tmp_path / "out" / "reranker", "cpu"))
    assert slope > 0 and left == pytest.approx((1, 0), abs=.01), "nothing is left to calibrate"


def test_a_reranker_that_learnt_nothing_is_told_and_left_as_it_is(made, tmp_path, monkeypatch, caplog):
    folder, _, model, _ = made
    monkeypatch.setattr(pipeline, "calibrate", lambda *_: Calibration("platt", (-.1, 0.)))
    results = entail(folder / "data", tmp_path / "out", str(model), epochs=1, k=4)
    assert results["settings"]["calibration"] is None and "learnt nothing" in caplog.text


def test_what_was_stopped_on_the_way_to_yes_and_no_goes_on(made, tmp_path, monkeypatch):
    folder, _, model, _ = made
    whole, stops = entail(folder / "data", tmp_path / "whole", str(model), epochs=2, k=4), [KeyboardInterrupt]
    real = pipeline.record_use
    monkeypatch.setattr(pipeline, "record_use", lambda *told: (_ for _ in ()).throw(stops.pop()) if stops else real(*told))
    with pytest.raises(KeyboardInterrupt): entail(folder / "data", tmp_path / "cut", str(model), epochs=2, k=4)
    with pytest.raises(DataError, match="epochs"): entail(folder / "data", tmp_path / "cut", str(model), epochs=3, k=4, resume=True)
    again = entail(folder / "data", tmp_path / "cut", str(model), epochs=2, k=4, resume=True)
    assert again["systems"] == whole["systems"] and (again["resumed"], whole["resumed"]) == (True, False)
    with pytest.raises(DataError): entail(tmp_path / "no.csv", tmp_path / "none", str(model))
    assert not (tmp_path / "none").exists()


def test_a_missing_reranker_is_told_before_anything_is_trained(made, tmp_path):
    folder, _, model, _ = made
    with pytest.raises(DataError, match="nowhere"): run(folder / "data", tmp_path / "out", str(model), reranker=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_a_pair_is_scored_once():
    asked = []
    class Lengths:
        def predict(self, inputs):
            asked.extend(inputs)
            return np.array([len(q) + len(d) for q, d in inputs], dtype=np.float32)
    pairs = RememberedPairs(Lengths())
    assert pairs.predict([("a", "b"), ("a", "bc"), ("a", "b")]).tolist() == [2., 3., 2.]
    assert pairs.predict([("a", "bc"), ("ab", "bc")]).tolist() == [3., 4.] and asked == [("a", "b"), ("a", "bc"), ("ab", "bc")]
    assert pairs.predict([]).tolist() == []
