"""The picture of the whole pipeline, a box for each notebook: on the site with links, in assets/pipeline/ one file for each notebook.

    python docs/pipeline.py   # writes assets/pipeline/NN_name.svg, that notebook's box lit
"""
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "assets" / "pipeline"

class Box(NamedTuple):
    "A notebook's place: column and row, and what stands in it; `command` is a link's text and target."
    name: str
    column: int
    row: int
    title: str
    what: str
    command: tuple[str, str] | None = None

RUN, COMPARE = ("run", "commands.html#run"), ("compare", "commands.html#compare")
CORE = 5   # its row
BOXES = [
    Box("01_data", 0, 1, "Data", "read, check, split", RUN),
    Box("02_synthetic", 0, 2, "Synthetic", "made on purpose", ("synthesize", "commands.html#synthesize")),
    Box("03_review", 0, 0, "Review", "label by label", ("review", "commands.html#review")),
    Box("04_metrics", 2, 1, "Metrics", "a value per query", COMPARE),
    Box("05_models", 1, 2, "Models", "open, encode", RUN),
    Box("06_retrieval", 1, 1, "Retrieval", "words and vectors", RUN),
    Box("07_verdict", 3, 1, "Verdict", "did it help?", COMPARE),
    Box("08_ladder", 1, 0, "Ladder", "the cheap rungs", RUN),
    Box("09_negatives", 3, 2, "Negatives", "close, but wrong", RUN),
    Box("10_embedding", 2, 2, "Embedding", "fine-tune it", RUN),
    Box("12_lora", 2, 3, "LoRA", "small adapters"),
    Box("13_losses", 3, 3, "Losses", "which for which data"),
    Box("14_training", 4, 3, "Training", "stopped, resumed", RUN),
    Box("15_probe", 1, 3, "Probe", "what it knows now"),
    Box("11_reranker", 1, 4, "Reranker", "reads both together", RUN),
    Box("16_pairs", 0, 4, "Pairs", "what a reranker reads"),
    Box("17_flag", 0, 3, "FlagEmbedding", "another trainer"),
    Box("18_tiers", 3, 4, "Two tiers", "how deep, how sure", RUN),
    Box("19_rerankers", 2, 4, "Rerankers", "side by side"),
    Box("20_late", 4, 4, "Late interaction", "tokens, trained"),
    Box("80_report", 4, 1, "Report", "one HTML file", RUN),
    Box("90_pipeline", 3, 0, "Pipeline", "all of it, one call", RUN),
    Box("91_cli", 4, 0, "Commands", "run, compare", ("help", "commands.html")),
    Box("00_core", 0, CORE, "The four dicts", "corpus, queries, qrels, runs: all that flows"),
]
WIDE, GAP, EDGE, RISE, BAR = 140, 24, 12, 32, 40   # box, between columns, around, between rows, the core's height
TOTAL = 2 * EDGE + 5 * WIDE + 4 * GAP

STYLE = """
.pipeline{--card:#fff;--box:#f4f6f9;--line:#707986;--ink:#1b2430;--soft:#4d5663;--link:#1a56a8;--lit:#1d5fae;--on-lit:#fff}
@media(prefers-color-scheme:dark){.pipeline{--card:#14181d;--box:#20262e;--line:#8b95a3;--ink:#eef2f6;--soft:#b9c2cd;--link:#8fbfff;
--lit:#9cc7ff;--on-lit:#0b1626}}
"""
SHAPES = """
.pipeline text{font-family:system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:11.5px;fill:var(--soft);
text-anchor:middle}
.pipeline .links{font-size:11px}.pipeline .beside{font-size:11.5px;font-weight:400}
.pipeline .card{fill:var(--card)}.pipeline .box{fill:var(--box);stroke:var(--line)}
.pipeline .title{font-size:14px;font-weight:600;fill:var(--ink)}.pipeline .flow{fill:none;stroke:var(--line);stroke-width:1.5}
.pipeline .head{fill:var(--line)}.pipeline a text,.pipeline a tspan{fill:var(--link);text-decoration:underline}
.pipeline .lit .box{fill:var(--lit);stroke:var(--lit);stroke-width:3}
.pipeline .lit text,.pipeline .lit .title,.pipeline .lit a text,.pipeline .lit a tspan{fill:var(--on-lit)}
"""

def notebooks() -> list[str]:
    "The names of the notebooks that have a box, in reading order."
    return sorted(box.name for box in BOXES)

def _one_line(css: str) -> str: return css.replace("\n", "")

def _links(box: Box) -> str:
    "Lesson, API and command as the last line in a box."
    targets = [("lesson", f"{box.name}.html"), ("API", f"api/{box.name[3:]}.html"), *([box.command] if box.command else [])]
    def link(text, to): return f'<a href="{to}" aria-label="{box.title}: {text}"><tspan>{text}</tspan></a>'
    return " · ".join(link(*target) for target in targets)

def _lines(box: Box, links: bool) -> list[tuple[str, str, int]]:
    "The lines of a box: class, text, and how far below its upper edge."
    last = _links(box) if links else ""
    if box.row == CORE: return [("title", f'{box.title}<tspan class="beside"> {box.what}{" · " + last if last else ""}</tspan>', 25)]
    return [("title", box.title, 20), ("", box.what, 37), *([("links", last, 55)] if last else [])]

def _drawn(box: Box, high: int, lit: bool, links: bool) -> str:
    "One box with its texts; the core's is a bar below all the others."
    x, y = _corner(box, high)
    wide, tall = (TOTAL - 2 * EDGE, BAR) if box.row == CORE else (WIDE, high)
    texts = "".join(f'<text class="{name}" x="{x + wide / 2:g}" y="{y + down}">{text}</text>' for name, text, down in _lines(box, links))
    here = ' aria-current="page"' if lit and links else ""
    shape = f'<rect class="box" x="{x}" y="{y}" width="{wide}" height="{tall}" rx="7"/>'
    return f'<g class="{"lit" if lit else "unlit"}"{here}>{shape}{texts}</g>'

def _corner(box: Box, high: int) -> tuple[int, int]: return EDGE + box.column * (WIDE + GAP), EDGE + box.row * (high + RISE)

def _flows(high: int) -> list[str]:
    "The arrows as paths; each says what flows in the order of design: data to runs to metrics to verdict, and runs to a model and back."
    def left(c): return EDGE + c * (WIDE + GAP)
    def middle(c): return left(c) + WIDE // 2
    def top(r): return EDGE + r * (high + RISE)
    across, under, below = top(1) + high // 2, top(2) - RISE // 2, top(3) - RISE // 2
    return [
        *(f"M{left(c) + WIDE} {across}H{left(c + 1) - 5}" for c in range(4)),
        f"M{middle(0)} {top(2)}V{top(1) + high + 5}",                                                   # synthetic: to data
        f"M{middle(0)} {top(0) + high}V{top(1) - 5}",                                                   # what was reviewed: to data
        f"M{left(1) - GAP // 2} {across}V{top(0) + high // 2}H{left(1) - 5}",                           # data: to the ladder
        f"M{left(1) + WIDE} {top(0) + high // 2}H{middle(2)}V{top(1) - 5}",                             # the rungs' runs: to metrics
        f"M{middle(1)} {top(2)}V{top(1) + high + 5}",                                                   # a model: to retrieval
        f"M{left(2) - GAP // 2} {across}V{under}H{middle(3)}V{top(2) - 5}",                             # runs: to negatives
        f"M{left(3)} {top(2) + high // 2}H{left(2) + WIDE + 5}",                                        # negatives: to embedding
        f"M{left(2)} {top(2) + high // 2}H{left(1) + WIDE + 5}",                                        # the tuned model: among models
        f"M{middle(2)} {top(3)}V{top(2) + high + 5}",                                                   # adapters: to embedding
        f"M{middle(3)} {top(3)}V{below}H{middle(2) + GAP}V{top(2) + high + 5}",                         # losses: to embedding
        f"M{middle(4)} {top(3)}V{below}H{middle(2) + GAP}V{top(2) + high + 5}",                         # training: the same way
        f"M{middle(1)} {top(2) + high}V{top(3) - 5}",                                                   # a model: to what it knows
        *(f"M{left(c) + WIDE} {top(4) + high // 2}H{left(c + 1) - 5}" for c in range(3)),               # pairs: to the second tier
        f"M{left(4)} {top(4) + high // 2}H{left(3) + WIDE + 5}",                                        # trained tokens: to the second tier
        f"M{left(0) + WIDE} {top(3) + high // 2}H{left(1) - GAP // 2}V{top(4) + high // 2}H{left(1) - 5}",   # the other trainer: a reranker
        f"M{left(4)} {top(0) + high // 2}H{left(3) + WIDE + 5}",                                        # the commands call the pipeline
    ]

def pipeline_svg(
    lit: str | None,    # the notebook whose box is lit, as "06_retrieval"; None for none
    links: bool,        # with links to lesson, API and command, for a page of the site; without, a file that stands alone
) -> str:
    "The picture as SVG of one line; colours follow the page's variables on the site, the reader's colour scheme in a file."
    assert lit is None or lit in notebooks(), f"{lit} has no box: add one to BOXES"
    high = 66 if links else 48
    total = 2 * EDGE + CORE * (high + RISE) + BAR
    flows = "".join(f'<path class="flow" d="{d}" marker-end="url(#arrow)"/>' for d in _flows(high))
    boxes = "".join(_drawn(box, high, box.name == lit, links) for box in BOXES)
    title = "The pipeline: data, retrieval, metrics, verdict, report; runs also give the negatives that train the model"
    if lit: title += f". You are in {next(box.title for box in BOXES if box.name == lit)}"
    style = _one_line(SHAPES if links else STYLE + SHAPES)  # a page of the site brings the colours itself
    arrow = '<marker id="arrow" viewBox="0 0 6 6" refX="1" refY="3" markerWidth="5" markerHeight="5" orient="auto">'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="pipeline" viewBox="0 0 {TOTAL} {total}" role="{"group" if links else "img"}" '
            f'aria-label="{title}"><title>{title}</title><style>{style}</style>'
            f'<defs>{arrow}<path class="head" d="M0 0L6 3L0 6z"/></marker></defs>'
            f'<rect class="card" width="{TOTAL}" height="{total}" rx="10"/>{flows}{boxes}</svg>')

def write() -> None:
    "A file for each notebook, with its box lit."
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in notebooks(): (FOLDER / f"{name}.svg").write_text(pipeline_svg(name, links=False) + "\n", encoding="utf-8")

if __name__ == "__main__": write()
