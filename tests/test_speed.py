"What makes training fast changes nothing but the last digits."
import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny import ASKING, THINGS, tiny_data, tiny_model
from transformers import (
    BertTokenizerFast, DistilBertConfig, DistilBertModel, ModernBertConfig, ModernBertModel, MPNetConfig, MPNetModel, RobertaConfig,
    RobertaModel,
)

from rag_finetune import embedding
from rag_finetune.data import split
from rag_finetune.embedding import by_length, dev_score, fit, frozen_below, objective, recalled
from rag_finetune.models import FastEncoder, open_encoder

TEXTS = ["where is the red car", "find my dog", "a blue house", "show me the big green tree please now", "cup", "where is my coat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tiny_model(tmp_path_factory.mktemp("tiny"), layers=4)


@pytest.fixture(scope="module")
def splits(): return split(tiny_data(per_thing=20), {"train": .7, "dev": .3}, 0)


def computed(model, layer):
    "Tokens, padding included, that a layer computes from now on; a list that grows."
    seen = []
    embedding._layers(model)[layer].attention.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[:2].numel()))
    return seen


def trained(folder, splits, name, **options):
    "The weights, the curve and the tokens that the lowest and the highest layer computed."
    model = open_encoder(folder, device="cpu")
    rows, loss = objective(name, model, splits["train"])
    seen = [computed(model, 0), computed(model, -1)]
    with frozen_below(model, .5):
        curve = fit(model, rows, loss, lambda: dev_score(FastEncoder(model), splits["dev"]), epochs=4, lr=1e-3, batch_size=16)
    return {k: v.clone() for k, v in model.state_dict().items()}, curve, *map(sum, seen)


def distance(a, b): return sum(((a[k] - b[k]).double() ** 2).sum() for k in b) ** .5


@pytest.mark.parametrize("name", ["all-answers", "remembered", "in-batch"])
def test_what_lower_layers_made_is_remembered_and_the_weights_are_the_same(name, folder, splits, monkeypatch):
    weights, curve, low, high = trained(folder, splits, name)
    monkeypatch.setattr(embedding, "_all_batches", lambda *_: [])       # as where texts are too many
    plain, expected, all_low, all_high = trained(folder, splits, name)
    start = open_encoder(folder, device="cpu").state_dict()
    assert distance(weights, plain) < .02 * distance(start, plain)      # where no gradient is, Adam makes steps of how sums were rounded
    assert [p.dev for p in curve.points] == pytest.approx([p.dev for p in expected.points], abs=1e-6)
    assert [p.loss for p in curve.points[1:]] == pytest.approx([p.loss for p in expected.points[1:]], abs=1e-4)
    assert all_low == all_high and abs(high - all_high) < .1 * all_high and low < .65 * all_low


def test_too_many_texts_are_not_remembered(folder):
    model = open_encoder(folder, device="cpu")
    tokens = sum(len(ids) for ids in model.tokenizer(TEXTS)["input_ids"])
    with frozen_below(model, .5):
        with recalled(model, [(TEXTS, None)], budget=tokens * 32 * 4) as enough: assert enough == len(TEXTS)
        with recalled(model, [(TEXTS, None)], budget=tokens * 32 * 4 - 1) as enough: assert enough == 0
    with recalled(model, [(TEXTS, None)]) as enough: assert enough == 0            # all layers are trained
    assert "forward" not in vars(model[0].model.embeddings)


SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40}
OTHERS = {
    "roberta": lambda n: RobertaModel(RobertaConfig(vocab_size=n, pad_token_id=0, **SIZES)),
    "distilbert": lambda n: DistilBertModel(DistilBertConfig(vocab_size=n, dim=32, n_layers=4, n_heads=2, hidden_dim=64)),
    "mpnet": lambda n: MPNetModel(MPNetConfig(vocab_size=n, pad_token_id=0, **SIZES)),
    "modernbert": lambda n: ModernBertModel(ModernBertConfig(vocab_size=n, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2,
                                                             sep_token_id=3, global_attn_every_n_layers=2, local_attention=8, **SIZES)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_models_are_remembered_too(name, tmp_path):
    torch.manual_seed(0)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ASKING, *THINGS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab))
    OTHERS[name](len(vocab)).save_pretrained(tmp_path)
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), model_max_length=24,
                      model_input_names=["input_ids", "attention_mask"]).save_pretrained(tmp_path)
    model = SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(32)], device="cpu")
    features = model.preprocess(TEXTS)
    model.eval()
    expected = model(dict(features))["sentence_embedding"]
    with frozen_below(model, .5), recalled(model, [(TEXTS, None)]) as texts:
        assert texts == len(TEXTS)
        for part in (slice(None), slice(1, 3), slice(4, 6)):       # another width, another batch
            cut = model.preprocess(TEXTS[part])
            vectors = model(dict(cut))["sentence_embedding"]
            assert torch.allclose(vectors, expected[part], atol=1e-5) and vectors.requires_grad
    assert torch.equal(model(dict(features))["sentence_embedding"], expected)


def test_a_text_that_was_not_announced_is_remembered_as_it_first_passes(folder):
    model = open_encoder(folder, device="cpu")
    with frozen_below(model, .5), recalled(model, [(TEXTS[:3], None)]):
        model.eval()
        first = model(model.preprocess(TEXTS))["sentence_embedding"]
        low = computed(model, 0)
        again = model(model.preprocess(TEXTS))["sentence_embedding"]
        assert not low and torch.equal(first, again)
        with torch.inference_mode(): model(model.preprocess(TEXTS))
        assert low                                                 # dev is scored as if nothing were remembered


def test_parts_of_like_length_give_the_same_gradient_for_less_padding(folder):
    model = open_encoder(folder, device="cpu")
    other = copy.deepcopy(model)
    texts = TEXTS * 3
    for m, budget in ((model, 24), (other, 10_000)):
        m.eval()
        seen = computed(m, 0)
        with by_length(m, budget): vectors = m(m.preprocess(texts))["sentence_embedding"]
        (vectors * torch.arange(32)).sum().backward()
        m.seen, m.vectors = sum(seen), vectors
    assert torch.allclose(model.vectors, other.vectors, atol=1e-5) and model.seen < .8 * other.seen
    for a, b in zip(model.parameters(), other.parameters()): assert a.grad is b.grad or torch.allclose(a.grad, b.grad, atol=1e-3, rtol=1e-3)
    assert "forward" not in vars(model)


def test_no_gradient_comes_below_the_trained_layers(folder):
    model = open_encoder(folder, device="cpu")
    with frozen_below(model, .5):
        assert not any(p.requires_grad for p in model[0].model.embeddings.parameters())
        lower = []
        embedding._layers(model)[1].register_forward_hook(lambda m, args, out: lower.append(out))
        assert model(model.preprocess(TEXTS))["sentence_embedding"].requires_grad and not lower[0].requires_grad
