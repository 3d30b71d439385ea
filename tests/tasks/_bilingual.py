"""Small ingested texts in two languages, a tokenizer that knows one of them, and a small model with it."""

from pathlib import Path

import polars as pl
import torch

from tasks.ingest_text import ingest_text
from tasks.tokenizer import make_tokenizer

SOURCES = {
    "en": {"data": "texts", "kind": "text", "language": "en"},
    "zh": {"data": "texts", "kind": "text", "language": "zh"},
    "pairs": {"data": "pairs", "kind": "parallel"},
    "sft": {"data": "told", "kind": "sft"},
}
NOUNS, HAN = ("bag", "coat", "lamp", "shoe", "watch", "tray"), "包衣灯鞋表盘"
COLOURS, TONES = ("red", "blue", "green", "black", "white"), "红蓝绿黑白"


def ingested(folder: Path) -> Path:
    """texts, pairs and told below `folder`: some hundred short rows."""
    texts, pairs, told = [], [], []
    for number in range(240):
        noun, colour = number % 6, number // 6 % 5
        english = f"I sell a {COLOURS[colour]} {NOUNS[noun]} number {number}."
        chinese = f"我卖一个{TONES[colour]}色的{HAN[noun]}，第{number}号。"
        body = [english] + [f"It is {COLOURS[(colour + k) % 5]} and good." for k in range(number % 4)]
        texts.append({"sentences": body, "language": "en", "licence": "CC0-1.0", "source": "made up"})
        body = [chinese] + [f"它是{TONES[(colour + k) % 5]}色的。" for k in range(number % 3)]
        texts.append({"sentences": body, "language": "zh", "licence": "CC0-1.0", "source": "made up"})
        both = {"source_language": "en", "target_language": "zh", "licence": "CC0-1.0", "origin": "made up"}
        pairs.append({"source": english, "target": chinese} | both)
        told.append({"instruction": "Name the colour.", "input": english, "output": COLOURS[colour], "language": "en",
                     "licence": "CC0-1.0", "origin": "made up"})  # fmt: skip
    for name, kind, rows in (("texts", "documents", texts), ("pairs", "pairs", pairs), ("told", "instructions", told)):
        ingest_text(kind, pl.LazyFrame(rows), 1, folder / name, heldout=0.1)
    return folder


def byte_tokenizer(folder: Path, out: Path) -> Path:
    """A byte-level tokenizer trained on the English of `ingested`."""
    english = folder / "english"
    if not english.exists():
        both = pl.scan_parquet([folder / "texts" / "rows" / f"{split}.parquet" for split in ("train", "heldout")])
        ingest_text("documents", both.filter(pl.col("language") == "en"), 1, english, heldout=0.1)
    make_tokenizer({"kind": "bpe", "vocabulary": 400}, [english], out)
    return out


def base(kind: str, tokenizer: Path, out: Path, length: int = 64, seed: int = 0) -> Path:
    """An untrained causal model of transformers, "gpt2", "llama" or "bloom", with a tokenizer beside it."""
    import transformers

    auto = transformers.AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    common = {"vocab_size": len(auto), "pad_token_id": auto.pad_token_id, "bos_token_id": auto.bos_token_id,
              "eos_token_id": auto.eos_token_id}  # fmt: skip
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        made = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=length, **common)
    elif kind == "llama":
        made = transformers.LlamaConfig(intermediate_size=24, max_position_embeddings=length, **small, **common)
    else:
        made = transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **common)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(out)
    auto.save_pretrained(out)
    return out
