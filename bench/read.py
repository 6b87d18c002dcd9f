"""Reading JSON Lines: seconds and peak memory of ours against `datasets`, pandas and a plain loop over `json.loads`.

    python bench/read.py [--rows 1000000] [--rounds 1] [--save]

Two files are made: a corpus (`_id`, `title`, `text` of 30 words) and training pairs (`anchor` of 10 words, `positive`). Each reader reads
each file in a process of its own, turn by turn. All end with the same in memory, the texts in Python, since that is what one goes on with;
"as it comes" is the library's own table without that step. `datasets` starts without a cache. Ours checks every row (ids that stand twice,
empty texts, halves of characters), puts equal texts of the pairs together, and would say file and line of what is wrong; the others do
none of that. Seconds are of the processor, over all threads, so that other work on the machine counts little; the clock's stand beside
them. Memory is the most that the process ever held, less what it held after its imports.
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

FILES = {"corpus": ("_id", "text"), "pairs": ("anchor", "positive")}  # file -> the two columns that are wanted


def ours(path, file):
    from rag_finetune.data import load, read_columns
    return lambda: load(path.parent) if file == "corpus" else read_columns(path)

def through_datasets(path, file, whole):
    import datasets

    def read():
        table = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / f"cache-{os.getpid()}"))
        return list(zip(*(table[c][:] for c in FILES[file]), strict=True)) if whole else table
    return read

def through_pandas(path, file, whole):
    import pandas as pd

    def read():
        table = pd.read_json(path, lines=True, dtype=False)
        return list(zip(*(table[c] for c in FILES[file]), strict=True)) if whole else table
    return read

def plain(path, file):
    a, b = FILES[file]

    def read():
        with path.open(encoding="utf-8") as lines: return [(row[a], row[b]) for row in map(json.loads, lines)]
    return read

READERS = {"rag_finetune": ours, "json.loads in a loop": plain,
           "datasets": lambda p, f: through_datasets(p, f, True), "datasets, as it comes": lambda p, f: through_datasets(p, f, False),
           "pandas": lambda p, f: through_pandas(p, f, True), "pandas, as it comes": lambda p, f: through_pandas(p, f, False)}


def write(folder, n):
    "The two files of `n` rows, and what makes a BEIR folder of the first."
    rng = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q\td0\t1\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "pairs.jsonl").open("w") as pairs:
        for i in range(n):
            text = " ".join(rng.choices(words, k=30))
            corpus.write(json.dumps({"_id": f"d{i}", "title": "", "text": text}) + "\n")
            pairs.write(json.dumps({"anchor": " ".join(rng.choices(words, k=10)), "positive": text}) + "\n")

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # MiB

def one(folder, reader, file):
    "In a process of its own: read a file and print what it took."
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    read = READERS[reader](folder / f"{file}.jsonl", file)
    before, clock, start = peak(), time.monotonic(), time.process_time()
    kept = read()
    took = {"seconds": time.process_time() - start, "clock": time.monotonic() - clock, "MiB": peak() - before}
    del kept
    print(json.dumps(took))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write assets/read.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return one(Path(args.one[0]), *args.one[1:])
    found = {}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.rows)
        megabytes = {file: round((Path(name) / f"{file}.jsonl").stat().st_size / 1e6) for file in FILES}
        for _ in range(args.rounds):
            for file in FILES:
                for reader in READERS:
                    command = [sys.executable, __file__, "--one", name, reader, file]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    found.setdefault((file, reader), []).append(json.loads(done.stdout))
    took = {key: {k: statistics.median(r[k] for r in rounds) for k in rounds[0]} for key, rounds in found.items()}
    rows = [{"file": file, "reader": reader, **{k: round(v, 2) for k, v in row.items()},
             **{f"{k}: ours / this": round(took[file, "rag_finetune"][k] / row[k], 2) for k in ("seconds", "MiB")}}
            for (file, reader), row in took.items()]
    for row in rows: print(json.dumps(row))
    if not args.save: return None
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version(),
               **{p: version(p) for p in ("datasets", "pandas")}}
    command = f"python bench/read.py --rows {args.rows} --rounds {args.rounds} --save"
    out = Path(__file__).parent.parent / "assets" / "read.json"
    out.write_text(json.dumps({"command": command, "machine": machine, "megabytes": megabytes, "rows": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__": main()
