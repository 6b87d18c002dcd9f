"The review page in a browser, by keyboard: labels, refresh, two tabs, kill -9, hostile rows, a phone; and who can reach its server."
import csv
import json
import random
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import psutil
import pytest
from websocket import WebSocketBadStatusException, create_connection

from rag_finetune.data import write_run
from rag_finetune.review import QUICK, Label, LabelLog, current, joined, read_rows, seen

pytestmark = pytest.mark.slow
PATIENCE = 90_000  # milliseconds; a machine under test is a slow one
COMMAND = "from rag_finetune.cli import app; app()"
HIT = "document.title='hit'"
HOSTILE = (f"""Lunch <img src=x onerror="{HIT}"><script>{HIT}</script><svg onload={HIT}> """
           "**b** ![p](http://192.0.2.1/p.png) :red[x] :smile: :material/home: $x^2$")

class Server:
    "The command's page of a file of rows."
    def __init__(self, folder, rows):
        self.file = folder / "rows.csv"
        with open(self.file, "w", newline="", encoding="utf-8") as file: csv.writer(file).writerows([("id", "text", "category"), *rows])
        self.dataset = joined(read_rows(self.file))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home, self.log = f"http://127.0.0.1:{self.port}/", f"{self.file}.labels.jsonl"
        write_run({r: {d: float(d == "meals") for d in self.dataset.corpus} for r in self.dataset.queries}, folder / "base.trec")
        write_run({r: {o: .5 for o in list(self.dataset.queries)[:4] if o != r} for r in self.dataset.queries}, folder / "near.trec")
        self.options = ["--base", folder / "base.trec", "--nearest", folder / "near.trec"]
        self.process, self.said = None, folder / "said.txt"

    def start(self):
        words = [self.file, "--no-browser", "--port", str(self.port), *self.options]
        with open(self.said, "a") as said:
            self.process = subprocess.Popen([sys.executable, "-c", COMMAND, "review", *words], stdout=said, stderr=said)
        end = time.time() + 120
        while True:
            try: return urlopen(f"{self.home}_stcore/health", timeout=5).status
            except OSError:
                assert self.process.poll() is None and time.time() < end, self.said.read_text()
                time.sleep(.2)

    def kill(self):
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def labels(self): return [json.loads(line) for line in open(self.log, encoding="utf-8")]
    def held(self, reviewer="ann"): return {r: label.action for r, label in current(LabelLog(self.log).labels()).get(reviewer, {}).items()}

@pytest.fixture
def serve(tmp_path):
    "A function that starts the page for these rows."
    servers = []
    def start(rows):
        servers.append(Server(tmp_path, rows))
        servers[-1].start()
        return servers[-1]
    yield start
    for server in servers: server.process.kill(), server.process.wait()

@pytest.fixture
def window(browser):
    "A function that opens a window, which collects what it asks for outside and what goes wrong in it."
    contexts = []
    def open_window(address, width=1200, height=900, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.outside, page.wrong = [], []
        page.on("request", lambda r: page.outside.append(r.url) if not r.url.startswith(("http://127.0.0.1:", "data:", "blob:")) else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(address)
        return page
    yield open_window
    for context in contexts: context.close()

ROWS = [("r1", "Taxi to the airport", "travel"), ("r2", "Lunch with a client", "travel"), ("r3", "Team lunch", "meals"),
        ("r4", "Dinner on the train", "meals"), ("r5", "Bus ticket", "travel")]

# pressing keys

IDLE = "() => document.querySelector('[data-test-script-state=notRunning]')"
READY = """() => document.querySelector("[data-test-script-state=notRunning]")
    && [...document.querySelectorAll(".st-key-keys button")].some(b => b.innerText.startsWith("Skip") && !b.disabled)"""
FOCUSED = "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"

def focus(page, name):
    "Press Tab until `name` has the focus."
    for _ in range(40):
        if (page.evaluate(FOCUSED) or "").startswith(name): return
        page.keyboard.press("Tab")
    raise AssertionError(f"no way to {name} by Tab; at the end: {page.evaluate(FOCUSED)}")

def enter(page, name="ann"):
    "Give a name, by keyboard."
    page.get_by_text("Who reviews?").wait_for()
    focus(page, "Your name")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_function(READY)

def card(page, text):
    "Wait for the row, until its keys can be pressed and it has been there for longer than a second click takes to come."
    page.locator(".st-key-card").get_by_text(text, exact=True).wait_for()
    page.wait_for_function(READY)
    time.sleep(QUICK)

def told(page, text): page.locator(".st-key-told").get_by_text(text, exact=True).wait_for()
def dialog(page, title):
    page.get_by_role("dialog").get_by_text(title).wait_for()
    page.wait_for_function(IDLE)

def holds(page, name, value):
    "Wait until a field has its value."
    from playwright.sync_api import expect
    expect(page.get_by_role("dialog").get_by_label(name, exact=True)).to_have_value(value, timeout=PATIENCE)

def closed(page):
    "Wait until the window is gone, and as long as nobody's next key comes sooner: closing it draws the page again."
    page.get_by_role("dialog").wait_for(state="detached")
    time.sleep(QUICK)
    page.wait_for_function(READY)

def address(page, **parts): page.wait_for_url(lambda url: all(f"{k}={v}" in url for k, v in parts.items()))

# all of it

def test_everything_is_done_by_keyboard_and_stands_in_the_log_before_the_page_says_so(serve, window):
    server = serve(ROWS)
    page = window(f"{server.home}?order=file")
    enter(page)
    card(page, "Taxi to the airport")
    page.keyboard.press("a")
    told(page, "Saved: approve r1")
    assert server.held() == {"r1": "approve"}
    card(page, "Lunch with a client")

    page.keyboard.press("e")
    dialog(page, "Edit this row")
    holds(page, "Text", "Lunch with a client")
    focus(page, "Text")
    page.keyboard.press("End"), page.keyboard.type(", add as a letter")  # letters that are keys elsewhere
    focus(page, "Label")
    page.keyboard.type("meals"), page.keyboard.press("Enter")
    focus(page, "Save")
    page.keyboard.press("Enter")
    told(page, "Saved: edit r2"), closed(page)
    assert server.labels()[-1].items() >= {"row": "r2", "text": "Lunch with a client, add as a letter", "answers": ["meals"]}.items()

    card(page, "Team lunch")
    page.keyboard.press("x")
    dialog(page, "Why reject it?")
    page.keyboard.press("2")
    told(page, "Saved: reject r3"), closed(page)
    assert server.labels()[-1]["reason"] == "Several categories fit"

    card(page, "Dinner on the train")
    page.keyboard.press("x")
    dialog(page, "Why reject it?")
    page.keyboard.press("Escape")
    closed(page)
    page.keyboard.press("x")
    dialog(page, "Why reject it?")
    focus(page, "Another reason")
    page.keyboard.type("a fad, said Xs"), page.keyboard.press("Enter")
    told(page, "Saved: reject r4"), closed(page)
    assert server.labels()[-1]["reason"] == "a fad, said Xs"

    card(page, "Bus ticket")
    page.keyboard.press("s")
    told(page, "Saved: skip r5")
    page.get_by_text("No row is left here").wait_for()
    page.wait_for_function(IDLE)
    time.sleep(QUICK)
    assert server.held() == {"r1": "approve", "r2": "edit", "r3": "reject", "r4": "reject", "r5": "skip"}

    page.keyboard.press("u")
    told(page, "Saved: undo r5")
    card(page, "Bus ticket")
    page.keyboard.press("u")
    told(page, "Saved: undo r4")
    card(page, "Dinner on the train")
    assert server.held() == {"r1": "approve", "r2": "edit", "r3": "reject"}
    page.keyboard.press("ArrowRight")
    card(page, "Bus ticket")
    page.keyboard.press("ArrowLeft")
    card(page, "Dinner on the train")
    assert page.outside == [] and page.wrong == []

def test_place_order_and_filter_survive_a_refresh_and_another_window(serve, window):
    server = serve(ROWS)
    page = window(f"{server.home}?order=file&label=travel")
    enter(page)
    page.keyboard.press("ArrowRight")
    card(page, "Lunch with a client")
    address(page, reviewer="ann", row="r2", label="travel", order="file")
    page.reload()
    card(page, "Lunch with a client")
    page.keyboard.press("ArrowRight")
    card(page, "Bus ticket")  # past the rows that are filed under meals
    other = window(page.url)
    card(other, "Bus ticket")

def test_a_double_click_and_a_second_tab_make_one_label(serve, window):
    server = serve(ROWS)
    tabs = [window(f"{server.home}?order=file&reviewer=ann&row=r1") for _ in range(2)]
    for page in tabs: card(page, "Taxi to the airport")
    tabs[0].get_by_role("button", name="Approve").dblclick()
    card(tabs[0], "Lunch with a client")
    tabs[1].keyboard.press("s")
    told(tabs[1], "r1 has your label from another tab already, and keeps it: approve")
    assert [(label["row"], label["action"]) for label in server.labels()] == [("r1", "approve")]
    card(tabs[1], "Lunch with a client")

WATCH = """() => { window.acks = []; new MutationObserver(() => {
    const said = document.querySelector(".st-key-told")?.innerText.split("\\n").find(line => line.startsWith("Saved: "))
    if (said && said !== window.acks.at(-1)) window.acks.push(said)
}).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""

def test_kill_9_of_the_server_loses_no_label_and_keeps_the_place(serve, window):
    server, rng, acks = serve([(f"r{n}", f"Row number {n}", "meals") for n in range(200)]), random.Random(0), []
    page = window(f"{server.home}?order=file&reviewer=ann")
    for _ in range(3):
        page.wait_for_function(READY)
        page.evaluate(WATCH)
        for _ in range(rng.randint(8, 14)):
            page.keyboard.press(rng.choice("aaau"))  # not waiting: some keys come while the page changes
            time.sleep(rng.uniform(0, 3 * QUICK))
        server.kill()
        acks += page.evaluate("window.acks")
        with open(server.log, "ab") as file: file.write(b'{"id": "half of a li')  # as if it had died within a line
        server.start()
        page.reload()
    page.wait_for_function(READY)
    labels, approved = LabelLog(server.log).labels(), []
    print(f"3 kills: {len(acks)} labels acknowledged, {len(labels)} in the log")
    for label in labels:  # no row is left out, none done twice, and an undo takes back the last one
        assert label.row == (approved[-1] if label.undoes else f"r{len(approved)}")
        approved = approved[:-1] if label.undoes else [*approved, label.row]
    assert len(acks) > 3 and {said.removeprefix("Saved: ") for said in acks} <= {f"{label.action} {label.row}" for label in labels}
    shown = page.locator(".st-key-card").inner_text()
    n = len(approved)
    assert any(f"Row number {at}\n" in f"{shown}\n" for at in (n - 1, n, n + 1))  # killed between a label, or its undo, and the step
    assert server.said.read_text().count("half a line of 20 bytes moved to rows.csv.labels.jsonl.cut") == 3

def test_an_open_page_finds_the_server_that_came_back(serve, window):
    server = serve(ROWS)
    page = window(f"{server.home}?order=file&reviewer=ann&row=r2")
    card(page, "Lunch with a client")
    page.keyboard.press("a")
    told(page, "Saved: approve r2")
    card(page, "Team lunch")
    server.kill()
    page.wait_for_function(f"() => !({READY})()")
    server.start()
    page.wait_for_function(READY)  # without a server no key can be pressed; the page asks for it again after some seconds
    page.keyboard.press("s")       # the new server does not know this page yet: it draws it, and says that nothing is saved
    told(page, "Nothing is saved before this line says so.")
    assert server.held() == {"r2": "approve"}
    card(page, "Team lunch")
    page.keyboard.press("s")
    told(page, "Saved: skip r3")
    assert server.held() == {"r2": "approve", "r3": "skip"}

# what may not happen

def test_nothing_in_the_data_runs_or_is_fetched(serve, window):
    server = serve([("r1", HOSTILE, "travel"), ("r2", "Team lunch", f"<img src=x onerror={HIT}> **b**"), ("r3", "Taxi", "meals")])
    page = window(f"{server.home}?order=file")
    enter(page, "<b onclick=x>ann</b> **a**")
    card(page, HOSTILE)
    page.keyboard.press("e")
    dialog(page, "Edit this row")
    holds(page, "Text", HOSTILE)
    focus(page, "Label"), page.keyboard.press("ArrowDown")  # the list of categories, one of them hostile
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("Escape"), page.keyboard.press("Escape")
    closed(page)
    page.keyboard.press("x")
    dialog(page, "Why reject it?")
    focus(page, "Another reason")
    page.keyboard.type(HOSTILE), page.keyboard.press("Enter")
    told(page, "Saved: reject r1"), closed(page)
    page.goto(f"{server.home}?order=file&reviewer=bob&row=r1")
    card(page, HOSTILE)
    page.keyboard.press("a")
    told(page, "Saved: approve r1")
    page.keyboard.press("g")
    page.get_by_text("1 conflict", exact=True).wait_for()
    page.get_by_text(f"rejected: {HOSTILE}", exact=True).wait_for()
    assert page.title() == "Review" and page.outside == [] and page.wrong == []
    assert page.locator("img[src=x], svg[onload], b[onclick], .katex").count() == 0

def test_reviewers_see_their_agreement_and_open_a_conflict(serve, window):
    server = serve(ROWS)
    log, print_of = LabelLog(server.log), {row: seen(server.dataset, row) for row in server.dataset.queries}
    for name, actions in (("ann", "approve approve approve approve skip"), ("bob", "approve approve approve reject approve")):
        for row, action in zip(print_of, actions.split()):
            log.append(Label(f"{name}-{row}", name, row, action, "A duplicate" if action == "reject" else "", seen=print_of[row]))
    page = window(f"{server.home}?order=file&reviewer=bob&row=r1")
    card(page, "Taxi to the airport")
    page.keyboard.press("g")
    page.get_by_text("ann and bob: 4 rows judged by both, 75% of them alike\nCohen's kappa 0.60 [").wait_for()
    page.get_by_text("1 conflict", exact=True).wait_for()
    page.get_by_text("rejected: A duplicate", exact=True).wait_for()
    page.wait_for_function(IDLE)
    sides = page.locator(".st-key-conflict-r4 [data-testid=stColumn]")
    assert [side.inner_text().split("\n") for side in sides.all()] == [["ann", "meals"], ["bob", "rejected: A duplicate"]]
    boxes = [side.bounding_box() for side in sides.all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    focus(page, "Open"), page.keyboard.press("Enter")
    card(page, "Dinner on the train")
    address(page, row="r4", order="file")  # the order is kept over there

@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_within_its_width(serve, window, scheme):
    server = serve([("r1", "Dinner " + "a" * 300, "meals"), *ROWS[1:]])
    page = window(f"{server.home}?order=file&reviewer=ann", 390, 844, scheme)
    page.locator(".st-key-card").wait_for()
    page.get_by_text("Nearest rows").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    names = ("Approve", "Edit", "Reject", "Skip", "Undo", "Next")
    boxes = {name: page.get_by_role("button", name=name).first.bounding_box() for name in names}
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes.values()), boxes
    page.get_by_role("button", name="Reject").first.click()
    dialog(page, "Why reject it?")
    page.get_by_role("button", name="Several categories fit").click()
    told(page, "Saved: reject r1")

def sockets(server):
    "The connections of the server's process and its children."
    process = psutil.Process(server.process.pid)
    return [c for p in (process, *process.children(recursive=True)) for c in p.net_connections(kind="inet")]

def test_the_server_listens_on_this_machine_alone_and_refuses_other_sites(serve, window):
    server = serve(ROWS)
    card(window(f"{server.home}?order=file&reviewer=ann"), "Taxi to the airport")
    assert {c.laddr for c in sockets(server) if c.status == psutil.CONN_LISTEN} == {("127.0.0.1", server.port)}
    assert {c.raddr.ip for c in sockets(server) if c.raddr} == {"127.0.0.1"}  # it asks nobody
    stream = f"ws://127.0.0.1:{server.port}/_stcore/stream"
    create_connection(stream, timeout=30, origin=f"http://127.0.0.1:{server.port}").close()
    for wrong in ({"origin": "http://192.0.2.1"}, {"origin": "http://evil.example", "host": "evil.example"}):
        with pytest.raises(WebSocketBadStatusException, match="403"): create_connection(stream, timeout=60, **wrong)

def test_without_streamlit_the_error_names_the_extra(tmp_path):
    (tmp_path / "rows.csv").write_text("id,text,category\nr1,Taxi,travel\n")
    code = f"import sys; sys.modules['streamlit'] = None; {COMMAND}"
    done = subprocess.run([sys.executable, "-c", code, "review", tmp_path / "rows.csv"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines() == ["error: the page needs Streamlit; pip install 'rag_finetune[review]'"]
