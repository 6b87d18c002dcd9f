"What a user relies on when looking at a model: the same figures as the reference tools, intervals that are as wide as they should be."
import math
import re
import socket
import sys
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util.quantization import _dequantize_embeddings, quantize_embeddings
from sklearn.metrics import adjusted_mutual_info_score, roc_auc_score
from tiny import tiny_data, tiny_model

from rag_finetune import probe
from rag_finetune.core import DataError, Dataset, ranking
from rag_finetune.embedding import fit, objective
from rag_finetune.models import open_encoder
from rag_finetune.retrieval import dense
from rag_finetune.verdict import compare, interval


class Table:
    "An encoder that looks a text's vector up."
    def __init__(self, vectors, similarity="cosine"): self.vectors, self.similarity_fn_name, self.calls = vectors, similarity, 0

    def encode_query(self, inputs):
        self.calls += 1
        return np.array([self.vectors[t] for t in inputs], dtype=np.float32)

    encode_document = encode_query


def random_data(n_queries=40, n_docs=60, dimension=48, seed=0, similarity="cosine"):
    "Queries near their documents, with noise; and the encoder that says so."
    rng = np.random.default_rng(seed)
    docs = rng.normal(size=(n_docs, dimension))
    asked = docs[np.arange(n_queries) % n_docs] + 1.5 * rng.normal(size=(n_queries, dimension))
    vectors = {f"d{j}": v for j, v in enumerate(docs)} | {f"q{i}": v for i, v in enumerate(asked)}
    data = Dataset({f"d{j}": f"d{j}" for j in range(n_docs)}, {f"q{i}": f"q{i}" for i in range(n_queries)},
                   {f"q{i}": {f"d{i % n_docs}": 1} for i in range(n_queries)})
    return data, Table(vectors, similarity)


@pytest.fixture(scope="module")
def model(tmp_path_factory): return open_encoder(tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def same(run, other): return all(ranking(run[q]) == ranking(other[q]) for q in other) and run.keys() == other.keys()


# vectors, dimensions, quantisation

@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_vectors_searched_are_what_dense_finds(similarity):
    data, encoder = random_data(similarity=similarity)
    seen = probe.embed(data, encoder)
    assert encoder.calls == 2
    run, expected = probe.searched(seen, probe.float32(seen.documents), k=20), dense(data, encoder, k=20)
    assert same(run, expected)
    assert all(math.isclose(run[q][d], s, abs_tol=1e-4) for q in expected for d, s in expected[q].items())


def test_truncating_is_what_the_library_does(model):
    data = tiny_data()
    seen = probe.truncated(probe.embed(data, model), 8)
    small = SentenceTransformer(modules=list(model), truncate_dim=8, device="cpu")
    assert same(probe.searched(seen, probe.float32(seen.documents)), dense(data, small))
    assert np.allclose(np.linalg.norm(seen.queries, axis=1), 1, atol=1e-6)


def test_a_model_for_dot_products_is_cut_and_not_made_length_one():
    data, encoder = random_data(similarity="dot")
    seen = probe.embed(data, encoder)
    assert np.array_equal(probe.truncated(seen, 5).documents, seen.documents[:, :5])


@pytest.mark.parametrize("dimension", [0, 49, -1])
def test_a_dimension_that_is_not_there_is_an_error(dimension):
    with pytest.raises(DataError, match="from 1 to 48"): probe.truncated(probe.embed(*random_data()), dimension)


def test_nothing_to_embed_is_an_error():
    with pytest.raises(DataError, match="0 queries"): probe.embed(Dataset({"a": "a"}, {}, {}), random_data()[1])


def test_int8_is_the_librarys_and_its_scores_are_those_of_what_it_restores():
    seen = probe.embed(*random_data())
    limits = probe.ranges(seen.documents[:30])   # the others may lie outside
    index = probe.int8(seen.documents, limits)
    codes = quantize_embeddings(seen.documents, "int8", ranges=limits)
    restored = index.restored(np.arange(60))
    assert np.allclose(restored, _dequantize_embeddings(codes, "int8", limits), atol=1e-6)
    assert np.allclose(index.scores(seen.queries), seen.queries @ restored.T, atol=1e-5)
    step = (limits[1] - limits[0]) / 255
    assert (np.abs(restored[:30] - seen.documents[:30]) <= step * 1.001).all()
    assert (restored >= limits[0] - 1e-6).all() and (restored <= limits[1] + 1e-6).all()


def test_int8_in_blocks_is_int8_at_once(monkeypatch):
    seen = probe.embed(*random_data())
    index = probe.int8(seen.documents, probe.ranges(seen.documents))
    whole = index.scores(seen.queries)
    monkeypatch.setattr(probe, "_BLOCK", 7)
    assert np.allclose(index.scores(seen.queries), whole, atol=1e-6)


@given(st.integers(1, 150), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_binary_counts_signs_that_agree_at_any_dimension(dimension, seed):
    rng = np.random.default_rng(seed)
    docs, queries = (rng.normal(size=(n, dimension)).astype(np.float32) for n in (5, 3))
    index = probe.binary(docs)
    signs = np.where(docs > 0, 1, -1)
    assert np.allclose(index.scores(queries), np.where(queries > 0, 1, -1) @ signs.T / dimension, atol=1e-6)
    assert np.array_equal(index.restored(np.arange(5)), signs)
    assert index.bytes == 5 * math.ceil(dimension / 8)


def test_bytes_are_those_of_the_numbers_stored():
    docs = probe.embed(*random_data(dimension=384)).documents
    stored = {how: index.bytes / 60 for how, index in probe.ways(docs, probe.ranges(docs), 40).items()}
    assert stored == {"float32": 1536, "int8": 384, "binary": 48, "binary, rescored by itself": 48, "binary, rescored by int8": 432}


def test_rescoring_everything_by_float32_is_exact_search():
    seen = probe.embed(*random_data())
    exact = probe.float32(seen.documents)
    assert same(probe.searched(seen, probe.rescored(probe.binary(seen.documents), exact, keep=60)), probe.searched(seen, exact))


def test_rescoring_keeps_the_best_of_the_first_and_their_ties_and_leaves_the_others_out():
    docs = np.array([[1, 1], [1, .5], [-1, 1], [-1, -1]], dtype=np.float32)   # for the query two agree in both signs
    index = probe.rescored(probe.binary(docs), probe.float32(docs), keep=1)
    scores = index.scores(np.array([[.2, 1]], dtype=np.float32))[0]
    assert scores[0] == pytest.approx(1.2) and scores[1] == pytest.approx(.7)   # float32 tells them apart
    assert (scores[2:] == -np.inf).all()
    seen = probe.Embedded(["q"], list("abcd"), np.array([[.2, 1]], dtype=np.float32), docs, "dot")
    assert list(probe.searched(seen, index)["q"]) == ["a", "b"]


def test_rescoring_repairs_what_binary_breaks():
    data, encoder = random_data(n_queries=300, n_docs=300)
    rows = {s.how: s for s in probe.compared(data, probe.embed(data, encoder), set(list(data.corpus)[:200]), [48])}
    assert compare(rows["binary, rescored by int8"].values, rows["binary"].values).low > 0
    assert abs(compare(rows["int8"].values, rows["float32"].values).difference) < .01
    assert rows["float32"].bytes == 4 * rows["int8"].bytes == 32 * rows["binary"].bytes
    assert all(s.ms > 0 and s.values.keys() == data.queries.keys() for s in rows.values())


def test_int8_ranges_come_from_the_documents_named():
    data, encoder = random_data()
    seen = probe.embed(data, encoder)
    narrow = probe.compared(data, seen, {"d0", "d1"}, [48])   # two documents: nearly everything is cut to their range
    wide = probe.compared(data, seen, set(data.corpus), [48])
    assert interval(narrow[1].values).mean < interval(wide[1].values).mean
    assert narrow[0].values == wide[0].values


# maps

def test_equal_vectors_give_equal_maps_and_turned_ones_the_same_places():
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(4, 16)), 15, axis=0) * 3 + rng.normal(size=(60, 16)) * .3
    first, second = probe.layout(vectors, vectors)
    assert np.allclose(first, second, atol=1e-3)
    again, turned = probe.layout(vectors, vectors @ np.linalg.qr(rng.normal(size=(16, 16)))[0])
    assert np.array_equal(first, again)
    assert np.corrcoef(again.ravel(), turned.ravel())[0, 1] > .95


def test_the_second_map_lies_as_near_to_the_first_as_turning_can_bring_it():
    rng = np.random.default_rng(0)
    first, second = probe.layout(rng.normal(size=(50, 8)), rng.normal(size=(50, 8)))
    assert np.allclose(orthogonal_procrustes(second, first)[0], np.eye(2), atol=1e-5)


def test_a_map_of_one_point_is_an_error_and_so_are_different_texts():
    spread = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(DataError, match="only 1 different vectors"): probe.layout(np.ones((20, 4)), spread)
    with pytest.raises(DataError, match="20 and 19 vectors"): probe.layout(np.ones((20, 4)), np.ones((19, 4)))


def test_neighbours_kept_are_all_where_the_map_is_the_truth_and_few_by_chance():
    rng = np.random.default_rng(0)
    ids, places = [str(i) for i in range(200)], rng.normal(size=(200, 2))
    assert set(probe.kept(ids, places, 3 * places).values()) == {1.}
    assert interval(probe.kept(ids, rng.normal(size=(200, 50)), places)).mean == pytest.approx(10 / 199, abs=.03)
    with pytest.raises(DataError, match="smaller k"): probe.kept(ids[:10], places[:10], places[:10])


# scores

def test_pairs_are_the_best_right_and_the_best_wrong_answer():
    eye = np.eye(3)
    encoder = Table({"a": eye[0], "b": eye[1], "c": eye[2], "x": [.6, .8, 0], "y": [0, 0, 1]})
    data = Dataset({d: d for d in "abc"}, {"1": "x", "2": "y", "3": "x", "4": "x"},
                   {"1": {"a": 1, "b": 0}, "2": {"c": 2, "a": 1}, "4": dict.fromkeys("abc", 1)})
    found = probe.pairs(data, probe.embed(data, encoder))
    assert {q: tuple(np.round(p, 6)) for q, p in found.items()} == {"1": (.6, .8), "2": (1., 0.)}   # 3 is not judged, 4 has no wrong one


def scores(n, shift, seed=0, digits=2):
    rng = np.random.default_rng(seed)
    easy = rng.normal(size=n)   # easy queries have high scores all round
    both = np.stack([easy + rng.normal(size=n) + shift, easy + rng.normal(size=n)], axis=1)
    return {str(i): probe.Pair(*row) for i, row in enumerate(both.round(digits).tolist())}


@pytest.mark.parametrize("shift", [0., 1., 3.])
def test_auc_is_scikit_learns_ties_included(shift):
    found = scores(80, shift, digits=1)
    right, wrong = zip(*found.values())
    assert np.mean(list(probe.told_apart(found).values())) == pytest.approx(roc_auc_score([1] * 80 + [0] * 80, [*right, *wrong]), abs=1e-12)


def test_the_interval_of_an_auc_is_that_of_its_bootstrap():
    found = scores(150, 1.)
    right, wrong = np.array(list(found.values())).T
    rng, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        i = rng.integers(0, 150, 150)
        drawn.append(np.mean(right[i][:, None] > wrong[i]) + np.mean(right[i][:, None] == wrong[i]) / 2)
    ours = interval(probe.told_apart(found))
    assert [ours.low, ours.high] == pytest.approx(np.quantile(drawn, [.025, .975]), abs=.01)


def test_two_models_aucs_are_compared_over_the_same_queries():
    base, tuned = scores(200, .5), scores(200, 2.)
    c = compare(probe.told_apart(tuned), probe.told_apart(base), "tuned", "base", "AUC")
    assert c.low > 0 and c.p < .01 and c.n == 200
    with pytest.raises(DataError, match="two or more"): probe.told_apart({"q": probe.Pair(1., 0.)})


# topics and classes

def test_agreement_is_scikit_learns_and_its_interval_that_of_the_bootstrap():
    rng = np.random.default_rng(1)
    said = rng.integers(0, 6, 300)
    found = np.where(rng.random(300) < .7, said, rng.integers(-1, 6, 300))
    ids = [str(i) for i in range(300)]
    values = probe.agreement(dict(zip(ids, map(str, said))), dict(zip(ids, found.tolist())))
    assert np.mean(list(values.values())) == pytest.approx(adjusted_mutual_info_score(said, found), abs=1e-9)
    drawn = [adjusted_mutual_info_score(said[i], found[i]) for i in rng.integers(0, 300, (300, 300))]
    ours = interval(values)
    assert ours.high - ours.low == pytest.approx(np.subtract(*np.quantile(drawn, [.975, .025])), rel=.25)


def test_agreement_is_one_for_the_same_groups_and_wants_the_same_texts():
    said = {str(i): "ab"[i % 2] for i in range(20)}
    assert interval(probe.agreement(said, {i: int(c == "a") for i, c in said.items()})).mean == pytest.approx(1)
    with pytest.raises(DataError, match="same texts"): probe.agreement(said, {"0": 1})


def test_neighbours_vote_and_the_nearer_say_more():
    encoder = Table({"near": [1, .1], "far": [.6, 1], "further": [.5, 1], "asked": [1, 0]})
    train = Dataset({"a": "a", "b": "b", "c": "c"}, {"1": "near", "2": "far", "3": "further"},
                    {"1": {"a": 1}, "2": {"b": 1}, "3": {"b": 1, "a": 0}})
    assert probe.vote(train, encoder, {"q": "asked"}, nearest=1) == {"q": {"a": 1.}}
    all_of_them = probe.vote(train, encoder, {"q": "asked"}, nearest=99)["q"]
    assert list(all_of_them) == ["a", "b"] and all_of_them["a"] > .9   # one very near against two far away; c has no vote
    with pytest.raises(DataError, match="nothing to vote for"): probe.vote(Dataset({"a": "a"}, {}, {}), encoder, {"q": "asked"})


def test_the_ranges_of_no_documents_are_refused():
    data, encoder = random_data()
    seen = probe.embed(data, encoder)
    with pytest.raises(DataError, match="no documents to take the ranges from"): probe.compared(data, seen, {"elsewhere"}, [32])


def test_dev_chooses_the_best_setting_and_of_equals_the_first():
    qrels, good, bad = {"q": {"a": 1}}, {"q": {"a": 1., "b": 0.}}, {"q": {"a": 0., "b": 1.}}
    assert probe.best_setting(qrels, {1: bad, 3: good, 10: good}) == 3


@pytest.mark.slow
def test_topics_are_found_in_the_vectors_and_nothing_is_fetched(monkeypatch):
    def refused(*args): raise AssertionError("topics reached for the network")
    monkeypatch.setattr(socket.socket, "connect", refused)
    rng, things = np.random.default_rng(0), ["taxi", "lunch", "hotel"]
    texts = {str(i): f"{things[i % 3]} number {i}" for i in range(90)}
    vectors = (np.eye(3)[np.arange(90) % 3] @ rng.normal(size=(3, 24)) + .1 * rng.normal(size=(90, 24))).astype(np.float32)
    threads = torch.get_num_threads()
    found = probe.topics(texts, vectors)
    assert torch.get_num_threads() == threads   # or a training after it would come to other weights
    assert interval(probe.agreement({i: t.split()[0] for i, t in texts.items()}, found.of)).mean > .9
    assert {things[int(i) % 3] in found.words[found.of[i]] for i in texts if found.of[i] >= 0} == {True}
    assert probe.topics(texts, vectors).of == found.of   # the same seed, the same topics


def test_topics_say_what_to_install_and_what_does_not_fit(monkeypatch):
    pytest.importorskip("bertopic", reason="the extra [topics]")
    texts = {str(i): "text" for i in range(20)}
    with pytest.raises(DataError, match="one vector for each text"): probe.topics(texts, np.ones((3, 2)))
    with pytest.raises(DataError, match="give 30 texts"): probe.topics(texts, np.ones((20, 2)))
    monkeypatch.setitem(sys.modules, "bertopic", None)
    with pytest.raises(DataError, match=re.escape("rag_finetune[topics]")): probe.topics(texts, np.ones((20, 2)))


# triplets that move

def trained(folder, watch):
    "Weights after a training, and what was watched."
    torch.manual_seed(0)
    model, data = open_encoder(tiny_model(folder), device="cpu"), tiny_data(per_thing=6)
    rows, loss = objective("all-answers", model, data)
    watched = probe.Watched(model, loss, [("where is the red car", "the red car", "the green house")] * 2, every=3)
    curve = fit(model, rows, watched if watch else loss, epochs=2, batch_size=8, seed=0)
    watched.look()
    return {k: v.clone() for k, v in model.state_dict().items()}, watched.frames, curve


def test_watching_changes_no_weight_and_sees_the_steps_it_was_told(tmp_path):
    weights, frames, curve = trained(tmp_path / "watched", True)
    others, last, _ = trained(tmp_path / "alone", False)
    assert all(torch.equal(v, others[k]) for k, v in weights.items())
    assert [f.step for f in frames] == [*range(0, curve.steps, 3), curve.steps]
    assert np.allclose(probe.cosines(frames[-1]), probe.cosines(last[-1]), atol=1e-5)
    assert not np.allclose(frames[0].anchors, frames[-1].anchors, atol=1e-3)


def by_the_librarys_trainer(folder, watch):
    "Weights after two epochs with dropout, by sentence-transformers' own trainer."
    model, data = open_encoder(tiny_model(folder), device="cpu"), tiny_data(per_thing=4)
    columns = {"anchor": list(data.queries.values()), "positive": [data.corpus[data.positives(q)[0]] for q in data.queries]}
    loss = MultipleNegativesRankingLoss(model)
    if watch: loss = probe.Watched(model, loss, [("where is the red car", "the red car", "the green house")], every=2)
    args = SentenceTransformerTrainingArguments(str(folder / "out"), num_train_epochs=2, per_device_train_batch_size=8, seed=1,
                                                use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True)
    SentenceTransformerTrainer(model, args, datasets.Dataset.from_dict(columns), loss=loss).train()
    return {k: v.clone() for k, v in model.state_dict().items()}, loss


def test_watching_changes_nothing_in_the_librarys_trainer_either(tmp_path):
    weights, loss = by_the_librarys_trainer(tmp_path / "watched", True)
    others, _ = by_the_librarys_trainer(tmp_path / "alone", False)
    assert all(torch.equal(v, others[k]) for k, v in weights.items())
    assert [f.step for f in loss.frames] == list(range(0, loss.steps, 2)) and loss.steps == 8


def moved(n=8, steps=10):
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(n, 6)) for _ in range(3))
    def unit(x): return x / np.linalg.norm(x, axis=1, keepdims=True)
    return [probe.Frame(5 * i, unit(a), unit(b + a * i / 5), unit(c - b * i / 5)) for i in range(steps)]


def test_cosines_are_with_the_negative_and_with_the_positive():
    e = np.eye(2)
    assert probe.cosines(probe.Frame(0, e[[0]], np.array([[.6, .8]]), e[[1]])).tolist() == [[0, .6]]


def test_an_animation_is_one_file_with_words_that_stands_still_for_those_who_want_it():
    svg = probe.animated(moved(60, 16), "Sixty <triplets>")
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == "Sixty <triplets>" and len(svg) < 500_000
    assert "prefers-reduced-motion:reduce" in svg and "<script" not in svg and "href" not in svg
    assert "animation-iteration-count:3" in svg   # it ends
    names = set(re.findall(r"@keyframes ([\w-]+)", svg))
    used = {n for e in root.iter() for n in e.get("class", "").split()}
    assert names == used & names and len(names) == 5 * 5 + 60 + 16   # every animation belongs to an element


def test_where_nothing_moves_the_marks_stand_where_training_ended():
    frames = moved()
    root = ElementTree.fromstring(probe.animated(frames, "t", shown=2))
    dots = [e for e in root.iter() if e.get("class", "").startswith("n") and e.tag.endswith("g")]
    near = probe.cosines(frames[-1])
    x, y = zip(*(map(float, re.findall(r"[-\d.]+", d.get("transform"))) for d in dots))
    assert np.corrcoef(x, near[:, 0])[0, 1] > .999 and np.corrcoef(y, near[:, 1])[0, 1] < -.999   # upwards is a smaller y


def test_one_frame_does_not_move():
    with pytest.raises(DataError, match="needs two"): probe.animated(moved(steps=1), "t")
