"What a user relies on with several rerankers: the same documents, no noise as a baseline, costs, slices that say when they cannot tell."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_data, tiny_model

from rag_finetune.core import DataError, Dataset, ranking
from rag_finetune.metrics import ndcg
from rag_finetune.reranker import FastScorer, LateInteraction, open_reranker
from rag_finetune.rerankers import (
    FIRST, WORDS, bump_chart, compare_rerankers, peak_growth, query_slices, reranker_slices, swap_probes, weights_mib,
)
from rag_finetune.tiers import BestWindow
from rag_finetune.verdict import compare, decide


class Says:
    "A scorer that says the same of a document whatever is asked."
    def __init__(self, scores): self.scores, self.asked = scores, []
    def predict(self, inputs):
        self.asked.append(len(inputs))
        return np.array([self.scores[d] for _, d in inputs])


class Knows:
    "A scorer that says 1 where query and document share the thing."
    def predict(self, inputs): return np.array([float(d.split()[-1] in q.split()) for q, d in inputs])


@pytest.fixture(scope="module")
def data(): return tiny_data(per_thing=3)


@pytest.fixture(scope="module")
def run(data):
    "Every document for every query, in an order that knows nothing."
    return {q: {d: float(i) for i, d in enumerate(data.corpus)} for q in data.queries}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A tiny embedding model's folder, which has no head, and a reranker's."
    bare = tiny_model(tmp_path_factory.mktemp("bare"))
    model = open_reranker(bare, device="cpu")
    model.save_pretrained(str(bare.parent / "reranker"))
    return bare, bare.parent / "reranker"


def test_every_reranker_stands_beside_the_first_stage_and_bm25(data, run):
    found = compare_rerankers(data, run, {"knows": Knows()}, k=8, timed=2)
    assert list(found.figures) == [FIRST, WORDS, "knows"] and found.figures["knows"]["nDCG@10"].mean == 1.
    first, words = found.figures[FIRST]["nDCG@10"].mean, found.figures[WORDS]["nDCG@10"].mean
    assert first < words < 1., "query and document share the thing, and sometimes another's colour"
    assert [(c.a, c.b, c.metric) for c in found.comparisons] == [(WORDS, FIRST, "nDCG@10"), ("knows", FIRST, "nDCG@10")]
    alone = compare(ndcg(data.qrels, found.runs["knows"]), ndcg(data.qrels, run))
    assert found.comparisons[1].difference == alone.difference and found.comparisons[1].p_holm == pytest.approx(2 * alone.p)
    assert "knows" in str(found).splitlines()[1] + str(found).splitlines()[2] and "better" in str(found)
    assert found.skipped == {}


def test_a_run_of_more_queries_than_the_dataset_has_is_no_mistake(data, run):
    other = {"another": dict.fromkeys(data.corpus, 1.)}
    more, plain = (compare_rerankers(data, r, {"knows": Knows()}, k=3, timed=2).figures for r in ({**run, **other}, run))
    assert more == plain


def test_only_the_first_k_are_read_and_the_others_stay_behind(data, run):
    scorer = Says({text: -float(i) for i, text in enumerate(data.corpus.values())})
    found = compare_rerankers(data, run, {"upside down": scorer}, k=3, timed=2)
    assert scorer.asked == [3, 3, 3 * len(data.queries)], "one for warming up, one that is timed, then all at once"
    q = next(iter(data.queries))
    before, after = ranking(run[q]), ranking(found.runs["upside down"][q])
    assert after == [*reversed(before[:3]), *before[3:]]


def test_a_model_without_a_trained_head_is_no_baseline(data, run, folders):
    bare, trained = folders
    found = compare_rerankers(data, run, {"fresh": bare, "trained": str(trained)}, k=4, timed=1)
    assert set(found.figures) == {FIRST, WORDS, "trained"} and set(found.skipped) == {"fresh"} == set(found.skipped) - set(found.costs)
    assert "noise and no baseline" in str(found) and [c.a for c in found.comparisons] == [WORDS, "trained"]
    same = compare_rerankers(data, run, {"trained": FastScorer(open_reranker(trained))}, k=4, timed=1)
    assert same.runs["trained"] == found.runs["trained"], "a folder is opened as `open_reranker` opens it"


def test_wrong_names_and_runs_of_other_queries_are_named(data, run):
    with pytest.raises(DataError, match="cannot be called 'BM25'"): compare_rerankers(data, run, {WORDS: Knows()})
    with pytest.raises(DataError, match="give a run of these queries"): compare_rerankers(data, {"other": {"car": 1.}}, {"knows": Knows()})
    with pytest.raises(DataError): compare_rerankers(data, run, {"nowhere": "./no-such-folder"})


def test_a_query_that_the_first_stage_does_not_answer_counts_as_0(data, run):
    q = next(iter(data.queries))
    for gap in ({k: v for k, v in run.items() if k != q}, {**run, q: {}}):
        found = compare_rerankers(data, gap, {"knows": Knows()}, k=8, timed=1)
        assert found.figures["knows"]["nDCG@10"].mean == pytest.approx(1 - 1 / len(data.queries))


def test_the_same_figures_again(data, run):
    first, again = (compare_rerankers(data, run, {"knows": Knows()}, k=4, timed=1) for _ in range(2))
    assert first.figures == again.figures and first.comparisons == again.comparisons and first.runs == again.runs


# what it costs

def test_weights_are_those_of_the_model_however_deep_it_is_wrapped(folders):
    model = open_reranker(folders[1], device="cpu")
    mib = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    for scorer in (model, FastScorer(model), BestWindow(FastScorer(model), model.tokenizer)):
        assert weights_mib(scorer) == pytest.approx(mib)
    assert weights_mib(Knows()) is None
    assert weights_mib(FastScorer(model, run=lambda padded: None)) is None, "other weights than the model's are at work"


def test_peak_growth_sees_what_was_held_and_given_back():
    def held(): return np.ones(64 * 2**17).sum()   # 64 MiB for a moment
    grown = peak_growth(held)
    if grown is None: pytest.skip("this system does not tell")
    assert 55 < grown < 80
    assert peak_growth(lambda: None) < 8


# where it fails

SAID = {"q0": "is breakfast not covered?", "q1": "who pays for the 3 taxis", "q2": "isn't lunch free",
        "q3": "nothing in the notes about knots now",
        "q4": "taxi without receipt and 20 more words than anybody would care to read in one go"}


def test_slices_by_what_the_query_says_and_by_length():
    corpus = {"d0": "short one", "d1": "a much longer one with many words"}
    data = Dataset(corpus, SAID | {"no": "not judged 1"}, {q: {f"d{i % 2}": 1} for i, q in enumerate(SAID)} | {"no": {"d0": 0}})
    found = query_slices(data)
    assert found["negation"] == {"q0", "q2", "q3", "q4"} and found["number"] == {"q1", "q4"}
    assert found["long document"] == {"q1", "q3"} and found["short document"] == {"q0", "q2", "q4"}
    assert found["short query"] | found["long query"] == set(SAID) and not found["short query"] & found["long query"]
    assert set().union(*query_slices(Dataset(corpus, {}, {})).values()) == set()


def values_of(n, gain, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.uniform(.2, .5, n)
    return {FIRST: dict(zip(map(str, range(n)), base)), "tuned": dict(zip(map(str, range(n)), base + gain + rng.normal(0, .02, n)))}


def test_a_slice_says_better_worse_or_that_it_cannot_tell():
    values = values_of(100, .1)
    values["tuned"] |= {str(i): values[FIRST][str(i)] - .1 - i / 1000 for i in range(50, 100)}
    first, last = {str(i) for i in range(50)}, {str(i) for i in range(50, 100)}
    slices = {"first": first, "last": last, "few": {"1", "2", "3"}, "none": set(), "other": {"x"}}
    found = {s.name: s for s in reranker_slices(values, slices, metric="nDCG@10")}
    assert found["first"].says == "better" and found["last"].says == "worse" and found["first"].value.n == 50
    assert found["few"].says == "too few queries to tell: 3, and nothing is claimed below 10"
    assert found["none"].value.n == found["other"].value.n == 0 and found["none"].says.startswith("too few queries to tell: 0")
    assert {s.against.metric for s in found.values()} == {"nDCG@10"}
    with pytest.raises(DataError, match="no system 'base'"): reranker_slices(values, slices, "base")


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 12))
def test_the_more_is_asked_the_less_is_claimed(n):
    values = values_of(14, .05, 3)
    found = reranker_slices(values, {f"s{i}": set(values[FIRST]) for i in range(n)})
    assert {round(s.against.p_holm, 9) for s in found} == {round(min(1., n * found[0].against.p), 9)}
    assert all(s.says == "better" for s in found) == (decide(found[0].against) == "better")


def test_probes_tell_a_reader_from_one_that_only_counts():
    corpus = {f"d{i}": f"A hotel in {town} may cost EUR {price} a night, as agreed." for i, (town, price) in
              enumerate((("Oslo", 175), ("Bergen", 140), ("Rome", 120)))}
    data = Dataset(corpus, {"q0": "hotel in Oslo", "q1": "is EUR 140 fine for a night?", "q2": "who pays?"},
                   {f"q{i}": {f"d{i}": 1} for i in range(3)}, name="hotels")
    class Reads:
        def predict(self, inputs): return np.array([float(len({*q.lower().split()} & {*d.lower().split()})) for q, d in inputs])
    values, kinds = swap_probes(data, {"reads": Reads(), "same for all": Says(dict.fromkeys(corpus.values(), 0.) | Anything())})
    assert kinds == {"number swapped": {"q1"}, "date swapped": set(), "name swapped": {"q0"}}
    assert values["reads"] == {"q0": 1., "q1": 1.} and values["same for all"] == {"q0": .5, "q1": .5}
    assert swap_probes(Dataset(corpus, {"q": "who pays?"}, {"q": {"d0": 1}}), {"reads": Reads()})[0] == {"reads": {}}


class Anything(dict):
    def __missing__(self, key): return 0.
    def __ror__(self, other): return Anything(other)


# the chart

def test_a_bump_chart_shows_both_orders_with_texts_and_the_right_one_in_colour(data, run):
    q = next(iter(data.queries))
    after = {q: {d: -s for d, s in run[q].items()}}
    figure = bump_chart(data, q, run, after, k=3, names=("words", "tuned"))
    [ax] = figure.axes
    texts = [t.get_text() for t in ax.texts]
    first, last = ranking(run[q], 3), ranking(after[q], 3)
    for rank, d in enumerate(first, 1): assert f"{data.corpus[d]}  {rank}" in texts
    for rank, d in enumerate(last, 1): assert f"{rank}  {data.corpus[d]}" in texts
    assert {"words", "tuned"} <= set(texts) and ax.get_title() == data.queries[q]
    right = data.positives(q)[0]
    below = [f"rank {order.index(right) + 1}" for order in (ranking(run[q]), ranking(after[q])) if right not in order[:3]]
    assert len(ax.texts) == 2 + 6 + len(below), "what is below the last rank has a line, and no text"
    bold = {t.get_text() for t in ax.texts if t.get_fontweight() == "bold"}
    assert {*below} <= bold and all(data.corpus[right] in text for text in bold - {*below})
    missing = bump_chart(data, q, run, {q: {d: s for d, s in run[q].items() if d != right}}, k=2)
    assert "not found" in {t.get_text() for t in missing.axes[0].texts}
    with pytest.raises(DataError, match="take one of"): bump_chart(data, "nobody", run, after)


def test_dollars_are_no_formula(data, run):
    text = "It costs $3 or $4, " + "a " * 90
    odd = Dataset({"d": text, "e": "other"}, {"q": "$3 or $4?"}, {"q": {"d": 1}})
    figure = bump_chart(odd, "q", {"q": {"d": 1., "e": 0.}}, {"q": {"d": 0., "e": 1.}})
    figure.canvas.draw()
    assert any(r"\$3" in t.get_text() and len(t.get_text()) < 55 for t in figure.axes[0].texts)


def test_late_interaction_is_one_of_them(data, run, folders):
    from rag_finetune.models import open_encoder
    found = compare_rerankers(data, run, {"tokens": LateInteraction(open_encoder(folders[0], device="cpu"))}, k=4, timed=1)
    assert found.costs["tokens"].weights > 0 and found.costs["tokens"].latency.median > 0
