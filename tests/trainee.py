"A small training in a process of its own, to be killed, stopped, or run as several processes at once."
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from sentence_transformers import CrossEncoder
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from tiny import tiny_data

from rag_finetune.embedding import Rows, fit, frozen_below, objective
from rag_finetune.lora import add_adapter
from rag_finetune.models import fingerprint, open_encoder
from rag_finetune.reranker import FastScorer, mixed_negatives, open_reranker, reranker_rows_and_loss
from rag_finetune.retrieval import bm25
from rag_finetune.training import processes

SETTINGS = dict(epochs=3, patience=9, lr=3e-3, batch_size=16, seed=0)


def of(kind):
    "Settings: a reranker's own, whose logits have no bound, so that rounding does not grow into another model."
    return {**SETTINGS, "lr": 3e-4} if "reranker" in kind else SETTINGS


def prepared(folder, kind):
    "A model and what it is trained on; `kind` is an objective, in-batch negatives in another form, or a reranker's."
    if "reranker" in kind: return reranker(folder, kind)
    model, data = open_encoder(folder, device="cpu"), tiny_data(per_thing=9)
    torch.manual_seed(len(kind))
    if kind == "adapter": model.add_adapter(LoraConfig(r=4, target_modules=["query", "value"]))
    rows, loss = objective("in-batch" if kind in ("adapter", "upper", "cached", "matryoshka") else kind, model, data)
    if kind == "cached": loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    if kind == "matryoshka": loss = MatryoshkaLoss(model, loss, [32, 16, 8], n_dims_per_step=2)   # draws the dimensions of each step
    return model, rows, loss


def reranker(folder, kind):
    "The same for a reranker: lists with mined negatives, the same with an adapter, or negatives that are drawn in each step."
    model, data = open_reranker(folder, device="cpu"), tiny_data(per_thing=9)
    if kind == "reranker-adapter": add_adapter(model, rank=4)
    loss = "MultipleNegativesRankingLoss" if kind == "reranker-in-batch" else "ListNetLoss"
    return model, *reranker_rows_and_loss(loss, model, data, mixed_negatives(data, bm25(data), 2, 1))


def judge(model, rows: Rows):
    "A dev score that draws random numbers, as scoring may: the mean cosine of some queries with their documents."
    def score() -> float:
        some = torch.randperm(len(rows.docs))[:8].tolist()
        if isinstance(model, CrossEncoder):
            asked = next(iter(rows.columns.values()))   # differences: lists do not teach the head's bias, which rounding alone moves
            scores = FastScorer(model).predict([(asked[i], "the red car") for i in some])
            return float(scores[:4].sum() - scores[4:].sum())
        texts = [rows.columns["anchor"][i] for i in some]
        vectors = torch.from_numpy(model.encode(texts, show_progress_bar=False))
        return float(vectors[:4].sum() - vectors[4:].sum())
    return score


def train(folder, kind, checkpoints=None, every=None, out=None, **changed):
    "Train, and write down what came out."
    model, rows, loss = prepared(folder, kind)
    values = []
    loss.register_forward_hook(lambda module, inputs, value: values.append(value.item()))
    with frozen_below(model, .5 if kind == "upper" else 0.):
        curve = fit(model, rows, loss, judge(model, rows), checkpoints=checkpoints, every=every, **{**of(kind), **changed})
    made = {"key": fingerprint(model), "points": [list(p) for p in curve.points], "best": curve.best, "steps": curve.steps,
            "losses": values}
    if out: Path(out).write_text(json.dumps(made))
    return made


if __name__ == "__main__":
    where, to, settings, *kinds = sys.argv[1:]
    for named in kinds:
        made = train(where, named, Path(to) / named, every=4, **json.loads(settings))
        Path(to, f"{named}-{processes().rank}.json").write_text(json.dumps(made))
