"The generator's parts, on what they must do for any catalogue."
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_finetune.core import Dataset
from rag_finetune.synthetic import Transaction, deal, descriptor, fill, names_itself, read_catalogue, shared, spellings, stem, transactions

FOLDER = Path(__file__).resolve().parent.parent / "data" / "transactions"

@pytest.fixture(scope="module")
def catalogue(): return read_catalogue(FOLDER)

def test_a_transaction_says_whatever_is_there_in_one_line():
    assert Transaction("SQ *INKWELL").text == "SQ *INKWELL"
    everything = Transaction("A", "B", "C", "D", "EUR 5.00", "F", "G", "H").text
    assert everything == "A | B | Department: C | D | EUR 5.00 | Programme: F | Trip: G | Memo: H"

@given(st.integers(0, 2**32), st.sampled_from(["Crate & Convoy", "Notariat Amsel", "Kurbside", "Expreso Andorinha", "Posto Ipe Amarelo"]))
def test_a_descriptor_fits_its_field_and_shows_its_merchant(seed, name):
    text = descriptor(name, "Rosario", random.Random(seed))
    assert len(text) <= 25 and text == text.upper() == text.strip()
    assert stem(text) == stem(name) == re.sub(r"\W", "", name.upper())[:6]

def test_spellings_are_distinct_and_begin_alike():
    for name in ("Fig & Fennel", "Kurbside", "Posto Ipe Amarelo"):
        assert len(set(spellings(name))) == len(spellings(name)) >= 1
        assert {stem(s) for s in spellings(name)} == {stem(name)}

def test_deal_gives_every_merchant_to_one_split(catalogue):
    for c in catalogue.categories:
        dealt = deal(c, seed=5)
        assert sorted(sum(dealt.values(), [])) == sorted(c["merchants"])
        assert list(dealt) == c["splits"] and all(dealt.values())
    c = catalogue.categories[0]
    assert deal(c, 1) == deal(c, 1) != deal(c, 2)

def test_fill_leaves_no_slot_and_an_unknown_slot_is_an_error(catalogue):
    every = "{name} {client} {city} {project} {team} {day} {month} {n}"
    assert "{" not in fill(every, catalogue.words, random.Random(0))
    with pytest.raises(KeyError): fill("{nobody}", catalogue.words, random.Random(0))

def test_shared_finds_what_stands_on_two_sides():
    corpus = {"d": "a document"}
    texts = {"train": ["a", "same"], "dev": ["b", "own"], "test": ["c", "same"]}
    splits = {s: Dataset(corpus, {f"{s}{n}": t for n, t in enumerate(ts)}, {}) for s, ts in texts.items()}
    assert shared(splits, lambda d, q: d.queries[q]) == {"same"}

@pytest.mark.parametrize("text, found", [("CITY TOLL", True), ("tolls paid", True), ("PARKINGS", True), ("SPARKING AND TOLLED", False)])
def test_names_itself_goes_by_whole_words(text, found): assert names_itself(text, "Parking and Tolls") is found

def test_the_seed_decides_everything(catalogue):
    one = transactions(catalogue, 1)
    assert transactions(catalogue, 1) == one
    assert transactions(catalogue, 2)["dev"].queries != one["dev"].queries

def test_the_rows_do_not_depend_on_the_process(catalogue, tmp_path):
    "String hashes differ between processes; an order taken from a set would show here."
    code = "import json, sys; from rag_finetune.synthetic import read_catalogue, transactions; " \
           "print(json.dumps(transactions(read_catalogue(sys.argv[1]))['dev'].queries))"
    outs = [subprocess.run([sys.executable, "-c", code, str(FOLDER)], capture_output=True, text=True, check=True, cwd=FOLDER.parent.parent,
                           env={"PYTHONHASHSEED": h, "PYTHONPATH": "."}).stdout for h in ("1", "2")]
    assert json.loads(outs[0]) == json.loads(outs[1]) == transactions(catalogue)["dev"].queries

def test_the_module_leaves_torch_unloaded():
    code = "import sys, rag_finetune.synthetic; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent.parent, env={"PYTHONPATH": "."})
