"What a user relies on when tokens are trained: the library's own training, a folder that its classes open, nothing lost by a stop."
import datasets
import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
from sentence_transformers.base.modules import Dense
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_scores
from sentence_transformers.util import mean_maxsim_pairwise
from tiny import of_kind, tiny_data, tiny_model
from torch import nn
from transformers import PrinterCallback

from rag_finetune.core import DataError, Dataset
from rag_finetune.embedding import batches, pair_rows
from rag_finetune.late import fine_tune_late, multi_vector
from rag_finetune.models import FastEncoder, fingerprint, open_encoder
from rag_finetune.negatives import fill
from rag_finetune.reranker import LateInteraction, is_multi_vector, mixed_negatives, open_multi_vector, open_reranker, reranked_score
from rag_finetune.rerankers import compare_rerankers
from rag_finetune.retrieval import dense
from rag_finetune.training import Group, shared

K = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(): return tiny_data()


@pytest.fixture(scope="module")
def run(data, folder): return dense(data, FastEncoder(open_encoder(folder, "cpu")))


@pytest.fixture(scope="module")
def pairs(data): return [(q, d) for q in list(data.queries.values())[:12] for d in data.corpus.values()]


def by_the_library(model, pairs):
    "Mean MaxSim of a MultiVectorEncoder's own vectors."
    queries, documents = model.encode_query([q for q, _ in pairs]), model.encode_document([d for _, d in pairs])
    return mean_maxsim_pairwise(queries, documents).cpu().numpy()


# a model of token vectors

@pytest.mark.parametrize("kind", ["bert", "xlm-r", "mpnet", "modernbert"])
def test_the_librarys_model_has_our_scores(kind, folder, tmp_path, pairs):
    model = open_encoder(folder if kind == "bert" else of_kind(kind, folder, tmp_path), "cpu")
    np.testing.assert_allclose(LateInteraction(model).predict(pairs), by_the_library(multi_vector(model), pairs), atol=1e-5)


def test_what_is_saved_opens_in_the_library_and_here(folder, tmp_path, pairs, data, run):
    ours = open_encoder(folder, "cpu")
    multi_vector(ours).save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    theirs = MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    assert theirs.similarity_fn_name == "meanmaxsim" and is_multi_vector(tmp_path / "saved") and not is_multi_vector(folder)
    scores = LateInteraction(open_multi_vector(tmp_path / "saved", "cpu")).predict(pairs)
    np.testing.assert_allclose(scores, by_the_library(theirs, pairs), atol=1e-5)
    np.testing.assert_allclose(scores, LateInteraction(ours).predict(pairs), atol=1e-5)
    found = compare_rerankers(data, run, {"saved": tmp_path / "saved", "as it is": LateInteraction(ours)}, K, timed=1)
    assert not found.skipped and abs(found.figures["saved"]["nDCG@10"].mean - found.figures["as it is"]["nDCG@10"].mean) < .02


def test_another_models_projection_and_marks_are_its_own(folder, tmp_path, pairs):
    "As ColBERT has them: fewer dimensions, a mark before the query."
    plain = open_encoder(folder, "cpu")
    wide = plain.get_embedding_dimension()
    torch.manual_seed(0)
    narrow = Dense(wide, 8, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings",
                   module_output_name="token_embeddings")
    modules = [plain[0], narrow, *list(multi_vector(plain))[1:]]
    theirs = MultiVectorEncoder(modules=modules, prompts={"query": "where is ", "document": ""}, device="cpu")
    theirs.save_pretrained(str(tmp_path / "colbert"), create_model_card=False)
    opened = LateInteraction(open_multi_vector(tmp_path / "colbert", "cpu"))
    np.testing.assert_allclose(opened.predict(pairs), by_the_library(theirs, pairs), atol=1e-5)
    assert not np.allclose(opened.predict(pairs), LateInteraction(plain).predict(pairs), atol=.05)
    assert all(v.shape[1] == 8 for v in opened.documents.values())


def test_what_is_no_such_model_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="LateInteraction"): open_multi_vector(folder)
    multi_vector(open_encoder(folder, "cpu")).save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    with pytest.raises(DataError, match="`open_multi_vector` opens it"): open_reranker(tmp_path / "saved", "cpu")
    model = open_encoder(folder, "cpu")
    model[0].query_expansion = {"strategy": "fixed", "length": 32}
    with pytest.raises(DataError, match="no plain text transformer"): multi_vector(model)


UNKNOWN = "\N{SNOWMAN} \N{SNOWMAN}"   # to a tokenizer of tiny models


def test_a_text_of_unknown_words_is_like_nothing_to_both(folder, tmp_path):
    model = open_encoder(folder, "cpu")
    multi_vector(model).save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    pairs = [(q, d) for q in ("the red car", UNKNOWN) for d in ("the car", UNKNOWN, "", "the cup is black", UNKNOWN)]
    for scorer in (LateInteraction(model), LateInteraction(open_multi_vector(tmp_path / "saved", "cpu"))):
        scores = scorer.predict(pairs)
        assert (scores[[1, 2, 4]] == 0).all() and (scores[5:] == 0).all() and scores[0] != 0
        assert scores[3] == pytest.approx(scorer.predict(pairs[3:4])[0], abs=1e-6)   # nobody has a neighbour's token


# training

class Still(MultiVectorEncoderTrainer):
    "The library's trainer, without dropout and with our batches."
    def __init__(self, *args, plan, **kwargs):
        super().__init__(*args, **kwargs)
        self.plan = plan
        for m in self.model.modules():
            if isinstance(m, nn.Dropout): m.p = 0.

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=self.plan, collate_fn=self.data_collator)


def test_weights_are_those_of_the_librarys_trainer(folder, data, run, tmp_path):
    negatives = mixed_negatives(data, run, 1, 0)
    ours, theirs = open_encoder(folder, "cpu"), multi_vector(open_encoder(folder, "cpu"))
    fine_tune_late(ours, data, negatives=negatives, epochs=1, lr=1e-3, batch_size=16, tokens=16, share=0)
    rows = pair_rows(data, negatives)
    args = MultiVectorEncoderTrainingArguments(
        str(tmp_path), num_train_epochs=1, learning_rate=1e-3, per_device_train_batch_size=16, seed=0, warmup_steps=.1,
        optim="adamw_torch_fused", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, logging_strategy="no", bf16=False)
    loss = MultiVectorMultipleNegativesRankingLoss(theirs, scale=20., similarity_fct=mean_colbert_scores)
    trainer = Still(theirs, args, datasets.Dataset.from_dict(rows.columns), loss=loss, plan=batches(rows, 16, 0))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    mine, others = ours.state_dict(), theirs.state_dict()
    same = [name for name in mine if name in others]
    assert len(same) > 20 and max((mine[n] - others[n]).abs().max().item() for n in same) < 1e-6
    assert fingerprint(ours) != fingerprint(open_encoder(folder, "cpu"))


def test_it_learns_what_its_tokens_are_asked(folder, data, run):
    model = open_encoder(folder, "cpu")
    curve = fine_tune_late(model, data, data, run, fill({q: [] for q in data.queries}, data, 1, 0), K, epochs=4, lr=3e-3, share=0)
    assert curve.points[curve.best].dev > curve.points[0].dev + .1
    assert reranked_score(LateInteraction(model), data, run, K) == pytest.approx(curve.points[curve.best].dev, abs=1e-9)


def test_what_lies_below_the_share_stays(folder, data):
    model, before = open_encoder(folder, "cpu"), open_encoder(folder, "cpu").state_dict()
    fine_tune_late(model, data, epochs=1, lr=1e-3, share=.5)
    moved = {name for name, w in model.state_dict().items() if not torch.equal(w, before[name])}
    assert any(".layer.1." in name for name in moved) and not any(".layer.0." in name or "embeddings" in name for name in moved)
    assert all(p.requires_grad for p in model.parameters())


def test_a_stopped_training_goes_on_to_the_same_weights(folder, data, run, tmp_path, monkeypatch):
    whole = open_encoder(folder, "cpu")
    fine_tune_late(whole, data, data, run, k=K, epochs=2, lr=1e-3)
    first, second = open_encoder(folder, "cpu"), open_encoder(folder, "cpu")
    asked = dict(k=K, epochs=2, lr=1e-3, checkpoints=tmp_path)
    real, judged = reranked_score, []
    def watched(*args):
        judged.append(1)
        if len(judged) == 3: raise KeyboardInterrupt   # after the second epoch, with the first one's checkpoint
        return real(*args)
    monkeypatch.setattr("rag_finetune.late.reranked_score", watched)
    with pytest.raises(KeyboardInterrupt): fine_tune_late(first, data, data, run, **asked)
    fine_tune_late(second, data, data, run, **asked)
    assert len(judged) == 4 and fingerprint(second) == fingerprint(whole)   # the first epoch was not done again
    third = open_encoder(folder, "cpu")
    with pytest.raises(DataError, match="of another training"): fine_tune_late(third, data, data, run, **(asked | {"lr": 2e-3}))


def test_mistakes_are_told_before_any_training(folder, data, monkeypatch):
    model = open_encoder(folder, "cpu")
    before = fingerprint(model)
    with pytest.raises(DataError, match="dev needs `run`"): fine_tune_late(model, data, data)
    with pytest.raises(DataError, match="not in the corpus"): fine_tune_late(model, data, negatives={"q0": ["ship"]})
    snow = Dataset(data.corpus, {"q": UNKNOWN}, {"q": {next(iter(data.corpus)): 1}})
    with pytest.raises(DataError, match="known token"): fine_tune_late(model, snow)
    monkeypatch.setattr("rag_finetune.late.processes", lambda: Group(0, 2))
    with pytest.raises(DataError, match="one process"): fine_tune_late(model, data)
    assert fingerprint(model) == before


def test_the_table_of_tokens_that_meet_counts_as_memory(folder, data, monkeypatch):
    model, asked = open_encoder(folder, "cpu"), []
    class Asked(Exception): pass
    def watched(*args):
        asked.append(args[-1])
        raise Asked
    monkeypatch.setattr("rag_finetune.late.free_memory", lambda device: 10**9)
    monkeypatch.setattr("rag_finetune.late.check_memory", watched)
    for size in (16, 32):
        with pytest.raises(Asked): fine_tune_late(model, data, batch_size=size)
    assert 10**9 - asked[1] == 4 * (10**9 - asked[0]) > 0
    monkeypatch.undo()
    monkeypatch.setattr("rag_finetune.late.free_memory", lambda device: 1_000_000)
    with pytest.raises(DataError, match=r"32 rows of 2 texts .* takes"): fine_tune_late(model, data)


def test_rows_without_a_known_word_are_left_out(folder, data, caplog):
    more = Dataset(data.corpus, {**data.queries, "snow": UNKNOWN}, {**data.qrels, "snow": {next(iter(data.corpus)): 1}})
    curve = fine_tune_late(open_encoder(folder, "cpu"), more, epochs=1)
    assert "1 rows left out" in caplog.text and curve.points[-1].loss < 100


def test_in_half_precision_it_learns_too(folder, data, run, monkeypatch):
    monkeypatch.setattr("rag_finetune.embedding.best_dtype", lambda device: torch.bfloat16)
    curve = fine_tune_late(open_encoder(folder, "cpu"), data, data, run, k=K, epochs=4, lr=3e-3, share=0)
    assert curve.points[curve.best].dev > curve.points[0].dev + .1


def test_in_half_precision_the_mask_stays_and_several_processes_are_refused(folder):
    model = multi_vector(open_encoder(folder, "cpu"))
    features = model.preprocess(["where is the red car", "the cup"])
    whole = model(dict(features), task="query")
    with shared(model, Group(0, 1), torch.bfloat16): half = model(dict(features), task="query")
    assert half["token_embeddings"].dtype == torch.float32 and torch.equal(half["attention_mask"], whole["attention_mask"])
    torch.testing.assert_close(half["token_embeddings"], whole["token_embeddings"], atol=.05, rtol=0)
    with pytest.raises(DataError, match="several processes"), shared(model, Group(0, 2), torch.float32): pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tokens_are_trained_on_a_gpu(folder, data, run):
    curve = fine_tune_late(open_encoder(folder, "cuda"), data, data, run, k=K, epochs=1)
    assert curve.points[-1].loss is not None and np.isfinite(curve.points[-1].loss)
