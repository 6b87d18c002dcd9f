"Mining: what can never be mined, what every rule drops, and that nothing goes uncounted."
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_finetune.core import DataError, Dataset, ranking, text_key
from rag_finetune.negatives import RULES, false_negatives, fill, mine


def dataset(corpus, positives, queries=("q",)):
    return Dataset(corpus, {q: q for q in queries}, {q: dict.fromkeys(positives, 1) for q in queries}, "made")


CORPUS = {f"d{i}": t for i, t in enumerate(["one", "ONE ", "two", "Ｔwo", "three", "four", "five", "six"])}
doc_ids = st.sampled_from(list(CORPUS))
run_of = st.dictionaries(doc_ids, st.floats(-3, 3, width=16))

@given(run_of, st.sets(doc_ids, max_size=3), st.tuples(st.integers(1, 8), st.integers(1, 8)).filter(lambda w: w[0] <= w[1]),
       st.sampled_from([None, 0., .5]), st.sampled_from([None, 0., .05, .5]), st.integers(1, 4), st.sampled_from([None, 0, 1]))
def test_what_is_mined_keeps_every_rule_and_everything_is_counted(scores, positives, window, absolute, relative, per_query, seed):
    mined, dropped = mine(dataset(CORPUS, positives), {"q": scores}, *window, absolute, relative, per_query, seed)
    if not positives:
        assert mined == {} and not any(dropped.values())
        return
    docs, order = mined["q"], ranking(scores)
    best = max((scores[d] for d in positives if d in scores), default=None)
    assert set(dropped) == set(RULES) and len(docs) + sum(dropped.values()) == len(scores)
    assert len(docs) <= per_query and docs == sorted(docs, key=order.index)
    keys = [text_key(CORPUS[d]) for d in docs]
    assert len(set(keys)) == len(keys) and not set(keys) & {text_key(CORPUS[d]) for d in positives}
    for d in docs:
        assert window[0] <= order.index(d) + 1 <= window[1]
        if absolute is not None: assert scores[d] <= best - absolute
        if relative is not None: assert scores[d] <= best - relative * abs(best)


def test_texts_equal_to_a_positive_or_to_a_negative_above_are_duplicates():
    run = {"q": {"d0": .9, "d1": .8, "d2": .7, "d3": .6, "d4": .5}}
    mined, dropped = mine(dataset(CORPUS, ["d0"]), run)
    assert mined == {"q": ["d2", "d4"]} and dropped["duplicate"] == 2 and dropped["positive"] == 1


def letters(n): return {f"d{i:02}": f"text {i}" for i in range(n)}


def test_without_a_seed_the_best_ranked_are_taken():
    run = {"q": {d: -i for i, d in enumerate(letters(20))}}
    mined, dropped = mine(dataset(letters(20), ["d00"]), run, first=3, last=10, per_query=3, seed=None)
    assert mined == {"q": ["d02", "d03", "d04"]}
    assert {r: n for r, n in dropped.items() if n} == {"window": 12, "not_taken": 5}


def test_the_seed_decides_the_sample_and_other_queries_do_not():
    run = {q: {d: -i for i, d in enumerate(letters(50))} for q in ("q", "p")}
    def sample(queries, seed): return mine(dataset(letters(50), ["d00"], queries), run, seed=seed)[0]["q"]
    assert sample(["q"], 7) == sample(["q"], 7) == sample(["p", "q"], 7)
    assert len({tuple(sample(["q"], seed)) for seed in range(20)}) > 10
    assert len({d for seed in range(200) for d in sample(["q"], seed)}) == 49        # every candidate has a chance
    both = mine(dataset(letters(50), ["d00"], ["q", "p"]), run, seed=7)[0]
    assert both["q"] != both["p"]


def test_a_document_judged_not_relevant_can_be_mined():
    made = Dataset(letters(3), {"q": "q"}, {"q": {"d00": 1, "d01": 0, "d02": -1}})
    assert mine(made, {"q": {"d00": 3., "d01": 2., "d02": 1.}}, relative_margin=.05)[0] == {"q": ["d01", "d02"]}


@pytest.mark.parametrize(("positive", "kept"), [(10., [9.5, 1., -1.]), (-10., [-10.5, -11.]), (0., [0., -1.])])
def test_a_relative_margin_keeps_its_distance_for_every_sign(positive, kept):
    candidates = {10.: [10., 9.6, 9.5, 1., -1.], -10.: [-9., -9.5, -10., -10.4, -10.5, -11.], 0.: [.1, 0., -1.]}[positive]
    run = {"q": {"d00": positive} | {f"d{i:02}": s for i, s in enumerate(candidates, start=1)}}
    mined, _ = mine(dataset(letters(10), ["d00"]), run, relative_margin=.05, per_query=10)
    assert [run["q"][d] for d in mined["q"]] == kept


def test_of_several_positives_the_best_scored_sets_the_margin():
    run = {"q": {"d00": 1., "d01": .8, "d02": .5, "d03": .3}}
    assert mine(dataset(letters(4), ["d00", "d02"]), run, absolute_margin=.1)[0] == {"q": ["d01", "d03"]}


def test_without_a_positive_in_the_run_no_margin_can_be_kept():
    run = {"q": {"d01": .8, "d02": .5}}
    assert mine(dataset(letters(4), ["d00"]), run)[0] == {"q": ["d01", "d02"]}
    for margin in ({"absolute_margin": .1}, {"relative_margin": 0.}):
        mined, dropped = mine(dataset(letters(4), ["d00"]), run, **margin)
        assert mined == {"q": []} and dropped["no_positive_score"] == 2


def test_a_query_that_the_run_leaves_out_has_no_negatives():
    assert mine(dataset(letters(4), ["d00"]), {}) == ({"q": []}, dict.fromkeys(RULES, 0))


def test_bad_settings_and_foreign_runs_are_errors():
    made = dataset(letters(4), ["d00"])
    for wrong in ({"first": 0}, {"first": 9, "last": 3}, {"per_query": 0}):
        with pytest.raises(DataError, match="expected 1 <= first <= last and per_query >= 1"): mine(made, {}, **wrong)
    with pytest.raises(DataError, match="made: document 'd99' of the run is not in the corpus"): mine(made, {"q": {"d99": 1.}})


def test_false_negatives_are_counted_by_query():
    assert false_negatives({"q": ["a", "b"], "p": ["a"], "none": []}, {"q": {"a": 1, "b": 0}, "none": {"a": 1}}) == {"q": .5, "p": 0.}


def test_a_query_without_negatives_gets_random_ones_that_are_not_its_own():
    data = Dataset({"a": "A", "b": "B", "twin": "b ", "c": "C", "d": "D"}, {"1": "x", "2": "y"}, {"1": {"b": 1}, "2": {"a": 1}})
    found = fill({"1": [], "2": ["c", "d"]}, data, per_query=2, seed=0)
    assert len(found["1"]) == 2 and not {"b", "twin"} & set(found["1"]) and found["2"] == ["c", "d"]
    assert found == fill({"1": [], "2": ["c", "d"]}, data, 2, 0)
    assert len(fill({"1": []}, data, per_query=9)["1"]) == 3      # all that there are
