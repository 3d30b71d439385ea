"""Vectors of descriptions: by any pre-trained text model, ready-made, or by words alone where there is neither.

    a folder that AutoModel loads   mean of the last layer's real tokens, length 1 (arXiv:1908.10084)
    a Parquet file                  columns item_id and vector, ready-made by whatever model
    "words"                         tf-idf of words, hashed, then its leading directions (LSA), length 1

"words" is fitted on the descriptions it is first given, which must be the training's, and is kept with the model.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tasks.poison import refuse_poison

__all__ = ["Describer", "DescriptionsMissing", "Given", "Pretrained", "Words", "describer"]

BUCKETS = 4096  # a few collisions among the words that two descriptions or more share
ITERATIONS = 6
WORD = re.compile(r"[^\W_]{2,}")


class DescriptionsMissing(ValueError):
    """Items without a vector, or a text model that is not there."""


class Describer:
    """Texts -> vectors (N, F) float32 of length 1; 0 where a text says nothing."""

    def fit(self, texts: Sequence[str]) -> "Describer":
        """Learn from the training's texts; returns itself. Only words have something to learn."""
        return self

    def __call__(self, texts: Sequence[str], ids: Sequence) -> Tensor:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What was learned."""
        return {}

    def load(self, state: dict[str, Tensor]) -> "Describer":
        """Take back what `state` gave; returns itself."""
        return self


class Words(Describer):
    """Hashed tf-idf, projected to its `width` leading directions in the training's texts."""

    def __init__(self, width: int = 128):
        self.width = width
        self.idf = self.basis = torch.zeros(0)

    def fit(self, texts: Sequence[str]) -> "Words":
        count_NW = _counts(texts)
        self.idf = ((1 + len(texts)) / (1 + (count_NW > 0).sum(0))).log() + 1
        weighed = self._weigh(count_NW)
        # Subspace iteration: the leading directions without the BUCKETS x BUCKETS matrix.
        wide = min(self.width + 16, *weighed.shape)
        basis = torch.randn(BUCKETS, wide, generator=torch.Generator().manual_seed(0))
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(weighed.mT @ (weighed @ basis)).Q
        small = weighed @ basis
        turn = torch.linalg.eigh(small.mT @ small).eigenvectors.flip(1)
        self.basis = (basis @ turn)[:, : self.width].contiguous()
        return self

    def __call__(self, texts: Sequence[str], ids: Sequence = ()) -> Tensor:
        if not len(self.basis):
            raise DescriptionsMissing("words are read after a fit on the training's descriptions, or a load of one")
        return torch.nn.functional.normalize(self._weigh(_counts(texts)) @ self.basis, dim=-1)

    def state(self) -> dict[str, Tensor]:
        return {"idf": self.idf, "basis": self.basis}

    def load(self, state: dict[str, Tensor]) -> "Words":
        self.idf, self.basis = state["idf"], state["basis"]
        return self

    def _weigh(self, count_NW: Tensor) -> Tensor:
        return torch.nn.functional.normalize(count_NW.log1p() * self.idf, dim=-1)


class Pretrained(Describer):
    """Mean of a text model's last layer over the real tokens."""

    def __init__(self, folder: str | Path, length: int = 256, batch: int = 32):
        self.folder, self.length, self.batch = str(folder), length, batch

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], ids: Sequence = ()) -> Tensor:
        from transformers import AutoModel, AutoTokenizer

        refuse_poison(Path(self.folder))
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding in each batch
        made = torch.empty(len(texts), model.config.hidden_size)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, max_length=self.length,
                              return_tensors="pt")  # fmt: skip
            mask = batch["attention_mask"][..., None].float()
            hidden = model(**batch).last_hidden_state.float()
            made[rows] = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(made, dim=-1)


class Given(Describer):
    """Vectors of a Parquet file, looked up by item_id."""

    def __init__(self, file: str | Path):
        table = pl.read_parquet(file)
        if absent := {"item_id", "vector"} - set(table.columns):
            raise DescriptionsMissing(f"{file} has no column {', '.join(sorted(absent))}; it needs item_id and vector")
        self.file, self.rows = str(file), {item: row for row, item in enumerate(table["item_id"])}
        self.vectors = torch.from_numpy(np.array(table["vector"].to_list(), dtype=np.float32))

    def __call__(self, texts: Sequence[str], ids: Sequence = ()) -> Tensor:
        if absent := [item for item in ids if item not in self.rows]:
            raise DescriptionsMissing(f"{self.file} lacks {len(absent)} of {len(ids)} items, e.g. {absent[:3]}; add "
                                      f"their vectors")  # fmt: skip
        return torch.nn.functional.normalize(self.vectors[[self.rows[item] for item in ids]], dim=-1)


def describer(how: str, width: int = 128) -> Describer:
    """What turns descriptions into vectors.

    Args:
        how: "words", a folder of a text model, or a Parquet file of vectors.
        width: of words' vectors.

    Raises:
        DescriptionsMissing: it is none of them.
    """
    if how == "words":
        return Words(width)
    if Path(how).is_dir():
        return Pretrained(how)
    if Path(how).is_file():
        return Given(how)
    raise DescriptionsMissing(f"texts are read by {how!r}, which is neither the word `words`, nor a folder of a text "
                              f"model, nor a Parquet file of vectors")  # fmt: skip


def _counts(texts: Sequence[str]) -> Tensor:
    """(N, BUCKETS): how often each bucket's words stand in a text."""
    count = torch.zeros(len(texts), BUCKETS)
    for row, text in enumerate(texts):
        words = [zlib.crc32(word.encode()) % BUCKETS for word in WORD.findall(text.lower())]
        count[row] = torch.tensor(words, dtype=torch.int64).bincount(minlength=BUCKETS)
    return count
