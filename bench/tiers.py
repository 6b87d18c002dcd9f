"""What one question costs with one tier and with two, by the documents that are reranked.

    OMP_NUM_THREADS=1 python bench/tiers.py [--questions 7] [--rounds 2] [--out assets/tiers.json]

The handbook's dev questions, one at a time, among its 463 sections, whose vectors are at hand. The second tier is MiniLM in three ways:
`tokens kept`, late interaction with the token vectors of all sections in memory; `tokens when asked`, the same, with the sections' tokens
made for each question anew; `cross-encoder`, a pass for each pair, whose head is fresh: it says nothing of quality, and costs what a
trained one costs. All of it is done in turn, so many rounds, and of each figure the round with the least median is kept. Milliseconds are
those of one processor core (`time.process_time`), with one thread: what the rest of the machine does is not in them, but for the caches
and cores that it shares. `bytes` is what lies in memory for the sections.

Quality is not in here: nbs/18_tiers.ipynb has it, for late interaction alone. Not measured yet: trained cross-encoders by depth, and how
the mix of their negatives tells on a tuned first stage.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
from losses import machine

from rag_finetune.data import atomic, load, sample
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.reranker import FastScorer, LateInteraction, open_reranker
from rag_finetune.tiers import latency

DEPTHS = (5, 10, 20, 50, 100, 200)   # the issue's
OUT = Path(__file__).resolve().parent.parent / "assets" / "tiers.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=7, help="for the ways that read documents, the first for warming up; four times "
                        "as many for the others")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    dev, model = load("handbook")["dev"], open_encoder()
    encoder, texts = FastEncoder(model), list(dev.corpus.values())
    vectors, kept, fresh = encoder.encode_document(texts), LateInteraction(model), FastScorer(open_reranker())
    asked = list(sample(dev, 4 * args.questions, 0).queries.values())
    kept.predict([(asked[0], text) for text in texts])   # all of them are in memory from here on

    def first(question, k): return [texts[i] for i in np.argsort(-(vectors @ encoder.encode_query([question])[0]), kind="stable")[:k]]
    def pairs(question, k): return [(question, text) for text in first(question, k)]
    ways = {"tokens kept": (4 * args.questions, lambda q, k: kept.predict(pairs(q, k))),
            "tokens when asked": (args.questions, lambda q, k: LateInteraction(model).predict(pairs(q, k))),
            "cross-encoder": (args.questions, lambda q, k: fresh.predict(pairs(q, k)))}
    todo = {("no second tier", 0): (4 * args.questions, lambda q: first(q, 10))}
    todo |= {(way, k): (n, lambda q, answer=answer, k=k: answer(q, k)) for way, (n, answer) in ways.items() for k in DEPTHS}
    found = {key: [] for key in todo}
    for _ in range(args.rounds):
        for key, (n, answer) in todo.items():
            found[key].append(latency(answer, asked[:n], time.process_time))
            print(*key, f"{found[key][-1].median:.1f} ms", flush=True)
    rows = [{"way": way, "depth": k, **min(those)._asdict()} for (way, k), those in found.items()]
    size = {"vectors": vectors.nbytes, "token vectors": sum(v.nbytes for v in kept.documents.values())}
    with atomic(args.out) as file:
        command = f"OMP_NUM_THREADS=1 python bench/tiers.py --questions {args.questions} --rounds {args.rounds}"
        json.dump({"command": command, "machine": machine(), "clock": "milliseconds of one processor core",
                   "documents": len(texts), "bytes": size, "rows": rows}, file, indent=1)
        file.write("\n")


if __name__ == "__main__": main()
