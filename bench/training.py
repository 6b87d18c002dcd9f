"""What a training holds in memory, what it forgets, and what weights between the two models bring back.

    python bench/training.py --part memory
    python bench/training.py --part transactions [--seed 0]
    python bench/training.py --part handbook [--seed 0]

memory: for each setting a process of its own asks `peak_memory`, then trains three steps on texts of that many words, keeps the best
weights and writes a checkpoint, and reads the most that it ever held (VmHWM) above what it held before.

transactions, handbook: the embedded model is fine-tuned on that set (dev chooses the epoch) and measured, with the models between it and
the model as it came, on the same set and on the other one, of which it saw nothing. The share of the way is chosen on the dev queries of
the set that was trained for, the least of equal ones; test is asked once. Each part is written into assets/training.json beside the others.
"""
import argparse
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
SAVED = ROOT / "assets" / "training.json"
SETTINGS = [(kind, *size) for kind in ("full", "half", "adapter") for size in ((16, 64), (32, 64), (64, 32), (16, 128), (12, 96))]
SHARES = (0., .1, .25, .5, .75, 1.)


def held(part):
    "Bytes that the process holds now (VmRSS), or the most that it ever held (VmHWM)."
    return int(re.search(rf"{part}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def measure(kind, rows, tokens):
    "What a training was said to take, and took; bytes."
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from rag_finetune.embedding import Rows, fit, frozen_below
    from rag_finetune.lora import add_adapter
    from rag_finetune.models import open_encoder
    from rag_finetune.training import Kept, peak_memory
    model, rng = open_encoder(), random.Random(0)
    if kind == "adapter": add_adapter(model, 8)
    ids = [frozenset([str(i)]) for i in range(3 * rows)]
    def texts(): return [" ".join(rng.choices(["red", "car", "lunch", "hotel", "of"], k=tokens)) for _ in ids]
    data = Rows({"anchor": texts(), "positive": texts()}, ids, ids)
    recalled = 2 * len(ids) * tokens * 4 * 384 if kind == "half" else 0   # 384 numbers of each token
    with TemporaryDirectory() as folder, frozen_below(model, .5 if kind == "half" else 0.):
        told, before = peak_memory(model, rows, tokens, kept=Kept(True, True, recalled)), held("VmRSS")
        loss, out = MultipleNegativesRankingLoss(model), Path(folder)
        fit(model, data, loss, lambda: 0., epochs=1, batch_size=rows, tokens=tokens, checkpoints=out)
    return {"trained": kind, "rows": rows, "tokens": tokens, "told": told.peak, "took": held("VmHWM") - before, "before": before}


def forgetting(trained, seed):
    "Both sets' figures for the models between the model as it came and the tuned one."
    from rag_finetune.data import load
    from rag_finetune.embedding import between, fine_tune
    from rag_finetune.models import open_encoder
    from rag_finetune.verdict import compare, decide, interval, sentence
    splits = {name: load(name) for name in ("transactions", "handbook")}
    other = next(name for name in splits if name != trained)
    base, tuned = open_encoder(), open_encoder()
    curve = fine_tune(tuned, splits[trained]["train"], splits[trained]["dev"], epochs=3, seed=seed)
    dev = between(base, tuned, {"dev": splits[trained]["dev"]}, SHARES)
    means = {s: sum(found["dev"].values()) / len(found["dev"]) for s, found in dev.items()}
    chosen = max(means, key=lambda s: (means[s], -s))
    test = between(base, tuned, {name: splits[name]["test"] for name in (trained, other)}, SHARES)
    def told(name, a, b):
        names = {0.: "as it came", 1.: "tuned"}
        c = compare(test[a][name], test[b][name], names.get(a, f"{a:g} of the way"), names.get(b, f"{b:g} of the way"), "nDCG@10", seed)
        return {**c.as_dict(), "decision": decide(c), "sentence": sentence(c, decide(c))}
    pairs = dict.fromkeys([(1., 0.), (chosen, 0.), (chosen, 1.), (.5, 0.), (.5, 1.)])
    return {"trained": trained, "other": other, "seed": seed, "epoch": curve.best, "dev": means, "chosen on dev": chosen,
            "curve": {name: {s: interval(test[s][name], seed).as_dict() for s in SHARES} for name in (trained, other)},
            "comparisons": {name: [told(name, a, b) for a, b in pairs if a != b] for name in (trained, other)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=["memory", "transactions", "handbook"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)   # a setting of memory, in a process of its own
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*json.loads(args.one))))
        return
    found = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {}
    if args.part == "memory":
        run = [sys.executable, __file__, "--part", "memory", "--one"]
        told = (subprocess.run([*run, json.dumps(s)], check=True, stdout=subprocess.PIPE, text=True).stdout for s in SETTINGS)
        memory = [json.loads(text.splitlines()[-1]) for text in told]
        found = {**(json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {}), "memory": memory}
    else: found[args.part] = forgetting(args.part, args.seed)
    from rag_finetune.models import open_encoder
    from rag_finetune.pipeline import environment
    found["environment"] = environment("default", open_encoder(device="cpu"))
    found["command"] = "OMP_NUM_THREADS=1 python bench/training.py --part PART, for each of its parts"
    SAVED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
