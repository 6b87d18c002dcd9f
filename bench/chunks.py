"""Which way of cutting documents finds the span that answers, for how many tokens?

    python bench/chunks.py [--store FOLDER] [--out assets/chunks.json]

The handbook that travels with the package (questions of train and dev; its test stays shut) and the public chunking set
($RAG_FINETUNE_DATA/chunking: five documents with hardly a heading, questions with one span or several; left out, and said, where
it is absent). Each is cut in each way into chunks of at most 200 tokens of the model, the handbook also of at most 64, and searched by
words and by vectors. A question's chunks are taken from the best down while they fit a budget; it scores the share of its spans that
stand whole in them. Intervals and paired tests are over questions. The tests are at one budget, fixed beforehand: each way against
`fixed` of the same size, and, since sections are short, `heading` at 200 against `fixed` at 64; Holm's correction is within a set and a
search. With --store vectors are kept, so that a run that was stopped goes on.
"""
import argparse
import csv
import json
import os
import platform
import tempfile
from collections import defaultdict
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean

from rag_finetune.core import Dataset
from rag_finetune.data import atomic, bundled, fixed_chunks, heading_chunks, load, recursive_chunks, sentence_chunks
from rag_finetune.models import fingerprint, open_encoder
from rag_finetune.retrieval import bm25, dense, span_recall, within
from rag_finetune.verdict import compare_all, decide, interval, sentence

SIZES = {"handbook": (200, 64), "chunking": (200,)}  # the second is 350,000 tokens, and each way encodes all of them
BUDGETS, TESTED_AT = (200, 400, 800, 1600), 400
HERE = Path(__file__).resolve().parent.parent


def handbook():
    "Chapters, questions and where they are answered."
    splits = load("handbook")
    documents = {p.name: p.read_text(encoding="utf-8") for p in sorted((bundled()["handbook"] / "chapters").glob("*.md"))}
    meta = {q: d.meta[q] for s, d in splits.items() if s != "test" for q in d.queries}
    spans = {q: [(m["document"], int(m["start"]), int(m["end"]))] for q, m in meta.items()}
    return documents, {q: splits[s].queries[q] for s in ("train", "dev") for q in splits[s].queries}, spans


def public(folder):
    "The same of the chunking set."
    documents = {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.md"))}
    queries, spans = {}, defaultdict(list)
    with (folder / "questions_df.csv").open(encoding="utf-8", newline="") as file:
        for n, row in enumerate(csv.DictReader(file)):
            queries[f"q{n}"] = row["question"]
            spans[f"q{n}"] = [(row["corpus_id"], r["start_index"], r["end_index"]) for r in json.loads(row["references"])]
    return documents, queries, dict(spans)


def ways(most, size):
    "Name -> what cuts a text, and whether the headings' titles go before each chunk."
    return {"fixed": (partial(fixed_chunks, most=most, size=size), False),
            "fixed, a fifth shared": (partial(fixed_chunks, most=most, size=size, overlap=most // 5), False),
            "sentence": (partial(sentence_chunks, most=most, size=size), False),
            "recursive": (partial(recursive_chunks, most=most, size=size), False),
            "heading": (partial(heading_chunks, most=most, size=size), False),
            "heading, with titles": (partial(heading_chunks, most=most, size=size), True)}


def chunked(documents, cut, titled):
    "Chunk id -> its text, and the place that it was cut from."
    chunks = {f"{name}#{n}": (name, c) for name, text in documents.items() for n, c in enumerate(cut(text))}
    texts = {i: f"{c.title}\n{c.text}" if titled else c.text for i, (_, c) in chunks.items()}
    return texts, {i: (name, c.start, c.end) for i, (name, c) in chunks.items()}


def measure(name, data, size, searches):
    "A row for each size, way, search and budget, and the tests."
    documents, queries, spans = data
    values = defaultdict(dict)  # (search, budget) -> "way, size" -> question -> recall
    for most in SIZES[name]:
        for way, (cut, titled) in ways(most, size).items():
            texts, places = chunked(documents, cut, titled)
            if titled and not any(t.partition("\n")[0] for t in texts.values()): continue  # no headings, no titles
            sizes = {i: size(t) for i, t in texts.items()}
            about = {"set": name, "way": way, "most": most, "chunks": len(texts), "tokens_a_chunk": round(mean(sizes.values()), 1)}
            for search, find in searches.items():
                run = find(Dataset(texts, queries, {}, f"{name}-{way}"))
                for budget in BUDGETS:
                    kept = within(run, sizes, budget)
                    found = values[search, budget][f"{way}, {most}"] = span_recall(spans, places, kept)
                    spent = mean(sum(sizes[i] for i in docs) for docs in kept.values())
                    yield about | {"search": search, "budget": budget, "recall": interval(found).as_dict(), "tokens": round(spent, 1)}
    for search in searches:
        tested = values[search, TESTED_AT]
        pairs = [(way, f"fixed, {most}") for most in SIZES[name] for way in tested if way.endswith(f" {most}") and way != f"fixed, {most}"]
        if "fixed, 64" in tested: pairs.append(("heading, 200", "fixed, 64"))
        for c in compare_all(tested, pairs, f"span recall within {TESTED_AT} tokens"):
            yield {"set": name, "search": search, "budget": TESTED_AT} | asdict(c) | {"decision": decide(c), "said": sentence(c, decide(c))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="keeps vectors between runs")
    parser.add_argument("--out", type=Path, default=HERE / "assets" / "chunks.json")
    args = parser.parse_args()
    encoder, sets = open_encoder(), {"handbook": handbook()}
    folder = Path(os.environ.get("RAG_FINETUNE_DATA", "")) / "chunking"
    if folder.is_dir(): sets["chunking"] = public(folder)
    else: print("the chunking set is left out: RAG_FINETUNE_DATA names no folder that has it")

    @lru_cache(maxsize=1_000_000)
    def size(text): return len(encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "model": "all-MiniLM-L6-v2"}
    questions = {name: len(queries) for name, (_, queries, _) in sets.items()}
    made, rows, tests = {"command": "python bench/chunks.py", "machine": machine, "questions": questions}, [], []
    with tempfile.TemporaryDirectory() as folder:
        store = str(args.store or folder)
        searches = {"words": bm25, "vectors": lambda d: dense(d, encoder, key=fingerprint(encoder), store=store)}
        for name, data in sets.items():
            for row in measure(name, data, size, searches):
                print(row.get("said") or json.dumps(row), flush=True)
                (tests if "said" in row else rows).append(row)
            with atomic(args.out) as file:  # what is done is done
                json.dump(made | {"rows": rows, "tests": tests}, file, indent=1)
                file.write("\n")


if __name__ == "__main__": main()
