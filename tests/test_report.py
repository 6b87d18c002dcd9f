"What a reader of the report relies on: it opens offline, runs nothing, says the same for the same figures, and leaves nothing out."
import copy
import re
from html.parser import HTMLParser

import pytest

from rag_finetune.report import write_report

METRICS = ("accuracy@1", "accuracy@3", "recall@10", "MRR@10", "nDCG@10")
VOID = {"meta", "br", "img", "hr", "link", "input"}


def row(mean): return {m: {"mean": mean, "low": mean - .05, "high": mean + .05, "n": 60} for m in METRICS}


def compared(a, b, metric):
    return {"a": a, "b": b, "metric": metric, "difference": .123, "low": .1, "high": .15, "p": .001, "p_holm": .0042,
            "wins": 30, "ties": 20, "losses": 10, "n": 60, "detectable": .06}


RESULTS = {
    "dataset": {"name": "made up", "dev": 30, "test": 60, "warnings": ["7 queries dropped"]},
    "systems": {"bm25": row(.4), "base": row(.5), "adapter": row(.55), "tuned": row(.673), "tuned+bm25": row(.6)},
    "skipped": {"frozen-lr": "5,000 documents are too many classes"},
    "slices": {"seen": {s: row(.6) for s in ("bm25", "base", "adapter", "tuned", "tuned+bm25")},
               "unseen": {s: row(.31) for s in ("bm25", "base", "adapter", "tuned", "tuned+bm25")}},
    "comparisons": [compared("tuned", b, m) for b in ("base", "adapter") for m in METRICS],
    "verdict": {"decision": "better", "sentence": "tuned is better than adapter: nDCG@10 +.123",
                "against_base": "tuned is better than base", "chosen": "tuned", "best_cheap": "adapter"},
    "settings": {"seed": 0}, "environment": {"python": "3.11"}, "seconds": {"train": 61.5}}
COSINES = {"positive": [.5, .6, .7], "negative": [.4, .65, .3]}
MOVED = {"query": "<script>alert('x')</script>", "relevant": "the & answer", "base_rank": None, "tuned_rank": 1,
         "base_first": "other", "tuned_first": "a"}
DETAILS = {
    "curves": {"in-batch": [{"epoch": 0, "loss": None, "dev": .5}, {"epoch": 1, "loss": 1., "dev": .6}],
               "remembered": [{"epoch": 0, "loss": None, "dev": .5}, {"epoch": 1, "loss": .5, "dev": .7}]},
    "recipe": "remembered", "kept_epoch": 1, "scores": {"base": COSINES, "tuned": COSINES},
    "map": {"base": [[0, 0], [1, 1]], "tuned": [[1, 0], [0, 1]], "labels": ["a", "b"]}, "queries": {"gained": [MOVED], "lost": []}}


class Page(HTMLParser):
    "Checks that tags close in order, and collects attributes and text."
    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID: self.open.append(tag)

    def handle_startendtag(self, tag, attrs): self.attributes += [(tag, k, v) for k, v in attrs]
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data


def written(tmp_path, results=RESULTS, details=DETAILS):
    write_report(results, details, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_verdict_and_every_figure_are_there(tmp_path):
    text = Page(written(tmp_path)).text
    for said in ("It helped.", "tuned is better than adapter: nDCG@10 +.123", "0.673 [0.623, 0.723]",
                 "+0.123 [+0.100, +0.150] against base", "+0.123 [+0.100, +0.150] against adapter", "7 queries dropped",
                 "5,000 documents are too many classes", "unseen (60 queries)", "0.310 [0.260, 0.360]", "0.0042", "61.5 s",
                 "rank over 100 before", "remembered, epoch 1"): assert said in text


def test_a_query_is_shown_and_not_run(tmp_path):
    page = Page(written(tmp_path))
    assert "<script>alert('x')</script>" in page.text and "the & answer" in page.text
    assert not any(tag == "script" for tag, _, _ in page.attributes) and "<script" not in written(tmp_path)


def test_nothing_is_asked_from_outside(tmp_path):
    page = Page(written(tmp_path))
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data"): assert value.startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!#)|@import", written(tmp_path))


def test_every_picture_says_what_it_shows(tmp_path):
    page = Page(written(tmp_path))
    labels = [v for tag, k, v in page.attributes if tag == "svg" and k == "aria-label"]
    assert len(labels) == 4 and all(labels)
    ids = [v for _, k, v in page.attributes if k == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_figures_give_the_same_bytes(tmp_path):
    assert written(tmp_path) == written(tmp_path)


@pytest.mark.parametrize("decision", ["better", "worse", "no_difference", "not_enough"])
def test_each_decision_has_its_words(decision, tmp_path):
    results = copy.deepcopy(RESULTS)
    results["verdict"]["decision"] = decision
    said = {"better": "It helped.", "worse": "It made things worse.", "no_difference": "No difference worth the cost.",
            "not_enough": "Not enough queries to tell."}
    assert [text for text in said.values() if text in Page(written(tmp_path, results)).text] == [said[decision]]


def test_what_a_run_may_lack_is_left_out(tmp_path):
    bare = {**RESULTS, "slices": {}, "skipped": {}, "systems": {"base": row(.5), "tuned": row(.5)}, "comparisons": [],
            "verdict": {**RESULTS["verdict"], "best_cheap": "base"}}
    empty = {"positive": [], "negative": []}
    curve = [{"epoch": 0, "loss": None, "dev": None}, {"epoch": 1, "loss": .5, "dev": None}]
    details = {**DETAILS, "map": {}, "scores": {"base": empty, "tuned": empty}, "queries": {"gained": [], "lost": []},
               "curves": {"in-batch": curve}, "recipe": "in-batch"}
    text = Page(written(tmp_path, bare, details)).text
    assert "Documents that training saw" not in text and "Left out" not in text and "None." in text
