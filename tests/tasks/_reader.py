"""A very small encoder of texts in the transformers layout, with random weights."""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "chair", "shirt", "lamp", "old", "new", "##s"]


def write_reader(folder: Path, seed: int = 0, width: int = 16, classes: bool = False) -> Path:
    """BERT of two layers: the body alone, or with a head of three classes as a distilled student has."""
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=2 * width, max_position_embeddings=16, num_labels=3)  # fmt: skip
    (BertForSequenceClassification if classes else BertModel)(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"]
    return folder
