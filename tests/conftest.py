"What every test has: no model hub, its share of the cores, the public data where $RAG_FINETUNE_DATA says where it is, and a browser."
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"                       # before anything imports huggingface_hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["RAG_FINETUNE_USES"] = os.path.join(tempfile.mkdtemp(), "uses.jsonl")   # runs of tests are none of the user's

signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background job is deaf to it, and some tests send it to themselves

import pytest  # noqa: E402

def pytest_configure(config):
    "Torch's share of the cores, which the workers inherit: with more threads than cores they wait for each other most of the time."
    workers = config.getoption("numprocesses", None) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))   # before anything imports torch

def pytest_collection_modifyitems(items):
    "Lessons first in each worker's share: whoever ends with one lets the others wait for a minute or two."
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    lessons = [item for item in items if item.path.name == "test_lessons.py"]
    others = [item for item in items if item.path.name != "test_lessons.py"]
    share = -(-len(others) // workers)
    items[:] = [item for w in range(workers) for item in (*lessons[w::workers], *others[w * share:(w + 1) * share])]

DATA = "RAG_FINETUNE_DATA"

@pytest.fixture(scope="session")
def public_data() -> Path:
    "The folder of the public data sets; a test that asks for it skips, saying so, where the variable is not set."
    if not os.environ.get(DATA): pytest.skip(f"${DATA} is not set: it names the folder of the public data sets")
    folder = Path(os.environ[DATA])
    assert folder.is_dir(), f"${DATA} names {folder}, which is no folder"
    return folder

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

@pytest.fixture(scope="module")
def browser():
    "Chromium: the system's, or the one that Playwright installed."
    from playwright.sync_api import Error, sync_playwright
    with sync_playwright() as playwright:
        try: chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        except Error: pytest.skip("no browser: install Debian's chromium, or run `playwright install chromium`")
        yield chromium
        chromium.close()

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "What is required fails instead of skipping: the public data with RAG_FINETUNE_REQUIRE_DATA, a browser with ..._REQUIRE_BROWSER."
    report = yield
    for required, said in (("RAG_FINETUNE_REQUIRE_DATA", DATA), ("RAG_FINETUNE_REQUIRE_BROWSER", "no browser:")):
        if os.environ.get(required) and report.skipped and said in str(report.longrepr): report.outcome = "failed"
    return report
