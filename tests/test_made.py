"Made-up queries: what is cut out of documents, made without a model, written by one, kept, dropped and counted."
import json
import re
import signal
import threading
from collections import Counter

import numpy as np
import pytest
from fake_llm import FakeLLM
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from rag_finetune.cli import app
from rag_finetune.core import DataError, Dataset, text_key
from rag_finetune.data import check_splits, load, read_beir
from rag_finetune.pipeline import measured
from rag_finetune.synthetic import (
    COPIED,
    KINDS,
    OFFLINE,
    WORDS,
    Ledger,
    Made,
    Page,
    Transaction,
    Transactions,
    answers,
    as_dataset,
    balanced,
    caveat,
    cloze,
    distinct,
    diversity,
    few_shot,
    judge_call,
    kind_of,
    longest_run,
    made_by_llm,
    made_offline,
    pages_of,
    parts_of,
    phrases,
    question_call,
    read_pages,
    sender,
    synthesize,
    templates,
    titles,
    transaction_call,
    transactions_by_llm,
    vendi,
    why_dropped,
)

TOPICS = ["trains", "hotels", "phones", "visas", "meals", "taxis", "parking", "laptops", "training", "gifts"]

def prose(topic):
    return (f"# About {topic}\n\nOur {topic} policy covers every employee in Utrecht. It was approved by the board of {topic} owners.\n\n"
            f"## Paying for {topic}\n\nPay for {topic} with the company card before the trip begins. Keep every receipt about {topic}!\n\n"
            f"| {topic} | limit |\n|---|---|\n| small | EUR 10 |\n| large | EUR 90 |\n")

@pytest.fixture
def folder(tmp_path):
    docs = tmp_path / "docs"
    for topic in TOPICS:
        (docs / "deep").mkdir(parents=True, exist_ok=True)
        (docs / ("deep" if topic > "n" else ".") / f"{topic} policy.md").write_text(prose(topic))
    return docs

# reading

def test_a_page_is_a_section_and_its_title_the_headings_on_the_way():
    text = ("---\ntitle: x\n---\nintro\n# A\n## B\nb\n~~~\n# x\n```\n# y\n~~~\n### C ###\nc\n\nD\n=\nd\n#no heading\n## empty\n")
    found = [(page.title, page.text) for page in pages_of(text, "s")]
    assert found == [("", "intro"), ("A > B", "b\n~~~\n# x\n```\n# y\n~~~"), ("A > B > C", "c"), ("D", "d\n#no heading")]

@given(st.text(alphabet="ab .!?\n#|`~=->", max_size=300))
def test_no_word_is_lost(text):
    assume(not text.startswith("---"))   # the properties at the top of a file, which are no text
    kept = "".join(page.text + page.title for page in pages_of(text + "\n\na", "s"))
    assert Counter(c for c in text + "a" if c in "ab") <= Counter(kept), "a title may stand on several pages, no text may go"

def test_a_folder_is_read_with_its_sources_and_ids_that_every_file_can_hold(folder):
    pages = read_pages(folder)
    assert {p.source for p in pages.values()} == {f"deep/{t} policy.md" if t > "n" else f"{t} policy.md" for t in TOPICS}
    assert not [d for d in pages if re.search(r"\s", d)] and len(pages) == 2 * len(TOPICS)
    page = next(p for p in pages.values() if p.source == "gifts policy.md" and "Paying" in p.title)
    assert page.title == "About gifts > Paying for gifts" and page.kind == "table"

def test_files_whose_names_look_alike_are_all_read(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a b.md", "a_b.md", "a/b.md", "a/b.txt", "a__b.md"): (tmp_path / name).write_text(f"# T\n\n{name} says this")
    pages = read_pages(tmp_path)
    assert sorted(p.source for p in pages.values()) == sorted(["a b.md", "a_b.md", "a/b.md", "a/b.txt", "a__b.md"])
    assert all(p.text == f"{p.source} says this" for p in pages.values()) and read_pages(tmp_path) == pages

def test_hidden_folders_and_files_are_not_read(tmp_path):
    docs = tmp_path / ".mine" / "docs"
    for name in ("a.md", ".git/b.md", "c/.venv/d/e.md", ".f.md"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text("text")
    assert [p.source for p in read_pages(docs).values()] == ["a.md"], "the folder that was named may itself be hidden"

def test_a_corpus_jsonl_keeps_its_ids_titles_sources_and_kinds(tmp_path):
    lines = [{"_id": "d1", "title": "Trains", "text": "First class."},
             {"_id": "d2", "text": "f(x)", "metadata": {"kind": "tool", "source": "api"}}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {"d1": Page("Trains", "First class.", "d1"), "d2": Page("", "f(x)", "api", "tool")}
    assert read_pages(tmp_path) == read_pages(tmp_path / "corpus.jsonl") == found

@pytest.mark.parametrize(("name", "content", "says"), [
    ("x.md", b"\xff\xfe", "x.md:1"), ("x.pdf", b"%PDF", "x.pdf"), ("corpus.jsonl", b'{"_id": 1}\n', "corpus.jsonl:1"),
    ("corpus.jsonl", b'{"_id": "a", "text": "b", "metadata": {"kind": "song"}}\n', "song"), ("none.md", None, "none.md"),
    ("", None, ".md")])
def test_what_cannot_be_read_is_one_line(name, content, says, tmp_path):
    if content is not None: (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error: read_pages(tmp_path / name)
    assert says in str(error.value) and "\n" not in str(error.value)

@pytest.mark.parametrize(("text", "kind"), [("| a | b |\n|---|---|\n| 1 | 2 |", "table"), ("```\nx = 1\ny = 2\n```\nso", "code"),
                                            ("| a\nb\nc", "chunk")])
def test_kind_of(text, kind): assert kind_of(text) == kind

def test_a_long_section_is_cut():
    text = "# T\n" + "\n\n".join(" ".join(f"w{i}." for i in range(90)) for _ in range(5)) + "\n\n" + "word " * 500
    found = pages_of(text, "s")
    assert all(len(p.text.split()) <= WORDS and p.title == "T" for p in found) and len(found) >= 5
    assert [w for p in found for w in p.text.split()] == text.split()[2:]

# without a model

@pytest.mark.parametrize("way", OFFLINE)
def test_each_way_is_seeded_and_gives_at_most_n_queries_of_the_page(way, folder):
    pages = read_pages(folder)
    made = OFFLINE[way](pages, 2, 5)
    assert made == OFFLINE[way](pages, 2, 5) and set(made) <= set(pages) and any(made.values())
    assert all(len(texts) <= 2 and all(t.strip() and "\n" not in t for t in texts) for texts in made.values())
    if way != "titles": assert made != OFFLINE[way](pages, 2, 6)

def test_what_each_way_makes(folder):
    pages = read_pages(folder)
    d = next(d for d, p in pages.items() if p.title == "About hotels > Paying for hotels")
    assert titles(pages)[d] == ["Paying for hotels", "About hotels Paying for hotels"]
    assert titles({"d": Page("3 Lodging > 3.1 Caps > 2025", "x", "s")})["d"] == ["2025", "Lodging Caps 2025"]
    assert all(text in " ".join(pages[d].text.split()) and "|" not in text for text in cloze(pages)[d]) and cloze(pages)[d]
    assert any("hotels" in p for p in phrases(pages)[d]), "what sets it apart from the other pages"
    assert all(p in text_key(pages[d].title + "\n" + pages[d].text) for p in phrases(pages)[d])
    assert all(re.search(r"how much|which|listed|for", t) for t in templates(pages)[d]), "the forms of a table"

def test_every_kind_has_forms_and_words(folder):
    page = next(iter(read_pages(folder).values()))
    for kind in KINDS:
        assert templates({"d": page._replace(kind=kind)})["d"]
        assert KINDS[kind] in question_call(page._replace(kind=kind), "m").messages[-1]["content"]

def test_pages_without_anything_to_ask_give_nothing():
    assert made_offline({"d": Page("", "…", "s"), "e": Page("", "the of and", "s")}) == []
    found = made_offline({"d": Page("", "…", "s"), "f": Page("", "word", "s")})
    assert [(m.document, m.text) for m in found] == [("f", "word")], "one word is one phrase"

def test_a_query_for_several_pages_goes_and_is_counted():
    pages = {d: Page("", f"text {d}", d) for d in "abc"}
    made = [Made("Overview", "a", {"synthetic": "x"}), Made("overview ", "b", {"synthetic": "x"}), Made("own", "c", {"synthetic": "x"}),
            Made("Own", "c", {"synthetic": "y"})]
    dataset, left_out = as_dataset(pages, made, "n")
    assert list(dataset.queries.values()) == ["own"] and left_out == {"made for several documents": 2, "made twice": 1}
    assert len(made) == len(dataset.queries) + sum(left_out.values()), "every one is accounted for"

def test_a_folder_that_run_takes_split_by_source(folder, tmp_path):
    pages = read_pages(folder)
    splits, _ = synthesize(pages, made_offline(pages), tmp_path / "out", seed=3)
    back = load(tmp_path / "out")
    check_splits(back)
    assert {s: d.fingerprint for s, d in back.items()} == {s: d.fingerprint for s, d in splits.items()}
    sources = [{d.document_meta[x]["source"] for q in d.queries for x in d.positives(q)} for d in back.values()]
    assert not sources[0] & sources[1] and not (sources[0] | sources[1]) & sources[2] and all(sources)
    assert all(d.meta[q]["synthetic"] in OFFLINE for d in back.values() for q in d.queries)

def chapters(n, title="Manual > Part {} > Rule {}"):
    return {f"{i}.{j}": Page(title.format(i, j), f"rule {i} {j} on topic{i}{j} holds", "manual.md") for i in range(n) for j in range(2)}

@pytest.mark.parametrize(("pages", "n"), [
    ({d: Page("", "x", d) for d in "abc"}, 3),                                                             # whole files
    (chapters(4), 4),                                                                                      # the highest headings
    (chapters(4, "Part {} > Rule {}"), 4), (chapters(2), 4), (chapters(2, "{} {}"), 4),                    # or lower ones
    ({str(i): Page("One title", f"text {i}", "a.txt") for i in range(5)}, 5),                              # or pages
    (chapters(4) | {"x": Page("Manual > Part 1", "x", "other.md")}, 5)])
def test_what_is_dealt_out_whole(pages, n):
    parts = parts_of(pages)
    assert parts.keys() == pages.keys() and len(set(parts.values())) == n

def test_one_big_file_is_dealt_out_by_its_chapters_and_says_so(tmp_path, caplog):
    pages = chapters(6)
    splits, _ = synthesize(pages, made_offline(pages), tmp_path / "out")
    of = [{d.positives(q)[0].split(".")[0] for q in d.queries} for d in splits.values()]
    assert all(of) and not of[0] & of[1] and not (of[0] | of[1]) & of[2]
    assert "1 source, " in caplog.text and "6 parts" in caplog.text
    assert {m["source"] for m in splits["test"].document_meta.values()} == {"manual.md"}, "where it comes from stays true"
    check_splits(load(tmp_path / "out"))

def test_two_pages_cannot_be_split_in_three(tmp_path):
    pages = {d: Page("Title of " + d, f"text {d}", d) for d in "ab"}
    with pytest.raises(DataError, match="at least three"): synthesize(pages, made_offline(pages), tmp_path / "out")
    with pytest.raises(DataError, match="no query was made"): synthesize(pages, [], tmp_path / "out")

def test_the_caveat_counts():
    d = Dataset({"d": "x"}, {"a": "1", "b": "2"}, {"a": {"d": 1}, "b": {"d": 1}}, "n", {"a": {"synthetic": "titles"}})
    assert caveat(d).startswith("1 of 2 test queries are made up") and caveat(load("transactions")["test"]) == ""

def test_a_verdict_on_made_up_queries_says_so():
    docs = {f"d{i}": f"text {i}" for i in range(12)}
    ids = {f"q{i}": f"d{i}" for i in range(12)}
    right, wrong = {q: {d: 1.} for q, d in ids.items()}, {q: {"d11": 1.} for q in ids}
    def verdict(meta):
        test = Dataset(docs, {q: f"query {q}" for q in ids}, {q: {d: 1} for q, d in ids.items()}, "n", meta)
        train = Dataset(docs, {"t": "x"}, {"t": {"d0": 1}}, "n")
        return measured(train, test, {"base": wrong, "bm25": wrong, "tuned": right}, "tuned", "bm25", .01, 0)["verdict"]
    said = verdict({q: {"synthetic": "cloze"} for q in ids})
    assert all("12 of 12 test queries are made up" in said[part] for part in ("sentence", "against_base"))
    assert "made up" not in verdict({})["sentence"]

# copied words

@pytest.mark.parametrize(("question", "text", "run"), [
    ("a b c d", "x a b c y", 3), ("Which TRAINS, are paid?", "trains are paid", 3), ("", "a", 0), ("a", "", 0), ("a b a b", "b a b b", 3)])
def test_longest_run(question, text, run): assert longest_run(question, text) == run

@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_longest_run_is_the_longest(a, b):
    runs = {tuple(b[i:j]) for i in range(len(b)) for j in range(i, len(b) + 1)}
    expected = max((j - i for i in range(len(a)) for j in range(i + 1, len(a) + 1) if tuple(a[i:j]) in runs), default=0)
    assert longest_run(" ".join(a), " ".join(b)) == expected

def test_dropped_just_above_the_threshold():
    words = [f"word{i}" for i in range(COPIED + 1)]
    page = Page("", " ".join(words), "s")
    assert why_dropped(" ".join(words[:COPIED]), page) is None and "copies" in why_dropped(" ".join(words), page)

@pytest.mark.parametrize("text", ["What does this passage say?", "According to the handbook, who pays?", "In the above table, what is x?"])
def test_speaks_of_the_text_itself(text): assert why_dropped(text, Page("", "nothing", "s")) == "speaks of the text itself"

# by a language model

def questions_of(prompt, schema):
    "What the model that is none says: five questions of five sorts for a page, and a judgement."
    if "questions" in schema["properties"]:
        topic = re.search(r"About (\w+)", prompt)[1]
        return {"questions": [{"text": t, "type": "fact", "level": "hard"} for t in (
            f"who may use {topic}?", f"is {topic} cheap?", f"what does this text say about {topic}?",
            f"Pay for {topic} with the company card before the trip begins?", f"weather near {topic}?")]}
    evidence = "the company card" if "who may" in prompt else "invented words" if "cheap" in prompt else ""
    return {"answerable": bool(evidence), "evidence": evidence}

def test_questions_are_written_looked_at_judged_and_all_accounted_for(folder, tmp_path):
    pages = {d: p for d, p in read_pages(folder).items() if "Paying" in p.title}
    def fault(prompt, nth): return "400" if "trains" in prompt else "500" if nth == 0 else None
    with FakeLLM(questions_of, fault) as server:
        send = sender("tiny", server.url, 10., "none")
        made, missing = made_by_llm(Ledger(tmp_path / "l.sqlite"), pages, send, "tiny")
        assert missing == {"not written: 400 bad_request": 5, "speaks of the text itself": 9,
                           f"copies more than {COPIED} words in a row": 9, "not answered by its page": 9,
                           "the judge's evidence is not in the page": 9}
        assert len(made) == 9 and sum(missing.values()) + len(made) == 5 * 10
        assert {m.text for m in made} == {f"who may use {t}?" for t in TOPICS if t != "trains"}
        assert made[0].meta == {"synthetic": "llm", "model": "tiny", "type": "fact", "level": "hard", "evidence": "the company card"}
        before = Counter(server.answered)
        server.fault = lambda prompt, nth: None
        again, _ = made_by_llm(Ledger(tmp_path / "l.sqlite"), pages, send, "tiny")
        assert len(again) == 10 and all(server.answered[p] == 1 for p in before), "what was answered is not asked again"

@pytest.mark.parametrize("n", [0, 2, 5, 7])
def test_questions_that_the_model_did_not_write_are_counted(n, tmp_path):
    page = Page("", "Pay by card, and keep the receipt for a year.", "s")
    def answer(prompt, schema):
        if "questions" not in schema["properties"]: return {"answerable": True, "evidence": "keep the receipt for a year"}
        return {"questions": [{"text": f"what about it, number {i}?", "type": "fact", "level": "easy"} for i in range(n)]}
    with FakeLLM(answer) as server:
        made, missing = made_by_llm(Ledger(tmp_path / "l.sqlite"), {"d": page}, sender("tiny", server.url, 10., "none"), "tiny", 5)
    assert len(made) == n and missing == ({"fewer than asked for": 5 - n} if n < 5 else {})

@pytest.mark.parametrize(("evidence", "shown"), [
    ("the company card", True), ("The  Company CARD", True), ("before the trip", True), ("EUR 210", True), ("| Tokyo | EUR 210 |", True),
    ("Always.", True), ("", False), ("…", False), ("a", False), ("card", False), ("company card", False), ("he company car", False),
    ("EUR", False), ("the company cards", False), ("card the company", False)])
def test_the_words_that_answer_are_three_in_a_row_or_all_of_a_line_or_cell(evidence, shown):
    page = Page("Paying", "Pay with the company card before the trip.\n\nAlways.\n\n| city | limit |\n|---|---|\n| Tokyo | EUR 210 |", "s")
    assert answers(evidence, page) is shown

def test_the_judge_sees_the_page_and_is_bounded():
    call = judge_call("who?", Page("T", "the text", "s"), "m")
    assert "the text" in call.messages[-1]["content"] and call.parameters["max_tokens"] and call.parameters["temperature"] == 0

@pytest.fixture(scope="module")
def rows(): return load("transactions")

def test_examples_come_from_train_alone_and_never_stand_in_another_split(rows):
    for c in rows["train"].corpus:
        ids = few_shot(rows, c, 4)
        assert set(ids) <= set(rows["train"].queries) and all(rows["train"].meta[q]["ambiguous"] == "yes" for q in ids)
    some = few_shot(rows, "fuel", 4)
    leaked = Dataset(rows["test"].corpus, {"t": rows["train"].queries[some[0]].upper()}, {"t": {"fuel": 1}}, "leak")
    assert some[0] not in few_shot({"train": rows["train"], "test": leaked}, "fuel", 100)
    with pytest.raises(DataError, match="train"): few_shot({"test": rows["test"]}, "fuel")

def test_a_call_shows_its_examples_and_none_in_the_easy_pass(rows):
    ids = few_shot(rows, "fuel")
    hard, easy = (transaction_call(rows, "fuel", e, "m").messages[-1]["content"] for e in (ids, []))
    assert all(rows["train"].queries[q] in hard and rows["train"].queries[q] not in easy for q in ids)
    assert rows["train"].corpus["fuel"] in easy

def test_rows_by_a_model_keep_their_examples_and_what_leaks_is_left_out(rows, tmp_path):
    late, names = next(iter(rows["test"].queries.values())).split(" | ")[0], dict.fromkeys(rows["train"].corpus, "Cat")
    memo = next(t for t in rows["test"].queries.values() if " | Memo: " in t).partition(" | Memo: ")[2]
    old = Transaction(merchant="OLD ROW CO", memo="there already")
    train = rows["train"]
    known = Dataset(train.corpus, train.queries | {"old": old.text}, train.qrels | {"old": {"fuel": 1}}, train.name, train.meta)
    def answer(prompt, schema):
        c = next(c for c, t in train.corpus.items() if t in prompt)
        own = Transaction(merchant=f"NEW {c}".upper()[:25], memo="bought it")
        named = Transaction(merchant=f"QQ {c}".upper()[:25], memo="one cat")
        copied = Transaction(merchant=f"ZZ {c}".upper()[:25], memo=memo.upper())
        return {"rows": [vars(t) for t in (own, own, old, Transaction(merchant=late), named, copied)]}
    with FakeLLM(answer) as server:
        send = sender("tiny", server.url, 10., "none")
        made, missing = transactions_by_llm(Ledger(tmp_path / "l.sqlite"), {**rows, "train": known}, send, "tiny", names, ["ambiguous"], 6)
    seen = {c for q in train.queries for c in train.positives(q)}
    assert {c for q in made.queries for c in made.positives(q)} == seen and len(made.queries) == len(seen)
    assert missing == {"a text that is there already": 3 * len(seen) - 1, "a merchant of dev or test": 1,
                       "a memo of dev or test": len(seen), "names its category": len(seen)}
    for q in made.queries:
        assert made.meta[q]["pass"] == "ambiguous" and made.meta[q]["synthetic"] == "llm"
        assert made.meta[q]["few_shot"].split() == few_shot(rows, made.positives(q)[0])

def test_two_passes_see_each_others_rows_and_every_row_is_accounted_for(rows, tmp_path):
    "Of ten rows asked for in each call, the easy pass gets three of its own and the ambiguous one the same three again."
    of = {t: c for c, t in rows["train"].corpus.items()}
    def answer(prompt, schema):
        c = next(c for t, c in of.items() if t in prompt)
        return {"rows": [vars(Transaction(merchant=f"QX{i} {c}".upper()[:25])) for i in range(3)]}
    def fault(prompt, nth): return "400" if rows["train"].corpus["fuel"] in prompt else None
    with FakeLLM(answer, fault) as server:
        send = sender("tiny", server.url, 10., "none")
        made, missing = transactions_by_llm(Ledger(tmp_path / "l.sqlite"), rows, send, "tiny", dict.fromkeys(of.values(), "Cat"), n=10)
    seen = {c for q in rows["train"].queries for c in rows["train"].positives(q)} - {"fuel"}
    assert len(made.queries) == 3 * len(seen) and {m["pass"] for m in made.meta.values()} == {"easy"}
    assert missing == {"not written: 400 bad_request": 20, "fewer than asked for": 14 * len(seen),
                       "a text that is there already": 3 * len(seen)}

@pytest.mark.parametrize("wrong", [{"merchant": ""}, {"merchant": "lower"}, {"merchant": "X" * 26}, {"merchant": "A", "memo": "a | b"},
                                   {"merchant": "A", "memo": "two\nlines"}, {"merchant": "A", "amount": "5 euros"}])
def test_a_transaction_that_no_statement_could_show_is_refused(wrong):
    with pytest.raises(ValidationError): Transactions(rows=[wrong])

# fewer, and how many really

def test_distinct_keeps_the_first_of_those_that_say_the_same():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(20, 16))
    vectors = {f"{i}.{j}": base[i] * (j + 1) + rng.normal(size=16) * .01 for j in range(3) for i in range(20)}
    stays, goes = distinct(vectors)
    assert stays == [f"{i}.0" for i in range(20)] and goes == {f"{i}.{j}": f"{i}.0" for j in (1, 2) for i in range(20)}
    assert distinct({}) == ([], {}) and distinct(vectors, 1.)[0] == list(vectors)

def test_distinct_does_not_follow_chains():
    "b is near a, c is near b and not near a: b goes, and c, whose only near one is gone, stays."
    angle = np.arccos(.95)
    vectors = {n: np.array([np.cos(i * angle), np.sin(i * angle)]) for i, n in enumerate("abc")}
    assert distinct(vectors, .9) == (["a", "c"], {"b": "a"})

def test_balanced_has_as_many_of_each_and_keeps_the_order():
    categories = {f"q{i}": "abc"[min(i % 4, 2)] for i in range(40)}
    stay = balanced(categories, 1)
    assert Counter(categories[q] for q in stay) == {"a": 10, "b": 10, "c": 10} and stay == [q for q in categories if q in set(stay)]
    assert balanced(categories, 1) == stay != balanced(categories, 2) and balanced({}) == []

def test_vendi_counts_what_is_different():
    eye = np.eye(8)
    assert vendi(eye) == pytest.approx(8) and vendi(np.repeat(eye, 5, axis=0)) == pytest.approx(8)
    assert vendi(np.ones((9, 3))) == pytest.approx(1)
    found = diversity(np.repeat(eye[:4], 4, axis=0), np.vstack([eye, eye]))
    assert found["n"] == 16 and found["ratio"] == pytest.approx(.5)

# the command

def typed(*words): return CliRunner().invoke(app, [str(w) for w in words])

def test_the_command_writes_a_folder_and_says_what_is_missing(folder, tmp_path):
    said = typed("synthesize", folder, "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    splits = read_beir(tmp_path / "out")
    assert set(splits) == {"train", "dev", "test"} and "sources: 10;" in said.output
    assert f"{len(splits['test'].queries)} test" in said.output
    again = typed("synthesize", folder, "--out", tmp_path / "again")
    assert again.exit_code == 0
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

def test_the_command_asks_a_model_and_keeps_to_its_cap(folder, tmp_path):
    with FakeLLM(questions_of) as server:
        options = ["--model", "tiny", "--address", server.url]
        capped = typed("synthesize", folder, "--out", tmp_path / "out", *options, "--cap-tokens", 3000)
        assert "the cap in tokens is reached" in capped.output
        assert server.tokens <= 3000
        said = typed("synthesize", folder, "--out", tmp_path / "whole", *options, "--ledger", tmp_path / "out.ledger.sqlite")
        assert said.exit_code == 0, said.output
        assert max(server.answered.values()) == 1 and "by llm" in said.output and "left out: " in said.output

def test_where_every_call_fails_the_reasons_are_said_before_the_error(folder, tmp_path):
    with FakeLLM(questions_of, lambda prompt, nth: "400") as server:
        said = typed("synthesize", folder, "--out", tmp_path / "out", "--model", "tiny", "--address", server.url, "--per-page", 2)
    assert said.exit_code == 2 and "left out: 40 not written: 400 bad_request" in said.stdout and "0 answers" in said.stdout
    assert said.stderr.splitlines()[-1].startswith("error: no query was made") and not (tmp_path / "out").exists()

@pytest.mark.parametrize("by_model", [False, True])
def test_one_big_file_is_split_by_its_chapters_with_a_warning(by_model, tmp_path):
    manual = tmp_path / "manual.md"
    manual.write_text("# Manual\n\n" + "".join(prose(topic).replace("# ", "## ") for topic in TOPICS))
    with FakeLLM(questions_of) as server:
        options = ["--model", "tiny", "--address", server.url] if by_model else []
        said = typed("synthesize", manual, "--out", tmp_path / "out", *options)
    assert said.exit_code == 0 and "1 source, " in said.stderr and "10 parts" in said.stderr, said.output
    assert {s for s, d in read_beir(tmp_path / "out").items() if d.queries} == {"train", "dev", "test"}

def test_a_file_with_too_few_pages_is_refused_before_anything_is_paid(tmp_path):
    (tmp_path / "a.md").write_text("# About trains\n\nOne page.")
    with FakeLLM(questions_of) as server:
        said = typed("synthesize", tmp_path / "a.md", "--out", tmp_path / "out", "--model", "tiny", "--address", server.url)
        assert said.exit_code == 2 and "at least three" in said.stderr and server.asked == {}

def test_ctrl_c_names_the_ledger_and_what_is_in_it(folder, tmp_path):
    once = threading.Lock()
    def fault(prompt, nth):
        enough = sum(server.answered.values()) >= 6
        if enough and once.acquire(blocking=False): signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    with FakeLLM(questions_of, fault, latency=.01) as server:
        said = typed("synthesize", folder, "--out", tmp_path / "out", "--model", "tiny", "--address", server.url)
        n = sum(server.answered.values())
    assert said.exit_code == 130 and Ledger(tmp_path / "out.ledger.sqlite").spent()["answers"] == n >= 6
    assert f"{n} answers" in said.stderr and "out.ledger.sqlite" in said.stderr and "nothing is kept" not in said.stderr

def test_no_other_address_is_told_the_key_of_openai(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeLLM(questions_of) as server:
        options = ["--model", "tiny", "--ledger", tmp_path / "l.sqlite", "--address"]
        assert typed("synthesize", folder, "--out", tmp_path / "out", *options, server.url).exit_code == 0
        assert server.headers and "sk-secret" not in str(server.headers)
    with FakeLLM(questions_of) as other:
        assert typed("synthesize", folder, "--out", tmp_path / "out2", *options, other.url).exit_code == 0
        assert other.asked.total() > 0, "another server's answers are not this one's"

@pytest.mark.parametrize(("options", "says"), [(["--by", "magic"], "magic"), (["--model", "x", "--cap-money", "1"], "prices"),
                                               (["--model", "x/y", "--cap-money", "inf", "--price", 1, 1], "0 or more"),
                                               (["--model", "x/y", "--price", 1, -1], "0 or more"),
                                               (["--model", "nobody/x"], "nobody/x")])
def test_the_command_refuses_in_one_line(options, says, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = typed("synthesize", folder, "--out", tmp_path / "out", *options)
    lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert found.exit_code == 2 and len(lines) == 1 and says in lines[0] and not (tmp_path / "out").exists()

def test_the_command_never_writes_over_anything(folder, tmp_path):
    (tmp_path / "mine").write_text("x")
    found = typed("synthesize", folder, "--out", tmp_path)
    assert found.exit_code == 2 and "not an empty folder" in found.stderr
