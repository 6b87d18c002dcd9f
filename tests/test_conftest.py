"Tests on the public data, and those in a browser, skip aloud without it, and fail instead where it is required."
import os
import shutil
import subprocess
import sys

import pytest
from notebooks import ROOT

@pytest.mark.parametrize(("env", "code", "says"), [
    ({}, 0, "1 skipped"),
    ({"RAG_FINETUNE_REQUIRE_DATA": "1"}, 1, "RAG_FINETUNE_DATA is not set"),
    ({"RAG_FINETUNE_DATA": "missing"}, 1, "which is no folder"),
    ({"RAG_FINETUNE_DATA": ".", "RAG_FINETUNE_REQUIRE_DATA": "1"}, 0, "1 passed"),
])
def test_public_data(env, code, says, tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text("def test_it(public_data): assert public_data.is_dir()")
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("RAG_FINETUNE_", "PYTEST_"))} | env
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True)
    assert done.returncode == code and says in done.stdout, done.stdout

@pytest.mark.parametrize(("env", "code", "says"), [({}, 0, "1 skipped"), ({"RAG_FINETUNE_REQUIRE_BROWSER": "1"}, 1, "no browser")])
def test_browser(env, code, says, tmp_path):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_it(): pytest.skip('no browser: install one')")
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("RAG_FINETUNE_", "PYTEST_"))} | env
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    done = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True)
    assert done.returncode == code and says in done.stdout, done.stdout
