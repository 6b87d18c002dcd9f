"""Does one model for several kinds of documents serve each of them as well as a model of its own?

    OMP_NUM_THREADS=1 python bench/tasks.py [--seeds 0,1,2] [--work bench-tasks]

Questions to sections of the bundled handbook (526 train, 119 dev, 511 test), to tables, to code and to tool descriptions (108 to 111
train, 54 dev, 108 to 111 test each). all-MiniLM-L6-v2, its upper half trained, in-batch negatives, at most 32 pairs a step, rate 1e-4.

One model for all, a batch of one task each: proportions by temperature 1 (proportional), 2 and infinity (equal). One budget for the three:
two epochs, dev looked at after each, with as many steps as the equal one needs to bring every row once an epoch; the others have their
rows more often. The epoch is chosen by the mean of the four devs, and so, over all seeds, are the proportions. A model of its own for each
task then sees the very rows that the chosen joint model saw of this task, as often, and its epoch is chosen by its own dev; so the two
differ in the company alone. Steps are counted for each task.

Then test is asked once: the model as it came, the separate ones and the chosen joint one. A query's value is its mean over the seeds;
intervals and paired tests are over queries, corrected within each task.

Each finished training becomes one file under --work at once (its weights, and how it went), and a second call goes on from there. The
files carry a digest of our code, of the data and of the settings in their names, so trainings of other code are never mixed in.
"""
import argparse
import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
from losses import code, compared, machine
from safetensors import safe_open
from safetensors.torch import save_file

from rag_finetune.data import atomic, load
from rag_finetune.embedding import batches, dev_score, fit, frozen_below, pair_rows
from rag_finetune.losses import mix_tasks, proportions, rows_and_loss
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.retrieval import dense

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"chunks": "handbook", "tables": "tables", "code": "code", "tools": "tools"}   # task -> the bundled set
BLENDS = {"proportional": 1., "temperature 2": 2., "equal": math.inf}
EPOCHS, SIZE, RATE, SHARE = 2, 32, 1e-4, .5


# ---- what is trained on

def task_of(docs):
    "The task of a row of `mix_tasks`, which carries its mark."
    return next(d for d in docs if d.endswith("\n"))[:-1]


def steps(rows, seed):
    "Task -> steps, as `fit` will do them."
    return dict(Counter(task_of(rows.docs[b[0]]) for epoch in range(EPOCHS) for b in batches(rows, SIZE, seed + epoch)))


def blended(rows, seed):
    "Blend -> rows; as many in an epoch as the budget of steps, that of the equal blend, has room for."
    shares = {name: proportions({t: len(r.docs) for t, r in rows.items()}, temperature) for name, temperature in BLENDS.items()}
    out = {"equal": mix_tasks(rows, shares["equal"], seed)}
    budget, most = sum(steps(out["equal"], seed).values()), len(out["equal"].docs)
    for name in ("proportional", "temperature 2"):
        longer = (mix_tasks(rows, shares[name], seed, n) for n in range(most + 10 * SIZE, most // 2, -10))
        out[name] = next(mixed for mixed in longer if sum(steps(mixed, seed).values()) <= budget)
    return {name: out[name] for name in BLENDS}


def alone(rows, mixed, seed):
    "Task -> the rows that a blend has of it."
    drawn = Counter(map(task_of, mixed.docs))
    return {t: mix_tasks({t: r}, {t: 1}, seed, drawn[t]) for t, r in rows.items()}


# ---- training

def trained(file, rows, devs, seed):
    "The model and how it went: out of the file, or trained and put there; the best epoch by the mean of the devs."
    model = open_encoder()
    if not file.is_file():
        looks = []
        def score():
            looks.append({t: dev_score(FastEncoder(model), d) for t, d in devs.items()})
            return float(np.mean(list(looks[-1].values())))
        _, loss = rows_and_loss("MultipleNegativesRankingLoss", model, rows)
        with frozen_below(model, SHARE):
            curve = fit(model, rows, loss, score, epochs=EPOCHS, patience=EPOCHS, lr=RATE, batch_size=SIZE, seed=seed)
            weights = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        done = {"steps": steps(rows, seed), "rows": dict(Counter(map(task_of, rows.docs))), "epoch": curve.best,
                "seconds": round(curve.seconds), "losses": [p.loss for p in curve.points[1:]], "dev": looks}
        part = file.with_suffix(".part")
        save_file(weights, part, metadata={"done": json.dumps(done)})
        os.replace(part, file)
        print(f"{file.stem}: epoch {curve.best} of {EPOCHS}, {done['steps']} steps, dev {looks[0]} -> {looks[curve.best]}", flush=True)
    with safe_open(file, "pt") as kept:
        model.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()}, strict=False)
        return model, json.loads(kept.metadata()["done"])


def values(model, data): return ndcg(data.qrels, dense(data, FastEncoder(model), exact_below=len(data.corpus) + 1), 10)


def mean(found):
    "The mean over the seeds of each query's value."
    return {q: float(np.mean([f[q] for f in found])) for q in found[0]}


def on_test(models, data): return mean([values(m, data) for m in models])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--work", type=Path, default=Path("bench-tasks"), help="where finished trainings are kept")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    splits, seeds = {t: load(ROOT / "data" / name) for t, name in TASKS.items()}, [int(s) for s in args.seeds.split(",")]
    devs, data = {t: s["dev"] for t, s in splits.items()}, [s["dev"].fingerprint for s in splits.values()]
    rows = {t: pair_rows(s["train"]) for t, s in splits.items()}
    made = {seed: blended(rows, seed) for seed in seeds}
    def one(name, rows, devs, seed):
        key = code(seed, EPOCHS, SIZE, RATE, SHARE, rows.columns, *data)
        return trained(args.work / f"{name.replace(' ', '-')}-{seed}-{key}.safetensors", rows, devs, seed)
    joint = {name: {seed: one(name, made[seed][name], devs, seed) for seed in seeds} for name in BLENDS}
    def best(done): return done["dev"][done["epoch"]]
    dev = {name: {t: float(np.mean([best(done)[t] for _, done in by.values()])) for t in splits} for name, by in joint.items()}
    chosen = max(BLENDS, key=lambda name: np.mean(list(dev[name].values())))
    own = {t: {seed: one(f"{t} alone as in {chosen}", alone(rows, made[seed][chosen], seed)[t], {t: devs[t]}, seed) for seed in seeds}
           for t in splits}
    dev |= {"separate": {t: float(np.mean([best(done)[t] for _, done in own[t].values()])) for t in splits},
            "as it came": joint[chosen][seeds[0]][1]["dev"][0]}
    pairs, found = [(chosen, "separate"), (chosen, "as it came"), ("separate", "as it came")], {}
    for t, s in splits.items():
        test = {"as it came": values(open_encoder(), s["test"]), "separate": on_test([m for m, _ in own[t].values()], s["test"]),
                chosen: on_test([m for m, _ in joint[chosen].values()], s["test"])}
        found[t] = compared(test, pairs)
        print(t, *found[t]["said"], sep="\n  ")
    training = {f"{name}, seed {seed}": done for name, by in {**joint, **{f"{t} alone": by for t, by in own.items()}}.items()
                for seed, (_, done) in by.items()}
    kept = {"command": f"OMP_NUM_THREADS=1 python bench/tasks.py --seeds {args.seeds}", "machine": machine(), "chosen": chosen,
            "rows": {t: len(s["train"].queries) for t, s in splits.items()}, "dev": dev, "test": found, "training": training}
    with atomic(ROOT / "assets" / "tasks.json") as file: file.write(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__": main()
