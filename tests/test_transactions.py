"The bundled transactions: what its data card promises, held against the files."
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from rag_finetune import synthetic
from rag_finetune.core import text_key
from rag_finetune.data import check_splits, load, read_beir

FOLDER = Path(__file__).resolve().parent.parent / "data" / "transactions"
MADE = ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"]
UNSEEN = {"printing", "health", "gifts", "lab"}

@pytest.fixture(scope="module")
def catalogue(): return synthetic.read_catalogue(FOLDER)

@pytest.fixture(scope="module")
def splits(): return read_beir(FOLDER)

def values(dataset, column): return {m for q in dataset.queries if (m := dataset.meta[q][column])}

def categories(dataset): return {d for q in dataset.queries for d in dataset.positives(q)}

def test_the_catalogue_is_complete(catalogue):
    assert len({c["id"] for c in catalogue.categories}) == len({c["name"] for c in catalogue.categories}) == 24
    for c in catalogue.categories:
        assert len(set(c["merchants"])) >= 25, c["id"]
        assert c["description"] and c["departments"] and c["sample_transactions"], c["id"]
        assert len(c["description"].splitlines()) == 1

def test_merchants_of_the_catalogue_differ_in_every_spelling(catalogue):
    names = [m for c in catalogue.categories for m in c["merchants"]]
    names += [m for stores in catalogue.words["mixed_merchants"].values() for m in stores]
    spelt = {m: {re.sub(r"\W", "", s)[:synthetic.STEM] for s in synthetic.spellings(m)} for m in names}
    assert all(beginnings == {synthetic.stem(m)} and len(synthetic.stem(m)) == synthetic.STEM for m, beginnings in spelt.items())
    assert [s for s, n in Counter(map(synthetic.stem, names)).items() if n > 1] == []

def test_every_category_has_memos_of_its_own_words_in_each_of_its_splits(catalogue):
    least = {"train": 6, "dev": 3, "test": 5}
    for c in catalogue.categories:
        memos = catalogue.words["memos"][c["id"]]
        assert {s: len(set(m)) >= least[s] for s, m in memos.items()} == dict.fromkeys(c["splits"], True), c["id"]
        for memo in sum(memos.values(), []):
            assert not synthetic.names_itself(re.sub(r"\{\w+\}", "", memo), c["name"]), (c["id"], memo)
    by_split = [*catalogue.words["memos"].values(), catalogue.words["vague_memos"]]
    templates = [memo for one in by_split for memos in one.values() for memo in memos]
    assert [t for t, n in Counter(map(text_key, templates)).items() if n > 1] == []

def test_sample_transactions_name_no_merchant_of_the_data(catalogue):
    known = {synthetic.stem(m) for c in catalogue.categories for m in c["merchants"]}
    for c in catalogue.categories:
        assert not {synthetic.stem(s.split(" | ")[0]) for s in c["sample_transactions"]} & known, c["id"]

def test_sizes_and_balance(splits):
    assert len(splits["train"].queries) >= 1200 and len(splits["dev"].queries) >= 300 and len(splits["test"].queries) >= 800
    for d in splits.values():
        rows = Counter(d.positives(q)[0] for q in d.queries)
        assert max(rows.values()) - min(rows.values()) <= 2

def test_each_transaction_has_one_category_and_all_splits_the_same_24(splits):
    assert len(splits["train"].corpus) == 24
    check_splits(splits)
    for d in splits.values(): assert all(list(d.qrels[q].values()) == [1] for q in d.queries)

def test_four_categories_have_no_training_rows(splits):
    everything = set(splits["train"].corpus)
    assert everything - categories(splits["train"]) == UNSEEN
    assert categories(splits["test"]) == everything
    assert len(categories(splits["dev"]) & UNSEEN) == 2
    for d in splits.values():
        for q in d.queries: assert (d.meta[q]["category_seen"] == "no") == (d.positives(q)[0] in UNSEEN)

def test_a_third_is_ambiguous(splits):
    for d in splits.values():
        rows = [d.meta[q] for q in d.queries]
        assert sum(m["ambiguous"] == "yes" for m in rows) / len(rows) == pytest.approx(1/3, abs=.01)
        assert {m["decided_by"] for m in rows} == {"merchant", "memo", "department"}
        assert all((m["ambiguous"] == "yes") == (m["decided_by"] != "merchant") for m in rows)

def test_ambiguous_rows_are_decided_by_what_they_say(catalogue, splits):
    deciding = {c["id"]: sum(c["deciding_departments"].values(), []) for c in catalogue.categories}
    clear = {c["id"]: set(sum(catalogue.words["memos"][c["id"]].values(), [])) for c in catalogue.categories}
    for d in splits.values():
        for q in d.queries:
            label, meta, text = d.positives(q)[0], d.meta[q], d.queries[q]
            if meta["decided_by"] == "memo": assert meta["memo_template"] in clear[label] and meta["merchant_category"] != label
            elif meta["decided_by"] == "department":
                assert any(f"Department: {name}" in text.split(" | ") for name in deciding[label]), text
            else: assert meta["merchant_category"] == label

def test_a_deciding_department_belongs_to_one_category(catalogue):
    names = [n for c in catalogue.categories for n in sum(c["deciding_departments"].values(), [])]
    assert len(set(names)) == len(names)
    assert not set(names) & set(catalogue.words["departments"])

@pytest.mark.parametrize("column", ["merchant", "memo_template"])
def test_nothing_stands_in_two_splits(splits, column):
    for a, b in combinations(splits.values(), 2): assert values(a, column) & values(b, column) == set()

def test_no_spelling_of_a_merchant_stands_in_two_splits(splits):
    begins = {s: {synthetic.stem(t.split(" | ")[0]) for t in d.queries.values()} for s, d in splits.items()}
    for a, b in combinations(begins.values(), 2): assert a & b == set()
    for d in splits.values():
        for q, t in d.queries.items(): assert synthetic.stem(t.split(" | ")[0]) == synthetic.stem(d.meta[q]["merchant"]), t

def test_every_text_is_one_line_and_there_once(splits):
    texts = [t for d in splits.values() for t in d.queries.values()]
    assert len({text_key(t) for t in texts}) == len(texts)
    assert not [t for t in texts if len(t.splitlines()) != 1 or "{" in t]

def test_few_texts_name_their_category(splits):
    names = {json.loads(line)["_id"]: json.loads(line)["title"] for line in (FOLDER / "corpus.jsonl").open(encoding="utf-8")}
    for split, d in splits.items():
        share = sum(synthetic.names_itself(t, names[d.positives(q)[0]]) for q, t in d.queries.items()) / len(d.queries)
        print(f"{split}: {share:.1%} of the texts contain a word of their category's name")
        assert share < .03

def test_a_document_is_name_description_and_departments(catalogue, splits):
    for c in catalogue.categories:
        text = splits["test"].corpus[c["id"]]
        assert text.startswith(f"{c['name']} {c['description']}") and all(d in text for d in c["departments"])

def test_the_generator_makes_exactly_these_files(tmp_path, catalogue):
    synthetic.write(catalogue, tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(MADE)
    for name in MADE: assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name

def test_the_test_split_is_frozen(splits):
    "Figures are comparable only as long as this holds; a new test split is a new dataset, and needs a new name."
    assert splits["test"].fingerprint == "687ac1a2375708e8"

def test_the_package_loads_it_by_name(splits):
    assert {s: d.fingerprint for s, d in load("transactions").items()} == {s: d.fingerprint for s, d in splits.items()}
