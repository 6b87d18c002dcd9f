"What a user relies on with FlagEmbedding: its own trainer, in a folder that both libraries open, whole or not at all."
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from notebooks import ROOT
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from tiny import ASKING, COLOURS, THINGS, tiny_data, tiny_model
from torch import nn
from transformers import (
    AutoConfig, BertForSequenceClassification, XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer,
)

from rag_finetune import flag
from rag_finetune.core import DataError
from rag_finetune.flag import MODULE, FlagScorer, open_flag, train_flag
from rag_finetune.models import FastEncoder, check_folder, open_encoder
from rag_finetune.reranker import FastScorer, mixed_negatives, open_reranker, reranked_score
from rag_finetune.retrieval import dense, rerank


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(): return tiny_data()


@pytest.fixture(scope="module")
def run(data, folder): return dense(data, FastEncoder(open_encoder(folder, "cpu")))


@pytest.fixture(scope="module")
def negatives(data, run): return mixed_negatives(data, run, 2, 2)


SETTINGS = dict(group_size=5, epochs=6, lr=3e-3, tokens=(8, 8))


@pytest.fixture(scope="module")
def trained(folder, data, negatives, tmp_path_factory):
    return train_flag(data, negatives, tmp_path_factory.mktemp("flag") / "model", folder, **SETTINGS)


def test_what_its_trainer_makes_is_opened_by_both_libraries_with_equal_scores(trained, data, run, folder):
    check_folder(trained)   # no pickle in it
    pairs = [(q, d) for q in list(data.queries.values())[:8] for d in data.corpus.values()]
    ours, flag = FastScorer(open_reranker(trained, "cpu")).predict(pairs), open_flag(trained, "cpu").predict(pairs)
    np.testing.assert_allclose(flag, ours, atol=1e-5)
    np.testing.assert_allclose(CrossEncoder(str(trained), device="cpu").predict(pairs, activation_fn=nn.Identity()), ours, atol=1e-5)
    before, after = (reranked_score(FastScorer(open_reranker(f, "cpu")), data, run, 8) for f in (folder, trained))
    assert after > before + .01
    assert sorted(p.name for p in trained.parent.iterdir()) == ["model"]


def test_its_scorer_goes_wherever_a_pair_scorer_goes(trained, data, run):
    scorer = open_flag(trained, "cpu")
    assert rerank(data, run, scorer, 3).keys() == data.queries.keys()
    assert scorer.predict([]).shape == (0,) and scorer.predict([("where is my car", "the red car")]).shape == (1,)
    assert isinstance(scorer, FlagScorer)


def test_a_teacher_is_learnt_beside_the_labels(folder, trained, data, negatives, tmp_path):
    teacher = {q: {d: 3. * (data.qrels[q].get(d, 0) > 0) for d in data.corpus} for q in data.queries}
    pairs = [("where is my car", d) for d in data.corpus.values()]
    taught = open_flag(train_flag(data, negatives, tmp_path / "taught", folder, teacher, **SETTINGS), "cpu").predict(pairs)
    assert np.abs(taught - open_flag(trained, "cpu").predict(pairs)).max() > 1e-3


def test_bad_input_is_refused_before_anything_starts(folder, data, negatives, tmp_path, caplog):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="out"): train_flag(data, negatives, tmp_path / "used", folder)
    few = dict(list(negatives.items())[:5])
    with pytest.raises(DataError, match="5 queries .* do not fill a step of 16"): train_flag(data, few, tmp_path / "few", folder)
    with pytest.raises(DataError, match="no such folder"): train_flag(data, negatives, tmp_path / "none", tmp_path / "nothing")
    for name, least in {"batch_size": 1, "group_size": 2, "epochs": 1, "processes": 1, "every": 1}.items():
        with pytest.raises(DataError, match=f"{name}: {least - 1}, expected {least} or more"):
            train_flag(data, negatives, tmp_path / "none", folder, **{name: least - 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["used"]


def test_a_model_without_a_trained_head_is_no_reranker(folder, trained, tmp_path):
    with pytest.raises(DataError, match="BertModel.*noise"): open_flag(folder, "cpu")
    shutil.copytree(trained, tmp_path / "three")
    BertForSequenceClassification(AutoConfig.from_pretrained(trained, num_labels=3)).save_pretrained(tmp_path / "three")
    with pytest.raises(DataError, match="3 scores for a pair"): open_flag(tmp_path / "three", "cpu")


def test_both_libraries_read_a_pair_of_an_xlm_r_alike(data, tmp_path):   # what bge-reranker-base, -large and -v2-m3 are
    special = [(token, 0.) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    words = [(f"▁{word}", -1.) for word in (*COLOURS, *THINGS, *ASKING)]
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *words, ("▁", -5.), ("<mask>", 0.)], model_max_length=16)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 18}
    config = XLMRobertaConfig(vocab_size=len(tokenizer), **size, num_labels=1, type_vocab_size=1, initializer_range=.3)
    XLMRobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pairs = [(q, d) for q in list(data.queries.values())[:8] for d in data.corpus.values()]
    pairs.append(("where is my car", "the red car " * 12))   # is cut
    ours = FastScorer(open_reranker(tmp_path, "cpu")).predict(pairs)
    assert ours.std() > .01
    np.testing.assert_allclose(open_flag(tmp_path, "cpu").predict(pairs), ours, atol=1e-5)
    np.testing.assert_allclose(CrossEncoder(str(tmp_path), device="cpu").predict(pairs, activation_fn=nn.Identity()), ours, atol=1e-5)


def test_a_document_is_cut_to_what_the_model_reads(trained):
    scorer = open_flag(trained, "cpu")
    long = [("where is my car", "the red car " * 12)]   # 37 tokens and more, of a model that has 32 positions and reads 16
    np.testing.assert_allclose(scorer.predict(long), FastScorer(open_reranker(trained, "cpu")).predict(long), atol=1e-5)
    assert scorer.max_length == 16


def test_what_the_trainer_would_choke_on_is_told_before_it_starts(folder, data, negatives, tmp_path):
    with pytest.raises(DataError, match="64 and 192.* reads 16"): train_flag(data, negatives, tmp_path / "model", folder)
    alien = {q: ["nothing"] for q in negatives}
    with pytest.raises(DataError, match="'nothing', which is not in the corpus"): train_flag(data, alien, tmp_path / "model", folder)
    few = dict.fromkeys(data.queries, dict.fromkeys(list(data.corpus)[:2], 1.))
    with pytest.raises(DataError, match="teacher has no score"): train_flag(data, negatives, tmp_path / "model", folder, few)
    right = {q: data.positives(q) for q in data.queries}   # none is left once they are taken out
    with pytest.raises(DataError, match="0 queries .* do not fill"): train_flag(data, right, tmp_path / "model", folder)
    assert not list(tmp_path.iterdir())


def test_flagembedding_stays_optional(tmp_path):
    (tmp_path / "without.py").write_text("""
import importlib.util, sys
import pytest
class Without:   # as if it were not installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "FlagEmbedding": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "FlagEmbedding" else find(name, package)
from rag_finetune import flag
from rag_finetune.core import DataError
from rag_finetune.flag import open_flag, train_flag
with pytest.raises(DataError, match=r"pip install .rag_finetune\\[flag\\]"): open_flag("default")
with pytest.raises(DataError, match=r"pip install .rag_finetune\\[flag\\]"): train_flag(None, {}, "out")
""")
    subprocess.run([sys.executable, tmp_path / "without.py"], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_two_processes_by_torchrun_make_one_model_and_what_fills_no_step_is_told(folder, data, negatives, tmp_path, caplog, monkeypatch):
    kept, real, numbers = tmp_path / "checkpoints", flag._ended, []
    def watched(*args):
        ended = real(*args)
        numbers.extend(p.name for p in kept.glob("trained/checkpoint-1/rng_state*"))   # each process has its own
        return ended
    monkeypatch.setattr(flag, "_ended", watched)
    with caplog.at_level(logging.WARNING, "rag_finetune.flag"):
        made = train_flag(data, dict(list(negatives.items())[:20]), tmp_path / "model", folder, **{**SETTINGS, "epochs": 1},
                          batch_size=8, processes=2, checkpoints=kept)
    assert "4 of 20 queries" in caplog.text and sorted(numbers) == ["rng_state_0.pth", "rng_state_1.pth"]
    assert open_flag(made, "cpu") and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_trainer_that_fails_says_why_and_leaves_nothing(folder, data, negatives, tmp_path):
    with pytest.raises(DataError, match="FlagEmbedding's trainer ended with 1: .*learning rate"):
        train_flag(data, negatives, tmp_path / "model", folder, **{**SETTINGS, "lr": -1.})
    assert not list(tmp_path.iterdir())


CHILD = """
import sys; sys.path.insert(0, {tests!r})
from test_flag import *
data = tiny_data()
run = dense(data, FastEncoder(open_encoder({folder!r}, "cpu")))
train_flag(data, mixed_negatives(data, run, 2, 2), {out!r}, {folder!r}, **{{**SETTINGS, "epochs": 20_000}})
"""


def trainers_of(process):
    "Waits for them."
    for _ in range(600):
        if found := [p for p in process.children(recursive=True) if MODULE in p.cmdline()]: return found
        time.sleep(.1)
    raise AssertionError("no trainer started")


def test_killed_in_its_training_there_is_no_model_and_no_trainer_and_the_next_start_makes_one(folder, data, negatives, tmp_path):
    out, here = tmp_path / "model", str(Path(__file__).parent)
    code = CHILD.format(tests=here, folder=str(folder), out=str(out))
    process = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trainers = trainers_of(process)
    time.sleep(2)
    process.kill()   # it alone
    process.wait()
    _, alive = psutil.wait_procs(trainers, 10)
    assert not alive and not out.exists()
    mine = tmp_path / ".model-backup"          # nobody else's
    mine.mkdir()
    train_flag(data, negatives, out, folder, **{**SETTINGS, "epochs": 1})
    assert open_reranker(out, "cpu") and sorted(p.name for p in tmp_path.iterdir()) == [".model-backup", "model"]


def test_with_checkpoints_it_goes_on_to_the_very_same_weights(folder, trained, data, negatives, tmp_path, monkeypatch):
    kept, real = tmp_path / "checkpoints", flag._ended
    at = kept / "trained" / "checkpoint-12"
    def stopped(command, *_):
        trainer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (at / "trainer_state.json").is_file() and trainer.poll() is None: time.sleep(.01)
        trainer.kill()
        trainer.wait()
        for later in {*at.parent.glob("checkpoint-*")} - {at}: shutil.rmtree(later)
        for name, (part, n) in {"18": ("trainer_state.json", 1), "24": ("optimizer.pt", 3000), "30": ("model.safetensors", 3000)}.items():
            shutil.copytree(at, damaged := at.with_name(f"checkpoint-{name}"))   # killed, or without power, while these were written
            (damaged / part).write_bytes((at / part).read_bytes()[:n])
        raise KeyboardInterrupt
    def train(**settings): return train_flag(data, negatives, tmp_path / "model", folder, checkpoints=kept, **{**SETTINGS, **settings})
    monkeypatch.setattr(flag, "_ended", stopped)
    with pytest.raises(KeyboardInterrupt): train()
    def watched(command, *args):
        assert str(at) in command
        with pytest.raises(DataError, match="another process is training there"): train()
        return real(command, *args)
    monkeypatch.setattr(flag, "_ended", watched)
    with pytest.raises(DataError, match=r"lr \(0.003 there, 0.001 now\)"): train(lr=1e-3)
    ours, theirs = (load_file(f / "model.safetensors") for f in (train(), trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_checkpoints_have_a_folder_of_their_own(folder, data, negatives, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").write_text("mine")
    for out, kept, said in (("runs/m", "runs", "lie in one another"), ("m", "m", "lie in one another"), ("m", "m/ck", "lie in one another"),
                            ("m", "mine", "text.txt in it")):
        with pytest.raises(DataError, match=said):
            train_flag(data, negatives, tmp_path / out, folder, checkpoints=tmp_path / kept, **SETTINGS)
    assert not (tmp_path / "m").exists() and (tmp_path / "mine" / "text.txt").read_text() == "mine"


def test_what_was_stopped_before_its_first_checkpoint_may_go_on_with_other_settings(folder, data, negatives, tmp_path, monkeypatch):
    def stopped(*_): raise KeyboardInterrupt
    monkeypatch.setattr(flag, "_ended", stopped)
    for settings in (SETTINGS, {**SETTINGS, "epochs": 2}):
        with pytest.raises(KeyboardInterrupt):
            train_flag(data, negatives, tmp_path / "m", folder, checkpoints=tmp_path / "kept", **settings)
    assert json.loads((tmp_path / "kept" / "about.json").read_text())["epochs"] == 2


def test_asked_to_stop_it_takes_its_trainer_along(folder, tmp_path):
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), out=str(tmp_path / "model"))
    process = psutil.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trainers = trainers_of(process)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    psutil.wait_procs(trainers, 30)
    assert trainers and not any(p.is_running() for p in trainers) and not list(tmp_path.iterdir())
