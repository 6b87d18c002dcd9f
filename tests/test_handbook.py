"The bundled handbook: what its data card promises, held against the files."
import csv
import importlib.util
import json
import re
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from rag_finetune.core import DataError, text_key
from rag_finetune.data import check_splits, drop_twins, load, near_twins, read_beir

FOLDER = Path(__file__).resolve().parent.parent / "data" / "handbook"
MADE = ["faq.csv", "corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"]

def chapters(): return {p.name: p.read_text(encoding="utf-8") for p in sorted((FOLDER / "chapters").glob("*.md"))}

def table(name):
    with (FOLDER / name).open(encoding="utf-8", newline="") as file: return list(csv.DictReader(file))

@pytest.fixture(scope="module")
def faq(): return table("faq.csv")

@pytest.fixture(scope="module")
def splits(): return read_beir(FOLDER)

@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_handbook", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def lines(name): return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]

# the chapters

def test_the_handbook_is_a_handbook_of_some_forty_pages():
    texts = chapters()
    assert 20 <= len(texts) <= 25
    assert 14_000 <= sum(len(t.split()) for t in texts.values()) <= 24_000
    for name, text in texts.items():
        heads = re.findall(r"^(#+) ", text, re.M)
        assert heads.count("#") == 1 and heads.count("##") >= 3 and heads.count("###") >= 8 and max(map(len, heads)) == 3, name
    assert sum("|---" in t for t in texts.values()) >= 12, "chapters with tables"

def test_the_handbook_names_only_reserved_domains():
    found = {d for t in chapters().values() for d in re.findall(r"[\w-]+\.(?:com|org|net|io|eu|example)\b", t)}
    assert found == {"fennholt.example"}

# faq.csv

def test_every_span_stands_at_its_offsets_and_nowhere_else(faq):
    texts = chapters()
    for row in faq:
        text = texts[row["document"]]
        assert text[int(row["start"]):int(row["end"])] == row["span"] and text.count(row["span"]) == 1, row
        assert not row["span"].startswith("#") and "\n" not in row["span"], row

def test_sizes(faq):
    assert list(faq[0]) == ["Question", "Answer", "document", "span", "start", "end", "split"]
    rows = Counter(r["split"] for r in faq)
    assert len(faq) >= 800 and rows["test"] >= 300 and rows["dev"] >= 100 and rows["train"] >= 400
    assert set(chapters()) == {r["document"] for r in faq}

def test_a_document_belongs_to_one_split(faq):
    of = {s: {r["document"] for r in faq if r["split"] == s} for s in ("train", "dev", "test")}
    for a, b in combinations(of.values(), 2): assert a & b == set()

def test_no_question_stands_twice(faq):
    assert [q for q, n in Counter(text_key(r["Question"]) for r in faq).items() if n > 1] == []
    assert all(r["Question"] == r["Question"].strip() and r["Answer"].strip() for r in faq)

def test_questions_are_in_peoples_own_words(faq):
    starts = Counter(" ".join(text_key(r["Question"]).split()[:3]) for r in faq)
    sizes = sorted(len(r["Question"].split()) for r in faq)
    assert starts.most_common(1)[0][1] <= len(faq) * .02, f"a template? {starts.most_common(3)}"
    assert sizes[len(sizes) // 10] <= 6 and sizes[-len(sizes) // 10] >= 15, "short ones and long ones"
    copied = [r for r in faq if len(r["Question"].split()) > 5 and text_key(r["Question"]).rstrip("?") in text_key(r["span"])]
    assert copied == []

def test_most_places_are_asked_about_by_several_people(faq):
    asked = Counter((r["document"], r["start"]) for r in faq)
    assert sum(n > 1 for n in asked.values()) / len(asked) >= .4

# the BEIR folder

def test_every_document_is_a_section_of_a_chapter_below_the_headings_that_lead_to_it(splits):
    texts = chapters()
    for line in lines("corpus.jsonl"):
        about = line["metadata"]
        section = texts[about["document"]][about["start"]:about["end"]]
        heading, _, below = section.partition("\n")
        assert below.strip() == line["text"] and "\n#" not in section, line["_id"]
        assert line["title"].split(" > ")[-1] == heading.lstrip("# ") and f"# {line['title'].split(' > ')[0]}\n" in texts[about["document"]]
        assert splits["test"].corpus[line["_id"]].startswith(line["title"] + " "), "the reader sees the headings first"

def test_every_word_of_the_chapters_is_in_one_document():
    written = sum(len(line.split()) for text in chapters().values() for line in text.splitlines() if not line.startswith("#"))
    assert sum(len(line["text"].split()) for line in lines("corpus.jsonl")) == written

def test_the_section_with_the_span_is_relevant_and_all_relevant_ones_are_of_the_same_split(faq, splits):
    at = {(line["metadata"]["document"], line["_id"]): line["metadata"] for line in lines("corpus.jsonl")}
    of = {r["document"]: r["split"] for r in faq}
    document = {i: name for name, i in at}
    queries = {q: (s, d) for s, d in splits.items() for q in d.queries}
    assert [d.queries[q] for q, (_, d) in queries.items()] == [r["Question"] for s in splits for r in faq if r["split"] == s]
    for s, d in splits.items():
        for q, row in zip(d.queries, [r for r in faq if r["split"] == s], strict=True):
            first, *others = d.positives(q)
            section = at[row["document"], first]
            assert section["start"] < int(row["start"]) and int(row["end"]) <= section["end"], q
            assert {of[document[i]] for i in (first, *others)} == {s}, q

def test_nothing_leaks(splits):
    check_splits(splits)
    assert list(splits) == ["train", "dev", "test"] and drop_twins(splits)[1] == [] and near_twins(splits) == []

def test_the_package_loads_it_by_name(splits):
    assert {s: d.fingerprint for s, d in load("handbook").items()} == {s: d.fingerprint for s, d in splits.items()}

# contradictions

def test_both_sides_of_every_contradiction_stand_in_the_chapters():
    texts, found = chapters(), table("contradictions.csv")
    assert len(found) >= 12 and len({r["topic"] for r in found}) == len(found)
    for r in found:
        for side in ("holds", "yields"): assert texts[r[side]].count(r[side + "_span"]) == 1, r["topic"]

def test_no_question_is_answered_by_what_does_not_hold(faq):
    for r in table("contradictions.csv"):
        if r["scope"] == "part": continue  # holds for some people or places, so the rest may still be asked about
        text = chapters()[r["yields"]]
        start = text.index(r["yields_span"])
        end = start + len(r["yields_span"])
        asked = [q["Question"] for q in faq if q["document"] == r["yields"] and int(q["start"]) < end and start < int(q["end"])]
        assert asked == [], r["topic"]

def test_the_data_card_lists_every_contradiction_and_counts_right(faq):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for r in table("contradictions.csv"): assert f"| {r['topic']} | {r['holds'][:2]} | {r['yields'][:2]} |" in card
    for split in ("train", "dev", "test"): assert f"{sum(r['split'] == split for r in faq):,}" in card
    assert f"{len(lines('corpus.jsonl')):,} sections" in card and f"{len(faq):,} questions" in card

# the script

def test_the_script_makes_exactly_these_files(tmp_path, build):
    build.write(FOLDER, tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(MADE)
    for name in MADE: assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name}: run python data/handbook/build.py"

@pytest.mark.parametrize(("block", "said"), [
    ("> not in the chapter\n= no\nwhat?", "found 0 times, wanted once: 'not in the chapter'"),
    ("> e\n= no\nwhat?", "times, wanted once: 'e'"),
    ("> the span\nwhat?", "wanted lines of > span, = answer, and questions"),
    ("> Anything above EUR 75 a head\n= yes\n+ 03-lodging#nowhere\nwhat?", "no section '03-lodging#nowhere'"),
])
def test_the_script_refuses_a_wrong_block(tmp_path, build, block, said):
    shutil.copytree(FOLDER / "chapters", tmp_path / "chapters")
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "11-client-entertainment.txt").write_text(f"test\n\n{block}\n", encoding="utf-8")
    with pytest.raises(DataError) as error: list(build.rows(tmp_path))
    assert said in str(error.value)

def test_the_test_split_is_frozen(splits):
    "Figures are comparable only as long as this holds; a new test split is a new dataset, and needs a new name."
    assert splits["test"].fingerprint == "04d031b81a688dfa"
