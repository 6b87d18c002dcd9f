"""Makes faq.csv and the BEIR files of the handbook out of chapters/*.md and questions/*.txt, which are written by hand:

    python data/handbook/build.py

The same sources make the same bytes. A file of questions is named like its chapter, begins with its split, and goes on, after blank
lines, with blocks: `> the text in the chapter that answers`, `= the answer in plain words`, perhaps `+ id` of other sections that answer
as well, and one question a line.
"""
import csv, json, re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rag_finetune.core import DataError
from rag_finetune.data import SPLITS, atomic

HERE = Path(__file__).resolve().parent
COLUMNS = ("Question", "Answer", "document", "span", "start", "end", "split")

@dataclass(frozen=True)
class Section:
    "What stands between a heading and the next one, of whatever level."
    id:str      # 03-lodging#caps-by-city
    title:str   # the headings that lead to it: "3 Lodging > What we pay for > Caps by city"
    text:str    # what stands below the heading
    start:int   # where the heading begins in the file, in characters
    end:int     # where the text ends

@dataclass(frozen=True)
class Row:
    "A question, and where the handbook answers it."
    id:str
    question:str
    answer:str
    document:str         # the chapter's file
    span:str             # what answers there
    start:int            # of the span, in characters
    split:str
    relevant:list[str]   # ids of the sections that answer, the span's first
    @property
    def end(self) -> int: return self.start + len(self.span)

def sections(
    path:Path  # a Markdown file
) -> Iterator[Section]:  # in the order of the file
    "The sections of a file that have a text of their own; a heading right above another heading has none."
    whole = path.read_text(encoding="utf-8")
    heads = list(re.finditer(r"^(#+) (.+)$", whole, re.M))
    trail:list[str] = []
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(whole)]):
        trail = [*trail[:len(head[1]) - 1], head[2].strip()]
        if not (below := whole[head.end():end].strip()): continue
        slug = "-".join(re.findall(r"[a-z0-9]+", trail[-1].lower()))
        yield Section(f"{path.stem}#{slug}", " > ".join(trail), below, head.start(), len(whole[:end].rstrip()))

def corpus(
    folder:Path=HERE  # has chapters/
) -> dict[str, tuple[str, Section]]:  # id -> the chapter's file, the section
    "Every section of the handbook."
    found:dict[str, tuple[str, Section]] = {}
    for path in sorted((folder/"chapters").glob("*.md")):
        for section in sections(path):
            if section.id in found: raise DataError(f"{path}: a second section {section.id!r}; give the headings of a file different names")
            found[section.id] = path.name, section
    return found

def blocks(
    path:Path  # a file of questions
) -> Iterator[tuple[str, str, list[str], list[str]]]:  # span, answer, ids of other sections that answer, questions
    "The blocks of a file of questions."
    for block in path.read_text(encoding="utf-8").strip().split("\n\n")[1:]:
        span, answer, *lines = block.strip().split("\n")
        questions = [line for line in lines if not line.startswith("+ ")]
        if not (span.startswith("> ") and answer.startswith("= ") and questions):
            raise DataError(f"{path}: a block begins with {span[:60]!r}; wanted lines of > span, = answer, and questions")
        yield span[2:], answer[2:], [line[2:] for line in lines if line.startswith("+ ")], questions

def rows(
    folder:Path=HERE  # has chapters/ and questions/
) -> Iterator[Row]:
    "Every question, in the order of the files."
    known = corpus(folder)
    for path in sorted((folder/"questions").glob("*.txt")):
        chapter = folder/"chapters"/f"{path.stem}.md"
        whole, n = chapter.read_text(encoding="utf-8"), 0
        split = path.read_text(encoding="utf-8").split("\n", 1)[0]
        if split not in SPLITS: raise DataError(f"{path}:1: {split!r}; wanted one of {', '.join(SPLITS)}")
        for span, answer, others, questions in blocks(path):
            if (times := whole.count(span)) != 1: raise DataError(f"{chapter}: found {times} times, wanted once: {span!r}")
            start = whole.index(span)
            holds = [i for i, (name, s) in known.items() if name == chapter.name and s.start <= start and start + len(span) <= s.end]
            if unknown := [i for i in others if i not in known]: raise DataError(f"{path}: no section {unknown[0]!r}")
            if not holds: raise DataError(f"{chapter}: goes over the end of a section: {span!r}")
            for question in questions:
                n += 1
                yield Row(f"{path.stem}-{n:02d}", question, answer, chapter.name, span, start, split, [*holds, *others])

def _json_line(file:TextIO, record:dict[str, object]) -> None: file.write(json.dumps(record, ensure_ascii=False) + "\n")

def write(
    folder:Path=HERE,     # has chapters/ and questions/
    out:Path|None=None    # gets faq.csv, corpus.jsonl, queries.jsonl and qrels/; `folder` if None
) -> None:
    "Write everything that is made."
    out, found = out or folder, list(rows(folder))
    with atomic(out/"faq.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows((r.question, r.answer, r.document, r.span, r.start, r.end, r.split) for r in found)
    with atomic(out/"corpus.jsonl") as file:
        for name, s in corpus(folder).values():
            about = {"document": name, "start": s.start, "end": s.end}
            _json_line(file, {"_id": s.id, "title": s.title, "text": s.text, "metadata": about})
    with atomic(out/"queries.jsonl") as file:
        for r in found:
            answered = {"document": r.document, "start": r.start, "end": r.end, "answer": r.answer}
            _json_line(file, {"_id": r.id, "text": r.question, "metadata": answered})
    for split in SPLITS:
        with atomic(out/"qrels"/f"{split}.tsv") as file:
            file.write("query-id\tcorpus-id\tscore\n")
            file.writelines(f"{r.id}\t{i}\t1\n" for r in found if r.split == split for i in r.relevant)

if __name__ == "__main__": write()
