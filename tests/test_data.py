"Reading, writing and splitting: the public sets, round trips, and the message of every way in which a file can be wrong."
import csv
import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_finetune.core import DataError, Dataset, text_key
from rag_finetune.data import (
    BLANK, NEAR, TAB, atomic, bundled, carve_dev, check_splits, drop_twins, load, near_twins, read_beir, read_categories_csv,
    read_qa_csv, read_qrels, read_run, sample, shared_values, split, values_of, write_beir, write_qrels, write_run,
)

slow_disk = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path

def message(function, *args) -> str:
    "What the user reads: always one line."
    with pytest.raises(DataError) as error: function(*args)
    text = str(error.value)
    assert len(text.splitlines()) == 1 and text.isprintable()
    return text

def beir(folder: Path, **files: str) -> Path:
    "A small sound BEIR folder with some files replaced, or left out where None."
    sound = {"corpus.jsonl": '{"_id": "d1", "text": "one"}\n{"_id": "d2", "title": "two", "text": "zwei"}\n',
             "queries.jsonl": '{"_id": "q1", "text": "eins?"}\n{"_id": "q2", "text": "zwei?"}\n',
             "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
             "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t1\n"}
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "train": "qrels/train.tsv", "test": "qrels/test.tsv"}
    for name, content in (sound | {names[k]: v for k, v in files.items()}).items():
        if content is not None: put(folder / name, content)
    return folder

def dataset(texts: dict[str, str], name: str = "set") -> Dataset:
    return Dataset({"d": "a document"}, texts, {q: {"d": 1} for q in texts}, name)

# --- the public sets

def test_banking77_has_its_published_sizes_and_seven_twins(public_data):
    splits = load(public_data / "banking77")
    assert {s: len(d.queries) for s, d in splits.items()} == {"train": 10_003, "test": 3_080}
    assert len(splits["test"].corpus) == 77 and splits["train"].corpus is splits["test"].corpus
    clean, dropped = drop_twins(splits)
    assert len(dropped) == 7 and len(clean["train"].queries) == 10_003 - 7 and len(clean["test"].queries) == 3_080
    assert not {text_key(t) for t in clean["train"].queries.values()} & {text_key(t) for t in clean["test"].queries.values()}

def test_banking77_is_the_same_as_csv_and_as_beir(public_data, tmp_path):
    for name in ("train.csv", "test.csv"): shutil.copy(public_data / "banking77" / name, tmp_path)
    beir, sheets = load(public_data / "banking77"), load(tmp_path)
    assert {s: d.fingerprint for s, d in sheets.items()} == {s: d.fingerprint for s, d in beir.items()}

def test_scifact_leaves_out_queries_that_nobody_judged(public_data):
    splits = load(public_data / "scifact")
    assert {s: len(d.queries) for s, d in splits.items()} == {"train": 809, "test": 300}
    assert all(d.queries.keys() == d.qrels.keys() and len(d.corpus) == 5_183 for d in splits.values())
    first = json.loads((public_data / "scifact" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert splits["test"].corpus[first["_id"]] == f'{first["title"]} {first["text"]}'.strip()

def test_medquad_has_one_query_for_each_question_and_one_document_for_each_answer(public_data):
    splits = load(public_data / "medquad" / "medquad.csv")
    medquad = splits["all"]
    assert list(splits) == ["all"] and len(medquad.queries) == 2_207 and len(medquad.corpus) == 2_694
    assert len({text_key(t) for t in medquad.corpus.values()}) == len(medquad.corpus)
    parts = split(medquad)
    keys = [{text_key(t) for t in d.queries.values()} for d in parts.values()]
    assert not any(a & b for a, b in combinations(keys, 2)) and sum(map(len, keys)) == 2_207
    assert [len(k) for k in keys] == [1545, 221, 441]

def test_trec_eval_files(public_data):
    qrels, run = read_qrels(public_data / "trec_eval" / "qrels.test"), read_run(public_data / "trec_eval" / "results.test")
    assert sum(map(len, qrels.values())) == 3_681 and set(run) == {"301", "302", "303"} and {len(s) for s in run.values()} == {500}
    assert qrels["301"]["CR93E-1282"] == 1 and qrels["301"]["CR93E-10279"] == 0
    assert run["301"]["FR940202-2-00150"] == 2.129133

def test_public_near_twins_are_found_quickly_and_do_mean_different_things(public_data):
    pairs = near_twins(load(public_data / "scifact"))
    assert ("293", "294") in pairs  # "hot spots are found ..." and "hot spots are not found ..."

# --- round trips

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
words = ids.filter(lambda i: not BLANK.search(i))
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
scores = st.floats(allow_nan=False, allow_infinity=False)
grades = st.integers(-999_999_999, 999_999_999)

@st.composite
def beir_splits(draw):
    names = ids.filter(lambda i: i.strip() and not TAB.search(i)) | st.sampled_from("12")  # one id for a query and a document, too
    corpus = draw(st.dictionaries(names, texts, min_size=1, max_size=5))
    queries = draw(st.dictionaries(names, texts, min_size=2, max_size=6))
    judged = {q: draw(st.dictionaries(st.sampled_from(sorted(corpus)), grades, min_size=1)) for q in queries}
    def columns(of): return st.dictionaries(st.sampled_from(sorted(of)), st.dictionaries(texts, texts, min_size=1, max_size=2))
    meta, about = draw(columns(queries)), draw(columns(corpus))
    cut = draw(st.integers(1, len(queries) - 1))
    parts = {"train": list(queries)[:cut], "test": list(queries)[cut:]}
    return {s: Dataset(corpus, {q: queries[q] for q in p}, {q: judged[q] for q in p}, "copy",
                       {q: m for q, m in meta.items() if q in p}, about) for s, p in parts.items()}

@slow_disk
@given(beir_splits())
def test_beir_round_trip(tmp_path, splits):
    write_beir(splits, tmp_path / "copy")
    assert read_beir(tmp_path / "copy") == splits

@slow_disk
@given(st.dictionaries(words, st.dictionaries(words, grades, min_size=1, max_size=4), min_size=1, max_size=4))
def test_qrels_round_trip(tmp_path, qrels):
    write_qrels(qrels, tmp_path / "qrels")
    assert read_qrels(tmp_path / "qrels") == qrels

@slow_disk
@pytest.mark.filterwarnings("ignore:overflow")  # scores beyond float32 tie when they are ranked
@given(st.dictionaries(words, st.dictionaries(words, scores, min_size=1, max_size=4), min_size=1, max_size=4))
def test_run_round_trip_keeps_every_digit(tmp_path, run):
    write_run(run, tmp_path / "run", "tag")
    back = read_run(tmp_path / "run")
    assert {q: {d: s.hex() for d, s in scores.items()} for q, scores in back.items()} == \
           {q: {d: s.hex() for d, s in scores.items()} for q, scores in run.items()}

def test_a_run_is_written_best_first_as_trec_eval_sorts(tmp_path):
    write_run({"q": {"a": .5, "b": .9, "c": .5}}, tmp_path / "run", "bm25")
    assert (tmp_path / "run").read_text() == "q Q0 b 1 0.9 bm25\nq Q0 c 2 0.5 bm25\nq Q0 a 3 0.5 bm25\n"

def test_the_rank_of_a_run_is_ignored(tmp_path):
    assert read_run(put(tmp_path / "run", "q\tQ0\ta\t1\t 0.1 t\r\nq Q0 b 7 0.9 t\n")) == {"q": {"a": .1, "b": .9}}

# --- forms

def test_a_byte_order_mark_and_windows_lines_are_no_trouble(tmp_path):
    rows = load(put(tmp_path / "a.csv", b"\xef\xbb\xbftext,category\r\nwhere is it?,card\r\n"))["all"]
    assert rows.queries == {"a-0": "where is it?"} and rows.corpus == {"card": "card"}
    splits = read_beir(beir(tmp_path / "b", corpus='\ufeff{"_id": "d1", "text": "one"}\r\n{"_id": "d2", "text": "two"}\r\n',
                            train="\ufeffquery-id\tcorpus-id\tscore\r\nq1\td1\t1\r\n"))
    assert splits["train"].qrels == {"q1": {"d1": 1}} and splits["train"].corpus == {"d1": "one", "d2": "two"}

def test_metadata_comes_back_as_texts_and_a_number_as_id_too(tmp_path):
    splits = read_beir(beir(tmp_path, queries='{"_id": 1, "text": "x", "metadata": {"amount": 3.5, "memo": null}}\n',
                            corpus='{"_id": "d1", "text": "x", "metadata": {"department": "Sales"}}\n',
                            train="query-id\tcorpus-id\tscore\n1\td1\t1\n", test=None))
    assert splits["train"].meta == {"1": {"amount": "3.5"}} and splits["train"].document_meta == {"d1": {"department": "Sales"}}

def test_a_query_and_a_document_with_one_id_keep_their_own_metadata(tmp_path):
    def lines(n, **about): return "".join(json.dumps({"_id": str(i), "text": f"text {i}", "metadata": {c: f"{v}{i}" for c, v in
                                                      about.items()}}) + "\n" for i in range(n))
    def judged(ids): return "".join(f"{i}\t{7 - i}\t1\n" for i in ids)
    beir(tmp_path, corpus=lines(8, source="f"), queries=lines(8, customer="c"), train=judged(range(4)), test=judged(range(4, 8)))
    splits = read_beir(tmp_path)
    train = splits["train"]
    assert train.meta["0"] == {"customer": "c0"} and train.document_meta["0"] == {"source": "f0"}
    assert values_of(train, "0", "source") == {"f7"} and values_of(train, "0", "customer") == {"c0"}
    assert shared_values(splits, "source", "shared sources") == []
    write_beir(splits, tmp_path / "copy")
    for name in ("corpus.jsonl", "queries.jsonl"): assert (tmp_path / "copy" / name).read_text() == (tmp_path / name).read_text()

def test_columns_beside_the_text_are_metadata_and_what_is_no_value_is_counted(tmp_path, caplog):
    beir(tmp_path, corpus='{"_id": "d1", "text": "one", "url": "http://x", "tags": ["a"], "metadata": {"city": "Oslo"}}\n'
                          '{"_id": "d2", "text": "two", "source": "s", "n": 7, "none": null, "box": {"a": 1}}\n',
         queries='{"_id": "q1", "text": "eins?", "customer": "acme"}\n{"_id": "q2", "text": "zwei?"}\n')
    splits = read_beir(tmp_path)
    assert splits["train"].meta == {"q1": {"customer": "acme"}} and splits["test"].meta == {}
    assert splits["train"].document_meta == {"d1": {"url": "http://x", "city": "Oslo"}, "d2": {"source": "s", "n": "7"}}
    said = "2 lines have a list or an object beside the text, such as \"tags\"; only what \"metadata\" has of these is kept"
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path}/corpus.jsonl: {said}"]

@pytest.mark.parametrize("title", ["Fees", "Fees  and more", " Fees"])
def test_a_title_is_part_of_the_text_and_a_title_again_when_it_is_written(tmp_path, title):
    corpus = [{"_id": "d1", "title": title, "text": "1 EUR", "metadata": {"city": "Oslo"}}, {"_id": "d2", "title": title, "text": ""},
              {"_id": "d3", "text": f"{title} here"}]
    beir(tmp_path, corpus="".join(json.dumps(line) + "\n" for line in corpus), test=None)
    splits = read_beir(tmp_path)
    assert list(splits["train"].corpus.values()) == [f"{title} 1 EUR".strip(), title.strip(), f"{title} here"]
    write_beir(splits, tmp_path / "copy")
    assert read_beir(tmp_path / "copy")["train"] == replace(splits["train"], name="copy")
    if title.strip() == title: assert (tmp_path / "copy/corpus.jsonl").read_text() == (tmp_path / "corpus.jsonl").read_text()

def test_a_query_whose_id_begins_like_the_header_is_no_header(tmp_path):
    beir(tmp_path, queries='{"_id": "query-id-1", "text": "x"}\n{"_id": "q2", "text": "y"}\n', train="query-id-1\td1\t1\n")
    assert read_beir(tmp_path)["train"].qrels == {"query-id-1": {"d1": 1}}

def test_validation_is_dev_and_two_files_for_one_split_are_an_error(tmp_path, caplog):
    beir(tmp_path, test=None)
    put(tmp_path / "qrels/validation.tsv", "q2\td2\t1\n")
    assert list(read_beir(tmp_path)) == ["train", "dev"]
    put(tmp_path / "qrels/hard.tsv", "q2\td2\t1\n")
    assert list(read_beir(tmp_path)) == ["train", "dev"]
    assert f"{tmp_path}/qrels: hard.tsv left out; the splits are called train, dev (or validation), test" in caplog.text
    put(tmp_path / "qrels/dev.tsv", "q2\td2\t1\n")
    assert message(read_beir, tmp_path) == f"{tmp_path}/qrels: dev.tsv and validation.tsv are both dev; keep one of the two"

def test_columns_are_found_by_name_whatever_their_order_and_case(tmp_path):
    rows = "id,answer,QUESTION \n7,A virus.,What is flu?\n7,An infection.,what is  FLU?\n8,a VIRUS.,Cold?\n"
    faq = load(put(tmp_path / "my faq.csv", rows))["all"]
    assert faq.qrels == {"my_faq-0": {"my_faq-answer-0": 1, "my_faq-answer-1": 1}, "my_faq-2": {"my_faq-answer-0": 1}}
    assert faq.queries == {"my_faq-0": "What is flu?", "my_faq-2": "Cold?"} and len(faq.corpus) == 2

def test_what_other_columns_say_comes_back_as_metadata(tmp_path, caplog):
    rows = "text,Category,Merchant,day,\nx,a,ACME,2024-01-02,\ny,b, ,2024-01-03,\n"
    (split_,) = load(put(tmp_path / "a.csv", rows)).values()
    assert split_.meta == {"a-0": {"Merchant": "ACME", "day": "2024-01-02"}, "a-1": {"day": "2024-01-03"}}
    faq = load(put(tmp_path / "faq.csv", "Question,Answer,Focus\nq,a,flu\nQ,b,cold\nr,a,\n"))["all"]
    assert faq.meta == {"faq-0": {"Focus": "flu"}}
    assert f"{tmp_path}/faq.csv: 1 row repeats a query with other metadata; the first row's is kept" in caplog.text
    write_beir({"train": faq}, tmp_path / "beir")
    assert read_beir(tmp_path / "beir")["train"].meta == faq.meta

def test_categories_with_spaces_make_ids_that_trec_files_can_hold(tmp_path):
    rows = load(put(tmp_path / "a.csv", "text,category\nx,Travel & Meals\ny,travel_&_meals\nx,Gifts\n"))["all"]
    assert rows.corpus == {"Gifts": "Gifts", "Travel_&_Meals": "Travel & Meals"}
    assert rows.qrels == {"a-0": {"Travel_&_Meals": 1}, "a-1": {"Travel_&_Meals": 1}, "a-2": {"Gifts": 1}}
    write_qrels(rows.qrels, tmp_path / "qrels")
    assert read_qrels(tmp_path / "qrels") == rows.qrels

def test_csv_splits_share_the_categories_of_all_files(tmp_path):
    put(tmp_path / "train.csv", "text,category\nx,a\n")
    put(tmp_path / "dev.csv", "text,category\nz,a\n")
    put(tmp_path / "test.csv", "text,category\ny,b\n")
    splits = load(tmp_path)
    assert list(splits) == ["train", "dev", "test"] and all(d.corpus == {"a": "a", "b": "b"} for d in splits.values())
    check_splits(splits)

def test_transactions_are_bundled():
    if "transactions" not in bundled(): pytest.fail("data/transactions is not in the package")
    splits = load("transactions")
    check_splits(splits)
    assert list(splits) == ["train", "dev", "test"] and len(splits["test"].corpus) == 24
    assert any(q in splits["test"].meta for q in splits["test"].queries)

# --- bad input: file, line, what came, what to do

def test_a_path_that_is_not_there(tmp_path):
    assert message(load, tmp_path / "nope") == (
        f"{tmp_path}/nope: no such file or folder; give the path of a file or a folder, hf://datasets/OWNER/NAME, "
        f"or the name of a bundled dataset: {', '.join(sorted(bundled()))}")
    cannot = "cannot be read (No such file or directory); give a file that is there and that you may read"
    assert message(read_run, tmp_path / "run") == f"{tmp_path}/run: {cannot}"
    assert message(load, beir(tmp_path / "b", queries=None)) == f"{tmp_path}/b/queries.jsonl: {cannot}"

def test_a_folder_that_is_no_dataset(tmp_path):
    put(tmp_path / "notes.txt", "hello")
    assert message(load, tmp_path) == (f"{tmp_path}: found notes.txt; wanted corpus.jsonl, queries.jsonl and qrels/, "
                                       "or train and test as .csv, .jsonl, .json or .parquet; of one file give the path")
    put(tmp_path / "b/qrels/hard.tsv", "query-id\tcorpus-id\tscore\n")
    assert message(load, beir(tmp_path / "b", train=None, test=None)) == \
        f"{tmp_path}/b/qrels: found hard.tsv; wanted one or more of train.tsv, dev.tsv, test.tsv"

@pytest.mark.parametrize("content", ["", "\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, content):
    path, problem = put(tmp_path / "a.csv", content), "the file is empty; give one with at least one row"
    for reader in (load, read_qa_csv, read_qrels, read_run): assert message(reader, path) == f"{path}: {problem}"
    assert message(load, beir(tmp_path / "b", corpus=content)) == f"{tmp_path}/b/corpus.jsonl: {problem}"
    assert message(load, put(path, '" "\n')) == f"{path}: no row; give one with at least one row"

def test_a_file_with_a_header_and_nothing_else(tmp_path):
    assert message(load, put(tmp_path / "a.csv", "text,category\n")) == f"{tmp_path}/a.csv: a header and no row; add rows below it"
    assert message(load, beir(tmp_path / "b", test="query-id\tcorpus-id\tscore\n")) == \
        f"{tmp_path}/b/qrels/test.tsv: a header and no judgement; add lines of query-id, corpus-id, score or remove the file"

def test_a_csv_without_the_columns(tmp_path):
    path = put(tmp_path / "a.csv", "when;text;category\n1;x;y\n")
    assert message(load, path) == (f"{path}:1: columns found: when;text;category; wanted: text, category or Question, Answer, "
                                   "with commas between; rename them in this line")
    assert message(read_qa_csv, put(path, "Question,reply\nx,y\n")) == \
        f"{path}:1: columns found: Question, reply; wanted: Question, Answer, once each, with commas between; rename them in this line"
    twice = message(load, put(path, "text,category,Text\nx,y,z\n"))
    assert "columns found: text, category, Text; wanted: text, category, once each" in twice
    many = ",".join(f"column{n}" for n in range(20))
    assert "column0, column1" in (found := message(load, put(path, many + "\n"))) and "column19" in found
    assert f"{path}:1: columns found: ,; wanted" in message(load, put(path, ",\n,\n"))

def test_a_csv_row_that_does_not_fit_is_named_by_the_line_where_it_begins(tmp_path):
    good = 'text,category\n\n"two\nlines",a\n'
    path = put(tmp_path / "a.csv", good + "one, two,b\n")
    assert message(load, path) == f'{path}:5: 3 fields where the header has 2; put a text with commas in double quotes: "one, two,b"'
    advice = "put a text with commas, quotes or line breaks in double quotes, and double a quote inside it"
    assert message(load, put(path, good + 'x,y\n"never closed,b\nx,y\n')) == f"{path}:6: not CSV (unexpected end of data); {advice}"
    assert message(load, put(path, good + '"said "no"",b\n')) == f"{path}:5: not CSV (',' expected after '\"'); {advice}"
    assert message(load, put(path, "text,category\rx,y\r")) == \
        f"{path}:1: not CSV (new-line character seen in unquoted field); save the file with the line ends of Unix or Windows"
    assert message(load, put(path, good + '" ",b\n')) == f'{path}:5: "text" is empty; give it a text or leave the row out'
    assert message(load, put(path, good + "x,\n")) == f'{path}:5: "category" is empty; give it a text or leave the row out'

@pytest.mark.parametrize(("line", "problem"), [
    ('{"_id": "d2", "text": ', 'not JSON (Expecting value at column 22) in {"_id": "d2", "text":; '
                               'every line is one object such as {"_id": "d1", "text": "..."}'),
    ('["d2"]', 'not an object but ["d2"]; every line is one object such as {"_id": "d1", "text": "..."}'),
    ('{"id": "d2", "text": "x"}', 'no "_id" in {"id": "d2", "text": "x"}; every line needs "_id" and "text"'),
    ('{"_id": "d2", "contents": "x"}', 'no "text" in {"_id": "d2", "contents": "x"}; every line needs "_id" and "text"'),
    ('{"_id": "d1", "text": "x"}', """"_id" 'd1' stands at {path}:1 already; give each line an id of its own"""),
    ('{"_id": null, "text": "x"}', '"_id" is null, which is not a text; put it in double quotes'),
    ('{"_id": "d2", "text": ["x"]}', '"text" is ["x"], which is not a text; put it in double quotes'),
    ('{"_id": "d2", "text": " "}', '"text" is empty; give it a text or leave the row out'),
    ('{"_id": "d2", "title": 7, "text": "x"}', '"title" and "text" are [7, "x"]; both must be texts in double quotes'),
    ('{"_id": "d2", "text": "\\ud83d"}', '"text" has half of a surrogate pair; write the whole character'),
    ('{"_id": "d2", "text": "x", "metadata": {"city": "\\ud83d"}}',
     'half of a surrogate pair in {"city": "�"}; write the whole character'),
    ('{"_id": "d2", "text": "x", "metadata": 3}', '"metadata" is 3; it must be an object such as {"city": "Oslo"}'),
])
def test_a_json_line_that_cannot_be_used(tmp_path, line, problem):
    corpus = tmp_path / "corpus.jsonl"
    beir(tmp_path, corpus=f'{{"_id": "d1", "text": "one"}}\n\n{line}\n')
    assert message(load, tmp_path) == f"{corpus}:3: {problem.replace('{path}', str(corpus))}"

def test_json_that_nests_too_deep_or_counts_too_far(tmp_path):
    for line in ("[" * 100_000, '{"_id": ' + "9" * 5_000 + "}"):
        assert message(load, beir(tmp_path, queries=line)).startswith(f"{tmp_path}/queries.jsonl:1: not JSON (")

@pytest.mark.parametrize(("line", "problem"), [
    ("q1\td2", "2 columns in 'q1 d2'; wanted 3 with tabs between: query-id, corpus-id, score"),
    ("q9\td1\t1", "query 'q9' is not in queries.jsonl; add it there or take this line out"),
    ("q1\td9\t1", "document 'd9' is not in corpus.jsonl; add it there or take this line out"),
    ("q1\td2\tyes", "grade 'yes' of query 'q1' is no whole number; write 1 for relevant, 0 for not"),
    ("q1\td2\t1_0", "grade '1_0' of query 'q1' is no whole number; write 1 for relevant, 0 for not"),
    ("q1\td1\t0", "query 'q1' and document 'd1' are judged a second time; keep one of the two lines"),
])
def test_a_judgement_that_cannot_be_used(tmp_path, line, problem):
    beir(tmp_path, train=f"query-id\tcorpus-id\tscore\nq1\td1\t1\n{line}\n")
    assert message(load, tmp_path) == f"{tmp_path}/qrels/train.tsv:3: {problem}"

def test_a_test_query_that_is_also_in_train(tmp_path):
    beir(tmp_path, test="query-id\tcorpus-id\tscore\nq2\td2\t1\nq1\td1\t1\n")
    assert message(load, tmp_path) == (f"{tmp_path}/qrels/test.tsv:3: query 'q1' is in {tmp_path}/qrels/train.tsv too; "
                                       "a query belongs to one split, take it out of the other")

def test_text_over_one_megabyte(tmp_path):
    long, fits = "é" * 500_001, "é" * 500_000
    problem = f'"text" has 1,000,002 bytes, the limit is 1 MB (1,000,000); cut it into shorter texts: "{"é" * 59}…"'
    path = put(tmp_path / "a.csv", f'text,category\n"{fits}",a\n"{long}",b\n')
    assert message(load, path) == f"{path}:3: {problem}"
    beir(tmp_path / "b", queries=json.dumps({"_id": "q1", "text": long}))
    assert message(load, tmp_path / "b") == f"{tmp_path}/b/queries.jsonl:1: {problem}"
    assert len(load(put(path, f"text,category\n{fits},a\n"))["all"].queries["a-0"]) == 500_000

def test_our_long_fields_leave_the_csv_module_as_it_was(tmp_path):
    before = 131_072  # the module's own default
    csv.field_size_limit(before)
    load(put(tmp_path / "a.csv", "text,category\nx,y\n"))
    message(load, put(tmp_path / "b.csv", 'text,category\n"x,y\n'))
    assert csv.field_size_limit() == before

def test_invalid_utf8(tmp_path):
    path, advice = put(tmp_path / "a.csv", b"text,category\nx,y\nGeb\xfchr,fee\n"), "is not UTF-8; save the file as UTF-8"
    assert message(load, path) == f"{path}:3: byte 0xfc {advice}"
    assert message(load, put(path, b"\xff\xfet\x00e\x00x\x00t\x00")) == f"{path}:1: byte 0xff {advice}"  # UTF-16
    for reader in (read_qrels, read_run): assert message(reader, put(path, b"\n\xff")) == f"{path}:2: byte 0xff {advice}"

def test_trec_lines_that_cannot_be_used(tmp_path):
    path = tmp_path / "file"
    def refused(reader, content): return message(reader, put(path, content)).removeprefix(f"{path}:")
    assert refused(read_qrels, "q 0 d 1\nq\td\t1\n") == "2: 3 columns in 'q d 1'; wanted 4: query id, 0, document id, grade"
    assert refused(read_qrels, "q 0 d 1\nq 0 d 1\n") == "2: query 'q' and document 'd' are judged a second time; keep one of the two lines"
    assert refused(read_qrels, "q 0 d .5\n") == "1: grade '.5' of query 'q' is no whole number; write 1 for relevant, 0 for not"
    assert refused(read_run, "q 0 d 1\n") == "1: 4 columns in 'q 0 d 1'; wanted 6: query id, Q0, document id, rank, score, tag"
    assert refused(read_run, "q Q0 d 1 .5 t\n\nq Q0 d 2 .4 t\n") == "3: query 'q' has document 'd' a second time; keep one of the two lines"
    for bad in ("high", "nan", "-inf"):
        problem = f"1: score '{bad}' is no number; write a finite one such as 0.83, higher is better"
        assert refused(read_run, f"q Q0 d 1 {bad} t\n") == problem

def test_a_runs_tag_may_hold_blanks_as_in_trec_eval(tmp_path):
    assert read_run(put(tmp_path / "file", "q Q0 d 1 .5 my best run\n")) == {"q": {"d": .5}}

def test_what_a_file_cannot_hold_is_not_written_and_what_was_there_stays(tmp_path):
    path = put(tmp_path / "file", "before")
    advice = "is empty or has white space, which separates columns there; rename it, with _ for example"
    assert message(write_qrels, {"q": {"d": 1, "my doc": 1}}, path) == f"{path}: id 'my doc' {advice}"
    assert message(write_run, {"q": {"d": 1.}}, path, "my tag") == f"{path}: id 'my tag' {advice}"
    assert message(write_run, {"q": {"d": float("nan")}}, path, "t").startswith(f"{path} (q, d): score 'nan' is no number")
    assert message(write_run, {"q": {"\ud83d": 1.}}, path, "t") == rf"{path}: id '\ud83d' has half of a surrogate pair; rename it"
    folder = beir(tmp_path / "b")
    splits = read_beir(folder)
    odd = Dataset(splits["train"].corpus, {"a\tb": "x"}, {"a\tb": {"d1": 1}}, "odd")
    was = {p: p.read_bytes() for p in folder.rglob("*.*")}
    assert message(write_beir, {"train": odd, "test": splits["test"]}, folder) == f"{folder}/queries.jsonl: id 'a\\tb' {advice}"
    assert message(write_beir, {"test": splits["test"]}, folder) == \
        f"{folder}/qrels/train.tsv: is there already and not among the splits to write (test); remove it or choose another folder"
    assert message(write_beir, {"all": splits["test"]}, folder) == \
        f"{folder}: splits to write: all; wanted any of train, dev, test (`split` makes them)"
    assert {p: p.read_bytes() for p in folder.rglob("*.*")} == was
    assert path.read_text() == "before" and sorted(p.name for p in tmp_path.iterdir()) == ["b", "file"]

def test_who_reads_a_file_while_it_is_replaced_reads_the_old_one(tmp_path):
    with put(tmp_path / "file", "old").open() as reader:
        with atomic(tmp_path / "file") as file: file.write("new and longer")
        assert reader.read() == "old" and (tmp_path / "file").read_text() == "new and longer"

def test_a_file_appears_as_a_whole(tmp_path):
    with atomic(tmp_path / "new" / "file") as file:
        file.write("half")
        assert not (tmp_path / "new" / "file").exists()
    assert (tmp_path / "new" / "file").read_text() == "half" and len(list((tmp_path / "new").iterdir())) == 1
    assert (tmp_path / "new" / "file").stat().st_mode == put(tmp_path / "plain", "").stat().st_mode

pieces = [b"text,category", b"Question,Answer", b'{"_id": "d1", "text": "x"}', b'{"_id": "q1", "text": "y"}', b"q1\td1\t1", b"q1 0 d1 1",
          b"query-id\tcorpus-id\tscore", b"q1 Q0 d1 1 .5 t", b"a,b", b'"', b",", b"\t", b"\n", b"\r", b"\r\n", b"\x00", b"\xef\xbb\xbf"]
rubbish = st.lists(st.binary(max_size=12) | st.sampled_from(pieces), max_size=10).map(b"".join)

@settings(slow_disk, max_examples=100)
@given(rubbish)
def test_anything_at_all_is_read_or_refused_in_one_line(tmp_path, content):
    path = put(tmp_path / "a.csv", content)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        folder = beir(tmp_path / name.replace("/", "-"))
        put(folder / name, content)
        for reader, source in ((load, folder), (load, path), (read_qrels, path), (read_run, path)):
            try: reader(source)
            except DataError as e: assert str(e).startswith(str(source)) and len(str(e).splitlines()) == 1

# --- splits

@given(st.lists(st.sampled_from(["Ａ b", "a  B", "c", "d", "e", "C ", "f", "g"]), min_size=8, max_size=40), st.integers(0, 9))
def test_equal_texts_never_stand_on_two_sides_and_no_query_is_lost(texts, seed):
    whole = dataset({f"q{n}": t for n, t in enumerate(texts)})
    if len({text_key(t) for t in texts}) < 3: return
    parts = split(whole, seed=seed)
    keys = [{text_key(t) for t in d.queries.values()} for d in parts.values()]
    assert all(keys) and not any(a & b for a, b in combinations(keys, 2))
    assert sorted(q for d in parts.values() for q in d.queries) == sorted(whole.queries)
    check_splits(parts)
    backwards = dataset(dict(reversed(whole.queries.items())))
    assert {s: d.fingerprint for s, d in split(backwards, seed=seed).items()} == {s: d.fingerprint for s, d in parts.items()}

def test_split_shares_seeds_and_meta():
    whole = dataset({f"q{n}": f"text {n}" for n in range(1000)})
    whole.meta["q1"], whole.document_meta["d"] = {"city": "Oslo"}, {"kind": "document"}
    parts = split(whole)
    assert [len(d.queries) for d in parts.values()] == [700, 100, 200]
    assert split(whole, seed=1)["test"].fingerprint != parts["test"].fingerprint
    assert sum("q1" in d.meta for d in parts.values()) == 1 and all(d.document_meta == whole.document_meta for d in parts.values())
    assert [len(d.queries) for d in split(sample(whole, 3, 0)).values()] == [1, 1, 1]
    assert message(split, sample(whole, 2, 0)) == "set: 2 different questions for 3 splits; bring at least one for each"
    assert message(split, whole, {"train": .7, "test": .7}) == \
        "set: split fractions {'train': 0.7, 'test': 0.7}; wanted shares above 0 that sum to 1"

def test_dev_is_carved_out_of_train_alone():
    splits = {"train": dataset({f"q{n}": f"text {n}" for n in range(100)}), "test": dataset({"t": "other"})}
    carved = carve_dev(splits)
    assert [(s, len(d.queries)) for s, d in carved.items()] == [("train", 80), ("dev", 20), ("test", 1)]
    assert carved["test"] is splits["test"]
    assert message(carve_dev, carved) == "splits train, dev, test: dev is carved out of train where there is a train and no dev"

def test_a_sample_is_seeded_and_keeps_its_judgements():
    whole = dataset({f"q{n}": f"text {n}" for n in range(100)})
    some = sample(whole, 10, 3)
    assert len(some.queries) == 10 and some.qrels.keys() == some.queries.keys() and some.corpus is whole.corpus
    assert sample(whole, 10, 3) == some and sample(whole, 10, 4) != some and sample(whole, 1000, 0) == whole
    assert message(sample, whole, 0, 0) == "set: a sample of 0 queries; ask for at least 1"

def test_twins_leave_the_earlier_side():
    splits = {"train": dataset({"a": "Where IS it", "b": "cost?", "c": "new"}), "dev": dataset({"d": "COST?", "e": "ﬁn"}),
              "test": dataset({"f": "where  is it", "g": "fin"})}
    clean, dropped = drop_twins(splits)
    assert sorted(dropped) == ["a", "b", "e"]
    assert {s: list(d.queries) for s, d in clean.items()} == {"train": ["c"], "dev": ["d"], "test": ["f", "g"]}
    assert list(clean["train"].qrels) == ["c"]

def test_an_id_on_two_sides_or_another_corpus_is_an_error():
    a = dataset({"q": "x"})
    assert message(check_splits, {"train": a, "test": dataset({"q": "y", "r": "z"})}) == \
        "set: query 'q' is in train and in test (1 such); a query belongs to one split, take it out of the other"
    other = Dataset({"d": "another document"}, {"r": "z"}, {"r": {"d": 1}}, "set")
    assert message(check_splits, {"train": a, "test": other}) == \
        "set: train and test have different corpora (document 'd'); give all splits the same one"

@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefghijklmn"), min_size=1, max_size=12).map(" ".join), min_size=2, max_size=12), st.data())
def test_near_twins_are_those_that_all_pairs_find(texts, data):
    cut = data.draw(st.integers(1, len(texts) - 1))
    splits = {"train": dataset({f"q{n}": t for n, t in enumerate(texts[:cut])}),
              "test": dataset({f"t{n}": t for n, t in enumerate(texts[cut:])})}
    def near(a, b): return a != b and len(set(a.split()) & set(b.split())) >= NEAR * len(set(a.split()) | set(b.split()))
    pairs = [(q, t) for q, a in splits["train"].queries.items() for t, b in splits["test"].queries.items() if near(a, b)]
    assert sorted(near_twins(splits)) == sorted(pairs)

def test_one_file_is_a_split_of_its_own(tmp_path):
    path = put(tmp_path / "rows.csv", "text,category\nx,y\n")
    assert read_categories_csv({"test": path})["test"].name == "rows"
