"Chunkers: every character in a chunk, offsets that hold in any script, sizes kept, and what belongs together left together."
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_finetune.core import DataError
from rag_finetune.data import Chunk, count_words, fixed_chunks, heading_chunks, recursive_chunks, sentence_chunks
from rag_finetune.retrieval import span_recall, within

HANDBOOK = Path(__file__).resolve().parent.parent / "data" / "handbook"
CHUNKERS: dict[str, Callable[..., list[Chunk]]] = {
    "fixed": fixed_chunks, "sentence": sentence_chunks, "recursive": recursive_chunks, "heading": heading_chunks}
ALL = pytest.mark.parametrize("cut", CHUNKERS.values(), ids=CHUNKERS)

# texts of every kind: any Unicode at all, and Markdown put together from pieces that mean something to one of the chunkers
PIECES = st.sampled_from([
    "# One\n", "## Two\n\n", "Title\n===\n", "Mr. Ngo paid. ", "Who? ", "日本語の文。", "naïve café\u0301 ", "🍣👩‍👩‍👧 ", "a\r\nb\r\n",
    "- item\n- item\n", "| a | b |\n|---|---|\n| 1 | 2 |\n", "```\n# no\n\nx\n```\n", "\n\n", "   ", "\u2028", "> # q\n",
    "x" * 70, "---\n"])
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join))
SIZES: tuple[Callable[[str], int], ...] = (count_words, len)

@ALL
@settings(max_examples=80, deadline=None)
@given(text=TEXTS, most=st.integers(1, 40), size=st.sampled_from(SIZES))
def test_the_chunks_are_the_text_and_none_is_too_large(cut, text, most, size):
    chunks = cut(text, most, size)
    assert "".join(c.text for c in chunks) == (text if text.strip() else "")
    assert all(text[c.start:c.end] == c.text and c.text.strip() for c in chunks)
    assert all(a.end == b.start for a, b in pairwise(chunks))
    for c in chunks: assert size(c.text.strip()) <= most or len(c.text.strip()) <= 15, "larger than one character of several code points"

@ALL
def test_without_text_there_is_no_chunk(cut):
    assert cut("") == cut(" \n\t\n") == []

@ALL
@pytest.mark.parametrize("most", [0, -3])
def test_a_chunk_has_room_for_something(cut, most):
    with pytest.raises(DataError, match=f"at most {most}; wanted 1 or more"): cut("Some text.", most)

@ALL
def test_a_text_that_fits_is_one_chunk(cut):
    assert cut("One sentence. And another.\n", 4) == [Chunk("One sentence. And another.\n", 0, 27)]

@ALL
@pytest.mark.parametrize("text", ["我的信用卡丢了。怎么办？请告诉我。" * 100, "カードをなくしました。どうすればいいですか。" * 80])
def test_where_there_are_no_spaces_each_character_is_a_word(cut, text):
    chunks = cut(text, 50)
    assert "".join(c.text for c in chunks) == text and len(chunks) >= len(text) / 60
    assert all(len(c.text) <= 60 for c in chunks)

def test_words_are_counted_in_any_script():
    words = {"": 0, " ": 0, "one": 1, "one two\n": 2, "naïve café\u0301": 2, "日本語": 3, "お茶 2 杯": 4, "JR東日本 pass": 5,
             "카드를 잃어버렸어요": 2}
    assert {t: count_words(t) for t in words} == words

# fixed

def test_fixed_chunks_have_so_many_words_each():
    assert [c.text for c in fixed_chunks("a b c d e f g", 3)] == ["a b c ", "d e f ", "g"]

def test_fixed_chunks_overlap_by_so_many_words():
    chunks = fixed_chunks("a b c d e f g h", 4, overlap=2)
    assert [c.text.split() for c in chunks] == [list("abcd"), list("cdef"), list("efgh")]
    assert [c.start for c in chunks] == [0, 4, 8]

@settings(max_examples=80, deadline=None)
@given(text=TEXTS, most=st.integers(2, 30), overlap=st.integers(0, 29))
def test_overlapping_chunks_leave_nothing_out_and_none_lies_in_another(text, most, overlap):
    chunks = fixed_chunks(text, most, overlap=min(overlap, most - 1))
    if text.strip(): assert (chunks[0].start, chunks[-1].end) == (0, len(text))
    for a, b in pairwise(chunks): assert a.start < b.start <= a.end < b.end

@pytest.mark.parametrize("overlap", [-1, 3, 4])
def test_an_overlap_is_smaller_than_a_chunk(overlap):
    with pytest.raises(DataError, match=f"overlap of {overlap} .* wanted 0 to 2"): fixed_chunks("a b c d", 3, overlap=overlap)

def test_a_text_without_blanks_is_cut_all_the_same():
    chunks = fixed_chunks("漢" * 100, 30, len)
    assert [len(c.text) for c in chunks] == [30, 30, 30, 10]

# sentences

def test_sentences_stay_whole_where_they_fit():
    text = "Dr. Ames paid 3.50 EUR, e.g. for coffee. He left at 5 p.m. on Monday. Why? Nobody knows."
    assert [c.text.strip() for c in sentence_chunks(text, 8)] == [
        "Dr. Ames paid 3.50 EUR, e.g. for coffee.", "He left at 5 p.m. on Monday. Why?", "Nobody knows."]

def test_sentences_of_other_languages():
    assert [c.text for c in sentence_chunks("これは文です。次の文です。", 7, len, language="ja")] == ["これは文です。", "次の文です。"]

def test_a_sentence_that_is_too_long_is_cut_between_words():
    chunks = sentence_chunks("Short one. " + "word " * 30 + "end. Short two.", 10)
    assert all(c.text.endswith((" ", ".")) for c in chunks) and len(chunks) == 5

# recursive

def test_recursive_chunks_end_where_paragraphs_do():
    text = "One two three.\n\nFour five six. Seven eight.\n\nNine."
    assert [c.text.strip() for c in recursive_chunks(text, 5)] == ["One two three.", "Four five six. Seven eight.", "Nine."]

# headings

DOCUMENT = """Before all headings.

# Travel

## Trains

First class above *three* hours.

```sh
# no heading
book --class 1
```

### Sleepers

A cabin.

Meals
-----

| city | EUR |
|---|---|
| Oslo | 60 |

> # quoted, no heading

# Travel again
"""

def test_sections_with_the_headings_that_lead_to_them():
    chunks = heading_chunks(DOCUMENT)
    assert [(c.title, c.text.split("\n")[0]) for c in chunks] == [
        ("", "Before all headings."), ("Travel > Trains", "# Travel"), ("Travel > Trains > Sleepers", "### Sleepers"),
        ("Travel > Meals", "Meals"), ("Travel again", "# Travel again")]
    assert "# no heading" in chunks[1].text and "# quoted" in chunks[3].text

def test_front_matter_is_no_heading():
    assert [c.title for c in heading_chunks("---\ntitle: Fees\n---\n# Fees\n\nNone.\n")] == ["", "Fees"]
    assert [c.title for c in heading_chunks("---\r\ntitle: Fees\r\n---\r\n\r\nPrices\r\n======\r\nNone.\r\n")] == ["", "Prices"]

PROSE = "Something is said here in eight whole words."
YAML = ["# a comment", "tags:", "- a", "  - b", "note: >", "  two", "", "  lines", "a b: 'x: y'", "date: 2024-05-31", "empty:"]

@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_front_matter_is_what_reads_as_properties(end):
    text = "\n".join(["---", *YAML, "---", "# Fees", "None.", ""]).replace("\n", end)
    assert [c.title for c in heading_chunks(text)] == ["", "Fees"]

@pytest.mark.parametrize("first", ["This is the intro.", "Note: read this.", "# Zero", ""])
def test_two_rules_are_no_front_matter(first):
    text = f"---\n{first}\n\n# One\n\nalpha\n\n# Two\n\nbeta\n\n---\n\n# Three\n\ngamma\n"
    assert [c.title.split(" > ")[-1] for c in heading_chunks(text)][-3:] == ["One", "Two", "Three"]

def test_many_lines_that_are_no_front_matter_are_read_quickly():
    text = "---\r\n" + "key: value\r\n \r\n  more\r\n- item\r\n# c\r\n" * 5000 + "no property\r\n---\r\n"
    assert heading_chunks(text)[-1].end == len(text)

TABLE = "| city | EUR |\n|---|---|\n" + "".join(f"| city {n} | {n} |\n" for n in range(8))
CODE = "```py\n# a comment\n\nx = 1\n\n\ny = 2\n```\n"
LIST = "".join(f"- the point number {n}\n" for n in range(5))

@pytest.mark.parametrize("block", [TABLE, CODE, LIST], ids=["table", "code", "list"])
@pytest.mark.parametrize("before", range(1, 8))
def test_a_table_a_list_and_code_stay_whole_where_they_fit(block, before):
    text = f"## Caps\n\n{(PROSE + ' ') * before}\n\n{block}\n{PROSE}\n"
    most = count_words(block) + 4
    chunks = heading_chunks(text, most)
    assert len(chunks) > 1 and any(block in c.text for c in chunks) and all(count_words(c.text) <= most for c in chunks)

def test_every_part_of_a_section_has_its_title_and_no_part_is_a_heading_alone():
    chunks = heading_chunks(f"# Rules\n\n## Caps by city\n\n{(PROSE + ' ') * 4}\n\n{PROSE}\n", 20)
    assert {c.title for c in chunks} == {"Rules > Caps by city"} and len(chunks) > 2
    assert chunks[0].text.startswith("# Rules\n\n## Caps by city\n\nSomething")

def test_a_section_without_a_limit_stays_whole():
    assert len(heading_chunks(f"# Rules\n\n{PROSE * 1000}\n")) == 1

def test_the_sections_of_the_handbook_are_its_documents():
    "The BEIR folder's documents are the chunks by heading; there a heading right above another has no section."
    made = [json.loads(line) for line in (HANDBOOK / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    for chapter in sorted((HANDBOOK / "chapters").glob("*.md")):
        text = chapter.read_text(encoding="utf-8")
        mine = [(c.title, len(text[:c.end].rstrip())) for c in heading_chunks(text)]
        assert mine == [(d["title"], d["metadata"]["end"]) for d in made if d["metadata"]["document"] == chapter.name]

# in use

def test_any_counter_of_tokens_will_do():
    calls:list[str] = []
    def tokens(text):
        calls.append(text)
        return len(text) // 4
    chunks = [c for cut in CHUNKERS.values() for c in cut(PROSE * 5, 20, tokens)]
    assert max(len(c.text.strip()) // 4 for c in chunks) <= 20 and calls

@ALL
def test_a_long_document_takes_seconds(cut):
    "Counting is what costs: each chunk is counted a few times, not once for each of its words."
    text, counted = (f"{PROSE} " * 5 + "\n\n") * 800, 0  # 32,000 words
    def size(t):
        nonlocal counted
        counted += len(t)
        return count_words(t)
    cut(text, 100, size)
    assert counted < 60 * len(text)

def test_the_libraries_are_loaded_when_something_is_cut():
    code = "import sys, rag_finetune.data; print(*{'semantic_text_splitter', 'sentencex', 'markdown_it'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == []

# what was found, within a budget

PLACES = {"a": ("d", 0, 10), "b": ("d", 10, 20), "c": ("d", 20, 30), "e": ("other", 0, 30)}

def test_the_best_chunks_are_taken_until_one_does_not_fit():
    run, sizes = {"q": {"a": 1., "b": 4., "c": 2., "e": 3.}, "none": {}}, {"a": 1, "b": 40, "c": 30, "e": 50}
    assert within(run, sizes, 95) == {"q": {"b": 4., "e": 3.}, "none": {}}, "a would fit, but c comes before it"
    assert within(run, sizes, 1000)["q"] == run["q"] and within(run, sizes, 39)["q"] == {}

@pytest.mark.parametrize(("found", "share"), [
    (["a", "b"], 1), (["b", "a"], 1), (["a"], 0), (["b"], 0), (["a", "c"], 0), (["e"], 0), ([], 0), (["c", "b", "a"], 1)])
def test_a_span_counts_where_all_of_it_was_found(found, share):
    run = {"q": {i: float(-n) for n, i in enumerate(found)}}
    assert span_recall({"q": [("d", 5, 15)]}, PLACES, run) == {"q": share}

def test_of_several_spans_the_share_counts_and_a_question_left_out_counts_nought():
    spans = {"q": [("d", 0, 5), ("d", 25, 28)], "silent": [("d", 0, 5)]}
    assert span_recall(spans, PLACES, {"q": {"a": 1.}}) == {"q": .5, "silent": 0.}

def test_overlapping_chunks_join_too():
    places = {"a": ("d", 0, 12), "b": ("d", 8, 20)}
    assert span_recall({"q": [("d", 2, 18)]}, places, {"q": {"b": 2., "a": 1.}}) == {"q": 1.}

def test_the_saved_comparison_says_what_the_benchmark_asks_for():
    made = json.loads((HANDBOOK.parent.parent / "assets" / "chunks.json").read_text(encoding="utf-8"))
    ways = {(r["set"], r["search"], r["most"]): {x["way"] for x in made["rows"] if (x["set"], x["search"], x["most"])
            == (r["set"], r["search"], r["most"])} for r in made["rows"]}
    assert {s for s, _, _ in ways} == {"handbook", "chunking"} and {s for _, s, _ in ways} == {"words", "vectors"}
    assert all({"fixed", "sentence", "recursive", "heading"} <= w for w in ways.values())
    assert all(r["tokens"] <= r["budget"] and r["recall"]["low"] <= r["recall"]["mean"] <= r["recall"]["high"] for r in made["rows"])
    assert {t["b"] for t in made["tests"]} == {"fixed, 200", "fixed, 64"} and made["questions"] == {"handbook": 645, "chunking": 472}
