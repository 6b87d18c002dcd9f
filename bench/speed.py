"""How fast are we against what a user would do otherwise? Both sides in one run, turn by turn.

    python bench/speed.py [--parts encoding,scoring,int8,training,mining,search] [--rounds 5] [--save]
                          [--short 800] [--long 60] [--pairs 192] [--epochs 2] [--docs 5000] [--queries 500] [--judged 500] [--asked 30]

`encoding`: `encode_queries`/`encode_documents` against `SentenceTransformer.encode_query`/`encode_document` with their defaults
(float32, 32 texts a batch), on short texts (the bundled transactions, banking77) and long ones (scifact's abstracts, 230 tokens), in
float32, in bf16 where the machine multiplies it, and in int8 where OpenVINO is there. Beside it the share of the machine's peak: the
operations that the texts need, counted from the model's shapes, padding left out, a second, over those of the best plain matrix product
(`torch.mm`, float32 or bf16, several sizes) measured in the same round; on a CPU in the processor's seconds.
`scoring`: `FastScorer` against `CrossEncoder.predict` with its defaults (float32, 32 pairs a batch), on the pairs that BM25's first 20
documents make for some dev queries: the same three precisions, the same peak, and how far any score is from theirs.
`int8`: what rounding costs: nDCG@10 with float32 and with int8 vectors, query by query, on transactions and scifact (train and dev).
`training`: `fine_tune` as it comes against the recipe that sentence-transformers documents (MultipleNegativesRankingLoss, float32,
batches of 32, NO_DUPLICATES), same learning rate, warm-up and epochs: short texts (transactions, banking77), long ones (scifact,
medquad). "same settings" trains all layers on whole texts on our side too, so that what is left is dropout and engine. All of
`fine_tune` is timed, of theirs `trainer.train()`. Afterwards nDCG@10 on some dev queries, query by query.
`mining`: `dense` and `mine` against `mine_hard_negatives` at equal settings, the vectors at hand on both sides (bench/negatives.py has
more, and the memory).
`search`: `dense` over stored vectors against `sentence_transformers.util.semantic_search` and a loop over queries in numpy.

Public sets need $RAG_FINETUNE_DATA. Each round runs one side and then the other (every other round the other way round), so that other
work on the machine meets both; a ratio is the median over rounds of this round's ratio, with the least and the greatest, by the clock
and by the processor's seconds. Memory is the most that a process of its own held, above what it held before the call.
--save writes what was measured into assets/speed.json, part by part; parts that were not asked for stay.
"""
import argparse
import importlib.util
import itertools
import json
import os
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import datasets
import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives, semantic_search
from transformers import PrinterCallback

from rag_finetune.core import Dataset, ranking
from rag_finetune.data import carve_dev, load, sample, split
from rag_finetune.embedding import fine_tune, fit, objective
from rag_finetune.metrics import ndcg
from rag_finetune.models import FastEncoder, best_device, best_dtype, encode_documents, encode_queries, int8_encoder, open_encoder
from rag_finetune.negatives import mine
from rag_finetune.reranker import FastScorer, int8_scorer, open_reranker
from rag_finetune.retrieval import bm25, dense
from rag_finetune.verdict import compare, decide, sentence

SAVED = Path(__file__).resolve().parent.parent / "assets" / "speed.json"
LR = 5e-5   # of both sides: the default of sentence-transformers' training arguments, and ours
NO_BF16 = "this CPU has no AVX512-BF16 or AMX: bf16 is not measured here, and the peak is that of float32"
NO_INT8 = "OpenVINO is not installed: int8 is not measured here"


def machine(device):
    "What a figure depends on."
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    flags = torch.cpu.get_capabilities()
    packages = ("torch", "sentence-transformers", "transformers", "numpy", *(["openvino"] if has_openvino() else []))
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            **{flag: bool(flags.get(flag)) for flag in ("avx512_vnni", "avx512_bf16", "amx_bf16")},
            "device": torch.cuda.get_device_name() if device == "cuda" else device, "bf16": best_dtype(device) is torch.bfloat16,
            "load_average": [round(x, 1) for x in os.getloadavg()], "system": f"{platform.system()} {platform.machine()}",
            "versions": {p: version(p) for p in packages}, "python": platform.python_version()}


def _cpuinfo():
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def has_openvino(): return importlib.util.find_spec("openvino") is not None


def data(name):
    "A set's splits, or None where it is not on this machine."
    if name == "transactions": return load(name)
    folder = os.environ.get("RAG_FINETUNE_DATA")
    if not folder: return None
    splits = load(Path(folder) / {"medquad": "medquad/medquad.csv"}.get(name, name))
    if "all" in splits: splits = split(splits["all"])
    return splits if "dev" in splits else carve_dev(splits)


# ---- both sides, turn by turn

def timed(f, device):
    "What `f` returns, and seconds by the clock and of the processor."
    clock, processor = time.perf_counter(), time.process_time()
    found = f()
    if device == "cuda": torch.cuda.synchronize()
    return found, time.perf_counter() - clock, time.process_time() - processor


def middle(values): return {"ratio": statistics.median(values), "least": min(values), "greatest": max(values)}


def turns(case, rounds, device):
    "A row for each of our sides: units a second of both, and their ratio round by round."
    took = {side: [] for side in case["sides"]}
    for i in range(rounds):
        for side in list(took)[::1 if i % 2 == 0 else -1]:
            found, clock, processor = timed(case["sides"][side], device)
            units = case["units"](found)
            took[side].append({"clock": units / clock, "processor": units / max(processor, 1e-9), "seconds": clock, "units": units})
            if "peak" in case: took[side][-1] |= case["peak"](side, processor if device == "cpu" else clock)
    return [row(case, side, took["theirs"], took[side]) for side in took if side != "theirs"]


def row(case, side, theirs, ours):
    "What one of our sides did, against theirs of the same rounds."
    def ratios(kind): return [o[kind] / t[kind] for o, t in zip(ours, theirs)]
    both, notes = {"theirs": theirs, "ours": ours}, case["notes"] | case["notes of"].get(side, {})
    found = {"what": f"{case['what']}, {side}" if side != "ours" else case["what"], "side": side, "unit": case["unit"],
             **{name: statistics.median(r["clock"] for r in rounds) for name, rounds in both.items()},
             **middle(ratios("clock")), "processor": middle(ratios("processor")), "rounds": both, **notes}
    told = [f"{k} {v}" for k, v in notes.items()]
    if theirs[0]["units"] != ours[0]["units"]:
        told.append(f"{case['unit'].split('/')[0]} done: theirs {theirs[0]['units']:,}, ours {ours[0]['units']:,}")
    if "peak" in case:
        found["share of peak"] = {name: middle([r["share"] for r in rounds]) for name, rounds in both.items()}
        told[:0] = [f"{name} at {share['ratio']:.0%} of the peak" for name, share in found["share of peak"].items()]
    spread = f"({found['least']:.2f} to {found['greatest']:.2f})  {found['processor']['ratio']:5.2f} by the processor"
    print(f"{found['what']:44s} {found['theirs']:8.1f} {found['ours']:8.1f} {case['unit']:9s} {found['ratio']:5.2f} {spread}; "
          f"{', '.join(told)}", flush=True)
    return found


def held():
    "The most MiB that this process held; on Linux not what its parent held before it, which getrusage hands down."
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory(part, index, sides, args):
    "MiB that each side holds at most above what it held before, each in a process of its own."
    sizes = [f"--{name}={getattr(args, name)}" for name in SIZES]
    def one(side):
        told = [sys.executable, __file__, *sizes, "--alone", json.dumps([part, index, side])]
        return json.loads(subprocess.run(told, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {side: one(side) for side in sides}


def alone(told, args, device):
    part, index, side = json.loads(told)
    case = next(itertools.islice(PARTS[part](args, device), index, None))
    before = held()
    case["sides"][side]()
    print(round(held() - before))


# ---- encoding

def peak(dtype, device, seconds=.3):
    "Operations of the best plain matrix product, a second of the processor, or of the clock on a GPU."
    def one(m, k, n):
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
        best, now = 0., time.process_time if device == "cpu" else time.perf_counter
        torch.mm(a, b)
        for _ in range(3):
            count, start = 0, now()
            while now() - start < seconds / 3:
                torch.mm(a, b)
                if device == "cuda": torch.cuda.synchronize()
                count += 1
            best = max(best, 2 * m * k * n * count / (now() - start))
        return best
    sizes = [(1024, 1024, 1024), (2048, 384, 1536), (2048, 1536, 384), *([(8192, 8192, 8192)] if device == "cuda" else [])]
    return max(one(*size) for size in sizes)


def operations(encoder, lengths):
    "Of the layers' matrix products for texts of so many tokens, padding left out; two for each multiplication."
    c = encoder[0].model.config
    dense_layer = 2 * (4 * c.hidden_size ** 2 + 2 * c.hidden_size * c.intermediate_size)   # a token: q, k, v, output, and up and down
    return c.num_hidden_layers * sum(n * dense_layer + 4 * n * n * c.hidden_size for n in lengths)


def texts_by_length(args):
    "name -> (kind, texts): what is there to encode."
    found = {"transactions": ("query", list(load("transactions")["test"].queries.values())[:args.short])}
    if data("banking77"): found["banking77"] = ("query", list(data("banking77")["test"].queries.values())[:args.short])
    if data("scifact"):
        found["scifact"] = ("document", random.Random(0).sample(sorted(data("scifact")["test"].corpus.values()), args.long))
    return found


def encoding(args, device):
    encoder = open_encoder("default", device=device)
    for name, (kind, texts) in texts_by_length(args).items():
        fast, own = (encode_queries, encoder.encode_query) if kind == "query" else (encode_documents, encoder.encode_document)
        lengths = [len(t) for t in encoder.tokenizer(texts, truncation=True, max_length=encoder.max_seq_length)["input_ids"]]
        kinds = {str(d)[6:]: lambda d=d, f=fast, t=texts: f(encoder, t, dtype=d) for d in {torch.float32, best_dtype(device)}}
        if has_openvino():
            ready = int8_encoder(encoder, texts[:100])
            kinds["int8"] = lambda e=ready, t=texts, k=kind: e.encode_query(t) if k == "query" else e.encode_document(t)
        def share(side, seconds, lengths=lengths):
            dtype = torch.bfloat16 if side == "bfloat16" else torch.float32
            return {"share": operations(encoder, lengths) / seconds / (best := peak(dtype, device)), "peak": best, "of": str(dtype)[6:]}
        expected = own(texts)
        near = {side: round(float(np.sum(f() * expected, axis=1).min()), 5) for side, f in kinds.items()}
        yield {"what": f"encode {name}", "unit": "texts/s", "units": len, "peak": share,
               "sides": {"theirs": lambda o=own, t=texts: o(t), **kinds},
               "notes": {"set": name, "texts": len(texts), "mean tokens": round(statistics.mean(lengths), 1)},
               "notes of": {side: {"least cosine": cosine} for side, cosine in near.items()}}


# ---- scoring pairs

def scoring(args, device):
    model = open_reranker("default", device=device)
    for name in ("transactions", "scifact"):
        if not data(name): continue
        dev = sample(data(name)["dev"], args.asked)
        pairs = [(dev.queries[q], dev.corpus[d]) for q, scores in bm25(dev, k=20).items() for d in ranking(scores)]
        kinds = {str(d)[6:]: FastScorer(model, d).predict for d in {torch.float32, best_dtype(device)}}
        if has_openvino(): kinds["int8"] = int8_scorer(model, pairs[:200]).predict
        lengths = [len(t) for t in model.tokenizer(pairs, truncation=True)["input_ids"]]
        def share(side, seconds, lengths=lengths):
            dtype = torch.bfloat16 if side == "bfloat16" else torch.float32
            return {"share": operations(model, lengths) / seconds / (best := peak(dtype, device)), "peak": best, "of": str(dtype)[6:]}
        def theirs(pairs=pairs): return model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        expected = theirs()
        far = {side: round(float(np.abs(f(pairs) - expected).max()), 5) for side, f in kinds.items()}
        yield {"what": f"score {name}", "unit": "pairs/s", "units": len, "peak": share,
               "sides": {"theirs": theirs, **{side: lambda f=f, p=pairs: f(p) for side, f in kinds.items()}},
               "notes": {"set": name, "pairs": len(pairs), "mean tokens": round(statistics.mean(lengths), 1),
                         "spread of the scores": round(float(expected.std()), 5)},
               "notes of": {side: {"farthest score": d} for side, d in far.items()}}


# ---- what int8 costs

class Known:
    "An encoder that looks vectors up."
    similarity_fn_name = "cosine"
    def __init__(self, queries, documents): self.queries, self.documents = queries, documents
    def encode_query(self, texts): return np.stack([self.queries[t] for t in texts])
    def encode_document(self, texts): return np.stack([self.documents[t] for t in texts])


def known(encoder, dataset):
    "All vectors of a dataset."
    queries, documents = (list(dict.fromkeys(texts.values())) for texts in (dataset.queries, dataset.corpus))
    return Known(dict(zip(queries, encoder.encode_query(queries))), dict(zip(documents, encoder.encode_document(documents))))


def quality(args, device):
    "Rows of nDCG@10 with float32 and with int8 vectors; neither set's test queries are asked."
    if not has_openvino(): return []
    encoder, rows = open_encoder("default", device=device), []
    for name in ("transactions", "scifact"):
        if not (splits := data(name)): continue
        train, dev = splits["train"], splits["dev"]
        both = Dataset(train.corpus, train.queries | dev.queries, train.qrels | dev.qrels, name)
        asked = smaller(both, args.judged, args.docs)
        ready = int8_encoder(encoder, [*list(asked.queries.values())[:50], *list(asked.corpus.values())[:50]])
        seen = {how: known(e, asked) for how, e in (("float32", FastEncoder(encoder, torch.float32)), ("int8", ready))}
        values = {how: ndcg(asked.qrels, dense(asked, e, k=10), 10) for how, e in seen.items()}
        c = compare(values["int8"], values["float32"], "int8", "float32", "nDCG@10")
        told = sentence(c, decide(c))
        rows.append({"what": f"int8 {name}", "documents": len(asked.corpus), **c.as_dict(), "sentence": told,
                     "float32": statistics.fmean(values["float32"].values())})
        print(f"int8 on {name}, {len(asked.corpus):,} documents: {told}", flush=True)
    return rows


def smaller(dataset, queries, docs):
    "`queries` queries, their documents and others up to `docs`."
    few = sample(dataset, queries)
    keep = dict.fromkeys(d for q in few.queries for d in few.positives(q))
    others = random.Random(0).sample([d for d in dataset.corpus if d not in keep], max(0, min(docs, len(dataset.corpus)) - len(keep)))
    corpus = {d: dataset.corpus[d] for d in [*keep, *others]}
    return Dataset(corpus, few.queries, {q: {d: g for d, g in few.qrels[q].items() if d in corpus} for q in few.queries}, dataset.name)


# ---- training

class Counted(MultipleNegativesRankingLoss):
    "The loss, and the rows that it was asked for."
    rows = 0

    def forward(self, features, labels=None):
        features = list(features)
        self.rows += len(features[0]["input_ids"])
        return super().forward(features, labels)


def documented_recipe(model, train, epochs):
    """Fine-tune as sentence-transformers documents it; the rows that were trained on.

    Its trainer takes as many steps in an epoch as full batches would need. Where NO_DUPLICATES makes smaller ones, as on few categories,
    the rest of the epoch's rows are not trained on, and must not be counted."""
    pairs = [(train.queries[q], train.corpus[d]) for q in train.queries for d in train.positives(q)]
    rows = datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    with TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=LR, warmup_steps=.1,
            fp16=False, bf16=False, batch_sampler=BatchSamplers.NO_DUPLICATES, use_cpu=model.device.type == "cpu", seed=0,
            save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False)
        loss = Counted(model)
        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=rows, loss=loss)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return loss.rows


def same_settings(model, train, epochs):
    "All layers, whole texts, the same objective: what is left is dropout and the engine."
    rows, loss = objective("in-batch", model, train)
    return fit(model, rows, loss, epochs=epochs, lr=LR, tokens=model.max_seq_length).rows


def training(args, device):
    sides = {"theirs": lambda m, t: documented_recipe(m, t, args.epochs),
             "ours": lambda m, t: fine_tune(m, t, epochs=args.epochs, lr=LR).rows,
             "same settings": lambda m, t: same_settings(m, t, args.epochs)}
    for name in ("transactions", "banking77", "scifact", "medquad"):
        if not (splits := data(name)): continue
        train, dev = sample(splits["train"], args.pairs), smaller(splits["dev"], 100, 200)
        count = open_encoder("default", device=device)
        base = ndcg(dev.qrels, dense(dev, FastEncoder(count), k=10), 10)
        asked = [t for q in train.queries for t in (train.queries[q], train.corpus[train.positives(q)[0]])]
        tokens = [len(t) for t in count.tokenizer(asked, truncation=True, max_length=count.max_seq_length)["input_ids"]]
        last = {}
        def side(how, last=last, train=train):
            last[how] = open_encoder("default", device=device)
            return sides[how](last[how], train)
        yield {"what": f"train {name}", "unit": "pairs/s", "units": lambda rows: rows, "dev": dev, "base": base, "models": last,
               "sides": {how: lambda how=how, side=side: side(how) for how in sides}, "notes of": {},
               "notes": {"set": name, "queries": len(train.queries), "epochs": args.epochs,
                         "mean tokens": f"{statistics.mean(tokens[::2]):.0f} and {statistics.mean(tokens[1::2]):.0f}"}}


def judged(case, side):
    "How good the models of the last round are on dev."
    values = {how: ndcg(case["dev"].qrels, dense(case["dev"], FastEncoder(case["models"][how]), k=10), 10) for how in ("theirs", side)}
    c = compare(values[side], values["theirs"], "ours", "theirs", "nDCG@10")
    print(f"{'':44s} {sentence(c, decide(c))}; base {statistics.fmean(case['base'].values()):.3f}", flush=True)
    return {"base": statistics.fmean(case["base"].values()), "theirs": statistics.fmean(values["theirs"].values()),
            "ours": statistics.fmean(values[side].values()), "compared": c.as_dict(), "sentence": sentence(c, decide(c))}


# ---- mining and search

def synthetic(n_docs, n_queries):
    "Vectors in groups, as a model's are, and a dataset whose texts are their names."
    rng = np.random.default_rng(0)
    def vectors(n):
        found = centres[rng.integers(0, len(centres), n)] + .7 * rng.standard_normal((n, 384), dtype=np.float32) / 384 ** .5
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    centres = rng.standard_normal((max(2, n_docs // 20), 384), dtype=np.float32) / 384 ** .5
    docs, queries = {f"d{i}": f"document {i}" for i in range(n_docs)}, {f"q{i}": f"query {i}" for i in range(n_queries)}
    d, q = vectors(n_docs), vectors(n_queries)
    best = np.concatenate([(part @ d.T).argmax(axis=1) for part in np.array_split(q, max(1, n_queries // 500))])
    qrels = {query: {f"d{i}": 1} for query, i in zip(queries, best.tolist())}
    return Dataset(docs, queries, qrels, "made"), Known(dict(zip(queries.values(), q)), dict(zip(docs.values(), d)))


class Model(SentenceTransformer):
    "The looked-up vectors as the class that the library's miner asks for."
    def __init__(self, vectors):
        torch.nn.Module.__init__(self)
        self.vectors, self.prompts, self.default_prompt_name, self.similarity_fn_name = vectors, {}, None, "cosine"
    def encode_query(self, texts, **kwargs): return torch.from_numpy(self.vectors.encode_query(texts))
    def encode_document(self, texts, **kwargs): return torch.from_numpy(np.stack([self.vectors.documents[t] for t in texts]))


def mine_theirs(dataset, model):
    "The library's miner at our settings."
    table = datasets.Dataset.from_dict({"query": list(dataset.queries.values()),
                                        "answer": [dataset.corpus[dataset.positives(q)[0]] for q in dataset.queries]})
    found = mine_hard_negatives(table, model, corpus=list(dataset.corpus.values()), range_max=30, num_negatives=4, relative_margin=.05,
                                verbose=False)
    return list(zip(found["query"], found["negative"]))


def mine_ours(dataset, encoder):
    "The best four of the 30 nearest besides the positive."
    mined, _ = mine(dataset, dense(dataset, encoder, k=31), last=31, relative_margin=.05, per_query=4, seed=None)
    return [(dataset.queries[q], dataset.corpus[d]) for q, docs in mined.items() for d in docs]


def mining(args, device):
    dataset, vectors = synthetic(args.docs, args.queries)
    cases = [("mine, vectors at hand", dataset, Model(vectors), {"ours": vectors})]
    if data("scifact"):
        some, model = smaller(data("scifact")["train"], 3 * args.long // 4, args.long), open_encoder("default", device=device)
        some = Dataset(some.corpus, some.queries, {q: dict([next(iter(g.items()))]) for q, g in some.qrels.items()}, some.name)
        encoders = {"float32": FastEncoder(model)}
        if has_openvino(): encoders["int8"] = int8_encoder(model, list(some.corpus.values())[:100])
        cases.append(("mine scifact", some, model, encoders))
    for name, mined, model, encoders in cases:
        ours = {side: lambda d=mined, e=e: mine_ours(d, e) for side, e in encoders.items()}
        yield {"what": name, "unit": "queries/s", "units": lambda found, d=mined: len(d.queries),
               "sides": {"theirs": lambda d=mined, m=model: mine_theirs(d, m), **ours},
               "check": lambda theirs, ours: {"the same negatives": round(len(set(theirs) & set(ours)) / len(set(theirs)), 4)},
               "notes": {"documents": len(mined.corpus), "queries": len(mined.queries)}, "notes of": {}}


def search(args, device):
    dataset, vectors = synthetic(args.docs, args.queries)
    folder = mkdtemp()
    dense(dataset, vectors, "made", store=folder)   # stored once, as an index is
    q, d = (torch.from_numpy(np.stack(list(v.values()))) for v in (vectors.queries, vectors.documents))
    ids = list(dataset.corpus)
    def loop():
        found = {}
        for name, vector in zip(dataset.queries, q.numpy()):
            scores = d.numpy() @ vector
            found[name] = {ids[i]: float(scores[i]) for i in np.argsort(-scores)[:100]}
        return found
    def library(): return {name: {ids[h["corpus_id"]]: h["score"] for h in hits}
                           for name, hits in zip(dataset.queries, semantic_search(q, d, top_k=100))}
    def ours(): return dense(dataset, vectors, "made", store=folder)
    def check(a, b): return {"the same documents": round(statistics.fmean(len(a[q].keys() & b[q].keys()) / 100 for q in a), 4)}
    for name, theirs in (("semantic_search", library), ("a loop in numpy", loop)):
        yield {"what": f"search, {name}", "unit": "queries/s", "units": len, "sides": {"theirs": theirs, "ours": ours}, "check": check,
               "notes": {"documents": args.docs, "queries": args.queries}, "notes of": {}}


PARTS = {"encoding": encoding, "scoring": scoring, "training": training, "mining": mining, "search": search}
HELD = ("training", "mining")   # memory matters
SIZES = {"short": 800, "long": 60, "pairs": 192, "epochs": 2, "docs": 5000, "queries": 500, "judged": 500, "asked": 30}


def measured(part, args, device):
    "A part's rows."
    if part == "int8": return quality(args, device)
    rows = []
    for i, case in enumerate(PARTS[part](args, device)):
        if args.only and args.only not in case["what"]: continue
        if part != "training":
            first = {side: f() for side, f in case["sides"].items()}   # warm
            if "check" in case: case["notes of"] = {side: case["check"](first["theirs"], first[side]) for side in first}
        found = turns(case, args.rounds if part != "training" else args.training_rounds, device)
        if part == "training":
            for one in found: one["dev"] = judged(case, one["side"])
        if part in HELD and device == "cpu":
            took = memory(part, i, case["sides"], args)
            print(f"{'':44s} memory: " + ", ".join(f"{side} {mib} MiB" for side, mib in took.items()), flush=True)
            for one in found: one["MiB"] = {"theirs": took["theirs"], "ours": took[one["side"]]}
        rows += found
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="encoding,scoring,int8,training,mining,search")
    parser.add_argument("--only", help="of a part only the rows whose name has this in it")
    for option, default in {"rounds": 5, "training-rounds": 3, **SIZES}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--save", action="store_true", help="write assets/speed.json")
    parser.add_argument("--saved", type=Path, default=SAVED, help="where --save writes")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args, device = parser.parse_args(argv), best_device()
    datasets.disable_progress_bars()
    if args.alone: return alone(args.alone, args, device)
    if unknown := sorted(set(args.parts.split(",")) - {*PARTS, "int8"}):
        raise SystemExit(f"--parts {unknown[0]}: expected some of {', '.join(PARTS)}, int8")
    here = machine(device)
    print("\n".join(f"{k}: {v}" for k, v in here.items()), "\n")
    notes = [*([] if here["bf16"] else [NO_BF16]), *([] if has_openvino() else [NO_INT8])]
    if not os.environ.get("RAG_FINETUNE_DATA"): notes.append("$RAG_FINETUNE_DATA is not set: the bundled transactions only")
    print("\n".join(notes), f"\n\n{'':44s} {'theirs':>8s} {'ours':>8s} {'':9s} ratio (rounds)")
    for part in args.parts.split(","):
        found = {"command": shlex.join(["python", "bench/speed.py", *(sys.argv[1:] if argv is None else argv)]), "machine": here,
                 "notes": notes, "rows": measured(part, args, device)}
        if not args.save: continue
        saved = json.loads(args.saved.read_text()) if args.saved.is_file() else {}
        args.saved.write_text(json.dumps({"parts": {**saved.get("parts", {}), part: found}}, indent=1) + "\n")


if __name__ == "__main__": main()
