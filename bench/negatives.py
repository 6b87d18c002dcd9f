"""Mining against sentence-transformers' own miner; whether a measured rate of false negatives is right; what each policy does.

    python bench/negatives.py speed    [--sizes 1000,10000,100000] [--encoded 500] [--rounds 1]
    python bench/negatives.py rate     [--samples 300]
    python bench/negatives.py judge    [--samples 300]
    python bench/negatives.py policies [--seeds 0,1,2] [--train 480] [--work FOLDER]
    python bench/negatives.py known    [--seeds 0,1,2] [--work FOLDER]

Each part puts what it found under its name into assets/negatives.json and leaves the others alone.

`speed`: `dense` and `mine` against `mine_hard_negatives` at equal settings (the best four of the 30 nearest, relative margin .05, one
positive for each query, a tenth as many queries as documents), turn by turn, each in a process of its own. "vectors at hand" looks the
vectors up on both sides (384 numbers, in groups as a model's are), so that what is measured is the mining; "five margins" mines with five
of them, as one does who lets dev choose (up to 10,000 documents); "encoding" has the embedded model encode texts of 30 words first. The
library takes 16,384 queries at a time; "1,024 at a time" is what one would set where memory is short. Seconds are of the processor, over
all threads; memory is the most that the process ever held above what it held when the data were made and 1,000 other documents mined.
"same": the share of queries for which it takes the same four as ours.

`rate`: judgements are hidden, negatives mined, a sample of them judged, and the estimate compared with the truth, over many samples.
The transactions are searched in each other (of each only the nearest right one is told); of scifact's claims one abstract is told and
the rest hidden, for all of them and for those with several (needs $RAG_FINETUNE_DATA). Coverage is the share of samples whose 95%
interval holds the true rate; the usual plus or minus (Wald), which takes pairs for independent, stands beside it. "by rank" draws from
each rank in proportion.

`judge`: 400 pairs judged by a judge who errs, some of them (of each of the judge's verdicts at least one) read by a person who does not;
coverage and width of the judge's own rate, of `corrected`, and of the estimate of Rogan and Gladen (1978) with the limits of Lang and
Reiczigel (2014) for the same data. One pair for each query; the last two rows have several, and with the chance "alike" a query has either
no false one or only such.

`policies`: the model fine-tuned for one epoch on transactions searched in each other (--train of train's; of each only the nearest right
one is told), with one negative each, mined from the best 20: as mined, without the false ones, with those relabelled and mined again, with
a margin, a random one, none. nDCG@10 on dev's transactions, searched in those; means over the seeds, compared query by query. FOLDER keeps
each training, so that a run that was stopped goes on.

`known`: the model fine-tuned on the handbook as the main job does it (in-batch, two epochs), with one negative each from the best 30 of the
whole corpus, or of the documents that are right for another training question, or none. nDCG@10 on dev, whose questions are about other
chapters; means over the seeds with their spread in the intervals.
"""
import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rag_finetune.core import Dataset
from rag_finetune.data import atomic, load, sample
from rag_finetune.negatives import corrected, false_negatives, fill, known_answers, mine, rate, relabelled, without

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "assets" / "negatives.json"
MARGINS = {"five margins": (.01, .02, .1, .2, .05)}   # else .05; what is compared is the last one's
LAST, TAKEN = 30, 4


def save(part, rows, args):
    "Put one part's rows into the file."
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    machine = {"cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS"), "processor": platform.machine(),
               "sentence-transformers": version("sentence-transformers")}
    found[part] = {"command": "python bench/negatives.py " + " ".join(args), "machine": machine, "rows": rows}
    with atomic(OUT) as file: file.write(json.dumps(found, indent=1) + "\n")
    for row in rows: print(json.dumps(row))


# ---- speed

class Given:
    "A model that looks its vectors up by text."
    device, similarity_fn_name, model_card_data = "cpu", "cosine", SimpleNamespace(base_model=None)

    def __init__(self, texts, vectors):
        from sentence_transformers.util import cos_sim, pairwise_cos_sim
        self.at, self.vectors = {t: i for i, t in enumerate(texts)}, vectors
        self.similarity, self.similarity_pairwise = cos_sim, pairwise_cos_sim

    def encode_document(self, texts, **_): return self.vectors[[self.at[t] for t in texts]]

    encode_query = encode_document


def made(n, how):
    "`n` documents, a tenth as many queries with one positive each, and a model."
    rng, chance = random.Random(0), np.random.default_rng(0)
    words = sorted({w for t in load("handbook")["train"].corpus.values() for w in t.split()})
    corpus = {f"d{i}": " ".join(rng.choices(words, k=30)) for i in range(n)}
    queries = {f"q{i}": " ".join(rng.choices(words, k=8)) for i in range(n // 10)}
    data = Dataset(corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(n // 10)}, "made")
    if how == "encoding":
        from rag_finetune.models import open_encoder
        return data, open_encoder()
    centres, group = chance.standard_normal((n // 50, 384), dtype=np.float32), chance.integers(0, n // 50, n)
    docs = centres[group] + chance.standard_normal((n, 384), dtype=np.float32)
    asked = docs[:n // 10] + chance.standard_normal((n // 10, 384), dtype=np.float32)
    vectors = np.concatenate([docs, asked])
    return data, Given([*corpus.values(), *queries.values()], vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def ours(data, model, margins):
    from rag_finetune.models import FastEncoder
    from rag_finetune.retrieval import dense
    encoder = model if isinstance(model, Given) else FastEncoder(model)
    def run():
        found = dense(data, encoder, k=LAST + 1)   # one more, since the positive is among them
        for margin in margins: mined, _ = mine(data, found, last=LAST + 1, relative_margin=margin, per_query=TAKEN, seed=None)
        return {data.queries[q]: [data.corpus[d] for d in docs] for q, docs in mined.items()}
    return run


def theirs(data, model, margins, **settings):
    from datasets import Dataset as Table
    from sentence_transformers.util import mine_hard_negatives
    table = Table.from_dict({"query": list(data.queries.values()), "answer": [data.corpus[data.positives(q)[0]] for q in data.queries]})
    def run():
        for margin in margins:
            found = mine_hard_negatives(table, model, corpus=list(data.corpus.values()), range_max=LAST, num_negatives=TAKEN,
                                        relative_margin=margin, verbose=False, **settings)
        taken = {}
        for query, negative in zip(found["query"], found["negative"], strict=True): taken.setdefault(query, []).append(negative)
        return taken
    return run


SIDES = {"rag_finetune": ours, "sentence-transformers": theirs,
         "sentence-transformers, 1,024 at a time": lambda *given: theirs(*given, faiss_batch_size=1024)}


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # MiB


def one(side, how, n, out):
    "In a process of its own: mine, write what was mined, print what it took."
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    data, model = made(int(n), how)
    run = SIDES[side](data, model, MARGINS.get(how, (.05,)))
    SIDES[side](*made(1000, "vectors at hand"), (.05,))()   # what is imported and warmed up by the first call
    before, clock, start = peak(), time.monotonic(), time.process_time()
    mined = run()
    took = {"seconds": time.process_time() - start, "clock": time.monotonic() - clock, "MiB": peak() - before}
    Path(out).write_text(json.dumps(mined))
    print(json.dumps(took))


def speed(args):
    sizes = [n for n in args.sizes.split(",") if n]
    cases = [("vectors at hand", n) for n in sizes] + [(how, n) for how in MARGINS for n in sizes if int(n) <= 10_000]
    cases += [("encoding", n) for n in args.encoded.split(",") if n]
    took, same = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for how, n in cases:
                for i, side in enumerate(SIDES):
                    command = [sys.executable, __file__, "one", side, how, n, f"{folder}/{i}.json"]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    took.setdefault((how, int(n), side), []).append(json.loads(done.stdout.splitlines()[-1]))
                    print(how, n, side, took[how, int(n), side][-1], flush=True)
                mined = {side: json.loads(Path(folder, f"{i}.json").read_text()) for i, side in enumerate(SIDES)}
                first = mined[next(iter(SIDES))]
                same |= {(how, int(n), side): statistics.mean(first[q] == m.get(q, []) for q in first) for side, m in mined.items()}
    middle = {key: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} for key, rounds in took.items()}
    first = next(iter(SIDES))
    return [{"what": how, "documents": n, "miner": side, **{k: round(v, 2) for k, v in row.items()}, "same": round(same[how, n, side], 4),
             **{f"{k}: this / ours": round(row[k] / middle[how, n, first][k], 2) for k in ("seconds", "MiB") if middle[how, n, first][k]}}
            for (how, n, side), row in middle.items()]


# ---- is the estimate right?

def told(data, found, which):
    "One positive of each query, by `which`, and the others hidden."
    return Dataset(data.corpus, data.queries, {q: {which(q, data.positives(q)): 1} for q in data.queries if data.positives(q)}, data.name)


def each_other(data):
    "Transactions searched in each other: two of one category are relevant to each other."
    category = {q: data.positives(q)[0] for q in data.queries}
    qrels = {q: {d: 1 for d in data.queries if d != q and category[d] == category[q]} for q in data.queries}
    return Dataset(data.queries, data.queries, qrels, data.name)


def cases():
    "name -> a dataset with one positive told, the whole judgements, and a run."
    from rag_finetune.models import FastEncoder, open_encoder
    from rag_finetune.retrieval import bm25, dense
    whole = each_other(load("transactions")["train"])
    run = dense(whole, FastEncoder(open_encoder()), k=101)
    run = {q: {d: s for d, s in docs.items() if d != q} for q, docs in run.items()}
    def nearest(q, docs): return max(docs, key=lambda d: run[q].get(d, -1.))
    yield "transactions", told(whole, run, nearest), whole.qrels, run
    folder = os.environ.get("RAG_FINETUNE_DATA")
    if not folder: print("scifact is left out: RAG_FINETUNE_DATA is not set"); return
    whole = load(Path(folder) / "scifact")["train"]
    run = bm25(whole, k=100)
    several = {q: text for q, text in whole.queries.items() if len(whole.positives(q)) > 1}
    for name, queries in (("scifact, all claims", whole.queries), ("scifact, claims with several abstracts", several)):
        part = Dataset(whole.corpus, queries, {q: whole.qrels[q] for q in queries if q in whole.qrels}, name)
        yield name, told(part, run, lambda q, docs: random.Random(q).choice(sorted(docs))), whole.qrels, run


def wald(verdicts):
    p, n = statistics.mean(verdicts.values()), len(verdicts)
    return p - 1.96 * (p * (1 - p) / n) ** .5, p + 1.96 * (p * (1 - p) / n) ** .5


def drawn(rng, kind, pairs, n):
    "`n` of the pairs, which are (query, document) -> rank among the query's mined ones."
    if kind == "pairs": return rng.sample(sorted(pairs), n)
    if kind == "by rank": return [p for i in range(TAKEN) for p in rng.sample(sorted(x for x in pairs if pairs[x] == i), n // TAKEN)]
    some = set(rng.sample(sorted({q for q, _ in pairs}), n // TAKEN))
    return [pair for pair in pairs if pair[0] in some]


def measured(args):
    rows = []
    for name, data, qrels, run in cases():
        mined = mine(data, run, per_query=TAKEN, seed=None)[0]
        pairs = {(q, d): i for q, docs in mined.items() for i, d in enumerate(docs)}
        truth = {pair: qrels[pair[0]].get(pair[1], 0) > 0 for pair in pairs}
        true = statistics.mean(truth.values())
        for kind in ("pairs", "whole queries", "by rank"):
            for n in (40, 100, 200):
                if n > len(pairs) / 2: continue
                verdicts = [{p: truth[p] for p in drawn(random.Random(f"{kind} {n} {i}"), kind, pairs, n)} for i in range(args.samples)]
                found, plain = [rate(v) for v in verdicts], [wald(v) for v in verdicts]
                rows.append({"set": name, "mined": len(pairs), "truth": round(true, 4), "drawn": kind, "n": n,
                             "mean": round(statistics.mean(r.mean for r in found), 4),
                             "sd": round(statistics.pstdev(r.mean for r in found), 4),
                             "coverage": round(statistics.mean(r.low <= true <= r.high for r in found), 3),
                             "width": round(statistics.mean(r.high - r.low for r in found), 3),
                             "Wald coverage": round(statistics.mean(low <= true <= high for low, high in plain), 3)})
    return rows


# ---- a judge who errs

def rogan_gladen(called, n, person, z=1.96):
    "Limits of Lang and Reiczigel (2014): `person` is (truth, call) of the pairs that were read."
    yes, no = [c for t, c in person if t], [c for t, c in person if not t]
    p, n = (called + z * z / 2) / (n + z * z), n + z * z
    se, sp = (sum(yes) + 1) / (len(yes) + 2), (len(no) - sum(no) + 1) / (len(no) + 2)
    if se + sp <= 1: return 0., 1.
    share = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z * z * (share * se * (1 - se) / (len(yes) + 2) - (1 - share) * sp * (1 - sp) / (len(no) + 2))
    variance = p * (1 - p) / n + (1 - share) ** 2 * sp * (1 - sp) / (len(no) + 2) + share ** 2 * se * (1 - se) / (len(yes) + 2)
    half = z * variance ** .5 / (se + sp - 1)
    return max(0., share + shift - half), min(1., share + shift + half)


def erring(args):
    rows, rng = [], np.random.default_rng(0)
    judges = [(.9, .95), (.7, .9), (.6, .7)]
    settings = [(400, 1, 0., read, true, *j) for read in (60, 120) for true in (.03, .1, .3) for j in judges]
    settings += [(30, 10, .6, 100, .2, .8, .85), (50, 8, .8, 100, .2, .8, .85)]
    for queries, each, alike, read, true, sensitivity, specificity in settings:
        limits, n = {"judge alone": [], "corrected": [], "Rogan-Gladen": []}, queries * each
        for _ in range(args.samples):
            together = np.repeat(rng.random(queries) < alike, each)
            truth = np.where(together, np.repeat(rng.random(queries) < true, each), rng.random(n) < true)
            call = np.where(truth, rng.random(n) < sensitivity, rng.random(n) >= specificity)
            some = rng.choice(n, read, replace=False)
            while len(set(call[some])) < len(set(call)): some = rng.choice(n, read, replace=False)
            judge = {(str(i // each), str(i)): bool(c) for i, c in enumerate(call)}
            limits["judge alone"].append(rate(judge)[1:3])
            limits["corrected"].append(corrected(judge, {(str(i // each), str(i)): bool(truth[i]) for i in some})[1:3])
            limits["Rogan-Gladen"].append(rogan_gladen(int(call.sum()), n, [(truth[i], call[i]) for i in some]))
        row = {"truth": true, "sensitivity": sensitivity, "specificity": specificity, "judged": n, "read": read,
               "pairs of a query": each, "alike": alike}
        for name, found in limits.items():
            low, high = np.array(found).T
            row |= {f"{name}: coverage": round(float(np.mean((low <= true) & (true <= high))), 3),
                    f"{name}: width": round(float(np.mean(high - low)), 3)}
        rows.append(row)
    return rows


# ---- policies

def dev_values(train, dev, encoder):
    "nDCG@10 of each of dev's transactions, searched in train's."
    from rag_finetune.metrics import ndcg
    from rag_finetune.retrieval import dense
    category = {q: d.positives(q)[0] for d in (train, dev) for q in d.queries}
    qrels = {q: {d: 1 for d in train.queries if category[d] == category[q]} for q in dev.queries}
    return ndcg({q: g for q, g in qrels.items() if g}, dense(Dataset(train.queries, dev.queries, {}), encoder, k=10), 10)


def policies_of(train, run, seed):
    "name -> training data and negatives."
    whole = each_other(train)
    data = told(whole, run, lambda q, docs: max(docs, key=lambda d: run[q].get(d, -1.)))
    hard = mine(data, run, last=20, per_query=1, seed=seed)[0]
    false = {(q, d) for q, docs in hard.items() for d in docs if whole.qrels[q].get(d, 0) > 0}
    more = relabelled(data, false)   # those pairs are positives there, so neither mined nor drawn
    def filled(mined, of=data): return fill(mined, of, 1, seed)
    return {"in-batch alone": (data, None), "random": (data, filled({q: [] for q in hard})), "keep": (data, filled(hard)),
            "margin .2": (data, filled(mine(data, run, last=20, relative_margin=.2, per_query=1, seed=seed)[0])),
            "drop": (data, fill(without(hard, false), data, 1, seed, never=false)),
            "relabel": (more, filled(mine(more, run, last=20, per_query=1, seed=seed)[0], more))}, whole.qrels


def kept(work, name, make):
    "A dictionary from the folder, made if it is not there."
    path = work / f"{name.replace(' ', '_')}.json"
    if not path.exists():
        value = make()
        with atomic(path) as file: file.write(json.dumps(value))
    return json.loads(path.read_text())


def policies(args):
    from rag_finetune.embedding import fine_tune
    from rag_finetune.models import FastEncoder, open_encoder
    from rag_finetune.retrieval import dense
    from rag_finetune.verdict import compare_all, decide, interval
    splits, seeds, work = load("transactions"), [int(s) for s in args.seeds.split(",")], Path(args.work)
    train, dev = sample(splits["train"], args.train, seed=0), splits["dev"]
    work.mkdir(parents=True, exist_ok=True)
    def searched(): return dense(Dataset(train.queries, train.queries, {}), FastEncoder(open_encoder()), k=101)
    run = {q: {d: s for d, s in docs.items() if d != q} for q, docs in kept(work, "run", searched).items()}
    values, about = {"untuned": kept(work, "untuned", lambda: dev_values(train, dev, FastEncoder(open_encoder())))}, {}
    for seed in seeds:
        made_of, qrels = policies_of(train, run, seed)
        for name, (data, negatives) in made_of.items():
            def trained(data=data, negatives=negatives, seed=seed, name=name):
                model = open_encoder()
                curve = fine_tune(model, data, None, "in-batch", negatives, epochs=1, lr=5e-5, seed=seed)
                print(f"{name}, seed {seed}: {curve.steps} steps in {curve.seconds:.0f} s", flush=True)
                return {"steps": curve.steps, "values": dev_values(train, dev, FastEncoder(model))}
            found = kept(work, f"{name} {seed}", trained)
            values[f"{name} {seed}"] = found["values"]
            false = statistics.mean(false_negatives(negatives, qrels).values()) if negatives else 0.
            rows_of = sum(len(data.positives(q)) for q in data.queries)
            about.setdefault(name, []).append((found["steps"], rows_of, false))
    means = {name: {q: statistics.mean(values[f"{name} {s}"][q] for s in seeds) for q in values["untuned"]} for name in about}
    means |= {"untuned": values["untuned"]}
    pairs = [(name, "keep") for name in about if name != "keep"] + [("keep", "untuned")]
    compared = {a: c for (a, _), c in zip(pairs, compare_all(means, pairs, "nDCG@10"), strict=True)}
    rows = []
    for name, v in means.items():
        row = {"policy": name, "nDCG@10": interval(v).as_dict()}
        if name in about: row |= {"by seed": [round(statistics.mean(values[f"{name} {s}"].values()), 4) for s in seeds],
                                  "steps": [s for s, _, _ in about[name]], "rows": [n for _, n, _ in about[name]],
                                  "false": round(statistics.mean(f for _, _, f in about[name]), 3)}
        if c := compared.get(name): row |= {"against": c.b, "difference": round(c.difference, 4), "low": round(c.low, 4),
                                            "high": round(c.high, 4), "p": round(c.p_holm, 4), "verdict": decide(c)}
        rows.append(row)
    return rows


# ---- known answers

def known(args):
    from seeds import claim, widened

    from rag_finetune.embedding import fine_tune
    from rag_finetune.metrics import ndcg
    from rag_finetune.models import FastEncoder, open_encoder
    from rag_finetune.retrieval import dense
    from rag_finetune.verdict import compare_all, interval
    splits, seeds, work = load("handbook"), [int(s) for s in args.seeds.split(",")], Path(args.work)
    train, dev, base = splits["train"], splits["dev"], FastEncoder(open_encoder())
    work.mkdir(parents=True, exist_ok=True)
    sources = {"whole corpus": train, "known answers": known_answers(train)}
    runs = {name: dense(data, base) for name, data in sources.items()}
    def of(name, seed):
        mined = mine(sources[name], runs[name], last=30, relative_margin=.05, per_query=1, seed=seed)[0]
        return fill(fill(mined, sources[name], 1, seed), train, 1, seed)
    def trained(name, seed):
        model = open_encoder()
        fine_tune(model, train, None, "in-batch", of(name, seed) if name in sources else None, epochs=2, lr=1e-4, seed=seed)
        return ndcg(dev.qrels, dense(dev, FastEncoder(model), k=10), 10)
    values = {"untuned": [ndcg(dev.qrels, dense(dev, base, k=10), 10)]}
    for name in (*sources, "in-batch alone"):
        values[name] = [kept(work, f"known {name} {seed}", lambda name=name, seed=seed: trained(name, seed)) for seed in seeds]
        print(name, [round(statistics.mean(v.values()), 4) for v in values[name]], flush=True)
    means = {name: {q: statistics.mean(v[q] for v in found) for q in found[0]} for name, found in values.items()}
    by_seed = {name: [statistics.mean(v.values()) for v in found] for name, found in values.items()}
    pairs = [("known answers", "whole corpus"), ("known answers", "in-batch alone"), ("in-batch alone", "whole corpus"),
             ("known answers", "untuned"), ("whole corpus", "untuned")]
    def luck(c): return [x - y for x, y in zip(by_seed[c.a], by_seed[c.b] if len(by_seed[c.b]) > 1 else by_seed[c.b] * len(seeds))]
    compared = [widened(c, luck(c), -1.) for c in compare_all(means, pairs, "nDCG@10")]
    return [{"negatives": name, "nDCG@10": interval(v).as_dict(), "by seed": by_seed[name]} for name, v in means.items()] + [
        {**c.as_dict(), "verdict": claim(c, .01)} for c in compared]


def main():
    if sys.argv[1:2] == ["one"]: return one(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "rate", "judge", "policies", "known"])
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--encoded", default="500")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "rag_finetune-policies"))
    args = parser.parse_args()
    found = {"speed": speed, "rate": measured, "judge": erring, "policies": policies, "known": known}[args.part](args)
    words = [a for a, before in zip(sys.argv[1:], sys.argv) if "--work" not in (a, before)]
    return save(args.part, found, words)


if __name__ == "__main__": main()
