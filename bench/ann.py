"""When does an index pay? Exact search (a matrix product over the stored vectors) against LanceDB's indexes.

    python bench/ann.py [--sizes 10000,30000,100000] [--queries 200] [--out assets/ann.json]

For each size, for vectors without structure ("random") and in groups as a model's are ("clustered": 100 documents a group on average,
queries from the same groups), 384 numbers each of length one: time to build an index, time a query in a batch, and the share of the
exact top 10 and top 100 that it finds. Times are of the processor, over all threads, so that other work on the machine counts little;
on an idle machine with c cores the clock shows about 1/c of them. Each index is warmed up by a few queries first. It pays for a batch
of queries from the number of queries on at which the time that it saves has paid for its building ("pays_from_queries"; null: never).
"""
import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import HnswSq, IvfPq

from rag_finetune.retrieval import _exact

DIMENSION, K = 384, 100


def vectors(kind, n, n_queries, seed=0):
    "(n, 384) documents and (n_queries, 384) queries of length one."
    random = np.random.default_rng(seed)
    def unit(v): return v / np.linalg.norm(v, axis=1, keepdims=True)
    def noise(m): return random.standard_normal((m, DIMENSION), dtype=np.float32)
    if kind == "random": return unit(noise(n)), unit(noise(n_queries))
    centres = noise(n // 100)
    return tuple(unit(centres[random.integers(0, len(centres), m)] + .8 * noise(m)) for m in (n, n_queries))


def timed(f):
    start = time.process_time()
    result = f()
    return result, time.process_time() - start


def recall(exact, found, k):
    return float(np.mean([len(np.intersect1d(e[:k], f[:k])) / k for e, f in zip(exact, found, strict=True)]))


def through_index(table, queries, **settings):
    "Rows of each query, best first."
    search = table.search(queries, query_type="vector").distance_type("dot").limit(K).select(["row", "_distance"])
    for name, value in settings.items(): search = getattr(search, name)(value)
    hits = search.to_arrow()
    which, rows, distance = (hits[c].to_numpy() for c in ("query_index", "row", "_distance"))
    order = np.lexsort((distance, which))
    return np.split(rows[order], np.searchsorted(which[order], np.arange(1, len(queries))))


INDEXES = {  # name: (how it is built, {how it is searched}, documents above which building takes too long to measure)
    "HNSW_SQ": (HnswSq(distance_type="dot", num_partitions=1), [{"ef": 150}, {"ef": 400, "refine_factor": 2}], 30_000),
    "IVF_PQ": (IvfPq(distance_type="dot"), [{"nprobes": 20, "refine_factor": 2}, {"nprobes": 60, "refine_factor": 5}], 10_000_000),
}


def measure(kind, n, n_queries):
    "A row for exact search and one for each index and setting."
    docs, queries = vectors(kind, n, n_queries)
    with tempfile.TemporaryDirectory() as folder:
        column = pa.FixedSizeListArray.from_arrays(pa.array(docs.ravel()), DIMENSION)
        table = lancedb.connect(folder).create_table("t", pa.table({"row": np.arange(n), "vector": column}))
        row = {"vectors": kind, "documents": n}
        found, seconds = timed(lambda: _exact(table, queries, K))
        exact, exact_ms = [rows for rows, _ in found], 1000 * seconds / n_queries
        yield row | {"search": "exact", "build_s": 0., "query_ms": exact_ms, "recall@10": 1., "recall@100": 1.}
        for name, (config, searches, limit) in INDEXES.items():
            if n > limit: continue
            _, build = timed(lambda c=config: table.create_index("vector", config=c))
            for settings in searches:
                through_index(table, queries[:20], **settings)
                found, seconds = timed(lambda s=settings: through_index(table, queries, **s))
                ms = 1000 * seconds / n_queries
                pays = round(1000 * build / (exact_ms - ms)) if ms < exact_ms else None
                yield row | {"search": f"{name} {settings}", "build_s": build, "query_ms": ms, "recall@10": recall(exact, found, 10),
                             "recall@100": recall(exact, found, K), "pays_from_queries": pays}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,30000,100000")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("assets/ann.json"))
    args = parser.parse_args()
    rows = []
    for n in map(int, args.sizes.split(",")):
        for kind in ("clustered", "random"):
            for row in measure(kind, n, args.queries):
                rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
                print(json.dumps(rows[-1]), flush=True)
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "lancedb": lancedb.__version__, "numpy": np.__version__}
    command = f"python bench/ann.py --sizes {args.sizes} --queries {args.queries}"
    args.out.write_text(json.dumps({"command": command, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__": main()
