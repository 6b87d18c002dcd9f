"""Does the choice of the loss matter, on one model that sees as many rows?

    OMP_NUM_THREADS=1 python bench/losses.py [--only "NAME;..."] [--work bench-losses]

The bundled transactions (1,260 train of 20 categories, 330 dev of 22, 864 test of 24): all-MiniLM-L6-v2, its upper half trained, rate
1e-4, every loss with 2,520 rows (two epochs of 1,260, or one of the 2,520 labelled pairs) in steps of at most 32, one seed. So the steps
differ: 126 for in-batch negatives, of 20 rows, since each category stands in a batch once; 80 for AllAnswers, the triplet losses and
those by category; 79 for those over labelled pairs. The wrong category, where a loss wants one, is the untrained model's best. Losses
with a margin are trained with several.

Two losses of `LOSSES` are left out, since here they are the same training as in-batch negatives: the cached form has its gradients, and
RememberedAnswers compares with all trained answers, which is what each in-batch step of 20 has before it already.

Dev chooses the margin and the loss, by nDCG@10; the intervals on dev are over its queries, and every loss is compared with in-batch
negatives and with the softmax over all answers, paired, corrected for the number of pairs. What dev chose is then trained again and asked
on test, once, together with those two and the model as it came; the 144 test queries of categories that train does not have are shown
apart.

Each finished training becomes one file under --work at once, and a second call goes on from there. The files carry a digest of our code,
of the data and of the settings in their names, so trainings of other code are never mixed in. The end writes assets/losses.json.

    OMP_NUM_THREADS=1 python bench/losses.py --memory

A step of the plain and of the cached in-batch loss by batch size, each in a process of its own: peak memory above what the process had
before the step, and processor seconds; the same file.
"""
import argparse
import hashlib
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

from rag_finetune.data import atomic, load
from rag_finetune.embedding import fit, frozen_below, pair_rows
from rag_finetune.losses import LOSSES, MARGIN, category_rows, rows_and_loss
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.negatives import mine
from rag_finetune.pipeline import slices
from rag_finetune.retrieval import dense
from rag_finetune.verdict import compare_all, decide, interval, sentence

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "assets" / "losses.json"
MARGINS = (.1, .3, .5)
WITH_MARGIN = ("TripletLoss", "BatchAllTripletLoss", "BatchHardTripletLoss", "BatchSemiHardTripletLoss")
WANT_NEGATIVES = ("TripletLoss", "ContrastiveLoss", "OnlineContrastiveLoss", "CoSENTLoss", "AnglELoss")
IN_BATCH, ALL = "MultipleNegativesRankingLoss", "AllAnswers"
AS_IN_BATCH = ("CachedMultipleNegativesRankingLoss", "RememberedAnswers")   # the same training, on 20 categories
ROWS, RATE, SHARE = 2520, 1e-4, .5   # rows seen; peak learning rate; of the layers that stay as they are
NESTED = (192, 96, 48, 24, 12)   # of 384
# whose change may change a figure
CODE = ("core", "data", "metrics", "models", "retrieval", "verdict", "negatives", "embedding", "training", "losses")


SOURCE = b"".join((ROOT / "rag_finetune" / f"{name}.py").read_bytes() for name in CODE)   # as it was when this run began


def code(*settings):
    "Changes with our code and with the settings."
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + SOURCE).hexdigest()[:10]


def kept(file, make):
    "What is in the file; made now, and put there in one step, if it is not."
    if not file.is_file():
        found = make()
        with atomic(file) as out: json.dump(found, out)
    return json.loads(file.read_text())


def variants():
    "Name -> (loss, margin, lengths, whether a text's partner is another text instead of the category's)."
    for name in LOSSES:
        if name in AS_IN_BATCH: continue
        for margin in MARGINS if name in WITH_MARGIN else (None,):
            yield f"{name}, margin {margin}" if margin else name, (name, margin, (), False)
    yield "BatchAllTripletLoss, margin 0.3, texts with texts", ("BatchAllTripletLoss", .3, (), True)
    for name in (IN_BATCH, ALL): yield f"{name}, nested", (name, None, NESTED, False)


def trained(setting, train, found, seed=0) -> tuple[Any, Any]:
    "The model and the curve."
    (name, margin, dims, texts), model = setting, open_encoder()
    data = category_rows(list(train.queries.values()), [train.positives(q)[0] for q in train.queries]) if texts else train
    rows, loss = rows_and_loss(name, model, data, found if name in WANT_NEGATIVES else None, dims=dims, margin=margin or MARGIN)
    with frozen_below(model, SHARE): return model, fit(model, rows, loss, epochs=round(ROWS / len(rows.docs)), lr=RATE, seed=seed)


def values(model, data, length=None):
    "nDCG@10 of each query."
    before, model.truncate_dim = model.truncate_dim, length
    try: return {q: round(v, 4) for q, v in ndcg(data.qrels, dense(data, FastEncoder(model)), 10).items()}
    finally: model.truncate_dim = before


def on_dev(name, setting, splits, found):
    "A variant, trained and looked at on dev."
    began = time.process_time()
    model, curve = trained(setting, splits["train"], found)
    row = {"loss": setting[0], "margin": setting[1], "steps": curve.steps, "rows": curve.rows,
           "training_loss": [p.loss for p in curve.points[1:]], "dev": values(model, splits["dev"]),
           "seconds": round(time.process_time() - began)}
    if setting[0] in (IN_BATCH, ALL):
        row["lengths"] = {str(n): interval(values(model, splits["dev"], n)).as_dict() for n in (384, *NESTED)}
    print(f"{name}: {mean(row['dev']):.4f} on dev after {curve.steps} steps, {row['seconds']} s", flush=True)
    return row


def mean(values): return float(np.mean(list(values.values())))


def best_of(rows):
    "Loss -> its best variant by dev; those that were not trained for the comparison are left out."
    out = {}
    for name, row in rows.items():
        if name.endswith(("nested", "texts with texts")): continue
        loss = name.split(",")[0]
        if loss not in out or mean(row["dev"]) > mean(rows[out[loss]]["dev"]): out[loss] = name
    return out


def compared(data, pairs):
    "Intervals, and what is better than what, as plain data."
    found = compare_all(data, pairs, "nDCG@10")
    return {"nDCG@10": {name: interval(v).as_dict() for name, v in data.items()},
            "comparisons": [c.as_dict() | {"decision": decide(c)} for c in found], "said": [sentence(c, decide(c)) for c in found]}


def judged(rows, base, chosen, best, test, parts):
    "Every loss on dev against the two references; what dev chose, and the references, on test, and on its seen and unseen categories."
    dev = {loss: rows[name]["dev"] for loss, name in best.items()} | {"as it came": base}
    on = compared(dev, [(a, b) for b in (IN_BATCH, ALL) for a in dev if a != b and (a, b) != (ALL, IN_BATCH)])
    pairs = [(chosen, other) for other in test if other != chosen]
    def of(queries): return compared({name: {q: v[q] for q in queries} for name, v in test.items()}, pairs)
    whole = of(next(iter(test.values())))
    return {"dev": on["nDCG@10"], "dev_comparisons": on["comparisons"], "chosen": chosen, "best": best, "test": whole["nDCG@10"],
            "test_comparisons": whole["comparisons"], "slices": {name: of(part) for name, part in parts.items()}}


def compare(work, only):
    "All trainings, from the files where they are done; None where only some were wanted."
    splits, base, settings = load("transactions"), open_encoder(), dict(variants())
    data = [splits[s].fingerprint for s in ("train", "dev")]
    found, _ = mine(splits["train"], dense(splits["train"], FastEncoder(base)), per_query=1, seed=None)
    def file(name, *more): return work / f"{name.replace(' ', '-')}-{code(settings[name], ROWS, RATE, SHARE, *data, *more)}.json"
    rows = {name: kept(file(name), partial(on_dev, name, setting, splits, found)) for name, setting in settings.items()
            if not only or name in only.split(";")}
    if only: return None
    best = best_of(rows)
    chosen = max(best, key=lambda loss: mean(rows[best[loss]]["dev"]))
    test = {"as it came": values(base, splits["test"])}
    for loss in dict.fromkeys((chosen, IN_BATCH, ALL)):
        def asked(setting): return values(trained(setting, splits["train"], found)[0], splits["test"])
        test[loss] = kept(file(best[loss], "test", splits["test"].fingerprint), partial(asked, settings[best[loss]]))
    parts = {name: list(part) for name, part in slices(splits["train"], splits["test"]).items()}
    told = judged(rows, values(base, splits["dev"]), chosen, best, test, parts)
    for c in told["test_comparisons"]: print(c["a"], "-", c["b"], f"{c['difference']:+.3f}", c["decision"])
    for name, part in told["slices"].items(): print(f"{name}, {len(parts[name])} queries", *part["said"], sep="\n   ")
    return {"rows": rows, **told}


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


def measured():
    "A step of either kind by batch size."
    def one(*step): return subprocess.run([sys.executable, __file__, "--step", *step], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(one(kind, str(n))) for n in (32, 64, 128, 256) for kind in ("plain", "cached")]
    for row in rows: print(row)
    return {"memory": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="train these variants and stop")
    parser.add_argument("--work", type=Path, default=Path("bench-losses"), help="where finished trainings are kept")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step: return step(args.step[0], int(args.step[1]))
    found = measured() if args.memory else compare(args.work, args.only)
    if found is None: return None
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    if not args.memory: before = {"memory": before["memory"]} if "memory" in before else {}
    saved = {**before, "command": "OMP_NUM_THREADS=1 python bench/losses.py", "machine": machine(), **found}
    with atomic(OUT) as file: file.write(json.dumps(saved) + "\n")


if __name__ == "__main__": main()
