"Checks and splits: each check catches the leak that is planted for it and is silent on sound data; no group stands on two sides."
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ASKING, COLOURS, THINGS, tiny_data, tiny_model
from typer.testing import CliRunner

from rag_finetune import data, retrieval
from rag_finetune.cli import app
from rag_finetune.core import DataError, Dataset, text_key
from rag_finetune.data import (
    BANDS, IMBALANCE, MOST, NEAR, POOL, ROWS, are_classes, bundled, check, contradictions, cut_texts, deal, easy_pool, equal_texts,
    few_shot_rows, label_words, load, near_queries, near_texts, not_checked, random_negatives, read_beir, repeated_documents, saturated,
    shared_ids, shared_values,
    SharedQueries, source_column, split, taught_answers, twin_documents, uneven_classes, unjudged_twins, write_beir, write_run,
)
from rag_finetune.models import open_encoder
from rag_finetune.pipeline import prepare, record_use, refuse, run, token_counts, too_long, unused, uses_file

# --- a sound set, and leaks planted in it

NOUNS = ("invoice", "receipt", "hotel", "taxi", "parking", "visa", "meal", "laptop", "phone", "train", "flight", "mileage")

def sound(n: int = 240, documents: int = 240) -> dict[str, Dataset]:
    "Train, dev and test over documents of which half answer nothing; every check must be silent on it."
    rng = random.Random(5)
    def sentence(k): return " ".join(f"{rng.choice(NOUNS)}{rng.randrange(5000)}" for _ in range(k))
    corpus = {f"d{i}": sentence(20) for i in range(documents)}
    queries = {f"q{i}": sentence(6) for i in range(n)}
    qrels = {q: {f"d{i % (documents // 2)}": 1} for i, q in enumerate(queries)}
    sides = {"train": range(n // 2), "dev": range(n // 2, 2 * n // 3), "test": range(2 * n // 3, n)}
    ids = {s: [f"q{i}" for i in r] for s, r in sides.items()}
    return {s: Dataset(corpus, {q: queries[q] for q in qs}, {q: qrels[q] for q in qs}, "sound") for s, qs in ids.items()}

def planted(splits, side: str, text: str, answer: str | None = None, qid: str = "leak", **meta: str) -> dict[str, Dataset]:
    "The splits with one more query."
    d = splits[side]
    grades = {answer or next(iter(d.corpus)): 1}
    about = {qid: meta} if meta else {}
    return splits | {side: replace(d, queries=d.queries | {qid: text}, qrels=d.qrels | {qid: grades}, meta=d.meta | about)}

def with_document(splits, doc: str, text: str) -> dict[str, Dataset]:
    "The splits with one more document."
    corpus = next(iter(splits.values())).corpus | {doc: text}
    return {s: replace(d, corpus=corpus) for s, d in splits.items()}

def classes(per: int = 40) -> dict[str, Dataset]:
    "Three categories with opaque ids; the rows name none of them."
    corpus = {"c1": "ground transport", "c2": "meals", "c3": "lodging"}
    def part(s): return {f"{s}{c}{i}": f"{s} row {c} number {i}" for c in corpus for i in range(per)}
    return {s: Dataset(corpus, q, {i: {i[len(s):len(s) + 2]: 1} for i in q}, "classes") for s in ("train", "test") for q in [part(s)]}

def names(found) -> list[str]: return [f.name for f in found]

def only(found, name: str, count: int, *words: str):
    "There is one finding, of this name and count, and its example has these words."
    assert [(f.name, f.count) for f in found] == [(name, count)]
    assert len(found[0].examples) == min(3, count) or not words
    for word in words: assert word in found[0].examples[0]
    assert found[0].message.isprintable() and all(e.isprintable() for e in found[0].examples)
    return found[0]

@pytest.mark.parametrize("splits", [sound(), classes(), load("transactions"), load("handbook")],
                         ids=["sound", "classes", "transactions", "handbook"])
def test_clean_data_is_silent(splits):
    assert check(splits) == []

def test_the_bundled_merchants_are_not_shared_and_its_folder_is_clean():
    assert check(load("transactions"), entity="merchant") == []
    assert check(read_beir(bundled()["transactions"])) == []

def test_an_id_on_two_sides_is_the_one_error_and_comes_first():
    splits = sound()
    splits = planted(splits, "test", "something else", qid="q0")
    splits = planted(splits, "test", next(iter(splits["train"].queries.values())), qid="twin")
    found = check(splits)
    assert [f.severity for f in found if f.name == "shared ids"] == ["error"] and found[0].name == "shared ids" and found[0].count == 1
    assert {f.severity for f in found[1:]} == {"warning"} and found[0].examples == ["q0 in train and test"]
    assert shared_ids(sound()) == []

def test_an_id_in_three_splits_is_one_id():
    splits = sound()
    for side in splits: splits = planted(splits, side, f"text of {side}", qid="z")
    only(shared_ids(splits), "shared ids", 1, "z in train and dev and test")

def test_reading_names_all_ids_that_are_judged_twice(tmp_path):
    write_beir(sound(), tmp_path)
    with open(tmp_path / "qrels" / "test.tsv", "a") as file: file.write("q0\td1\t1\nq1\td1\t1\nq0\td2\t1\n")
    with pytest.raises(SharedQueries, match=r"test\.tsv:82: query 'q0' is in .*train.tsv too") as error: read_beir(tmp_path)
    assert error.value.ids == ["q0", "q1"]

@pytest.mark.parametrize(("side", "name"), [("test", "equal texts"), ("dev", "equal texts"), ("train", "repeated texts")])
def test_equal_texts_are_found_across_and_within(side, name):
    text = sound()["train"].queries["q3"]
    found = equal_texts(planted(sound(), side, f"  {text.upper()} "))
    only(found, name, 1, "train", text[:20].upper() if side == "train" else text[:20], "" if side == "train" else f" is {side} leak")
    assert equal_texts(sound()) == []

@pytest.mark.parametrize(("side", "name"), [("test", "near queries"), ("dev", "near queries"), ("train", "near queries in a split")])
def test_near_queries_are_found_across_and_within(side, name):
    text = " ".join(f"word{i}" for i in range(10))
    splits = planted(planted(sound(), "train", text, qid="first"), side, f"{text} please")   # 10 of 11 words
    near = near_texts(t for d in splits.values() for t in d.queries.values())
    only(near_queries(splits, near), name, 1, f"{side} leak", "train first")
    splits = planted(planted(sound(), "train", text, qid="first"), side, f"{text} please now")  # 10 of 12
    assert near_queries(splits, near_texts(t for d in splits.values() for t in d.queries.values())) == []

def test_a_near_duplicate_of_an_equal_text_is_not_counted_twice():
    text = sound()["train"].queries["q3"]
    leaky = planted(sound(), "test", text.title(), sound()["train"].positives("q3")[0])
    assert names(check(leaky)) == ["equal texts"]

words = st.lists(st.sampled_from([f"w{i}" for i in range(30)]), min_size=1, max_size=25).map(" ".join)

@settings(deadline=None, max_examples=100)
@given(st.lists(words, min_size=2, max_size=25))
def test_near_texts_are_never_a_false_alarm_and_both_ways(texts):
    near = near_texts(texts)
    for a, found in near.items():
        for b in found:
            one, other = set(a.split()), set(b.split())
            assert a != b and len(one & other) >= NEAR * len(one | other) and a in near[b]

def test_near_texts_are_those_that_all_pairs_find():
    rng = random.Random(0)
    base = [" ".join(rng.sample([f"w{i}" for i in range(3000)], 30)) for _ in range(150)]
    texts = base + [" ".join([*t.split()[: rng.randrange(24, 30)], "new"]) for t in base]
    sets = {t: set(t.split()) for t in texts}
    wanted = {frozenset((a, b)) for a, b in combinations(sets, 2) if len(sets[a] & sets[b]) >= NEAR * len(sets[a] | sets[b])}
    assert 20 < len(wanted) < 150
    assert {frozenset((a, b)) for a, found in near_texts(texts).items() for b in found} == wanted
    assert (1 - NEAR ** ROWS) ** BANDS < 2e-4   # what the comment at BANDS claims

def test_thousands_of_texts_of_one_template_do_not_fill_the_memory():
    texts = [f"{' '.join(f'w{i}' for i in range(30))} number{n}" for n in range(400)]   # each is near to each
    near = near_texts(texts)
    assert len(near) == 400 and sum(map(len, near.values())) <= 2 * MOST * 400

TEMPLATE = " ".join(f"w{i}" for i in range(30))

@pytest.mark.parametrize("n", [10, MOST + 10, 3 * MOST])
def test_many_near_texts_hide_none_of_another_split(n):
    splits = sound()
    for i in range(n): splits = planted(splits, "train", f"{TEMPLATE} n{i}", qid=f"t{i}")
    splits = planted(splits, "test", f"{TEMPLATE} zz", qid="ev")
    found = {f.name: f for f in check(splits, few_shot=[f"{TEMPLATE} yy"])}
    assert found["few-shot rows"].count == found["near queries"].count == 1 and "test ev" in found["few-shot rows"].examples[0]

@pytest.mark.parametrize("n", [10, MOST + 10, 3 * MOST])
@pytest.mark.parametrize("same", [False, True])
def test_many_twins_do_not_hide_the_one_that_was_taught(n, same):
    splits = sound()
    def text(word): return TEMPLATE if same else f"{TEMPLATE} {word}"
    for doc in (*(f"u{i:03}" for i in range(n)), "taught", "held"): splits = with_document(splits, doc, text(doc))
    splits = planted(planted(splits, "train", "about this", "taught", qid="a"), "test", "about that one", "held", qid="b")
    assert [(f.count, f.examples) for f in check(splits) if f.name == "taught answers"] == \
        [(1, ['test b "about that one": held is a twin of taught'])]

def test_texts_without_spaces_are_compared_by_pairs_of_characters():
    text = "我的信用卡丢了怎么办请告诉我应该如何处理这个问题"
    splits = planted(planted(sound(), "train", text, qid="a"), "test", f"{text}呢", qid="b")
    assert names(check(splits)) == ["near queries"]
    other = planted(planted(sound(), "train", text, qid="a"), "test", "请告诉我应该如何办理一张新的信用卡", qid="b")
    assert check(other) == []

def test_what_short_queries_hide_is_said():
    told = not_checked(planted(sound(), "test", " ".join(f"word{i}" for i in range(19))))
    assert told["near queries that differ in one word"] == "of 240 queries with fewer than 19 words"
    a, b = (" ".join([*(f"word{i}" for i in range(18)), w]) for w in ("lost", "stolen"))   # nineteen words, one of them changed
    assert near_texts([a, b]) and not near_texts([a.split(" ", 1)[1], b.split(" ", 1)[1]])

def test_a_set_too_large_for_near_texts_says_so_and_still_finds_equal_ones(monkeypatch):
    splits = with_document(sound(), "twin", sound()["train"].corpus["d200"])
    assert not {"near queries", "near documents"} & not_checked(splits).keys()
    monkeypatch.setattr(data, "LARGE", 239)
    assert {"near queries", "near documents"} <= not_checked(splits).keys()
    def never(*_): raise AssertionError("searched")
    monkeypatch.setattr(data, "near_texts", never)
    assert names(check(splits)) == ["twin documents"]

def test_documents_that_stand_twice_are_found():
    text = sound()["train"].corpus["d200"]
    for other in (text.upper(), f"{text} indeed"):
        splits = with_document(sound(), "twin", other)
        only(repeated_documents(splits, twin_documents(splits["train"].corpus)), "twin documents", 2, "d200", "twin")
    assert twin_documents(sound()["train"].corpus) == {}

def test_a_test_query_that_the_twin_of_a_train_document_answers_is_found():
    answer = sound()["train"].positives("q7")[0]
    splits = with_document(sound(), "twin", f"{sound()['train'].corpus[answer]} indeed")
    twins = twin_documents(splits["train"].corpus)
    leaky = planted(splits, "test", "a question of its own", "twin")
    only(taught_answers(leaky, twins), "taught answers", 1, "test leak", "twin", answer)
    same = planted(splits, "test", "a question of its own", answer)   # the same document is no secret: that query counts as seen
    assert taught_answers(same, twins) == taught_answers(splits, twins) == []
    assert taught_answers({"test": leaky["test"]}, twins) == []

def test_an_unjudged_twin_of_a_positive_is_found_and_a_judged_one_is_not():
    splits = with_document(sound(), "twin", f"{sound()['train'].corpus['d7']} indeed")
    twins = twin_documents(splits["train"].corpus)
    asked = [q for d in splits.values() for q in d.queries if d.positives(q) == ["d7"]]
    only(unjudged_twins(splits, twins), "unjudged twins", len(asked), asked[0], "d7", "twin")
    judged = {s: replace(d, qrels={q: g | ({"twin": 0} if "d7" in g else {}) for q, g in d.qrels.items()}) for s, d in splits.items()}
    assert unjudged_twins(judged, twins) == []

def test_chunks_of_one_source_document_on_both_sides_are_found_by_default():
    splits = {s: replace(d, document_meta={i: {"source": f"file-{i}"} for i in d.corpus}) for s, d in sound().items()}
    apart = {s: replace(d, qrels={q: {f"d{int(q[1:])}": 1} for q in d.queries}) for s, d in splits.items()}   # a document for each query
    assert names(check(apart)) == ["judged pool"]
    page = {"d1": {"source": "page"}, "d239": {"source": "page"}}
    pages = {s: replace(d, document_meta=d.document_meta | page) for s, d in apart.items()}
    only(shared_values(pages, "source", "shared sources"), "shared sources", 1, "test q239", "page", "train q1")
    assert "shared sources" in names(check(pages)) and "shared sources" in names(check(pages, source="source"))
    with pytest.raises(DataError, match="no query or document has 'file' in its metadata; there are: source"): check(pages, source="file")

def test_a_publisher_is_no_source_document():
    few = {s: replace(d, meta={q: {"source": f"site-{int(q[1:]) % 5}"} for q in d.queries}) for s, d in sound().items()}
    assert check(few) == [] and source_column(few) is None and source_column(sound()) is None
    assert names(check(few, source="source")) == ["shared sources"]
    assert not_checked(few)["shared sources"] == "column 'source' has 5 values for 120 rows, as publishers have"
    assert "shared sources" not in not_checked(few, "source")
    assert not_checked(sound())["shared sources"] == "no column source, document, file, doc_id"
    files = {s: replace(d, meta={q: {"file": f"{int(q[-1]) % 3}.csv"} for q in d.queries}) for s, d in classes().items()}
    assert source_column(files) is None   # 240 rows of three files

def test_a_column_that_tells_every_document_apart_says_nothing_about_chunks():
    own = {s: replace(d, document_meta={i: {"doc_id": i} for i in d.corpus}) for s, d in sound().items()}
    assert check(own) == [] and not_checked(own)["shared sources"] == "column 'doc_id' tells every row apart"

def whole(splits) -> Dataset:
    "All splits as one."
    def all_of(part): return {q: v for d in splits.values() for q, v in getattr(d, part).items()}
    return replace(next(iter(splits.values())), queries=all_of("queries"), qrels=all_of("qrels"), meta=all_of("meta"))

@pytest.mark.parametrize("column", ["source", "document", "File", "doc_id"])
def test_the_handbook_dealt_out_at_random_has_its_chapters_on_both_sides(column):
    book = whole(load("handbook"))
    def named(about): return {i: {column if c == "document" else c: v for c, v in columns.items()} for i, columns in about.items()}
    book = replace(book, meta=named(book.meta), document_meta=named(book.document_meta))
    found = {f.name: f for f in check(split(book, by="positives"))}
    assert found["shared sources"].count > 300 and f"by={column!r}" in found["shared sources"].message
    assert "shared sources" not in names(check(split(book, by=column)))

def test_a_publisher_in_one_column_does_not_hide_the_document_in_another():
    book = whole(load("handbook"))
    book = replace(book, document_meta={i: m | {"source": "intranet"} for i, m in book.document_meta.items()})
    assert source_column({"all": book}) == "document" and "shared sources" in names(check(split(book, by="positives")))

def test_a_column_of_a_sheet_can_be_the_entity(tmp_path):
    def rows(s, who): return "text,category,Merchant\n" + "".join(f"{s} row {i},c{i % 3},{who}-{i}\n" for i in range(30))
    (tmp_path / "train.csv").write_text(rows("train", "shop"))
    (tmp_path / "test.csv").write_text(rows("test", "store") + "and one more,c1,shop-7\n")
    only(check(load(tmp_path), entity="Merchant"), "shared entities", 1, "test test-30", "shop-7", "train train-7")
    assert "shop-7" in typed(tmp_path, "--entity", "Merchant").stdout

def test_an_entity_on_both_sides_is_found_where_its_column_is_named():
    splits = planted(planted(sound(), "train", "one", qid="a", customer="ACME"), "test", "two", qid="b", customer="ACME")
    assert check(splits) == []
    only(check(splits, entity="customer"), "shared entities", 1, "test b", "ACME", "train a")
    with pytest.raises(DataError, match="no query or document has 'custmer' in its metadata; there are: customer"):
        check(splits, entity="custmer")

@pytest.mark.parametrize("shape", ["id", "text", "near"])
def test_few_shot_examples_that_are_eval_rows_are_found(shape):
    text = " ".join(f"word{i}" for i in range(12))
    splits = planted(sound(), "test", text)
    shown = {"id": "leak", "text": f"  {text.upper()}", "near": f"{text} please"}[shape]
    only(check(splits, few_shot=["q1", shown, splits["train"].queries["q2"]]), "few-shot rows", 1, "test leak")
    assert check(splits, few_shot=["q1", "q2", splits["train"].queries["q2"], "made up"]) == []
    assert few_shot_rows(sound(), ["q239"], {})[0].count == 1

def test_label_words_are_counted_by_whole_words_and_only_of_categories():
    def leaky(text, n):
        splits = classes()
        few = list(splits["train"].queries)[:n]
        return splits | {"train": replace(splits["train"], queries=splits["train"].queries | {q: f"{text} {q}" for q in few})}
    found = only(label_words(leaky("Ground  Transport for", 30)), "label words", 30, "c1")
    assert "of 240 queries (12%)" in found.message
    assert label_words(leaky("background transporting", 30)) == []      # no whole words
    assert label_words(leaky("ground transport for", 10)) == []          # 4%
    assert label_words(leaky("lodging", 30)) == []                       # another category's name
    assert label_words(sound()) == [] and not are_classes(sound()) and are_classes(classes())

def test_an_underscored_id_is_a_label_too():
    splits = classes()
    def renamed(d): return Dataset({"card_arrival": "a long description of what it is about", "b": "x", "c": "y"},
                                   {q: f"card arrival {q}" for q in d.queries}, {q: {"card_arrival": 1} for q in d.queries}, "bank")
    assert label_words({s: renamed(d) for s, d in splits.items()})[0].count == 240

def test_equal_texts_with_different_answers_are_a_contradiction_in_single_label_data():
    splits = planted(planted(sound(), "train", "Lost card", "d1", qid="a"), "test", "lost  CARD", "d2", qid="b")
    only(contradictions(splits), "contradictions", 1, "test b", "d2", "train a", "d1")
    assert contradictions(planted(planted(sound(), "train", "Lost card", "d1", qid="a"), "test", "lost card", "d1", qid="b")) == []
    several = splits | {"dev": replace(splits["dev"], qrels=splits["dev"].qrels | {"q130": {"d1": 1, "d2": 1}})}
    assert contradictions(several) == contradictions(splits)   # a query with several answers contradicts none, and hides nothing
    assert not_checked(several)["contradictions"] == "of 1 queries with several answers, which may differ"
    both = planted(planted(sound(), "train", "Lost card", "d1", qid="a"), "test", "lost card", "d1", qid="b")
    assert contradictions(both | {"test": replace(both["test"], qrels=both["test"].qrels | {"b": {"d1": 1, "d2": 1}})}) == []

def test_one_row_with_two_labels_switches_no_check_off():
    splits = classes()
    def two(d): return replace(d, qrels=d.qrels | {next(iter(d.queries)): {"c1": 1, "c2": 1}})
    splits = splits | {"train": two(splits["train"])}
    assert are_classes(splits) and check(splits) == []
    named = {s: replace(d, queries={q: f"ground transport {t}" for q, t in d.queries.items()}) for s, d in splits.items()}
    assert names(check(named)) == ["label words"]
    half = {s: replace(d, qrels={q: {"c1": 1, "c2": 1} if q[-1] in "02468" else g for q, g in d.qrels.items()}) for s, d in splits.items()}
    assert not are_classes(half) and not_checked(half)["label words, uneven classes"] == "documents are no categories"
    assert "small pool, judged pool" in not_checked(splits) and "label words, uneven classes" not in not_checked(splits)

def test_texts_that_the_model_would_cut_are_counted_with_their_tokens():
    splits = sound()
    tokens = {t: 20 for d in splits.values() for t in (*d.corpus.values(), *d.queries.values())}
    assert cut_texts(splits, tokens, 20) == []
    tokens |= {splits["train"].corpus["d3"]: 70, splits["train"].corpus["d5"]: 24, splits["test"].queries["q239"]: 21}
    found = cut_texts(splits, tokens, 20)
    assert [(f.name, f.count) for f in found] == [("cut documents", 2), ("cut queries", 1)]
    assert "54 of 4,854 tokens are cut off, 50 from the longest" in found[0].message and found[0].examples[0].startswith("d3 ")
    assert names(check(splits, tokens=tokens, limit=20)) == ["cut documents", "cut queries"]

def test_uneven_classes_are_found_where_documents_are_classes():
    train = classes()["train"]
    def kept(n): return replace(train, **{part: {q: v for q, v in getattr(train, part).items() if "c3" not in q or int(q[7:]) < n}
                                          for part in ("queries", "qrels")})
    assert 40 / 4 > IMBALANCE > 40 / 5
    only(uneven_classes(classes() | {"train": kept(4)}), "uneven classes", 1, "c3 has 4 rows", "40")
    assert uneven_classes(classes() | {"train": kept(5)}) == []

def test_a_base_model_that_is_nearly_perfect_is_told():
    assert saturated(.95) == [] and "0.961" in only(saturated(.961), "saturated", 1).message
    assert names(check(sound(), base=.99)) == ["saturated"]

def test_a_pool_in_which_there_is_nothing_to_search_is_told():
    assert easy_pool(sound()) == [] and easy_pool(classes()) == []
    assert names(easy_pool(sound(documents=POOL - 2))) == ["small pool"]
    assert "10%" in easy_pool(sound(documents=POOL - 2))[0].message
    corpus = {d: t for d, t in sound()["train"].corpus.items() if int(d[1:]) < 120}   # none but answers
    only(easy_pool({s: replace(d, corpus=corpus) for s, d in sound().items()}), "judged pool", 120)

def test_ten_candidates_are_no_retrieval():
    splits = sound()
    ten = {q: {f"d{i}": 1. for i in range(10)} for q in splits["test"].queries}
    only(easy_pool(splits, ten), "short lists", 80, "has 10")
    assert "240 documents" in easy_pool(splits, ten)[0].message
    assert easy_pool(splits, {q: {f"d{i}": 1. for i in range(100)} for q in ten}) == []

@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("judged", [False, True])
def test_random_negatives_are_told_from_mined_ones(hard, judged):
    rng, splits = random.Random(1), sound()
    test = splits["test"]
    two = {f"h{i}": f"{' '.join(t.split()[:2])} {i}" for i, t in enumerate(test.queries.values())}   # two words of each query
    corpus = test.corpus | two
    pool = {q: [f"h{i}"] if hard else [] for i, q in enumerate(test.queries)}
    negatives = {q: pool[q] + rng.sample(sorted(corpus.keys() - test.qrels[q]), 1 if hard else 2) for q in test.queries}
    candidates = {q: dict.fromkeys(found, 1.0) for q, found in negatives.items()}
    splits = {s: replace(d, corpus=corpus) for s, d in splits.items()}
    if judged:
        qrels = {q: g | dict.fromkeys(negatives[q], 0) for q, g in test.qrels.items()}
        splits, candidates = splits | {"test": replace(splits["test"], qrels=qrels)}, None
    found = random_negatives(splits, candidates)
    assert names(found) == ([] if hard else ["random negatives"])
    assert random_negatives(sound()) == []

def test_a_set_without_negatives_is_not_cut_into_words_for_them(monkeypatch):
    def never(_): raise AssertionError("cut")
    monkeypatch.setattr(data, "_words_of", never)
    assert random_negatives(sound()) == []

def test_hostile_texts_become_printable_examples():
    hostile = "\x1b[31m<script>alert(1)</script>\u202e [bold]x[/bold] " + "z" * 500
    found = check(planted(planted(sound(), "train", hostile, qid="a\x07"), "test", hostile, qid="b"))
    assert names(found) == ["equal texts"]
    assert all(e.isprintable() and len(e) < 200 for f in found for e in f.examples)
    json.dumps([f.__dict__ for f in found])

def test_ten_thousand_queries_and_five_thousand_documents_take_seconds():
    rng = random.Random(2)
    vocabulary = [f"w{i}" for i in range(8000)]
    corpus = {f"d{i}": " ".join(rng.choices(vocabulary, k=150)) for i in range(5000)}
    queries = {f"q{i}": " ".join(rng.choices(vocabulary[:2000], k=11)) for i in range(10_000)}
    sides = {"train": list(queries)[:8000], "test": list(queries)[8000:]}
    qrels = {q: {f"d{rng.randrange(2500)}": 1} for q in queries}
    splits = {s: Dataset(corpus, {q: queries[q] for q in ids}, {q: qrels[q] for q in ids}) for s, ids in sides.items()}
    splits = planted(splits, "test", f"{queries['q5']} please", "d1")
    start = time.process_time()
    found = check(splits)
    assert time.process_time() - start < 30   # some 5 on a quiet core
    assert "near queries" in names(found)

# --- the public sets

def test_public_sets_have_the_findings_that_are_known(public_data):
    found = {f.name: f for f in check(load(public_data / "banking77"))}
    assert {n: f.count for n, f in found.items()} == {
        "equal texts": 7, "repeated texts": 5, "near queries": 116, "near queries in a split": 168}
    scifact = {f.name: f for f in check(load(public_data / "scifact"))}
    assert {n: f.count for n, f in scifact.items()} == {
        "equal texts": 2, "repeated texts": 2, "near queries": 12, "near queries in a split": 20}

# --- splits

@st.composite
def tagged(draw):
    "Queries with texts, documents, a source for each document, a customer and a day."
    n = draw(st.integers(12, 60))
    docs = {f"d{i}": "text" for i in range(draw(st.integers(6, 20)))}
    def one(values): return [draw(st.sampled_from(values)) for _ in range(n)]
    text, answer, customer = one([f"text {i}" for i in range(30)]), one(sorted(docs)), one([f"c{i}" for i in range(12)])
    day = [f"2024-{draw(st.integers(1, 12)):02}-{draw(st.integers(1, 28)):02}" for _ in range(n)]
    meta = {f"q{i}": {"customer": customer[i], "day": day[i]} for i in range(n)}
    about = {d: {"source": f"s{int(d[1:]) // 2}"} for d in docs}
    return Dataset(docs, {f"q{i}": text[i] for i in range(n)}, {f"q{i}": {answer[i]: 1} for i in range(n)}, "tagged", meta, about)

def values(dataset, by):
    if by == "text": return {text_key(t) for t in dataset.queries.values()}
    if by == "positives": return {d for q in dataset.queries for d in dataset.positives(q)}
    if by == "source": return {dataset.document_meta[d]["source"] for q in dataset.queries for d in dataset.positives(q)}
    return {dataset.meta[q][by] for q in dataset.queries}

@settings(deadline=None, max_examples=200)
@given(tagged(), st.sampled_from(["text", "positives", "source", "customer"]), st.integers(0, 5), st.booleans())
def test_no_group_is_on_two_sides_and_no_query_is_lost(dataset, by, seed, stratify):
    try: parts = split(dataset, seed=seed, by=by, stratify=stratify)
    except DataError as e:
        assert re.fullmatch(r"tagged: [12] different .* for 3 splits; bring at least one for each", str(e))
        return
    for a, b in combinations(parts.values(), 2):
        assert not values(a, by) & values(b, by) and not values(a, "text") & values(b, "text")
    assert all(d.queries for d in parts.values())
    assert sorted(q for d in parts.values() for q in d.queries) == sorted(dataset.queries)
    backwards = replace(dataset, queries=dict(reversed(dataset.queries.items())))
    again = split(backwards, seed=seed, by=by, stratify=stratify)
    assert {s: d.fingerprint for s, d in again.items()} == {s: d.fingerprint for s, d in parts.items()}

def crowd(n: int = 2000, groups: int = 300) -> Dataset:
    rng = random.Random(3)
    meta = {f"q{i}": {"customer": f"c{rng.randrange(groups)}", "n": str(rng.randrange(1000))} for i in range(n)}
    return Dataset({f"d{i}": "x" for i in range(20)}, {f"q{i}": f"text {i}" for i in range(n)},
                   {f"q{i}": {f"d{min(19, int(rng.expovariate(.3)))}": 1} for i in range(n)}, "crowd", meta)

@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stratify", [False, True])
def test_shares_are_near_what_was_asked(seed, stratify):
    parts = split(crowd(), seed=seed, by="customer", stratify=stratify)
    assert [len(d.queries) for d in parts.values()] == pytest.approx([1400, 200, 400], abs=15)   # a customer has some 7 rows

@pytest.mark.parametrize("seed", range(5))
def test_stratified_splits_have_each_category_at_its_share(seed):
    whole = crowd()
    parts = split(whole, {"train": .7, "dev": .1, "test": .2}, seed, stratify=True)
    for d in whole.corpus:
        n = sum(whole.positives(q) == [d] for q in whole.queries)
        for share, part in zip((.7, .1, .2), parts.values()):
            assert abs(sum(part.positives(q) == [d] for q in part.queries) - share * n) < 2

def test_rare_categories_are_not_all_on_one_side():
    "A category with one row goes to each split about as often as the split's share says."
    docs = {f"d{i}": "x" for i in range(500)}
    whole = Dataset(docs, {f"q{i}": f"text {i}" for i in range(500)}, {f"q{i}": {f"d{i}": 1} for i in range(500)}, "rare")
    assert [len(d.queries) for d in split(whole, stratify=True).values()] == [350, 50, 100]

def test_in_time_the_last_split_is_the_latest_and_a_repeated_question_goes_with_its_last_time():
    whole = crowd()
    parts = split(whole, in_time="n")
    times = [[float(d.meta[q]["n"]) for q in d.queries] for d in parts.values()]
    assert max(times[0]) <= min(times[1]) and max(times[1]) <= min(times[2]) and [len(t) for t in times] == [1400, 200, 400]
    asked = {"q0": "again", "q1": "once", "q2": "twice", "q3": "Again"}
    days = {q: {"day": f"2024-0{i + 1}-01"} for i, q in enumerate(asked)}
    few = Dataset({"d": "x"}, asked, {q: {"d": 1} for q in asked}, "few", days)
    parts = split(few, {"train": .7, "test": .3}, in_time="day")
    assert {s: set(d.queries) for s, d in parts.items()} == {"train": {"q1", "q2"}, "test": {"q0", "q3"}}
    with pytest.raises(DataError, match="query 'q4' has no 'day' in its metadata"):
        split(replace(few, queries=asked | {"q4": "new"}), {"train": .7, "test": .3}, in_time="day")
    with pytest.raises(DataError, match="goes by nothing else"): split(few, in_time="day", stratify=True)
    with pytest.raises(DataError, match="no query or document has 'when' in its metadata; there are: day"): split(few, by="when")

def timed(*times: str) -> Dataset:
    return Dataset({"d": "x"}, {f"q{i}": f"text {i}" for i in range(len(times))}, {f"q{i}": {"d": 1} for i in range(len(times))}, "timed",
                   {f"q{i}": {"when": t} for i, t in enumerate(times)})

@pytest.mark.parametrize(("query", "times"), [
    ("q2", ("9", "10", "nan", "3")), ("q2", ("1", "2", "inf", "3")), ("q0", ("31.05.2024", "01.06.2024", "02.01.2023", "05.03.2025")),
    ("q1", ("2024-05-31", "2024-6-1", "2024-12-01", "2023-01-01")), ("q2", ("2024-05-31", "2024-06-01", "7", "8")),
    ("q1", ("7", "2024-06-01"))])
def test_a_time_that_cannot_be_compared_is_refused_with_its_query(query, times):
    with pytest.raises(DataError, match=f"timed: query {query!r} has the 'when' '"):
        split(timed(*times), {"train": .5, "test": .5}, in_time="when")

@pytest.mark.parametrize("times", [
    ("9", "10", "2", "3"), (" 1e3", "1001 ", "1", "2"), ("2024-05-31", "2024-12-01T10:00", "2024-06-01", "2023-01-01"),
    ("2024-05-31T10:00:00+02:00", "2024-05-31T09:00:00Z", "2024-05-31", "2023-01-01")])
def test_times_are_compared_as_numbers_or_dates(times):
    assert set(split(timed(*times), {"train": .75, "test": .25}, in_time="when")["test"].queries) == {"q1"}

def test_of_two_times_the_later_counts():
    few = replace(timed("9", "50", "60", "70"), document_meta={"d": {"when": "100"}}, corpus={"d": "x", "e": "y"},
                  qrels={"q0": {"d": 1}, "q1": {"e": 1}, "q2": {"e": 1}, "q3": {"e": 1}})
    assert set(split(few, {"train": .75, "test": .25}, in_time="when")["test"].queries) == {"q0"}

# --- a file alone

FAQ = bundled()["handbook"] / "faq.csv"

def test_a_files_own_split_is_followed():
    found = prepare(load(FAQ)).splits
    held = load("handbook")
    assert {s: set(d.queries.values()) for s, d in found.items()} == {s: set(d.queries.values()) for s, d in held.items()}
    sheet = whole(sound())
    def marked(*names): return replace(sheet, meta={q: {"split": names[i % len(names)]} for i, q in enumerate(sheet.queries)})
    assert set(deal(marked("train", "Validation", "test"))) == {"train", "dev", "test"}
    assert deal(marked("train"))["test"].fingerprint == deal(sheet)["test"].fingerprint

@pytest.mark.parametrize(("names", "said"), [
    (("train", ""), "query q1 has '', not train, dev or test"), (("train", "dev"), "no row has test"),
    (("train", "fold 3"), "query q1 has 'fold 3', not")])
def test_a_split_column_that_cannot_be_followed_is_said(names, said, caplog):
    sheet = whole(sound())
    sheet = replace(sheet, meta={q: {"split": names[i % len(names)]} for i, q in enumerate(sheet.queries)})
    with caplog.at_level("WARNING", logger="rag_finetune"): parts = deal(sheet)
    assert set(parts) == {"train", "test"} and f"its column 'split' is not followed: {said}" in caplog.text

def paged(pages: int) -> Dataset:
    sheet = whole(sound())
    return replace(sheet, qrels={q: {f"d{q[1:]}": 1} for q in sheet.queries},
                   meta={q: {"source": f"s{int(q[1:]) % pages}"} for q in sheet.queries})

def test_a_file_alone_is_dealt_by_its_source_documents_and_so_is_its_dev():
    found = prepare({"all": paged(60)})
    assert found.carved and [len(d.queries) for d in found.splits.values()] == pytest.approx([154, 38, 48], abs=4)
    assert shared_values(found.splits, "source", "shared sources") == [] and "shared sources" not in names(found.found)

def test_documents_that_hang_together_too_much_are_dealt_by_text_and_said(caplog):
    sheet = paged(60)
    sheet = replace(sheet, document_meta={d: {"source": "s1"} for i, d in enumerate(sheet.corpus) if i % 3 == 0})   # a chain through s1
    with caplog.at_level("WARNING", logger="rag_finetune"): parts = deal(sheet)
    assert {s: d.fingerprint for s, d in parts.items()} == \
        {s: d.fingerprint for s, d in split(sheet, {"train": .8, "test": .2}).items()}
    assert "of 240 queries hang together by 'source'" in caplog.text

def test_another_seed_deals_no_other_test():
    parts = [prepare({"all": whole(sound())}, seed=seed).splits for seed in (0, 1)]
    assert parts[0]["test"].fingerprint == parts[1]["test"].fingerprint and parts[0]["dev"].fingerprint != parts[1]["dev"].fingerprint

def test_splits_of_before_are_dealt_as_before():
    "Saved results stand on these; a change of the dealing must be seen."
    whole = Dataset({"d": "x"}, {f"q{i}": f"text {i}" for i in range(50)}, {f"q{i}": {"d": 1} for i in range(50)})
    assert {s: d.fingerprint for s, d in split(whole, seed=3).items()} == \
        {"train": "04768c6c994860c6", "dev": "528b4902d3e314a7", "test": "a905d04d95f4bae8"}

# --- the command, the main job, and the record of test uses

def typed(*words):
    found = CliRunner().invoke(app, ["check", *map(str, words)])
    assert "Traceback" not in found.output and (found.exception is None or isinstance(found.exception, SystemExit)), found.output
    return found

@pytest.fixture
def leaky(tmp_path):
    "A folder with one planted near twin, of a hostile text."
    text = "<script>alert(1)</script> [bold]x[/bold] " + " ".join(f"word{i}" for i in range(12))
    write_beir(planted(planted(sound(), "train", text, qid="a"), "test", f"{text} please", qid="b"), tmp_path / "data")
    return tmp_path / "data"

def test_exit_codes_say_clean_found_and_unreadable(leaky, tmp_path):
    clean = typed("transactions")
    assert clean.exit_code == 0 and "Nothing found." in clean.stdout and "not checked: cut texts (give --model)" in clean.stdout
    found = typed(leaky)
    assert found.exit_code == 1 and "near queries" in found.stdout and "1 warning." in found.stdout
    for bad in (tmp_path / "missing", leaky / "qrels"):
        refused = typed(bad)
        assert refused.exit_code == 2 and refused.stderr.startswith("error: ") and refused.stdout == ""
    assert typed("transactions", "--entity", "nothing").exit_code == 2

def test_strict_calls_warnings_errors_and_json_is_all_there_is(leaky):
    report = json.loads(typed(leaky, "--json").stdout)
    assert [f["severity"] for f in report["findings"]] == ["warning"] and (report["errors"], report["warnings"]) == (0, 1)
    assert report["splits"] == {"train": 121, "dev": 40, "test": 81} and "saturated" in report["left_out"]
    strict = typed(leaky, "--json", "--strict")
    assert strict.exit_code == 1 and json.loads(strict.stdout)["errors"] == 1

def test_without_a_model_none_is_loaded():
    heavy = {"torch", "transformers", "sentence_transformers", "datasets"}
    code = ("import sys\nfrom rag_finetune.cli import app\ntry: app(['check', 'transactions'])\n"
            f"except SystemExit as e: assert e.code == 0\nprint(sorted({heavy} & sys.modules.keys()))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    said = [line.strip() for line in out.splitlines()]
    assert said[-1] == "[]" and {f"not checked: {name} (give --model)" for name in ("cut texts", "saturated")} <= set(said)

def test_coheres_rules_are_asked_of_its_files(tmp_path):
    rows = [{"query": f"{NOUNS[i % 12]} number {i}", "relevant_passages": [f"passage {i} {'word ' * 600 * (i == 1)}"]} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    [told] = [f for f in json.loads(typed(tmp_path / "a.jsonl", "--json").stdout)["findings"] if f["name"] == "Cohere's rules"]
    assert told["message"].startswith("3 different queries with a relevant passage; Cohere wants at least 256; 1 of 3 pairs")

def test_contradictory_rows_of_a_log_are_listed(tmp_path):
    (tmp_path / "log.csv").write_text("query,passage,is_relevant\nlost card,call us,1\nlost card,call us,0\n")
    [told] = [f for f in json.loads(typed(tmp_path / "log.csv", "--json").stdout)["findings"] if f["name"] == "contradictory rows"]
    assert told["count"] == 1 and "log.csv:2, not is_relevant at" in told["examples"][0]

def test_a_shared_id_is_found_and_not_called_unreadable(leaky):
    with open(leaky / "qrels" / "test.tsv", "a") as file: file.write("q0\td1\t1\n")
    found = typed(leaky, "--json")
    [told] = json.loads(found.stdout)["findings"]
    assert found.exit_code == 1 and (told["severity"], told["count"]) == ("error", 1) and "test.tsv:83" in told["message"]

def test_the_page_shows_hostile_text_as_text(leaky, tmp_path):
    assert typed(leaky, "--html", tmp_path / "page.html").exit_code == 1
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "[bold]x[/bold]" in typed(leaky, "--json").stdout

def test_what_is_given_is_checked(leaky, tmp_path):
    (tmp_path / "prompt.txt").write_text("b\n\nq1\n")
    write_run({"q200": {"d1": 1., "d2": .5}}, tmp_path / "pool.trec")
    report = json.loads(typed(leaky, "--json", "--few-shot", tmp_path / "prompt.txt", "--candidates", tmp_path / "pool.trec").stdout)
    asked = {"few-shot rows", "short lists"}
    assert asked <= {f["name"] for f in report["findings"]} and not asked & report["left_out"].keys()

@pytest.mark.parametrize(("encoding", "code"), [("utf-8", 1), ("utf-8-sig", 1), ("utf-16", 2)])
def test_a_prompts_file_may_have_a_mark_in_front_and_must_be_utf8(encoding, code, leaky, tmp_path):
    (tmp_path / "prompt.txt").write_text("b\nq1\n", encoding=encoding)
    found = typed(leaky, "--json", "--few-shot", tmp_path / "prompt.txt")
    assert found.exit_code == code
    if code == 2: assert "prompt.txt:1: byte 0xff is not UTF-8" in found.stderr
    else: assert [f["count"] for f in json.loads(found.stdout)["findings"] if f["name"] == "few-shot rows"] == [1]

def test_candidates_of_another_set_are_refused(leaky, tmp_path):
    write_run({"another": {"d1": 1.}}, tmp_path / "other.trec")
    found = typed(leaky, "--candidates", tmp_path / "other.trec")
    assert found.exit_code == 2 and "other.trec: answers none of the 242 queries" in found.stderr

@pytest.mark.parametrize("options", [[], ["--json"], ["--html", "page.html"]])
def test_a_path_that_is_not_utf8_can_be_shown(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9.csv")
    try: shutil.copy(FAQ, name)
    except OSError: pytest.skip("no such names in this file system")
    assert typed(name, *options).exit_code == 1   # its answers are a judged pool
    if options[1:]: assert "caf\ufffd.csv" in (tmp_path / "page.html").read_text()
    with pytest.raises(DataError, match="half of a surrogate pair in 'caf.*'; rename it"): run(name, tmp_path / "out")   # not after an hour
    (tmp_path / name).write_text("query,passage,is_relevant\nlost card,call us,1\nlost card,call us,0\n")   # its path is in the finding
    assert typed(name, *options).exit_code == 1
    for text in (typed(name, *options).stdout, (tmp_path / "page.html").read_text() if options[1:] else ""): text.encode()

def test_a_file_with_a_split_of_its_own_is_checked_across_it(tmp_path):
    report = json.loads(typed(FAQ, "--json").stdout)
    assert report["splits"] == {"train": 526, "dev": 119, "test": 511} and "what is across splits" not in report["left_out"]
    lines = FAQ.read_text(encoding="utf-8").splitlines()
    (tmp_path / "half.csv").write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ",later"]))
    told = json.loads(typed(tmp_path / "half.csv", "--json").stdout)["left_out"]["what is across splits"]
    assert "its column 'split' is not followed: query half-1155 has 'later'" in told

def test_a_model_is_never_measured_on_rows_that_a_run_would_test_on(leaky, tmp_path, monkeypatch):
    model, seen = tiny_model(tmp_path / "tiny"), []
    real = retrieval.dense
    monkeypatch.setattr(retrieval, "dense", lambda asked, *rest: (seen.append(set(asked.queries)), real(asked, *rest))[1])
    sheet = "Question,Answer\n" + "".join(f"where is the {w} {i},{w} {i}\n" for w in NOUNS for i in range(9))
    (tmp_path / "faq.csv").write_text(sheet)
    typed(tmp_path / "faq.csv", "--json", "--model", model)
    assert len(seen[0]) == 86 and not seen[0] & prepare(load(tmp_path / "faq.csv"), seed=3).splits["test"].queries.keys()

def test_a_model_brings_its_context_and_its_own_score(leaky, tmp_path):
    tiny_model(tmp_path / "tiny")
    report = json.loads(typed(leaky, "--json", "--model", tmp_path / "tiny").stdout)
    assert not {"cut texts", "saturated"} & report["left_out"].keys()
    model = open_encoder(str(tmp_path / "tiny"))
    counts = token_counts(model, ["one two", "one two"])
    assert counts == {"one two": len(model.tokenizer("one two")["input_ids"])}
    many = [" ".join(["one"] * (i % 7 + 1)) + f" {i}" for i in range(2500)]   # more than go to the tokenizer at once
    assert token_counts(model, many) == {t: len(model.tokenizer(t)["input_ids"]) for t in many}
    model.max_seq_length = 5
    assert {f.name for f in too_long(model, sound())} == {"cut documents", "cut queries"}

def test_prepare_tells_what_it_found_and_strict_refuses_it():
    found = prepare(planted(planted(sound(), "train", "a b c d e f g h i j", qid="a"), "test", "a b c d e f g h i j please", qid="b"))
    assert names(found.found) == ["near queries"] and found.warnings[0].startswith("near queries: 1 query shares 90%")
    with pytest.raises(DataError, match="sound: --strict, and 1 found: near queries: 1 query"): refuse(found.found, "sound")
    refuse(prepare(sound()).found, "sound")

def test_each_use_of_a_test_split_is_counted(tmp_path):
    path, (test, other) = tmp_path / "new" / "uses.jsonl", (sound()["test"], classes()["test"])
    assert [record_use(t, "m", path)["count"] for t in (test, other, test, replace(test, name="renamed"))] == [1, 1, 2, 3]
    with open(path, "a") as file: file.write('{"test": "' + test.fingerprint)   # cut by a crash
    assert record_use(test, "m", path)["count"] == 4
    lines = path.read_text().splitlines()
    assert len(lines) == 6 and json.loads(lines[5])["test"] == test.fingerprint

def test_a_test_that_was_touched_is_the_same_test(tmp_path):
    test, path = sound()["test"], tmp_path / "uses.jsonl"
    def first(n): return replace(test, queries={q: test.queries[q] for q in list(test.queries)[:n]}, qrels={})
    path.write_text(json.dumps({"test": test.fingerprint}) + "\n[]\n5\n\n")   # written by an older version, and by somebody else
    assert record_use(test, "m", path)["count"] == 2
    touched = [replace(test, corpus=test.corpus | {"new": "unrelated"}), first(79), first(41),
               replace(test, queries={q: f" {t.upper()}" for q, t in test.queries.items()})]
    assert [record_use(t, "m", path)["count"] for t in touched] == [2, 3, 4, 5]
    reworded = replace(test, queries={q: t if int(q[1:]) < 160 + 39 else f"so {t}" for q, t in test.queries.items()})
    assert record_use(reworded, "m", path)["count"] < 5 and record_use(sound()["dev"], "m", path)["count"] == 1

def test_a_use_that_cannot_be_recorded_is_said_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    use = record_use(sound()["test"], "m", tmp_path / "file" / "uses.jsonl")
    assert use["count"] is None and "cannot be written" in use["problem"] and "RAG_FINETUNE_USES" in caplog.text

def test_the_record_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RAG_FINETUNE_USES", str(tmp_path / "team.jsonl"))
    assert uses_file() == tmp_path / "team.jsonl"
    monkeypatch.delenv("RAG_FINETUNE_USES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert uses_file() == tmp_path / "rag_finetune" / "test-uses.jsonl"

@pytest.mark.slow
def test_a_run_checks_counts_its_use_and_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("RAG_FINETUNE_USES", str(tmp_path / "uses.jsonl"))
    splits = split(tiny_data(), {"train": .6, "dev": .2, "test": .2})
    splits = planted(planted(splits, "train", "show me a red car now please", qid="a"), "test", "red car now please: show me a", qid="b")
    write_beir(splits, tmp_path / "data")
    model = str(tiny_model(tmp_path / "tiny"))
    for _ in range(6): record_use(splits["test"], "somebody else's run", uses_file())
    results = run(tmp_path / "data", tmp_path / "out", model, epochs=1)
    [near] = [f for f in results["checks"] if f["name"] == "near queries"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert results["test_uses"]["count"] == 7 and "used 7 times" in page and f"near queries: {near['message']}" in page
    with pytest.raises(DataError, match=r"--strict, and \d found: .*near queries: "):
        run(tmp_path / "data", tmp_path / "strict", model, epochs=1, strict=True)
    assert not (tmp_path / "strict").exists() and len((tmp_path / "uses.jsonl").read_text().splitlines()) == 7

@pytest.mark.slow
def test_strict_refuses_a_saturated_set_before_its_test_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("RAG_FINETUNE_USES", str(tmp_path / "uses.jsonl"))
    vocabulary, rng = COLOURS + THINGS + ASKING, random.Random(0)
    corpus = {f"d{i}": " ".join(rng.sample(vocabulary, 8)) for i in range(240)}
    easy = Dataset(corpus, {f"q{i}": corpus[f"d{i}"].title() for i in range(200)}, {f"q{i}": {f"d{i}": 1} for i in range(200)}, "easy")
    write_beir(split(easy, {"train": .5, "dev": .2, "test": .3}), tmp_path / "data")
    with pytest.raises(DataError, match=r"data: --strict, and 1 found: saturated: the base model is at 1\.000"):
        run(tmp_path / "data", tmp_path / "out", str(tiny_model(tmp_path / "tiny")), epochs=1, strict=True)
    assert not (tmp_path / "out").exists() and not (tmp_path / "uses.jsonl").exists()

@pytest.mark.parametrize(("name", "rows", "found"), [
    ("log.csv", "query,passage,is_relevant\n" + "".join(f"where is {w},{w} {i},{v}\n" for w in NOUNS for i in range(9) for v in (0, 1)),
     "contradictory rows: 108 rows"),
    ("a.jsonl", "".join(f'{{"query": "where is {w} {i}", "relevant_passages": ["{w} {i}"]}}\n' for w in NOUNS for i in range(9)),
     "Cohere's rules: 108 different queries")])
def test_a_run_finds_what_check_finds_in_a_file(name, rows, found, tmp_path):
    (tmp_path / name).write_text(rows)
    with pytest.raises(DataError, match=found): run(tmp_path / name, tmp_path / "out", str(tiny_model(tmp_path / "tiny")), strict=True)
    assert found.split(":")[0] in {f["name"] for f in json.loads(typed(tmp_path / name, "--json").stdout)["findings"]}
    assert not (tmp_path / "out").exists()

@pytest.mark.slow
def test_a_files_own_negatives_are_checked_and_what_becomes_of_them_is_said(tmp_path):
    assert unused({}) == []
    assert unused({"a": ["x", "y"], "b": ["x"]}) == ["3 negatives of 2 queries are checked and not trained on: negatives are mined"]
    rows = [{"query": f"where is my {w} {i}", "pos": [f"the {w} {i} is here"], "neg": [f"the {NOUNS[i]} {i + 1} is here"]}
            for w in NOUNS for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    results = run(tmp_path / "a.jsonl", tmp_path / "out", str(tiny_model(tmp_path / "tiny")), epochs=1)
    assert "random negatives" in {f["name"] for f in results["checks"]}
    assert "negatives of 120 queries are checked and not trained on" in results["dataset"]["warnings"][-1]
