"The bundled tables, code and tools: what their data cards promise, held against the files."
import ast
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from rag_finetune.core import text_key
from rag_finetune.data import check, check_splits, drop_twins, load, near_twins, read_beir

DATA = Path(__file__).resolve().parent.parent / "data"
NAMES = ("tables", "code", "tools")
TEST = {"tables": "57d72a1b2bc0231e", "code": "1dfcedaec5476953", "tools": "057c2b0719983a5d"}

@pytest.fixture(scope="module", params=NAMES)
def name(request): return request.param

@pytest.fixture(scope="module")
def splits(name): return read_beir(DATA / name)

def documents(name): return [json.loads(line) for line in (DATA / name / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]

def questions(splits): return [text for d in splits.values() for text in d.queries.values()]

def asked(dataset): return {d for q in dataset.queries for d in dataset.positives(q)}

def test_there_are_enough_of_them_and_they_are_small(name, splits):
    assert len(splits["test"].queries) >= 100 and len(splits["dev"].queries) >= 50 and len(splits["train"].queries) >= 100
    assert len(splits["test"].corpus) >= 120
    assert sum(f.stat().st_size for f in (DATA / name).rglob("*") if f.is_file()) < 150_000

def test_a_question_has_one_answer_and_a_document_belongs_to_one_split(splits):
    for d in splits.values(): assert all(len(d.positives(q)) == 1 for q in d.queries)
    for a, b in combinations(splits.values(), 2): assert not asked(a) & asked(b)
    assert len(splits["test"].corpus) - len(set.union(*map(asked, splits.values()))) == 31    # nobody asks about these

def test_nothing_leaks_and_the_checks_have_nothing_to_say(splits):
    check_splits(splits)
    assert drop_twins(splits)[1] == [] and near_twins(splits) == [] and check(splits) == []

def test_no_question_or_document_stands_twice(name, splits):
    for texts in (questions(splits), [d["title"] + " " + d["text"] for d in documents(name)]):
        assert [t for t, n in Counter(map(text_key, texts)).items() if n > 1] == []

def test_questions_are_in_peoples_own_words(name, splits):
    starts = Counter(" ".join(text_key(q).split()[:3]) for q in questions(splits))
    assert starts.most_common(1)[0][1] <= 5, starts.most_common(2)
    def words(text): return set(re.findall(r"[a-z]{4,}", text.lower()))
    apart = sum(not words(d.queries[q]) & words(d.corpus[d.positives(q)[0]]) for d in splits.values() for q in d.queries)
    assert apart >= {"tables": 60, "code": 200, "tools": 200}[name]
    assert f"{apart} of {len(questions(splits))} share no word" in " ".join((DATA / name / "README.md").read_text(encoding="utf-8").split())

def test_the_data_card_counts_right(name, splits):
    card = (DATA / name / "README.md").read_text(encoding="utf-8")
    sizes = [len(splits[s].queries) for s in ("train", "dev", "test")]
    assert f"| {' | '.join(map(str, sizes))} | {sum(sizes)} |" in card
    assert f"{sum(sizes)}" in (DATA / "README.md").read_text(encoding="utf-8") and f"{len(documents(name))}" in card

def test_every_table_is_one():
    for d in documents("tables"):
        rows = [re.fullmatch(r"\| (.*) \|", line)[1].split(" | ") for line in d["text"].splitlines()]
        assert d["title"] and len(rows) >= 4 and len({len(r) for r in rows}) == 1, d["_id"]
        assert all(cell.strip() for r in rows for cell in r), d["_id"]

def columns(id):
    "A table's columns, numbers as numbers."
    text = next(d["text"] for d in documents("tables") if d["_id"] == id)
    head, _, *rows = ([c.strip() for c in line.strip("| ").split(" | ")] for line in text.splitlines())
    def number(cell): return float(cell) if re.fullmatch(r"-?\d+(\.\d+)?", cell) else cell
    return {name: [number(row[i]) for row in rows] for i, name in enumerate(head)}

@pytest.mark.parametrize(("id", "part", "whole"), [
    ("licences", "In use", "Bought"), ("library", "Lent", "Books"), ("noise-halls", "Mean", "Peak"),
    ("stock-utrecht", "Reserved", "On hand"), ("stock-austin", "Reserved", "On hand"),
    ("stock-dresden", "Reserved", "On hand"), ("hires-quarter-2024", "From referrals", "Starters"),
    ("response-country-2024", "Median days", "Slowest tenth days"), ("salary-bands", "From", "To"), ("trade-fairs", "Contacts", "Visitors"),
    ("internships", "Stayed", "Interns"), ("spec-temperature", "Range from C", "Range to C"), ("cables", "PVC EUR", "PUR EUR"),
    ("parking-sites", "Chargers", "Cars"), ("torque-values", "Greased", "Dry"),
    *((f"headcount-site-{year}", "Of them part time", "Employees") for year in (2022, 2023, 2024)),
])
def test_a_part_is_not_above_its_whole(id, part, whole):
    table = columns(id)
    assert [r for r in zip(table[part], table[whole], strict=True) if r[0] > r[1]] == []

@pytest.mark.parametrize(("id", "names"), [
    ("support-tiers", ["EUR a year", "Visits a year"]), ("spec-flow-meters", ["Nominal width mm", "Range m3/h"]),
    ("bike-lease", ["EUR a month"]), ("mobile-tariffs", ["GB a month"]),
    ("courier-rates", ["Inside EU", "United Kingdom", "Overseas"]), ("cables", ["PVC EUR", "PUR EUR"]),
    *((f"list-price-flow-{year}", ["Unit price EUR", "From 10 units EUR"]) for year in (2023, 2024, 2025)),
])
def test_more_is_more(id, names):
    for name in names: assert columns(id)[name] == sorted(columns(id)[name]), name

def test_tables_agree_with_themselves_and_with_each_other():
    kinds, sites = columns("contract-type-2024"), columns("headcount-site-2024")
    people = sum(sites["Employees"])
    assert [round(100 * n / people) for n in kinds["People"]] == kinds["Share %"] and sum(kinds["Share %"]) == 100
    assert sum(columns("headcount-department-2024")["Employees"]) == sum(kinds["People"]) == people
    rates = columns("mileage-team-2024")
    assert all(round(km * .23) == paid for km, paid in zip(rates["Kilometres"], rates["Paid EUR"]))
    assert columns("support-tiers")["Response time hours"] == sorted(columns("support-tiers")["Response time hours"], reverse=True)
    rent = columns("rental-rates")
    assert all(day < week < 7 * day for day, week in zip(rent["EUR a day"], rent["EUR a week"]))
    lines, regions = columns("revenue-product-2024")["EUR million"], columns("revenue-region-2024")
    assert [sum(lines[:-1]), lines[-1]] == [sum(regions["Instruments"]), sum(regions["Software"])]
    loan = columns("loan-plan")
    assert [a - b for a, b in zip(loan["Left"], loan["Repaid"][1:])] == loan["Left"][1:]

def test_every_function_is_python_without_words_of_explanation():
    for d in documents("code"):
        tree = ast.parse(d["text"])
        assert not any(ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)))
        assert not re.search(r"(^|\s)#", d["text"]), d["_id"]

def test_every_tool_is_json_with_parameters():
    for d in documents("tools"):
        tool = json.loads(d["text"])
        assert list(tool) == ["name", "description", "parameters"] and tool["name"].replace("_", "-") == d["_id"]
        assert tool["parameters"]["type"] == "object" and tool["parameters"]["properties"]

@pytest.mark.parametrize(("kind", "fingerprint"), TEST.items())
def test_the_test_splits_are_frozen(kind, fingerprint):
    "Figures are comparable only as long as this holds; a new test split is a new dataset, and needs a new name."
    assert load(kind)["test"].fingerprint == fingerprint
