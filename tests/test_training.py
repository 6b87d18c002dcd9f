"What a user relies on when a training is stopped: nothing is lost, nothing is guessed, and the weights are the same."
import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from children import child
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from trainee import SETTINGS, prepared, train

from rag_finetune.core import DataError
from rag_finetune.embedding import fit, frozen_below
from rag_finetune.models import fingerprint
from rag_finetune.training import (
    Group, Kept, check_memory, free_memory, interpolated, newest, peak_memory, read_checkpoint, shared, stoppable, write_checkpoint,
)

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("in-batch", "upper", "remembered", "all-answers", "adapter", "reranker", "reranker-adapter", "reranker-in-batch")
FILES = ("weights.safetensors", "best.safetensors", "optimiser.safetensors", "random.safetensors", "state.json", "manifest.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def straight(folder):
    "What each kind of training comes to when nobody stops it."
    return {kind: train(folder, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def ready():
    "So that the first training is not killed while what forks it is loading torch."
    child(time.sleep, 0).join()


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGKILL, kind) for kind in KINDS] + [
    (signal.SIGTERM, kind) for kind in KINDS if "reranker" not in kind])   # one loop trains them all
def test_stopped_at_any_moment_it_comes_to_the_same_weights(number, kind, folder, straight, ready, tmp_path):
    rng, codes, out = random.Random(f"{kind} {number}"), [], tmp_path / "out.json"
    while not out.exists():
        process = child(train, folder, kind, tmp_path / "saved", 2, out)
        process.join(rng.uniform(.2, 1.) * (1 + .2 * len(codes)))   # later each time, so that it ends on any machine
        if process.is_alive(): os.kill(process.pid, number)
        process.join(60)
        codes.append(process.exitcode)
    made = json.loads(out.read_text())
    assert {**made, "losses": 0} == {**straight[kind], "losses": 0}
    assert set(codes) <= {0, 143 if number == signal.SIGTERM else -9, -15}   # -15: it came before the training began
    assert made["losses"] == straight[kind]["losses"][len(straight[kind]["losses"]) - len(made["losses"]):]


# what is on the disc

class PowerCut(Exception): "Where the lights go out."


def fitted(folder, saved, scores, kind="remembered", **changed):
    "What a training comes to when dev says `scores`, and the number of its steps; a score that is an exception is raised."
    model, rows, loss = prepared(folder, kind)
    steps, left = [], iter(scores)
    def score():
        value = next(left, 0.)
        if isinstance(value, Exception): raise value
        return value
    loss.register_forward_hook(lambda *_: steps.append(1))
    curve = fit(model, rows, loss, score, checkpoints=saved, **{**SETTINGS, **changed})
    return fingerprint(model), curve.points, len(steps)


@pytest.fixture(scope="module")
def cut(folder, tmp_path_factory):
    "A folder with the checkpoints of two epochs; in the third the lights went out. And what it would have come to."
    saved = tmp_path_factory.mktemp("cut") / "saved"
    with pytest.raises(PowerCut): fitted(folder, saved, [0., .1, .2, PowerCut()])
    return saved, fitted(folder, None, [0., .1, .2, .15])


@pytest.fixture
def saved(cut, tmp_path): return Path(shutil.copytree(cut[0], tmp_path / "saved"))


def delete(file): file.unlink()
def shorten(file): os.truncate(file, file.stat().st_size - 1)
def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [delete, shorten, flip])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(name, damage, saved, caplog):
    before, last = sorted(saved.iterdir())
    about = read_checkpoint(last).about
    damage(last / name)
    with caplog.at_level(logging.WARNING): assert newest(saved, about).path == before
    assert f"{last.name}/{name}" in caplog.text and f"{last.name} is left out" in caplog.text
    damage(before / name)
    with pytest.raises(DataError, match=f"{last.name}/{name}.*no whole checkpoint is left"): newest(saved, about)


def test_every_byte_of_a_manifest_counts(saved):
    manifest = max(saved.iterdir()) / "manifest.json"
    whole = manifest.read_bytes()
    for i in range(0, len(whole), 7):
        manifest.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1:])
        with pytest.raises(DataError, match="manifest.json"): read_checkpoint(manifest.parent)


def test_it_goes_on_from_the_one_before_and_comes_to_the_same_weights(folder, cut, saved):
    before, last = sorted(saved.iterdir())
    flip(last / "weights.safetensors")
    key, points, steps = fitted(folder, saved, [.2, .15])
    assert (key, points) == cut[1][:2] and steps == int(last.name[5:]) * 3 / 2 - int(before.name[5:])
    assert len(list(saved.iterdir())) == 2 and all(read_checkpoint(p) for p in saved.iterdir())


def test_a_finished_training_is_not_done_again(folder, cut, saved):
    assert fitted(folder, saved, [.15])[:2] == cut[1][:2]
    key, points, steps = fitted(folder, saved, [PowerCut()])
    assert (key, points, steps) == (*cut[1][:2], 0)
    assert not list(saved.glob(".*"))


@pytest.mark.parametrize(("changed", "said"), [
    ({"lr": 1e-3}, r"lr \(0.003 there, 0.001 now\)"), ({"epochs": 4}, "epochs"), ({"batch_size": 8}, "batch_size"), ({"seed": 1}, "seed"),
    ({"tokens": 4}, "tokens"), ({"dev": "other"}, r"dev \(None there, other now\)"), ({"kind": "in-batch"}, "loss .*rows"),
    ({"kind": "adapter"}, "layers .*model")])
def test_another_training_is_refused(changed, said, folder, saved):
    with pytest.raises(DataError, match=f"is of another training: .*{said}"): fitted(folder, saved, [], **changed)


def test_another_model_or_loss_is_refused(folder, saved, tmp_path):
    with pytest.raises(DataError, match="another training: model"): fitted(tiny_model(tmp_path / "other", seed=1), saved, [])
    model, rows, loss = prepared(folder, "remembered")
    loss.scale = 10.
    with pytest.raises(DataError, match="another training: loss"): fit(model, rows, loss, checkpoints=saved, **SETTINGS)


def test_other_versions_are_only_a_warning(saved, caplog):
    about = read_checkpoint(max(saved.iterdir())).about
    assert newest(saved, {**about, "version of torch": "9.9"}).path == max(saved.iterdir())
    assert "version of torch" in caplog.text and "9.9 now" in caplog.text


# a full disc

def test_a_full_disc_is_said_and_leaves_the_last_whole_checkpoint(folder, cut, tmp_path, monkeypatch):
    "The disc is full at the n-th time that something is written to it, for every n; a disc tells on fsync at the latest."
    sync, calls, room = os.fsync, [], [10**9]
    def full(entry):
        calls.append(entry)
        if len(calls) > room[0]: raise OSError(errno.ENOSPC, "No space left on device")
        sync(entry)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PowerCut): fitted(folder, tmp_path / "all", [0., .1, PowerCut()])
    each = len(calls)
    assert each == len(FILES) + 3   # the files, the folder, the folder of folders, and what that is in
    for n in range(each):
        saved = tmp_path / str(n)
        calls.clear()
        room[0] = each + n
        with pytest.raises(DataError, match="could not be written .No space left on device.*make room"):
            fitted(folder, saved, [0., .1, .2], stop_after=2)
        room[0] = 10**9
        assert fitted(folder, saved, [.2] if n < each - 1 else [], stop_after=2)[1][-1].dev == .2


def test_a_disc_that_is_really_full(folder, straight, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a disc of 400 kB needs root")
    try:
        with pytest.raises(DataError, match="step-000018: could not be written .No space left on device.; step-000009 before it is whole"):
            train(folder, "in-batch", tmp_path / "saved")
        assert [p.name for p in (tmp_path / "saved").iterdir()] == ["step-000009"]
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path)], check=True)
        assert train(folder, "in-batch", tmp_path / "saved")["key"] == straight["in-batch"]["key"]
    finally: subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_that_may_not_grow_is_a_clear_error(folder, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match="File too large.*there is none before it: make room"):
            fitted(folder, tmp_path / "saved", [0., .1])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "saved").iterdir())


# SIGTERM

def test_on_sigterm_the_step_is_finished_saved_and_the_process_ends_with_143(folder, cut, tmp_path):
    handler = signal.signal(signal.SIGTERM, mine := lambda *_: None)
    try:
        model, rows, loss = prepared(folder, "remembered")
        left, steps = iter([0., .1, .2, .15]), []
        def step(*_):
            steps.append(1)
            if len(steps) == 13: os.kill(os.getpid(), signal.SIGTERM)
        loss.register_forward_hook(step)
        with pytest.raises(SystemExit) as ended: fit(model, rows, loss, lambda: next(left), checkpoints=tmp_path, **SETTINGS)
        assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is mine and len(steps) <= 14
        assert max(tmp_path.iterdir()).name == f"step-{len(steps):06}"
    finally: signal.signal(signal.SIGTERM, handler)
    assert fitted(folder, tmp_path, [.2, .15])[:2] == cut[1][:2]


def test_a_training_that_saves_nothing_leaves_sigterm_alone(folder, ready):
    process = child(train, folder, "in-batch", epochs=1000)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


def test_sigterm_after_the_last_step_still_ends_the_process():
    with pytest.raises(SystemExit) as ended, stoppable() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert ended.value.code == 143


def test_half_a_checkpoint_is_none(tmp_path):
    (tmp_path / ".writing-000004").mkdir(parents=True)
    assert newest(tmp_path, {}) is None and newest(tmp_path / "none", {}) is None
    write_checkpoint(tmp_path, 2, {"a": {"x": torch.ones(2)}}, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]
    with pytest.raises(DataError, match="a file, not a folder"): newest(tmp_path / "step-000002" / "manifest.json", {})


# several processes

LAUNCHERS = {"torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
             "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]}


@pytest.mark.parametrize(("launcher", "size", "kinds"), [
    ("torchrun", 7, ("upper", "remembered", "cached", "reranker")),   # 72 rows: with 71 the second batch has nothing for the second process
    ("accelerate", 71, ("all-answers", "adapter", "matryoshka", "reranker-in-batch"))])
def test_two_processes_have_the_losses_of_one(launcher, size, kinds, folder, tmp_path):
    here = Path(__file__).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)])}
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(here / "trainee.py"), str(folder), str(tmp_path)]
    subprocess.run([*command, json.dumps({"batch_size": size}), *kinds], check=True, env=env, timeout=300)
    for kind in kinds:
        first, second = (json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in (0, 1))
        assert first == second, "the processes came to different weights"
        alone = train(folder, kind, batch_size=size)
        assert first["losses"] == pytest.approx(alone["losses"], abs=2e-5)
        assert [p[2] for p in first["points"]] == pytest.approx([p[2] for p in alone["points"]], abs=1e-4)
        assert len(list((tmp_path / kind).iterdir())) == 2
        assert train(folder, kind, tmp_path / kind, batch_size=size)["key"] == first["key"]   # one process takes what two have saved


def test_a_model_that_reads_all_texts_as_one_row_is_not_dealt_out():
    words = Tokenizer(WordLevel({"car": 0, "house": 1}, "car"))
    model = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=4)], device="cpu")
    features = model.preprocess(["car", "house house"])
    whole = model(features)["sentence_embedding"]
    with shared(model, Group(0, 2), torch.float32), pytest.raises(DataError, match="one long row"): model(features)
    with shared(model, Group(0, 1), torch.bfloat16): assert model(features)["sentence_embedding"].shape == whole.shape


# memory

@pytest.mark.parametrize(("kind", "batch_size", "tokens"), [("full", 8, 96), ("half", 16, 64), ("adapter", 12, 96)])
def test_the_memory_of_a_training_is_told_within_a_quarter(kind, batch_size, tokens):
    command = [sys.executable, ROOT / "bench" / "training.py", "--part", "memory", "--one", json.dumps([kind, batch_size, tokens])]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout.splitlines()[-1])
    assert found["told"] == pytest.approx(found["took"], rel=.25), found


def test_what_is_kept_beside_the_steps_is_told_too(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    def told(*kept): return peak_memory(model, 4, 8, kept=Kept(*kept))
    trained = sum(p.nbytes for p in model.parameters())
    assert told(True).peak == told().peak + trained and told(True, False, 10_000).peak == told(True).peak + 10_000
    saved = told(False, True)
    assert saved.checkpoint == 4 * trained and saved._replace(step=0, scores=0).peak == 6 * trained   # with the optimiser's two means


def test_more_rows_tokens_or_layers_take_more_and_the_model_stays_as_it_was(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    before, width = fingerprint(model), model.max_seq_length
    def peak(*args, **kwargs): return peak_memory(model, *args, **kwargs).peak
    whole = peak(64, 16)
    assert peak(64, 8) < whole < peak(128, 16) and whole < peak(64, 16, columns=3) and whole < peak(64, 16, also=100)
    with frozen_below(model, .5): assert peak(64, 16) < whole
    assert (fingerprint(model), model.max_seq_length) == (before, width)
    assert all(p.grad is None for p in model.parameters())


def test_what_does_not_fit_is_said_before_it_is_tried(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    half = peak_memory(model, 32, 16).peak
    assert check_memory(model, 32, 16).peak == half < free_memory(model.device)
    with pytest.raises(DataError, match="64 rows of 2 texts of 16 tokens .* lower the batch size to 32, or use a cached .* or tokens to"):
        check_memory(model, 64, 16, free=half)
    with pytest.raises(DataError, match="train fewer layers, an adapter, or a smaller model"): check_memory(model, 64, 16, free=10)


# between two models

def test_models_lie_between_two_models(folder, tmp_path):
    base, other = (SentenceTransformer(str(f), device="cpu") for f in (folder, tiny_model(tmp_path, seed=1)))
    one, half, none = (interpolated(base, other, share) for share in (1., .5, 0.))
    assert fingerprint(one) == fingerprint(other) != fingerprint(none) == fingerprint(base)
    for name, value in half.state_dict().items():
        assert torch.allclose(value.float(), (base.state_dict()[name] + other.state_dict()[name]).float() / 2, atol=1e-6)
    adapted = prepared(folder, "adapter")[0]
    with pytest.raises(DataError, match="is not the same weight in both models; merge an adapter first"): interpolated(base, adapted, .5)
    with pytest.raises(DataError, match="not the same weight"): interpolated(base, tiny_model_of(tmp_path / "deep", 3), .5)


def tiny_model_of(folder, layers): return SentenceTransformer(str(tiny_model(folder, layers=layers)), device="cpu")
