"""Does one model for several kinds of documents serve each of them as well as a model of its own?

    OMP_NUM_THREADS=1 python bench/tasks.py [--seeds 0,1,2] [--work FOLDER]

Questions to sections of the bundled handbook (526 train, 119 dev, 511 test), to tables, to code and to tool descriptions (108 to 111
train, 54 dev, 108 to 111 test each). all-MiniLM-L6-v2, its upper half trained, in-batch negatives, 32 pairs a step, learning rate 1e-4.
Separate models: four epochs for the handbook, six for each of the others, the epoch by its own dev. One model for all, a batch of one
task each: proportions by temperature 1 (proportional), 2 and infinity (equal), all with about 110 steps, the epoch by the mean of four
devs. The same mean, over all seeds, chooses the proportions; then test is asked once: the model as it came, the separate ones and the
chosen joint one. A query's value is its mean over the seeds; intervals and paired tests are over queries, corrected within each task.

Models are kept in --work, and a second call goes on from there.
"""
import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from losses import machine

from rag_finetune.data import atomic, load
from rag_finetune.embedding import batches, dev_score, fit, frozen_below, pair_rows
from rag_finetune.losses import mix_tasks, proportions, rows_and_loss
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.retrieval import dense
from rag_finetune.verdict import compare_all, decide, interval, sentence

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"chunks": "handbook", "tables": "tables", "code": "code", "tools": "tools"}   # task -> the bundled set
BLENDS = {"proportional": 1., "temperature 2": 2., "equal": math.inf}
STEPS = 110


def trained(folder, rows, epochs, devs, seed):
    "The model that is kept in the folder, trained now if it is not; the best epoch by the mean of the devs."
    if (folder / "done.json").exists(): return open_encoder(folder / "model"), json.loads((folder / "done.json").read_text())
    model = open_encoder()
    rows, loss = rows_and_loss("MultipleNegativesRankingLoss", model, rows)
    def score(): return float(np.mean([dev_score(FastEncoder(model), d) for d in devs]))
    with frozen_below(model, .5): curve = fit(model, rows, loss, score, epochs, patience=99, lr=1e-4, seed=seed)
    done = {"steps": curve.steps, "rows": curve.rows, "epoch": curve.best, "curve": [[p.loss, p.dev] for p in curve.points]}
    model.save_pretrained(str(folder / "model"))
    (folder / "done.json").write_text(json.dumps(done))
    print(f"{folder.name}: epoch {curve.best} of {epochs}, dev {curve.points[curve.best].dev:.3f} ({curve.points[0].dev:.3f})", flush=True)
    return model, done


def models(splits, seed, work):
    "System -> task -> (model, how it went); the joint ones are one model for all tasks."
    rows = {t: pair_rows(s["train"]) for t, s in splits.items()}
    out = {"separate": {t: trained(work / f"{t}-{seed}", rows[t], 4 if t == "chunks" else 6, [s["dev"]], seed) for t, s in splits.items()}}
    for name, temperature in BLENDS.items():
        mixed = mix_tasks(rows, proportions({t: len(r.docs) for t, r in rows.items()}, temperature), seed)
        epochs = round(STEPS / len(batches(mixed, 32, seed)))
        folder = work / f"{name.replace(' ', '-')}-{seed}"
        out[name] = dict.fromkeys(splits, trained(folder, mixed, epochs, [s["dev"] for s in splits.values()], seed))
    return out


def values(model, data): return ndcg(data.qrels, dense(data, FastEncoder(model), exact_below=len(data.corpus) + 1), 10)


def mean(found):
    "The mean over the seeds of each query's value."
    return {q: float(np.mean([f[q] for f in found])) for q in found[0]}


def asked(made, system, splits, split):
    "Task -> query -> value of a system, its mean over the seeds."
    return {t: mean([values(by_seed[system][t][0], s[split]) for by_seed in made]) for t, s in splits.items()}


def verdict(name, data):
    "A task on test: intervals, and what is better than what."
    pairs = [(name, "separate"), (name, "as it came"), ("separate", "as it came")]
    compared = compare_all(data, pairs, "nDCG@10")
    return {"nDCG@10": {s: interval(v).as_dict() for s, v in data.items()},
            "comparisons": [c.as_dict() | {"decision": decide(c)} for c in compared], "said": [sentence(c, decide(c)) for c in compared]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "rag_finetune_tasks")
    args = parser.parse_args()
    splits = {t: load(ROOT / "data" / name) for t, name in TASKS.items()}
    made = [models(splits, int(seed), args.work) for seed in args.seeds.split(",")]
    made = [by_seed | {"as it came": dict.fromkeys(splits, (open_encoder(), {}))} for by_seed in made]
    dev = {system: {t: interval(v).as_dict() for t, v in asked(made, system, splits, "dev").items()} for system in made[0]}
    chosen = max(BLENDS, key=lambda name: np.mean([d["mean"] for d in dev[name].values()]))
    test = {system: asked(made, system, splits, "test") for system in ("as it came", "separate", chosen)}
    found = {t: verdict(chosen, {system: by_task[t] for system, by_task in test.items()}) for t in splits}
    for t in found: print(t, *found[t]["said"], sep="\n  ")
    training = {f"{system}, seed {seed}": {t: about for t, (_, about) in by_task.items()}
                for seed, by_seed in zip(args.seeds.split(","), made) for system, by_task in by_seed.items() if system != "as it came"}
    kept = {"command": f"OMP_NUM_THREADS=1 python bench/tasks.py --seeds {args.seeds}", "machine": machine(), "chosen": chosen,
            "rows": {t: len(s["train"].queries) for t, s in splits.items()}, "dev": dev, "test": found, "training": training}
    with atomic(ROOT / "assets" / "tasks.json") as file: file.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__": main()
