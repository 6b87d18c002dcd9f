"What tests may rely on: they skip aloud without public data or a browser, fail where these are required, share the cores, hear Ctrl-C."
import os
import shutil
import signal
import subprocess
import sys

import pytest
from notebooks import ROOT

def ran(folder, test, env, *options, **how):
    "A test in a folder of its own, with our conftest: how it ended."
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_it.py").write_text(test)
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("RAG_FINETUNE_", "PYTEST_", "OMP_"))} | env
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *options]
    return subprocess.run(command, cwd=folder, env=ours, capture_output=True, text=True, **how)

@pytest.mark.parametrize(("env", "code", "says"), [
    ({}, 0, "1 skipped"),
    ({"RAG_FINETUNE_REQUIRE_DATA": "1"}, 1, "RAG_FINETUNE_DATA is not set"),
    ({"RAG_FINETUNE_DATA": "missing"}, 1, "which is no folder"),
    ({"RAG_FINETUNE_DATA": ".", "RAG_FINETUNE_REQUIRE_DATA": "1"}, 0, "1 passed"),
])
def test_public_data(env, code, says, tmp_path):
    done = ran(tmp_path, "def test_it(public_data): assert public_data.is_dir()", env)
    assert done.returncode == code and says in done.stdout, done.stdout

@pytest.mark.parametrize(("env", "code", "says"), [({}, 0, "1 skipped"), ({"RAG_FINETUNE_REQUIRE_BROWSER": "1"}, 1, "no browser")])
def test_browser(env, code, says, tmp_path):
    done = ran(tmp_path, "import pytest\ndef test_it(): pytest.skip('no browser: install one')", env)
    assert done.returncode == code and says in done.stdout, done.stdout

def test_a_test_hears_its_own_ctrl_c_in_a_background_job_too(tmp_path):
    test = "import pytest, signal\ndef test_it():\n    with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)"
    def deaf(): signal.signal(signal.SIGINT, signal.SIG_IGN)   # as a shell starts its background jobs
    done = ran(tmp_path, test, {}, preexec_fn=deaf)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout

@pytest.mark.parametrize(("options", "env", "share"), [
    ((), {}, os.cpu_count()), (("-n", "2"), {}, max(1, os.cpu_count() // 2)),
    (("-n", "2"), {"OMP_NUM_THREADS": str(os.cpu_count())}, os.cpu_count()),
])
def test_workers_share_the_cores(options, env, share, tmp_path):
    done = ran(tmp_path, f"import torch\ndef test_it(): assert torch.get_num_threads() == {share}", env, *options)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
