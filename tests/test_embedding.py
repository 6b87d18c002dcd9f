"What a user relies on when a model is fine-tuned: batches without false negatives, one seed one result, dev's epoch kept."
import itertools
import math

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny import tiny_data, tiny_model

from rag_finetune.core import DataError, Dataset
from rag_finetune.data import split
from rag_finetune.embedding import (
    RememberedAnswers, Rows, answers, batches, between, dev_score, few_documents, fine_tune, fit, frozen_below, objective, pair_rows,
)
from rag_finetune.models import FastEncoder, best_dtype, encode_documents, fingerprint, open_encoder

OBJECTIVES = ("all-answers", "remembered", "in-batch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def splits(): return split(tiny_data(per_thing=40), {"train": .7, "dev": .3}, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(0, 9), min_size=1, max_size=3)), min_size=1, max_size=40),
       st.integers(1, 7), st.integers(0, 99))
def test_no_row_brings_a_document_that_answers_another_rows_query(made, size, seed):
    found = [(frozenset(map(str, docs)), f"{query} {'x' * query}") for query, docs in made]
    rows = Rows({"anchor": [text for _, text in found]}, [frozenset([min(docs)]) for docs, _ in found], [docs for docs, _ in found])
    made_batches = batches(rows, size, seed)
    assert sorted(i for b in made_batches for i in b) == list(range(len(found)))
    for batch in made_batches:
        assert len(batch) <= size
        assert not any(rows.docs[i] & rows.answers[j] for i in batch for j in batch if i != j)


def test_batches_hold_rows_of_like_length():
    own = [frozenset([str(n)]) for n in range(400)]
    rows = Rows({"anchor": ["x" * n for n in range(1, 401)]}, own, own)
    padded = sum(len(b) * max(len(rows.columns["anchor"][i]) for i in b) for b in batches(rows, 32, 0))
    assert padded < 1.4 * sum(len(t) for t in rows.columns["anchor"])   # at random it would be about 1.9


def test_rows_have_every_positive_and_the_mined_negatives():
    data = Dataset({"a": "A", "b": "B", "c": "C"}, {"1": "one", "2": "two"}, {"1": {"a": 1, "b": 2, "c": 0}, "2": {"c": 1}})
    rows = pair_rows(data, {"1": ["c"], "2": ["a", "b"]})
    assert rows.columns["anchor"] == ["one", "one", "two"] and rows.columns["positive"] == ["A", "B", "C"]
    assert rows.columns["negative_1"] == ["C", "C", "A"] and rows.columns["negative_2"] == ["C", "C", "B"]
    assert rows.docs[0] == {"a", "c"} and rows.answers[0] == {"a", "b"}


@pytest.mark.parametrize(("mined", "said"), [
    ({"1": ["a"]}, "two: document 'a' answers query '1' and cannot be its negative; mine again"),
    ({"2": ["c", "twin"]}, "two: document 'twin' answers query '2' and cannot be its negative; mine again"),   # of equal text
    ({"1": ["x"]}, "two: negatives of query '1' name document 'x', which is not in the corpus; mine again"),
])
def test_a_negative_that_is_right_or_unknown_is_refused(mined, said):
    data = Dataset({"a": "A", "twin": "a ", "c": "C"}, {"1": "one", "2": "One"}, {"1": {"a": 1}, "2": {"a": 1}}, name="two")
    with pytest.raises(DataError, match=said): pair_rows(data, mined)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_and_one_seed_gives_one_model(name, folder, splits):
    def trained(seed):
        model = open_encoder(folder, device="cpu")
        rows, loss = objective(name, model, splits["train"])
        def score(): return dev_score(FastEncoder(model), splits["dev"])
        curve = fit(model, rows, loss, score, epochs=10, patience=10, lr=3e-3, batch_size=16, seed=seed)
        return fingerprint(model), curve, score()
    key, curve, dev = trained(0)
    assert dev == pytest.approx(curve.points[curve.best].dev, abs=1e-6) == max(p.dev for p in curve.points[1:])
    assert dev > curve.points[0].dev + .2
    assert trained(0)[0] == key != trained(1)[0]


def test_the_weights_of_devs_epoch_are_kept_and_can_be_made_again(folder, splits):
    def trained(scores, stop_after=None):
        model, told = open_encoder(folder, device="cpu"), iter([0., *scores])
        rows, loss = objective("in-batch", model, splits["train"])
        curve = fit(model, rows, loss, (lambda: next(told)) if scores else None, epochs=5, stop_after=stop_after, patience=2, lr=1e-3)
        return fingerprint(model), curve
    key, curve = trained([.1, .5, .4, .3])
    assert curve.best == 2 and len(curve.points) == 5                 # two epochs without a better score: stopped before the fifth
    assert trained([], stop_after=2)[0] == key                         # without dev, as many epochs as dev kept: the same weights
    assert trained([], stop_after=3)[0] != key


def test_frozen_layers_and_token_embeddings_stay_as_they_were(folder, splits):
    model = open_encoder(folder, device="cpu")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fine_tune(model, splits["train"], name="in-batch", epochs=1, lr=1e-3, share=.5)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("layer.0." not in k and "word_embeddings" not in k for k in changed)
    assert any("layer.1." in k for k in changed)
    assert all(p.requires_grad for p in model.parameters())
    with frozen_below(model, 0): assert all(p.requires_grad for p in model.parameters())


def test_every_row_is_seen_in_every_epoch(folder):
    names = [f"d{i}" for i in range(9)]
    data = Dataset({d: f"the {d} stands here" for d in names}, {f"q{i}": f"where is {i}" for i in range(14)},
                   {f"q{i}": dict.fromkeys(names[i % 7:i % 7 + 3], 1) for i in range(14)})
    model = open_encoder(folder, device="cpu")
    rows, _ = objective("in-batch", model, data)
    counts = {len(batches(rows, 5, seed)) for seed in range(3)}
    assert len(counts) > 1, "this case is about epochs of different length"
    class Counting(MultipleNegativesRankingLoss):
        seen = 0
        def forward(self, features, labels):
            features = list(features)
            Counting.seen += len(features[0]["input_ids"])
            return super().forward(features, labels)
    for seed in range(4):                                      # with the first epoch the longest, or the shortest
        Counting.seen = 0
        curve = fit(model, rows, Counting(model), epochs=3, batch_size=5, lr=1e-4, seed=seed)
        assert curve.rows == 3 * len(rows.docs) == Counting.seen and len(curve.points) == 4


class Ours(DefaultBatchSampler):
    "Our batches, as sentence-transformers' trainer takes them."
    rows:Rows
    def __iter__(self): yield from batches(self.rows, self.batch_size, self.seed + self.epoch)
    def __len__(self): return len(batches(self.rows, self.batch_size, self.seed + self.epoch))

class Still(SentenceTransformerTrainer):
    "Without dropout."
    def compute_loss(self, model, *args, **kwargs): return super().compute_loss(model.eval(), *args, **kwargs)

@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_weights_are_those_of_the_librarys_trainer(name, folder, splits, tmp_path):
    def made():
        torch.manual_seed(0)
        model = open_encoder(folder, device="cpu")
        return model, *objective(name, model, splits["train"])
    model, rows, loss = made()
    assert len({len(batches(rows, 16, seed)) for seed in range(3)}) == 1, "its epochs must be of one length"
    curve = fit(model, rows, loss, epochs=3, batch_size=16, lr=3e-3)
    theirs, rows, loss = made()
    def sampler(data, **_):
        Ours.rows = rows
        return Ours(data, batch_size=16, drop_last=False, seed=0)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=curve.steps, per_device_train_batch_size=16, learning_rate=3e-3, warmup_steps=.1,
        optim="adamw_torch_fused", bf16=best_dtype("cpu") is torch.bfloat16, use_cpu=True, batch_sampler=sampler, seed=0,
        save_strategy="no", report_to="none", logging_strategy="no")
    columns = {**rows.columns, **({} if rows.labels is None else {"label": rows.labels})}
    Still(theirs, args, datasets.Dataset.from_dict(columns), loss=loss).train()
    assert fingerprint(model) == fingerprint(theirs) != fingerprint(open_encoder(folder, device="cpu"))


def test_a_loss_that_is_no_number_stops_the_training(folder, splits):
    class Broken(MultipleNegativesRankingLoss):
        def forward(self, features, labels): return super().forward(features, labels) * float("nan")
    model = open_encoder(folder, device="cpu")
    before = fingerprint(model)
    with pytest.raises(DataError, match=r"step 1: the loss is nan; .*learning rate \(now 0.001\)"):
        fit(model, pair_rows(splits["train"]), Broken(model), lr=1e-3)
    assert fingerprint(model) == before


def test_fine_tune_takes_a_function_that_makes_rows_and_loss(folder, splits):
    asked = []
    def mine(model, train, negatives, known):
        asked.append((negatives, known))
        return objective("in-batch", model, train, negatives)
    def trained(name):
        model = open_encoder(folder, device="cpu")
        fine_tune(model, splits["train"], name=name, epochs=1, lr=1e-3, negatives=mined)
        return fingerprint(model)
    mined = {q: [next(d for d in splits["train"].corpus if d not in splits["train"].positives(q))] for q in splits["train"].queries}
    assert trained(mine) == trained("in-batch") and asked == [(mined, None)]


def test_fine_tune_goes_on_where_it_was_stopped_and_asks_for_the_same_dev(folder, splits, tmp_path):
    def tuned(saved=None, dev=splits["dev"], **changed):
        model = open_encoder(folder, device="cpu")
        return fine_tune(model, splits["train"], dev, epochs=2, lr=1e-3, checkpoints=saved, **changed), fingerprint(model)
    curve, key = tuned()
    assert tuned(tmp_path)[1] == key
    again = tuned(tmp_path, every=3)
    assert again[1] == key and again[0].points == curve.points
    with pytest.raises(DataError, match="another training: dev"): tuned(tmp_path, splits["train"])
    with pytest.raises(DataError, match="another training: dev .* scored .True there, False now"): tuned(tmp_path, None)


class PowerCut(Exception): "Where the lights go out."


def test_a_resumed_training_scores_the_model_in_training_and_not_the_one_that_is_known(folder, splits, tmp_path):
    known = FastEncoder(open_encoder(folder, device="cpu"))
    def tuned(saved=None, last=math.inf):
        "Curve and weights; the lights go out after `last` steps."
        steps = itertools.count(1)
        def cut(*_):
            if next(steps) > last: raise PowerCut
        def make(*args):
            rows, loss = objective("in-batch", *args)
            loss.register_forward_hook(cut)
            return rows, loss
        model = open_encoder(folder, device="cpu")
        curve = fine_tune(model, splits["train"], splits["dev"], make, epochs=3, lr=3e-3, known=known, checkpoints=saved)
        return curve.points, curve.steps, fingerprint(model)
    straight = tuned()
    with pytest.raises(PowerCut): tuned(tmp_path, straight[1] - 1)
    assert len(list(tmp_path.iterdir())) == 2 and tuned(tmp_path) == straight
    assert straight[0][-1].dev != straight[0][0].dev


def test_a_dev_score_that_is_no_number_is_an_error(folder, splits):
    model, scores = open_encoder(folder, device="cpu"), iter([.1, math.nan])
    rows, loss = objective("in-batch", model, splits["train"])
    with pytest.raises(DataError, match="dev score is nan"): fit(model, rows, loss, lambda: next(scores), epochs=1)


@pytest.mark.parametrize("name", ["all-answers", "remembered"])
def test_a_loss_is_the_same_in_every_process(name, folder):
    "The order of a set of texts differs from process to process, and a checkpoint must not be refused for that."
    docs = {f"document {i}": f"the {i}th thing" for i in range(40)}
    data = Dataset(docs, {"q": "things", "r": "more"}, {q: dict.fromkeys(docs, 1) for q in "qr"})
    _, loss = objective(name, open_encoder(folder, device="cpu"), data)
    assert all(found == list(range(40)) for found in loss.positives)


def test_all_answers_are_read_as_far_as_other_texts(folder):
    data = Dataset({"a": "car " * 50, "b": "house " * 50}, {"q": "my car", "r": "my house"}, {"q": {"a": 1}, "r": {"b": 1}})
    model = open_encoder(folder, device="cpu")
    rows, loss = objective("all-answers", model, data)
    fit(model, rows, loss, epochs=1, tokens=10)
    assert loss.inputs["input_ids"].shape == (2, 10)


def test_what_does_not_fit_into_memory_is_said_before_it_is_trained(folder, splits, monkeypatch):
    model = open_encoder(folder, device="cpu")
    before = fingerprint(model)
    monkeypatch.setattr("rag_finetune.training.free_memory", lambda device: 100_000)
    with pytest.raises(DataError, match="a step of 64 rows of 1 text of 9 tokens takes .* beside the model"):
        fine_tune(model, splits["train"], name="all-answers")
    assert fingerprint(model) == before


def test_between_two_models_both_ends_are_the_models(folder, splits):
    base, tuned = (open_encoder(folder, device="cpu") for _ in range(2))
    fine_tune(tuned, splits["train"], epochs=6, lr=3e-3, share=0)
    found = between(base, tuned, {"dev": splits["dev"], "train": splits["train"]}, shares=(0, .5, 1))
    for share, model in ((0, base), (1, tuned)):
        values = found[share]["dev"]
        assert sum(values.values()) / len(values) == pytest.approx(dev_score(FastEncoder(model), splits["dev"]), abs=1e-6)
    assert found.keys() == {0, .5, 1} and found[.5]["train"].keys() == splits["train"].queries.keys()
    assert found[.5]["dev"] not in (found[0]["dev"], found[1]["dev"])


def test_equal_texts_are_nobodys_negatives(folder):
    data = Dataset({"a": "In the app.", "b": "in the  APP.", "c": "by post"}, {"1": "new card", "2": "New card ", "3": "statements"},
                   {"1": {"a": 1}, "2": {"c": 1}, "3": {"b": 1}})
    rows = pair_rows(data)
    assert len(batches(rows, 3, 0)) == 3                       # each of the three would punish another
    _, loss = objective("all-answers", open_encoder(folder, device="cpu"), data)
    assert [sorted(p) for p in loss.positives] == [[0, 1, 2], [0, 1, 2], [0, 1]]
    _, loss = objective("remembered", open_encoder(folder, device="cpu"), data)
    assert [sorted(p) for p in loss.positives] == [[0, 1, 2], [0, 1, 2], [0, 1]]


def test_long_texts_are_cut_in_training_and_not_in_scoring(folder, splits):
    model = open_encoder(folder, device="cpu")
    whole, scored, trained = model.max_seq_length, [], set()
    rows, loss = objective("in-batch", model, splits["train"])
    def score(): scored.append(model.max_seq_length); return 0.
    class Looking(MultipleNegativesRankingLoss):
        def forward(self, features, labels):
            trained.update(f["input_ids"].shape[1] for f in features)
            return super().forward(features, labels)
    fit(model, rows, Looking(model), score, epochs=1, tokens=3)
    assert max(trained) == 3 and scored == [whole, whole] and model.max_seq_length == whole


def test_dropout_stays_off(folder, splits):
    model = open_encoder(folder, device="cpu")
    rates = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    for m in rates: m.p = .9
    rows, loss = objective("in-batch", model, splits["train"])
    fit(model, rows, loss, epochs=1, lr=1e-3)
    trained = fingerprint(model)
    again = open_encoder(folder, device="cpu")
    for m in again.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    rows, loss = objective("in-batch", again, splits["train"])
    fit(again, rows, loss, epochs=1, lr=1e-3)
    assert rates and fingerprint(again) == trained


def test_what_is_known_of_the_model_is_not_encoded_again(folder, splits):
    class Counting(FastEncoder):
        asked:list[str] = []
        def encode_document(self, inputs): self.asked.extend(inputs); return super().encode_document(inputs)
    def trained(known):
        model = open_encoder(folder, device="cpu")
        curve = fine_tune(model, splits["train"], splits["dev"], "remembered", epochs=1, lr=1e-3, known=known)
        return fingerprint(model), curve.points
    known = Counting(open_encoder(folder, device="cpu"))
    assert trained(known) == trained(None)
    assert len(known.asked) == len(answers(splits["train"])) + len(splits["dev"].corpus)


def test_remembered_documents_meet_every_query_and_are_replaced_when_they_pass(folder, splits):
    model, train = open_encoder(folder, device="cpu"), splits["train"]
    loss = RememberedAnswers(model, train)
    model.eval()
    texts = list(train.queries.values())[:2]
    docs = [train.corpus[train.positives(q)[0]] for q in list(train.queries)[:2]]
    features = [model.preprocess(texts), model.preprocess(docs)]
    cosines = torch.from_numpy(model.encode(texts) @ encode_documents(model, [train.corpus[d] for d in answers(train)]).T)
    right = torch.tensor([answers(train).index(train.positives(q)[0]) for q in list(train.queries)[:2]])
    value = loss(features, torch.arange(2))
    assert value.item() == pytest.approx(torch.nn.functional.cross_entropy(20 * cosines, right).item(), rel=1e-4)
    assert not loss.memory.requires_grad
    loss.memory.zero_()
    loss(features, torch.arange(2))
    assert set(loss.memory.norm(dim=1).nonzero().flatten().tolist()) == set(right.tolist())


def test_documents_without_a_training_query_take_no_part():
    data = Dataset({"a": "A", "b": "B", "c": "C"}, {"1": "one"}, {"1": {"b": 1, "c": 0}})
    assert answers(data) == ["b"]


def test_a_saved_model_embeds_as_before(folder, splits, tmp_path):
    model = open_encoder(folder, device="cpu")
    fine_tune(model, splits["train"], epochs=1, lr=1e-3)
    model.save_pretrained(str(tmp_path / "model"))
    texts = list(splits["dev"].queries.values())
    written = [f.read_text(encoding="utf-8") for f in (tmp_path / "model").rglob("*") if f.suffix in (".md", ".json")]
    assert not any(text in page for text in splits["train"].queries.values() for page in written)   # nobody's queries leave with the model
    assert torch.equal(torch.from_numpy(SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)),
                       torch.from_numpy(model.encode(texts)))


def test_what_does_not_fit_is_an_error_that_says_what_does(folder, splits):
    model = open_encoder(folder, device="cpu")
    with pytest.raises(DataError, match='"in-batch"'): objective("all-answers", model, splits["train"], {"q0": ["car"]})
    with pytest.raises(DataError, match='expected "all-answers"'): objective("triplet", model, splits["train"])
    empty = Dataset(splits["train"].corpus, {"x": "where"}, {"x": {"car": 0}}, name="nothing")
    with pytest.raises(DataError, match="nothing: no training query has a relevant document"): pair_rows(empty)


def test_few_documents_means_fewer_than_four_batches():
    many = Dataset({str(i): "text" for i in range(128)}, {}, {})
    assert not few_documents(many) and few_documents(tiny_data())
