"""Rerankers side by side on a bundled set: quality with intervals, paired tests, milliseconds a query, memory; and the bundled model
fine-tuned in full and with adapters on the same rows. Saved in assets/rerankers.json with the machine.

    OMP_NUM_THREADS=1 python bench/rerankers.py                          # trains on all training queries: hours on two cores
    OMP_NUM_THREADS=1 python bench/rerankers.py --train 128 --epochs 1   # a first look
    python bench/rerankers.py --train 0 mine=FOLDER theirs=owner/name    # rerankers that are there already

Dev is asked, and nothing is chosen by it: each training runs all of its epochs. Negatives are drawn as the main job draws them, behind the
model as it came; learning rates are the main job's, and `lora.LR`. Each training and each reranker has a process of its own, so that none
finds memory that another one left.
"""
import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rag_finetune.data import load, sample
from rag_finetune.lora import LR, add_adapter, merge
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.negatives import known_answers
from rag_finetune.pipeline import EASY, HARD, RANKS
from rag_finetune.reranker import LateInteraction, fine_tune_reranker, mixed_negatives, open_reranker
from rag_finetune.rerankers import FIRST, SideBySide, compare_rerankers, peak_growth
from rag_finetune.retrieval import dense
from rag_finetune.verdict import compare_all, decide, sentence, table

ROOT = Path(__file__).resolve().parent.parent
FULL_LR = 1e-4   # as `fine_tune_reranker`


def trained(train, negatives, adapter, epochs, folder):
    "Fine-tune the bundled model with a fresh head, merged if it had an adapter, and save it; what that took."
    model = open_reranker()
    weights = add_adapter(model) if adapter else sum(p.numel() for p in model.parameters())
    began = time.process_time()
    grown = peak_growth(lambda: fine_tune_reranker(model, train, negatives=negatives, epochs=epochs, lr=LR if adapter else FULL_LR))
    took = {"trained": weights, "seconds": time.process_time() - began, "MiB": grown}
    if adapter: merge(model)
    model.save_pretrained(str(folder))
    return took


def measured(dataset, run, name, given, k):
    "One reranker's run, and what it takes."
    found = compare_rerankers(dataset, run, {name: LateInteraction(open_encoder()) if name == "tokens" else given}, k=k)
    if found.skipped: raise SystemExit(f"{name} {found.skipped[name]}")
    return found.runs[name], found.costs[name]


def alone(work, *given):
    "What `work` returns in a process of its own."
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool: return pool.submit(work, *given).result()


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "versions": {p: version(p) for p in ("torch", "sentence-transformers", "peft")}}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rerankers", nargs="*", help="NAME=FOLDER or NAME=owner/name")
    parser.add_argument("--set", default="handbook", help="a bundled set")
    parser.add_argument("--train", type=int, help="training queries; all by default, 0 for no training")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--k", type=int, default=20, help="documents of each query that are reranked")
    parser.add_argument("--saved", type=Path, default=ROOT / "assets" / "rerankers.json")
    args = parser.parse_args(argv)
    splits, model = load(args.set), open_encoder()
    train, dev, encoder = splits["train"], splits["dev"], FastEncoder(model)
    if args.train: train = sample(train, args.train)
    scorers, run = {"tokens": None, **dict(one.split("=", 1) for one in args.rerankers)}, dense(dev, encoder, k=50)
    training = {}
    with TemporaryDirectory() as folder:
        if args.train != 0:
            known = known_answers(train)
            negatives = mixed_negatives(known, dense(known, encoder, k=RANKS), HARD, EASY, RANKS)
            for name, adapter in (("full", False), ("adapters", True)):
                training[name] = alone(trained, train, negatives, adapter, args.epochs, Path(folder, name))
                print(name, training[name], flush=True)
                scorers[name] = Path(folder, name)
        parts = {name: alone(measured, dev, run, name, given, args.k) for name, given in scorers.items()}
    runs = compare_rerankers(dev, run, {}, k=args.k).runs | {name: part[0] for name, part in parts.items()}
    values = {name: ndcg(dev.qrels, r, 10) for name, r in runs.items()}
    found = SideBySide(args.k, runs, table(dev.qrels, runs, ("nDCG@10", "MRR@10", "recall@10")),
                       compare_all(values, [(name, FIRST) for name in runs if name != FIRST], "nDCG@10"),
                       {name: part[1] for name, part in parts.items()}, {})
    both = compare_all(values, [("adapters", "full")], "nDCG@10") if training else []
    said = [sentence(c, decide(c)) for c in [*found.comparisons, *both]]
    print(found, *said, sep="\n")
    command = shlex.join(["python", "bench/rerankers.py", *(sys.argv[1:] if argv is None else argv)])
    args.saved.write_text(json.dumps({
        "command": command, "machine": machine(), "set": args.set, "queries": len(dev.queries),
        "train": len(train.queries) if training else 0, "k": args.k,
        "table": str(found).splitlines(), "said": said, "training": training,
        "figures": {s: {m: i.as_dict() for m, i in row.items()} for s, row in found.figures.items()},
        "comparisons": [asdict(c) for c in [*found.comparisons, *both]],
        "costs": {s: {"latency": c.latency._asdict(), "weights": c.weights, "grown": c.grown} for s, c in found.costs.items()},
    }, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
