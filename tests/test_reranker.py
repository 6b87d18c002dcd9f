"What a user relies on with a reranker: opened safely, scored as the libraries score, trained on what the first stage returns."
import json
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from FlagEmbedding import FlagReranker
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.util import mean_maxsim_pairwise
from tiny import of_kind, tiny_data, tiny_model
from torch import nn
from transformers import AutoConfig, BertForSequenceClassification, PrinterCallback

from rag_finetune import reranker, training
from rag_finetune.core import DataError, Dataset, ranking
from rag_finetune.embedding import batches, fit
from rag_finetune.lora import add_adapter, head, load_adapter, merge, save_adapter
from rag_finetune.losses import judged_rows
from rag_finetune.models import FastEncoder, fingerprint, open_encoder
from rag_finetune.negatives import known_answers
from rag_finetune.pairs import contradicting
from rag_finetune.reranker import (
    RERANKER_LOSSES, FastScorer, LateInteraction, QuestionAnswerEvaluator, fine_tune_reranker, has_head, int8_scorer, list_rows,
    mixed_negatives, open_reranker, reranked_score, reranker_rows_and_loss, teach,
)
from rag_finetune.retrieval import dense, rerank

K = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(): return tiny_data()


@pytest.fixture(scope="module")
def run(data, folder): return dense(data, FastEncoder(open_encoder(folder, "cpu")))


@pytest.fixture(scope="module")
def negatives(data, run): return mixed_negatives(data, run, 2, 2)


@pytest.fixture(scope="module")
def pairs(data): return [(q, d) for q in list(data.queries.values())[:12] for d in data.corpus.values()]


@pytest.fixture(scope="module")
def tuned(folder, data, run, negatives, tmp_path_factory):
    "A fine-tuned reranker's folder."
    model = open_reranker(folder, "cpu")
    fine_tune_reranker(model, data, data, run, negatives, k=K, epochs=6, lr=3e-3)
    saved = tmp_path_factory.mktemp("tuned") / "model"
    model.save_pretrained(str(saved))
    return saved


# opened

def test_a_model_without_a_head_gets_one_by_seed_and_leaves_chance_as_it_was(folder, pairs):
    assert not has_head(folder)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, again, other = (FastScorer(open_reranker(folder, "cpu", seed)).predict(pairs) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize("plain", [True, False])
def test_logits_of_a_transformer_in_bfloat16_are_not_rounded_to_ties(plain, tuned, pairs, monkeypatch):
    model, many = open_reranker(tuned, "cpu"), [(f"{q} {i}", d) for i, (q, d) in enumerate(pairs)]
    if not plain: monkeypatch.setattr(reranker, "_is_plain", lambda model: False)   # by `CrossEncoder.predict`, then
    whole = FastScorer(model, dtype=torch.float32).predict(many)
    half = FastScorer(model, dtype=torch.bfloat16).predict(many)
    rounded = torch.from_numpy(half).bfloat16().float().numpy()
    assert np.mean(rounded == half) < .2 and not np.array_equal(half, whole)
    np.testing.assert_allclose(half, whole, atol=.05 * np.abs(whole).max())
    assert "forward" not in vars(model.transformers_model.classifier)   # the model is as it was


def test_a_trained_head_is_kept_whatever_the_seed(tuned, pairs):
    assert has_head(tuned)
    assert (FastScorer(open_reranker(tuned, "cpu", 1)).predict(pairs) == FastScorer(open_reranker(tuned, "cpu", 2)).predict(pairs)).all()


def test_a_language_model_that_embeds_has_no_head_and_one_that_says_yes_has(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    assert has_head(tmp_path)
    kinds = {"sentence_transformers.models.Pooling": False, "sentence_transformers.cross_encoder.modules.logit_score.LogitScore": True}
    for kind, trained in kinds.items():
        (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "Transformer"}, {"type": kind}]))
        assert has_head(tmp_path) is trained


def test_a_classifier_of_several_labels_is_no_reranker(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "three")
    BertForSequenceClassification(AutoConfig.from_pretrained(folder, num_labels=3)).save_pretrained(tmp_path / "three")
    (tmp_path / "three" / "modules.json").unlink()
    with pytest.raises(DataError, match="gives 3 scores for a pair"): open_reranker(tmp_path / "three", "cpu")


@pytest.mark.parametrize("file", ["config_sentence_transformers.json", "config.json"])
def test_an_activation_is_imported_from_a_short_list_only(file, tuned, tmp_path):
    copy = shutil.copytree(tuned, tmp_path / "model")
    settings = json.loads((copy / file).read_text())
    settings["sbert_ce_default_activation_function" if file == "config.json" else "activation_fn"] = "torch.hub.list"
    (copy / file).write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"names 'torch\.hub\.list'"): open_reranker(copy, "cpu")


def test_a_pickle_or_a_cut_file_is_refused_by_name(tuned, tmp_path):
    copy = shutil.copytree(tuned, tmp_path / "pickled")
    (copy / "training_args.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"training_args\.bin"): open_reranker(copy, "cpu")
    copy = shutil.copytree(tuned, tmp_path / "cut")
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:len(weights) // 2])
    with pytest.raises(DataError, match="cannot be opened as a reranker"): open_reranker(copy, "cpu")


# scored

def by_flag(folder, pairs): return FlagReranker(str(folder), use_fp16=False, devices=["cpu"]).compute_score([list(p) for p in pairs])


def test_scores_are_the_libraries_logits_in_any_order_and_number(tuned, pairs):
    scorer = FastScorer(open_reranker(tuned, "cpu"))
    ours, theirs = scorer.predict(pairs), CrossEncoder(str(tuned), device="cpu").predict(pairs, activation_fn=nn.Identity())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(by_flag(tuned, pairs), ours, atol=1e-5)
    np.testing.assert_allclose(scorer.predict(pairs[::-1])[::-1], ours, atol=1e-5)
    np.testing.assert_allclose(FastScorer(scorer.model, budget=1).predict(pairs[:5]), ours[:5], atol=1e-5)
    assert scorer.predict([]).shape == (0,)


def test_a_saved_reranker_scores_the_same_and_keeps_giving_logits(tuned, pairs, tmp_path):
    model = open_reranker(tuned, "cpu")
    model.save_pretrained(str(tmp_path / "again"))
    scores = FastScorer(model).predict(pairs)
    assert (FastScorer(open_reranker(tmp_path / "again", "cpu")).predict(pairs) == scores).all()
    np.testing.assert_allclose(CrossEncoder(str(tmp_path / "again"), device="cpu").predict(pairs), scores, atol=1e-5)


def test_int8_scores_rank_as_float32_ones_nearly_do(tuned, pairs):
    model = open_reranker(tuned, "cpu")
    before = fingerprint(model)
    one, other = FastScorer(model).predict(pairs), int8_scorer(model, pairs).predict(pairs)
    assert np.corrcoef(one, other)[0, 1] > .9 and (one != other).any() and fingerprint(model) == before
    with pytest.raises(DataError, match="no pairs"): int8_scorer(model, [])


# without training

@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-r", "mpnet", "modernbert", "qwen3", "mistral"])
def test_tokens_are_compared_as_the_library_compares_them(kind, folder, tmp_path):
    model = open_encoder(folder if kind == "bert" else of_kind(kind, folder, tmp_path), "cpu")
    pairs = [("where is the red car", d) for d in ("find me the red car", "the house", "a dog a dog")] + [("my cup", "the cup is black")]
    def vectors(text):   # by the library: all tokens, then without the special ones
        with torch.inference_mode(): found = model.encode([text], output_value="token_embeddings", convert_to_numpy=False)[0]
        ids = model.tokenizer(text)["input_ids"]
        keep = [i for i, x in enumerate(ids) if x not in model.tokenizer.all_special_ids]
        return torch.nn.functional.normalize(found[keep].float(), dim=1)
    theirs = torch.cat([mean_maxsim_pairwise([vectors(q)], [vectors(d)]) for q, d in pairs]).cpu()
    np.testing.assert_allclose(LateInteraction(model).predict(pairs), theirs, atol=1e-5)


def test_late_interaction_needs_no_order_keeps_to_its_memory_and_leaves_the_model_alone(folder, data):
    model, pairs = open_encoder(folder, "cpu").train(), [(q, d) for q in list(data.queries.values())[:9] for d in data.corpus.values()]
    whole = LateInteraction(model).predict(pairs)
    forgetful = LateInteraction(model, kept=0)
    assert (forgetful.predict(pairs[::-1])[::-1] == whole).all() and model.training
    forgetful.predict([("where", "the car")])
    assert list(forgetful.documents) == ["the car"] and LateInteraction(model).predict([]).shape == (0,)


# rows

def test_negatives_are_the_first_stages_mistakes_and_random_ones_and_never_answers(data, run):
    hard, mixed = mixed_negatives(data, run, 2, 0), mixed_negatives(data, run, 2, 2)
    for q, docs in mixed.items():
        assert docs[:2] == hard[q] and len(docs) == len({*docs}) == 4 and not {*docs} & {*data.positives(q)}
        assert {*hard[q]} <= {*ranking(run[q])}


def test_lists_hold_grades_and_leave_out_queries_that_teach_nothing(data, negatives):
    rows = list_rows(data, negatives)
    assert len(rows.docs) == len(data.queries)
    assert all(len(docs) == len(told) == 5 and sum(told) == 1 for docs, told in zip(rows.columns["documents"], rows.labels))
    assert [docs[told.index(1)] for docs, told in zip(rows.columns["documents"], rows.labels)] == [
        data.corpus[data.positives(q)[0]] for q in data.queries]
    corpus, asked = {"a": "the car", "b": "the house", "c": "the dog"}, {"q": "car", "r": "dog"}
    graded = Dataset(corpus, asked, {"q": {"a": 2, "b": 1, "c": -1}, "r": {"c": 1}})
    rows = list_rows(graded)
    assert rows.labels == [[2., 1., 0.]] and rows.columns["query"] == ["car"]
    with pytest.raises(DataError, match="mixed_negatives"): list_rows(Dataset({"a": "the car"}, {"q": "car"}, {"q": {"a": 1}}))
    with pytest.raises(DataError, match="answers query"): list_rows(data, {"q0": data.positives("q0")})


def test_a_teachers_lists_begin_with_its_best_and_reach_all_its_ranks(data, run):
    rows = teach(data, run, 4)
    for query, docs, told in zip(rows.columns["query"], rows.columns["documents"], rows.labels):
        q = next(q for q, text in data.queries.items() if text == query)
        assert docs[0] == data.corpus[ranking(run[q])[0]] and told[0] == max(told)
        assert [run[q][next(d for d, t in data.corpus.items() if t == doc)] for doc in docs] == told
    assert teach(data, run, 4, seed=1) != rows and teach(data, run, 4) == rows
    with pytest.raises(DataError, match="no two documents"): teach(data, {q: {} for q in data.queries})


# trained

@pytest.mark.parametrize("loss", RERANKER_LOSSES)
def test_every_loss_teaches_more_than_the_fresh_head_knew(loss, folder, data, run, negatives):
    model, taught = open_reranker(folder, "cpu"), RERANKER_LOSSES[loss] == "lists of a teacher"
    right = {q: {d: 4. * (data.qrels[q].get(d, 0) > 0) for d in data.corpus} for q in data.queries}   # a teacher that knows
    train = teach(data, right, 6) if taught else data
    curve = fine_tune_reranker(model, train, data, run, None if taught else negatives, loss, K, epochs=8, lr=3e-3)
    assert curve.points[curve.best].dev > curve.points[0].dev + .05


@pytest.mark.parametrize("loss", RERANKER_LOSSES)
def test_every_loss_looks_at_the_logits_that_are_scored_with(loss, folder, data, run, negatives):
    model = open_reranker(folder, "cpu")
    train = teach(data, run, 4) if RERANKER_LOSSES[loss] == "lists of a teacher" else data
    _, made = reranker_rows_and_loss(loss, model, train, None if train is not data else negatives)
    assert isinstance(made.activation_fn, nn.Identity) and isinstance(model.activation_fn, nn.Identity)


def test_listnet_is_told_sharply_what_is_right(folder, data, negatives):
    model = open_reranker(folder, "cpu")
    rows, _ = reranker_rows_and_loss("ListNetLoss", model, data, negatives)
    sharp, plain = (torch.tensor(told).softmax(0).max().item() for told in (rows.labels[0], list_rows(data, negatives).labels[0]))
    assert sharp > .99 > .5 > plain
    q = next(iter(data.queries))
    [second] = [d for d in data.corpus if d not in data.positives(q)][:1]
    graded = Dataset(data.corpus, {q: data.queries[q]}, {q: {data.positives(q)[0]: 2, second: 1}}, name="graded")
    rows, _ = reranker_rows_and_loss("ListNetLoss", model, graded, {q: [d for d in data.corpus if d not in graded.qrels[q]]})
    assert sorted(torch.tensor(rows.labels[0]).softmax(0).tolist())[-2:] == pytest.approx([1 / 3, 2 / 3], abs=1e-6)   # relevant is relevant


def test_a_long_list_is_cut_to_relevant_and_wrong_ones():
    many = {f"d{i}": f"text {i}" for i in range(100)}
    grades = {d: 3 - i // 25 for i, d in enumerate(many)}   # 75 relevant, 25 judged wrong
    rows = list_rows(Dataset(many, {"q": "what"}, {"q": grades}, name="judged"), None, 8)
    assert sorted(rows.labels[0]) == [0.] * 4 + [3.] * 4 and len({*rows.columns["documents"][0]}) == 8
    few = Dataset(many, {"q": "what"}, {"q": {"d0": 1, "d1": 0}}, name="few")
    rows = list_rows(few, {"q": ["d5", "d6"]}, 3)
    assert dict(zip(rows.columns["documents"][0], rows.labels[0])) == {"text 0": 1., "text 5": 0., "text 6": 0.}   # mined ones first


def test_a_training_that_would_not_fit_is_told_before_it_starts(folder, data, negatives, monkeypatch):
    monkeypatch.setattr(training, "free_memory", lambda device: 1_000_000)
    model = open_reranker(folder, "cpu")
    before = fingerprint(model)
    with pytest.raises(DataError, match=r"16 rows of 5 texts .* takes"): fine_tune_reranker(model, data, negatives=negatives)
    assert fingerprint(model) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("loss", RERANKER_LOSSES)
def test_every_loss_trains_on_a_gpu(loss, folder, data, run, negatives):
    model = open_reranker(folder, "cuda")
    train = teach(data, run, 4) if RERANKER_LOSSES[loss] == "lists of a teacher" else data
    curve = fine_tune_reranker(model, train, None, None, None if train is not data else negatives, loss, epochs=1)
    assert curve.points[-1].loss is not None and np.isfinite(curve.points[-1].loss)


def test_margins_of_a_teacher_are_no_loss_for_the_teacher_itself(tuned, data, run):
    model = open_reranker(tuned, "cpu")
    rows, loss = reranker_rows_and_loss("MarginMSELoss", model, teach(data, rerank(data, run, FastScorer(model)), 4))
    columns = [texts[:8] for texts in rows.columns.values()]
    assert loss(columns, [torch.tensor(told) for told in rows.labels[:8]]).item() < 1e-9


class Still(CrossEncoderTrainer):
    "The library's trainer, without dropout and with our batches."
    def __init__(self, *args, plan, **kwargs):
        super().__init__(*args, **kwargs)
        self.plan = plan
        for m in self.model.modules():
            if isinstance(m, nn.Dropout): m.p = 0.

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=self.plan, collate_fn=self.data_collator)


def test_weights_are_those_of_the_librarys_trainer_bit_for_bit(folder, data, negatives, tmp_path):
    ours, theirs = open_reranker(folder, "cpu"), open_reranker(folder, "cpu")
    rows, loss = reranker_rows_and_loss("BinaryCrossEntropyLoss", ours, data, negatives)
    plan = batches(rows, 16, 0)
    fit(ours, rows, loss, epochs=1, lr=1e-3, batch_size=16, tokens=16)
    args = CrossEncoderTrainingArguments(str(tmp_path), num_train_epochs=1, learning_rate=1e-3, per_device_train_batch_size=16, seed=0,
                                         warmup_steps=.1, optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True,
                                         disable_tqdm=True, logging_strategy="no", bf16=False)
    given = datasets.Dataset.from_dict({**rows.columns, "label": rows.labels})
    trainer = Still(theirs, args, given, loss=BinaryCrossEntropyLoss(theirs), plan=plan)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert fingerprint(ours) == fingerprint(theirs) != fingerprint(open_reranker(folder, "cpu"))


def test_what_the_first_stage_missed_stays_missed(tuned, data, run):
    short = {q: {d: s for d, s in scores.items() if d not in data.positives(q)} for q, scores in run.items()}
    assert reranked_score(FastScorer(open_reranker(tuned, "cpu")), data, short, K) == 0


def test_hard_negatives_alone_make_it_worse_on_the_easy_majority(folder, data, run):
    def trained(hard, easy):
        model = open_reranker(folder, "cpu")
        fine_tune_reranker(model, data, None, None, mixed_negatives(data, run, hard, easy, last=3), epochs=8, lr=3e-3)
        return reranked_score(FastScorer(model), data, {q: dict.fromkeys(data.corpus, 0.) for q in data.queries}, K)
    assert trained(1, 1) > trained(2, 0)


def test_known_answers_are_documents_that_are_right_elsewhere():
    data = Dataset({d: f"the {d}" for d in "abcd"}, {"q": "one", "r": "two", "s": "three"}, {"q": {"b": 1, "c": 0}, "r": {"a": 2, "b": -1}})
    known = known_answers(data)
    assert [*known.corpus] == ["b", "a"] and known.queries == data.queries
    assert {q: known.positives(q) for q in known.queries} == {"q": ["b"], "r": ["a"], "s": []}


def test_negatives_that_are_never_right_teach_that_new_documents_are_wrong(folder, data):
    "The other things are in the corpus, as a library has texts that no training query needs."
    def part(things):
        queries = [q for q in data.queries if {*data.positives(q)} <= {*things}]
        return replace(data, queries={q: data.queries[q] for q in queries}, qrels={q: data.qrels[q] for q in queries})
    train, new = part([*data.corpus][:4]), part([*data.corpus][4:])
    def on_new(source):
        model = open_reranker(folder, "cpu")
        fine_tune_reranker(model, train, negatives=mixed_negatives(source, {}, 0, 3), epochs=6, lr=3e-3)
        return reranked_score(FastScorer(model), new, {q: dict.fromkeys(data.corpus, 0.) for q in new.queries}, K)
    assert on_new(train) < on_new(known_answers(train)) - .03


def test_mistakes_are_told_before_any_training(folder, data, run, negatives):
    model = open_reranker(folder, "cpu")
    with pytest.raises(DataError, match="expected one of Binary"): fine_tune_reranker(model, data, loss="Hinge")
    with pytest.raises(DataError, match="dev needs `run`"): fine_tune_reranker(model, data, data, None, negatives)
    with pytest.raises(DataError, match="learns from a teacher's scores"): fine_tune_reranker(model, data, loss="MarginMSELoss")
    with pytest.raises(DataError, match="learns from judgements"): fine_tune_reranker(model, teach(data, run), loss="LambdaLoss")
    with pytest.raises(DataError, match="have their documents already"): fine_tune_reranker(model, teach(data, run), negatives=negatives)
    with pytest.raises(DataError, match="all pairs are right ones"): fine_tune_reranker(model, data, loss="BinaryCrossEntropyLoss")
    with pytest.raises(DataError, match="not in the corpus"): fine_tune_reranker(model, data, negatives={"q0": ["ship"]})


def test_the_librarys_trainer_takes_the_evaluator_and_it_sees_the_training(tmp_path):
    data, model = tiny_data(), open_reranker(tiny_model(tmp_path / "tiny"), "cpu")
    wrong = contradicting(data, 2)
    judge = QuestionAnswerEvaluator(data, wrong, {q: dict.fromkeys(data.corpus, 0.) for q in data.queries}, 8)
    before = judge(model)
    rows = judged_rows(data, wrong)
    args = CrossEncoderTrainingArguments(str(tmp_path / "out"), num_train_epochs=6, learning_rate=3e-3, per_device_train_batch_size=16,
                                         eval_strategy="epoch", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = CrossEncoderTrainer(model, args, datasets.Dataset.from_dict({**rows.columns, "label": rows.labels}),
                                  loss=BinaryCrossEntropyLoss(model), evaluator=judge)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    after = judge(model.eval())
    assert after["mean squared error"] < before["mean squared error"] - .01 and after["nDCG@10"] > before["nDCG@10"]
    seen = [line for line in trainer.state.log_history if "eval_nDCG@10" in line]
    assert len(seen) == 6 and seen[-1]["eval_mean squared error"] == pytest.approx(after["mean squared error"], abs=1e-6)


# adapters

@pytest.fixture(scope="module")
def adapted(folder, data, run, negatives):
    model = open_reranker(folder, "cpu")
    add_adapter(model, rank=4)
    fine_tune_reranker(model, data, data, run, negatives, k=K, epochs=6, lr=1e-2)
    return model


def test_an_adapter_brings_its_head_and_merges_without_loss(adapted, folder, pairs, data, run, tmp_path):
    scores = FastScorer(adapted).predict(pairs)
    assert reranked_score(FastScorer(adapted), data, run, K) > reranked_score(FastScorer(open_reranker(folder, "cpu")), data, run, K) + .05
    assert {*head(adapted)} == {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or "pooler" in n or "classifier" in n for n in trained)
    save_adapter(adapted, tmp_path / "adapter", "tiny")
    for seed in (0, 3):   # a fresh head is no part of the base
        again = open_reranker(folder, "cpu", seed)
        load_adapter(again, tmp_path / "adapter")
        assert (FastScorer(again).predict(pairs) == scores).all()
    merge(again)
    again.save_pretrained(str(tmp_path / "merged"))
    np.testing.assert_allclose(FastScorer(open_reranker(tmp_path / "merged", "cpu")).predict(pairs), scores, atol=1e-5)
    np.testing.assert_allclose(by_flag(tmp_path / "merged", pairs), scores, atol=1e-5)


def test_a_rerankers_adapter_on_another_base_or_beside_another_adapter_is_refused(adapted, folder, tmp_path):
    save_adapter(adapted, tmp_path / "adapter", "tiny")
    other = tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="they differ in"): load_adapter(open_reranker(other, "cpu"), tmp_path / "adapter")
    with pytest.raises(DataError, match="they differ in architecture"): load_adapter(open_encoder(folder, "cpu"), tmp_path / "adapter")
    with pytest.raises(DataError, match="room for one"): add_adapter(open_with(folder, tmp_path / "adapter"), name="second")


def open_with(folder, adapter):
    model = open_reranker(folder, "cpu")
    load_adapter(model, adapter)
    return model
