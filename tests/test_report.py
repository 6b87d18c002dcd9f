"What a reader of the report relies on: it opens offline, runs nothing, says the same for the same figures, and leaves nothing out."
import copy
import re
from html.parser import HTMLParser

import pytest

from rag_finetune.report import write_report

METRICS = ("accuracy@1", "accuracy@3", "recall@10", "MRR@10", "nDCG@10")
VOID = {"meta", "br", "wbr", "img", "hr", "link", "input"}
HOSTILE = """<script>alert('x')</script>"><img src="https://example.org/x" onerror='alert(1)'> {{ 7 * 7 }} --> ]]>"""


def row(mean): return {m: {"mean": mean, "low": mean - .05, "high": mean + .05, "n": 60} for m in METRICS}


def compared(a, b, metric):
    return {"a": a, "b": b, "metric": metric, "difference": .123, "low": .1, "high": .15, "p": .001, "p_holm": .0042,
            "wins": 30, "ties": 20, "losses": 10, "n": 60, "detectable": .06}


RESULTS = {
    "dataset": {"name": "made up", "fingerprint": {"train": "ab12", "test": "cd34"}, "documents": 2, "train": 90, "dev": 30, "test": 60,
                "dev_carved": True, "warnings": ["7 queries dropped"]},
    "systems": {"bm25": row(.4), "base": row(.5), "adapter": row(.55), "tuned": row(.673), "tuned+bm25": row(.6)},
    "skipped": {"frozen-lr": "5,000 documents are too many classes"},
    "slices": {"seen": {s: row(.6) for s in ("bm25", "base", "adapter", "tuned", "tuned+bm25")},
               "unseen": {s: row(.31) for s in ("bm25", "base", "adapter", "tuned", "tuned+bm25")}},
    "comparisons": [compared(a, b, m) for a in ("tuned", "tuned+bm25") for b in ("base", "adapter") for m in METRICS],
    "verdict": {"decision": "better", "sentence": "tuned is better than adapter: nDCG@10 +.123",
                "against_base": "tuned is better than base", "chosen": "tuned", "best_cheap": "adapter"},
    "settings": {"seed": 0, "train_limit": None, "adapter": [.01, "answers"]}, "environment": {"python": "3.11"},
    "forgetting": {"set": "elsewhere", "documents": 12, "judged": 34, "refit": True, "share": .5,
                   "sentence": "tuned is worse than base: nDCG@10 -.042",
                   "comparison": compared("tuned", "base", "nDCG@10"),
                   "curve": [{"share": s, "dev": row(.5 + s / 5)["nDCG@10"], "other": row(.4 - s / 10)["nDCG@10"]} for s in (0., .5, 1.)]},
    "seconds": {"train": 61.5, "test, once": 3.}}
COSINES = {"base": {"positive": [.5, .6, .7, .2], "negative": [.4, .65, .3, .5]},
           "tuned": {"positive": [.5, .7, .7], "negative": [.4, .65, .8]}}
MOVED = {"query": HOSTILE, "relevant": "the & answer", "base_rank": None, "tuned_rank": 1,
         "base_first": "other", "tuned_first": "the & answer"}
DETAILS = {
    "curves": {"in-batch": [{"epoch": 0, "loss": None, "dev": .5}, {"epoch": 1, "loss": 1., "dev": .6}],
               "remembered": [{"epoch": 0, "loss": None, "dev": .5}, {"epoch": 1, "loss": .5, "dev": .7}]},
    "recipe": "remembered", "kept_epoch": 1, "dev": {"base": .444, "tuned": .777}, "scores": COSINES,
    "map": {"base": [[0, 0], [1, 1]], "tuned": [[1, 0], [0, 1]], "labels": [HOSTILE, "b"]}, "queries": {"gained": [MOVED], "lost": []}}
NOTHING: dict[str, list[float]] = {"positive": [], "negative": []}
ALONE = {**RESULTS, "slices": {}, "forgetting": None, "skipped": {}, "systems": {"base": row(.5)}, "comparisons": [],
         "verdict": {**RESULTS["verdict"], "decision": "not_enough", "sentence": "cannot tell", "chosen": "base", "best_cheap": "base"}}


class Page(HTMLParser):
    "Checks that tags close in order, and collects attributes and text."
    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.tables = [], [], "", []
        self.feed(text)
        assert not self.open
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID: self.open.append(tag)

    def handle_startendtag(self, tag, attrs): self.attributes += [(tag, k, v) for k, v in attrs]
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data

    def values(self, attribute, *tags): return [v for tag, k, v in self.attributes if k == attribute and (not tags or tag in tags)]


def written(tmp_path, results=RESULTS, details=DETAILS):
    write_report(results, details, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_verdict_and_every_figure_are_there(tmp_path):
    text = Page(written(tmp_path)).text
    for said in ("It helped.", "tuned is better than adapter", "nDCG@10 +.123", ".673 [.623, .723]",
                 "against base+.123 [+.100, +.150] p = .004", "against adapter, the best cheap rung+.123 [+.100, +.150] p = .004",
                 "7 queries dropped", "frozen-lr (5,000 documents are too many classes)",
                 "unseen (60 queries)", "On elsewhere, which was not trained for (60 queries, 12 documents): tuned is worse than base",
                 ".310 [.260, .360]", "30 / 20 / 10",
                 ".060", ".777", "61.5 s", "64.5 s", "rank over 100 before, 1 after", "first afterthe relevant one",
                 "remembered, epoch 1", "All 20 paired tests", "dev_carvedyes", "train ab12, test cd34", "train_limit–", "0.01, answers",
                 "before (base): relevant document in front in 2 of 4 queries (50%)",
                 "after (tuned): relevant document in front in 2 of 3 queries (67%)",
                 "◆ tuned chosen", "● adapter best cheap"): assert said in text, said


def test_a_text_is_shown_and_not_run(tmp_path):
    page = Page(written(tmp_path))
    assert HOSTILE in page.text and "the & answer" in page.text
    assert not {tag for tag, _, _ in page.attributes} & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")] and "<script" not in written(tmp_path)


def test_a_mark_of_the_map_has_its_document_as_title(tmp_path):
    page = Page(written(tmp_path, RESULTS, {**DETAILS, "queries": {}}))
    assert page.text.count(HOSTILE) == 2, "once before, once after"


def test_nothing_is_asked_from_outside(tmp_path):
    page = Page(written(tmp_path))
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"): assert value.startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!#)|@import", written(tmp_path))


def test_every_link_has_its_place_and_every_id_is_one(tmp_path):
    page = Page(written(tmp_path))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {v.lstrip("#") for v in page.values("href", "a")} <= set(ids) and len(page.values("href", "a")) == 9
    assert {v.lstrip("#") for v in page.values("xlink:href")} <= set(ids)


def test_every_picture_and_every_box_says_what_it_shows(tmp_path):
    page = Page(written(tmp_path))
    pictures, boxes = (page.values("aria-label", tag) for tag in ("svg", "div"))
    assert len(pictures) == 8 and all(pictures) and len(set(pictures)) == 8
    assert "nDCG@10 of 5 systems with 95% intervals; the highest is tuned, .673 [.623, .723]" in pictures
    assert len(boxes) == len(page.values("tabindex", "div")) == 4 and all(boxes), "a box that scrolls is reached by keyboard"


def test_cheap_and_tuned_differ_by_shape_too(tmp_path):
    rows = re.findall(r"([◆●])</span>&nbsp;([\w+<>.-]+?)(?: <|</th>)", written(tmp_path))
    shapes = {name.replace("<wbr>", ""): mark for mark, name in rows}
    assert shapes == {"tuned": "◆", "tuned+bm25": "◆", "bm25": "●", "base": "●", "adapter": "●"}


def test_the_same_figures_give_the_same_bytes(tmp_path):
    assert written(tmp_path) == written(tmp_path)


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    before = written(tmp_path)
    with pytest.raises(KeyError): write_report({**RESULTS, "systems": {"tuned": {}}}, DETAILS, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("decision", ["better", "worse", "no_difference", "not_enough"])
def test_each_decision_has_its_words(decision, tmp_path):
    results = copy.deepcopy(RESULTS)
    results["verdict"]["decision"] = decision
    said = {"better": "✓ It helped.", "worse": "✗ It made things worse.", "no_difference": "≈ No difference worth the cost.",
            "not_enough": "? Not enough queries to tell."}
    assert [text for text in said.values() if text in Page(written(tmp_path, results)).text] == [said[decision]]


@pytest.mark.parametrize("key", DETAILS)
@pytest.mark.parametrize("none", [True, False], ids=["none", "missing"])
def test_a_detail_may_be_missing(key, none, tmp_path):
    details = {k: v for k, v in DETAILS.items() if k != key}
    Page(written(tmp_path, RESULTS, {**details, key: None} if none else details))


@pytest.mark.parametrize(("details", "moved"), [
    ({}, False),
    ({**DETAILS, "curves": {"a": [{"epoch": 1, "loss": .5, "dev": None}]}, "recipe": "a"}, True),
    ({"curves": {"a": [{"epoch": 0, "loss": None, "dev": None}]}, "recipe": "a", "kept_epoch": 0}, False),
    ({"scores": {"base": NOTHING, "tuned": {"positive": [.5], "negative": [.5]}}}, True),
    ({"scores": {"base": NOTHING, "tuned": NOTHING}, "queries": {"gained": [], "lost": []}}, False),
    ({"map": {"base": [[0, 0]] * 3, "tuned": [[0, 0]] * 3, "labels": [""] * 3}}, True),
    ({"map": {"base": [], "tuned": [], "labels": []}}, False),
], ids=["none", "no dev", "no curve", "one score", "no scores", "no labels", "no points"])
def test_what_a_run_may_lack_is_left_out(details, moved, tmp_path):
    text = Page(written(tmp_path, ALONE, details)).text
    assert "Not enough queries to tell." in text and "Documents that training saw" not in text and "Left out" not in text
    assert "Against the model as it came" not in text and "Comparisons" not in text
    assert ("What moved" in text) == moved


def test_a_value_that_is_none_or_no_number_or_rounded_is_shown(tmp_path):
    results = copy.deepcopy(ALONE)
    results["systems"] = {"base": {m: {"mean": .3 - 1e-17, "low": .3 + 1e-17, "high": .3, "n": 1} for m in METRICS},
                          "tuned": {m: {"mean": 0., "low": None, "high": float("nan"), "n": 0} for m in METRICS}}
    results["systems"]["base"]["nDCG@10"]["low"] = .3 + 1e-9  # an interval may miss its mean by a rounding
    results["comparisons"] = [{**compared("base", "base", "nDCG@10"), "detectable": None, "difference": -1e-9}]
    assert ".000 [–, –]" in Page(written(tmp_path, results, {})).text


def test_a_long_text_is_cut_and_kept(tmp_path):
    long = "word " * 300 + "end"
    text = written(tmp_path, RESULTS, {"queries": {"gained": [{**MOVED, "query": long, "tuned_first": ""}]}})
    assert f"</summary>{long}</details>" in text and "word...</summary>" in text and "(nothing)" in text
    assert len(written(tmp_path, RESULTS, {"queries": {"gained": [{**MOVED, "query": "x" * 1_000_000}]}})) < 200_000
