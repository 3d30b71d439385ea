"""Tiny pre-trained models with a tokenizer, and ingested listings: what a fine-tuning begins from."""

from pathlib import Path

import polars as pl
import torch

from models.components import pretrained
from models.components._model import assemble
from tasks.datasets import listings
from tasks.files import write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>")
STACK = {"layers": 2, "heads": 2, "inner": 64}
BEFORE = {"embedding": {"word": {}, "position": {"length": 96}, "norm": "none"}, "eps": 1.0e-5, "act": "gelu_tanh"}
RECIPES = {
    "bert": {
        "width": 32, "eps": 1.0e-12, "act": "gelu", "dropout": 0.1, "tie": True,
        "embedding": {"word": {}, "position": {"length": 96}, "segment": {"kinds": 2}},
        "encoder": {"transformer": STACK}, "target": {"mlm": {}, "sp": {}},
    },
    "gpt2": {
        "width": 32, "dropout": 0.0, "tie": True, **BEFORE, "target": {"lm": {}},
        "encoder": {"transformer": {**STACK, "inner": 128, "mask": "causal", "norm_first": True}},
    },
    "llama": {  # grouped keys and values: two query heads share one
        "width": 32, "dropout": 0.0, "eps": 1.0e-6, "act": "silu", "tie": False,
        "embedding": {"word": {}, "norm": "none"}, "target": {"lm": {}},
        "encoder": {"transformer": {"layers": 2, "heads": 4, "kv_heads": 2, "inner": 48, "mask": "causal",
                                    "norm": "rms", "norm_first": True, "gated": True, "bias": False,
                                    "positions": "rotary"}},
    },
    "t5": {
        "width": 32, "dropout": 0.0, "eps": 1.0e-6, "act": "relu", "norm": "t5", "norm_first": True, "tie": True,
        "share": True, "embedding": {"word": {}, "norm": "none"}, "target_embedding": {"word": {}, "norm": "none"},
        "encoder": {"transformer": {**STACK, "positions": "relative", "scale": False, "bias": False}},
        "decoder": {"transformer": {**STACK, "positions": "relative", "scale": False, "bias": False}},
        "target": {"lm": {"rescale": True}},
    },
}  # fmt: skip


def write_tokenizer(folder: Path, size: int = 600, rows: int = 500) -> int:
    """A word-piece tokenizer of the listings' words; returns the number of its ids."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    texts = [text for one in listings.listings(rows) for text in (one.title(), listings.described(one))]
    texts += listings.ASKED.values()
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL], show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = zip(("pad", "unk", "cls", "sep", "mask", "bos", "eos"), SPECIAL, strict=True)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **{f"{role}_token": token for role, token in names})
    wrapped.save_pretrained(folder)
    return made.get_vocab_size()


def write_model(folder: Path, family: str, seed: int = 0) -> Path:
    """A folder of transformers of 2 layers x 32 with random weights and a tokenizer."""
    recipe = RECIPES[family] | {"vocabulary": write_tokenizer(folder)}
    torch.manual_seed(seed)
    special = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6}
    more = {"decoder_start_token_id": 0} if family == "t5" else {}
    return pretrained.save(assemble(recipe), recipe, folder, family, special | more)


def write_examples(folder: Path, answer: str, rows: int = 150) -> Path:
    """What tasks/ingest.py leaves of made-up listings."""
    (folder / "raw").mkdir(parents=True)
    listings.fetch(folder / "raw", Path(listings.__file__), rows=rows, answer=answer)
    return write_rows(folder, listings.read(folder / "raw").collect())


def write_rows(folder: Path, frame: pl.DataFrame) -> Path:
    """The splits of a frame of examples."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for split in frame["split"].unique():
        frame.filter(pl.col("split") == split).write_parquet(folder / "rows" / f"{split}.parquet")
    write_json(folder / "manifest.json", {"kind": "examples"})
    return folder
