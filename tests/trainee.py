"A small training in a process of its own, to be killed, stopped, or run as several processes at once."
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from tiny import tiny_data

from rag_finetune.embedding import Rows, fit, frozen_below, objective
from rag_finetune.models import fingerprint, open_encoder
from rag_finetune.training import processes

SETTINGS = dict(epochs=3, patience=9, lr=3e-3, batch_size=16, seed=0)


def prepared(folder, kind):
    "A model and what it is trained on; `kind` is an objective, or in-batch negatives in another form."
    model, data = open_encoder(folder, device="cpu"), tiny_data(per_thing=9)
    torch.manual_seed(len(kind))
    if kind == "adapter": model.add_adapter(LoraConfig(r=4, target_modules=["query", "value"]))
    rows, loss = objective("in-batch" if kind in ("adapter", "upper", "cached", "matryoshka") else kind, model, data)
    if kind == "cached": loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    if kind == "matryoshka": loss = MatryoshkaLoss(model, loss, [32, 16, 8], n_dims_per_step=2)   # draws the dimensions of each step
    return model, rows, loss


def judge(model, rows: Rows):
    "A dev score that draws random numbers, as scoring may: the mean cosine of some queries with their documents."
    def score() -> float:
        some = torch.randperm(len(rows.docs))[:8].tolist()
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
        curve = fit(model, rows, loss, judge(model, rows), checkpoints=checkpoints, every=every, **{**SETTINGS, **changed})
    made = {"key": fingerprint(model), "points": [list(p) for p in curve.points], "best": curve.best, "steps": curve.steps,
            "losses": values}
    if out: Path(out).write_text(json.dumps(made))
    return made


if __name__ == "__main__":
    where, to, settings, *kinds = sys.argv[1:]
    for named in kinds:
        made = train(where, named, Path(to) / named, every=4, **json.loads(settings))
        Path(to, f"{named}-{processes().rank}.json").write_text(json.dumps(made))
