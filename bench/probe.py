"""What does a tuned model know that the untuned one did not, what are its vectors good for, and how small may they be?

    python bench/probe.py --work FOLDER [--sets transactions,banking77,scifact] [--seeds 0,1,2] [--minutes 5]

For each set the embedded model as it came ("base"), fine-tuned ("tuned"), and fine-tuned by the same recipe with MatryoshkaLoss around the
loss ("matryoshka"), for each seed; dev chooses the epoch, as in `fit`. Test is asked once. Then:

- a map of 500 test queries by t-SNE, and the share of neighbours that it keeps; the best right against the best wrong score, and their AUC;
- accuracy@1 of k nearest neighbours and of logistic regression on the vectors, settings chosen on dev, on test queries whose category
  occurs in train; topics by BERTopic (the extra [topics]) on test queries, three seeds of UMAP, by adjusted mutual information with the
  categories;
- nDCG@10 by dimension, and by how the documents are stored (int8's ranges from those that train queries need; 40 rescored), with bytes and
  milliseconds a query; LanceDB's own quantised indexes beside them; milliseconds by size on random vectors.

Models and vectors are kept in FOLDER. Where --minutes are over it stops after the step it is at, and goes on when it is run again. The last
run writes assets/probe.json and assets/probe_triplets.svg, the animation of 60 dev triplets of transactions during the first training.
banking77 (1,000 training rows) and scifact (texts cut at 128 tokens) are under $RAG_FINETUNE_DATA, and left out, which is said, where
it is not set.
"""
import argparse
import json
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import torch
from lancedb.index import IvfRq, IvfSq
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

from rag_finetune import probe
from rag_finetune.core import top_run
from rag_finetune.data import carve_dev, drop_twins, load, sample
from rag_finetune.embedding import dev_score, fit, frozen_below, objective
from rag_finetune.ladder import frozen_lr
from rag_finetune.metrics import accuracy, ndcg
from rag_finetune.models import FastEncoder, encode_documents, encode_queries, open_encoder
from rag_finetune.verdict import compare, compare_all, decide, interval, sentence

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = (384, 256, 128, 64, 32, 16)
RECIPES = {  # objective, epochs at most, learning rate; the main job's remembered answers for scifact do not go with MatryoshkaLoss
    "transactions": ("all-answers", 5, 2e-4), "banking77": ("all-answers", 5, 2e-4), "scifact": ("in-batch", 2, 1e-4)}
TOKENS = {"scifact": 128}   # read of each text: half of what an abstract has, for half the time; the others' texts are shorter
KINDS = ("base", "tuned", "matryoshka")


# ---- the sets

def splits_of(name):
    "Train, dev and test."
    if name == "transactions": return load(name)
    splits = load(Path(os.environ["RAG_FINETUNE_DATA"], name))
    if name == "banking77": splits["train"] = sample(splits["train"], 1000)
    return drop_twins(carve_dev(splits))[0]


def for_dev(dev, others=300):
    "Dev with the documents that it needs and some others: all 5,183 of scifact would take minutes after every epoch."
    needed = {d for q in dev.queries for d in dev.positives(q)}
    rest = sorted(dev.corpus.keys() - needed)
    kept = needed | set(random.Random(0).sample(rest, min(others, len(rest))))
    judged = {q: {d: g for d, g in grades.items() if d in kept} for q, grades in dev.qrels.items()}
    return replace(dev, corpus={d: t for d, t in dev.corpus.items() if d in kept}, qrels=judged, document_meta={})


def opened(name, path="default"):
    "A model as it is used for a set."
    model = open_encoder(path)
    model.max_seq_length = min(model.max_seq_length, TOKENS.get(name, model.max_seq_length))
    return model


# ---- models and vectors, kept in the folder

class Kept:
    "A folder of what took long; stops between two steps where the time is over."
    def __init__(self, folder, minutes): self.folder, self.end = folder, time.monotonic() + 60 * minutes

    def __call__(self, name, make):
        "The path `name`, made by `make(path)` where it is missing."
        path = self.folder / name
        if path.exists(): return path
        if time.monotonic() > self.end: sys.exit(f"stopped before {name}: run it again to go on")
        start, draft = time.monotonic(), self.folder / f"draft-{name}"
        make(draft)
        draft.rename(path)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        return path

    def array(self, name, make):
        def write(path):
            with open(path, "wb") as file: np.save(file, make())
        return np.load(self(f"{name}.npy", write))

    def figures(self, name, make): return json.loads(self(f"{name}.json", lambda path: path.write_text(json.dumps(make()))).read_text())


def trained(name, kind, seed, path, frames=None):
    "Fine-tune by the set's recipe and save the model; with `frames`, where to save what 60 dev triplets did meanwhile."
    splits, (how, epochs, lr) = splits_of(name), RECIPES[name]
    model, dev = opened(name), for_dev(splits["dev"])
    rows, loss = objective(how, model, splits["train"])
    if kind == "matryoshka": loss = MatryoshkaLoss(model, loss, DIMENSIONS)
    if frames: loss = probe.Watched(model, loss, triplets(dev, model), every=6)
    with frozen_below(model, .5):
        curve = fit(model, rows, loss, lambda: dev_score(FastEncoder(model), dev), epochs, lr=lr,
                    batch_size=64 if how == "all-answers" else 32, seed=seed)
    print(name, kind, seed, "dev:", [round(p.dev, 4) for p in curve.points], "kept:", curve.best, flush=True)
    model.save_pretrained(str(path))
    if not frames: return
    loss.steps = round(curve.steps * curve.best / (len(curve.points) - 1))   # the weights kept are those of the best epoch
    seen = [f for f in loss.frames if f.step < loss.steps]
    loss.frames = seen
    loss.look()
    np.savez(frames, steps=[f.step for f in loss.frames], vectors=np.array([f[1:] for f in loss.frames]))


def triplets(dev, model, n=60):
    "Dev queries with their document and the wrong one that the model as it came likes best."
    part = sample(dev, n)
    run = top_run(list(part.queries), list(part.corpus), encode_queries(model, list(part.queries.values()))
                  @ encode_documents(model, list(part.corpus.values())).T)
    return [(t, part.corpus[part.positives(q)[0]], part.corpus[next(d for d in run[q] if d not in part.positives(q))])
            for q, t in part.queries.items()]


def vectors(kept, name, kind, seed, splits, part="test"):
    "The queries and documents of a split by a model, as `probe.embed` returns them."
    label = f"{name}-{kind}" + (f"-{seed}" if kind != "base" else "")
    model = cache(lambda: opened(name, "default" if kind == "base" else kept.folder / label))
    if kind != "base":
        first = name == "transactions" and kind == "tuned" and seed == 0
        kept(label, lambda path: trained(name, kind, seed, path, kept.folder / "frames.npz" if first else None))
    data, texts = splits[part], list(splits[part].corpus.values())
    blocks = [kept.array(f"{label}-documents-{i}", lambda i=i: encode_documents(model(), texts[i:i + 1000]))
              for i in range(0, len(texts), 1000)]
    asked = kept.array(f"{label}-{part}", lambda: encode_queries(model(), list(data.queries.values())))
    return probe.Embedded(list(data.queries), list(data.corpus), asked, np.vstack(blocks), "cosine")


class Known:
    "An encoder that looks up the vectors of all splits."
    def __init__(self, splits, of):
        self.queries = {t: v for part, seen in of.items() for t, v in zip(splits[part].queries.values(), seen.queries)}
        self.documents = dict(zip(splits["test"].corpus.values(), of["test"].documents))
    def encode_query(self, inputs): return np.stack([self.queries[t] for t in inputs])
    def encode_document(self, inputs): return np.stack([self.documents[t] for t in inputs])


# ---- the figures

def shown(values): return [round(float(x), 4) for x in interval(values)]


def paired(a, b, name_a, name_b, metric):
    "What verdict says of two systems."
    return told(compare(a, b, name_a, name_b, metric))


def told(c): return c.as_dict() | {"decision": decide(c), "sentence": sentence(c, decide(c))}


def before_and_after(test, base, tuned, n=500):
    "Maps, neighbours kept, and scores."
    asked = random.Random(0).sample(range(len(base.query_ids)), min(n, len(base.query_ids)))
    ids = [base.query_ids[i] for i in asked]
    places = probe.layout(base.queries[asked], tuned.queries[asked])
    found = {"base": probe.pairs(test, base), "tuned": probe.pairs(test, tuned)}
    apart = {k: probe.told_apart(v) for k, v in found.items()}
    every = max(1, len(found["base"]) // 1000)   # of the pairs, to draw
    return {"ids": ids, "labels": [test.positives(q)[0] for q in ids],
            "map": {k: p.round(1).tolist() for k, p in zip(("base", "tuned"), places)},
            "kept": {k: shown(probe.kept(ids, v.queries[asked], p)) for k, v, p in zip(("base", "tuned"), (base, tuned), places)},
            "nDCG@10": {k: shown(ndcg(test.qrels, probe.searched(v, probe.float32(v.documents)), 10))
                        for k, v in (("base", base), ("tuned", tuned))},
            "pairs": {k: np.round(list(v.values()), 3)[::every].tolist() for k, v in found.items()},
            "auc": {k: shown(v) for k, v in apart.items()},
            "compared": paired(apart["tuned"], apart["base"], "tuned", "base", "AUC")}


def classification(splits, encoders):
    "Nearest neighbours and logistic regression on both models' vectors, one family of tests."
    train, dev, test = (splits[s] for s in ("train", "dev", "test"))
    known = {d for q in train.queries for d in train.positives(q)}
    qrels = {q: g for q, g in test.qrels.items() if known & set(test.positives(q))}
    methods = {"nearest neighbours": (lambda e, asked, n: probe.vote(train, e, asked, n), (10, 1, 3, 30)),
               "logistic regression": (lambda e, asked, c: frozen_lr(train, e, asked, c), (10., 1., 100.))}
    chosen, values = {}, {}
    for model, encoder in encoders.items():
        for method, (run, settings) in methods.items():
            system = f"{method}, {model}"
            chosen[system] = probe.best_setting(dev.qrels, {s: run(encoder, dev.queries, s) for s in settings})
            values[system] = accuracy(qrels, run(encoder, test.queries, chosen[system]), 1)
    tests = compare_all(values, [(f"{m}, tuned", f"{m}, base") for m in methods], "accuracy@1")
    return {"queries": len(qrels), "left_out": len(test.qrels) - len(qrels), "setting": chosen,
            "accuracy@1": {s: shown(v) for s, v in values.items()}, "compared": [told(c) for c in tests]}


def grouped(test, known, seen, seeds=(0, 1, 2), n=1000):
    "Topics of test queries by both models, agreement with the categories averaged over seeds of UMAP."
    ids = sorted(random.Random(0).sample(sorted(test.queries), min(n, len(test.queries))))
    rows = [seen["base"].query_ids.index(q) for q in ids]
    texts, category = {q: test.queries[q] for q in ids}, {q: test.positives(q)[0] for q in ids}
    parts = {"all": ids, "categories in train": [q for q in ids if category[q] in known],
             "new categories": [q for q in ids if category[q] not in known]}
    runs = {model: [probe.topics(texts, v.queries[rows], seed=s) for s in seeds] for model, v in seen.items()}
    def mean(model, part):
        each = [probe.agreement({q: category[q] for q in part}, {q: t.of[q] for q in part}) for t in runs[model]]
        return {q: sum(e[q] for e in each) / len(each) for q in part}
    out = {"texts": len(ids), "seeds": list(seeds), "words": {m: dict(list(r[0].words.items())[:6]) for m, r in runs.items()},
           "topics": {m: [len(t.words.keys() - {-1}) for t in r] for m, r in runs.items()},
           "in_none": {m: [round(sum(x == -1 for x in t.of.values()) / len(ids), 4) for t in r] for m, r in runs.items()}, "agreement": {}}
    for part, chosen in parts.items():
        if len(chosen) < 20: continue
        values = {m: mean(m, chosen) for m in seen}
        out["agreement"][part] = {m: shown(v) for m, v in values.items()} | {
            "compared": paired(values["tuned"], values["base"], "tuned", "base", "AMI")}
    return out


def by_dimension(test, seen):
    "nDCG@10 of each model at each dimension, means over seeds; Matryoshka against without, one family of tests."
    def values(v, d):
        small = probe.truncated(v, d)
        return ndcg(test.qrels, probe.searched(small, probe.float32(small.documents), 10), 10)
    def mean(kind, d):
        each = [values(v, d) for v in seen[kind]]
        return {q: sum(e[q] for e in each) / len(each) for q in each[0]}
    of = {(kind, d): mean(kind, d) for kind in seen for d in DIMENSIONS}
    names = {f"{kind} {d}": v for (kind, d), v in of.items()}
    against = compare_all(names, [(f"matryoshka {d}", f"tuned {d}") for d in DIMENSIONS], "nDCG@10")
    whole = compare_all(names, [(f"{kind} {d}", f"{kind} 384") for kind in seen for d in DIMENSIONS[1:]], "nDCG@10")
    return {"nDCG@10": {k: shown(v) for k, v in names.items()}, "matryoshka_against_tuned": [told(c) for c in against],
            "against_384": [told(c) for c in whole], "seeds": len(seen["tuned"])}


def storing(test, train, seen):
    "Every way at some dimensions, each against float32 at 384, one family of tests."
    needed = {d for q in train.queries for d in train.positives(q)}
    ways = probe.compared(test, seen, needed, (384, 128, 64))
    values = {f"{s.how} {s.dimension}": s.values for s in ways}
    tests = {c.a: c for c in compare_all(values, [(name, "float32 384") for name in values if name != "float32 384"], "nDCG@10")}
    def row(s, name):
        return {"how": s.how, "dimension": s.dimension, "bytes": s.bytes, "bytes_a_vector": s.bytes / len(seen.doc_ids),
                "ms": round(s.ms, 4), "nDCG@10": shown(s.values), "compared": told(tests[name]) if name in tests else None}
    return [row(s, f"{s.how} {s.dimension}") for s in ways]


LANCE = (("no index", None, None), ("IVF_SQ", IvfSq(distance_type="dot", num_partitions=1), None),   # name, index, how many times rescored
         ("IVF_RQ", IvfRq(distance_type="dot", num_partitions=1), None), ("IVF_RQ", IvfRq(distance_type="dot", num_partitions=1), 4))


def in_lancedb(test, seen):
    "LanceDB's quantised indexes with one partition, so that every document is looked at: nDCG@10 and milliseconds."
    rows = []
    exact = ndcg(test.qrels, probe.searched(seen, probe.float32(seen.documents), 10), 10)
    for name, config, refine in LANCE:
        with tempfile.TemporaryDirectory() as folder:
            column = pa.FixedSizeListArray.from_arrays(pa.array(seen.documents.ravel()), seen.documents.shape[1])
            table = lancedb.connect(folder).create_table("t", pa.table({"id": seen.doc_ids, "vector": column}))
            if config: table.create_index("vector", config=config)
            run, times = {}, []
            for q, asked in zip(seen.query_ids, seen.queries):
                start = time.process_time()
                search = table.search(asked, query_type="vector").distance_type("dot").limit(10).select(["id", "_distance"])
                hits = (search.refine_factor(refine) if refine else search).to_arrow()
                times.append(1000 * (time.process_time() - start))
                run[q] = {d: -s for d, s in zip(hits["id"].to_pylist(), hits["_distance"].to_pylist())}
            values = ndcg(test.qrels, run, 10)
            rows.append({"index": name + (f", {refine} times rescored" if refine else ""), "ms": round(float(np.median(times)), 3),
                         "nDCG@10": shown(values), "compared": paired(values, exact, name, "float32", "nDCG@10")})
    return rows


def by_size(sizes=(1_000, 10_000, 100_000, 1_000_000), n_queries=20):
    "Milliseconds of one query on random vectors, and what encoding it takes."
    rng, rows = np.random.default_rng(0), []
    queries = rng.standard_normal((n_queries, 384), dtype=np.float32)
    for n in sizes:
        docs = rng.standard_normal((n, 384), dtype=np.float32)
        for how, index in probe.ways(docs, probe.ranges(docs[:10_000]), 40).items():
            rows.append({"documents": n, "how": how, "bytes": index.bytes, "ms": round(probe.milliseconds(index, queries, rounds=1), 3)})
            print(rows[-1], flush=True)
    model, times = open_encoder(), []
    for text in list(load("transactions")["test"].queries.values())[:60]:
        start = time.process_time()
        encode_queries(model, [text])
        times.append(1000 * (time.process_time() - start))
    return {"rows": rows, "encoding_ms": round(float(np.median(times)), 2)}


def figures(kept, name, seeds):
    "Everything about one set."
    splits = splits_of(name)
    train, test = splits["train"], splits["test"]
    base = vectors(kept, name, "base", 0, splits)
    seen = {"base": [base]} | {kind: [vectors(kept, name, kind, s, splits) for s in seeds] for kind in KINDS[1:]}
    tuned, needed = seen["tuned"][0], {d for q in train.queries for d in train.positives(q)}
    out = {"documents": len(test.corpus), "test": len(test.queries),
           "dimensions": kept.figures(f"{name}-dimensions", lambda: by_dimension(test, seen)),
           "storing": kept.figures(f"{name}-storing", lambda: storing(test, train, seen["matryoshka"][0]))}
    if name == "scifact": return out | {"lancedb": kept.figures(f"{name}-lancedb", lambda: in_lancedb(test, seen["matryoshka"][0]))}
    def all_of(kind): return Known(splits, {part: vectors(kept, name, kind, 0, splits, part) for part in ("train", "dev", "test")})
    encoders = {kind: all_of(kind) for kind in ("base", "tuned")}
    return out | {"before_and_after": kept.figures(f"{name}-maps", lambda: before_and_after(test, base, tuned)),
                  "classification": kept.figures(f"{name}-classes", lambda: classification(splits, encoders)),
                  "topics": kept.figures(f"{name}-topics", lambda: grouped(test, needed, {"base": base, "tuned": tuned}))}


def machine():
    line = next((x.split(":", 1)[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "") \
        if Path("/proc/cpuinfo").exists() else platform.processor()
    return {"cpu": line, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "versions": {p: version(p) for p in ("torch", "sentence-transformers", "scikit-learn", "lancedb", "bertopic", "umap-learn")}}


def drawn(kept):
    "The animation of the triplets recorded."
    saved = np.load(kept.folder / "frames.npz")
    frames = [probe.Frame(int(step), *vectors) for step, vectors in zip(saved["steps"], saved["vectors"])]
    before, after = ((probe.cosines(f)[:, 1] > probe.cosines(f)[:, 0]).sum() for f in (frames[0], frames[-1]))
    n = len(frames[0].anchors)
    return probe.animated(frames, f"{n} triplets that training did not see, over {frames[-1].step} steps: the positive is nearer than the "
                                  f"hardest negative for {before} of them before and for {after} after")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and vectors")
    parser.add_argument("--sets", default=",".join(RECIPES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sets = [s for s in args.sets.split(",") if s == "transactions" or os.environ.get("RAG_FINETUNE_DATA")]
    if len(sets) < len(args.sets.split(",")): print("$RAG_FINETUNE_DATA does not name the folder of the public sets: transactions only")
    kept = Kept(args.work, args.minutes)
    seeds = [int(s) for s in args.seeds.split(",")]
    found = {name: figures(kept, name, seeds[:1] if name == "scifact" else seeds) for name in sets}   # scifact: minutes of encoding each
    found["sizes"] = kept.figures("sizes", by_size)
    command = shlex.join(["python", "bench/probe.py", "--work", "FOLDER", "--sets", args.sets, "--seeds", args.seeds])
    (ROOT / "assets" / "probe.json").write_text(json.dumps({"command": command, "machine": machine(), **found}) + "\n", encoding="utf-8")
    if "transactions" in sets: (ROOT / "assets" / "probe_triplets.svg").write_text(drawn(kept) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
