"A tiny model and a tiny dataset, made on the spot: real classes, random weights, seconds instead of minutes."
import random
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast, MistralConfig, ModernBertConfig, MPNetConfig, Qwen3Config,
    RobertaConfig, XLMRobertaConfig,
)

from rag_finetune.core import Dataset

COLOURS = ["red", "green", "blue", "black", "white", "brown"]
THINGS = ["car", "house", "dog", "cup", "tree", "coat", "door", "lamp"]
KINDS = {"bert": BertConfig, "roberta": RobertaConfig, "xlm-r": XLMRobertaConfig, "mpnet": MPNetConfig, "modernbert": ModernBertConfig,
         "qwen3": Qwen3Config, "mistral": MistralConfig}
ASKING = ["where", "is", "the", "my", "find", "show", "me", "a", "please", "now"]


def tiny_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    "A folder with a two-layer BERT of 32 dimensions that knows the words above."
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COLOURS, *THINGS, *ASKING]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    config = BertConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=32, initializer_range=.3)
    BertModel(config).eval().save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32), Normalize()], device="cpu")
    saved = folder / "model"
    model.save_pretrained(str(saved))
    return saved


def of_kind(kind: str, bert: Path, folder: Path) -> Path:
    "A tiny embedding model of another architecture, with the words of the tiny BERT in `bert`."
    tokenizer = AutoTokenizer.from_pretrained(bert)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    if kind in ("qwen3", "mistral"): size |= {"num_key_value_heads": 1, "head_dim": 16}
    torch.manual_seed(0)
    AutoModel.from_config(KINDS[kind](**size)).save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    model = SentenceTransformer(modules=[Transformer(str(folder / kind)), Pooling(32), Normalize()], device="cpu")
    model.save(str(folder / f"{kind}-st"))
    return folder / f"{kind}-st"


def tiny_data(things: int = 8, per_thing: int = 12, seed: int = 0) -> Dataset:
    "Documents are things; a query asks for one of them in many words."
    rng = random.Random(seed)
    queries, qrels = {}, {}
    for thing in THINGS[:things]:
        made: set[str] = set()
        while len(made) < per_thing:
            made.add(" ".join([*rng.sample(ASKING, rng.randint(2, 4)), rng.choice(COLOURS), thing, rng.choice(ASKING)]))
        for text in sorted(made):
            queries[f"q{len(queries)}"] = text
            qrels[f"q{len(qrels)}"] = {thing: 1}
    return Dataset({t: f"the {COLOURS[i % 6]} {t}" for i, t in enumerate(THINGS[:things])}, queries, qrels, name="things")
