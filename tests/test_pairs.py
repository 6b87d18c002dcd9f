"What a user relies on with pairs for a reranker: no wrong answer is secretly right, an edit changes what was asked for and nothing else."
import re

import numpy as np
import pytest
from fake_llm import FakeLLM
from hypothesis import given
from hypothesis import strategies as st

from rag_finetune.core import DataError, Dataset, text_key
from rag_finetune.data import load
from rag_finetune.pairs import (
    contradicting, near_misses, nearly_right, pair_scores, paraphrased_by_llm, paraphrases, right_and_wrong, squared_errors,
)
from rag_finetune.retrieval import bm25
from rag_finetune.synthetic import Ledger, sender

LONG = "The claim is handed in with the receipt and the form within thirty days after the end of the trip, signed by the head of the team."


def asked_and_answered():
    "Two questions with nearly the same answer, one with an equal one under another id, one by itself."
    corpus = {"a": LONG, "b": LONG.replace("signed", "and signed"), "a2": LONG.upper(), "c": "A taxi is paid with the card.",
              "d": "Ask the desk."}
    asked = {"q1": "By when is a claim due?", "q2": "Who signs a claim?", "q3": "How is a taxi paid?", "q4": "By when is a claim  DUE?"}
    return Dataset(corpus, asked, {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}, "q4": {"d": 1}}, name="faq")


# wrong answers

def test_no_wrong_answer_is_right_equal_nearly_so_or_right_for_an_equal_question():
    data = asked_and_answered()
    assert nearly_right(data) == {("q1", "b"), ("q4", "b"), ("q2", "a"), ("q2", "a2")}
    for run in (None, bm25(data)):
        wrong = contradicting(data, 5, run)
        found = {q: {d.removesuffix("2") for d in docs} for q, docs in wrong.items()}   # a or a2: one of the equal ones
        assert found == {"q1": {"c"}, "q4": {"c"}, "q2": {"c", "d"}, "q3": {"a", "b", "d"}} and all(map(len, wrong.values()))


def test_half_of_the_wrong_answers_look_right():
    data = load("handbook")["train"]
    run, wrong = bm25(data), contradicting(data, 4, bm25(data))
    assert all(len(docs) == 4 and not {*docs} & {*data.positives(q)} for q, docs in wrong.items())
    assert np.mean([len({*docs} & {*run[q]}) for q, docs in wrong.items()]) >= 2
    assert contradicting(data, 4, run, seed=1) != wrong == contradicting(data, 4, run)
    one, other = (contradicting(data, 1, run, seed) for seed in (0, 1))
    looks_right = {q for q, [d] in one.items() if d in [*run[q]][:30]}
    assert .3 * len(one) < len(looks_right) < .7 * len(one)                    # also of a single wrong answer for each
    assert sum(one[q] != other[q] for q in looks_right) > .5 * len(looks_right)


def test_a_wrong_answer_is_right_elsewhere_as_long_as_there_are_any():
    data = load("handbook")["train"]
    right = {d for q in data.queries for d in data.positives(q)}
    for run in (None, bm25(data)):
        assert {d for docs in contradicting(data, 2, run).values() for d in docs} <= right < {*data.corpus}
    few = Dataset({"a": "x", "b": "y", "c": "z"}, {"q": "w"}, {"q": {"a": 1}}, "few")
    assert {*contradicting(few, 2, bm25(few))["q"]} == {"b", "c"}   # nothing else is right


def test_questions_without_answers_are_told():
    with pytest.raises(DataError, match="faq: no question has an answer"): contradicting(Dataset({"a": "x"}, {"q": "y"}, {}, "faq"))


# how they are judged

class Oracle:
    "Says what it is told of each text."
    def __init__(self, said): self.said = said
    def predict(self, inputs): return np.array([self.said[d] for _, d in inputs])


def test_squared_errors_are_those_of_probabilities():
    data = asked_and_answered()
    said = {t: {"a": 0., "c": 4., "d": -4.}.get(d, 9.) for d, t in data.corpus.items()}
    pairs = right_and_wrong(data, {"q1": ["c"], "q3": ["d"]})
    assert pairs == [("q1", "a", 1), ("q1", "c", 0), ("q3", "c", 1), ("q3", "d", 0)]
    logits = pair_scores(Oracle(said), data, pairs)
    assert list(logits) == [0, 4, 4, -4] and list(pair_scores(Oracle(said), data, [])) == []
    p = 1 / (1 + np.exp(-4))
    assert squared_errors(pairs, 1 / (1 + np.exp(-logits))) == pytest.approx({"q1": (.25 + p ** 2) / 2, "q3": (1 - p) ** 2})
    assert squared_errors([], []) == {}


# near misses

def numbers():
    corpus = {"cap": "In Oslo a room may cost EUR 175.50 a night, 1,200 a week. In March 2024 it was less; in Bergen as well.",
              "other": "Near the harbour of Tromso the limit is EUR 90."}
    queries = {"n": "what may a room cost, is 175.50 too much", "d": "rooms in March", "y": "the cap of 2024", "p": "a room in oslo",
               "none": "what about rooms"}
    return Dataset(corpus, queries, {q: {"cap": 1} for q in queries}, name="caps")


def test_an_edit_changes_the_number_date_or_name_that_was_asked_for_and_nothing_else():
    data = numbers()
    more, wrong = near_misses(data)
    assert {*wrong} == {"n", "d", "y", "p"} and more.queries == data.queries and more.qrels == data.qrels
    kinds = {q: more.document_meta[docs[0]]["edited"] for q, docs in wrong.items()}
    assert kinds == {"n": "number", "d": "date", "y": "date", "p": "name"}
    original = data.corpus["cap"].split()
    for q, asked in (("n", "175.50"), ("d", "March"), ("y", "2024"), ("p", "Oslo")):
        edited = more.corpus[wrong[q][0]].split()
        changed = [(a, b) for a, b in zip(original, edited, strict=True) if a != b]
        assert [a.strip(";.,") for a, _ in changed] == [asked] and more.document_meta[wrong[q][0]]["of"] == "cap"
    assert re.search(r"EUR \d{3}\.\d\d a night", more.corpus[wrong["n"][0]])
    assert more.corpus[wrong["p"][0]].split()[1] in ("Bergen", "Tromso")


def test_may_and_march_are_months_where_they_are_meant_as_months():
    text = "You may cancel in May. The parade will march on 3 March; March 2024 was wet. May I go?"
    asked = {"verb": "may I cancel my order", "walk": "who will march", "month": "what is due in May", "other": "rules of March 2024"}
    more, wrong = near_misses(Dataset({"d": text}, asked, {q: {"d": 1} for q in asked}, name="months"), 5)
    assert {*wrong} == {"month", "other"} and all("may cancel" in more.corpus[d] and "will march" in more.corpus[d]
                                                  for docs in wrong.values() for d in docs)


def test_an_edit_never_says_what_another_right_answer_says():
    texts = {"a": "The cap is due in March.", "b": "What is due in May are caps and rooms.", "c": "rooms"}
    data = Dataset(texts, {"q": "caps in March", "r": "due in March"}, {"q": {"a": 1, "b": 1}, "r": {"a": 1}}, name="caps")
    made = [near_misses(data, seed=seed) for seed in range(60)]
    assert not any("May" in more.corpus[d] for more, wrong in made for d in wrong.get("q", ()))
    assert any("May" in more.corpus[d] for more, wrong in made for d in wrong.get("r", ()))   # to which b is no answer


def test_an_edit_never_makes_a_text_that_is_there_already():
    data = numbers()
    twin = data.corpus["cap"].replace("Oslo", "Tromso")
    for seed in range(20):
        more, wrong = near_misses(Dataset({**data.corpus, "twin": twin}, {"p": "a room in oslo"}, {"p": {"cap": 1}}, "caps"), seed=seed)
        texts = [text_key(t) for t in more.corpus.values()]
        assert len({*texts}) == len(texts)


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_can_be_looked_through(query, text):
    if query.strip() and text.strip():
        data = Dataset({"d": text, "e": "In Oslo it is 5."}, {"q": query}, {"q": {"d": 1}})
        more, wrong = near_misses(data)
        assert all(more.corpus[d] != text for docs in wrong.values() for d in docs)


def test_on_the_bundled_sets_an_edited_document_is_found_where_it_was_edited():
    data = load("tables")["train"]
    more, wrong = near_misses(data, 2)
    assert len(wrong) > 40 and all(d not in data.corpus and d in more.corpus for docs in wrong.values() for d in docs)


# the same in other words

def test_paraphrases_have_the_answers_of_their_query_and_repeat_nothing():
    data = load("handbook")["train"]
    more = paraphrases(data)
    new = more.queries.keys() - data.queries.keys()
    assert len(new) > 200 and all(more.qrels[q] == data.qrels[more.meta[q]["paraphrase of"]] for q in new)
    keys = [text_key(t) for q, t in more.queries.items() if q in new]
    assert len({*keys} | {*map(text_key, data.queries.values())}) == len({*keys}) + len({*map(text_key, data.queries.values())})
    with pytest.raises(DataError, match="no way 'loud'; there are keywords"): paraphrases(data, ["loud"])


def test_a_language_models_paraphrases_keep_numbers_and_dates_and_are_paid_for_once(tmp_path):
    data = Dataset({"d": "EUR 30"}, {"q1": "what is EUR 30 for in March", "q2": "who pays"}, {"q1": {"d": 1}, "q2": {"d": 1}}, "caps")
    def answer(prompt, schema):
        with_numbers = ["30 EUR in March, what for", "what is it for", "30 euros in May"]
        return {"texts": with_numbers if "EUR" in prompt else ["whose money is it", "who pays"]}
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with FakeLLM(answer, lambda prompt, nth: "429" if nth == 0 else None) as server:
        for _ in range(2): more, failed = paraphrased_by_llm(ledger, data, sender("tiny", server.url, 10., "none"), "tiny")
        assert sum(server.answered.values()) == 2 and failed == {}
    assert {t for q, t in more.queries.items() if q not in data.queries} == {"30 EUR in March, what for", "whose money is it"}
