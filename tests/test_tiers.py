"What a user relies on with two tiers: depth, cost and calibration as they are, silence where there is no answer, no window left unread."
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from tiny import of_kind, tiny_data, tiny_model

from rag_finetune.core import DataError, ranking
from rag_finetune.metrics import ndcg
from rag_finetune.reranker import open_reranker
from rag_finetune.pipeline import save_model
from rag_finetune.tiers import (
    BestWindow, Calibration, calibrate, calibration_error, fit_silence, hide_answers, into_head, latency, pairs_of, pareto, pays_until,
    reliability, to_depth,
)

RUN = {"q": {"a": 9., "b": 8., "c": 7., "d": 6.}}
SCORED = {"q": {"a": -3., "b": 1., "c": 2., "d": 50.}}


@pytest.mark.parametrize(("k", "order"), [(1, "abcd"), (2, "bacd"), (3, "cbad"), (4, "dcba"), (9, "dcba")])
def test_only_the_first_k_change_places(k, order): assert ranking(to_depth(RUN, SCORED, k)["q"]) == list(order)


def test_a_weight_mixes_both_orders_among_the_first_k_only():
    assert ranking(to_depth(RUN, SCORED, 3, 1.)["q"]) == list("cbad") and ranking(to_depth(RUN, SCORED, 3, 0.)["q"]) == list("abcd")
    assert ranking(to_depth(RUN, SCORED, 3, .5)["q"])[3] == "d"
    with pytest.raises(DataError, match="rerank 4 or more"): to_depth(RUN, {"q": {"a": 1., "b": 1.}}, 4)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1))
def test_on_the_front_nobody_is_beaten_and_everybody_else_is(points):
    front = pareto(points)
    def beats(x, y): return points[x][0] <= points[y][0] and points[x][1] >= points[y][1]
    best = {points[name] for name in points if not any(beats(other, name) for other in points if points[other] != points[name])}
    assert [points[n] for n in front] == sorted(best)   # of equal ones one


def test_it_pays_until_no_deeper_one_is_shown_to_be_better():
    rng = np.random.default_rng(0)
    base = rng.uniform(.2, .6, 200)
    gains = {5: 0, 10: .1, 20: .1, 50: .1}
    values = {k: {f"q{i}": float(v) for i, v in enumerate(base + gain + rng.normal(0, .02, 200))} for k, gain in gains.items()}
    depth, found = pays_until(values, "nDCG@10")
    assert depth == 10 and [c.a for c in found] == ["20", "50"] and {c.metric for c in found} == {"nDCG@10"}
    assert pays_until({5: values[5]}) == (5, [])


def test_latency_is_of_one_query_at_a_time_without_the_first():
    ticks, asked = iter(np.cumsum([0, .001] * 40)), []
    found = latency(asked.append, ["x"] * 20, lambda: next(ticks))
    assert asked == ["x"] * 20 and found.median == pytest.approx(1.) == pytest.approx(found.high)
    assert latency(asked.append, ["y"], lambda: next(ticks)).median == pytest.approx(1.) and asked[20:] == ["y", "y"]


@pytest.fixture(scope="module")
def crooked():
    "Logits three times too large and shifted, with what was so."
    rng = np.random.default_rng(1)
    true = rng.normal(-1, 1.5, 4000)
    return 3 * true + 2, (rng.uniform(size=4000) < 1 / (1 + np.exp(-true))).astype(float)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibrated_on_one_half_the_other_half_is_told_better(method, crooked):
    scores, labels = crooked
    raw = 1 / (1 + np.exp(-scores[2000:]))
    curve = calibrate(scores[:2000], labels[:2000], method)
    told = curve(scores[2000:])
    assert brier_score_loss(labels[2000:], told) < brier_score_loss(labels[2000:], raw)
    assert calibration_error(reliability(told, labels[2000:])) < calibration_error(reliability(raw, labels[2000:]))
    assert (np.diff(told[np.argsort(scores[2000:])]) >= -1e-12).all(), "the order stays"
    if method == "platt": assert calibration_error(reliability(told, labels[2000:])) < .03
    if method == "isotonic": np.testing.assert_allclose(
        told, IsotonicRegression(out_of_bounds="clip").fit(scores[:2000], labels[:2000]).predict(scores[2000:]), atol=1e-9)
    if method == "platt": np.testing.assert_allclose(told, LogisticRegression(C=np.inf).fit(
        scores[:2000, None], labels[:2000]).predict_proba(scores[2000:, None])[:, 1], atol=2e-3)
    np.testing.assert_array_equal(Calibration(**json.loads(json.dumps(asdict(curve))))(scores), curve(scores))


def test_a_few_pairs_without_an_overlap_give_no_certainty():
    told = calibrate(np.array([-3., -2, 2, 3]), np.array([0., 0, 1, 1]))(np.array([-3., 3, 30]))
    np.testing.assert_allclose(told[:2], [1 / 4, 3 / 4], atol=.05)   # one more of each kind was seen, as it were (Platt, 1999)


@pytest.mark.parametrize("kind", ["bert", "xlm-r", "modernbert"])
def test_a_curve_in_the_head_is_said_by_the_saved_reranker(kind, tmp_path):
    bert = tiny_model(tmp_path / "bert")
    model = open_reranker(bert if kind == "bert" else of_kind(kind, bert, tmp_path), "cpu")
    pairs = [("a taxi", "is paid with the card"), ("what is due", "the form"), ("who", "nobody of them")]
    before = model.predict(pairs)
    into_head(model, Calibration("platt", (2.5, -.75)))
    save_model(model, tmp_path / "saved")
    np.testing.assert_allclose(open_reranker(tmp_path / "saved", "cpu").predict(pairs), 2.5 * before - .75, atol=1e-5)
    with pytest.raises(DataError, match="staircase"): into_head(model, Calibration("isotonic", (0., 1., 0., 1.)))
    with pytest.raises(DataError, match="falls"): into_head(model, Calibration("platt", (-1., 0.)))
    with pytest.raises(DataError, match="no linear head"): into_head(torch.nn.Linear(2, 3), Calibration("platt", (1., 0.)))


def test_calibration_says_what_it_lacks(crooked):
    with pytest.raises(DataError, match="relevant and irrelevant"): calibrate(np.ones(3), np.ones(3))
    with pytest.raises(DataError, match="expected \"temperature\""): calibrate(*crooked, "magic")


def test_the_limits_of_a_bin_hold_what_is_so_nineteen_times_of_twenty():
    rng, held = np.random.default_rng(2), []
    for _ in range(200):
        p = rng.uniform(size=300)
        found = reliability(p, (rng.uniform(size=300) < p).astype(float), 5)
        held += [b.low <= b.said <= b.high for b in found]
        assert sum(b.n for b in found) == 300
    assert np.mean(held) > .94


def test_pairs_of_unjudged_queries_are_left_out():
    scores, labels = pairs_of({"q": {"a": 1., "b": 2.}, "r": {"a": 3.}}, {"q": {"b": 1, "a": -1}})
    assert scores.tolist() == [1., 2.] and labels.tolist() == [0., 1.]


def test_without_its_answers_a_query_gets_none_and_the_threshold_knows_it():
    qrels = {"q": {"d": 1}, "r": {"d": 1}}
    run = {"q": {"a": .2, "d": .9}, "r": {"a": .1, "d": .8}}
    hidden = hide_answers(run, qrels, ["r"])
    assert hidden == {"q": run["q"], "r": {"a": .1}}
    silence = fit_silence({q: max(s.values()) for q, s in hidden.items()}, {"q": True, "r": False})
    assert silence({"a": .1}) and silence({}) and not silence({"d": .9})
    with pytest.raises(DataError, match="hide_answers"): fit_silence({"q": .5}, {"q": True})


class Longest:
    "A scorer that likes the word lamp, and notes what it read."
    def __init__(self): self.read = []
    def predict(self, inputs):
        self.read += inputs
        return np.array([float("lamp" in d) for _, d in inputs])


def test_the_best_window_finds_what_cutting_loses_and_every_word_is_read(tmp_path):
    model, scorer = open_reranker(tiny_model(tmp_path / "tiny"), "cpu"), Longest()
    windows = BestWindow(scorer, model.tokenizer, tokens=10, overlap=1, question=2)
    document = "the red car the green house the black dog the white cup the brown lamp"
    assert windows.predict([("where is", document), ("where is", "the lamp"), ("where is", "the car")]).tolist() == [1., 1., 0.]
    parts = [d for _, d in scorer.read if d in document and d not in ("the lamp", "the car")]
    assert len(parts) > 1 and all(len(model.tokenizer("where is", p)["input_ids"]) <= 10 for p in parts)
    joined = set(" ".join(parts).split())
    assert joined == set(document.split()) and parts[0].startswith("the red") and parts[-1].endswith("brown lamp")
    for one, other in zip(parts, parts[1:]): assert one.split()[-1] == other.split()[0] or other is parts[-1]
    assert windows.predict([]).shape == (0,)
    long = "where is the my find show me a please now"   # leaves nothing of ten tokens: the scorer cuts it, and the run goes on
    assert windows.predict([(long, document), (long, "the car")]).tolist() == [1., 0.] and len(windows.windows(long, document)) > 4
    narrow = BestWindow(scorer, model.tokenizer, tokens=10, overlap=4, question=4)
    with pytest.raises(DataError, match="leave 3 of 10"): narrow.predict([("where is", "the car")])


def test_questions_of_any_usual_length_share_their_windows_so_that_a_scorer_can_remember_them(tmp_path):
    tokenizer = open_reranker(tiny_model(tmp_path / "tiny"), "cpu").tokenizer
    document = "the red car the green house the black dog the white cup the brown lamp"
    windows = BestWindow(Longest(), tokenizer, tokens=12, overlap=1, question=4)
    assert windows.windows("where is", document) == windows.windows("where is the lamp", document) != [document]
    longer = windows.windows("where is the lamp please", document)
    assert all(len(tokenizer("where is the lamp please", part)["input_ids"]) <= 12 for part in longer)


def test_a_document_is_taken_apart_once_for_all_questions(tmp_path):
    tokenizer, asked = open_reranker(tiny_model(tmp_path / "tiny"), "cpu").tokenizer, []
    class Counting:
        "The tokenizer, noting what it reads."
        def __call__(self, text, **settings):
            asked.append(text)
            return tokenizer(text, **settings)
        def num_special_tokens_to_add(self, pair): return tokenizer.num_special_tokens_to_add(pair)
    windows = BestWindow(Longest(), Counting(), tokens=12, overlap=1, question=4)
    windows.predict([(q, "the red lamp") for q in ("where is", "find the", "show me a")])
    assert asked.count("the red lamp") == 1


def test_reranking_deeper_than_there_are_documents_is_reranking_all():
    data = tiny_data()
    run = {q: {d: float(len(d)) for d in data.corpus} for q in data.queries}
    scored = {q: {d: float(data.qrels[q].get(d, 0)) for d in data.corpus} for q in data.queries}
    assert set(ndcg(data.qrels, to_depth(run, scored, 500), 10).values()) == {1.}
