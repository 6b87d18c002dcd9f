"What a user relies on in the cheap rungs: they learn from what they are given, and fall back to what they stand on."
import numpy as np
import pytest

from rag_finetune.core import Dataset, ranking, top_run
from rag_finetune.ladder import adapter, frozen_lr, neighbours, seen_share, tfidf_lr
from rag_finetune.metrics import accuracy


class Noisy:
    "Documents on the axes; a query near another axis than its document's, with noise; texts are 'document number'."
    def __init__(self, dimension=8): self.dimension = dimension

    def encode_document(self, inputs): return np.eye(self.dimension, dtype=np.float32)[[int(t) for t in inputs]]

    def encode_query(self, inputs):
        found = []
        for text in inputs:
            doc, number = map(int, text.split())
            noise = np.random.default_rng(number).normal(size=self.dimension) * .12
            found.append(np.eye(self.dimension)[(doc + 1) % self.dimension] + noise)
        return np.asarray(found, dtype=np.float32)


def made(numbers, docs=range(8)):
    queries = {f"q{d}-{n}": f"{d} {n}" for d in docs for n in numbers}
    return Dataset({str(d): str(d) for d in range(8)}, queries, {q: {t.split()[0]: 1} for q, t in queries.items()})


def mean_accuracy(data, run): return np.mean(list(accuracy(data.qrels, run, 1).values()))


@pytest.fixture(scope="module")
def train(): return made(range(10))


@pytest.fixture(scope="module")
def test(): return made(range(100, 105))


def base_run(data, encoder=None):
    encoder = encoder or Noisy()
    queries = encoder.encode_query(list(data.queries.values()))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return top_run(list(data.queries), list(data.corpus), queries @ encoder.encode_document(list(data.corpus.values())).T)


def test_rungs_learn_what_the_frozen_model_gets_wrong(train, test):
    assert mean_accuracy(test, base_run(test)) < .1
    for run in (frozen_lr(train, Noisy(), test.queries), adapter(train, Noisy(), test.queries, 0., epochs=300),
                neighbours(train, Noisy(), test.queries, 30., nearest=5)):
        assert mean_accuracy(test, run) > .8


def test_without_freedom_a_rung_is_the_base_model(train, test):
    base = base_run(test)
    for run in (neighbours(train, Noisy(), test.queries, 0.), adapter(train, Noisy(), test.queries, epochs=0)):
        assert all(ranking(run[q]) == ranking(base[q]) for q in base)


def test_a_strong_pull_keeps_the_adapter_near_the_identity(train, test):
    run, base = adapter(train, Noisy(), test.queries, decay=1e4, epochs=50), base_run(test)
    assert np.mean([ranking(run[q], 1) == ranking(base[q], 1) for q in base]) > .9


def test_a_document_without_training_queries_can_still_be_found(test):
    train = made(range(10), docs=range(6))
    for run in (frozen_lr(train, Noisy(), test.queries), tfidf_lr(train, test.queries)):
        assert all(set(found) == set(test.corpus) for found in run.values())


def test_documents_told_apart_are_answers_or_all(test):
    train = made(range(10), docs=range(3))
    runs = [adapter(train, Noisy(), test.queries, 0., against, epochs=100) for against in ("answers", "all")]
    cosine = [np.mean([r[q]["3"] for q in r if q.startswith("q2")]) for r in runs]   # queries about 2 lie near 3, which no query needs
    assert cosine[1] < cosine[0]   # told apart from all: pushed away from documents that no training query needs


def test_words_decide_for_tfidf():
    train = Dataset({"taxi": "Rides", "food": "Meals"}, {"1": "uber trip home", "2": "night trip", "3": "pizza lunch", "4": "pizza"},
                    {"1": {"taxi": 1}, "2": {"taxi": 1}, "3": {"food": 1}, "4": {"food": 1}})
    run = tfidf_lr(train, {"x": "trip to oslo", "y": "two pizzas"})
    assert [ranking(r, 1) for r in run.values()] == [["taxi"], ["food"]]


def test_one_document_leaves_nothing_to_tell_apart():
    data = Dataset({"only": "text"}, {"1": "query"}, {"1": {"only": 1}})
    assert tfidf_lr(data, {"x": "anything"}) == {"x": {"only": 0.}}


def test_share_of_test_queries_that_a_classifier_could_answer():
    assert seen_share({"a": {"d1": 1, "d2": 0}}, {"x": {"d1": 1}, "y": {"d2": 1}, "z": {"d1": 0}}) == .5
    assert seen_share({}, {}) == 0
