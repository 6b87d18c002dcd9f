"""How fast are we against what a user would do otherwise? Both sides in one run, turn by turn.

    python bench/speed.py [--rounds 5] [--short 1000] [--long 100] [--pairs 192] [--epochs 1]
                          [--training-rounds 2] [--skip-training] [--skip-encoding] [--save]

Encoding: `encode_queries`/`encode_documents` against `SentenceTransformer.encode_query`/`encode_document` with their defaults (float32,
32 texts a batch), on short texts (the bundled transactions; banking77 where $RAG_FINETUNE_DATA is set) and long ones (scifact, there).
Training: `fine_tune` against the recipe that sentence-transformers documents (MultipleNegativesRankingLoss, float32, batches of 32,
NO_DUPLICATES), same learning rate, warm-up and epochs, on pairs of scifact and medquad where $RAG_FINETUNE_DATA is set. Only training
steps are timed; dev nDCG@10 is measured afterwards on both models, over the dev queries' documents and some others.

Each round runs one side and then the other (every other round the other way round), so that other work on the machine meets both; a
ratio is the median over rounds of this round's ratio, with the least and the greatest. --save writes assets/speed.json.
"""
import argparse
import json
import os
import platform
import random
import shlex
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import PrinterCallback, TrainerCallback

from rag_finetune.core import Dataset
from rag_finetune.data import carve_dev, load, sample, split
from rag_finetune.embedding import dev_score, fine_tune
from rag_finetune.models import FastEncoder, best_device, best_dtype, encode_documents, encode_queries, open_encoder

ROOT = Path(__file__).resolve().parent.parent
LR = 5e-5   # of both sides: the default of sentence-transformers' training arguments, and ours
NO_BF16 = "this CPU has no AVX512-BF16 or AMX: the bf16 figure does not apply here"


def machine(device):
    "What a figure depends on."
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    flags = torch.cpu.get_capabilities()
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "avx512_bf16": bool(flags.get("avx512_bf16")), "amx_bf16": bool(flags.get("amx_bf16")),
            "device": torch.cuda.get_device_name() if device == "cuda" else device, "bf16": best_dtype(device) is torch.bfloat16,
            "load_average": [round(x, 1) for x in os.getloadavg()], "system": f"{platform.system()} {platform.machine()}",
            "versions": {p: version(p) for p in ("torch", "sentence-transformers", "transformers", "numpy")},
            "python": platform.python_version()}


def _cpuinfo():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def compare(name, unit, theirs, ours, rounds, notes):
    "Both sides turn by turn; each side returns (units, seconds)."
    rates = {"theirs": [], "ours": []}
    for i in range(rounds):
        for side in ("theirs", "ours") if i % 2 == 0 else ("ours", "theirs"):
            units, seconds = (theirs if side == "theirs" else ours)()
            rates[side].append(units / seconds)
    ratios = [o / t for o, t in zip(rates["ours"], rates["theirs"])]
    row = {"what": name, "unit": unit, "theirs": statistics.median(rates["theirs"]), "ours": statistics.median(rates["ours"]),
           "ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios), "rates": rates, **notes}
    print(f"{name:44s} {row['theirs']:9.1f} {row['ours']:9.1f} {unit:8s} {row['ratio']:5.2f}  "
          f"({row['least']:.2f} to {row['greatest']:.2f})  " + ", ".join(f"{k} {v}" for k, v in notes.items()), flush=True)
    return row


def timed(f, units):
    start = time.perf_counter()
    f()
    return units, time.perf_counter() - start


# ---- encoding

def texts_by_length(data, short, long):
    "name -> (kind, texts): what is there to encode."
    found = {"transactions": ("query", list(load("transactions")["test"].queries.values())[:short])}
    if data:
        found["banking77"] = ("query", list(load(data / "banking77")["test"].queries.values())[:short])
        found["scifact"] = ("document", random.Random(0).sample(sorted(load(data / "scifact")["test"].corpus.values()), long))
    return found


def encoding(encoder, data, args):
    rows = []
    for name, (kind, texts) in texts_by_length(data, args.short, args.long).items():
        ours, own = (encode_queries, encoder.encode_query) if kind == "query" else (encode_documents, encoder.encode_document)
        tokens = [len(t) for t in encoder.tokenizer(texts, truncation=True, max_length=encoder.max_seq_length)["input_ids"]]
        expected = own(texts)
        for dtype in dict.fromkeys((torch.float32, best_dtype(encoder.device))):
            own(texts[:64]); ours(encoder, texts[:64], dtype=dtype)   # warm up
            cosine = float(np.min(np.sum(ours(encoder, texts, dtype=dtype) * expected, axis=1)))
            notes = {"texts": len(texts), "mean tokens": round(statistics.mean(tokens), 1), "least cosine": round(cosine, 5)}
            rows.append(compare(f"encode {name}, {str(dtype)[6:]}", "texts/s", lambda o=own, t=texts: timed(lambda: o(t), len(t)),
                                lambda o=ours, t=texts, d=dtype: timed(lambda: o(encoder, t, dtype=d), len(t)), args.rounds, notes))
    return rows


# ---- training

class Stopwatch(TrainerCallback):
    "Seconds from the first step to the last."
    def on_train_begin(self, args, state, control, **kwargs): self.start = time.monotonic()
    def on_train_end(self, args, state, control, **kwargs): self.seconds = time.monotonic() - self.start


def documented_recipe(model, train, epochs):
    "Fine-tune as sentence-transformers documents it; (pairs, seconds)."
    pairs = [(train.queries[q], train.corpus[d]) for q in train.queries for d in train.positives(q)]
    rows = datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    watch = Stopwatch()
    with TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=LR, warmup_steps=.1,
            fp16=False, bf16=False, batch_sampler=BatchSamplers.NO_DUPLICATES, use_cpu=model.device.type == "cpu", seed=0,
            save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False)
        loss = MultipleNegativesRankingLoss(model)
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return len(pairs) * epochs, watch.seconds


def smaller(dataset, queries, docs):
    "`queries` queries, their documents and others up to `docs`: a dev set that takes seconds to score."
    few = sample(dataset, queries)
    keep = dict.fromkeys(d for q in few.queries for d in few.positives(q))
    others = random.Random(0).sample([d for d in dataset.corpus if d not in keep], max(0, min(docs, len(dataset.corpus)) - len(keep)))
    corpus = {d: dataset.corpus[d] for d in [*keep, *others]}
    return Dataset(corpus, few.queries, {q: {d: g for d, g in few.qrels[q].items() if d in corpus} for q in few.queries}, dataset.name)


def training(data, device, args):
    rows = []
    sources = {"scifact": data / "scifact", "medquad": data / "medquad" / "medquad.csv"}
    for name, path in sources.items():
        splits = load(path)
        splits = split(splits["all"]) if "all" in splits else splits if "dev" in splits else carve_dev(splits)
        train, dev, scores = sample(splits["train"], args.pairs), smaller(splits["dev"], 50, 200), {"theirs": [], "ours": []}

        def theirs(train=train, dev=dev, scores=scores):
            model = open_encoder("default", device=device)
            found = documented_recipe(model, train, args.epochs)
            scores["theirs"].append(dev_score(FastEncoder(model), dev))
            return found

        def ours(train=train, dev=dev, scores=scores):
            model = open_encoder("default", device=device)
            curve = fine_tune(model, train, epochs=args.epochs, lr=LR)
            scores["ours"].append(dev_score(FastEncoder(model), dev))
            return curve.rows, curve.seconds

        base = round(dev_score(FastEncoder(open_encoder("default", device=device)), dev), 4)
        notes = {"queries": len(train.queries), "epochs": args.epochs, "base dev nDCG@10": base}
        row = compare(f"train {name}, {str(best_dtype(device))[6:]}", "pairs/s", theirs, ours, args.training_rounds, notes)
        row["dev"] = {side: round(statistics.median(values), 4) for side, values in scores.items()}
        print(f"{'':44s} dev nDCG@10: theirs {row['dev']['theirs']}, ours {row['dev']['ours']}", flush=True)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in {"rounds": 5, "training-rounds": 2, "short": 1000, "long": 100, "pairs": 192, "epochs": 1}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--skip-encoding", action="store_true")
    parser.add_argument("--save", action="store_true", help="write assets/speed.json")
    args, device = parser.parse_args(), best_device()
    data = Path(os.environ["RAG_FINETUNE_DATA"]) if os.environ.get("RAG_FINETUNE_DATA") else None
    here = machine(device)
    print("\n".join(f"{k}: {v}" for k, v in here.items()), "\n")
    print(f"{'':44s} {'theirs':>9s} {'ours':>9s} {'':8s} ratio  (rounds)")
    rows = [] if args.skip_encoding else encoding(open_encoder("default", device=device), data, args)
    if args.skip_training: print("training: left out, as asked")
    elif data is None: print("training: not measured, $RAG_FINETUNE_DATA does not name the folder of the public data sets")
    else: rows += training(data, device, args)
    if device == "cpu" and not here["bf16"]: print(f"\n{NO_BF16}")
    if args.save:
        notes = [] if here["bf16"] or device != "cpu" else [NO_BF16]
        saved = {"command": shlex.join(["python", "bench/speed.py", *sys.argv[1:]]), "machine": here, "notes": notes, "rows": rows}
        (ROOT / "assets" / "speed.json").write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__": main()
