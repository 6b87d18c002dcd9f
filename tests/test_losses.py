"What a user relies on when choosing a loss: it gets the rows it wants or says so, it learns, and several tasks do not disturb each other."
import math
import warnings
import weakref
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.sampler import GroupByLabelBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    BatchAllTripletLoss, BatchHardTripletLoss, BatchSemiHardTripletLoss, CachedMultipleNegativesRankingLoss, CoSENTLoss,
    MatryoshkaLoss, MultipleNegativesRankingLoss, OnlineContrastiveLoss,
)
from tiny import THINGS, tiny_data, tiny_model

from rag_finetune.core import DataError, Dataset
from rag_finetune.data import split
from rag_finetune.embedding import Rows, batches, dev_score, fine_tune, fit, pair_rows
from rag_finetune.losses import (
    LOSSES, SHAPES, ByCategory, category_rows, graded_rows, judged_rows, labelled_rows, mix_tasks, proportions, rows_and_loss, shape,
    text_rows, triplet_rows,
)
from rag_finetune.models import FastEncoder, open_encoder

WANT_NEGATIVES = ("TripletLoss", "ContrastiveLoss", "OnlineContrastiveLoss", "CoSENTLoss", "AnglELoss")
BY_CATEGORY = [name for name, takes in LOSSES.items() if takes == ("labelled texts",)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture()
def model(folder): return open_encoder(folder, device="cpu")


@pytest.fixture(scope="module")
def splits(): return split(tiny_data(per_thing=24), {"train": .7, "dev": .3}, 0)


@pytest.fixture(scope="module")
def negatives(splits):
    "Another thing for each query."
    train = splits["train"]
    return {q: [t for t in THINGS if t not in train.positives(q)][i % 6:i % 6 + 1] for i, q in enumerate(train.queries)}


@pytest.fixture(scope="module")
def warm(folder, splits, tmp_path_factory):
    "The tiny model after two epochs: no longer random, and far from good."
    model, kept = open_encoder(folder, device="cpu"), tmp_path_factory.mktemp("warm") / "model"
    rows, loss = rows_and_loss("MultipleNegativesRankingLoss", model, splits["train"])
    fit(model, rows, loss, epochs=2, lr=1e-3, batch_size=16)
    model.save_pretrained(str(kept))
    return kept


# every loss learns, from rows that were made for it

HOW = {"TripletLoss": (8, 3e-3, 4), "AnglELoss": (16, 3e-3, 6)} | dict.fromkeys(BY_CATEGORY, (4, 2e-3, 3))  # rows in a batch, rate, epochs


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns_what_answers_what(name, warm, splits, negatives):
    model, (batch_size, lr, epochs) = open_encoder(warm, device="cpu"), HOW.get(name, (16, 3e-3, 4))
    rows, loss = rows_and_loss(name, model, splits["train"], negatives if name in WANT_NEGATIVES else None)
    def score(): return dev_score(FastEncoder(model), splits["dev"])
    curve = fit(model, rows, loss, score, epochs=epochs, patience=9, lr=lr, batch_size=batch_size)
    assert curve.points[-1].dev > curve.points[0].dev + .05
    assert curve.points[-1].loss < .8 * curve.points[1].loss


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "RememberedAnswers"])
def test_with_nested_lengths_a_loss_is_the_sum_over_the_lengths(name, model, splits, negatives):
    class Cut(torch.nn.Module):
        preprocess, prompts = model.preprocess, model.prompts
        def forward(self, features): return {"sentence_embedding": torch.nn.functional.normalize(
            model(features)["sentence_embedding"][:, :8], dim=1)}
    data = (splits["train"], negatives if name in WANT_NEGATIVES else None)
    rows, nested = rows_and_loss(name, model, *data, dims=[8])
    assert isinstance(nested, MatryoshkaLoss) and nested.matryoshka_dims == (32, 8)   # the whole length is always trained
    (_, whole), (_, cut) = rows_and_loss(name, model, *data), rows_and_loss(name, model, *data)
    cut.model = Cut()
    model.eval()
    def value(loss):
        some = range(0, len(rows.docs), 9)
        features = [model.preprocess([texts[i] for i in some]) for texts in rows.columns.values()]
        return loss(features, None if rows.labels is None else torch.tensor([rows.labels[i] for i in some]))
    assert value(nested).item() == pytest.approx(value(whole).item() + value(cut).item(), rel=1e-4)


def test_with_nested_lengths_short_vectors_learn(warm, splits):
    def score():
        model.truncate_dim = 4
        try: return dev_score(FastEncoder(model), splits["dev"])
        finally: model.truncate_dim = None
    found = {}
    for dims in ((), (4, 8)):
        model = open_encoder(warm, device="cpu")
        rows, loss = rows_and_loss("MultipleNegativesRankingLoss", model, splits["train"], dims=dims)
        found[dims] = fit(model, rows, loss, score, epochs=3, patience=9, lr=3e-3, batch_size=16).points[-1].dev
    assert found[4, 8] > found[()] + .05


def test_fine_tune_takes_a_loss_by_name(model, splits):
    name = partial(rows_and_loss, "BatchAllTripletLoss", dims=[16])
    curve = fine_tune(model, splits["train"], splits["dev"], name, epochs=3, lr=3e-3)
    assert curve.points[curve.best].dev > curve.points[0].dev


# shapes

GRADED = Dataset({"a": "red car", "b": "green house", "c": "the dog"}, {"1": "my car", "2": "my house"},
                 {"1": {"a": 2, "b": 1, "c": 0}, "2": {"b": 2}}, name="graded")


def test_grades_become_scores_and_mined_negatives_count_nothing_unless_judged():
    rows = graded_rows(GRADED, {"1": ["b"], "2": ["c"]})
    assert sorted(zip(rows.columns["anchor"], rows.columns["positive"], rows.labels)) == [
        ("my car", "green house", .5), ("my car", "red car", 1.), ("my car", "the dog", 0.), ("my house", "green house", 1.),
        ("my house", "the dog", 0.)]
    assert sorted(judged_rows(GRADED, {"1": ["b"], "2": ["c"]}).labels) == [0., 0., 1., 1., 1.]


def test_triplets_are_every_right_with_every_wrong_text():
    rows = triplet_rows(GRADED, {"1": ["c"], "2": ["a", "c"]})
    assert list(zip(*rows.columns.values())) == [
        ("my car", "red car", "the dog"), ("my car", "green house", "the dog"), ("my house", "green house", "red car"),
        ("my house", "green house", "the dog")]
    assert rows.docs[0] == {"a", "c"} and rows.answers[0] == {"a", "b"}


@pytest.mark.parametrize(("make", "negatives", "said"), [
    (triplet_rows, {"1": ["b"]}, "document 'b' answers query '1' and cannot be its negative; mine again"),
    (triplet_rows, {"1": ["x"]}, "negatives of query '1' name document 'x', which is not in the corpus; mine again"),
    (graded_rows, {"2": ["x"]}, "negatives of query '2' name document 'x', which is not in the corpus; mine again"),
])
def test_a_negative_that_is_right_or_unknown_is_refused(make, negatives, said):
    with pytest.raises(DataError, match=said): make(GRADED, negatives)


def test_a_mined_document_that_answers_an_equal_question_counts_nothing():
    data = Dataset({"a": "A", "twin": "a ", "b": "B", "c": "C"}, {"1": "one", "2": "One", "3": "three"},
                   {"1": {"a": 1}, "2": {"b": 1}, "3": {"c": 1}})
    rows = graded_rows(data, {"1": ["twin", "b", "c"]})
    assert sorted(zip(rows.columns["anchor"], rows.columns["positive"], rows.labels)) == [
        ("One", "B", 1.), ("one", "A", 1.), ("one", "C", 0.), ("three", "C", 1.)]


def test_a_rows_own_negative_may_not_be_one_of_its_right_texts():
    columns = {"anchor": ["x", "where is my card", "Where is my card"], "positive": ["y", "a", "b"], "negative_1": ["z", "c", "A "]}
    with pytest.raises(DataError, match="row 2: 'A ' is wrong here and right elsewhere for 'Where is my card'; take it out of one"):
        text_rows(columns)


def test_an_unjudged_query_has_the_category_of_an_equal_one():
    data = Dataset({"a": "Meals", "b": "Hotels"}, {"1": "lunch", "2": "Lunch", "3": "LUNCH", "4": "a bed", "5": "nobody knows"},
                   {"1": {"a": 1}, "2": {"a": 0}, "4": {"b": 1}})
    rows = labelled_rows(data)
    assert list(zip(*rows.columns.values(), rows.labels)) == [
        ("lunch", "Meals", 0), ("Lunch", "Meals", 0), ("LUNCH", "Meals", 0), ("a bed", "Hotels", 1)]


def test_equal_texts_are_one_category():
    data = Dataset({"a": "Meals", "b": "MEALS ", "c": "Hotels"}, {"1": "lunch", "2": "dinner", "3": "a bed"},
                   {"1": {"a": 1}, "2": {"b": 1}, "3": {"c": 1}})
    rows = labelled_rows(data)
    assert rows.labels == [0, 0, 1] and rows.columns["positive"][2] == "Hotels"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(0, 9))
def test_a_text_stands_beside_another_of_its_category(categories, seed):
    counts = Counter(categories)
    texts, names = [f"text {i}" for i in range(len(categories))], [f"c{c}" for c in categories]
    if min(counts.values()) == 1:
        with pytest.raises(DataError, match="has one text only"): category_rows(texts, names, seed)
        return
    rows = category_rows(texts, names, seed)
    of = dict(zip(texts, names))
    assert rows.columns["anchor"] == texts
    assert all(a != b and of[a] == of[b] for a, b in zip(rows.columns["anchor"], rows.columns["positive"]))
    assert sorted(rows.columns["positive"]) == sorted(texts)          # everybody is somebody's partner once


def test_a_text_does_not_stand_beside_its_own_twin():
    for seed in range(6):
        rows = category_rows(["cab", "Cab", "taxi", "CAB ", "bed", "room"], ["ride"] * 4 + ["night"] * 2, seed)
        assert rows.columns["positive"] == ["taxi", "taxi", "cab", "taxi", "room", "bed"]


@pytest.mark.parametrize(("texts", "categories", "said"), [
    (["cab", "taxi"], ["ride"], "2 texts and 1 categories; give each text its category"),
    ([], [], "0 texts and 0 categories"),
    (["cab", "taxi", "bed", "Taxi"], ["ride", "ride", "night", "night"], "'Taxi' is of category 'ride' and of 'night'; a text has one"),
    (["cab", "Cab", "bed", "room"], ["ride", "ride", "night", "night"], "category 'ride' has one text only"),
])
def test_texts_without_one_category_each_are_refused(texts, categories, said):
    with pytest.raises(DataError, match=said): category_rows(texts, categories)


def test_numbers_of_any_kind_are_labels_and_nothing_else_is():
    two = {"anchor": ["a", "b", "e"], "positive": ["c", "d", "f"]}
    assert shape(text_rows(two, [0, .5, 1])) == "graded pairs"
    assert shape(text_rows(two, np.array([0, 1, 1], dtype=np.float32))) == "labelled pairs"
    assert shape(text_rows(two, np.array([0, 1, 7], dtype=np.int8))) == "labelled texts"
    assert all(type(x) is int for x in text_rows(two, np.array([0, 1, 7])).labels)
    for labels in ([True, False, True], ["0", "1", "1"], [None, 1., 0.], [1., math.nan, 0.], [1., math.inf, 0.], [[1.], [0.], [1.]]):
        with pytest.raises(DataError, match="labels .*; expected decimals .* or whole numbers"): text_rows(two, labels)


def test_columns_and_labels_tell_the_shape():
    two, three = {"anchor": ["a", "b"], "positive": ["c", "d"]}, {"anchor": ["a"], "positive": ["b"], "negative_1": ["c"]}
    assert shape(text_rows(two)) == "pairs"
    assert shape(text_rows({"anchor": ["a", "A "], "positive": ["c", "d"]})) == "several positives"
    assert shape(text_rows(three)) == "triplets"
    assert shape(text_rows({**three, "negative_2": ["d"]})) == "several negatives"
    assert shape(text_rows(two, [1., 0.])) == "labelled pairs"
    assert shape(text_rows(two, [.3, 4.])) == "graded pairs"
    assert shape(text_rows(two, [7, 8])) == "labelled texts"
    assert {s for takes in LOSSES.values() for s in takes} == SHAPES.keys()
    mixed = mix_tasks({"x": text_rows(two), "y": text_rows(two)}, {"x": 1, "y": 1})   # one task is not another's answer
    assert shape(mixed) == "pairs"
    assert shape(mix_tasks({"x": text_rows({"anchor": ["a", "A "], "positive": ["c", "d"]}), "y": text_rows(two)}, {"x": 1, "y": 1})) == \
        "several positives"


@pytest.mark.parametrize(("columns", "labels"), [
    ({"query": ["a"], "positive": ["b"]}, None), ({"anchor": ["a"], "positive": ["b", "c"]}, None), ({"anchor": [], "positive": []}, None),
    ({"anchor": ["a"], "positive": ["b"]}, [1., 0.]), ({"anchor": ["a"], "positive": ["b"], "negative_2": ["c"]}, None),
    ({"anchor": ["a"], "positive": ["b"], "negative_1": ["c"]}, [1.]),
])
def test_columns_that_are_none_are_refused(columns, labels):
    with pytest.raises(DataError, match="expected \"anchor\""): text_rows(columns, labels)


def made(kind):
    "Rows of each shape."
    two = {"anchor": ["where is my car", "show me the dog"], "positive": ["red car", "the dog"]}
    return {"pairs": lambda: text_rows(two),
            "several positives": lambda: text_rows({"anchor": ["car", "car"], "positive": ["red", "green"]}),
            "triplets": lambda: text_rows({**two, "negative_1": ["cup", "cup"]}),
            "several negatives": lambda: text_rows({**two, "negative_1": ["cup", "cup"], "negative_2": ["tree", "tree"]}),
            "labelled texts": lambda: text_rows(two, [0, 1]), "labelled pairs": lambda: text_rows(two, [0., 1.]),
            "graded pairs": lambda: text_rows(two, [.2, .9])}[kind]()


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("AllAnswers", "RememberedAnswers")])
def test_a_loss_takes_its_shapes_and_refuses_all_others_in_words(name, model):
    for kind in SHAPES:
        if kind in LOSSES[name]:
            rows, loss = rows_and_loss(name, model, made(kind))
            features = [model.preprocess(texts) for texts in rows.columns.values()]
            assert math.isfinite(loss(features, None if rows.labels is None else torch.tensor(rows.labels)).item())
        else:
            with pytest.raises(DataError) as error: rows_and_loss(name, model, made(kind))
            said = str(error.value)
            assert said.startswith(f"{name} wants {LOSSES[name][0]} (") and f"you gave {kind} (" in said and "make them with " in said
            assert kind in LOSSES[said.rsplit("or take ")[1]]


@pytest.mark.parametrize(("name", "data", "mined", "said"), [
    ("BatchEasyLoss", GRADED, None, "expected one of MultipleNegativesRankingLoss"),
    ("TripletLoss", GRADED, None, "graded: no query has a relevant document and a negative; mine some"),
    ("ContrastiveLoss", Dataset({"a": "A"}, {"1": "one"}, {"1": {"a": 1}}), None, "all 1 rows have the label 1.0"),
    ("CoSENTLoss", Dataset({"a": "A"}, {"1": "one"}, {"1": {"a": 0}}, name="x"), None, "x: no training query has a relevant document"),
    ("BatchAllTripletLoss", GRADED, None, "graded: query '1' has 2 relevant documents and a text has one category"),
    ("BatchHardTripletLoss", Dataset({"a": "A"}, {"1": "one", "2": "two"}, {"1": {"a": 1}, "2": {"a": 1}}), None,
     "all 2 rows have the label 0"),
    ("BatchHardTripletLoss", GRADED, {"1": ["c"]}, "takes no mined negatives"),
    ("AllAnswers", GRADED, {"1": ["c"]}, "takes no mined negatives"),
    ("AllAnswers", made("pairs"), None, "AllAnswers wants a Dataset"),
    ("TripletLoss", made("triplets"), {"1": ["c"]}, "rows have their negatives in columns"),
])
def test_what_does_not_fit_is_an_error_that_says_what_does(name, data, mined, said, model):
    with pytest.raises(DataError) as error: rows_and_loss(name, model, data, mined)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["TripletLoss", "BatchAllTripletLoss", "BatchHardTripletLoss", "BatchSemiHardTripletLoss"])
def test_a_margin_is_what_equal_vectors_cost(name, model):
    kind, same = LOSSES[name][0], torch.ones(2, 32) / 32 ** .5
    def cost(**margin):
        _, loss = rows_and_loss(name, model, made(kind), **margin)
        if name == "TripletLoss": return loss.compute_loss_from_embeddings([same] * 3, None).item()
        return loss.loss.compute_loss_from_embeddings([torch.cat([same, same])], torch.tensor([0, 0, 1, 1])).item()
    assert [cost(), cost(margin=.5), cost(margin=.1)] == pytest.approx([.3, .5, .1], abs=1e-5)


def test_a_margin_for_a_loss_without_one_is_refused(model):
    with pytest.raises(DataError, match="CoSENTLoss has no margin; give one to TripletLoss, BatchAll.*, or leave it out"):
        rows_and_loss("CoSENTLoss", model, made("graded pairs"), margin=.5)


def test_longer_vectors_than_the_models_are_refused(model, splits):
    with pytest.raises(DataError, match="dims 64: the model's vectors have 32 numbers; ask for 1 to 32"):
        rows_and_loss("MultipleNegativesRankingLoss", model, splits["train"], dims=[64, 8])
    with pytest.raises(DataError, match="keeps vectors of one length"): rows_and_loss("RememberedAnswers", model, splits["train"], dims=[8])


# several positives of one query are not each other's negatives

def test_a_querys_several_answers_do_not_change_the_librarys_loss_for_each_other(model):
    data = Dataset({t: f"the {t}" for t in THINGS}, {str(i): f"show me the {t}" for i, t in enumerate(THINGS[:6])},
                   {str(i): dict.fromkeys([t, THINGS[(i + 1) % 6]], 1) for i, t in enumerate(THINGS[:6])})
    rows, loss = rows_and_loss("MultipleNegativesRankingLoss", model, data)
    model.eval()
    for seed in range(3):
        for batch in batches(rows, 8, seed):
            features = [model.preprocess([texts[i] for i in batch]) for texts in rows.columns.values()]
            queries, docs = (model(f)["sentence_embedding"] for f in features)
            scores = 20 * queries @ docs.T
            other_answers = torch.tensor([[i != j and bool(rows.docs[j] & rows.answers[i]) for j in batch] for i in batch])
            without = -torch.log_softmax(scores.masked_fill(other_answers, -torch.inf), dim=1).diag().mean()   # what it should be
            features = [model.preprocess([texts[i] for i in batch]) for texts in rows.columns.values()]
            assert loss(features, None).item() == pytest.approx(without.item(), abs=1e-5)
            assert len({rows.columns["anchor"][i] for i in batch}) == len(batch)


# large batches in small memory

class Saved:
    "Bytes that autograd keeps for the way back: now, and at most."
    def __init__(self): self.now = self.most = 0
    def pack(self, tensor):
        held, size = [tensor], tensor.element_size() * tensor.nelement()
        class Held(list): pass
        held = Held(held)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(held, self.free, size)
        return held
    def free(self, size): self.now -= size
    def unpack(self, held): return held[0]


def stepped(model, loss, rows, training=False):
    "The gradients of one step, and the most bytes that were kept for it."
    features, saved = [model.preprocess(texts) for texts in rows.columns.values()], Saved()
    model.zero_grad()
    model.train(training)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack): loss(features, None).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), saved.most


def test_the_cached_loss_has_the_gradients_of_the_plain_one_in_the_memory_of_a_small_batch(model, splits):
    def first(n):
        rows = pair_rows(splits["train"])
        return rows._replace(columns={c: texts[:n] for c, texts in rows.columns.items()})
    plain, most = stepped(model, MultipleNegativesRankingLoss(model), first(128))
    cached, least = stepped(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=16), first(128))
    assert plain.abs().max() > 1e-2
    assert torch.allclose(plain, cached, atol=1e-5)
    assert least < most / 5
    _, of_64 = stepped(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=16), first(64))
    assert least < 1.2 * of_64            # twice the batch, the same memory


def test_nested_lengths_go_with_the_cached_loss(model, splits):
    rows = pair_rows(splits["train"])
    rows = rows._replace(columns={c: texts[:48] for c, texts in rows.columns.items()})
    plain, _ = stepped(model, rows_and_loss("MultipleNegativesRankingLoss", model, rows, dims=[8])[1], rows)
    cached, _ = stepped(model, rows_and_loss("CachedMultipleNegativesRankingLoss", model, rows, dims=[8])[1], rows)
    assert torch.allclose(plain, cached, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_cached_loss_goes_with_gradient_checkpointing(model, splits):
    "It did not in earlier versions of sentence-transformers."
    rows = pair_rows(splits["train"])
    rows = rows._replace(columns={c: texts[:48] for c, texts in rows.columns.items()})
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=16)
    plain, most = stepped(model, loss, rows, training=True)
    model.gradient_checkpointing_enable()
    again, least = stepped(model, loss, rows, training=True)
    assert torch.allclose(plain, again, atol=1e-5) and least < most


# losses by category

def test_every_text_has_another_of_its_category_in_its_batch_and_none_is_dropped(splits, model):
    rows, loss = rows_and_loss("BatchAllTripletLoss", model, splits["train"])
    seen = []
    def looked(vectors, labels):   # what the library's loss is given
        seen.append(labels.tolist())
        return vectors[0].sum()
    loss.loss.compute_loss_from_embeddings = looked
    for batch in batches(rows, 16, 0):
        features = [model.preprocess([texts[i] for i in batch]) for texts in rows.columns.values()]
        loss(features, torch.tensor([rows.labels[i] for i in batch]))
    assert all(n > 1 for labels in seen for n in Counter(labels).values())
    assert Counter(x for labels in seen for x in labels) == Counter(rows.labels * 2) and len(rows.labels) == len(splits["train"].queries)


def test_categories_with_one_text_are_kept_where_the_category_has_a_text_of_its_own():
    labels = [0] * 9 + [1]                                     # a category with one text
    class Table:
        column_names = ["label"]
        def __len__(self): return len(labels)
        def __getitem__(self, name): return labels
    with pytest.raises(ValueError, match="only 1 label"): GroupByLabelBatchSampler(Table(), 4, False, ["label"])
    with pytest.raises(DataError, match="category '1' has one text only"): category_rows([*"0123456789"], list(map(str, labels)))
    alone = Dataset({"a": "A", "b": "B"}, {str(i): f"q {i}" for i in range(10)}, {str(i): {"ab"[n]: 1} for i, n in enumerate(labels)})
    assert labelled_rows(alone).labels == labels               # its category's text is beside it


@pytest.mark.parametrize("name", BY_CATEGORY)
def test_a_batch_of_one_category_teaches_nothing(name, model):
    rows, loss = rows_and_loss(name, model, text_rows({"anchor": ["my car", "the car"], "positive": ["red car"] * 2}, [3, 4]))
    features = [model.preprocess(texts) for texts in rows.columns.values()]
    model.zero_grad()
    value = loss(features, torch.tensor([3, 3]))
    value.backward()
    assert value.item() == 0. and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_without_that_the_semi_hard_loss_pulls_a_single_category_together(model):
    features = model.preprocess(["my car", "the dog", "red tree"])
    loss = BatchSemiHardTripletLoss(model)
    loss([features], torch.tensor([3, 3, 3])).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_on_unit_vectors_the_librarys_default_margin_never_stops(model):
    far = torch.tensor([[1., 0.], [1., 0.], [-1., 0.], [-1., 0.]])   # right by as much as unit vectors can be
    assert BatchHardTripletLoss(model).compute_loss_from_embeddings([far], torch.tensor([0, 0, 1, 1])).item() == pytest.approx(3.)
    _, loss = rows_and_loss("BatchHardTripletLoss", model, made("labelled texts"))
    assert loss.loss.compute_loss_from_embeddings([far], torch.tensor([0, 0, 1, 1])).item() == 0.


def test_the_librarys_batch_all_loss_counts_every_triplet_that_is_not_yet_right(model):
    vectors = torch.nn.functional.normalize(torch.tensor([[1., 0.], [.8, .6], [.6, .8], [0., 1.]]), dim=1)
    labels, cosines = torch.tensor([0, 0, 1, 1]), vectors @ vectors.T
    missing = [max(0., .3 - cosines[a, p].item() + cosines[a, n].item()) for a in range(4) for p in range(4) for n in range(4)
               if a != p and labels[a] == labels[p] != labels[n]]
    _, loss = rows_and_loss("BatchAllTripletLoss", model, made("labelled texts"))
    assert isinstance(loss, ByCategory) and isinstance(loss.loss, BatchAllTripletLoss)
    expected = sum(missing) / sum(x > 0 for x in missing)
    assert loss.loss.compute_loss_from_embeddings([vectors], labels).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "nothing_left"), [("BatchHardTripletLoss", .3), ("BatchHardSoftMarginTripletLoss", math.log(2))])
def test_batch_hard_on_an_untrained_model_makes_all_texts_one(name, nothing_left, model, splits):
    rows, loss = rows_and_loss(name, model, splits["train"])
    def spread(): return model.encode(list(splits["dev"].queries.values())).std(axis=0).mean()
    before = spread()
    curve = fit(model, rows, loss, epochs=3, lr=3e-3, batch_size=16)
    assert curve.points[-1].loss == pytest.approx(nothing_left, abs=.003)     # the loss of equal vectors, and not 0
    assert spread() < before / 5


# losses by score

def test_online_contrastive_without_a_hard_pair_is_nothing_and_no_nan(model):
    near, far = torch.tensor([[1., 0.], [1., 0.]]), torch.tensor([[1., .01], [0., 1.]])
    value = OnlineContrastiveLoss(model).compute_loss_from_embeddings([near.requires_grad_(), far], torch.tensor([1., 0.]))
    value.backward()
    assert value.item() == 0. and not near.grad.any()


@pytest.mark.parametrize("name", ["CoSENTLoss", "AnglELoss", "OnlineContrastiveLoss", "ContrastiveLoss"])
def test_a_batch_in_which_all_scores_are_equal_gives_a_number_and_finite_gradients(name, model):
    rows, loss = rows_and_loss(name, model, made("labelled pairs"))
    features = [model.preprocess(texts) for texts in rows.columns.values()]
    value = loss(features, torch.tensor([1., 1.]))
    value.backward()
    assert math.isfinite(value.item()) and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_graded_pairs_are_ranked_as_their_scores(model):
    graded = [f"the {c} car" for c in ("red", "green", "blue", "black", "white", "brown")]
    rows = text_rows({"anchor": ["where is my car"] * 6, "positive": graded}, [.1, .2, .4, .6, .8, 1.])
    rows, loss = rows_and_loss("CoSENTLoss", model, rows)
    assert isinstance(loss, CoSENTLoss)
    fit(model, rows, loss, epochs=60, lr=3e-3, batch_size=6)
    query, docs = model.encode(["where is my car"]), model.encode(graded)
    assert (docs @ query[0]).argsort().tolist() == [0, 1, 2, 3, 4, 5]


def test_contrastive_would_take_scores_without_an_error_so_they_are_refused(model):
    _, loss = rows_and_loss("ContrastiveLoss", model, made("labelled pairs"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss([model.preprocess(["a", "the"]) for _ in range(2)], torch.tensor([.3, .9]))
    assert any("binary" in str(w.message) for w in said)
    with pytest.raises(DataError, match="wants labelled pairs"): rows_and_loss("ContrastiveLoss", model, made("graded pairs"))


# several tasks

def pairs(n, name): return text_rows({"anchor": [f"{name} asks {i}" for i in range(n)], "positive": [f"answer {i}" for i in range(n)]})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1., 2., math.inf]))
def test_a_batch_is_of_one_task_and_every_row_comes(sizes, batch_size, seed, temperature):
    tasks = {f"t{i}": pairs(n, f"t{i}") for i, n in enumerate(sizes)}
    shares = proportions({t: len(r.docs) for t, r in tasks.items()}, temperature)
    rows = mix_tasks(tasks, shares, seed)
    dealt = batches(rows, batch_size, seed)
    task = [a.split()[0] for a in rows.columns["anchor"]]
    assert sorted(i for b in dealt for i in b) == list(range(len(task)))
    assert all(len({task[i] for i in b}) == 1 for b in dealt)
    assert all(len({rows.columns["positive"][i] for i in b}) == len(b) for b in dealt)   # a row that comes twice is not its own negative
    assert set(rows.columns["anchor"]) == {a for r in tasks.values() for a in r.columns["anchor"]}
    for t, n in Counter(task).items(): assert n == pytest.approx(shares[t] * len(task), abs=len(tasks))


def test_proportions():
    sizes = {"a": 900, "b": 100}
    assert proportions(sizes) == {"a": .9, "b": .1}
    assert proportions(sizes, 2.) == {"a": .75, "b": .25}
    assert proportions(sizes, math.inf) == {"a": .5, "b": .5}
    with pytest.raises(DataError, match="temperature 0.5"): proportions(sizes, .5)


def test_given_shares_in_any_unit_and_answers_of_the_same_task_stay_apart():
    tasks = {"a": pairs(6, "a"), "b": pairs(2, "b")}
    assert Counter(x.split()[0] for x in mix_tasks(tasks, {"a": 3, "b": 2}).columns["anchor"]) == {"a": 6, "b": 4}
    assert Counter(x.split()[0] for x in mix_tasks(tasks, {"a": 3, "b": 2}, n_rows=20).columns["anchor"]) == {"a": 12, "b": 8}
    with pytest.raises(DataError, match="n_rows 9: with these shares every row comes once in 10; ask for 10 or more"):
        mix_tasks(tasks, {"a": 3, "b": 2}, n_rows=9)
    shared = text_rows({"anchor": ["x", "y"], "positive": ["same", "same"]})
    assert len(batches(mix_tasks({"only": shared}, {"only": 1}), 2, 0)) == 2


@pytest.mark.parametrize(("tasks", "shares", "said"), [
    ({"a": pairs(2, "a")}, {}, "task 'a': every task needs rows and a share above 0"), ({}, {"b": 1}, "task 'b'"),
    ({"a": pairs(2, "a")}, {"a": 0}, "task 'a'"), ({}, {}, "no tasks"),
    ({"a": pairs(2, "a"), "b": made("triplets")}, {"a": 1, "b": 1}, "differ in their columns"),
    ({"a": made("graded pairs")}, {"a": 1}, "or have labels"),
])
def test_tasks_that_do_not_mix_are_refused(tasks, shares, said):
    with pytest.raises(DataError, match=said): mix_tasks(tasks, shares)


def test_one_model_learns_two_tasks(model, splits):
    def of(things):
        "The queries about these things, with these as the corpus."
        return {s: Dataset({d: data.corpus[d] for d in things}, {q: t for q, t in data.queries.items() if data.positives(q)[0] in things},
                           {q: g for q, g in data.qrels.items() if data.positives(q)[0] in things}) for s, data in splits.items()}
    two = {"first": of(THINGS[:4]), "second": of(THINGS[4:])}
    rows = mix_tasks({t: pair_rows(s["train"]) for t, s in two.items()}, {"first": 1, "second": 1})
    def scores(): return {t: dev_score(FastEncoder(model), s["dev"]) for t, s in two.items()}
    before = scores()
    rows, loss = rows_and_loss("MultipleNegativesRankingLoss", model, rows)
    fit(model, rows, loss, epochs=4, lr=3e-3, batch_size=16)
    assert all(after > before[t] + .05 for t, after in scores().items())
    assert isinstance(rows, Rows)
