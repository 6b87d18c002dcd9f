"What a user relies on with adapters: placed by type, saved alone, put on their own base only, merged without loss, safe in threads."
import json
import shutil
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import KINDS, of_kind, tiny_data, tiny_model

from rag_finetune.core import DataError
from rag_finetune.data import split
from rag_finetune.embedding import fine_tune, fit, pair_rows
from rag_finetune.lora import (
    FILES, LR, adapters, add_adapter, adopt_adapter, check_adapter, linear_layers, load_adapter, merge, open_4bit, open_adapters,
    open_unsloth, save_adapter, switch,
)
from rag_finetune.models import FastEncoder, encode_documents, encode_queries, fingerprint, open_encoder
from rag_finetune.retrieval import dense

TEXTS = ["where is the red car", "show me a lamp", "find my white dog please"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def splits(): return split(tiny_data(per_thing=24), {"train": .7, "dev": .3}, 0)


def vectors(model): return encode_queries(model, TEXTS)

def shaken(model, seed=1):
    "Give the adapter that is being trained values as if it had been trained."
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad: p.data += .1 * torch.randn(p.shape, generator=generator)

def with_adapter(folder, seed=1, **settings):
    model = open_encoder(folder, device="cpu")
    add_adapter(model, **{"rank": 4, **settings})
    shaken(model, seed)
    return model

def saved(folder, tmp_path, seed=1, **settings):
    "The folder of an adapter, and the vectors of its model."
    model = with_adapter(folder, seed, **settings)
    save_adapter(model, tmp_path / f"adapter{seed}", "tiny")
    return tmp_path / f"adapter{seed}", vectors(model)


# where it goes

@pytest.mark.parametrize("kind", KINDS)
def test_on_any_architecture_an_adapter_is_found_its_place_trained_saved_loaded_and_merged(kind, folder, tmp_path, splits):
    base = of_kind(kind, folder, tmp_path)
    model = open_encoder(base, device="cpu")
    before, key, weights = vectors(model), fingerprint(model), {k: v.clone() for k, v in model.state_dict().items()}
    names = linear_layers(model)
    every = [n for n, m in model.transformers_model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert names == [n for n in every if not n.startswith("pooler")] and len(linear_layers(model, .5)) == len(names) / 2
    trained = add_adapter(model, rank=4)
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        4 * sum(model.transformers_model.get_submodule(n).base_layer.weight.shape) for n in names)
    np.testing.assert_array_equal(vectors(model), before)            # B is zero
    fine_tune(model, splits["train"], name="in-batch", epochs=1, lr=1e-2, share=0)
    after = vectors(model)
    assert np.abs(after - before).max() > 1e-2
    assert fingerprint(model, adapters=False) == key
    assert all(torch.equal(v, weights[k.replace(".base_layer", "")]) for k, v in model.state_dict().items() if "lora_" not in k)
    save_adapter(model, tmp_path / "adapter", "tiny")
    again = open_encoder(base, device="cpu")
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_array_equal(vectors(again), after)
    merge(again)
    np.testing.assert_allclose(vectors(again), after, atol=1e-5)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in open_encoder(base, device="cpu").named_parameters()]


def test_a_fine_tuned_adapter_is_that_of_devs_epoch_and_one_seed_gives_one(folder, splits):
    def trained(seed):
        model = open_encoder(folder, device="cpu")
        add_adapter(model, rank=4, seed=seed)
        curve = fine_tune(model, splits["train"], splits["dev"], epochs=4, lr=1e-2, share=0, seed=seed)
        return fingerprint(model), curve, model
    key, curve, model = trained(0)
    assert curve.points[curve.best].dev > curve.points[0].dev + .1
    run = dense(splits["dev"], FastEncoder(model))
    assert run and trained(0)[0] == key != trained(1)[0]


def test_full_fine_tunings_learning_rate_teaches_an_adapter_less(folder, splits):
    def gain(lr):
        model = open_encoder(folder, device="cpu")
        add_adapter(model)
        points = fine_tune(model, splits["train"], splits["dev"], epochs=2, lr=lr, share=0).points
        return max(p.dev for p in points[1:]) - points[0].dev
    assert gain(5 * LR) > gain(LR / 10) + .05   # so small a model takes more


def test_what_stands_behind_the_transformer_is_not_trained_because_it_is_not_saved(folder, tmp_path, splits):
    head = Dense(32, 16)
    model = SentenceTransformer(modules=[*list(open_encoder(folder, device="cpu"))[:2], head], device="cpu")
    model.save(str(tmp_path / "headed"))
    model = open_encoder(tmp_path / "headed", device="cpu")
    add_adapter(model, rank=2)
    fit(model, pair_rows(splits["train"]), MultipleNegativesRankingLoss(model), epochs=1, lr=1e-2)
    save_adapter(model, tmp_path / "adapter", "tiny")
    again = open_encoder(tmp_path / "headed", device="cpu")
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_array_equal(vectors(again), vectors(model))


def test_the_seed_chooses_a_and_other_chance_goes_on_as_it_would(folder):
    def first(seed):
        model = open_encoder(folder, device="cpu")
        add_adapter(model, seed=seed)
        return fingerprint(model)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert first(3) == first(3) != first(4)
    assert torch.rand(1) == expected


def test_targets_can_be_chosen_and_unknown_ones_are_named(folder):
    model = open_encoder(folder, device="cpu")
    queries = [n for n in linear_layers(model) if n.endswith("query")]
    assert add_adapter(model, rank=2, targets=queries) == 2 * 2 * 64
    with pytest.raises(DataError, match="no matrix 'q_proj' in the model; linear_layers"): add_adapter(model, targets=["q_proj"], name="b")
    with pytest.raises(DataError, match="'default' already"): add_adapter(model)
    with pytest.raises(DataError, match="rank 0"): add_adapter(model, rank=0, name="b")
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DataError, match=f"alpha {alpha}"): add_adapter(model, alpha=alpha, name="b")
    for name in ("a.b", "", "keys", "train"):   # torch keeps the last two for itself
        with pytest.raises(DataError, match=f"adapter name '{name}': give another one"): add_adapter(model, name=name)
    assert adapters(model) == ["default"]


@pytest.mark.parametrize("target", ["encoder.layer.0", "encoder.layer.0.output.LayerNorm", "pooler.activation", "query", ""])
def test_a_target_that_is_no_matrix_is_refused_and_the_model_stays_as_it_was(target, folder):
    model = open_encoder(folder, device="cpu")
    with pytest.raises(DataError, match=f"no matrix '{target}' in the model"): add_adapter(model, targets=[*linear_layers(model), target])
    assert adapters(model) == [] and all(p.requires_grad for p in model.parameters())
    assert add_adapter(model) > 0


def test_a_table_of_vectors_may_have_an_adapter_too(folder, tmp_path):
    targets = ["embeddings.word_embeddings", "encoder.layer.1.output.dense"]
    where, expected = saved(folder, tmp_path, targets=targets)
    model = open_encoder(folder, device="cpu")
    load_adapter(model, where)
    np.testing.assert_array_equal(vectors(model), expected)
    merge(model)
    np.testing.assert_allclose(vectors(model), expected, atol=1e-5)


def test_rslora_divides_by_the_root_of_the_rank(folder):
    scales = []
    for rslora in (False, True):
        model = open_encoder(folder, device="cpu")
        add_adapter(model, rank=16, alpha=32, rslora=rslora)
        scales += {m.scaling["default"] for m in model.modules() if isinstance(m, BaseTunerLayer)}
    assert scales == [2, 8]


# under which key

def test_an_adapters_vectors_are_never_kept_under_its_bases_key(folder, tmp_path, splits):
    base = open_encoder(folder, device="cpu")
    key, plain = fingerprint(base), vectors(base)
    model = with_adapter(folder)
    add_adapter(model, rank=2, name="other", seed=7)
    shaken(model, 7)
    keys, found, runs = {}, {}, {}
    for name in (None, "default", "other"):
        switch(model, name)
        keys[name], found[name] = fingerprint(model), vectors(model)
        runs[name] = dense(splits["dev"], FastEncoder(model), keys[name], store=tmp_path)
    assert keys[None] == key and len(set(keys.values())) == 3
    np.testing.assert_array_equal(found[None], plain)
    assert np.abs(found["default"] - plain).max() > .01 < np.abs(found["default"] - found["other"]).max()
    for name, run in runs.items():   # read from the store: each its own
        switch(model, name)
        assert dense(splits["dev"], FastEncoder(model), fingerprint(model), store=tmp_path) == run


def test_the_share_of_an_adapter_counts_and_its_name_does_not(folder, tmp_path):
    def key(**settings): return fingerprint(with_adapter(folder, **settings))
    assert key(alpha=8) != key(alpha=4)
    assert key(name="a") == key(name="b")


# saved alone

def test_an_adapter_is_saved_alone_and_small_and_tells_nothing_of_its_making(folder, tmp_path, splits):
    model = open_encoder(folder, device="cpu")
    add_adapter(model, rank=2)
    fine_tune(model, splits["train"], epochs=1, lr=1e-2, share=0)
    save_adapter(model, tmp_path / "a", "tiny")
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == sorted(FILES)
    assert set(load_file(tmp_path / "a" / FILES[0])) == {
        f"base_model.model.{n}.lora_{m}.weight" for n in linear_layers(model) for m in "AB"}
    written = "".join((tmp_path / "a" / f).read_text() for f in FILES[1:])
    assert str(folder) not in written and not any(text in written for text in splits["train"].queries.values())
    plain = SentenceTransformer(str(folder), device="cpu")
    plain.load_adapter(str(tmp_path / "a"))       # the library's own way works, without asking which base it is
    np.testing.assert_allclose(plain.encode(TEXTS), vectors(model), atol=1e-6)


def test_an_adapter_on_a_wrong_base_is_refused_and_both_are_named(folder, tmp_path):
    where, expected = saved(folder, tmp_path)
    right = open_encoder(folder, device="cpu")
    stranger = open_encoder(tiny_model(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(DataError) as refused: load_adapter(stranger, where)
    for part in ("'tiny'", fingerprint(right), fingerprint(stranger), "differ in their weights, tokenizer or configuration:"):
        assert part in str(refused.value)
    assert adapters(stranger) == [] and "\n" not in str(refused.value)
    right.max_seq_length = 7
    with pytest.raises(DataError, match=r"max_seq_length \(16 there, 7 here\)"): load_adapter(right, where)
    right.max_seq_length = 16
    right.tokenizer.add_tokens(["taxi"])
    with pytest.raises(DataError, match="differ in their weights, tokenizer or configuration:"): load_adapter(right, where)
    right = open_encoder(folder, device="cpu")
    load_adapter(right, where)
    np.testing.assert_array_equal(vectors(right), expected)
    merge(right)
    with pytest.raises(DataError, match="differ in their weights"): load_adapter(right, where)   # on top of itself


def test_an_adapter_goes_on_a_base_that_has_another_one(folder, tmp_path):
    (one, first), (two, second) = saved(folder, tmp_path, 1), saved(folder, tmp_path, 2, rank=2)
    model = open_encoder(folder, device="cpu")
    load_adapter(model, one, "one")
    load_adapter(model, two, "two")
    np.testing.assert_array_equal(vectors(model), second)
    switch(model, "one")
    np.testing.assert_array_equal(vectors(model), first)
    with pytest.raises(DataError, match="no adapter 'three' in the model, only: one, two"): switch(model, "three")
    save_adapter(model, tmp_path / "copy", "tiny")
    assert (tmp_path / "copy" / FILES[0]).read_bytes() == (one / FILES[0]).read_bytes()


def test_an_adapter_may_be_called_like_a_part_of_the_model(folder, tmp_path):
    model = open_encoder(folder, device="cpu")
    folders = {name: saved(folder, tmp_path, i) for i, name in enumerate(("query", "0", "lora_A"))}
    for name, (where, _) in folders.items(): load_adapter(model, where, name)
    for name, (where, expected) in folders.items():
        switch(model, name)
        np.testing.assert_array_equal(vectors(model), expected)
        save_adapter(model, tmp_path / "again", "tiny")
        assert (tmp_path / "again" / FILES[0]).read_bytes() == (where / FILES[0]).read_bytes()


@pytest.mark.parametrize(("setting", "value"), [
    ("auto_mapping", {"base_model_class": "X", "parent_library": "evil"}), ("megatron_config", {"a": 1}),
    ("init_lora_weights", "pissa"), ("use_dora", True), ("layer_replication", [[0, 1]]), ("corda_config", {"cache_file": "x.pt"}),
    ("bias", "all"), ("a_later_invention", 1),
])
def test_settings_that_do_more_than_plain_lora_are_refused(setting, value, folder, tmp_path):
    where, _ = saved(folder, tmp_path)
    settings = json.loads((where / FILES[1]).read_text()) | {setting: value}
    (where / FILES[1]).write_text(json.dumps(settings))
    with pytest.raises(DataError, match=f"adapter_config.json sets '{setting}'"): load_adapter(open_encoder(folder, device="cpu"), where)


def test_another_trained_layer_beside_the_matrices_is_not_left_out_in_silence(folder, tmp_path):
    where, _ = saved(folder, tmp_path)
    settings = json.loads((where / FILES[1]).read_text()) | {"modules_to_save": ["pooler"]}
    (where / FILES[1]).write_text(json.dumps(settings))
    save_file({**load_file(where / FILES[0]), "base_model.model.pooler.dense.weight": torch.eye(32)}, where / FILES[0])
    (where / FILES[3]).unlink()
    model = open_encoder(folder, device="cpu")
    adopt_adapter(where, model, "tiny")
    with pytest.raises(DataError, match="does not fit"): load_adapter(model, where)


def test_what_is_missing_broken_or_pickled_is_refused_by_name(folder, tmp_path):
    model = open_encoder(folder, device="cpu")
    where, _ = saved(folder, tmp_path)
    def refused(match):
        with pytest.raises(DataError, match=match): load_adapter(model, where)
        assert adapters(model) == []
    (where / "adapter_model.bin").write_bytes(b"\x80\x04.")
    refused("adapter_model.bin, a pickled file")
    (where / "adapter_model.bin").unlink()
    whole = {f: (where / f).read_bytes() for f in FILES}
    for file in (FILES[0], FILES[1], FILES[3]):
        (where / file).unlink()
        refused(f"no {file} in it")
        (where / file).write_bytes(whole[file])
    flipped = bytearray(whole[FILES[0]])
    flipped[-1] ^= 1
    for broken in (bytes(flipped), whole[FILES[0]][:-1], b""):
        (where / FILES[0]).write_bytes(broken)
        refused("adapter_model.safetensors is not the file that was saved")
    (where / FILES[0]).write_bytes(whole[FILES[0]])
    (where / FILES[1]).write_text("{")
    refused("not valid JSON")
    for changed in ({"r": 5}, {"lora_alpha": 320}, {"use_rslora": True}, {"target_modules": ["query"]}):
        (where / FILES[1]).write_text(json.dumps(json.loads(whole[FILES[1]]) | changed))
        refused("adapter_config.json is not the file that was saved")
    (where / FILES[1]).write_bytes(whole[FILES[1]])
    for told in ("[]", json.dumps(json.loads(whole[FILES[3]]) | {"sha256": "0" * 64})):
        (where / FILES[3]).write_text(told)
        refused("names no base")
    (where / FILES[3]).write_bytes(whole[FILES[3]])
    load_adapter(model, where)


def foreign(where, folder, tmp_path, tensors=None, **settings):
    "An adapter as somebody else might have made it, taken over for the model in `folder`."
    made = tmp_path / f"foreign{len(list(tmp_path.iterdir()))}"
    shutil.copytree(where, made)
    (made / FILES[3]).unlink()
    (made / FILES[1]).write_text(json.dumps(json.loads((where / FILES[1]).read_text()) | settings))
    if tensors is not None: save_file(tensors, made / FILES[0])
    adopt_adapter(made, open_encoder(folder, device="cpu"), "tiny")
    return made


@pytest.mark.parametrize("settings", [
    {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": "8"}, {"lora_alpha": None}, {"lora_alpha": 0},
    {"lora_alpha": -4}, {"lora_alpha": 10 ** 400}, {"r": 4.}, {"r": [4]}, {"r": None}, {"r": 0}, {"r": True}, {"use_rslora": "no"},
    {"fan_in_fan_out": [1]},
], ids=str)
def test_settings_that_are_no_numbers_are_refused_by_name(settings, folder, tmp_path):
    where, _ = saved(folder, tmp_path)
    with pytest.raises(DataError, match=f"adapter_config.json: {next(iter(settings))} is "): foreign(where, folder, tmp_path, **settings)


def test_what_a_stranger_calls_its_targets_is_not_read(folder, tmp_path):
    where, expected = saved(folder, tmp_path)
    for targets in ("(", "(a+)+$", ["zzz"], None, 5, "all-linear"):   # a broken regular expression, and one that never ends
        model = open_encoder(folder, device="cpu")
        load_adapter(model, foreign(where, folder, tmp_path, target_modules=targets))
        np.testing.assert_array_equal(vectors(model), expected)


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(folder, tmp_path):
    (where, expected), model = saved(folder, tmp_path), open_encoder(folder, device="cpu")
    right, key = load_file(where / FILES[0]), fingerprint(model)
    name = next(n for n in right if n.endswith("query.lora_A.weight"))
    rest = {n: t for n, t in right.items() if n != name}
    wrong = ({}, rest, rest | {name: torch.zeros(4, 31)}, rest | {name: torch.zeros(5, 32)}, right | {"base_model.model.x": torch.zeros(1)},
             right | {f"base_model.model.encoder.layer.0.output.LayerNorm.lora_{m}.weight": torch.zeros(4, 32) for m in "AB"},
             right | {name.replace("lora_A", "lora_C"): torch.zeros(4, 32)})
    for tensors in wrong:
        bad = foreign(where, folder, tmp_path, tensors)
        with pytest.raises(DataError, match=r"adapter_model.safetensors does not fit adapter_config.json or this model") as error:
            load_adapter(model, bad)
        assert "\n" not in str(error.value)
        with pytest.raises(DataError, match="does not fit"): open_adapters(model, {"good": where, "bad": bad})
        assert adapters(model) == [] and fingerprint(model) == key and all(p.requires_grad for p in model.parameters())
    load_adapter(model, where)
    np.testing.assert_array_equal(vectors(model), expected)


def test_a_foreign_adapter_is_taken_over_by_who_knows_its_base(folder, tmp_path):
    theirs = open_encoder(folder, device="cpu")
    wrapped = get_peft_model(theirs[0].model, LoraConfig(r=4, target_modules="all-linear", task_type="FEATURE_EXTRACTION"))
    shaken(theirs)
    expected = theirs.encode(TEXTS)
    wrapped.save_pretrained(tmp_path / "theirs")
    model = open_encoder(folder, device="cpu")
    with pytest.raises(DataError, match="adopt_adapter"): load_adapter(model, tmp_path / "theirs")
    adopt_adapter(tmp_path / "theirs", model, "tiny")
    load_adapter(model, tmp_path / "theirs")
    np.testing.assert_allclose(vectors(model), expected, atol=1e-6)
    with pytest.raises(DataError, match="written down already"): adopt_adapter(tmp_path / "theirs", model, "tiny")


def test_a_model_saved_with_its_adapter_in_it_is_not_opened_as_a_model(folder, tmp_path):
    model = with_adapter(folder)
    model.save(str(tmp_path / "mixed"))          # sentence-transformers writes the adapter, and the path of its base
    with pytest.raises(DataError, match="adapter_config.json belongs to an adapter"): open_encoder(tmp_path / "mixed")
    save_adapter(model, tmp_path / "alone", "tiny")
    with pytest.raises(DataError, match="belongs to an adapter"): open_encoder(tmp_path / "alone")
    with pytest.raises(DataError, match="holds a model"): save_adapter(model, folder, "tiny")


def test_a_save_that_was_cut_short_leaves_nothing_that_loads(folder, tmp_path, monkeypatch):
    where, _ = saved(folder, tmp_path, 1)
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr("rag_finetune.lora.save_file", full)
    with pytest.raises(OSError, match="No space"): save_adapter(with_adapter(folder, 2), where, "tiny")
    with pytest.raises(DataError, match="no adapter_config.json"): check_adapter(where)
    monkeypatch.undo()
    (where / FILES[0]).write_bytes(b"cut")       # what a killed save leaves
    save_adapter(with_adapter(folder, 2), where, "tiny")
    check_adapter(where)


@pytest.mark.parametrize("file", FILES[2:])
def test_a_folder_with_a_file_that_is_no_adapters_is_left_alone(file, folder, tmp_path):
    (tmp_path / file).write_text("mine")
    with pytest.raises(DataError, match=f"holds {file}, which belongs to no adapter"): save_adapter(with_adapter(folder), tmp_path, "tiny")
    assert [f.name for f in tmp_path.iterdir()] == [file] and (tmp_path / file).read_text() == "mine"


# merged

def test_merging_keeps_pooling_prompts_normalisation_length_and_similarity(folder, tmp_path):
    parts = list(open_encoder(folder, device="cpu"))
    model = SentenceTransformer(modules=[parts[0], Pooling(32, "cls"), Normalize()], device="cpu", similarity_fn_name="dot",
                                prompts={"query": "find ", "document": "the "}, default_prompt_name="query")
    model.max_seq_length = 9
    add_adapter(model, rank=4)
    shaken(model)
    queries, documents, key = encode_queries(model, TEXTS), encode_documents(model, TEXTS), fingerprint(model)
    merge(model)
    assert adapters(model) == [] and fingerprint(model) != key and all(p.requires_grad for p in model.parameters())
    np.testing.assert_allclose(encode_queries(model, TEXTS), queries, atol=1e-5)
    model.save(str(tmp_path / "merged"))
    for again in (open_encoder(tmp_path / "merged", device="cpu"), SentenceTransformer(str(tmp_path / "merged"), device="cpu")):
        np.testing.assert_allclose(again.encode_query(TEXTS), queries, atol=1e-5)
        np.testing.assert_allclose(again.encode_document(TEXTS), documents, atol=1e-5)
        assert (again[1].pooling_mode, again.max_seq_length, again.similarity_fn_name) == ("cls", 9, "dot")
        assert again.prompts == {"query": "find ", "document": "the "} and again.default_prompt_name == "query"
        np.testing.assert_allclose(np.linalg.norm(again.encode(TEXTS), axis=1), 1, atol=1e-5)
        assert fingerprint(again) == fingerprint(model)


def test_only_the_adapter_that_is_on_is_merged_and_only_once(folder, tmp_path):
    (one, first), (two, _) = saved(folder, tmp_path, 1), saved(folder, tmp_path, 2)
    model = open_encoder(folder, device="cpu")
    load_adapter(model, one, "one")
    load_adapter(model, two, "two")
    switch(model, None)
    with pytest.raises(DataError, match=r"no adapters of this model are switched on \(one, two\)"): merge(model)
    switch(model, "one")
    merge(model)
    np.testing.assert_allclose(vectors(model), first, atol=1e-5)
    with pytest.raises(DataError, match="none lies in it"): merge(model)
    assert add_adapter(model) > 0     # it is an ordinary model again


def test_broken_weights_are_not_merged_in_part(folder):
    model = with_adapter(folder)
    [p for p in model.parameters() if p.requires_grad][-1].data[0] = float("nan")
    before = fingerprint(model, adapters=False)
    with pytest.raises(DataError, match="adapter 'default': holds values that are no numbers"): merge(model)
    assert fingerprint(model, adapters=False) == before


# several on one base

def test_threads_with_different_adapters_get_their_own_vectors(folder, tmp_path):
    made = {f"a{i}": saved(folder, tmp_path, i) for i in (1, 2)}
    base = open_encoder(folder, device="cpu")
    plain, key = vectors(base), fingerprint(base)
    encoders = open_adapters(base, {name: where for name, (where, _) in made.items()})
    expected = {"base": plain, **{name: v for name, (_, v) in made.items()}}
    wrong, start = [], threading.Barrier(6)
    def ask(name):
        start.wait()
        for _ in range(12):
            if not np.array_equal(encoders[name].encode_query(TEXTS), expected[name]): wrong.append(name)
    threads = [threading.Thread(target=ask, args=(name,)) for name in [*expected] * 2]
    for t in threads: t.start()
    for t in threads: t.join()
    assert wrong == [] and sorted(encoders) == ["a1", "a2", "base"]
    assert encoders["base"].key == key and len({e.key for e in encoders.values()}) == 3
    runs = [dense(tiny_data(), encoders[name], encoders[name].key, store=tmp_path) for name in ("a1", "a2", "a1")]
    assert runs[0] == runs[2] != runs[1] and encoders["a1"].similarity_fn_name == "cosine"


def test_several_adapters_are_refused_together_before_any_is_put_on(folder, tmp_path):
    (one, _), base = saved(folder, tmp_path), open_encoder(folder, device="cpu")
    elsewhere = tiny_model(tmp_path / "other", seed=1)
    save_adapter(with_adapter(elsewhere), tmp_path / "foreign", "elsewhere")
    with pytest.raises(DataError, match="differ in their weights"): open_adapters(base, {"one": one, "two": tmp_path / "foreign"})
    with pytest.raises(DataError, match="the base alone"): open_adapters(base, {"base": one})
    with pytest.raises(DataError, match="adapter name 'a.b': give another one"): open_adapters(base, {"one": one, "a.b": one})
    assert adapters(base) == []


def test_a_base_that_has_adapters_is_refused_since_two_locks_would_guard_one_model(folder, tmp_path):
    (one, _), base = saved(folder, tmp_path), open_encoder(folder, device="cpu")
    open_adapters(base, {"one": one})
    with pytest.raises(DataError, match="has adapters already.*one.*open it anew, and give all folders at once"):
        open_adapters(base, {"two": one})
    assert adapters(base) == ["one"]


# where there is a GPU

@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_given(folder):
    with pytest.raises(DataError, match="4-bit weights are for NVIDIA GPUs, and here the best device is"): open_4bit(folder)
    with pytest.raises(DataError, match="unsloth is for GPUs, and here the best device is"): open_unsloth(folder)
    if find_spec("bitsandbytes") is None:
        with pytest.raises(DataError, match=r'run: pip install "rag_finetune\[gpu\]"'): open_4bit(folder, "cpu")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_an_adapter_on_4_bits_is_trained_saved_loaded_and_not_merged(tmp_path, splits):
    folder = tiny_model(tmp_path / "base")
    model, whole = open_4bit(folder, "cpu"), open_encoder(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.uint8}
    before = vectors(model)
    assert ((before * vectors(whole)).sum(axis=1) > .8).all()
    add_adapter(model, rank=4)
    fine_tune(model, splits["train"], name="in-batch", epochs=1, lr=1e-2, share=0)
    after = vectors(model)
    assert np.abs(after - before).max() > 1e-2
    save_adapter(model, tmp_path / "adapter", "tiny")
    again = open_4bit(folder, "cpu")
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_allclose(vectors(again), after, atol=1e-5)
    with pytest.raises(DataError, match="4-bit weights"): merge(again)
    with pytest.raises(DataError, match="differ in their weights"): load_adapter(whole, tmp_path / "adapter")
