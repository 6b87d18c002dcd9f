"""Do adapters keep the quality of full fine-tuning, and what do they save?

    python bench/lora.py --work FOLDER [--sets transactions,banking77] [--seeds 0,1,2] [--rounds 3] [--minutes 5]

Four ways to train the embedded model, by the objective that `fine_tune` picks: all layers; the upper half of the layers (the default); an
adapter on every linear layer; an adapter on those of the upper half. On each set dev chooses in two epochs over 420 training rows with
seed 0: the learning rate of both full ways (three trials each), and the adapter's learning rate, then its rank (six trials, so twice the
choice); the adapter on the upper half gets the other adapter's rate and rank, which is cheapest and may not be its best. A rate on the
edge of its grid is said. Then each way is trained on all rows for up to four epochs with every seed, dev choosing the epoch, and test is
asked once. A query's value is its mean over the seeds, and the ways are compared query by query.

Apart from that, each in processes of its own: seconds of the processor for a training step, and the most memory that it held above what it
held after its imports, with short texts and with texts of 128 tokens, turn by turn; the memory of one base with adapters against full
models, and the milliseconds of a switch between adapters; bytes on disk; what 4-bit weights change, where bitsandbytes is installed.

What is done lies in FOLDER. Where --minutes are over it stops after the step that it is at, and goes on when it is run again; the last run
writes assets/lora.json. banking77 (1,000 training rows) is under $RAG_FINETUNE_DATA, and left out, which is said, where it is not set.
"""
import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALL, UPPER, ADAPTER, UPPER_ADAPTER = "all layers", "upper half", "adapter", "adapter, upper half"
FULL_RATES, ADAPTER_RATES, RANKS = (1e-4, 2e-4, 5e-4), (2e-4, 1e-3, 2e-3, 5e-3), (4, 16, 64)
GRID_EPOCHS, GRID_ROWS, EPOCHS = 2, 420, 4
METRICS = ("nDCG@10", "accuracy@1")
PAIRS = ((ADAPTER, ALL), (ADAPTER, UPPER), (UPPER_ADAPTER, UPPER), (ADAPTER, "as it came"), (UPPER, "as it came"))


def splits_of(name):
    "Train, dev and test of a set."
    from rag_finetune.data import carve_dev, drop_twins, load, sample
    if name == "transactions": return load(name)
    splits, _ = drop_twins(load(Path(os.environ["RAG_FINETUNE_DATA"]) / name))
    return carve_dev(splits | {"train": sample(splits["train"], 1000, 0)}, .2, 0)

def prepared(way, rank, seed=0):
    "The embedded model, ready to be trained in this way, and what `fine_tune` is told of the layers."
    from rag_finetune.lora import add_adapter, linear_layers
    from rag_finetune.models import open_encoder
    model = open_encoder()
    if way == ADAPTER: add_adapter(model, rank, seed=seed)
    if way == UPPER_ADAPTER: add_adapter(model, rank, targets=linear_layers(model, .5), seed=seed)
    return model, .5 if way == UPPER else 0.

# jobs: each in a process of its own, from plain data to plain data

def train(job):
    "Train once; the model stays in the work folder if `keep`."
    from rag_finetune.data import sample
    from rag_finetune.embedding import fine_tune
    from rag_finetune.lora import save_adapter
    splits = splits_of(job["set"])
    if job["rows"]: splits["train"] = sample(splits["train"], job["rows"], 0)
    model, share = prepared(job["way"], job["rank"], job["seed"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    start = time.process_time()
    curve = fine_tune(model, splits["train"], splits["dev"], epochs=job["epochs"], lr=job["lr"], share=share, seed=job["seed"])
    found = {"dev": [p.dev for p in curve.points], "loss": [p.loss for p in curve.points], "best": curve.best, "steps": curve.steps,
             "parameters": trained if job["way"] != UPPER else upper_parameters(model), "seconds": time.process_time() - start}
    if job["keep"]:
        if job["rank"]: save_adapter(model, job["keep"], "default")
        else: model.save(job["keep"])
    return found

def upper_parameters(model):
    "What `fine_tune` trains where half of the layers stay as they are."
    from rag_finetune.embedding import frozen_below
    with frozen_below(model, .5): return sum(p.numel() for p in model.parameters() if p.requires_grad)

def test(job):
    "Each test query's values, of a model that was kept."
    from rag_finetune.lora import load_adapter
    from rag_finetune.metrics import accuracy, ndcg
    from rag_finetune.models import FastEncoder, open_encoder
    from rag_finetune.retrieval import dense
    model = open_encoder() if job["rank"] or not job["kept"] else open_encoder(job["kept"])
    if job["rank"]: load_adapter(model, job["kept"])
    data = splits_of(job["set"])["test"]
    run = dense(data, FastEncoder(model), k=10)
    return {"nDCG@10": ndcg(data.qrels, run, 10), "accuracy@1": accuracy(data.qrels, run, 1)}

def processor():
    "Its name, where the system tells."
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())

def held(part):
    "MiB that the process holds now (VmRSS), or the most that it ever held (VmHWM)."
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(part))
    return int(line.split()[1]) / 1024

def cost(job):
    "Seconds of the processor for a step, and the most memory."
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from rag_finetune import lora  # noqa: F401 imported here so that it counts as imported for every way
    from rag_finetune.data import load
    from rag_finetune.embedding import fine_tune, fit, frozen_below, pair_rows
    before, data = held("VmRSS"), load("transactions")["train"]
    model, share = prepared(job["way"], job["rank"])
    words = " ".join(data.corpus.values()).split()
    def some(n): return replace(data, queries=dict(list(data.queries.items())[:n]), qrels=dict(list(data.qrels.items())[:n]))
    def long(n):
        texts = {q: " ".join(words[7 * i:7 * i + 130]) for i, q in enumerate(list(data.queries)[:n])}
        docs = {q: text[::-1] for q, text in texts.items()}
        rows = pair_rows(replace(some(n), corpus=docs, queries=texts, qrels={q: {q: 1} for q in texts}))
        with frozen_below(model, share): fit(model, rows, MultipleNegativesRankingLoss(model), epochs=1, lr=1e-6, batch_size=32)
    def short(n): fine_tune(model, some(n), name="all-answers", epochs=1, lr=1e-6, share=share)
    steps, size, run = (4, 64, short) if job["texts"] == "short" else (2, 32, long)
    run(size)   # warm
    start = time.process_time()
    run(steps * size)
    return {"seconds": (time.process_time() - start) / steps, "MiB": held("VmHWM") - before}

def serve(job):
    "The memory of one base with adapters, or of as many whole models; and the milliseconds of a switch."
    from rag_finetune.lora import add_adapter, open_adapters, save_adapter, switch
    from rag_finetune.models import encode_queries, open_encoder
    work = Path(job["folder"])
    if job["how"] == "make":   # measured in the next process
        draft = work.with_name(f"{work.name}-draft")
        for i in range(0 if work.exists() else job["n"]):
            model = open_encoder()
            add_adapter(model, job["rank"], seed=i)
            save_adapter(model, draft / str(i), "default")
        if not work.exists(): draft.replace(work)
        return {"made": job["n"]}
    before = held("VmRSS")
    if job["how"] == "whole models":
        models = [open_encoder() for _ in range(job["n"])]
        for model in models: encode_queries(model, ["lunch", "taxi"])
        return {"MiB": held("VmRSS") - before}
    folders = {str(i): work / str(i) for i in range(job["n"])}
    base = open_encoder()
    encoders = open_adapters(base, folders)
    for encoder in encoders.values(): encoder.encode_query(["lunch", "taxi"])
    grown, start = held("VmRSS") - before, time.process_time()
    for i in range(200): switch(base, str(i % job["n"]))
    return {"MiB": grown, "milliseconds of a switch": (time.process_time() - start) * 5}

def bits(job):
    "What 4-bit weights change before any training: cosines with the vectors of float32, and dev's nDCG@10."
    from rag_finetune.data import load
    from rag_finetune.lora import open_4bit
    from rag_finetune.metrics import ndcg
    from rag_finetune.models import FastEncoder, encode_queries, open_encoder
    from rag_finetune.retrieval import dense
    from rag_finetune.verdict import compare, decide, sentence
    dev, four, whole = load("transactions")["dev"], open_4bit(device=job["device"]), open_encoder(device=job["device"])
    texts = list(dev.queries.values())
    cosines = (encode_queries(four, texts) * encode_queries(whole, texts)).sum(axis=1)
    a, b = (ndcg(dev.qrels, dense(dev, FastEncoder(m), k=10), 10) for m in (four, whole))
    found = compare(a, b, "4 bits", "float32", "nDCG@10")
    return {"device": job["device"], "mean cosine": float(cosines.mean()), "least cosine": float(cosines.min()), **found.as_dict(),
            "says": sentence(found, decide(found))}

JOBS = {"train": train, "test": test, "cost": cost, "serve": serve, "bits": bits}


def written(file, text):
    "Write a file as a whole or not at all."
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(text)
    draft.replace(file)

class Work:
    "Jobs that are done, in a folder; a job that is not is run, unless the time is over."
    def __init__(self, folder, minutes):
        self.folder, self.until = folder, time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, kind, **job):
        key = hashlib.sha256(json.dumps([kind, job], sort_keys=True).encode()).hexdigest()[:12]
        file = self.folder / f"{kind}-{key}.json"
        if file.exists(): return json.loads(file.read_text())["found"]
        if time.monotonic() > self.until: sys.exit("the time is over: run it again to go on")
        told = json.dumps(job)
        print(kind, told, flush=True)
        done = subprocess.run([sys.executable, __file__, "--job", kind, told], stdout=subprocess.PIPE, text=True, check=True)
        written(file, done.stdout)
        return json.loads(done.stdout)["found"]


def quality(work, name, seeds):
    "The grid, what dev chose, and the test."
    def trained(way, rank, lr, epochs, rows=0, seed=0, keep=""):
        return work("train", set=name, way=way, rank=rank, lr=lr, epochs=epochs, rows=rows, seed=seed, keep=keep)
    grid = []
    def tried(way, rank, lr):
        found = trained(way, rank, lr, GRID_EPOCHS, GRID_ROWS)["dev"]
        grid.append({"way": way, "rank": rank, "lr": lr, "dev": max(found[1:])})
    def best(way): return max((g for g in grid if g["way"] == way), key=lambda g: g["dev"])
    for way in (ALL, UPPER):
        for lr in FULL_RATES: tried(way, 0, lr)
    for lr in ADAPTER_RATES: tried(ADAPTER, 16, lr)
    for rank in RANKS:
        if rank != 16: tried(ADAPTER, rank, best(ADAPTER)["lr"])
    for way in (ALL, UPPER, ADAPTER):
        rates, lr = [g["lr"] for g in grid if g["way"] == way], best(way)["lr"]
        if lr in (min(rates), max(rates)): print(f"{name}, {way}: the best learning rate, {lr:g}, lies on the edge of the grid", flush=True)
    tried(UPPER_ADAPTER, best(ADAPTER)["rank"], best(ADAPTER)["lr"])
    chosen, values = {}, {"as it came": [work("test", set=name, kept="", rank=0)]}
    for way in (ALL, UPPER, ADAPTER, UPPER_ADAPTER):
        rank, lr = best(way)["rank"], best(way)["lr"]
        kept = {seed: str(work.folder / f"{name}-{way.replace(', ', '-').replace(' ', '-')}-{seed}") for seed in seeds}
        runs = [trained(way, rank, lr, EPOCHS, 0, seed, kept[seed]) for seed in seeds]
        chosen[way] = {"rank": rank, "lr": lr, "epochs": [r["best"] for r in runs], "dev": [max(r["dev"][1:]) for r in runs],
                       "parameters": runs[0]["parameters"], "seconds": [round(r["seconds"], 1) for r in runs],
                       "bytes": sum(f.stat().st_size for f in Path(kept[seeds[0]]).rglob("*") if f.is_file())}
        values[way] = [work("test", set=name, kept=kept[seed], rank=rank) for seed in seeds]
    return {"grid": grid, "chosen": chosen, **compared(values)}

def compared(values):
    "Means with intervals, and the paired tests, Holm-corrected within each metric."
    from rag_finetune.verdict import compare_all, decide, interval, sentence
    test, comparisons = [], []
    for metric in METRICS:
        means = {way: {q: statistics.mean(run[metric][q] for run in runs) for q in runs[0][metric]} for way, runs in values.items()}
        for way, v in means.items():
            each = [statistics.mean(run[metric].values()) for run in values[way]]
            test.append({"way": way, "metric": metric, **interval(v).as_dict(), "seeds": each})
        comparisons += [c.as_dict() | {"says": sentence(c, decide(c))} for c in compare_all(means, PAIRS, metric)]
    return {"test": test, "comparisons": comparisons}

def costs(work, rounds):
    "A row for each way and kind of text: medians over rounds, and the ratio to all layers with its least and greatest."
    ways = ((ALL, 0), (UPPER, 0), (ADAPTER, 16), (UPPER_ADAPTER, 16))
    took = {(texts, way): [] for texts in ("short", "long") for way, _ in ways}
    for turn in range(rounds):
        for texts in ("short", "long"):
            for way, rank in ways: took[texts, way].append(work("cost", texts=texts, way=way, rank=rank, round=turn))
    rows = []
    for (texts, way), found in took.items():
        row = {"texts": texts, "way": way}
        for part in ("seconds", "MiB"):
            ratios = [a[part] / b[part] for a, b in zip(found, took[texts, ALL], strict=True)]
            row |= {part: round(statistics.median(f[part] for f in found), 3),
                    f"{part}: this / all layers": [round(x, 3) for x in (statistics.median(ratios), min(ratios), max(ratios))]}
        rows.append(row)
    return rows

def serving(work, rounds):
    "Memory against the number of models, one row for each."
    rows, rank = [], 16
    for n in (2, 10):
        folder = str(work.folder / f"adapters-{n}")
        work("serve", n=n, how="make", rank=rank, folder=folder)
        for how in ("adapters", "whole models"):
            found = [work("serve", n=n, how=how, rank=rank, folder=folder, round=r) for r in range(rounds)]
            rows.append({"n": n, "how": how, **{k: round(statistics.median(f[k] for f in found), 2) for k in found[0]}})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--sets", default="transactions,banking77")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10_000)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps({"job": args.job, "found": JOBS[args.job[0]](json.loads(args.job[1]))}))
        return
    if not args.work: parser.error("--work FOLDER: where what is done is kept")
    sets = [s for s in args.sets.split(",") if s == "transactions" or os.environ.get("RAG_FINETUNE_DATA")]
    if left := set(args.sets.split(",")) - set(sets): print("left out, as RAG_FINETUNE_DATA is not set:", *left)
    work, seeds = Work(args.work.resolve(), args.minutes), [int(s) for s in args.seeds.split(",")]
    import torch

    from rag_finetune.models import best_device
    found = {"sets": {name: quality(work, name, seeds) for name in sets}}
    found |= {"cost": costs(work, args.rounds), "serving": serving(work, args.rounds)}
    if find_spec("bitsandbytes"): found["4 bits"] = work("bits", device=best_device())
    else: print("left out, as bitsandbytes is not installed: 4 bits")
    versions = {"python": platform.python_version()} | {p: version(p) for p in ("torch", "sentence-transformers", "transformers", "peft")}
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions}
    command = f"python bench/lora.py --work FOLDER --sets {','.join(sets)} --seeds {args.seeds} --rounds {args.rounds}"
    saved = {"command": f"OMP_NUM_THREADS={torch.get_num_threads()} {command}", "machine": machine, "seeds": seeds, **found}
    written(ROOT / "assets" / "lora.json", json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__": main()
