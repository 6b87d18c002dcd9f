"The site: built once, every page opened in a browser, wide and narrow, light and dark; nothing dead, cut off, or from outside."
import importlib
import os
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import pytest
from filelock import FileLock
from notebooks import ROOT, notebooks

pytestmark = pytest.mark.slow
LOOKS = [(1280, "light"), (390, "dark")]   # neither the width nor the scheme changes what the other one shows
LESSONS = [path.stem for path in notebooks() if path.stem[0].isdigit()]

@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the built site; the tests' processes share one."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            done = subprocess.run([sys.executable, ROOT / "docs" / "build.py", folder], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder

@pytest.fixture
def served():
    "A function that serves a folder on this machine and returns its address."
    servers = []
    def serve(folder):
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"
    yield serve
    for server in servers: server.shutdown(), server.server_close()

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

# what may be wrong with a page

SEEN = """() => {
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth
    const scrolls = e => e && e !== document.body && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement))
    const name = e => e.tagName.toLowerCase() + (e.className.baseVal ?? e.className ?? "" ? "." + (e.className.baseVal ?? e.className) : "")
    const cut = [...document.querySelectorAll("article *")].filter(e => !scrolls(e) && e.getClientRects().length
        && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    return [
        ...(wide > 0 ? [`the page is ${wide} px wider than the window`] : []),
        ...cut.slice(0, 3).map(e => `cut off at the right: ${name(e)}`),
        ...[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => `a picture that is not there: ${i.src}`),
        ...[...document.images].filter(i => !i.alt.trim()).map(i => `a picture without alt text: ${i.src}`),
        ...[...document.querySelectorAll("svg[role=img]")].filter(s => !s.ariaLabel && !s.closest("mjx-container"))
            .map(() => "a drawing without a label"),
    ]
}"""

def visit(page, address, home):
    "Open `address` and return what is wrong with it, a line each; `home` is where the site begins."
    wrong = []
    def console(message): wrong.extend([f"console: {message.text}"] if message.type == "error" else [])
    def error(exception): wrong.append(f"script: {exception}")
    def request(asked): wrong.extend([] if asked.url.startswith((home, "data:", "blob:")) else [f"asks outside: {asked.url}"])
    def failed(asked):  # aborted: the next page was opened while the icon was on its way
        if asked.failure != "net::ERR_ABORTED": wrong.append(f"did not load: {asked.url}")
    heard = {"console": console, "pageerror": error, "request": request, "requestfailed": failed}
    for name, listener in heard.items(): page.on(name, listener)
    page.goto(address)
    page.wait_for_load_state("load")
    wrong += page.evaluate(SEEN)
    for name, listener in heard.items(): page.remove_listener(name, listener)
    return wrong

class Links(HTMLParser):
    "The addresses that a page names, and the places in it that can be named."
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)
    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]

def dead(folder):
    "Every link of the site that leads nowhere inside it."
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"): continue
            target = (path.parent / unquote(urlsplit(address).path)).resolve() if urlsplit(address).path else path
            if target.is_dir(): target /= "index.html"
            where = f"{path.relative_to(folder)}: {link}"
            if not target.is_relative_to(folder.resolve()) or not target.is_file(): yield where
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids: yield where

# the site

@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_page_opens_whole(site, browser, served, width, scheme):
    home = served(site)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    wrong = {path.relative_to(site).as_posix(): lines for path in sorted(site.rglob("*.html"))
             if (lines := visit(page, home + path.relative_to(site).as_posix(), home))}
    context.close()
    assert wrong == {}

def test_no_link_is_dead(site):
    assert list(dead(site)) == []

def test_lessons_keep_their_numbers_and_say_where_they_lead(site):
    for name in LESSONS:
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        for link in (f'"{name}.ipynb" download', f"/nbs/{name}.ipynb", f'"api/{name[3:]}.html"'): assert link in text, (name, link)
        assert (site / f"{name}.ipynb").read_bytes() == (ROOT / "nbs" / f"{name}.ipynb").read_bytes()
        stated = re.search(r"Runs in about [^.\n]+", nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4).cells[1].source)
        assert not stated or stated[0] in re.search(r'class="lesson-bar">(.*?)</div>', text)[1]

def test_no_directive_and_no_path_of_this_machine_is_shown(site):
    texts = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert [name for name, text in texts.items() if re.search(r"#\|\s*(export|hide|alt|default_exp)", text) and name[0].isdigit()] == []
    assert [name for name, text in texts.items() if str(ROOT) in text] == []

def test_every_public_function_stands_in_the_api_with_its_source(site):
    for name in LESSONS:
        text = (site / "api" / f"{name[3:]}.html").read_text(encoding="utf-8")
        module = importlib.import_module(f"rag_finetune.{name[3:]}")
        for public in module.__all__:
            if not callable(found := getattr(module, public)) or not hasattr(found, "__module__") or not found.__doc__: continue
            if getattr(found, "__qualname__", "") == public: assert f'id="rag_finetune.{name[3:]}.{public}"' in text, public
    text = (site / "api" / "metrics.html").read_text(encoding="utf-8")
    assert "Source of ndcg" in text and "ranks looked at" in text

@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_without_a_server_too(site, browser, served, scheme):
    home = served(site) if scheme == "http" else f"{site.as_uri()}/"
    page = browser.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(f"{home}search.html?q=reciprocal")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("document.querySelector('.search-summary').textContent.includes('found')")
    assert "metrics" in page.inner_text("#search-results").lower() and wrong == []
    page.close()

def test_formulas_are_drawn(site, browser):
    page = browser.new_page()
    page.goto((site / "06_retrieval.html").as_uri())
    page.wait_for_selector("mjx-container svg")
    page.close()

@pytest.mark.parametrize("width", [1280, 390])
def test_the_keyboard_reaches_what_it_can_see(site, browser, width):
    page = browser.new_context(viewport={"width": width, "height": 844}, reduced_motion="reduce").new_page()
    page.goto((site / "where.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to content"
    for _ in range(70):
        page.keyboard.press("Tab")
        page.wait_for_function("""() => {
            const r = document.activeElement.getBoundingClientRect(), s = getComputedStyle(document.activeElement)
            return document.activeElement === document.body || (r.right > 0 && r.left < innerWidth && s.outlineStyle !== "none")
        }""", timeout=3000)
    page.context.close()

def test_the_committed_pictures_are_those_that_the_site_draws():
    sys.path.insert(0, str(ROOT / "docs"))
    import pipeline
    sys.path.remove(str(ROOT / "docs"))
    assert pipeline.notebooks() == LESSONS
    drawn = {f"{name}.svg": pipeline.pipeline_svg(name, links=False) + "\n" for name in LESSONS}
    committed = {path.name: path.read_text(encoding="utf-8") for path in pipeline.FOLDER.glob("*.svg")}
    assert committed == drawn, "run `python docs/pipeline.py`"

def test_the_readmes_plot_is_that_of_the_saved_result():
    sys.path.insert(0, str(ROOT / "docs"))
    import build
    sys.path.remove(str(ROOT / "docs"))
    def texts(svg): return re.findall(r"<text[^>]*>([^<]*)|aria-label=\"([^\"]*)", svg)
    committed = (ROOT / "assets" / "ladder.svg").read_text(encoding="utf-8")
    assert texts(committed) == texts(build.ladder_file()) and len(texts(committed)) > 9, "run `make readme`"

# the checks themselves

@pytest.mark.parametrize(("body", "says"), [
    ("<p>fine</p>", None), ("<script>console.error('no')</script>", "console: no"), ("<script>throw Error('oh')</script>", "script: oh"),
    ('<img src="missing.png" alt="x">', "not there"), ('<img src="dot.svg">', "without alt text"),
    ('<img src="dot.svg" alt="a dot">', None),
    ('<img src="https://example.org/x.png" alt="x">', "asks outside"),
    ('<article><pre style="width:900px">x</pre></article>', "wider than"),
    ('<article style="overflow:auto"><pre style="width:900px">x</pre></article>', None),
    ('<svg role="img"></svg>', "without a label"),
])
def test_what_is_wrong_with_a_page_is_found(browser, served, tmp_path, body, says):
    (tmp_path / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    (tmp_path / "page.html").write_text(f'<!doctype html><title>t</title><link rel="icon" href="data:,"><body>{body}')
    context = browser.new_context(viewport={"width": 390, "height": 844})
    home = served(tmp_path)
    context.route(lambda address: not address.startswith(home), lambda route: route.abort())  # seen by the check, by nobody outside
    wrong = visit(context.new_page(), f"{home}page.html", home)
    context.close()
    assert any(says in line for line in wrong) if says else wrong == []

@pytest.mark.parametrize(("link", "found"), [
    ("b.html", False), ("b.html#here", False), ("#top", False), ("https://example.org", False), ("c.html", True), ("b.html#there", True),
    ("../b.html", True),
])
def test_a_dead_link_is_found(tmp_path, link, found):
    (tmp_path / "a.html").write_text(f'<p id="top"><a href="{link}">x</a>')
    (tmp_path / "b.html").write_text('<p id="here">')
    assert bool(list(dead(tmp_path))) == found
