"Retrieval against plainer ways to the same numbers, with hostile queries, ties at the cut, and tables that a crash left behind."
import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta

import bm25s
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_finetune import retrieval
from rag_finetune.core import DataError, Dataset, ranking, top_run
from rag_finetune.retrieval import _match, bm25, dense, fit_weight, fuse, fuse_weighted, index_recall, rerank

WORDS = [a + b + "x" for a in "abcdefghij" for b in "klmnopqrst"]


def texts(n, longest, seed):
    "n texts of words with a Zipf-like distribution."
    random, p = np.random.default_rng(seed), 1 / np.arange(1, len(WORDS) + 1)
    return [" ".join(random.choice(WORDS, random.integers(1, longest), p=p / p.sum())) for _ in range(n)]


def data(docs, queries=("akx",)):
    return Dataset({f"d{i:04}": t for i, t in enumerate(docs)}, {f"q{i}": t for i, t in enumerate(queries)}, {}, "made")


class Vectors:
    "Gives each text the vector written in it: '1 0 2' -> [1, 0, 2]."
    similarity_fn_name = "dot"
    def encode_query(self, inputs): return np.array([[float(x) for x in t.split()] for t in inputs])
    def encode_document(self, inputs): return self.encode_query(inputs)


class Cosine(Vectors):
    similarity_fn_name = "cosine"


def written(vectors): return [" ".join(map(str, v)) for v in vectors]


# BM25

def by_bm25s(docs, query):
    "bm25s's scores of all documents: Lucene's formula, the same tokens."
    model = bm25s.BM25(method="lucene", k1=1.2, b=.75)
    model.index([d.split() for d in docs], show_progress=False)
    return model.get_scores(query.split())


def same_ranking(found, scores, k):
    "Whether a run's entry has the k best of these scores in their order, up to ties."
    best = np.sort(scores[scores > 0])[::-1][:k]
    mine = np.array([scores[int(d[1:])] for d in found])
    assert list(found) == ranking(found)
    np.testing.assert_allclose(mine, best, rtol=1e-5)


@pytest.mark.parametrize("k", [5, 1000])
def test_bm25_gives_the_rankings_of_bm25s(k):
    docs, queries = texts(400, 60, 0), texts(60, 9, 1)
    run = bm25(data(docs, queries), k=k, language=None)
    for found, query in zip(run.values(), queries, strict=True): same_ranking(found, by_bm25s(docs, query), k)


def test_bm25_gives_the_rankings_of_bm25s_after_an_append_and_an_optimize(tmp_path):
    docs, queries = texts(500, 60, 0), texts(40, 9, 1)
    bm25(data(docs[:300], queries), store=tmp_path, language=None)
    db = lancedb.connect(tmp_path)
    name, = db.list_tables().tables
    table = db.open_table(name)
    for start in (300, 420, 490):
        ids = range(start, {300: 420, 420: 490, 490: 500}[start])
        table.add(pa.table({"id": [f"d{i:04}" for i in ids], "text": [docs[i] for i in ids]}))
    table.optimize(cleanup_older_than=timedelta(days=1))
    found = asyncio.run(_match(str(tmp_path), name, queries, 50))
    for one, query in zip(found, queries, strict=True): same_ranking(one, by_bm25s(docs, query), 50)


@pytest.mark.parametrize("n", [3, 40, 200])
def test_bm25_cuts_ties_by_id_descending(n):
    docs = ["green words"] * n + ["other text entirely"] * 30
    found = bm25(data(docs, ["green", "green words"]), k=10)
    for docs in found.values(): assert list(docs) == [f"d{i:04}" for i in range(n)][::-1][:10]


SIGNS = ['"{}', '"{}"', "+{}", "-{}", "{}*", "NOT+{}", "title:{}", "[{} TO", "({}", "{})", "{}~2",
         "{}^3", "\\{}", '{{"match": "{}"}}', "{}😀", "\x00{}", "'; -- {}", "{}?"]

def test_no_character_of_a_query_is_syntax():
    docs = texts(200, 30, 2)
    extra = set("not title to match".split())
    assert not extra & set(WORDS)
    odd, plain = [s.format("akx blx") for s in SIGNS], ["akx blx"] * len(SIGNS)
    assert list(bm25(data(docs, odd), language=None).values()) == list(bm25(data(docs, plain), language=None).values())


def test_and_or_not_are_words():
    docs = ["this and that", "one or two", "not here", "plain"]
    found = bm25(data(docs, ["AND", "OR", "plain AND nothing", "NOT plain"]), language=None)
    assert [set(d) for d in found.values()] == [{"d0000"}, {"d0001"}, {"d0000", "d0003"}, {"d0002", "d0003"}]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=20))
def test_bm25_takes_any_text(queries):
    run = bm25(data(["akx blx", "clx"], queries))
    assert list(run) == [f"q{i}" for i in range(len(queries))]


def test_bm25_takes_very_long_texts_and_queries():
    long = " ".join(WORDS * 400)
    run = bm25(data([long, "x" * 300_000, "akx"], [long, "x" * 300_000, "y" * 300_000]))
    assert [set(d) for d in run.values()] == [{"d0000", "d0002"}, {"d0001"}, set()]


def test_a_query_without_a_hit_is_in_the_run_and_empty():
    assert bm25(data(["akx"], ["zzz", "...", "akx", "the"])) == {"q0": {}, "q1": {}, "q2": bm25(data(["akx"], ["akx"]))["q0"], "q3": {}}


def test_bm25_stems_in_the_language_asked_for():
    docs = ["the cards were declined", "die Karten wurden abgelehnt", "café"]
    def hits(query, language): return list(bm25(data(docs, [query]), language=language)["q0"])
    assert hits("card declining", "English") == ["d0000"] and hits("card declining", None) == []
    assert hits("Karte", "German") == ["d0001"] and hits("Karte", "English") == []
    assert hits("CAFE", None) == ["d0002"]


def test_an_unknown_language_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match="'Klingon'; take a language's English name, such as 'German', or None"):
        bm25(data(["akx"]), language="Klingon")


def test_bm25_runs_where_an_event_loop_runs():
    async def main(): return bm25(data(["akx"], ["akx"]))
    assert list(asyncio.run(main())["q0"]) == ["d0000"]


def test_bm25_keeps_its_index_and_knows_other_documents(tmp_path):
    first = bm25(data(["akx"], ["akx"]), store=tmp_path)
    files = sorted(tmp_path.rglob("*"))
    assert bm25(data(["akx"], ["akx"]), store=tmp_path) == first and sorted(tmp_path.rglob("*")) == files
    assert bm25(data(["akx blx"], ["blx"]), store=tmp_path)["q0"] and bm25(data(["akx"], ["blx"]), store=tmp_path) == {"q0": {}}


def test_bm25_finishes_a_table_whose_index_was_never_made(tmp_path):
    dataset = data(texts(50, 20, 0), texts(5, 5, 1))
    expected = bm25(dataset, store=tmp_path / "a")
    name, = lancedb.connect(tmp_path / "a").list_tables().tables
    lancedb.connect(tmp_path / "b").create_table(name, pa.table({"id": list(dataset.corpus), "text": list(dataset.corpus.values())}))
    assert bm25(dataset, store=tmp_path / "b") == expected


# dense

vector = st.lists(st.integers(-2, 2), min_size=3, max_size=3)  # small whole numbers: products are exact, ties are many

@settings(max_examples=40, deadline=None)
@given(st.lists(vector, min_size=1, max_size=40), st.lists(vector, min_size=1, max_size=8), st.integers(1, 12), st.integers(1, 50))
def test_dense_equals_a_plain_matrix_product_cut_like_top_run(docs, queries, k, block):
    dataset = data(written(docs), written(queries))
    before, retrieval.BLOCK = retrieval.BLOCK, block
    try: run = dense(dataset, Vectors(), k=k)
    finally: retrieval.BLOCK = before
    expected = top_run(list(dataset.queries), list(dataset.corpus), np.array(queries) @ np.array(docs).T, k)
    assert run == expected and [list(d) for d in run.values()] == [list(d) for d in expected.values()]


def test_dense_is_cosine_where_the_model_says_so_or_says_nothing():
    random = np.random.default_rng(0)
    docs, queries = random.normal(size=(500, 8)) * random.uniform(.1, 9, (500, 1)), random.normal(size=(30, 8))
    dataset = data(written(docs), written(queries))
    class Plain:
        encode_query = encode_document = Vectors.encode_query
    unit_docs, unit_queries = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (docs, queries))
    expected = top_run(list(dataset.queries), list(dataset.corpus), unit_queries @ unit_docs.T, 20)
    for encoder in (Cosine(), Plain()):
        run = dense(dataset, encoder, k=20)
        assert [list(d) for d in run.values()] == [list(d) for d in expected.values()]
        for q in run: np.testing.assert_allclose(list(run[q].values()), list(expected[q].values()), atol=1e-6)


def test_dense_takes_more_queries_than_one_part():
    docs, queries = np.eye(5, dtype=int), np.random.default_rng(0).integers(-9, 9, (2500, 5))
    dataset = data(written(docs), written(queries))
    assert dense(dataset, Vectors(), k=5) == top_run(list(dataset.queries), list(dataset.corpus), queries @ docs.T, 5)


def test_a_retrained_model_never_meets_old_vectors(tmp_path):
    class Turned(Vectors):
        def encode_query(self, inputs): return -super().encode_query(inputs)[:, ::-1]
    class OldDocuments(Turned):
        def encode_document(self, inputs): raise AssertionError("encoded again")
    dataset = data(["1 0", "0 1", "3 1"], ["1 0"])
    old = dense(dataset, Vectors(), key="old", store=tmp_path)
    assert dense(dataset, Turned(), key="new", store=tmp_path) == dense(dataset, Turned())
    assert dense(dataset, Vectors(), key="old", store=tmp_path) == old
    dense(dataset, OldDocuments(), key="new", store=tmp_path)          # kept, not encoded again
    with pytest.raises(AssertionError, match="encoded again"):
        dense(data(["1 0", "0 1", "3 2"], ["1 0"]), OldDocuments(), key="new", store=tmp_path)
    with pytest.raises(ValueError, match=r"needs key=models\.fingerprint"): dense(dataset, Vectors(), store=tmp_path)


def test_vectors_of_the_same_model_by_another_similarity_are_not_mixed(tmp_path):
    dataset = data(["9 9", "1 0"], ["1 0"])
    assert ranking(dense(dataset, Vectors(), key="k", store=tmp_path)["q0"]) == ["d0000", "d0001"]
    assert ranking(dense(dataset, Cosine(), key="k", store=tmp_path)["q0"]) == ["d0001", "d0000"]


def test_a_key_may_be_anything(tmp_path):
    dataset = data(["1 0"], ["1 0"])
    for key in ("../../x", "a/b c:*", "ü" * 300): dense(dataset, Vectors(), key=key, store=tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"] and len(list((tmp_path / "store").iterdir())) == 3


def half_written(folder, table):
    "Data files without a version: what a killed write leaves."
    (folder / table / "_versions").rename(folder / "gone")

def torn(folder, table):
    for version in (folder / table / "_versions").iterdir(): version.write_bytes(version.read_bytes()[:3])

def short(folder, table):
    lancedb.connect(folder).open_table(table.removesuffix(".lance")).delete("row = 1")

@pytest.mark.parametrize("break_it", [half_written, torn, short])
def test_an_incomplete_table_is_never_used(tmp_path, break_it):
    dataset = data(["1 0", "0 1", "2 2"], ["1 0", "0 3"])
    expected = dense(dataset, Vectors(), key="k", store=tmp_path)
    break_it(tmp_path, *(p.name for p in tmp_path.iterdir()))
    assert dense(dataset, Vectors(), key="k", store=tmp_path) == expected


def test_a_model_that_fails_leaves_nothing_behind(tmp_path):
    class Fails(Vectors):
        def encode_document(self, inputs): raise MemoryError
    dataset = data(["1 0"], ["1 0"])
    with pytest.raises(MemoryError): dense(dataset, Fails(), key="k", store=tmp_path)
    assert dense(dataset, Vectors(), key="k", store=tmp_path) == dense(dataset, Vectors())


KILLED = """
import sys, numpy as np
from rag_finetune.core import Dataset
from rag_finetune.retrieval import dense
class E:
    similarity_fn_name = "dot"
    def encode_query(self, inputs): return np.array([[int(t) % 97, 1] + [0] * 126 for t in inputs])
    encode_document = encode_query
if __name__ == "__main__":
    dense(Dataset({str(i): str(i) for i in range(20_000)}, {"q": "5"}, {}), E(), key="k", k=3, store=sys.argv[1])
"""

def test_a_process_killed_while_it_writes_leaves_nothing_that_is_used(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    store = tmp_path / "store"
    root = os.getcwd()
    process = subprocess.Popen([sys.executable, tmp_path / "killed.py", store], cwd=root, env=os.environ | {"PYTHONPATH": root})
    while process.poll() is None and not list(store.glob("*.lance/data/*")): time.sleep(.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scope: dict = {"__name__": "killed"}
    exec(KILLED, scope)
    dataset = Dataset({str(i): str(i) for i in range(20_000)}, {"q": "5"}, {})
    assert dense(dataset, scope["E"](), key="k", k=3, store=store) == dense(dataset, scope["E"](), k=3)


@pytest.mark.parametrize(("vectors", "message"), [
    (np.full((2, 3), np.nan), "vector of 'd0001' has NaN or infinity"),
    (np.zeros((1, 3)), r"shape \(1, 3\) for 2 texts"),
    (np.zeros(3), r"shape \(3,\) for 2 texts")])
def test_vectors_that_cannot_be_compared_are_an_error(vectors, message):
    class Wrong(Vectors):
        def encode_document(self, inputs): return vectors
    with pytest.raises(DataError, match=message): dense(data(["1 0", "0 1"], ["1 0"]), Wrong())


def test_a_similarity_that_is_no_product_is_an_error():
    class Far(Vectors):
        similarity_fn_name = "euclidean"
    with pytest.raises(DataError, match="compares by 'euclidean'"): dense(data(["1 0"], ["1 0"]), Far())


def test_the_index_says_what_it_misses_and_is_kept(tmp_path, caplog):
    random = np.random.default_rng(0)
    centres = random.normal(size=(20, 16))
    docs, queries = (np.round(centres[random.integers(0, 20, n)] + .5 * random.normal(size=(n, 16)), 4) for n in (1500, 40))
    dataset = data(written(docs), written(queries))
    exact = dense(dataset, Cosine(), key="k", k=10, store=tmp_path)
    assert not caplog.records
    indexed = dense(dataset, Cosine(), key="k", k=10, store=tmp_path, exact_below=1000)
    recall = index_recall(exact, indexed)
    assert recall >= .9
    assert f"finds {recall:.3f} of the exact top 10 (on 40 queries)" in caplog.text and caplog.records[0].levelno == logging.WARNING
    for q in exact:
        common = exact[q].keys() & indexed[q].keys()
        np.testing.assert_allclose([exact[q][d] for d in common], [indexed[q][d] for d in common], atol=1e-5)
        assert list(indexed[q]) == ranking(indexed[q]) and len(indexed[q]) == 10
    indices = list(tmp_path.glob("*.lance/_indices/*"))
    dense(dataset, Cosine(), key="k", k=10, store=tmp_path, exact_below=1000)
    assert list(tmp_path.glob("*.lance/_indices/*")) == indices


# all of them

def test_temporary_stores_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bm25(data(["akx"]))
    dense(data(["1 0"], ["1 0"]), Vectors())
    with pytest.raises(DataError): bm25(data(["akx"]), language="Klingon")
    assert not list(tmp_path.iterdir())


def test_nothing_to_search_is_an_empty_answer():
    for empty in (Dataset({}, {"q": "akx"}, {}), Dataset({"d": "akx"}, {}, {})):
        assert bm25(empty) == dense(empty, Vectors()) == {q: {} for q in empty.queries}


# fusion and reranking

scores = st.dictionaries(st.sampled_from("abcdef"), st.floats(-5, 5, width=16))
runs = st.dictionaries(st.sampled_from(["q1", "q2"]), scores)

@given(st.lists(runs, max_size=3), st.sampled_from([10, 60]), st.integers(1, 7))
def test_fuse_is_the_sum_of_reciprocal_ranks(some, constant, k):
    fused = fuse(some, constant, k)
    assert set(fused) == {q for run in some for q in run}
    for q, found in fused.items():
        ranks = [ranking(run.get(q, {})) for run in some]
        sums = {d: sum(1 / (constant + r.index(d) + 1) for r in ranks if d in r) for d in "abcdef" if any(d in r for r in ranks)}
        assert list(found) == ranking(sums, k)
        assert found == pytest.approx({d: sums[d] for d in found})


def z(scores, doc):
    values = np.array(list(scores.values()))
    if not len(values) or np.ptp(values) == 0: return 0.
    return (scores.get(doc, values.min()) - values.mean()) / values.std()

@given(runs, runs, st.sampled_from([0, .3, .5, 1]), st.integers(1, 7))
def test_fuse_weighted_is_the_sum_of_standard_scores(a, b, weight, k):
    fused = fuse_weighted(a, b, weight, k)
    assert set(fused) == set(a) | set(b)
    for q, found in fused.items():
        x, y = a.get(q, {}), b.get(q, {})
        sums = {d: weight * z(x, d) + (1 - weight) * z(y, d) for d in {*x, *y}}
        assert list(found) == ranking(found) and len(found) == min(k, len(sums))
        assert found == pytest.approx({d: sums[d] for d in found}, abs=1e-9)
        assert sorted(found.values()) == pytest.approx(sorted(sums.values())[-k:], abs=1e-9)


def test_equal_scores_say_nothing_even_where_their_mean_is_rounded():
    a = {"q": dict.fromkeys("abc", .1)}      # (.1 + .1 + .1) / 3 is not .1
    assert fuse_weighted(a, {"q": {"d": 1.}}, 1.) == {"q": dict.fromkeys("dcba", 0.)}


def test_fit_weight_takes_the_best_then_the_one_nearest_the_middle():
    a, b = {"q": {"d1": 2., "d2": 1.}}, {"q": {"d2": 2., "d1": 1.}}
    assert fit_weight(a, b, lambda run: run["q"]["d1"]) == 1
    assert fit_weight(a, b, lambda run: run["q"]["d2"]) == 0
    assert fit_weight(a, b, lambda run: 0.) == .5
    assert fit_weight(a, b, lambda run: 0., weights=(.4, .6, 1)) == .4


class Length:
    def predict(self, inputs): return np.array([[len(d) - len(q)] for q, d in inputs])

def test_rerank_looks_at_the_first_k_and_keeps_them():
    dataset = Dataset({"d1": "a", "d2": "abc", "d3": "ab", "d4": "abcdef"}, {"q1": "x", "q2": "y"}, {})
    run = {"q1": {"d1": 9., "d2": 8., "d3": 7., "d4": 1.}, "q2": {}}
    assert rerank(dataset, run, Length(), k=3) == {"q1": {"d2": 2., "d3": 1., "d1": 0.}, "q2": {}}
    assert list(rerank(dataset, run, Length())["q1"]) == ["d4", "d2", "d3", "d1"]


@pytest.mark.parametrize(("returned", "message"), [
    (np.zeros((1, 3)), r"shape \(1, 3\) for 1 pairs"), (np.array([np.nan]), "NaN or infinity to 1 of 1 pairs")])
def test_a_scorer_that_does_not_score_pairs_is_an_error(returned, message):
    class Wrong:
        def predict(self, inputs): return returned
    with pytest.raises(DataError, match=message): rerank(Dataset({"d": "a"}, {"q": "x"}, {}), {"q": {"d": 1.}}, Wrong())


@pytest.mark.parametrize("run", [{"q9": {"d": 1.}}, {"q": {"d9": 1.}}])
def test_a_run_of_another_dataset_is_an_error(run):
    with pytest.raises(DataError, match="not in the dataset; rerank a run of this dataset"):
        rerank(Dataset({"d": "a"}, {"q": "x"}, {}, "set"), run, Length())


# on public data

def test_bm25_reaches_the_published_figure_on_scifact(public_data):
    from rag_finetune.data import load
    from rag_finetune.metrics import evaluate
    test = load(public_data / "scifact")["test"]
    values = evaluate(test.qrels, bm25(test), ["nDCG@10"])["nDCG@10"]
    assert np.mean(list(values.values())) == pytest.approx(.68, abs=.02)   # Anserini publishes .679 (flat), .665 (title and text apart)


def test_who_searches_nothing_does_not_wait_for_the_database():
    code = "import sys, rag_finetune.retrieval; print('lancedb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]
