"""How much of what real queries teach do made-up ones recover, where no model writes them?

    python bench/synthetic.py [--sets handbook,chunking,...] [--fine-tune handbook] [--out assets/synthetic.json]

On each set a linear adapter on the untuned model's query vectors learns from the real train queries; from as many made-up ones by each way
that needs no model (titles, cloze, keyphrases, templates) and by all four, drawn from what they make for every document; from 2,000 by all
four, since they cost nothing, the same without what repeats (`distinct`), and the same beside the real ones. For each of them dev chooses
among the same settings by nDCG@10, and test is asked once. "nothing real" has its setting chosen on made-up queries, too: what remains
where nobody has asked anything yet. On the sets of --fine-tune the model itself learns from the first six of them, as
sentence-transformers does by default (in-batch negatives, learning rate 5e-5, 3 epochs), and dev chooses the epoch. Intervals are over
test queries, paired; "recovered" is the mean gain over the untuned model divided by the real queries' gain, and is left out where that
gain is not above 0 at .95.

"Real" are a set's own queries. The sets: the handbook that travels with the project, as it is split (test asks about other chapters than
train; its questions were written one by one with the chapter in view), and with all its questions in turns (five parts; each is test once,
and the next one dev), so that train asks about the same chapters; the public chunking set in
turns (a language model wrote its questions; chunks of at most 200 words); and scifact as published (of its test claims two thirds need an
abstract that some train claim needs; dev is carved out of train). The last two are under $RAG_FINETUNE_DATA, and left out, which is
said, where it is not set.
"""
import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import reduce
from itertools import islice, product
from pathlib import Path

import numpy as np
from chunks import public

from rag_finetune.core import Dataset
from rag_finetune.data import atomic, carve_dev, load, recursive_chunks, sample, split
from rag_finetune.embedding import fine_tune
from rag_finetune.ladder import adapter
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, open_encoder
from rag_finetune.pipeline import Remembering
from rag_finetune.retrieval import dense
from rag_finetune.synthetic import OFFLINE, Page, as_dataset, distinct, diversity, made_offline, read_pages
from rag_finetune.verdict import compare_all, decide, interval

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tuple(product((.003, .03, .1), ("answers", "all")))   # of the adapter: decay, and what a query is told apart from
PER_PAGE, MANY = 3, 2000


# ---- the sets: pages to ask about, and folds of train, dev and test; each query is in one fold's test

def together(a, b):
    "The queries of both."
    return replace(a, queries=a.queries | b.queries, qrels=a.qrels | b.qrels)


def in_turns(dataset):
    "Five folds: a fifth of the queries is test, the next dev, the others train."
    parts = list(split(dataset, dict.fromkeys("abcde", .2)).values())
    for i in range(5):
        test, dev, *rest = parts[i:] + parts[:i]
        yield {"train": reduce(together, rest), "dev": dev, "test": test}


def handbook(_):
    folder = ROOT / "data" / "handbook"
    return read_pages(folder / "corpus.jsonl"), [load(folder)]


def handbook_in_turns(_):
    pages, (splits,) = handbook(_)
    return pages, list(in_turns(reduce(together, splits.values())))


def scifact(data):
    return read_pages(data / "scifact" / "corpus.jsonl"), [carve_dev(load(data / "scifact"))]


def chunking(data):
    documents, queries, spans = public(data / "chunking")
    cut = {f"{name}-{n}": (name, c) for name, text in documents.items() for n, c in enumerate(recursive_chunks(text, 200))}
    pages = {d: Page("", c.text.strip(), name) for d, (name, c) in cut.items()}
    def holding(name, start, end):
        return max((d for d, (n, _) in cut.items() if n == name), key=lambda d: min(end, cut[d][1].end) - max(start, cut[d][1].start))
    qrels = {q: {holding(*span): 1 for span in found} for q, found in spans.items()}
    return pages, list(in_turns(Dataset({d: p.text for d, p in pages.items()}, queries, qrels, "chunking")))


SETS = {"handbook": handbook, "handbook-in-turns": handbook_in_turns, "chunking": chunking, "scifact": scifact}


# ---- what teaches

def lessons(pages, train, encoder):
    "Name -> what the adapter learns from: (train, None), or (train, made-up dev)."
    def made(ways): return replace(as_dataset(pages, made_offline(pages, ways, PER_PAGE), train.name)[0], corpus=train.corpus)
    def only(d, ids): return replace(d, queries={q: d.queries[q] for q in ids}, qrels={q: d.qrels[q] for q in ids})
    yield "real", train, None
    for way in OFFLINE:
        if (found := made([way])).queries: yield way, sample(found, len(train.queries)), None
    every = made(OFFLINE)
    yield "all four", sample(every, len(train.queries)), None
    many = sample(every, MANY)
    yield "all four, many", many, None
    vectors = dict(zip(many.queries, encoder.encode_query(list(many.queries.values()))))
    yield "all four, many, distinct", only(many, distinct(vectors)[0]), None
    apart = split(many, {"train": .8, "dev": .2}, by="positives")
    yield "all four, nothing real", apart["train"], apart["dev"]
    yield "real and all four, many", together(train, many), None


def adapted(taught, dev, test, encoder):
    "The setting that dev chose for an adapter, and its values on test."
    def values(setting, asked): return ndcg(asked.qrels, adapter(taught, encoder, asked.queries, *setting), 10)
    chosen = max(SETTINGS, key=lambda s: np.mean(list(values(s, dev).values())))
    return chosen, values(chosen, test)


def fine_tuned(taught, dev, test, encoder):
    "The epoch that dev chose for the model itself, and its values on test."
    model = open_encoder()
    curve = fine_tune(model, taught, dev, "in-batch", epochs=3, lr=5e-5, known=encoder)
    return curve.best, ndcg(test.qrels, dense(test, FastEncoder(model)), 10)


LEARNERS = {"adapter": adapted, "fine-tuning": fine_tuned}


# ---- what is found

def recovered(base, real, made, seed=0):
    "The share of the real queries' gain, with its 95% interval (percentiles over resampled queries, both gains on the same ones)."
    gains = np.array([[x[q] - base[q] for q in base] for x in (made, real)])   # (2, n_queries)
    rng = np.random.default_rng(seed)
    means = np.stack([gains[:, rng.integers(0, gains.shape[1], gains.shape[1])].mean(1) for _ in range(10_000)])
    shares = means[:, 0] / means[:, 1]
    low, high = np.quantile(shares, [.025, .975])
    return {"share": float(gains[0].mean() / gains[1].mean()), "low": float(low), "high": float(high)}


def measure(name, pages, folds, encoder, learner) -> Iterator[dict]:
    "A row for each lesson: on test, against the untuned model and against real queries."
    values, about = {"base": {}}, {}
    for splits in folds:
        values["base"] |= ndcg(splits["test"].qrels, dense(splits["test"], encoder), 10)
        real = encoder.encode_query(list(splits["train"].queries.values()))
        for lesson, taught, made_dev in islice(lessons(pages, splits["train"], encoder), 6 if learner == "fine-tuning" else None):
            chosen, found = LEARNERS[learner](taught, made_dev or splits["dev"], splits["test"], encoder)
            values.setdefault(lesson, {}).update(found)
            row = about.setdefault(lesson, {"queries": [], "settings": [], "diversity": []})
            row["queries"].append(len(taught.queries))
            row["settings"].append(chosen)
            row["diversity"].append(diversity(encoder.encode_query(list(taught.queries.values())), real)["ratio"])
            print(f"  {name}: {learner}, {lesson}, {len(taught.queries)} queries, {chosen}", flush=True)
    pairs = [(x, y) for y in ("base", "real") for x in values if x not in ("base", y)]
    tested = {(c.a, c.b): c for c in compare_all(values, pairs, "nDCG@10")}
    has_gain = tested["real", "base"].low > 0
    for lesson in values:
        row = {"set": name, "learner": learner, "lesson": lesson, "nDCG@10": interval(values[lesson]).as_dict(), **about.get(lesson, {})}
        for other in ("base", "real"):
            if c := tested.get((lesson, other)): row[f"against {other}"] = asdict(c) | {"decision": decide(c)}
        if has_gain and lesson not in ("base", "real"): row["recovered"] = recovered(values["base"], values["real"], values[lesson])
        yield row


def told(row):
    "A row in one line."
    gain, share = row.get("against base"), row.get("recovered")
    return (f"{row['set']:17} {row['learner']:11} {row['lesson']:24} {row['nDCG@10']['mean']:.3f}"
            + (f"  {gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] {gain['decision']:13}" if gain else "")
            + (f"  {share['share']:.0%} [{share['low']:.0%}, {share['high']:.0%}]" if share else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--fine-tune", default="handbook", help="on these sets, too")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "synthetic.json")
    args, data = parser.parse_args(), Path(os.environ.get("RAG_FINETUNE_DATA", ""))
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "model": "all-MiniLM-L6-v2"}
    encoder, rows = Remembering(open_encoder()), []
    for name in args.sets.split(","):
        if not name.startswith("handbook") and not (data / name).is_dir():
            print(f"{name} is left out: RAG_FINETUNE_DATA names no folder that has it")
            continue
        pages, folds = SETS[name](data)
        for learner in LEARNERS if name in args.fine_tune.split(",") else ("adapter",):
            for row in measure(name, pages, folds, encoder, learner):
                rows.append(row)
                print(told(row), flush=True)
        with atomic(args.out) as file:   # what is done is done
            file.write(json.dumps({"command": "python bench/synthetic.py", "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__": main()
