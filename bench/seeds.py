"""The main job with several seeds on each set: what of a figure is the queries, and what is luck of the training.

    python bench/seeds.py [--sets transactions,banking77,...] [--seeds 0,1,2] [--work bench-seeds] [--save]
    python bench/seeds.py --set NAME=PATH[,TRAIN_LIMIT] [--model FOLDER] [--epochs N]      # a set of your own
    python bench/seeds.py --reranker default --saved assets/second_tier.json --save        # with a second tier

Each (set, seed) is one `rag_finetune.pipeline.run` in a process of its own. A finished run becomes one file in --values at once (under
--work if that is not given), and a second start skips what is there: a stop, whenever it comes, costs at most the epoch in progress. The
files carry a digest of our code and of the settings in their names, so runs of other code are never mixed in. They hold every query's
values, so that another comparison needs no other run, on any machine.

All seeds answer the same test queries, and each query's value is averaged over them. An interval has two parts, added as squares: the
queries (bootstrap, as everywhere) and the seeds (Student's t on the means of the seeds, 4.3 times their standard error for three). A
paired test compares the averages, so its p value is about these seeds; "better" is claimed only where the interval agrees. What dev
chose may differ between the seeds: "chosen by dev" and "best cheap by dev" are the procedure, each seed's own choice. So are "two tiers
by dev" and "one tier by dev", the best system with a reranker behind it and the best one without.

The seeds of a set are one declared experiment: nothing is chosen by a seed's test figures before the next runs. So the use of a test
split is written into its record ($RAG_FINETUNE_USES) once for all seeds, before the first run; the runs themselves count in a file
under --work.

--save writes assets/seeds.json; sets that were not asked for stay in it as they are.
"""
import argparse
import gzip
import hashlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

from scipy.stats import t as student

from rag_finetune.data import atomic, read_any, read_qrels, read_run
from rag_finetune.metrics import evaluate
from rag_finetune.pipeline import BEGUN, DECIDES, METRICS, UNFINISHED, _both, prepare, record_use, run, slices, uses_file
from rag_finetune.verdict import Interval, compare_all, decide, format_table, interval, sentence

ROOT = Path(__file__).resolve().parent.parent
SAVED = ROOT / "assets" / "seeds.json"
# set -> where it is, and the budget of labelled queries; {} is $RAG_FINETUNE_DATA
SETS = {"transactions": ("transactions", None), "banking77": ("{}/banking77", 1000), "banking77-all": ("{}/banking77", None),
        "scifact": ("{}/scifact", None), "medquad": ("{}/medquad/medquad.csv", None), "handbook": ("handbook", None)}
# whose change may change a figure
CODE = ("core", "data", "metrics", "models", "retrieval", "verdict", "ladder", "negatives", "embedding", "training", "reranker", "late",
        "tiers", "pipeline")
CHOSEN, CHEAP, TWO, ONE = "chosen by dev", "best cheap by dev", "two tiers by dev", "one tier by dev"
PAIRS = [(CHOSEN, CHEAP), (CHOSEN, "base"), ("tuned", CHEAP), ("tuned", "base")]   # one family for each metric
TIERS = [(TWO, ONE), ("tuned+reranker", "tuned"), ("tuned+late", "tuned"), ("tuned+reranker", "tuned+late"), ("base+reranker", "base"),
         ("bm25+reranker", "bm25"), ("base+late", "base")]   # with a second tier, another family


# ---- one run

@cache
def texts(path):
    "Split -> fingerprint."
    return {name: part.fingerprint for name, part in read_any(path).splits.items()}


def key(settings):
    "Changes with our code, with the settings and with the data."
    digest = hashlib.sha256(json.dumps({**settings, "data": texts(settings["data"])}, sort_keys=True).encode())
    for name in CODE: digest.update((ROOT / "rag_finetune" / f"{name}.py").read_bytes())
    return digest.hexdigest()[:10]


def written(file, told):
    "A finished run in one step and in few bytes: the queries once, their values to six digits."
    queries = sorted({q for row in told["values"].values() for of in row.values() for q in of})
    def column(of): return [round(of[q], 6) if q in of else None for q in queries]
    short = {**told, "queries": queries, "values": {s: {m: column(of) for m, of in row.items()} for s, row in told["values"].items()}}
    part = file.with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(gzip.compress(json.dumps(short).encode(), mtime=0))
    os.replace(part, file)


def read(file):
    "What `written` was told."
    told = json.loads(gzip.decompress(file.read_bytes()))
    queries = told.pop("queries")
    def values(column): return {q: v for q, v in zip(queries, column, strict=True) if v is not None}
    return told | {"values": {s: {m: values(column) for m, column in row.items()} for s, row in told["values"].items()}}


def one(settings, seed, folder, file):
    "Run, or go on with a run that was stopped; then keep each query's values in one file."
    if not (folder / "results.json").is_file():
        stopped = (folder / UNFINISHED / BEGUN).is_file()
        if folder.exists() and not stopped: shutil.rmtree(folder)
        run(out=folder, seed=seed, resume=stopped, **settings)
    results, qrels = json.loads((folder / "results.json").read_text()), read_qrels(folder / "qrels.trec")
    systems = {s: evaluate(qrels, read_run(folder / "runs" / f"{s}.trec"), METRICS) for s in results["systems"]}
    splits = prepare(read_any(settings["data"]).splits, settings["train_limit"], seed).splits
    learnt = _both(splits["train"], splits["dev"]) if results["dataset"]["dev_carved"] else splits["train"]
    parts = {name: sorted(part) for name, part in slices(learnt, splits["test"]).items()}
    told = {k: results[k] for k in ("dataset", "verdict", "second_tier", "settings", "environment", "resumed", "seconds")}
    written(file, {"results": told, "values": systems, "slices": parts})
    for model in ("model", "reranker"): shutil.rmtree(folder / model, ignore_errors=True)   # 90 MB each; the same seed makes them again


def run_all(name, settings, seeds, work, kept):
    "The file of each seed, made where it is not there."
    files = {seed: kept / f"{name}-{seed}-{key(settings)}.json.gz" for seed in seeds}
    missing = [seed for seed, file in files.items() if not file.is_file()]
    mark = kept / f"{name}-{key(settings)}.uses.json"
    if missing and not mark.is_file():
        test = prepare(read_any(settings["data"]).splits, settings["train_limit"], 0).splits["test"]
        used = record_use(test, f"bench/seeds.py: one experiment of {len(seeds)} seeds on {name}", uses_file())
        with atomic(mark) as out: json.dump(used, out)
    env = os.environ | {"RAG_FINETUNE_USES": str(work / "uses-of-the-seeds.jsonl"), "OMP_WAIT_POLICY": "PASSIVE"}
    for seed in missing:
        file = files[seed]
        print(f"{name}, seed {seed} ...", flush=True)
        start, told = time.monotonic(), json.dumps([settings, seed, str(work / f"{name}-{seed}-{key(settings)}"), str(file)])
        subprocess.run([sys.executable, __file__, "--one", told], env=env, check=True)
        print(f"{name}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    return [read(files[seed]) for seed in seeds], json.loads(mark.read_text())


# ---- the seeds together

def widened(found, means, least=0.):
    "An interval over queries, made wider by the spread of the seeds' means."
    k = len(means)
    luck = student.ppf(.975, k - 1) * statistics.stdev(means) / k ** .5 if k > 1 else 0.
    centre = found.mean if isinstance(found, Interval) else found.difference
    low, high = (centre + sign * ((limit - centre) ** 2 + luck ** 2) ** .5 for sign, limit in ((-1, found.low), (1, found.high)))
    return found._replace(low=max(low, least), high=min(high, 1.)) if isinstance(found, Interval) else \
        replace(found, low=max(low, least), high=min(high, 1.))


def average(values): return {q: statistics.fmean(v[q] for v in values) for q in values[0]}

def mean(values): return statistics.fmean(values.values())


def tables(runs, queries=None):
    "Of these queries, or all: means with intervals, means by seed, and comparisons."
    kept = [{s: {m: {q: v for q, v in of.items() if queries is None or q in queries} for m, of in row.items()} for s, row in r.items()}
            for r in runs]
    systems = [s for s in kept[0] if all(s in r for r in kept)]
    shared = {m: {s: average([r[s][m] for r in kept]) for s in systems} for m in METRICS}
    by_seed = {s: {m: [mean(r[s][m]) for r in kept] for m in METRICS} for s in systems}
    figures = {s: {m: widened(interval(shared[m][s]), by_seed[s][m]).as_dict() for m in METRICS} for s in systems}
    families = (PAIRS, TIERS) if TWO in systems else (PAIRS,)
    found = [widened(c, [a - b for a, b in zip(by_seed[c.a][m], by_seed[c.b][m])], -1.)
             for m in METRICS for family in families for c in compare_all(shared[m], family, m)]
    return {"systems": figures, "by_seed": by_seed, "comparisons": [c.as_dict() for c in found]}, found


def claim(c, worth):
    "What may be said; \"better\" and \"worse\" only where the interval, which knows of the seeds, leaves 0 out."
    decision = decide(c, worth)
    if decision in ("better", "worse") and c.low <= 0 <= c.high: decision = "not_enough"
    return decision


def together(files, seeds, worth=.01):
    "All seeds of a set as one result."
    verdicts, first = [f["results"]["verdict"] for f in files], files[0]["results"]
    tests = {f["results"]["dataset"]["fingerprint"]["test"] for f in files}
    if len(tests) > 1: raise SystemExit(f"the seeds were measured on {len(tests)} different tests: {sorted(tests)}")
    runs = [{**f["values"], CHOSEN: f["values"][v["chosen"]], CHEAP: f["values"][v["best_cheap"]]} for f, v in zip(files, verdicts)]
    tiers = [f["results"].get("second_tier") for f in files]
    if all(tiers): runs = [{**r, TWO: f["values"][t["system"]], ONE: f["values"][t["first"]]} for r, f, t in zip(runs, files, tiers)]
    whole, found = tables(runs)
    told = {c.b: claim(c, worth) for c in found if c.a == CHOSEN and c.metric == DECIDES}
    lines = {c.b: sentence(c, told[c.b], worth) for c in found if c.a == CHOSEN and c.metric == DECIDES}
    same = files[0]["slices"] if all(f["slices"] == files[0]["slices"] for f in files) else {}
    settings = ("recipe", "epochs", "share", "reranker epochs")
    second = next(({"sentence": sentence(c, claim(c, worth), worth)} for c in found if (c.a, c.b, c.metric) == (TWO, ONE, DECIDES)), None)
    return {"dataset": {k: v for k, v in first["dataset"].items() if k != "warnings"}, "seeds": seeds, **whole,
            "slices": {name: tables(runs, set(part))[0] for name, part in same.items()},
            "verdict": {"decision": told[CHEAP], "sentence": lines[CHEAP], "against_base": lines["base"]}, "second_tier": second,
            "runs": [{"seed": s, "chosen": v["chosen"], "best_cheap": v["best_cheap"], "sentence": v["sentence"],
                      **{k: f["results"]["settings"].get(k) for k in settings}, "second_tier": f["results"].get("second_tier"),
                      "seconds": None if f["results"]["resumed"] else round(sum(f["results"]["seconds"].values()))}
                     for s, v, f in zip(seeds, verdicts, files)],
            "environment": first["environment"]}


def show(name, found):
    "The table and the verdict as text."
    def rows(part): return {s: {m: Interval(**i) for m, i in row.items()} for s, row in part["systems"].items()}
    print(f"\n{name}, {len(found['seeds'])} seeds, intervals over queries and seeds")
    print(format_table(rows(found)))
    print(f"{DECIDES} by seed:", {s: [round(x, 3) for x in found["by_seed"][s][DECIDES]] for s in (CHOSEN, "tuned", CHEAP)})
    for part, figures in found["slices"].items():
        print(f"\n{part}:", {s: str(Interval(**figures["systems"][s][DECIDES])) for s in (CHOSEN, "tuned", CHEAP, "base")})
        for c in figures["comparisons"]:
            if c["metric"] == DECIDES: print(f"   {c['a']} - {c['b']}: {c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}], "
                                             f"p = {c['p_holm']:.3f}")
    if second := found.get("second_tier"): print(f"Second tier: {second['sentence']}")
    print(f"Verdict: {found['verdict']['sentence']}\n   Base: {found['verdict']['against_base']}", flush=True)


def asked(args):
    "Set -> the settings of its runs; what cannot be had here is left out, and said."
    data, own = os.environ.get("RAG_FINETUNE_DATA"), dict(text.split("=", 1) for text in args.set)
    names = args.sets.split(",") if args.sets else [] if own else list(SETS)
    if unknown := sorted(set(names) - set(SETS)): raise SystemExit(f"--sets {unknown[0]}: expected some of {', '.join(SETS)}")
    found = {n: SETS[n] for n in names if data or "{}" not in SETS[n][0]}
    if left := [n for n in names if n not in found]: print(f"left out, $RAG_FINETUNE_DATA is not set: {', '.join(left)}")
    for name, text in own.items():
        path, _, limit = text.partition(",")
        found[name] = (path, int(limit) if limit else None)
    second = {} if args.reranker == "none" else {"reranker": args.reranker}
    return {n: {"data": path.format(data), "train_limit": limit, "model": args.model, "epochs": args.epochs, **second}
            for n, (path, limit) in found.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", help=f"some of {','.join(SETS)}; all of them if neither this nor --set is given")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=PATH[,LIMIT]", help="a set of your own; may be given again")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path("bench-seeds"), help="where runs in progress are")
    parser.add_argument("--values", type=Path, help="where every query's values of finished runs are kept; --work if not given")
    parser.add_argument("--model", default="default")
    parser.add_argument("--epochs", type=int, help="at most so many, to try it out")
    parser.add_argument("--reranker", default="none", help="a second tier, as `rag-finetune run` takes it")
    parser.add_argument("--save", action="store_true", help="write assets/seeds.json")
    parser.add_argument("--saved", type=Path, default=SAVED, help="where --save writes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        settings, seed, folder, file = json.loads(args.one)
        return one(settings, seed, Path(folder), Path(file))
    seeds, work = [int(s) for s in args.seeds.split(",")], args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name, settings in asked(args).items():
        files, used = run_all(name, settings, seeds, work, (args.values or work).resolve())
        found = together(files, seeds) | {"test_uses": {**used, "how": f"{len(seeds)} seeds, one declared experiment, counted once"}}
        show(name, found)
        if not args.save: continue
        saved = json.loads(args.saved.read_text()) if args.saved.is_file() else {"sets": {}}
        given = {"sets": name, "seeds": args.seeds, **{k: getattr(args, k) for k in ("model", "epochs", "reranker")}}
        if (saved_in := args.saved.resolve()).is_relative_to(ROOT) and saved_in != SAVED: given["saved"] = saved_in.relative_to(ROOT)
        options = [word for k, v in given.items() if v != parser.get_default(k) for word in (f"--{k}", str(v))]
        command = shlex.join(["python", "bench/seeds.py", *options, "--save"])
        saved["sets"][name] = {"command": command, "code": key(settings), **found}
        with atomic(args.saved) as out: out.write(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__": main()
