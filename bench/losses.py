"""Does the choice of the loss matter, on one model that sees as many rows?

    OMP_NUM_THREADS=1 python bench/losses.py [--only "NAME;..."]

The bundled transactions (1,260 train, 330 dev, 864 test; 24 categories): all-MiniLM-L6-v2, its upper half trained, rate 1e-4, every loss
with 2,520 rows (two epochs of 1,260, or one of the 2,520 labelled pairs) in steps of at most 32 (in-batch negatives: 20, since each
category stands in a batch once), one seed. The wrong category, where a loss wants one, is the untrained model's best. Losses with a margin
are trained with several. Dev chooses the margin and the loss, by nDCG@10; the intervals on dev are over its queries, and every loss is
compared with in-batch negatives and with the softmax over all answers, paired, corrected for the number of pairs. What dev chose is then
trained again and asked on test, once, together with those two and the model as it came.

What is done is kept in assets/losses.json, and a second call goes on from there.

    OMP_NUM_THREADS=1 python bench/losses.py --memory

A step of the plain and of the cached in-batch loss by batch size, each in a process of its own: peak memory above what the process had
before the step, and processor seconds; the same file.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

import rag_finetune.losses as losses
from rag_finetune.data import atomic, load
from rag_finetune.embedding import fit, frozen_below, pair_rows
from rag_finetune.losses import LOSSES, category_rows, rows_and_loss
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.negatives import mine
from rag_finetune.retrieval import dense
from rag_finetune.verdict import compare_all, decide, interval, sentence

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "assets" / "losses.json"
MARGINS = (.1, .3, .5)
WITH_MARGIN = ("TripletLoss", "BatchAllTripletLoss", "BatchHardTripletLoss", "BatchSemiHardTripletLoss")
WANT_NEGATIVES = ("TripletLoss", "ContrastiveLoss", "OnlineContrastiveLoss", "CoSENTLoss", "AnglELoss")
IN_BATCH, ALL = "MultipleNegativesRankingLoss", "AllAnswers"
ROWS = 2520
NESTED = (192, 96, 48, 24, 12)   # of 384


def variants():
    "Name -> (loss, margin, lengths, whether a text's partner is another text instead of the category's)."
    for name in LOSSES:
        for margin in MARGINS if name in WITH_MARGIN else (None,):
            yield f"{name}, margin {margin}" if margin else name, (name, margin, (), False)
    yield "BatchAllTripletLoss, margin 0.3, texts with texts", ("BatchAllTripletLoss", .3, (), True)
    for name in (IN_BATCH, ALL): yield f"{name}, nested", (name, None, NESTED, False)


def trained(setting, splits, found, seed=0) -> tuple[Any, Any]:
    "The model and the curve."
    name, margin, dims, texts = setting
    train, model = splits["train"], open_encoder()
    losses.MARGIN = margin or losses.MARGIN
    data = category_rows(list(train.queries.values()), [train.positives(q)[0] for q in train.queries]) if texts else train
    rows, loss = rows_and_loss(name, model, data, found if name in WANT_NEGATIVES else None, dims=dims)
    with frozen_below(model, .5): return model, fit(model, rows, loss, epochs=round(ROWS / len(rows.docs)), lr=1e-4, seed=seed)


def values(model, data, length=None):
    "nDCG@10 of each query."
    before, model.truncate_dim = model.truncate_dim, length
    try: return {q: round(v, 4) for q, v in ndcg(data.qrels, dense(data, FastEncoder(model)), 10).items()}
    finally: model.truncate_dim = before


def save(kept):
    with atomic(OUT) as file: file.write(json.dumps(kept) + "\n")


def best_of(rows):
    "Loss -> its best variant by dev; those that were not trained for the comparison are left out."
    out = {}
    for name, row in rows.items():
        if name.endswith(("nested", "texts with texts")): continue
        loss = name.split(",")[0]
        if loss not in out or np.mean(list(row["dev"].values())) > np.mean(list(rows[out[loss]]["dev"].values())): out[loss] = name
    return out


def judged(kept, splits, found):
    "Every loss on dev against the two references; what dev chose, and the references, on test."
    rows = kept["rows"]
    best = best_of(rows)
    dev = {loss: rows[name]["dev"] for loss, name in best.items()} | {"as it came": kept["base"]["dev"]}
    pairs = [(a, b) for b in (IN_BATCH, ALL) for a in dev if a != b and (a, b) != (ALL, IN_BATCH)]
    kept["dev"] = {name: interval(v).as_dict() for name, v in dev.items()}
    kept["dev_comparisons"] = [c.as_dict() | {"decision": decide(c)} for c in compare_all(dev, pairs, "nDCG@10")]
    chosen = max(best, key=lambda loss: np.mean(list(dev[loss].values())))
    test = {"as it came": values(open_encoder(), splits["test"])}
    for loss in dict.fromkeys((chosen, IN_BATCH, ALL)):
        test[loss] = values(trained(dict(variants())[best[loss]], splits, found)[0], splits["test"])
    pairs = [(chosen, other) for other in test if other != chosen]
    tested = compare_all(test, pairs, "nDCG@10")
    kept["chosen"], kept["best"] = chosen, best
    kept["test"] = {name: interval(v).as_dict() for name, v in test.items()}
    kept["test_comparisons"] = [c.as_dict() | {"decision": decide(c)} for c in tested]
    for c in tested: print(sentence(c, decide(c)))


# ---- memory of a step

def step(kind, size):
    "A line of JSON: the peak above what was there before, in MiB, and processor seconds, for one step."
    train, model = load("transactions")["train"], open_encoder()
    rows = pair_rows(train)
    features = [model.preprocess(texts[:size]) for texts in rows.columns.values()]
    make = {"plain": MultipleNegativesRankingLoss, "cached": partial(CachedMultipleNegativesRankingLoss, mini_batch_size=32)}
    with frozen_below(model, .5):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        loss = make[kind](model)(features, None)
        loss.backward()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024   # kilobytes on Linux
    seconds = round(time.process_time() - began, 2)
    print(json.dumps({"kind": kind, "size": size, "MiB": round(peak, 1), "seconds": seconds, "loss": loss.item()}))


def machine():
    "Where this ran."
    lines = Path("/proc/cpuinfo").read_text().splitlines()   # Linux, as ru_maxrss in kilobytes above
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {"cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"), "processor": name, "torch": torch.__version__,
            "model": "all-MiniLM-L6-v2"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="train these variants and stop")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step: return step(args.step[0], int(args.step[1]))
    begun = {"command": "OMP_NUM_THREADS=1 python bench/losses.py", "machine": machine(), "rows": {}}
    kept = json.loads(OUT.read_text()) if OUT.exists() else begun
    if args.memory:
        kept["memory"] = [json.loads(subprocess.run([sys.executable, __file__, "--step", kind, str(n)], check=True, capture_output=True,
                                                    text=True).stdout) for n in (32, 64, 128, 256) for kind in ("plain", "cached")]
        for row in kept["memory"]: print(row)
        return save(kept)
    splits = load("transactions")
    base = open_encoder()
    if "base" not in kept: kept["base"] = {"dev": values(base, splits["dev"])}
    found, _ = mine(splits["train"], dense(splits["train"], FastEncoder(base)), per_query=1, seed=None)
    for name, setting in variants():
        if name in kept["rows"] or args.only and name not in args.only.split(";"): continue
        began = time.process_time()
        model, curve = trained(setting, splits, found)
        row = {"loss": setting[0], "margin": setting[1], "steps": curve.steps, "rows": curve.rows,
               "training_loss": [p.loss for p in curve.points[1:]], "dev": values(model, splits["dev"]),
               "seconds": round(time.process_time() - began)}
        if setting[0] in (IN_BATCH, ALL):
            row["lengths"] = {str(n): interval(values(model, splits["dev"], n)).as_dict() for n in (384, *NESTED)}
        kept["rows"][name] = row
        save(kept)
        print(f"{name}: {np.mean(list(row['dev'].values())):.4f} on dev after {curve.steps} steps, {row['seconds']} s", flush=True)
    if args.only: return None
    judged(kept, splits, found)
    return save(kept)


if __name__ == "__main__": main()
