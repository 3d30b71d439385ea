"""Tiny teachers, rows and tokens, and one call that distils from them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _tuned
import polars as pl
import pytest
import torch

from models.components import pretrained
from models.components._model import assemble
from tasks.distill import distill
from tasks.files import write_json
from tasks.finetune import finetune
from tasks.pretrain import pretrain
from tasks.tokenizer import Vocabulary, make_tokenizer
from tasks.tokens import tokens

TRAINING = {"steps": 2, "batch": 8, "lr": 2.0e-3, "seed": 3}
WORDS = ["red", "green", "small", "large", "wooden", "chair", "table", "lamp", "sold", "new", "used", "with"]


@contextmanager
def place(root: Path) -> Iterator[Path]:
    """Work in `root`, with slots of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("tasks.slots.FOLDER", root / "slots")
        yield root


def classifier(root: Path, name: str, layers: int = 3, seed: int = 0, epochs: int = 15) -> None:
    """A BERT of some layers that is tuned on root/rows; both are made where they are not there."""
    words, bert = root / "words", root / f"bert-{name}"
    if not words.exists():  # teachers of one student share their words
        words.mkdir()
        _tuned.write_tokenizer(words)
    shutil.copytree(words, bert)
    size = Vocabulary.open(bert).size
    encoder = {"transformer": {"layers": layers, "heads": 2, "inner": 64}}
    recipe = _tuned.RECIPES["bert"] | {"vocabulary": size, "encoder": encoder}
    torch.manual_seed(seed)
    pretrained.save(assemble(recipe), recipe, bert, "bert", {"pad_token_id": 0})
    if not (root / "rows").exists():
        _tuned.write_examples(root / "rows", "category")
    training = {"epochs": epochs, "batch": 32, "lr": 5.0e-3}
    chosen = {"kind": "classification", "length": 32, "training": training}
    finetune("category", chosen, root / "rows", bert, root / name, None)


def write_text(root: Path) -> None:
    """root/tokens of made-up sentences, and root/tokenizer."""
    ingest = root / "ingest"
    (ingest / "rows").mkdir(parents=True)
    draw = torch.Generator().manual_seed(1)
    sentence = lambda: " ".join(WORDS[i] for i in torch.randint(len(WORDS), (7,), generator=draw).tolist())
    for split, count in (("train", 40), ("heldout", 12)):
        texts = [[sentence() for _ in range(4)] for _ in range(count)]
        pl.DataFrame({"sentences": texts}).write_parquet(ingest / "rows" / f"{split}.parquet")
    write_json(ingest / "manifest.json", {"kind": "documents", "digest": "x", "rows": {"train": 40, "heldout": 12}})
    make_tokenizer({"kind": "wordpiece", "vocabulary": 80}, [ingest], root / "tokenizer")
    tokens(root / "tokenizer", ingest, root / "tokens")


def writer(root: Path, name: str, recipe: str, steps: int = 3, **more) -> None:
    """A model of the nano size of a recipe, pre-trained on root/tokens."""
    training = {"steps": steps, "batch": 8, "evaluate_rows": 8}
    run = {"recipe": recipe, "size": "nano", "data": "made", "length": 32, "training": training, **more}
    pretrain({"pretrain": {name: run}}, name, root / "tokens", root / "tokenizer", root / name, root / "kept")


def go(
    made,
    name,
    out,
    part="methods",
    entry=None,
    checkpoints=None,
    teacher="teacher",
    data="rows",
    kept=None,
    start=None,
    **more,
):
    """Distil; `teacher` is a folder in `made`, or several, `start` one; `kept` takes what the teacher said."""
    chosen = {"student": {"layers": 2}, "length": 32, "training": TRAINING, part: {name: entry or {}}, **more}
    by = [made / each for each in teacher] if isinstance(teacher, list) else made / teacher
    return distill(chosen, part, name, by, made / data, out, checkpoints, kept, start and made / start)
