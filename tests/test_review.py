"The label log under clicks, processes and kills; rows, order, agreement and export of a review."
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from threading import Thread

import pytest
from children import START, child
from filelock import FileLock, Timeout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_writer import write
from test_formats import mutated

from rag_finetune.core import DataError, Dataset
from rag_finetune.data import load, read_run, write_run
from rag_finetune.review import (
    FILTERS,
    Label,
    LabelLog,
    Outcome,
    agreement,
    audit,
    beside,
    by_chance,
    by_dispute,
    by_margin,
    chosen,
    conflicts,
    corrected,
    current,
    fitting,
    joined,
    kappa,
    label_id,
    open_desk,
    outcomes,
    read_rows,
    reviewed,
    seen,
    share,
    standing,
    undo_of,
)

# the log: what is in it

@pytest.fixture
def log(tmp_path): return LabelLog(tmp_path / "rows.labels.jsonl")

def press(log, action, row="r1", reviewer="ann", **fields):
    "What the page does when a key is pressed."
    return log.append(Label(label_id(log.labels(), reviewer, row), reviewer, row, action, **fields))

def held(log, reviewer="ann"): return {row: label.action for row, label in current(log.labels()).get(reviewer, {}).items()}

def test_a_label_is_one_line_of_json_with_its_time(log):
    press(log, "reject", reason="zwei Zeilen\n“quoted”")
    [line] = log.path.read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert record.keys() == {"id", "reviewer", "row", "action", "reason", "time"}
    assert record["reason"] == "zwei Zeilen\n“quoted”" and record["time"].endswith("+00:00")

def test_an_id_is_written_once_even_by_two_logs_that_know_nothing_of_each_other(log):
    other = LabelLog(log.path)
    label = Label("one", "ann", "r1", "approve")
    assert log.append(label) == other.append(label) == log.append(label)
    assert len(log.path.read_text().splitlines()) == 1

def test_the_second_tab_is_told_what_stands_there(log):
    known = log.labels()  # what both tabs show
    first = Label(label_id(known, "ann", "r1"), "ann", "r1", "approve")
    second = Label(label_id(known, "ann", "r1"), "ann", "r1", "reject", reason="no")
    log.append(first)
    assert LabelLog(log.path).append(second).action == "approve"
    assert held(log) == {"r1": "approve"}

def test_undo_brings_back_what_was_there_before(log):
    press(log, "approve")
    second = press(log, "edit", answers=("meals",))
    press(log, "undo", undoes=second.id)
    assert held(log) == {"r1": "approve"}
    third = press(log, "skip")
    press(log, "undo", undoes=third.id)
    press(log, "undo", undoes=standing(log.labels())[-1].id)
    assert held(log) == {}

@pytest.mark.parametrize(("label", "says"), [
    (Label("x", "ann", "r1", "aprove"), "wanted one of approve"), (Label("", "ann", "r1", "skip"), "empty id"),
    (Label("x", "", "r1", "skip"), "empty reviewer"), (Label("x", "ann", "", "skip"), "empty row"),
    (Label("x", "ann", "r1", "undo"), "names the label"), (Label("x", "ann", "r1", "skip", undoes="y"), "names the label"),
    (Label("x", "ann", "r1", "undo", undoes="none"), "no label of row"), (Label("x", "bob", "r1", "undo", undoes="l1"), "no label of row"),
    (Label("x", "ann", "r2", "undo", undoes="l1"), "no label of row"), (Label("x", "ann", "r1", "undo", undoes="x"), "no label of row"),
    (Label("x", "ann", "r1", "edit", text="\ud800"), "surrogate"),
])
def test_what_cannot_stand_in_a_log_is_refused_and_not_written(log, label, says):
    log.append(Label("l1", "ann", "r1", "approve"))
    before = log.path.read_bytes()
    with pytest.raises(DataError, match=says): log.append(label)
    assert log.path.read_bytes() == before

def test_a_label_is_undone_once(log):
    log.append(Label("l1", "ann", "r1", "approve"))
    log.append(Label("l2", "ann", "r1", "undo", undoes="l1"))
    with pytest.raises(DataError, match="that stands"): log.append(Label("l3", "ann", "r1", "undo", undoes="l1"))
    with pytest.raises(DataError, match="that stands"): log.append(Label("l3", "ann", "r1", "undo", undoes="l2"))

# the log: what was done to its file

GOOD = b'{"id": "l1", "reviewer": "ann", "row": "r1", "action": "approve"}'

@pytest.mark.parametrize("cut", [GOOD[:20], GOOD[:-1], b"\0" * 40, b"\xc3", b"{", b"42", b'{"id": "x"}'])
def test_half_a_last_line_is_moved_aside_and_reported(log, cut):
    press(log, "approve")
    with open(log.path, "ab") as file: file.write(cut)
    again = LabelLog(log.path)
    assert held(again) == {"r1": "approve"}
    [said] = again.moved
    assert f"{log.path}:2: half a line of {len(cut)} bytes" in said
    assert log.path.with_name(log.path.name + ".cut").read_bytes() == cut + b"\n"
    press(again, "skip", "r2")
    assert held(LabelLog(log.path)) == {"r1": "approve", "r2": "skip"} and LabelLog(log.path).moved == []

def test_half_a_line_of_a_process_that_died_does_not_swallow_the_next_label(log):
    press(log, "approve")
    with open(log.path, "ab") as file: file.write(GOOD[:20])
    press(log, "skip", "r2")
    assert held(log) == held(LabelLog(log.path)) == {"r1": "approve", "r2": "skip"} and len(log.moved) == 1

@pytest.mark.parametrize("text", [b"buy milk", b"{}", b'{"name": "x"}', b"id,text\nr1,Taxi"])
def test_a_file_that_is_no_log_is_left_as_it_was(log, text):
    log.path.write_bytes(text)
    with pytest.raises(DataError, match="not a"): LabelLog(log.path)
    assert log.path.read_bytes() == text and not log.path.with_name(log.path.name + ".cut").exists()

def test_a_last_line_that_only_lacks_its_end_counts(log):
    log.path.write_bytes(GOOD)
    assert held(log) == {"r1": "approve"} and log.moved == []
    press(log, "skip", "r2")
    assert held(LabelLog(log.path)) == {"r1": "approve", "r2": "skip"}

@pytest.mark.parametrize(("line", "says"), [
    (b"{", "not a label"), (b'{"id": "x"}', "not a label"), (b"\xff\xff", "not a label"), (b"[" * 5000, "not a label"),
    (GOOD[:-1] + b', "colour": "red"}', "not a label"), (GOOD[:-1] + b', "reason": 7}', "is no text"),
    (GOOD[:-1] + b', "answers": "meals"}', "as a list"), (GOOD.replace(b"approve", b"like"), "wanted one of approve"),
    (GOOD.replace(b'"r1"', b'"r2"'), "stands there already"),
])
def test_a_broken_line_within_is_named_and_nothing_is_changed(log, line, says):
    before = GOOD + b"\n" + line + b"\n" + GOOD.replace(b"l1", b"l9") + b"\n"
    log.path.write_bytes(before)
    with pytest.raises(DataError, match=rf"{log.path.name}:2: .*{says}") as error: LabelLog(log.path)
    assert "\n" not in str(error.value) and log.path.read_bytes() == before

def test_a_log_that_got_shorter_while_it_was_open_is_an_error(log):
    press(log, "approve")
    log.path.write_bytes(b"")
    with pytest.raises(DataError, match="bytes shorter than it was"): press(log, "skip", "r2")

FULL_DISK = """
import resource, signal, sys
from rag_finetune.review import Label, LabelLog
log = LabelLog(sys.argv[1])
log.append(Label("l1", "ann", "r1", "approve"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = log.path.stat().st_size + 30  # the next line does not fit
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try: log.append(Label("l2", "ann", "r2", "approve"))
except OSError: print("refused", log.path.stat().st_size == limit - 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(*[label.id for label in log.labels()], log.append(Label("l2", "ann", "r2", "approve")).id, log.moved)
"""

@pytest.mark.skipif(os.name == "nt", reason="no limit on a file's size there")
def test_a_full_disk_is_an_error_and_leaves_no_half_line(log):
    said = subprocess.run([sys.executable, "-c", FULL_DISK, log.path], check=True, capture_output=True, text=True).stdout
    assert said == "refused True\nl1 l2 []\n"

def test_another_process_that_holds_the_lock_is_waited_for(log):
    with FileLock(f"{log.path}.lock"), pytest.raises(Timeout): LabelLog(log.path, seconds=.2)
    assert held(LabelLog(log.path)) == {}

# the log: any history

NAMES = st.text(min_size=1, max_size=4)
PRESSES = st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.sampled_from(["r1", "r2", "r3"]),
                             st.sampled_from(["approve", "edit", "reject", "skip", "undo"]), st.integers(1, 3), st.booleans()), max_size=25)
ANYHOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@ANYHOW
@given(reviewer=NAMES, row=NAMES, reason=st.text(), text=st.text(), answers=st.lists(st.text(), max_size=3))
def test_any_text_comes_back_as_it_was(reviewer, row, reason, text, answers):
    with tempfile.TemporaryDirectory() as folder:
        log = LabelLog(Path(folder, "x"))
        written = log.append(Label("l1", reviewer, row, "edit", reason, text, tuple(answers)))
        log.append(Label("l2", reviewer, row, "skip"))
        assert LabelLog(log.path).labels()[0] == written and log.path.read_bytes().count(b"\n") == 2

@ANYHOW
@given(PRESSES)
def test_replay_is_what_a_stack_for_each_reviewer_and_row_would_hold(presses):
    with tempfile.TemporaryDirectory() as folder:
        logs = [LabelLog(Path(folder, "x")), LabelLog(Path(folder, "x"))]  # two tabs
        stacks = {}
        for reviewer, row, action, clicks, tab in presses:
            stack = stacks.setdefault((reviewer, row), [])
            undoes = stack[-1].id if stack and action == "undo" else ""
            if action == "undo" and not undoes: continue
            label = Label(label_id(logs[tab].labels(), reviewer, row), reviewer, row, action, undoes=undoes)
            for click in range(clicks): written = logs[(tab + click) % 2].append(label)  # clicks in either tab
            if undoes: stack.pop()
            else: stack.append(written)
            assert current(LabelLog(Path(folder, "x")).labels()).get(reviewer, {}).get(row) == (stack[-1] if stack else None)

@ANYHOW
@given(PRESSES, st.data())
def test_a_file_cut_anywhere_keeps_every_whole_line(presses, data):
    with tempfile.TemporaryDirectory() as folder:
        log = LabelLog(Path(folder, "x"))
        for n, (reviewer, row, action, *_) in enumerate(presses):
            if action != "undo": log.append(Label(f"l{n}", reviewer, row, action))
        whole, labels = log.path.read_bytes(), log.labels()
        cut = data.draw(st.integers(0, len(whole)))
        log.path.write_bytes(whole[:cut])
        left = whole[:cut].count(b"\n") + (whole[cut:cut + 1] == b"\n")  # a line that only lacks its end is whole
        assert LabelLog(log.path).labels() == labels[:left]

# rows

def write_text(path, text):
    path.write_text(text, encoding="utf-8")
    return path

def test_rows_come_from_csv_and_json_lines_alike(tmp_path):
    table = write_text(tmp_path / "a.csv", 'id,Text,Category,when\n7,"Taxi, late",Ground Transport,May\nr2,Lunch,meals,\nr3,Gift,,\n')
    lines = write_text(tmp_path / "b.jsonl", '{"id": 7, "text": "Taxi, late", "label": "Ground Transport", "when": "May"}\n'
                                             '{"_id": "r2", "text": "Lunch", "category": "meals"}\n'
                                             '{"id": "r3", "text": "Gift", "label": null}\n')
    for path in (table, lines):
        data = joined(read_rows(path))
        assert data.queries == {"7": "Taxi, late", "r2": "Lunch", "r3": "Gift"}
        assert data.corpus == {"Ground_Transport": "Ground Transport", "meals": "meals"}
        assert data.qrels == {"7": {"Ground_Transport": 1}, "r2": {"meals": 1}} and data.meta == {"7": {"when": "May"}}

def test_rows_without_ids_are_counted_and_may_have_several_labels(tmp_path):
    path = write_text(tmp_path / "my rows.jsonl", '{"text": "Train, lunch", "label": ["rail", "meals"]}\n{"text": "x", "label": "RAIL"}\n')
    assert joined(read_rows(path)).qrels == {"my_rows-0": {"rail": 1, "meals": 1}, "my_rows-1": {"rail": 1}}

def test_descriptions_may_come_from_a_corpus(tmp_path):
    path = write_text(tmp_path / "a.csv", "text,category\nTaxi,Ground\n")
    corpus = write_text(tmp_path / "c.jsonl", '{"_id": "ground", "title": "Ground", "text": "taxis"}\n{"_id": "air", "text": "sky"}\n')
    data = joined(read_rows(path, corpus))
    assert data.corpus == {"ground": "Ground taxis", "air": "sky"} and data.positives("a-0") == ["ground"]
    write_text(path, "text,category\nTaxi,Ground\nShip,sea\n")
    with pytest.raises(DataError, match=r"a\.csv:3: category 'sea' is not among the 2 descriptions"): read_rows(path, corpus)
    with pytest.raises(DataError, match="descriptions of its own"): read_rows("transactions", corpus)

def test_whatever_else_can_be_loaded_is_reviewed_with_all_its_splits():
    splits = load("transactions")
    assert len(joined(read_rows("transactions")).queries) == sum(len(d.queries) for d in splits.values())

@pytest.mark.parametrize(("name", "text", "says"), [
    ("a.csv", "id,text,category\nr1,x,y\nr1,z,y\n", "a.csv:3: row 'r1' stands there a second time"),
    ("a.csv", "id,text,category\nr1,x\n", "a.csv:2: 2 fields where the header has 3"),
    ("a.csv", "id,text,category\nr1,,y\n", 'a.csv:2: "text" is empty'), ("a.csv", "id,text,category\n,x,y\n", 'a.csv:2: "id" is empty'),
    ("a.jsonl", '{"text": "x", "label": {"a": 1}}\n', 'a.jsonl:1: "label"'),
    ("a.jsonl", '{"text": 3, "label": "a"}\n', 'a.jsonl:1: "text"'),
    ("a.jsonl", '{"text": "x", "label": "a"}\n{\n', "a.jsonl:2: not JSON"), ("a.csv", "id,text,category\n", "no row"),
])
def test_a_broken_row_is_named(tmp_path, name, text, says):
    with pytest.raises(DataError) as error: read_rows(write_text(tmp_path / name, text))
    assert says in str(error.value) and "\n" not in str(error.value)

FUZZED = {"rows.jsonl": (b"", b'{"id": "r1", "text": "Taxi", "label": ["ground", "air"], "when": "May"}', read_rows),
          "rows.csv": (b"id,text,category\n", b'r1,"Taxi, late",ground', read_rows), "log": (b"", GOOD, LabelLog)}

@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_ten_thousand_broken_rows_are_taken_or_refused_in_one_line(tmp_path, name):
    rng, found, (header, row, read) = random.Random(name), Counter(), FUZZED[name]
    path = tmp_path / name
    for _ in range(10_000):
        rows = [mutated(rng, row), row.replace(b"r1", b"r2").replace(b"l1", b"l2")]
        path.write_bytes(header + b"".join(one + b"\n" for one in rng.sample(rows, 2)))
        try: read(path)
        except DataError as error:
            assert re.match(rf"{re.escape(str(path))}:\d+: |.*(the file is empty|no row)", str(error)) and "\n" not in str(error)
            found["refused"] += 1
        else: found["taken"] += 1
    print(f"{name}: {found['taken']:,} taken, {found['refused']:,} refused")
    assert min(found["taken"], found["refused"]) > 500

# order

FOUR = Dataset({"a": "A", "b": "B", "c": "C"}, {f"r{n}": f"text {n}" for n in range(1, 5)},
               {"r1": {"a": 1}, "r2": {"a": 1}, "r3": {"b": 1}})
SCORES = {"r1": {"a": .9, "b": .2}, "r2": {"a": .3, "b": .4}, "r3": {"a": .8}}

def test_doubt_comes_first():
    assert by_margin(FOUR, SCORES) == ["r4", "r2", "r1", "r3"]   # unknown to the run, .1, .7, nothing to compare with
    assert by_dispute(FOUR, SCORES) == ["r4", "r2", "r3", "r1"]  # no label, -.1, its label not found at all (0), +.7
    assert by_dispute(FOUR, {"r3": {"a": .8, "c": .1}, "r2": {"a": .3, "b": .4}})[:3] == ["r4", "r3", "r2"]

def test_the_random_order_depends_on_the_ids_alone():
    turned = Dataset(FOUR.corpus, dict(reversed(FOUR.queries.items())), {})
    assert by_chance(FOUR) == by_chance(turned) != list(FOUR.queries)
    more = Dataset(FOUR.corpus, {**FOUR.queries, "r9": "x"}, {})
    assert [row for row in by_chance(more) if row != "r9"] == by_chance(FOUR)

@ANYHOW
@given(st.sets(st.sampled_from("abcdef")).map(sorted), st.sampled_from("abcdef"), st.sampled_from([1, -1]))
def test_going_on_visits_every_row_that_is_wanted_and_back_returns(rows, start, step):
    others, visited, at = [row for row in rows if row != start], [], start
    for _ in others: visited.append(at := beside(rows, "abcdef", at, step))
    assert sorted(set(visited) - {start}) == others
    if start in rows and others: assert beside(rows, "abcdef", visited[0], -step) == start
    if not others: assert beside(rows, "abcdef", start, step) == ""

def test_filters_show_what_they_say(tmp_path):
    path = write_text(tmp_path / "rows.csv", "id,text,category\n" + "".join(f"r{n},Text {n},{'ab'[n % 2]}\n" for n in range(6)))
    desk = open_desk(str(path), str(tmp_path / "labels.jsonl"))
    for row, action in (("r0", "approve"), ("r1", "reject"), ("r2", "skip"), ("r3", "edit")):
        press(desk.log, action, row, text="other" if action == "edit" else "")
    press(desk.log, "reject", "r0", "bob")
    found = {show: chosen(desk, desk.log.labels(), "ann", "file", show) for show in FILTERS}
    assert found == {"to do": ["r4", "r5"], "all": [f"r{n}" for n in range(6)], "approved": ["r0"], "edited": ["r3"], "rejected": ["r1"],
                     "skipped": ["r2"], "in conflict": ["r0"]}
    assert chosen(desk, [], "ann", "file", "all", "b", "tEXT 3") == ["r3"]
    assert sorted(chosen(desk, [], "ann", "chance")) == found["all"]

def test_a_run_or_a_log_of_other_rows_is_refused(tmp_path):
    path = str(write_text(tmp_path / "rows.csv", "id,text,category\nr1,x,a\n"))
    write_run({"q1": {"a": 1.}}, tmp_path / "run.trec")
    with pytest.raises(DataError, match="none of the 1 documents"): open_desk(path, str(tmp_path / "l"), "", str(tmp_path / "run.trec"))
    press(LabelLog(tmp_path / "l"), "approve", "other")
    with pytest.raises(DataError, match="none of its 1 labels is of a row"): open_desk(path, str(tmp_path / "l"))

# what labels make of rows

def sign(row, action, reviewer="ann", dataset=FOUR, **fields):
    return Label(f"{reviewer}-{row}-{action}", reviewer, row, action, seen=seen(dataset, row), **fields)

def test_a_label_of_a_row_that_has_changed_does_not_count():
    labels = [sign("r1", "approve"), sign("r2", "approve"), Label("x", "ann", "gone", "approve")]
    edited = Dataset(FOUR.corpus, {**FOUR.queries, "r1": "another text"}, {**FOUR.qrels, "r2": {"b": 1}})
    assert fitting(FOUR, labels) == labels[:2] and fitting(edited, labels) == [] and outcomes(edited, labels) == {}

def test_outcomes_count_and_not_key_presses():
    labels = [sign("r1", "approve"), sign("r1", "edit", "bob", answers=("a",)), sign("r2", "edit", answers=("b",)),
              sign("r2", "edit", "bob", text="new"), sign("r3", "skip"), sign("r3", "reject", "bob", reason="no"), sign("r4", "approve")]
    found = outcomes(FOUR, labels)
    assert found == {"r1": {n: Outcome("text 1", ("a",)) for n in ("ann", "bob")}, "r3": {"bob": Outcome("", ())},
                     "r2": {"ann": Outcome("text 2", ("b",)), "bob": Outcome("new", ("a",))}}
    assert conflicts(found) == ["r2"]  # r4 has no label that could be approved

def test_an_answer_that_does_not_exist_is_an_error():
    with pytest.raises(DataError, match="'z' is not among the 3 documents"): outcomes(FOUR, [sign("r1", "edit", answers=("z",))])

LABELS = [sign("r1", "approve"), sign("r2", "edit", answers=("b", "c"), text="better"), sign("r3", "reject", reason="no")]

def test_what_was_reviewed_is_a_dataset():
    made = reviewed(FOUR, LABELS)
    assert made.queries == {"r1": "text 1", "r2": "better"} and made.qrels == {"r1": {"a": 1}, "r2": {"b": 1, "c": 1}}
    assert made.corpus == FOUR.corpus and reviewed(FOUR, []).queries == {}

def test_what_was_corrected_has_the_other_rows_too():
    made = corrected(FOUR, LABELS)
    assert made.queries == {"r1": "text 1", "r2": "better", "r4": "text 4"} and made.qrels == {"r1": {"a": 1}, "r2": {"b": 1, "c": 1}}
    assert corrected(FOUR, []) == FOUR
    disputed = [*LABELS, sign("r1", "reject", "bob", reason="no")]
    assert "r1" not in corrected(FOUR, disputed).queries and "r1" not in reviewed(FOUR, disputed).queries

def test_grades_and_judgements_of_irrelevance_stay():
    graded = Dataset(FOUR.corpus, {"r1": "x"}, {"r1": {"a": 3, "b": 0, "c": -1}})
    assert reviewed(graded, [sign("r1", "approve", dataset=graded)]).qrels == graded.qrels
    assert reviewed(graded, [sign("r1", "edit", dataset=graded, answers=("a", "b"))]).qrels == {"r1": {"c": -1, "a": 3, "b": 1}}

def test_undo_takes_back_one_label_after_the_other(log):
    for row in ("r1", "r2"): press(log, "approve", row)
    for left in ({"r1": "approve"}, {}):
        log.append(undo_of(log.labels(), log.labels(), "ann"))
        assert held(log) == left
    assert undo_of(log.labels(), log.labels(), "ann") is None and undo_of(log.labels(), log.labels(), "bob") is None

# figures

@ANYHOW
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_kappa_is_scikit_learns(pairs):
    from sklearn.metrics import cohen_kappa_score
    a, b = map(list, zip(*pairs))
    ours = kappa(a, b)
    if len({*a, *b}) == 1: assert ours.kappa is ours.low is None and ours.observed == 1
    else:
        assert ours.kappa == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
        assert ours.low - 1e-9 <= ours.kappa <= ours.high + 1e-9 and ours.high <= 1

def test_kappas_limits_hold_the_truth_as_often_as_they_promise():
    rng, right, held, times = random.Random(0), .85, 0, 400
    truth = (right**2 + (1 - right)**2 / 3 - .25) / .75  # each is right with .85, else one of three other categories
    for _ in range(times):
        rows = [rng.randrange(4) for _ in range(80)]
        a, b = ([r if rng.random() < right else (r + rng.randint(1, 3)) % 4 for r in rows] for _ in range(2))
        found = kappa(a, b)
        held += found.low <= truth <= found.high
    assert held / times > .93

def test_agreement_is_over_rows_that_both_judged():
    labels = [sign("r1", "approve"), sign("r1", "approve", "bob"), sign("r2", "approve"), sign("r2", "reject", "bob", reason="x"),
              sign("r3", "approve"), sign("r3", "skip", "bob")]
    found = agreement(outcomes(FOUR, labels), "ann", "bob")
    assert (found.n, found.observed) == (2, .5) and agreement({}, "ann", "bob").kappa is None

@pytest.mark.parametrize(("count", "n"), [(0, 20), (3, 20), (20, 20), (1, 1), (0, 1), (7, 1000)])
def test_shares_limits_are_scipys_exact_ones(count, n):
    from scipy.stats import binomtest
    theirs = binomtest(count, n).proportion_ci(method="exact")
    assert share(count, n) == pytest.approx((count / n, theirs.low, theirs.high, n))

def test_an_audit_counts_the_random_order_up_to_its_first_gap():
    data = Dataset({"a": "A", "b": "B"}, {f"r{n}": f"text {n}" for n in range(30)}, {f"r{n}": {"a": 1} for n in range(30)})
    order = by_chance(data)
    def label(row, action, **fields): return sign(row, action, dataset=data, **fields)
    labels = [label(row, "approve") for row in order[:6]] + [label(order[6], "edit", answers=("b",)), label(order[7], "skip"),
              label(order[8], "edit", text="only the text"), label(order[10], "reject", reason="after the gap")]
    assert audit(data, labels) == share(2, 9)  # the edit of the label and the skip
    assert audit(data, labels[1:]) == share(0, 0)

# the page, drawn without a browser (test_review_app.py has one)

def drawn(rows, log):
    from rag_finetune.review import page
    page(rows, log)

@pytest.fixture
def page(tmp_path, monkeypatch):
    "The page of three rows, for ann, and its log."
    from streamlit.testing.v1 import AppTest
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest puts its own there
    path = write_text(tmp_path / "rows.csv", "id,text,category\n" + "".join(f"r{n},Text {n},travel\n" for n in range(3)))
    app = AppTest.from_function(drawn, args=(str(path), str(tmp_path / "labels.jsonl")), default_timeout=60)
    app.query_params["reviewer"], app.query_params["order"] = "ann", "file"
    yield app.run(), LabelLog(tmp_path / "labels.jsonl")
    open_desk.cache_clear()

def click(app, name): return next(button for button in app.button if button.label == name).click().run()

def test_a_key_that_comes_as_soon_as_the_row_is_no_decision(page, monkeypatch):
    app, log = page
    for patience in (60, 60, 0):  # too quick, as is a key that is held down; then slow enough
        assert log.labels() == []
        monkeypatch.setattr("rag_finetune.review.QUICK", patience)
        click(app, "Approve")
    assert held(log) == {"r0": "approve"} and app.text[0].value == "Saved: approve r0"
    monkeypatch.setattr("rag_finetune.review.QUICK", 60)
    for key in ("Approve", "Skip", "Undo"):
        click(app, key)
        assert app.text[0].value.startswith("Not saved") and held(log) == {"r0": "approve"}

def test_what_was_said_once_is_not_written_again(page, monkeypatch):
    app, log = page
    monkeypatch.setattr("rag_finetune.review.QUICK", 0)
    for key, lines in (("Approve", 1), ("Approve", 1), ("Skip", 2), ("Approve", 3)):
        app.session_state["place"]["row"] = "r0"  # back to it, as after a kill between the label and the next row
        click(app.run(), key)
        assert len(log.labels()) == lines and app.text[0].value == f"Saved: {key.lower()} r0"

@pytest.mark.parametrize("action", ["Approve", "Skip"])
def test_a_label_that_was_taken_back_in_another_tab_does_not_count_as_saved(page, monkeypatch, action):
    app, log = page
    monkeypatch.setattr("rag_finetune.review.QUICK", 0)
    press(log, "approve", "r0")  # in another tab, which then takes it back
    log.append(undo_of(log.labels(), log.labels(), "ann"))
    click(app, action)
    assert app.text[0].value.startswith("Not saved: r0 was changed in another tab") and held(log) == {}
    click(app, action)
    assert app.text[0].value == f"Saved: {action.lower()} r0" and held(log) == {"r0": action.lower()}

def test_undo_is_acknowledged_once_it_stands(page, monkeypatch):
    app, log = page
    monkeypatch.setattr("rag_finetune.review.QUICK", 0)
    for key, row in (("Approve", "r0"), ("Approve", "r1"), ("Undo", "r1"), ("Undo", "r0")):
        click(app, key)
        assert app.text[0].value == f"Saved: {key.lower()} {row}"
    assert held(log) == {} and len(log.labels()) == 4

def test_one_reviewer_under_two_spellings_is_one(page, monkeypatch):
    app, log = page
    monkeypatch.setattr("rag_finetune.review.QUICK", 0)
    click(app, "Approve")
    app.session_state["place"]["reviewer"] = " Ann "
    click(app.run(), "Skip")
    assert held(log) == {"r0": "approve", "r1": "skip"}

def test_half_a_line_of_another_process_is_reported_on_the_page(page):
    app, log = page
    log.path.write_bytes(GOOD[:20])
    app.run()
    assert app.warning[0].value == "The log was repaired." and "half a line of 20 bytes" in app.text[0].value

def test_a_log_that_broke_meanwhile_is_named_in_a_line_and_not_as_markdown(page):
    app, log = page
    log.path.write_bytes(b"**no label**\n")
    app.run()
    assert not app.exception and f"{log.path}:1: not a label" in app.text[-1].value
    log.path.unlink()

def test_a_label_that_cannot_be_written_is_not_acknowledged(page, monkeypatch):
    app, log = page
    monkeypatch.setattr("rag_finetune.review.QUICK", 0)
    with open(log.path, "ab") as file: file.write(b"{}\n")
    click(app, "Approve")
    assert not any("Saved" in text.value for text in app.text)

# the command

def review(*words):
    from typer.testing import CliRunner

    from rag_finetune.cli import app
    done = CliRunner().invoke(app, ["review", *map(str, words)])
    return done.exit_code, done.output

def test_the_command_writes_what_came_out_as_a_folder_that_can_be_read(tmp_path):
    path = write_text(tmp_path / "rows.csv", "id,text,category\nr1,Taxi,ground\nr2,Lunch,ground\nr3,Bus,ground\n")
    code, said = review(path, "--reviewed", tmp_path / "out")
    assert code == 2 and "no row was approved or edited yet" in said and not (tmp_path / "out").exists()
    log, data = LabelLog(f"{path}.labels.jsonl"), joined(read_rows(path))
    log.append(sign("r1", "approve", dataset=data))
    log.append(sign("r2", "reject", dataset=data, reason="x"))
    log.append(sign("r1", "reject", "bob", dataset=data, reason="x"))
    code, said = review(path, "--corrected", tmp_path / "out")
    assert code == 0 and "1 rows on which reviewers disagree are left out" in said
    assert load(tmp_path / "out")["train"].queries == {"r3": "Bus"}

def test_the_command_overwrites_nothing(tmp_path):
    path = write_text(tmp_path / "rows.csv", "id,text,category\nr1,Taxi,ground\nr2,Lunch,ground\n")
    press(LabelLog(f"{path}.labels.jsonl"), "approve")
    for option in ("--reviewed", "--corrected"):
        code, said = review(path, option, tmp_path)
        assert code == 2 and f"{option} {tmp_path}: exists and is not an empty folder" in said
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".csv") == ["rows.csv"] and not (tmp_path / "qrels").exists()

def test_the_command_asks_a_model_for_answers_and_nearest_rows(tmp_path):
    from tiny import tiny_model
    path = write_text(tmp_path / "rows.csv", "id,text,category\nr1,red ball,red\nr2,blue car,blue\nr3,blue ball,\n")
    code, said = review(path, "--model", tiny_model(tmp_path / "tiny"), "--reviewed", tmp_path / "out")
    base, nearest = (read_run(f"{path}.labels.jsonl.{name}.trec") for name in ("base", "nearest"))
    assert code == 2 and "base.trec" in said  # nothing was reviewed yet
    assert {row: set(found) for row, found in base.items()} == dict.fromkeys(("r1", "r2", "r3"), {"red", "blue"})
    assert nearest["r3"]["r3"] == pytest.approx(1) and set(nearest["r3"]) == {"r1", "r2", "r3"}
    desk = open_desk(str(path), f"{path}.labels.jsonl", "", *(f"{path}.labels.jsonl.{name}.trec" for name in ("base", "nearest")))
    assert next(iter(desk.orders)) == "most disputed" and set(desk.nearest["r3"]) == {"r1", "r2"}  # not itself

def test_the_command_names_what_is_wrong_before_it_starts_a_server(tmp_path):
    path = write_text(tmp_path / "rows.csv", "id,text,category\nr1,Taxi\n")
    code, said = review(path)
    assert code == 2 and said.startswith(f"error: {path}:2: 2 fields where the header has 3") and said.count("\n") == 1
    write_text(path, "id,text,category\nr1,Taxi,ground\n")
    write_text(tmp_path / "rows.csv.labels.jsonl", "{\n{}\n")
    assert review(path)[1].startswith(f"error: {path}.labels.jsonl:1: not a label")

# the log: several processes, and kill -9

class Writer:
    "A process that writes labels, and what it said it has written."
    def __init__(self, path, name, count=100_000):
        ours, theirs = START.Pipe(duplex=False)
        self.told, self.process = [], child(write, path, name, count, theirs)
        theirs.close()
        assert ours.recv() == "ready"
        self.thread = Thread(target=self.listen, args=(ours,))
        self.thread.start()

    def listen(self, pipe):
        try:
            while True: self.told.append(pipe.recv())
        except EOFError: return  # it has ended, or was killed

    def ended(self):
        "How the process ended, once all that it said is known."
        self.thread.join(60), self.process.join(60)
        return self.process.exitcode

def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
    writers = [Writer(tmp_path / "x", name, 60) for name in "abc"]
    assert [writer.ended() for writer in writers] == [0, 0, 0]
    labels = LabelLog(tmp_path / "x").labels()
    assert sorted(label.id for label in labels) == sorted(f"{name}-{n}" for name in "abc" for n in range(60))
    assert (tmp_path / "x").read_bytes().count(b"\n") == 180

ROUNDS = 20  # with two writers each, so that one dies while the other writes

@pytest.mark.slow
def test_kill_9_loses_no_label_that_was_acknowledged_and_doubles_none(tmp_path):
    path, told, rng = tmp_path / "x", [], random.Random(0)
    for number in range(ROUNDS):
        writers = [Writer(path, f"{number}{side}") for side in "ab"]
        for writer in rng.sample(writers, 2):
            time.sleep(rng.uniform(0, .1))
            writer.process.kill()
        assert [writer.ended() for writer in writers] == [-signal.SIGKILL] * 2
        told += [label for writer in writers for label in writer.told]
    labels = [label.id for label in LabelLog(path).labels()]
    print(f"{2 * ROUNDS} kills: {len(told)} labels acknowledged, {len(labels)} in the log")
    assert len(told) > 2 * ROUNDS
    assert set(told) <= set(labels)
    assert path.read_bytes().count(b"\n") == len(labels) == len(set(labels))  # a line for each: none doubled
    assert len(labels) - len(told) <= 2 * ROUNDS                              # at most the one that each was writing
