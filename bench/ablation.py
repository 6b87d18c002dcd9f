"""What carries a reranker that starts without a head? Each way to train one, judged on dev; no test split is asked.

    OMP_NUM_THREADS=1 python bench/ablation.py [--sets transactions,handbook] [--set NAME=PATH[,LIMIT]] [--seeds 0,1,2] [--save]
        [--arms labels,hard-only,...] [--train 256] [--dev 120] [--epochs 2] [--tokens 160] [--work bench-ablation]

The first stage is the main job's, with its own recipe: the fine-tuned model, fused with BM25 as dev weighs them. Behind it each arm reranks
`READ` documents, or fewer, mixed with the first stage. Dev's queries are in two halves: depth and weight of one are chosen on the other,
so that no query has a say in its own figure. (That of BM25 in the first stage is chosen on both, which flatters the first stage.) Every
training runs all of its epochs. `late`, the fine-tuned model's tokens, is not trained. Each arm has a value for each dev query, averaged
over its seeds, and is compared with the first stage and with `late`: paired, Holm, the seeds' spread in the interval as in seeds.py.
The easy majority is no part of what a first stage returns. So each arm also ranks the right documents among nineteen drawn at random
(`easy`), where `EASY_RIVALS` are compared.

An arm differs from `known-answers` in what its name says: ListNet over the judgements, four hard negatives of the first stage and four at
random, out of the documents that are right for another training query, from the bundled MiniLM with a fresh head. `labels` takes them out
of the whole corpus. Those called `tokens` train the tokens of an embedding model for late interaction, with the batch's other answers and
one hard negative, out of the whole corpus unless `known-answers` is in the name. With `made-up-queries` every document is right for some
query. `flagembedding` has the same rows and start, by FlagEmbedding's own trainer; a softmax over one right document of a query and its
wrong ones, whole batches only, dropout of its own. `RIVALS` are compared with each other too. Every
finished training becomes one file under --work at once, and a second call goes on from there.
--save writes assets/ablation.json; sets and seeds that were not asked for stay in it as they are.
"""
import argparse
import hashlib
import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from losses import machine
from seeds import CODE, ROOT, asked, average, claim, mean, widened

from rag_finetune.data import atomic, load, read_any, sample
from rag_finetune.embedding import Curve, few_documents
from rag_finetune.flag import train_flag
from rag_finetune.late import fine_tune_late
from rag_finetune.metrics import ndcg, recall
from rag_finetune.models import open_encoder
from rag_finetune.negatives import known_answers
from rag_finetune.pairs import near_misses, paraphrases
from rag_finetune.pipeline import (
    COMPARED, FEW, MANY, READ, Remembering, Rung, _both, _kept, blend, choose, judge, prepare, save_model, tier, tier_rungs, train_best,
)
from rag_finetune.reranker import FastScorer, LateInteraction, fine_tune_reranker, mixed_negatives, open_reranker, teach
from rag_finetune.retrieval import bm25, dense, rerank
from rag_finetune.synthetic import Page, as_dataset, made_offline
from rag_finetune.verdict import compare_all, interval, sentence

SAVED = ROOT / "assets" / "ablation.json"
DECIDES = "nDCG@10"
CODE_READ = b"".join((ROOT / "rag_finetune" / f"{m}.py").read_bytes() for m in (*CODE, "flag", "losses", "pairs", "synthetic"))


TOKENS, FLAG = "tokens", "FlagEmbedding"
TRAINING = {"train": 256, "dev": 120, "epochs": 2, "tokens": 160}   # queries of both splits, at most


class Arm(NamedTuple):
    "One way to train a reranker."
    loss: str = "ListNetLoss"   # or TOKENS: the tokens of an embedding model, for late interaction; FLAG: by its own trainer and loss
    hard: int = 4
    easy: int = 4
    margin: float | None = None # relative, of the hard ones
    known: bool = True          # negatives only out of documents that are right for another training query
    start: str = "default"      # "default", "tuned" (the fine-tuned first stage's weights), "others" (other bundled sets first)
    more: str | None = None     # beside the labelled queries: "made-up queries", "paraphrases"; beside the negatives: "near misses"
    teacher: str | None = None  # whose scores are learnt instead of the labels: "first", "late"


ARMS = {
    "known-answers": Arm(), "labels": Arm(known=False), "hard-only": Arm(hard=8, easy=0), "easy-only": Arm(hard=0, easy=8),
    "cross-entropy": Arm(loss="BinaryCrossEntropyLoss"), "in-batch": Arm(loss="MultipleNegativesRankingLoss"),
    "lambda": Arm(loss="LambdaLoss"), "flagembedding": Arm(loss=FLAG),
    "margin": Arm(margin=.05), "near-misses": Arm(hard=3, more="near misses"), "paraphrases": Arm(more="paraphrases"),
    "from-tuned": Arm(start="tuned"), "other-sets-first": Arm(start="others"), "made-up-queries": Arm(more="made-up queries"),
    "taught-by-first": Arm(teacher="first"), "taught-by-late": Arm(teacher="late"),
    "from-tuned-taught-by-late": Arm(start="tuned", teacher="late"),
    "from-tuned-made-up-queries-taught-by-late": Arm(start="tuned", teacher="late", more="made-up queries"),
    "tokens": Arm(TOKENS, 1, 0, start="tuned", known=False), "tokens-of-base": Arm(TOKENS, 1, 0, known=False),
    "tokens-known-answers": Arm(TOKENS, 1, 0, start="tuned"), "tokens-in-batch": Arm(TOKENS, 0, 0, start="tuned", known=False),
    "tokens-made-up-queries": Arm(TOKENS, 1, 0, start="tuned", more="made-up queries"),
}


CARRIES = ("from-tuned", "other-sets-first", "made-up-queries", "taught-by-first", "flagembedding")
RIVALS = {**dict.fromkeys(CARRIES, "known-answers"), "known-answers": "labels", "tokens": "labels", "tokens-known-answers": "tokens",
          "tokens-in-batch": "tokens", "tokens-made-up-queries": "tokens-known-answers"}
EASY_RIVALS = {"hard-only": "known-answers", "easy-only": "known-answers", "known-answers": "labels"}   # on the easy majority


def key(*told):
    "Changes with our code and with what it is told."
    return hashlib.sha256(CODE_READ + repr(told).encode()).hexdigest()[:10]


class First:
    "The first stage of a set: the fine-tuned model and BM25, weighed on dev."
    def __init__(self, name, settings, args):
        splits = prepare(read_any(settings["data"]).splits, settings["train_limit"], 0).splits
        self.name, self.work, self.model = name, args.work, settings["model"]
        self.train = sample(splits["train"], min(args.train, len(splits["train"].queries)))
        self.dev = sample(splits["dev"], min(args.dev, len(splits["dev"].queries)))
        self.key = key([s.fingerprint for s in (splits["train"], splits["dev"], self.train, self.dev)], self.model)
        folder = args.work / f"{name}-tuned-{self.key}"
        if not folder.exists():
            base, train = Remembering(open_encoder(self.model)), splits["train"]
            small = judge(splits["dev"], [dense(splits["dev"], base, base.key), bm25(splits["dev"])])
            recipes = FEW if few_documents(train) else MANY
            save_model(_kept(base, train_best(self.model, train, small, base, recipes, 0, folder.with_suffix(".training"))), folder)
        self.folder, self.tuned = folder, Remembering(open_encoder(folder))
        alone = {"tuned": dense(self.dev, self.tuned, self.tuned.key), "bm25": bm25(self.dev)}
        rungs = {name: Rung(lambda _, run=run: run, (None,)) for name, run in alone.items()}
        found = choose(rungs, {"tuned+bm25": ("tuned", "bm25")}, self.dev.qrels, {})
        better = found.scores["tuned+bm25"] > found.scores["tuned"]
        self.weight = found.settings["tuned+bm25"] if better else 1.
        self.on_dev = found.runs["tuned+bm25" if better else "tuned"]
        self.late, drawn = LateInteraction(self.tuned.model), random.Random(0)
        def others(q): return drawn.sample(wrong := [d for d in self.dev.corpus if not self.dev.qrels[q].get(d)], min(19, len(wrong)))
        self.easy = {q: dict.fromkeys([*self.dev.positives(q), *others(q)], 0.) for q in self.dev.queries}

    def run(self, data):
        found = dense(data, self.tuned, self.tuned.key)
        return found if self.weight == 1. else blend(found, bm25(data), self.weight)

    def values(self, scorer, depths):
        "nDCG@10 of each dev query with `scorer` behind it, and the depth and the weight that each half's other half chose."
        values, chosen, second = {}, [], tier(scorer, depths)
        for mine, other in ((0, 1), (1, 0)):
            halves = [[*self.on_dev][i::2] for i in (mine, other)]
            rungs = [tier_rungs(self.dev, {"first": {q: self.on_dev[q] for q in half}}, {"second": second}) for half in halves]
            qrels = [{q: self.dev.qrels[q] for q in half} for half in halves]
            chosen.append(choose(rungs[1], {}, qrels[1], {}).settings["first+second"])
            values |= ndcg(qrels[0], rungs[0]["first+second"].run(chosen[-1]), 10)
        return values, chosen


def rows_of(first, arm, seed):
    "The queries and negatives of an arm that learns from labels."
    train = first.train
    if arm.more == "paraphrases": train = paraphrases(train)
    if arm.more == "made-up queries":
        pages = {d: Page("", text, d) for d, text in train.corpus.items()}
        found, _ = as_dataset(pages, made_offline(pages, ("cloze", "keyphrases"), 2), "made")
        train = _both(train, replace(sample(found, min(2 * len(train.queries), len(found.queries))), corpus=train.corpus))
    if arm.teacher or not arm.hard + arm.easy: return train, None
    source = known_answers(train) if arm.known else train
    negatives = mixed_negatives(source, first.run(source), arm.hard, arm.easy, seed=seed, relative_margin=arm.margin)
    if arm.more != "near misses": return train, negatives
    train, edited = near_misses(train, seed=seed)
    return train, {q: [*edited.get(q, ()), *docs] for q, docs in negatives.items()}


def peaked(scores):
    "A teacher's scores of one list with a standard deviation of 2, so that cosines, sums of ranks and logits teach alike."
    spread = float(np.std(scores))
    return [float(2 * (x - np.mean(scores)) / spread) if spread else 0. for x in scores]


def begun(first, arm, seed, args):
    "The model that a training starts from."
    if arm.start != "others": return open_reranker(first.folder if arm.start == "tuned" else first.model, seed=seed)
    folder = first.work / f"others-than-{first.name}-{seed}-{key(first.model, args.train, args.tokens, arm)}"
    if not folder.exists():
        model, base = open_reranker(first.model, seed=seed), Remembering(open_encoder(first.model))
        for name in ("transactions", "handbook", "tables", "code", "tools"):
            if name == first.name: continue
            other = load(name)["train"]
            other = sample(other, min(args.train, len(other.queries)))
            negatives = mixed_negatives(other, dense(other, base, base.key, k=50), arm.hard, arm.easy, seed=seed)
            fine_tune_reranker(model, other, negatives=negatives, epochs=1, seed=seed, tokens=args.tokens)
        save_model(model, folder)
    return open_reranker(folder)


def trained(first, name, seed, args):
    "The scorer that one training makes, the depths that it is tried at, and the training's curve."
    arm = ARMS[name]
    checkpoints = first.work / f"{first.name}-{name}-{seed}-{key(first.key, arm, args.epochs, args.tokens)}.training"
    told = dict(epochs=args.epochs, seed=seed, tokens=args.tokens, checkpoints=checkpoints)
    data, negatives = rows_of(first, arm, seed)
    if arm.loss == TOKENS:
        model = open_encoder(first.folder if arm.start == "tuned" else first.model)
        curve = fine_tune_late(model, data, negatives=negatives, **told)
        return LateInteraction(model), COMPARED, curve
    if arm.loss == FLAG:
        folder, since = checkpoints.with_suffix(".flag"), time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)   # of a run that was stopped before it was judged
        train_flag(data, negatives, folder, first.model, group_size=1 + arm.hard + arm.easy, epochs=args.epochs, seed=seed,
                   tokens=(args.tokens // 4, args.tokens - args.tokens // 4))
        return FastScorer(open_reranker(folder)), READ, Curve([], args.epochs, 0, time.monotonic() - since, 0)
    model = begun(first, arm, seed, args)
    rows = data
    if arm.teacher:
        run = first.run(data)
        rows = teach(data, run if arm.teacher == "first" else rerank(data, run, first.late, 30), arm.hard + arm.easy, seed)
        rows = rows._replace(labels=[peaked(told) for told in rows.labels])
    return FastScorer(model), READ, fine_tune_reranker(model, rows, negatives=negatives, loss=arm.loss, **told)


def outcome(first, scorer, depths, curve):
    "Values on dev, and how they came about."
    values, settings = first.values(scorer, depths)
    easy = ndcg(first.dev.qrels, rerank(first.dev, first.easy, scorer, max(map(len, first.easy.values()))), 10)
    return {"values": values, "easy": easy, "settings": settings, "loss": [p.loss for p in curve.points], "seconds": curve.seconds}


def figures_of(values, pairs, by_seed):
    "Means and comparisons, in whose intervals the seeds' spread counts where there are several."
    def told(name): return by_seed.get(name, [mean(values[name])])
    def luck(c):
        a, b = told(c.a), told(c.b)
        return [x - y for x, y in zip(a, b if len(b) == len(a) else b * len(a), strict=True)]
    compared = [widened(c, luck(c), -1.) for c in compare_all(values, pairs, DECIDES)]
    for c in compared: print(" ", sentence(c, claim(c, .01), .01))
    arms = {name: {**widened(interval(v), told(name)).as_dict(), "by_seed": by_seed.get(name)} for name, v in values.items()}
    return {"arms": arms, "comparisons": [{**c.as_dict(), "decision": claim(c, .01)} for c in compared]}


def table(first, found, late):
    "Arms against the first stage and against late interaction, and on the easy majority; how each training went."
    def of(what): return {name: average([one[what] for one in runs]) for name, runs in found.items()}
    def by_seed(what): return {name: [mean(one[what]) for one in runs] for name, runs in found.items()}
    pairs = [(name, other) for name in found for other in ("first stage", "late")] + [("late", "first stage")]
    values = {"first stage": ndcg(first.dev.qrels, first.on_dev, 10), "late": late, **of("values")}
    pairs += [pair for pair in RIVALS.items() if {*pair} <= found.keys()]
    easy = [(f"{name}, easy", f"{other}, easy") for name, other in EASY_RIVALS.items() if {name, other} <= found.keys()]
    def marked(values): return {f"{name}, easy": v for name, v in values.items()}
    def kept(one): return {k: v for k, v in one.items() if k not in ("values", "easy")}
    return {**figures_of(values, pairs, by_seed("values")), "easy": figures_of(marked(of("easy")), easy, marked(by_seed("easy"))),
            "trainings": {name: [kept(one) for one in runs] for name, runs in found.items()}}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", help="some of bench/seeds.py's; transactions,handbook if neither this nor --set is given")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=PATH[,LIMIT]", help="a set of your own; may be given again")
    parser.add_argument("--model", default="default")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    for option, default in TRAINING.items(): parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--work", type=Path, default=Path("bench-ablation"))
    parser.add_argument("--save", action="store_true", help="write assets/ablation.json")
    parser.add_argument("--saved", type=Path, default=SAVED, help="where --save writes")
    args = parser.parse_args(argv)
    if not args.sets and not args.set: args.sets = "transactions,handbook"
    if unknown := sorted({*args.arms.split(",")} - {*ARMS}): raise SystemExit(f"--arms {unknown[0]}: expected some of {', '.join(ARMS)}")
    args.work.mkdir(parents=True, exist_ok=True)
    for name, settings in asked(argparse.Namespace(**vars(args), reranker="none")).items():
        first, found = First(name, settings, args), {}
        ceiling = interval(recall(first.dev.qrels, first.on_dev, READ[0]))
        print(f"{name}: first stage with weight {first.weight}, recall@{READ[0]} {ceiling}", flush=True)
        late, _ = first.values(first.late, COMPARED)
        for arm in args.arms.split(","):
            for seed in map(int, args.seeds.split(",")):
                file = args.work / f"{name}-{arm}-{seed}-{key(first.key, ARMS[arm], args.epochs, args.tokens)}.json"
                if not file.is_file():
                    one = outcome(first, *trained(first, arm, seed, args))
                    with atomic(file) as out: json.dump(one, out)
                found.setdefault(arm, []).append(json.loads(file.read_text()))
                print(f"{name}, {arm}, seed {seed}: {mean(found[arm][-1]['values']):.3f}", flush=True)
        told = {"train": len(first.train.queries), "dev": len(first.dev.queries), "epochs": args.epochs, "tokens": args.tokens,
                "seeds": args.seeds, f"recall@{READ[0]}": ceiling.as_dict(), "machine": machine(),
                "code": first.key, **table(first, found, late)}
        if not args.save: continue
        saved = json.loads(args.saved.read_text()) if args.saved.is_file() else {}
        with atomic(args.saved) as out: json.dump({**saved, f"{name}, seeds {args.seeds}": told}, out, indent=1)


if __name__ == "__main__": main()
