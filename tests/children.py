"Processes forked from one that has the imports already: a kill falls into the work, and what runs in one does not wait for libraries."
import multiprocessing
import os
import sys
from multiprocessing import forkserver

import pytest

START = multiprocessing.get_context("forkserver")   # Python has one for all: what it has loaded is settled when the first test starts it
START.set_forkserver_preload(["pytest", "test_ledger", "warm_llm", "label_writer", "rag_finetune.review", "trainee",
                              "matplotlib.pyplot", "IPython.core.interactiveshell", "nbformat"])

def started():
    "`START`, with the process that others are forked from at work."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))   # what it loads is found by this alone, or left out unsaid
        forkserver.ensure_running()
    return START

def child(target, *args, **kwargs):
    "A process that has begun to do `target`."
    process = started().Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process
