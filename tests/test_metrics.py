"Metrics against trec_eval's own figures and against pytrec_eval on random rankings."
import json

import pytest, pytrec_eval
from hypothesis import given, settings, strategies as st

from rag_finetune.core import DataError, ranking
from rag_finetune.data import read_qrels, read_run
from rag_finetune.metrics import MEASURES, accuracy, average_precision, evaluate, ndcg, precision, recall, reciprocal_rank

# --- trec_eval's own test files, every figure at the four decimals that it prints ------------------------------------

@pytest.fixture(scope="module")
def expected(public_data): return json.loads((public_data / "trec_eval" / "expected.json").read_text())

@pytest.fixture
def qrels_of(public_data): return lambda name: read_qrels(public_data / "trec_eval" / name)

@pytest.fixture
def run_of(public_data, tmp_path):
    "Reads a run after cutting off what follows its six columns: trec_eval reads past that, and one of its test files has some."
    def read(name):
        lines = (public_data / "trec_eval" / name).read_text().splitlines()
        (tmp_path / name).write_text("".join(" ".join(line.split()[:6]) + "\n" for line in lines))
        return read_run(tmp_path / name)
    return read

def at_least(qrels, level): return {q: {d: int(g >= level) for d, g in grades.items()} for q, grades in qrels.items()}

CUTS = (5, 10, 15, 20, 30, 100, 200, 500, 1000)
OURS = {f"P_{k}": f"precision@{k}" for k in CUTS} | {f"recall_{k}": f"recall@{k}" for k in CUTS} | \
    {f"ndcg_cut_{k}": f"nDCG@{k}" for k in CUTS} | {f"map_cut_{k}": f"MAP@{k}" for k in CUTS} | \
    {f"success_{k}": f"accuracy@{k}" for k in (1, 5, 10)} | {"recip_rank": "MRR@1000", "map": "MAP"}

def check_against(expected, qrels, run, names=OURS):
    "Every named figure of every topic, as text, and the mean that trec_eval prints as `all`."
    values = evaluate(qrels, run, list(names.values()))
    for theirs, ours in names.items():
        printed = {q: f"{v:.4f}" for q, v in values[ours].items()}
        printed["all"] = f"{sum(values[ours].values()) / len(values[ours]):.4f}"
        assert printed == {q: figures[theirs] for q, figures in expected.items()}, theirs
    return len(names) * len(expected)

def test_trec_eval_all_topics_answered(expected, qrels_of, run_of):
    assert check_against(expected["out.test.aq"], qrels_of("qrels.test"), run_of("results.test")) == 41 * 4

def test_trec_eval_with_a_topic_that_the_run_leaves_out(expected, qrels_of, run_of):   # trec_eval -c
    run = run_of("results.trunc")
    assert "302" not in run
    check_against(expected["out.test.aqc"], qrels_of("qrels.test"), run)

def test_trec_eval_with_runs_cut_at_100(expected, qrels_of, run_of):                   # trec_eval -c -M100
    run = {q: {d: scores[d] for d in ranking(scores, 100)} for q, scores in run_of("results.trunc").items()}
    check_against(expected["out.test.aqcM"], qrels_of("qrels.test"), run)

def test_trec_eval_with_graded_judgements(expected, qrels_of, run_of):                 # trec_eval -l2: from 2 on relevant; the gain stays
    qrels, run = qrels_of("qrels.rel_level"), run_of("results.test")
    assert {g for grades in qrels.values() for g in grades.values()} == {-1, 0, 1, 2, 3, 4}
    gains = {n: m for n, m in OURS.items() if n.startswith("ndcg")}
    check_against(expected["out.test.aql"], qrels, run, gains)
    check_against(expected["out.test.aql"], at_least(qrels, 2), run, {n: m for n, m in OURS.items() if n not in gains})

# --- pytrec_eval on random runs -----------------------------------------------------------------------------------------

ids = st.sampled_from([f"d{i}" for i in range(12)] + ["D1", "d1x", "é", "10", "9"])
scores = st.one_of(st.sampled_from([0., .5, 1., 1. + 1e-9, -1.]), st.floats(-1e6, 1e6, width=32))   # ties, also as float32 only
queries = st.sampled_from([f"q{i}" for i in range(5)])
some_qrels = st.dictionaries(queries, st.dictionaries(ids, st.integers(-2, 4), min_size=1), min_size=1)
some_run = st.dictionaries(queries, st.dictionaries(ids, scores, min_size=1))
K = (1, 3, 10)

def pytrec(qrels, run, measures):
    """pytrec_eval's values for the queries that have a relevant document; 0 for those it leaves out because the run does.
    It never sees the other queries: 0.5.11 writes past its memory where every grade of a query is below -1."""
    answerable = {q: grades for q, grades in qrels.items() if max(grades.values()) > 0}
    theirs = pytrec_eval.RelevanceEvaluator(answerable, measures).evaluate(run)
    return {m: {q: theirs.get(q, {}).get(m, 0.) for q in answerable} for m in measures}

@settings(max_examples=400, deadline=None)
@given(some_qrels, some_run)
def test_equals_pytrec_eval(qrels, run):
    names = {f"P_{k}": precision(qrels, run, k) for k in K} | {f"recall_{k}": recall(qrels, run, k) for k in K} | \
        {f"ndcg_cut_{k}": ndcg(qrels, run, k) for k in K} | {f"success_{k}": accuracy(qrels, run, k) for k in K} | \
        {f"map_cut_{k}": average_precision(qrels, run, k) for k in K} | {"map": average_precision(qrels, run)}
    theirs = pytrec(qrels, run, set(names))
    for name, ours in names.items(): assert ours == pytest.approx(theirs[name], abs=1e-12), name

@settings(max_examples=200, deadline=None)
@given(some_qrels, some_run, st.sampled_from(K))
def test_reciprocal_rank_and_accuracy_equal_pytrec_eval_on_runs_cut_at_k(qrels, run, k):
    cut = {q: {d: s[d] for d in ranking(s, k)} for q, s in run.items()}
    assert reciprocal_rank(qrels, run, k) == pytest.approx(pytrec(qrels, cut, {"recip_rank"})["recip_rank"], abs=1e-12)
    assert accuracy(qrels, run, k) == pytrec(qrels, cut, {f"success_{k}"})[f"success_{k}"]

# --- what a caller relies on ---------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(some_qrels, some_run)
def test_bounded_complete_and_blind_to_the_order_of_arrival(qrels, run):
    values = evaluate(qrels, run, MEASURES)
    answerable = {q for q, grades in qrels.items() if max(grades.values()) > 0}
    for per_query in values.values():
        assert set(per_query) == answerable
        assert all(0 <= v <= 1 + 1e-12 for v in per_query.values())
    shuffled = {q: dict(reversed(s.items())) for q, s in reversed(run.items())}
    assert evaluate(qrels, shuffled, MEASURES) == values

@settings(max_examples=100, deadline=None)
@given(some_qrels)
def test_an_ideal_ranking_scores_one(qrels):
    ideal = {q: {d: float(g) for d, g in grades.items()} for q, grades in qrels.items()}
    values = evaluate(qrels, ideal, ["accuracy@1", "recall@20", "MRR@10", "nDCG@10", "MAP"])
    assert all(v == pytest.approx(1) for per_query in values.values() for v in per_query.values())

def test_no_judged_query_and_no_answer():
    assert evaluate({}, {"q": {"d": 1.}}, ["nDCG@10"]) == {"nDCG@10": {}}
    assert evaluate({"q": {}, "r": {"d": 0}, "s": {"d": 1}}, {"s": {}}, ["MRR@10", "MAP"]) == {"MRR@10": {"s": 0.}, "MAP": {"s": 0.}}

def test_values_are_plain_floats():
    values = evaluate({"q": {"d": 1}}, {"q": {"d": 1.}}, MEASURES)
    assert {type(v) for per_query in values.values() for v in per_query.values()} == {float}

@pytest.mark.parametrize("name", ["ndcg@10", "nDCG", "nDCG@0", "nDCG@-1", "nDCG@ten", "", "@10", "accuracy@1@3", "recall@10 "])
def test_unknown_measures_are_refused_in_one_line(name):
    with pytest.raises(DataError) as error: evaluate({"q": {"d": 1}}, {}, [name])
    assert repr(name) in str(error.value) and "nDCG@10" in str(error.value) and "\n" not in str(error.value)
