"Files of other tools: round trips, what is lost and how many, what each message says, broken rows for each reader, `convert`."
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_data import message, put
from typer.testing import CliRunner

from rag_finetune.cli import app
from rag_finetune.core import DataError, Dataset, text_key
from rag_finetune.data import (
    COHERE_TOKENS, FIRSTS, FOLDERS, HUB, LABELS, NAMES, SECONDS, SUFFIX, Source, atomic, cohere_rules, load, read_any, read_beir,
    read_categories_csv, read_cohere, read_columns, read_flag, read_hf, read_log, read_qa_csv, read_qrels, read_run, read_slides, recognise,
    write_any, write_beir, write_categories_csv, write_cohere, write_flag, write_hf, write_labelled_lists, write_labelled_pairs, write_log,
    write_pairs, write_qa_csv, write_slides, write_triplets, write_tuples,
)

slow_disk = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

def by_text(dataset: Dataset) -> dict[str, dict[str, int]]:
    "The judgements with texts in the place of ids; queries without any are left out."
    return {dataset.queries[q]: {dataset.corpus[d]: grade for d, grade in grades.items()} for q, grades in dataset.qrels.items() if grades}

def wrong_by_text(dataset: Dataset, negatives: dict[str, list[str]]) -> dict[str, set[str]]:
    return {dataset.queries[q]: {dataset.corpus[d] for d in docs} for q, docs in negatives.items() if docs}

# --- round trips

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda t: text_key(t) != "")
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=8)

def different(n: int): return st.lists(texts, min_size=1, max_size=n, unique_by=text_key)

@st.composite
def sets(draw) -> tuple[Dataset, dict[str, list[str]]]:
    "A dataset and negatives that are no positives."
    corpus, queries = ({f"{kind}{n}": t for n, t in enumerate(draw(different(6)))} for kind in "dq")
    some = st.dictionaries(st.sampled_from(list(corpus)), st.integers(-1, 3), max_size=4)
    qrels = {q: found for q in queries if (found := draw(some))}
    dataset = Dataset(corpus, queries, qrels, "set")
    negatives = {q: [d for d in draw(st.lists(st.sampled_from(list(corpus)), max_size=3, unique=True)) if d not in qrels.get(q, {})]
                 for q in queries}
    return dataset, negatives

def sides(dataset: Dataset, negatives: dict[str, list[str]]):
    "What a file of positives and negatives can hold: query -> positives, query -> negatives and those judged 0."
    right = {q: {dataset.corpus[d] for d in dataset.positives(q)} for q in dataset.queries if dataset.positives(q)}
    wrong = {q: {dataset.corpus[d] for d in [*negatives.get(q, ()), *(d for d, g in dataset.qrels[q].items() if g <= 0)]} for q in right}
    return ({dataset.queries[q]: found for q, found in right.items()}, {dataset.queries[q]: found for q, found in wrong.items() if found})

@pytest.mark.parametrize(("write", "read", "name"), [(write_flag, read_flag, "a.jsonl"), (write_cohere, read_cohere, "a.jsonl"),
                                                     (write_slides, read_slides, "a.json"), (write_slides, read_slides, "a.jsonl")])
@slow_disk
@given(found=sets())
def test_lists_of_right_and_wrong_texts_come_back(tmp_path, write, read, name, found):
    dataset, negatives = found
    assume(any(dataset.positives(q) for q in dataset.queries))
    path = tmp_path / name
    write(dataset, path, negatives)
    back, wrong, *_ = read(path)
    positives, rest = sides(dataset, negatives)
    assert by_text(back) == {q: dict.fromkeys(docs, 1) for q, docs in positives.items()}
    assert wrong_by_text(back, wrong) == rest
    again = path.with_name("again")
    write(back, again, wrong)
    assert again.read_bytes() == path.read_bytes()

@slow_disk
@given(sets(), st.data())
def test_flag_keeps_scores_prompts_and_types(tmp_path, found, data):
    dataset, negatives = found
    assume(any(dataset.positives(q) for q in dataset.queries))
    scores = {q: {d: data.draw(st.floats(-1e9, 1e9)) for d in dataset.corpus} for q in dataset.queries}
    meta = {q: {"prompt": data.draw(texts), "type": "normal"} for q in list(dataset.queries)[:2]}
    dataset = Dataset(dataset.corpus, dataset.queries, dataset.qrels, "set", meta)
    write_flag(dataset, tmp_path / "a.jsonl", negatives, scores)
    back, wrong, taught = read_flag(tmp_path / "a.jsonl")
    was, ids = {t: q for q, t in dataset.queries.items()}, {t: d for d, t in dataset.corpus.items()}
    for q, found_scores in taught.items():
        for d, score in found_scores.items(): assert score == scores[was[back.queries[q]]][ids[back.corpus[d]]]
    assert {q: set(found_scores) for q, found_scores in taught.items()} == \
        {q: {*back.positives(q), *wrong.get(q, ())} for q in back.queries}
    assert {back.queries[q]: m for q, m in back.meta.items()} == \
        {dataset.queries[q]: m for q, m in meta.items() if dataset.positives(q)}

@slow_disk
@given(sets())
def test_columns_come_back(tmp_path, found):
    dataset, negatives = found
    positives, wrong = sides(dataset, negatives)
    judged = by_text(dataset)
    for q, docs in wrong_by_text(dataset, negatives).items():
        judged[q] = dict.fromkeys(docs, 0) | judged.get(q, {})
    path = tmp_path / "a.jsonl"
    for write in (write_labelled_pairs, write_labelled_lists):
        if not judged: break
        write(dataset, path, negatives)
        back, none = read_columns(path)
        assert by_text(back) == judged and not none
    if not positives: return
    write_pairs(dataset, path)
    assert by_text(read_columns(path)[0]) == {q: dict.fromkeys(docs, 1) for q, docs in positives.items()}
    if not wrong: return
    write_triplets(dataset, path, negatives)
    back, none = read_columns(path)
    assert by_text(back) == {q: dict.fromkeys(positives[q], 1) for q in wrong} and wrong_by_text(back, none) == wrong
    write_tuples(dataset, path, negatives)
    width = len(json.loads(path.read_text(encoding="utf-8").split("\n")[0])) - 2
    back, none = read_columns(path)
    assert by_text(back) == {q: dict.fromkeys(positives[q], 1) for q in wrong if len(wrong[q]) >= width}
    for q, docs in wrong_by_text(back, none).items(): assert docs <= wrong[q] and len(docs) == width

@slow_disk
@given(sets())
def test_csv_formats_come_back(tmp_path, found):
    dataset, _ = found
    positives, _ = sides(dataset, {})
    path = tmp_path / "a.csv"
    if dataset.qrels:
        write_log(dataset, path)
        back, said = read_log(path)
        assert not said
        assert by_text(back) == {q: {d: min(max(g, 0), 2) for d, g in grades.items()} for q, grades in by_text(dataset).items()}
    if not positives: return
    write_qa_csv(dataset, path)
    assert by_text(read_qa_csv(path)) == {q: dict.fromkeys(docs, 1) for q, docs in positives.items()}

@slow_disk
@given(st.lists(st.tuples(texts, st.sampled_from(["card_arrival", "Fees", "ＡＴＭ", "lost-card"])), min_size=1, max_size=8))
def test_categories_come_back_row_by_row(tmp_path, rows):
    ids = sorted({c for _, c in rows})
    dataset = Dataset({c: c.replace("_", " ") for c in ids}, {f"q{n}": t for n, (t, _) in enumerate(rows)},
                      {f"q{n}": {c: 1} for n, (_, c) in enumerate(rows)})
    write_categories_csv(dataset, tmp_path / "a.csv")
    back = read_categories_csv({"all": tmp_path / "a.csv"})["all"]
    assert back.corpus == dataset.corpus and list(back.queries.values()) == [t for t, _ in rows]
    assert [back.positives(q) for q in back.queries] == [[c] for _, c in rows]

metadata = st.dictionaries(st.sampled_from(["city", "größe", "a.b", "_id"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
                           max_size=2)
titled = st.sampled_from([{"title": t} for t in ("", " ", "0", "a", "a ")])   # may be what a text begins with

@pytest.mark.parametrize(("write", "read"), [(write_hf, read_hf), (write_beir, read_beir)])
@settings(slow_disk, max_examples=25)
@given(parts=st.lists(sets(), min_size=1, max_size=3), data=st.data())
def test_folders_keep_ids_texts_grades_splits_and_metadata(tmp_path, write, read, parts, data):
    corpus = parts[0][0].corpus
    about = {d: m for d in corpus if (m := data.draw(metadata | titled))}
    splits, used = {}, set()
    for name, (dataset, _) in zip(("train", "dev", "test"), parts):
        ids = {q: data.draw(st.sampled_from([f"d{n}", f"{name}-{data.draw(names)}-{n}"])) for n, q in enumerate(dataset.qrels, len(used))}
        used |= set(ids.values())
        qrels = {ids[q]: {d: g for d, g in grades.items() if d in corpus} or {"d0": 1} for q, grades in dataset.qrels.items()}
        meta = {i: m for i in ids.values() if (m := data.draw(metadata))} if name != "dev" else {}
        if qrels: splits[name] = Dataset(corpus, {ids[q]: dataset.queries[q] for q in ids}, qrels, "set", meta, about)
    assume(splits)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    write(splits, folder)
    back = read(folder)
    assert {s: d.fingerprint for s, d in back.items()} == {s: d.fingerprint for s, d in splits.items()} and list(back) == list(splits)
    assert [d.meta for d in back.values()] == [d.meta for d in splits.values()]
    assert all(d.document_meta == about for d in back.values())

# --- oracles: the libraries whose formats these are

def example() -> tuple[Dataset, dict[str, list[str]]]:
    "Two questions; the second has two good answers, one of them better, and one that was judged wrong."
    corpus = {"block": "Block the card in the app.", "call": "Call us.", "order": "Order a new card.", "fee": "A transfer costs 1 EUR.",
              "never": "Nobody asks for this."}
    qrels = {"q1": {"fee": 1}, "q2": {"block": 2, "call": 1, "fee": 0}}
    return Dataset(corpus, {"q1": "what does it cost?", "q2": "lost card?"}, qrels, "ex"), {"q1": ["order"], "q2": ["order"]}

def test_the_trainer_of_sentence_transformers_sees_the_columns_as_we_do(tmp_path):
    import datasets
    from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    assert LABELS == DEFAULT_LABEL_COLUMNS
    dataset, negatives = example()
    path = tmp_path / "rows.jsonl"

    def collated(rows):
        seen = []
        def note(texts, **_):
            seen.append(texts)
            return {}
        labels = SentenceTransformerDataCollator(preprocess_fn=note)(rows).get("label")
        return seen, None if labels is None else labels.tolist()

    def theirs(): return list(datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")))

    write_triplets(dataset, path, negatives)
    (anchors, positives, wrong), label = collated(theirs())
    back, none = read_columns(path)
    assert label is None and set(zip(anchors, positives)) == {(q, d) for q, grades in by_text(back).items() for d in grades}
    assert set(zip(anchors, wrong)) == {(q, d) for q, docs in wrong_by_text(back, none).items() for d in docs}
    write_labelled_pairs(dataset, path, negatives)
    (asked, documents), label = collated(theirs())
    assert Counter(zip(asked, documents, label)) == Counter((q, d, g) for q, grades in by_text(read_columns(path)[0]).items()
                                                            for d, g in grades.items())
    # the label is found by its name wherever it stands, and where there are two names by the first of `LABELS`
    for row in ({"label": 1, "b": "lost card?", "a": "Call us."}, {"b": "lost card?", "score": 1, "a": "Call us."}):
        put(path, json.dumps(row))
        assert collated([row]) == ([["lost card?"], ["Call us."]], [1])
        assert by_text(read_columns(path)[0]) == {"lost card?": {"Call us.": 1}}

def test_column_names_are_those_of_mine_hard_negatives(tmp_path):
    "Its docstring: (anchor, positive, negative), negative_1 ... negative_n; (anchor, document, label); (anchor, [documents], [labels])."
    dataset, negatives = example()
    def columns(write, *more):
        write(dataset, tmp_path / "a.jsonl", *more)
        return list(json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1]))
    assert columns(write_pairs) == ["anchor", "positive"]
    assert columns(write_triplets, negatives) == ["anchor", "positive", "negative"]
    assert columns(write_tuples, negatives) == ["anchor", "positive", "negative_1"]
    assert columns(write_tuples, {"q1": ["order", "call"], "q2": ["order"]}) == ["anchor", "positive", "negative_1", "negative_2"]
    assert columns(write_labelled_pairs) == ["query", "document", "label"]
    assert columns(write_labelled_lists) == ["query", "documents", "labels"]

def test_datasets_reads_the_configs_that_we_write_and_we_what_it_saves(tmp_path):
    import datasets

    dataset, _ = example()
    write_hf({"train": dataset}, tmp_path / "hf")
    cache = str(tmp_path / "cache")
    tables = {c: datasets.load_dataset(str(tmp_path / "hf"), c, cache_dir=cache) for c in ("corpus", "queries", "qrels")}
    assert tables["corpus"]["corpus"].to_list() == [{"_id": i, "text": t} for i, t in dataset.corpus.items()]
    assert tables["qrels"]["train"].to_list()[-1] == {"query-id": "q2", "corpus-id": "fee", "score": 0}
    for name, table in tables.items(): table.save_to_disk(str(tmp_path / "saved" / {"qrels": "default"}.get(name, name)))
    assert read_hf(tmp_path / "saved")["train"].fingerprint == dataset.fingerprint == load(tmp_path / "saved")["train"].fingerprint
    rows = datasets.Dataset.from_list([{"anchor": "lost card?", "positive": "Call us.", "negative": "Order a new card."}])
    rows.save_to_disk(str(tmp_path / "rows"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    for path in (tmp_path / "rows", tmp_path / "rows.parquet"):
        assert recognise(path) == "columns" and by_text(read_columns(path)[0]) == {"lost card?": {"Call us.": 1}}

def test_the_hubs_usual_layouts_are_read(tmp_path):
    "As mteb lays its sets out: JSON Lines beside each other, shards, whole numbers as ids, validation for dev, a float as grade."
    import pyarrow as pa
    from pyarrow.parquet import write_table

    put(tmp_path / "a/corpus.jsonl", '{"_id": 1, "title": "Fees", "text": "1 EUR"}\n')
    put(tmp_path / "a/queries.jsonl", '{"_id": "q1", "text": "cost?"}\n{"_id": "q2", "text": "nobody judged this"}\n')
    put(tmp_path / "a/qrels/validation.jsonl", '{"query-id": "q1", "corpus-id": 1, "score": 2.0}\n')
    found = load(tmp_path / "a")
    assert list(found) == ["dev"] and by_text(found["dev"]) == {"cost?": {"Fees 1 EUR": 2}}
    for name, columns in {"corpus/test-00000-of-00002": {"id": ["d1"], "title": [""], "text": ["one"]},
                          "corpus/test-00001-of-00002": {"id": ["d2"], "title": [None], "text": ["two"]},
                          "queries/test-00000-of-00001": {"id": ["q1"], "text": ["eins?"]},
                          "default/test-00000-of-00001": {"query-id": ["q1"], "corpus-id": ["d2"], "score": [1]}}.items():
        path = tmp_path / "b" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(pa.table(columns), path)
    found = load(tmp_path / "b")
    assert list(found["test"].corpus) == ["d1", "d2"] and by_text(found["test"]) == {"eins?": {"two": 1}}

def test_a_hub_that_cannot_be_reached_is_an_error_in_one_line():
    said = message(load, f"{HUB}mteb/scifact")
    assert said.startswith(f"{HUB}mteb/scifact: the hub cannot be reached, or has no such dataset (")
    assert said.endswith("where there is a network save it with save_to_disk, and give the folder")

def test_code_that_comes_with_a_dataset_is_not_run(tmp_path):
    write_hf({"train": example()[0]}, tmp_path / "hf")
    ran = tmp_path / "ran"
    for name in ("hf.py", "corpus/corpus.py", "qrels/__init__.py", "sitecustomize.py"):
        put(tmp_path / "hf" / name, f"open({str(ran)!r}, 'w')\nimport datasets\nclass D(datasets.GeneratorBasedBuilder): pass\n")
    assert len(load(tmp_path / "hf")["train"].queries) == 2 and not ran.exists()

def test_reading_data_loads_datasets_only_where_it_is_needed(tmp_path):
    write_flag(example()[0], tmp_path / "a.jsonl")
    heavy = "print(*(m in sys.modules for m in ('datasets', 'pyarrow')))"
    code = f"import sys, rag_finetune.data as d; d.load({str(tmp_path / 'a.jsonl')!r}); {heavy}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"

# --- what is lost, and how many

def test_each_lossy_conversion_says_what_and_how_many(tmp_path):
    dataset, negatives = example()
    dataset.meta["q1"], dataset.document_meta["fee"] = {"city": "Oslo"}, {"title": "A transfer", "page": "7"}
    dataset.document_meta["call"] = {"title": "Call us."}
    path = tmp_path / "a"
    def lost(write, *more): return write(dataset, path, *more)
    two, four = "2 query ids are not kept: the format has none", "4 document ids are not kept: the format has none"
    unused = "1 document is left out: no row needs it"
    meta = ["1 query loses metadata", "2 titles are joined to their texts", "1 document loses metadata"]
    grade, zero = "1 grade above 1 becomes relevant", "1 judgement of 0 or less becomes a negative"
    assert lost(write_flag, negatives) == lost(write_slides, negatives) == [two, four, unused, *meta, grade, zero]
    assert lost(write_flag, negatives, {"q1": {"fee": .5}})[-1] == "1 score is left out: every passage needs one where one has"
    assert lost(write_cohere, negatives) == [
        two, four, unused, *meta, grade, zero, "2 different queries with a relevant passage; Cohere wants at least 256"]
    assert lost(write_pairs) == [two, "3 document ids are not kept: the format has none", "2 documents are left out: no row needs them",
                                 *meta, grade, "1 judgement of 0 or less is left out"]
    assert lost(write_triplets, negatives) == [two, four, unused, *meta, grade, zero]
    assert lost(write_tuples, negatives) == [
        two, four, unused, *meta, "1 negative is left out: 1 in each row", grade, zero]
    assert lost(write_labelled_pairs, negatives) == lost(write_labelled_lists, negatives) == [
        two, four, unused, *meta, "2 negatives get the label 0, as if somebody had judged them",
        "1 label is neither 0 nor 1; binary losses do not take it"]
    assert lost(write_log)[:1] == [two] and "grade" not in " ".join(lost(write_log))
    assert lost(write_categories_csv)[-3:] == [grade, "1 judgement of 0 or less is left out",
                                               "1 further positive of a query becomes a query of its own"]

def test_twins_and_queries_without_an_answer_are_counted(tmp_path):
    corpus = {"a": "Call us.", "b": "call  US.", "c": "Wait."}
    dataset = Dataset(corpus, {"q1": "lost?", "q2": "LOST?", "q3": "nobody knows"}, {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"a": 0}})
    lost = write_flag(dataset, tmp_path / "a.jsonl", {"q1": ["b", "c"]})
    assert "1 query is left out: the format has no row for it" in lost
    assert "1 query has the text of another but for case and white space, and will be read as one with it" in lost
    assert "1 document has the text of another but for case and white space, and will be read as one with it" in lost
    assert "1 negative is left out: it has the text of a positive" in lost
    back, _, _ = read_flag(tmp_path / "a.jsonl")
    assert by_text(back) == {"lost?": {"Call us.": 1}}

TWINS = Dataset({"a": "A doc", "b": "B doc"}, {"q1": "lost card?", "q2": "Lost card?"}, {"q1": {"a": 1, "b": 0}, "q2": {"b": 1}}, "x")

@pytest.mark.parametrize(("form", "says"), [
    *((form, "1 grade rises to that of an equal query and document, with which it will be read as one")
      for form in ("labelled-pairs", "labelled-lists", "log")),
    *((form, "1 negative is left out: it has the text of a positive") for form in ("flag", "slides", "cohere"))])
def test_judgements_of_equal_texts_that_differ_are_counted_and_read_back(tmp_path, caplog, form, says):
    assert says in write_any(Source("beir", {"all": TWINS}, {"q1": ["b"]}, {}, []), tmp_path / form, form)
    back = read_any(tmp_path / form)
    assert by_text(back.splits["all"]) == {"lost card?": {"A doc": 1, "B doc": 1}} and not back.negatives and not back.said
    assert not caplog.text

@slow_disk
@given(st.data())
def test_whatever_texts_are_equal_what_is_written_is_read_back_with_the_highest_grade(tmp_path, data):
    def some(*texts): return {f"i{n}": t for n, t in enumerate(data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=4)))}
    corpus, queries = some("a", "A ", "b", "B"), some("x", " X", "y")
    judged = st.dictionaries(st.sampled_from(sorted(corpus)), st.integers(-1, 3), min_size=1)
    whole = Dataset(corpus, queries, {q: data.draw(judged) for q in queries}, "set")
    negatives = {q: data.draw(st.lists(st.sampled_from(sorted(corpus)), unique=True)) for q in queries}
    best = {}
    for q, grades in whole.qrels.items():
        for d, grade in (dict.fromkeys(negatives[q], 0) | grades).items():
            mine = best.setdefault(text_key(queries[q]), {})
            mine[text_key(corpus[d])] = max(grade, mine.get(text_key(corpus[d]), -1))
    for form in SUFFIX:
        path = Path(tempfile.mkdtemp(dir=tmp_path)) / "file"
        try: write_any(Source("beir", {"all": whole}, negatives, {}, []), path, form)
        except DataError as e:
            assert "nothing to write" in str(e)
            continue
        if form == "trec": continue
        found = read_any(path).splits["all"]
        if form.startswith("labelled"):
            assert {text_key(q): {text_key(d): g for d, g in grades.items()} for q, grades in by_text(found).items()} == best

def test_a_negative_that_is_positive_in_another_row_is_left_out_with_a_warning(tmp_path, caplog):
    rows = '{"anchor": "x", "positive": "a", "negative": "b"}\n{"anchor": "X", "positive": "B", "negative": "c"}\n'
    path = put(tmp_path / "a.jsonl", rows)
    back, wrong = read_columns(path)
    assert by_text(back) == {"x": {"a": 1, "b": 1}} and wrong_by_text(back, wrong) == {"x": {"c"}}
    assert "1 query has negatives that are its positives in another row; they are left out, e.g. of 'x'" in caplog.text

def test_no_row_is_an_error_and_writes_nothing(tmp_path):
    dataset, _ = example()
    nothing = Dataset(dataset.corpus, dataset.queries, {}, "ex")
    for write in (write_flag, write_cohere, write_slides, write_pairs, write_labelled_pairs, write_labelled_lists, write_log, write_qa_csv,
                  write_categories_csv):
        assert message(write, nothing, tmp_path / "a").startswith(f"{tmp_path / 'a'}: nothing to write, no query has what a row needs")
    for write in (write_triplets, write_tuples): assert "mine negatives first" in message(write, nothing, tmp_path / "a", {})
    assert list(tmp_path.iterdir()) == []

def test_cohere_rules():
    def rules(n, tokens=None, **change):
        corpus = {"d": "a passage", "long": "word " * 600, "wrong": "another"} | change.get("corpus", {})
        dataset = Dataset(corpus, {f"q{i}": f"question {i}" for i in range(n)}, {f"q{i}": {change.get("doc", "d"): 1} for i in range(n)})
        if "silent" in change: dataset.queries["silent"] = "nobody answered"
        return cohere_rules(dataset, {"q0": [change.get("negative", "wrong")]}, *([tokens] if tokens else []))
    assert rules(256) == [] and rules(255) == ["255 different queries with a relevant passage; Cohere wants at least 256"]
    assert rules(256, silent=1) == ["1 query has no relevant passage; Cohere wants one for each"]
    both = "1 query has a passage that is relevant and a hard negative; Cohere refuses the file"
    assert rules(256, negative="twin", corpus={"twin": "a passage"}) == [both]
    def long(n): return (f"{n} of 257 pairs of query and passage {'is' if n == 1 else 'are'} longer than {COHERE_TOKENS} tokens; "
                         "the rest of such a passage is not read")
    assert rules(256, negative="long") == [long(1)] and rules(256, doc="long") == [long(256)]
    assert rules(256, tokens=len) == [] == rules(256, tokens=lambda t: 255)
    assert rules(256, tokens=lambda t: 256) == [long(257)]

# --- logs

def test_a_cited_passage_outweighs_a_relevant_one_and_contradictions_are_listed(tmp_path):
    rows = "1,a,x,1,0\n2,A,y,yes,TRUE\n3,a,x,0,\n4,b,x,,\n5,b,y,0,1\n6,b,z,0,0\n"
    path = put(tmp_path / "log.csv", f"when,Query,passage,is_relevant,is_cited\n{rows}")
    dataset, said = read_log(path)
    assert by_text(dataset) == {"a": {"x": 1, "y": 2}, "b": {"y": 2, "z": 0}}
    assert said == [f"query 'a', passage 'x': is_relevant at {path}:2, not is_relevant at {path}:4",
                    f"query 'b', passage 'y': is_cited at {path}:6, not is_relevant at {path}:6"]
    assert read_any(path).said == said

def test_what_nobody_judged_stays_unjudged(tmp_path):
    dataset, _ = read_log(put(tmp_path / "log.jsonl", '{"query": "a", "passage": "x", "is_relevant": null}\n'
                                                      '{"query": "a", "passage": "y", "is_relevant": 1.0}\n'))
    assert by_text(dataset) == {"a": {"y": 1}} and len(dataset.corpus) == 2

def test_what_else_a_row_says_is_metadata_of_its_query(tmp_path, caplog):
    log, _ = read_log(put(tmp_path / "log.csv", "query,passage,is_cited,User\na,x,1,ann\nA,y,0,bob\nb,x,0,\n"))
    assert log.meta == {"log-0": {"User": "ann"}}
    assert f"{tmp_path}/log.csv: 1 row repeats a query with other metadata; the first row's is kept" in caplog.text
    for form, read in (("flag", read_flag), ("cohere", read_cohere), ("slides", read_slides)):
        row = json.loads(ROW[form]) | {"customer": 7, "tags": ["left out"], "note": None}
        assert read(put(tmp_path / "a.jsonl", json.dumps(row)))[0].meta == {"a-0": {"customer": "7"}}

def test_a_log_of_citations_alone(tmp_path):
    dataset, said = read_log(put(tmp_path / "log.csv", "query,passage,is_cited\na,x,1\na,x,0\na,y,0\n"))
    assert by_text(dataset) == {"a": {"x": 2, "y": 0}} and len(said) == 1

def test_names_of_columns_are_found_whatever_their_case():
    assert {*LABELS, *FIRSTS, *SECONDS, "text", "category", "is_relevant", "is_cited"} <= NAMES and all(n.islower() for n in NAMES)

# --- what a message says

ROW = {"flag": '{"query": "q", "pos": ["a"], "neg": ["b"]}',
       "cohere": '{"query": "q", "relevant_passages": ["a"], "hard_negatives": ["b"]}',
       "slides": '{"anchor": "q", "pos": ["a"], "neg": ["b"]}', "columns": '{"anchor": "q", "positive": "a", "negative": "b"}',
       "log": '{"query": "q", "passage": "a", "is_relevant": 1}'}
READ = {"flag": read_flag, "cohere": read_cohere, "slides": read_slides, "columns": read_columns, "log": read_log}

@pytest.mark.parametrize(("form", "row", "says"), [
    ("flag", '{"query": "q"}',
     'no "pos" in {"query": "q"}; every row is one object such as {"query": "...", "pos": ["..."], "neg": ["..."]}'),
    ("flag", '{"query": "q", "pos": "a"}', '"pos" is a, which is not a list; put the texts in square brackets'),
    ("flag", '{"query": "q", "pos": []}', '"pos" is empty; give at least one text or leave the row out'),
    ("flag", '{"query": "q", "pos": ["a", 7]}', '"pos[1]" is 7, which is not a text; put it in double quotes'),
    ("flag", '{"query": "q", "pos": ["a"], "neg": ["x", "A"]}', '"A" is in "pos" and in "neg"; take it out of one of them'),
    ("flag", '{"query": "q", "pos": ["a"], "pos_scores": [1, 2]}',
     '"pos_scores" is [1, 2]; wanted a list of 1 numbers, one for each text of "pos"'),
    ("flag", '{"query": "q", "pos": ["a"], "pos_scores": [NaN]}',
     '"pos_scores" has NaN, which is no finite number; write one such as 0.83'),
    ("flag", '{"query": "q", "pos": ["a"], "pos_scores": [1]}\n{"query": "q", "pos": ["a"], "pos_scores": [2]}',
     "'a' has score 2.0, and 1.0 before, for one query; keep one"),
    ("cohere", '{"query": "q", "relevant_passages": ["a", " "]}', '"relevant_passages[1]" is empty; give it a text or leave the row out'),
    ("slides", '{"anchor": 7, "pos": ["a"]}', '"anchor" is 7, which is not a text; put it in double quotes'),
    ("slides", '["a"]', "not an object but"), ("slides", '{"anchor": "q", "pos": ["a"]', "not JSON (Expecting ',' delimiter"),
    ("columns", '{"anchor": "q", "positive": "a"}', "columns anchor, positive; the first row has anchor, positive, negative"),
    ("columns", '{"anchor": "q", "positive": "a", "negative": "A"}', '"a" is in "positive" and in "negative"; leave the row out'),
    ("log", '{"query": "q", "passage": "a", "is_relevant": "maybe"}',
     '"is_relevant" is maybe; write 1 or 0, true or false, yes or no, or nothing where nobody said'),
    ("log", '{"query": "q", "passage": "a"}', "columns found: query, passage; wanted: query, passage and is_relevant or is_cited"),
])
def test_an_error_names_file_and_line_and_what_came(tmp_path, form, row, says):
    path = put(tmp_path / "a.jsonl", f"{ROW[form]}\n\n{row}\n")
    line = 3 + row.count("\n")
    assert message(READ[form], path).startswith(f"{path}:{line}: {says}")

@pytest.mark.parametrize(("row", "says"), [
    ('{"query_id": 1, "query": "q", "positive": "a"}', 'column "query_id" would be trained on as text; take it out'),
    ('{"query": "q", "document": "a", "label": 1, "score": 2}', 'column "score" would be trained on as text; take it out'),
    ('{"query": "q", "document": "a", "label": 0.5}', '"label" has 0.5, which is no whole number; write 1 for relevant, 0 for not'),
    ('{"sentence1": "q", "sentence2": "a", "score": 0.8}', '"score" has 0.8, which is no whole number; write 1 for relevant, 0 for not, '
     'or steps such as 0 to 5 (0.8 of 1 is 4)'),
    ('{"query": "q", "documents": ["a", "b"], "labels": [1]}', '2 "documents" with the labels [1]; give a list with a label for each'),
    ('{"query": "q", "documents": ["a"]}', '1 "documents" with the labels null; give a list with a label for each'),
    ('{"query": "q", "label": 1}', "columns found: query, label; wanted: columns in the order anchor, positive, negatives"),
    ('{"a": "q", "b": "d", "c": "e", "label": 1}', "columns found: a, b, c, label; wanted: columns in the order"),
])
def test_columns_that_a_trainer_would_misread(tmp_path, row, says):
    path = put(tmp_path / "a.jsonl", row)
    assert message(read_columns, path).startswith(f"{path}:1: {says}")

def test_two_labels_for_one_pair_are_an_error(tmp_path):
    path = put(tmp_path / "a.csv", "query,document,label\nlost?,Call us.,1\nLOST?,Call  us.,0\n")
    said = "query 'lost?' and 'Call us.' have label 0, and 1 in an earlier row; keep one of the two"
    assert message(read_columns, path) == f"{path}:3: {said}"

def test_lines_are_counted_in_an_array_too(tmp_path):
    path = tmp_path / "a.json"
    sound = json.dumps([json.loads(ROW["slides"])] * 2, indent=1)
    assert by_text(read_slides(put(path, "\ufeff\n" + sound.replace("\n", "\r\n") + "\n"))[0]) == {"q": {"a": 1}}
    def refused(text): return message(read_slides, put(path, text)).removeprefix(f"{path}:")
    assert refused('[\n{"anchor": "q", "pos": ["a"]},\n\n{"anchor": "q"}]').startswith('4: no "pos" in')
    assert refused('[\n{"anchor": "q", "pos": ["a"]}\n\n{"anchor": "q"}]').startswith("4: a comma or the end of the array is missing")
    assert refused('[\n{"anchor": "q", "pos": ["a"]},\n]').startswith("3: not JSON (Expecting value")
    assert refused('[\n{"anchor": "q", "pos": ["a"]}\n] x').startswith("3: more text after the array's end: 'x'")
    assert refused('[\n{"anchor": "q", "pos": ["a"]},\n{"anchor": "q", \n"pos": ["a"}]').startswith("4: not JSON (Expecting ',' delimiter")
    assert refused("[\n\n") == f"3: not JSON (Expecting value at column 1) in ; {refused('[7]').partition('; ')[2]}"

# --- what something is

def test_each_format_is_recognised_by_its_content_whatever_it_is_called(tmp_path):
    dataset, negatives = example()
    source = read_any(put(tmp_path / "flag.jsonl", ROW["flag"]))._replace(splits={"all": dataset}, negatives=negatives)
    for form in (*FOLDERS, *SUFFIX):
        write_any(source, tmp_path / form, form)
        if form == "trec": continue
        expected = form if form in (*FOLDERS, *READ, "qa-csv", "categories-csv") else "columns"
        assert recognise(tmp_path / form) == expected
        if form not in FOLDERS:
            renamed = put(tmp_path / "renamed.txt", (tmp_path / form).read_bytes())
            assert recognise(renamed) == expected and len(load(renamed)["all"].queries) >= 2

def test_what_was_found_is_named_where_it_is_no_format(tmp_path):
    def found(content, name="a"): return message(load, put(tmp_path / name, content)).removeprefix(f"{tmp_path / name}")
    assert found('{"a": 1, "b": 2}').startswith(':1: columns found: a, b; wanted: "query", "pos", "neg"; ')
    assert found('{"_id": "d", "text": "x"}') == ":1: a corpus or queries by themselves; give the folder that they are in"
    assert found("q1 0 d1 1\n").startswith(": found a TREC file of judgements (`read_qrels`), which has ids and no texts")
    assert found("q1 Q0 d1 1 .5 mine\n").startswith(": found a TREC run (`read_run`, rag-finetune compare), which has ids and no texts")
    assert found("query-id\tcorpus-id\tscore\nq\td\t1\n").startswith(": found BEIR judgements, which has ids and no texts")
    assert found("a;b\n1;2\n").startswith(":1: columns found: a;b; wanted: text, category or Question, Answer")
    assert found("[]").startswith(": no row; ")
    assert found(b"PAR1 and no more").startswith(": cannot be read as Parquet (")

def test_train_dev_and_test_in_one_folder_share_their_documents(tmp_path):
    for name, wrong in (("train", "b"), ("test", "c")):
        put(tmp_path / f"{name}.jsonl", ROW["flag"].replace('"q"', f'"{name}?"').replace('"b"', f'"{wrong}"'))
    source = read_any(tmp_path)
    assert source.form == "flag" and list(source.splits) == ["train", "test"]
    train, test = source.splits.values()
    assert train.corpus is test.corpus and sorted(train.corpus.values()) == ["a", "b", "c"]
    assert train.positives("train-0") == test.positives("test-0")
    assert [[train.corpus[d] for d in docs] for docs in source.negatives.values()] == [["b"], ["c"]]
    write_any(source, tmp_path / "back", "slides")
    again = read_any(tmp_path / "back")
    assert {s: by_text(d) for s, d in again.splits.items()} == {s: by_text(d) for s, d in source.splits.items()}

def test_questions_and_answers_in_train_dev_and_test_share_their_answers(tmp_path):
    put(tmp_path / "faq/train.csv", "Question,Answer,city\na,Call us.,Oslo\nA,Wait.,\n")
    put(tmp_path / "faq/validation.csv", "Question,Answer\nb,call  US.\nc,Other.\n")
    splits = load(tmp_path / "faq")
    assert {s: by_text(d) for s, d in splits.items()} == {
        "train": {"a": {"Call us.": 1, "Wait.": 1}}, "dev": {"b": {"Call us.": 1}, "c": {"Other.": 1}}}
    assert splits["train"].corpus is splits["dev"].corpus and splits["train"].meta == {"train-0": {"city": "Oslo"}}
    assert all(d.name == "faq" for d in splits.values())

@pytest.mark.parametrize("files", [("train.csv", "train.jsonl"), ("dev.csv", "validation.csv")])
def test_two_files_for_one_split_are_an_error(tmp_path, files):
    for name in files: put(tmp_path / name, "text,category\na,b\n")
    s = "train" if "train.csv" in files else "dev"
    assert message(load, tmp_path) == f"{tmp_path}: {files[0]} and {files[1]} are both {s}; keep one of the two"

def test_two_tables_for_one_split_are_an_error(tmp_path):
    for part, row in HF.items(): put(tmp_path / part, row)
    for name in ("dev", "validation"): (tmp_path / f"qrels/{name}.jsonl").write_bytes(HF["qrels/test.jsonl"])
    assert message(load, tmp_path) == f"{tmp_path}: dev and validation are both dev; keep one of the two"

def three() -> dict[str, Dataset]:
    dataset, _ = example()
    qrels = {"train": {"q1": {"fee": 1}}, "dev": {"q2": {"fee": 0, "block": 1}}, "test": {"q3": {"fee": 1}}}
    texts = dataset.queries | {"q3": "what does it charge?"}
    return {s: Dataset(dataset.corpus, {q: texts[q] for q in judged}, judged, "ex") for s, judged in qrels.items()}

@pytest.mark.parametrize("form", [*FOLDERS, *(f for f in SUFFIX if f != "trec")])
def test_each_format_of_several_splits_is_read_back(tmp_path, form):
    splits = three()
    wrong = {"q1": ["order"], "q2": ["order"], "q3": ["order"]}
    write_any(Source("beir", splits, wrong, {}, []), tmp_path / "out.v2", form)   # a name with a dot is no file
    back = load(tmp_path / "out.v2")
    assert list(back) == list(splits) and len({id(d.corpus) for d in back.values()}) == 1
    for s, d in splits.items():
        assert {back[s].queries[q]: {back[s].corpus[x] for x in back[s].positives(q)} for q in back[s].queries} == \
            {d.queries[q]: {d.corpus[x] for x in d.positives(q)} for q in d.queries}

@pytest.mark.parametrize(("form", "file"), [("beir", "queries.jsonl"), ("hf", "queries")])
def test_queries_without_a_judgement_are_counted_where_a_folder_is_written(tmp_path, form, file):
    rows = put(tmp_path / "a.jsonl", '{"query": "a", "documents": ["x"], "labels": [1]}\n{"query": "b", "documents": [], "labels": []}\n')
    alone, silent = write_any(read_any(rows), tmp_path / "b", form)
    assert alone.startswith("the source has no splits") and silent == (
        f"train: 1 query has no judgement: it is in {tmp_path}/b/{file} and in no split")
    assert len(load(tmp_path / "b")["train"].queries) == 1

# --- convert

def convert(*arguments):
    found = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert "Traceback" not in found.output and (found.exception is None or isinstance(found.exception, SystemExit))
    return found

def test_convert_says_what_it_read_wrote_and_lost(tmp_path):
    write_beir({"train": example()[0]}, tmp_path / "a")
    found = convert(tmp_path / "a", tmp_path / "b.jsonl", "--to", "flag")
    assert found.exit_code == 0 and found.stdout.splitlines() == [
        f"Read: {tmp_path / 'a'} (beir): 2 train; 5 documents", f"Written: {tmp_path / 'b.jsonl'} (flag)",
        "   2 query ids are not kept: the format has none", "   3 document ids are not kept: the format has none",
        "   2 documents are left out: no row needs them", "   1 grade above 1 becomes relevant",
        "   1 judgement of 0 or less becomes a negative"]
    found = convert(tmp_path / "b.jsonl", tmp_path / "c")
    assert "1 negative is left out: the format has judgements only" in found.stdout
    assert "all of it is written as train" in found.stdout and list(load(tmp_path / "c")) == ["train"]
    assert by_text(load(tmp_path / "c")["train"]) == by_text(read_flag(tmp_path / "b.jsonl")[0])

def test_convert_lists_contradictions(tmp_path):
    rows = "".join(f"q,p{n},{yes}\n" for n in range(12) for yes in (0, 1))
    found = convert(put(tmp_path / "log.csv", f"query,passage,is_relevant\n{rows}"), tmp_path / "b")
    assert found.stdout.count("   contradiction: query 'q'") == 10 and "... and 2 more" in found.stdout

def test_convert_into_the_folder_where_one_stands(tmp_path, monkeypatch):
    write_beir({"train": example()[0]}, tmp_path / "a")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = convert(tmp_path / "a", ".")
    assert found.exit_code == 0 and sorted(p.name for p in Path.cwd().iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]
    assert "is there already; give a new name" in convert(tmp_path / "a", ".").stderr
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("a", "here")] == []

def test_a_folder_is_no_place_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (".", tmp_path):
        with pytest.raises(DataError, match="is a folder; give the name of a file"), atomic(path): pass
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize(("arguments", "says"), [
    (["nope", "b"], "nope: no such file or folder"), (["a", "b", "--to", "word"], "no format 'word'; wanted one of beir, hf, pairs"),
    (["a", "a"], "is there already; give a new name"),
    (["two", "b.jsonl", "--to", "flag"], "there are 2 splits (train, test); give a folder"),
    (["a", "b", "--to", "triplets"], "error: b/train.jsonl: nothing to write, no query has what a row needs"),
    (["a", "b", "--from", "word"], "word is no format that one file can have"),
])
def test_convert_refuses_in_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    dataset, _ = example()
    plain = Dataset(dataset.corpus, dataset.queries, {"q1": {"fee": 1}, "q2": {"call": 1}}, "ex")
    write_beir({"train": plain}, "a")
    parts = [Dataset(plain.corpus, {q: plain.queries[q]}, {q: plain.qrels[q]}, "ex") for q in ("q1", "q2")]
    write_beir(dict(zip(("train", "test"), parts)), "two")
    before = sorted(p.as_posix() for p in tmp_path.rglob("*"))
    found = convert(*arguments)
    assert found.exit_code == 2 and len(found.stderr.strip().splitlines()) == 1 and says in found.stderr
    assert sorted(p.as_posix() for p in tmp_path.rglob("*")) == before

# --- broken rows for each reader: accepted, or refused in one line with file and line

FILES_ONLY = ("the file is empty", "no row", "a header and no", "cannot be read as")   # what concerns a file has no line
NASTY = [b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"\t", b"\n", b"\r", b"\r\n", b"\x00", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80",
         b"\\ud800", b"\\u0000", b"\\", b"null", b"true", b"-1", b"1e999", b"NaN", b"7" * 5000, b"0.5", b'""', b"[]", b"{}", b'" "',
         b"\xe2\x80\xa8",
         b"[" * 3000, b'{"a":' * 3000, "\u202e\U0001f4a9".encode(), b"\x1c", b"\x0b", b"\xc2\x85", b"_id", b"query", b"label"]
VALUES = [b"null", b"7", b"-1.5", b"true", b'"\\ud83d"', b'""', b"[]", b"{}", b'["a", 7]', b'[["a"]]', b"[null]", b'{"a": {"b": []}}',
          b"1e400",
          b'"' + b"x" * 70_000 + b'"', b'" \\t"', b"[1, 2]", b'"a"', b'["a"]', b'"no"', b"2"]

def mutated(rng: random.Random, row: bytes) -> bytes:
    "A row with one to three things wrong, or right after all."
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind, at = rng.randrange(8), rng.randrange(len(row) + 1)
        if kind == 0: row = rng.randbytes(rng.randrange(1, 60))
        elif kind == 1: row = row[:at]
        elif kind == 2: row = row[:at] + rng.choice(NASTY) + row[at:]
        elif kind == 3: row = row[:at] + rng.randbytes(1) + row[at + 1:]
        elif kind == 4 and (found := list(re.finditer(rb'(?<=: )("[^"]*"|\[[^\]]*\]|[0-9.]+)', row))):
            place = rng.choice(found)
            row = row[:place.start()] + rng.choice(VALUES) + row[place.end():]
        elif kind == 5 and (cells := re.split(rb"([,\t ])", row)):
            cells[rng.randrange(len(cells))] = rng.choice((*NASTY, b"", b"1", b"x"))
            row = b"".join(cells)
        elif kind == 6: row = rng.choice((b"\xef\xbb\xbf", b" ", b"\n\n")) + row + rng.choice((b"\r", b" ", b"\x00"))
        elif kind == 7 and rng.random() < .02: row = row[:at] + b"y" * 1_000_001 + row[at:]
    return row

BEIR = {"corpus.jsonl": b'{"_id": "d1", "title": "one", "text": "eins", "metadata": {"city": "Oslo"}}',
        "queries.jsonl": b'{"_id": "q1", "text": "one?"}', "qrels/test.tsv": b"q1\td1\t1"}
HF = BEIR | {"qrels/test.jsonl": b'{"query-id": "q1", "corpus-id": "d1", "score": 1}'}
del HF["qrels/test.tsv"]
ROWS = {name: {"file": row.encode()} for name, row in ROW.items()} | {
    "flag with scores": {
        "file": b'{"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [0.5], "neg_scores": [1, 2], "prompt": "p"}'},
    "labelled pair": {"file": b'{"query": "q", "document": "a", "label": 1}'},
    "labelled list": {"file": b'{"query": "q", "documents": ["a", "b"], "labels": [1, 0]}'},
    "pairs in CSV": {"file": b"lost card?,Call us."}, "log in CSV": {"file": b"lost card?,Call us.,1,0"},
    "slides in an array": {"file": b'{"anchor": "q", "pos": ["a"], "neg": ["b"]}'},
    "categories-csv": {"file": b'"lost, or stolen?",card_arrival'}, "qa-csv": {"file": b"What is flu?,A virus."},
    "qrels": {"file": b"q1 0 d1 1"}, "run": {"file": b"q1 Q0 d1 1 0.5 mine"}, "beir": BEIR, "hf": HF}
HEADERS = {"pairs in CSV": b"anchor,positive", "log in CSV": b"query,passage,is_relevant,is_cited", "categories-csv": b"text,category",
           "qa-csv": b"Question,Answer"}
READERS = READ | {"flag with scores": read_flag, "labelled pair": read_columns, "labelled list": read_columns, "pairs in CSV": read_columns,
                  "log in CSV": read_log, "slides in an array": read_slides, "categories-csv": lambda p: read_categories_csv({"all": p}),
                  "qa-csv": read_qa_csv, "qrels": read_qrels, "run": read_run, "beir": read_beir, "hf": read_hf}

def fuzzed(rng: random.Random, name: str, row: bytes) -> bytes:
    "A file with a broken row among sound ones."
    rows = [mutated(rng, row)]
    if rng.random() < .5: rows.insert(rng.randrange(2), row)
    if name == "slides in an array": return b"[" + b",\n".join(rows) + rng.choice((b"]", b"]", b"]", b"", b"]]"))
    return b"".join(part + rng.choice((b"\n", b"\n", b"\r\n")) for part in ([HEADERS[name]] if name in HEADERS else []) + rows)

FUZZED = int(os.environ.get("RAG_FINETUNE_FUZZED", "2000"))   # broken rows for each of the formats; ten thousand take minutes

@pytest.mark.parametrize("name", ROWS)
def test_broken_rows_are_taken_or_refused_in_one_line(tmp_path, name):
    rng, outcomes = random.Random(name), Counter()
    files = ROWS[name]
    source = tmp_path if len(files) > 1 else tmp_path / "file"
    for part, row in files.items(): put(tmp_path / part, (b"query-id\tcorpus-id\tscore\n" if part.endswith(".tsv") else b"") + row + b"\n")
    whole = {part: (tmp_path / part).read_bytes() for part in files}
    for n in range(FUZZED):
        part = list(files)[n % len(files)]
        content = fuzzed(rng, name, files[part])
        (tmp_path / part).write_bytes(content)
        try: READERS[name](source)
        except DataError as e:
            said = str(e)
            assert said.startswith(str(source)) and len(said.splitlines()) == 1 and said.isprintable(), (content[:500], said)
            assert re.match(rf"{re.escape(str(source))}[^:]*:\d+: ", said) or any(w in said for w in FILES_ONLY), (content[:500], said)
            outcomes["refused"] += 1
        except Exception as e: raise AssertionError(f"{type(e).__name__}: {e} over {content[:500]!r}") from e
        else: outcomes["accepted"] += 1
        (tmp_path / part).write_bytes(whole[part])
    print(f"\n{name}: {outcomes['accepted']:,} accepted, {outcomes['refused']:,} refused")
    assert sum(outcomes.values()) == FUZZED and min(outcomes["accepted"], outcomes["refused"]) > FUZZED / 20
