"The verdict's statistics: coverage, false alarms and power by simulation, p values by enumeration, and what a caller relies on."
import json, subprocess, sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom, binomtest, permutation_test

from rag_finetune.core import DataError
from rag_finetune.metrics import evaluate
from rag_finetune.verdict import (Comparison, Interval, _detectable, _limits, _randomisation_p, compare, compare_all, decide,
                                  format_table, holm, interval, queries_needed, sentence, table)

REPEATS = 500
NDCG = np.array([0, *(1 / np.log2(rank + 1) for rank in range(10, 0, -1))])       # one relevant document, at rank 11 or below, 10, ..., 1
SKEWED = np.array([.15, .01, .01, .01, .01, .01, .02, .03, .05, .15, .55])
STEPS, SHARES = np.array([-.63, -.37, 0, .13, .37, .63, 1]), np.array([.04, .08, .62, .06, .1, .06, .04])  # differences: many ties, skewed

def named(x): return {f"q{i:05}": float(v) for i, v in enumerate(x)}

def draw(values, shares, n, seed):
    "(n, REPEATS): one experiment in each column."
    return np.random.default_rng(seed).choice(values, (n, REPEATS), p=shares)

def compare_columns(d):
    "Each column of differences as one comparison, against a system that scores 0 everywhere."
    values = {str(j): named(column) for j, column in enumerate(d.T)} | {"0s": named(np.zeros(len(d)))}
    return compare_all(values, [(str(j), "0s") for j in range(d.shape[1])])

# --- intervals -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize("values, shares", [([0, 1], [.5, .5]), ([0, 1], [.3, .7]), ([0, 1], [.2, .8]), (NDCG, SKEWED)],
                         ids=["bernoulli .5", "bernoulli .7", "bernoulli .8", "nDCG"])
def test_a_95_percent_interval_holds_the_true_mean_95_times_in_100(values, shares, n):
    truth = np.dot(values, shares)
    covered = np.mean([low <= truth <= high for low, high in _limits(draw(values, shares, n, 11).astype(float), 0., 1., 0)])
    assert .92 <= covered <= .98

@pytest.mark.parametrize("n", [50, 300])
def test_the_interval_of_a_difference_covers_too(n):
    covered = np.mean([c.low <= STEPS @ SHARES <= c.high for c in compare_columns(draw(STEPS, SHARES, n, 12))])
    assert .92 <= covered <= .98

@pytest.mark.parametrize("n", [1, 3, 10, 20, 50])
@pytest.mark.parametrize("p", [.5, .9, .97, 1.])
def test_small_and_constant_samples_claim_no_more_than_they_know(n, p):
    covered = np.mean([low - 1e-12 <= p <= high + 1e-12 for low, high in _limits(draw([0., 1.], [1 - p, p], n, 13), 0., 1., 0)])
    assert covered >= .92

def test_a_constant_sample_is_no_certainty():
    for value in (0., .5, 1.):
        for n in (1, 5, 20, 300):
            found = interval({f"q{i}": value for i in range(n)})
            assert found.low < found.high and found.low <= found.mean <= found.high
    assert interval({f"q{i}": 1. for i in range(20)}).low == pytest.approx(binomtest(20, 20).proportion_ci(method="exact").low)

def test_no_query():
    assert interval({}) == (0., 0., 1., 0)

@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0., .5, 1.]) | st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_lies_in_the_metrics_range_around_its_mean(x):
    found = interval(named(x))
    assert 0 <= found.low <= found.mean + 1e-12 and found.mean <= found.high + 1e-12 <= 1 + 2e-12
    assert found == interval(dict(reversed(named(x).items())))                      # the order of queries does not count
    assert found == interval(named(x))                                              # nor does the day

def test_seeds():
    x = named(np.random.default_rng(0).random(50))
    assert interval(x, seed=1) != interval(x, seed=2)

@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_failed_metric_is_an_error_and_not_averaged(bad):
    with pytest.raises(DataError, match="'q7'"): interval({"q1": 1., "q7": bad})
    with pytest.raises(DataError, match="'q7'"): compare({"q1": 1., "q7": bad}, {"q1": 1., "q7": 0.})

# --- the test ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("steps", ["symmetric", "binary", "exchangeable"])
def test_false_alarms_are_as_rare_as_promised(n, steps):
    if steps == "symmetric": d = draw([-.5, -.1, 0, .1, .5], [.1, .2, .4, .2, .1], n, 21)
    elif steps == "binary": d = draw([-1., 0., 1.], [.2, .6, .2], n, 22)
    else: d = draw(NDCG, SKEWED, n, 23) - draw(NDCG, SKEWED, n, 24)
    alarms = sum(c.p < .05 for c in compare_columns(d))
    assert alarms <= binom.ppf(.999, REPEATS, .05)
    assert alarms >= binom.ppf(.001, REPEATS, .05) or steps == "binary"   # whole numbers: the test cannot reach .05 from below

@pytest.mark.parametrize("n", [50, 400])
def test_detectable_is_found_four_times_in_five(n):
    noise = np.array([-.5, -.25, 0, .25, .5])
    promised = np.mean([_detectable(x) for x in draw(noise, [.1, .2, .4, .2, .1], n, 31).T[:100]])
    found = np.mean([c.p < .05 for c in compare_columns(draw(noise, [.1, .2, .4, .2, .1], n, 32) + promised)])
    assert .75 <= found <= .85

def test_detectable_holds_for_what_is_claimed_within_a_family():
    noise, shares, n, tests = np.array([-.5, -.25, 0, .25, .5]), [.1, .2, .4, .2, .1], 200, 20
    promised = np.mean([_detectable(x, tests) for x in draw(noise, shares, n, 61).T[:100]])
    def claimed(seed):  # one system is better by what is promised, the others are all equal
        d = draw(noise, shares, n, seed)[:, :tests]
        d[:, 0] += promised
        return holm(_randomisation_p(d, seed, resamples=4000))[0] < .05   # which is what `decide` asks
    assert .7 <= np.mean([claimed(seed) for seed in range(150)]) <= .9

def test_p_and_interval_agree():
    comparisons = compare_columns(draw(STEPS, SHARES, 100, 41))
    assert np.mean([(c.p < .05) == (c.low > 0 or c.high < 0) for c in comparisons]) > .97

@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-1., -.5, -.1, 0., .1, .2, .3, .5, 1.]), min_size=2, max_size=9))
def test_p_is_exact_for_few_differences(d):
    sums = [np.dot(signs, d) for signs in product([1, -1], repeat=len(d))]
    by_enumeration = np.mean([abs(s) >= abs(sum(d)) - 1e-9 for s in sums])
    p = compare(named(d), named(np.zeros(len(d)))).p
    assert p == pytest.approx(by_enumeration)
    theirs = permutation_test((np.array(d),), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False).pvalue
    if abs(sum(d)) > 1e-9: assert p == pytest.approx(theirs)

def test_p_by_sampling_is_near_the_exact_p():
    wins, losses = 22, 10                                                  # the sign test: a binomial tail
    c = compare(named([1.] * wins + [0.] * losses + [.5] * 40), named([0.] * wins + [1.] * losses + [.5] * 40))
    assert (c.wins, c.ties, c.losses) == (22, 40, 10)
    assert c.p == pytest.approx(binomtest(wins, wins + losses).pvalue, abs=.008)

def test_a_tie_in_all_but_the_last_bits_is_a_tie():
    c = compare(named([.1 + .2, .5] * 10), named([.3, .5] * 10))
    assert (c.wins, c.ties, c.losses, c.p) == (0, 20, 0, 1)

def test_no_p_is_zero():
    assert compare(named(np.ones(100)), named(np.zeros(100))).p == pytest.approx(1 / 10_001)

pairs_of_values = st.lists(st.tuples(*[st.sampled_from([0., 1/3, .5, 1.])] * 2), min_size=1, max_size=40)

@settings(max_examples=60, deadline=None)
@given(pairs_of_values)
def test_swapping_the_systems_swaps_the_answer(both):
    a, b = map(named, zip(*both))
    ab, ba = compare(a, b), compare(b, a)
    assert ab.difference == -ba.difference and ab.p == ba.p and ab.detectable == ba.detectable
    assert (ab.low, ab.high) == pytest.approx((-ba.high, -ba.low))
    assert (ab.wins, ab.ties, ab.losses) == (ba.losses, ba.ties, ba.wins)
    assert {decide(ab), decide(ba)} in ({"better", "worse"}, {"no_difference"}, {"not_enough"})
    assert ab.wins + ab.ties + ab.losses == ab.n == len(both)
    assert 0 < ab.p <= 1 and 0 < ab.detectable <= 1 and ab.low <= ab.difference + 1e-12 and ab.difference <= ab.high + 1e-12

def test_queries_are_paired_by_id_and_their_order_does_not_count():
    rng = np.random.default_rng(6)
    a, b = named(rng.random(40)), named(rng.random(40))
    assert compare(dict(reversed(a.items())), b) == compare(a, dict(reversed(b.items()))) == compare(a, b)

def test_both_systems_must_have_the_same_queries():
    with pytest.raises(DataError, match="'q2' has a value in one only"): compare({"q1": 1.}, {"q1": 1., "q2": 0.})

# --- Holm ----------------------------------------------------------------------------------------------------------------

def test_holm_by_hand():
    assert holm([.01, .04, .03]) == pytest.approx([.03, .06, .06])
    assert holm([.01, .02, .03, .04, .05]) == pytest.approx([.05, .08, .09, .09, .09])
    assert holm([.5, .9]) == [1., 1.]
    assert holm([.2]) == [.2] and holm([]) == []

@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_properties(ps):
    corrected = holm(ps)
    assert all(p <= c <= min(1, len(ps) * p) + 1e-15 for p, c in zip(ps, corrected))                        # between none and Bonferroni
    order = np.argsort(ps, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)                                                  # keeps the order
    assert holm(ps[::-1]) == corrected[::-1]
    rejected = 0                                                                                             # as the paper words it
    while rejected < len(ps) and (len(ps) - rejected) * ps[order[rejected]] < .05: rejected += 1
    assert [c < .05 for c in np.array(corrected)[order]] == [i < rejected for i in range(len(ps))]

def test_a_family_is_corrected_together():
    rng = np.random.default_rng(5)
    values = {s: named(rng.random(60) + shift) for s, shift in (("a", .12), ("b", .05), ("c", 0.))}
    family = compare_all(values, [("a", "b"), ("a", "c")], "nDCG@10")
    assert [c.p_holm for c in family] == holm([c.p for c in family])
    alone = compare(values["a"], values["c"], "a", "c", "nDCG@10")
    assert alone.p_holm == alone.p == family[1].p                          # the figures do not depend on what else is compared
    assert (alone.low, alone.high) == pytest.approx((family[1].low, family[1].high))
    assert compare_all(values, []) == []

# --- decisions -----------------------------------------------------------------------------------------------------------

def made(**changed):
    found = Comparison("tuned", "base", "nDCG@10", difference=.031, low=.018, high=.044, p=.0002, p_holm=.0004,
                       wins=212, ties=448, losses=140, n=800, detectable=.02)
    return replace(found, **changed)

def test_four_outcomes():
    assert decide(made()) == "better"
    assert decide(made(difference=-.031, low=-.044, high=-.018)) == "worse"
    assert decide(made(difference=.001, low=-.004, high=.006, p=.6, p_holm=.9)) == "no_difference"
    assert decide(made(difference=.001, low=-.004, high=.011, p=.6, p_holm=.9)) == "not_enough"
    assert decide(made(difference=.001, low=-.004, high=.011, p=.6, p_holm=.9), worth=.02) == "no_difference"
    assert decide(made(p=.02, p_holm=.06)) == "not_enough"                 # it is Holm's p that counts
    assert decide(made(difference=.003, low=.001, high=.005)) == "better"  # small, but there

def test_a_draw_over_many_queries_is_no_difference_and_over_few_is_not_enough():
    def same(n): return compare(named(np.full(n, .5)), named(np.full(n, .5)))
    assert [decide(same(n)) for n in (0, 1, 9, 20, 100, 1000)] == ["not_enough"] * 5 + ["no_difference"]

@pytest.mark.parametrize("n", [0, 1, 2, 5, 9])
def test_fewer_queries_than_can_say_anything(n):
    c = compare(named(np.ones(n)), named(np.zeros(n)), "tuned", "base", "nDCG@10")
    assert decide(c) == "not_enough" and sentence(c, decide(c)).startswith("cannot tell tuned from base: ")
    assert all(np.isfinite(x) for x in (c.difference, c.low, c.high, c.p, c.p_holm, c.detectable))
    assert c.detectable > .8 and c.low < c.high
    json.dumps(c.as_dict(), allow_nan=False)

# --- words ---------------------------------------------------------------------------------------------------------------

def test_sentences():
    assert sentence(made(), "better") == \
        "tuned is better than base: nDCG@10 +.031 [+.018, +.044] over 800 queries (p = .0004, 212 wins, 448 ties, 140 losses)"
    worse = made(difference=-.031, low=-.044, high=-.018)
    assert sentence(worse, "worse").startswith("tuned is worse than base: nDCG@10 -.031 [-.044, -.018]")
    assert sentence(made(difference=.001, low=-.004, high=.006, p_holm=.93), "no_difference") == \
        ("no difference worth the cost between tuned and base: nDCG@10 +.001 [-.004, +.006] over 800 queries "
         "(p = .930, 212 wins, 448 ties, 140 losses), all within ±.010")
    assert sentence(made(difference=.015, low=-.002, high=.032, p_holm=.08), "not_enough").endswith(
        "; about 1,500 queries would be needed to show a difference of this size")    # 800 x (.02 / .015)^2 = 1,422
    assert sentence(made(difference=.0, low=-.02, high=.02, p_holm=1.), "not_enough").endswith(
        "(p = 1, 212 wins, 448 ties, 140 losses); about 3,200 queries would be needed to show a difference of .010")
    assert "over 1 query (p = .0004, 1 win, 0 ties, 1 loss)" in sentence(made(n=1, wins=1, ties=0, losses=1), "better")
    assert "needed" not in sentence(made(difference=0., low=-.02, high=.02), "not_enough", worth=0.)

def test_the_number_of_queries_needed_is_enough():
    truth, n = .08, 60
    pilot = [compare(named(x), named(np.zeros(n))) for x in draw([-.5, 0., .5], [.15, .54, .31], n, 51).T[:25]]
    needed = int(np.median([queries_needed(c, truth) for c in pilot]))
    assert needed > n
    found = np.mean([c.p < .05 for c in compare_columns(draw([-.5, 0., .5], [.15, .54, .31], needed, 52))])
    assert .75 <= found <= .87

@settings(max_examples=100, deadline=None)
@given(st.floats(.001, 1), st.integers(0, 2000), st.floats(.001, 1))
def test_more_queries_than_there_were_are_needed(difference, n, detectable):
    assert queries_needed(made(n=n, detectable=detectable), difference) > n

# --- tables --------------------------------------------------------------------------------------------------------------

QRELS = {f"q{i}": {"d1": 1} for i in range(40)} | {"unjudged": {"d1": 0}}
RUNS = {"bm25": {q: {"d1": .1, "d2": .5} if i % 2 else {"d1": .5} for i, q in enumerate(QRELS)},
        "tuned": {q: {"d1": .9, "d2": .5} for q in list(QRELS)[:30]}}

def test_a_table_holds_what_interval_says_of_each_cell():
    measures = ["accuracy@1", "nDCG@10"]
    found = table(QRELS, RUNS, measures)
    assert list(found) == ["bm25", "tuned"] and all(list(row) == measures for row in found.values())
    for system, run in RUNS.items():
        for measure, values in evaluate(QRELS, run, measures).items():
            assert found[system][measure] == pytest.approx(interval(values))
    assert found["tuned"]["accuracy@1"].n == 40 and found["tuned"]["accuracy@1"].mean == .75

def test_a_wide_table_is_resampled_alike():
    x = np.random.default_rng(0).random((70, 12))
    assert np.allclose(_limits(x, 0., 1., 3), [_limits(x[:, [j]], 0., 1., 3)[0] for j in range(12)])

def test_a_table_without_judged_queries():
    assert table({}, RUNS, ["nDCG@10"])["bm25"]["nDCG@10"] == (0., 0., 1., 0)
    assert table(QRELS, {}, ["nDCG@10"]) == {}

def test_the_table_as_text():
    text = format_table(table(QRELS, RUNS, ["accuracy@1", "nDCG@10"]), {"tuned": "chosen"})
    head, bm25, tuned, note = text.splitlines()                            # by nDCG@10, the last measure
    assert head.split() == ["system", "accuracy@1", "nDCG@10"]
    assert tuned.startswith("tuned   .750 [.") and tuned.endswith("  chosen") and bm25.startswith("bm25    .500 [")
    assert head.index("nDCG@10") == tuned.index(".750", 20) and note == "(mean [95% interval] over 40 queries)"
    assert format_table(table(QRELS, RUNS, ["accuracy@1"]), by="accuracy@1").splitlines()[1].startswith("tuned")
    assert format_table({}) == "(no systems)"

def test_everything_goes_into_json():
    as_dict = made().as_dict()
    assert {"a", "b", "metric", "difference", "low", "high", "p", "p_holm", "wins", "ties", "losses", "n", "detectable"} == set(as_dict)
    real = compare(named([1.] * 15 + [0.] * 5), named([0.] * 20), "a", "b", "accuracy@1")
    assert json.loads(json.dumps(real.as_dict(), allow_nan=False)) == real.as_dict()
    cell = table(QRELS, RUNS, ["nDCG@10"])["bm25"]["nDCG@10"]
    assert set(cell.as_dict()) == {"mean", "low", "high", "n"} and json.loads(json.dumps(cell.as_dict())) == cell.as_dict()
    assert str(Interval(1., .85, 1., 20)) == "1.000 [.850, 1.000]"

# --- cost ----------------------------------------------------------------------------------------------------------------

def test_torch_stays_unloaded():
    code = "import sys, rag_finetune.verdict; print(*{'torch', 'sklearn', 'lancedb', 'matplotlib', 'scipy.stats'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []

def test_memory_stays_small():
    import tracemalloc
    x = named(np.random.default_rng(0).random(3080))
    tracemalloc.start()
    interval(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
