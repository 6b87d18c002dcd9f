"Processes for tests that kill them: forked from one that has the imports already, so that a kill falls into the work."
import multiprocessing
import os
import sys

import pytest

START = multiprocessing.get_context("forkserver")   # one for all tests: what it has loaded is settled when it starts
START.set_forkserver_preload(["pytest", "test_ledger", "warm_llm", "label_writer", "rag_finetune.review", "trainee"])


def child(target, *args, **kwargs):
    "A process that has begun to do `target`."
    process = START.Process(target=target, args=args, kwargs=kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))   # what it loads is found by this alone, or left out unsaid
        process.start()
    return process
