"""A small catalogue, records made from it, and a model of two layers that knows its letters."""

from pathlib import Path

import polars as pl
import torch

from tasks.authoring.records import author_records
from tasks.datasets import listings
from tasks.files import write_json

ROWS = 400


def write_catalogue(folder: Path, rows: int = ROWS, language: str = "en+zh") -> Path:
    """What tasks/ingest.py leaves of made-up listings with their facts."""
    (folder / "raw").mkdir(parents=True)
    (folder / "cat" / "rows").mkdir(parents=True)
    listings.fetch(folder / "raw", Path(listings.__file__), rows=rows, answer="catalogue", language=language)
    frame = listings.read(folder / "raw").collect()
    for split in frame["split"].unique():
        frame.filter(pl.col("split") == split).write_parquet(folder / "cat" / "rows" / f"{split}.parquet")
    write_json(folder / "cat" / "manifest.json", {"kind": "examples"})
    return folder / "cat"


def write_records(folder: Path, rows: int = 260, **chosen) -> Path:
    """Authored records of a small catalogue."""
    catalogue = write_catalogue(folder)
    author_records({"records": rows, "expand": 4, **chosen}, catalogue, folder / "authored", folder / "written")
    return folder / "authored"


def write_llama(folder: Path, texts: list[str], positions: int = 512, tied: bool = False, seed: int = 0) -> Path:
    """A LLaMA of two layers whose four heads share two keys and values, and a byte-level tokenizer of the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(wrapped), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def texts_of(authored: Path) -> list[str]:
    """All texts of the training records."""
    rows = pl.read_parquet(authored / "rows" / "train.parquet")
    return [text for name in ("instruction", "input", "output") for text in rows[name]]
