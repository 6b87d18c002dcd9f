"""What one question costs with one tier and with two, and what it gets, by the documents that are reranked.

    OMP_NUM_THREADS=1 python bench/tiers.py [--only cost|quality] [--questions 7] [--rounds 2] [--work bench-ablation]

The handbook's dev questions, one at a time, among its 463 sections, whose vectors are at hand. The second tier is MiniLM in three ways:
`tokens kept`, late interaction with the token vectors of all sections in memory; `tokens when asked`, the same, with the sections' tokens
made for each question anew; `cross-encoder`, a pass for each pair, whose head is fresh: it says nothing of quality, and costs what a
trained one costs. All of it is done in turn, so many rounds, and of each figure the round with the least median is kept. Milliseconds are
those of one processor core (`time.process_time`), with one thread: what the rest of the machine does is not in them, but for the caches
and cores that it shares. `bytes` is what lies in memory for the sections.

Quality is nDCG@10 of each dev question. The first stage is MiniLM as it comes, or as the main job fine-tunes it. Behind it stand its own
tokens as they are, its tokens trained (`tokens-known-answers` in bench/ablation.py), or a cross-encoder trained (`known-answers` there),
alone and half and half with the first stage. The trainings are the ablation's, of one seed, and made once for both; dev chose nothing but
the first stage's recipe. An untrained cross-encoder has no quality.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
from ablation import TRAINING, First, trained
from losses import machine

from rag_finetune.data import atomic, load, sample
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.pipeline import Remembering
from rag_finetune.reranker import FastScorer, LateInteraction, open_reranker
from rag_finetune.retrieval import dense, rerank
from rag_finetune.tiers import latency, to_depth

DEPTHS = (5, 10, 20, 50, 100, 200)   # the issue's
OUT = Path(__file__).resolve().parent.parent / "assets" / "tiers.json"


def costs(args):
    "Milliseconds of a question and bytes in memory."
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
    size = {"vectors": vectors.nbytes, "token vectors": sum(v.nbytes for v in kept.documents.values())}
    return {"clock": "milliseconds of one processor core", "documents": len(texts), "bytes": size,
            "rows": [{"way": way, "depth": k, **min(those)._asdict()} for (way, k), those in found.items()]}


def qualities(args):
    "nDCG@10 of each dev question, in the dataset's order."
    tuned = First("handbook", {"data": "handbook", "train_limit": None, "model": "default"}, args)
    dev, base = tuned.dev, Remembering(open_encoder())
    stages = {"base": dense(dev, base, base.key, k=max(DEPTHS)), "tuned": dense(dev, tuned.tuned, tuned.tuned.key, k=max(DEPTHS))}
    own = {"base": LateInteraction(base.model), "tuned": tuned.late}
    made = {name: trained(tuned, arm, 0, args)[0] for name, arm in (("trained tokens", "tokens-known-answers"),
                                                                            ("trained cross-encoder", "known-answers"))}
    rows = []
    def note(run, **told):
        values = ndcg(dev.qrels, run, 10)
        rows.append({**told, "values": [round(values[q], 4) for q in dev.queries]})
        print(*told.values(), f"{np.mean(rows[-1]['values']):.3f}", flush=True)
    for stage, run in stages.items():
        note(run, stage=stage, tier="none", weight=0., depth=0)
        for tier, scorer in {"own tokens": own[stage], **made}.items():
            scored = rerank(dev, run, scorer, max(DEPTHS))
            for weight in (1., .5):
                for k in DEPTHS: note(to_depth(run, scored, k, weight), stage=stage, tier=tier, weight=weight, depth=k)
    return {"dataset": "handbook", "metric": "nDCG@10 on dev", "queries": len(dev.queries), "train": len(tuned.train.queries),
            "epochs": args.epochs, "tokens": args.tokens, "rows": rows}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("cost", "quality"), help="the other one stays in the file as it is")
    parser.add_argument("--questions", type=int, default=7, help="for the ways that read documents, the first for warming up; four times "
                        "as many for the others")
    parser.add_argument("--rounds", type=int, default=2)
    for option, default in TRAINING.items(): parser.add_argument(f"--{option}", type=int, default=default, help="as in the ablation")
    parser.add_argument("--work", type=Path, default=Path("bench-ablation"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    saved = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for part, measure in (("cost", costs), ("quality", qualities)):
        if args.only not in (None, part): continue
        given = ("questions", "rounds") if part == "cost" else TRAINING
        command = " ".join(["OMP_NUM_THREADS=1 python bench/tiers.py --only", part, *(f"--{k} {getattr(args, k)}" for k in given)])
        found = {"command": command, "machine": machine(), **measure(args)}
        saved |= found if part == "cost" else {"quality": found}
        with atomic(args.out) as file: file.write(json.dumps(saved) + "\n")


if __name__ == "__main__": main()
