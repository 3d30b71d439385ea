"""A listing's words -> the numbers that a recommender reads: a frozen encoder, then the axes on which listings differ.

    v = mean of the encoder's last hidden states over all tokens of the text, its special tokens included      (D,)
    z = clip(A (v - m) / 4s, -1, 1)                                                                            (K,)

    c_k = cosine of s z and s z_k,    z_k: the listing that the user looked at k events ago                    (H,)

m is the mean and A the K strongest principal axes of v over the distinct texts of the training rows, s the standard
deviation along each axis: every number of z has mean 0 and deviation 1/4 there, about that of numbers in [0, 1], which
all others are. A row without words is 0, the average listing, and like none. c says what z alone cannot: how much this
listing, which nobody may have seen yet, is like those that the user has seen. The mean over tokens is Reimers and
Gurevych's (2019, arXiv:1908.10084); the rest is ours.
The file imports polars, numpy and torch, and transformers where it reads a model: it travels with a served model as it
is.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

__all__ = [
    "ListingText", "Projection", "TextEncoder", "UnreadableEncoder", "numbers_of", "past", "save_projection", "text_of",
]  # fmt: skip

LONGEST = 64  # tokens of a text; what follows is not read. A title of 80 characters has some 20
ROWS, TOKENS = 256, 4096  # of a batch at most
FAR = 4.0  # standard deviations, which become 1; no training title says what lies beyond
FLAT = 1e-10  # of the largest variance: an axis with less is rounding


class UnreadableEncoder(ValueError):
    """A folder is no encoder of texts that plain transformers can load."""


class TextEncoder:
    """A frozen transformers model and its tokenizer: texts -> vectors.

    Args:
        folder: transformers layout, with config.json, safetensors and a tokenizer.

    Raises:
        UnreadableEncoder: something of these is missing or cannot be loaded; says what.
    """

    def __init__(self, folder: str | Path):
        import transformers

        transformers.logging.set_verbosity_error()
        folder = Path(folder)
        if missing := [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]:
            raise UnreadableEncoder(f"{folder} has no {' and no '.join(missing)}; an encoder of listings is a folder "
                                    f"that transformers' AutoModel and AutoTokenizer load")  # fmt: skip
        bar = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            own = {"local_files_only": True, "trust_remote_code": False}
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **own)
            self.model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **own)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UnreadableEncoder(f"{folder} cannot be loaded as an encoder of texts: {str(error)[:300]}") from None
        finally:
            if bar:
                transformers.utils.logging.enable_progress_bar()
        if self.model.config.is_encoder_decoder:
            self.model = self.model.get_encoder()
        self.model.float().eval().requires_grad_(False)
        places = getattr(self.model.config, "max_position_embeddings", None) or LONGEST
        self.longest = int(min(LONGEST, self.tokenizer.model_max_length, places))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Mean hidden states, (N, D) float32; texts of like length share a batch."""
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.longest)["input_ids"] if len(texts) else []
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
        found: np.ndarray | None = None
        start = 0
        while start < len(order):
            longest = max(1, len(rows[order[start]]))
            chosen = order[start : start + max(1, min(ROWS, TOKENS // longest))]
            vectors = self._batch([rows[place] for place in chosen], longest)
            if found is None:
                found = np.empty((len(rows), vectors.shape[1]), np.float32)
            found[chosen] = vectors
            start += len(chosen)
        return np.empty((0, self.model.config.hidden_size), np.float32) if found is None else found

    def _batch(self, rows: list[list[int]], longest: int) -> np.ndarray:
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id or 0)
        for row, known in zip(ids, rows, strict=True):
            row[: len(known)] = torch.tensor(known, dtype=ids.dtype)
        mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        hidden_BTD = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return ((hidden_BTD * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).numpy()


@dataclass(frozen=True)
class Projection:
    """Vectors -> standardised numbers along principal axes.

    Attributes:
        mean: (D,) of the training texts' vectors.
        axes: (K, D), rows of length 1, the strongest first; its largest entry is positive.
        scale: (K,) standard deviations along them.
    """

    mean: np.ndarray
    axes: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, chunks: Iterable[np.ndarray], width: int) -> "Projection":
        """Learn from (N, D) pieces, one in memory at a time; at most `width` axes.

        An axis along which the training texts do not differ gives 0 for every text.

        Raises:
            ValueError: there is no vector at all, or one is not finite.
        """
        count, total, square, middle = 0, 0.0, 0.0, None
        for chunk in chunks:
            chunk = chunk.astype(np.float64)
            middle = chunk.mean(0) if middle is None else middle  # sums of squares stay small around it
            count, total, square = count + len(chunk), total + (chunk - middle).sum(0), square + _square(chunk - middle)
        if not count or not np.isfinite(square).all():
            raise ValueError(f"the axes of listings need finite vectors of training texts; there are {count}")
        mean = total / count
        variance, axes = np.linalg.eigh(square / count - np.outer(mean, mean))
        variance, axes = variance[::-1][:width], axes.T[::-1][:width]
        axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
        real = variance > FLAT * max(variance[0], 0)
        scale = np.sqrt(np.where(real, variance, 1))
        return cls(*(np.float32(part) for part in (middle + mean, axes * real[:, None], scale)))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K) float32 in [-1, 1]."""
        return np.clip((vectors - self.mean) @ self.axes.T / (FAR * self.scale), -1, 1).astype(np.float32)


class ListingText:
    """Raw rows -> the numbers of their listings' texts, as the served model computes them.

    Args:
        folder: text.json (`columns`, `history`), projection.safetensors and model/, as tasks/vectors.py writes them.

    Attributes:
        columns: that it reads, those of the user's earlier listings last.
        width: numbers that it gives, K + H.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        about = json.loads((folder / "text.json").read_text())
        self.texts = [about["columns"], *past(about["columns"], about["history"])]  # columns of each of a row's texts
        self.columns = [name for columns in self.texts for name in columns]
        self.project = Projection(**load_file(folder / "projection.safetensors"))
        self.encode = TextEncoder(folder / "model")
        self.width = len(self.project.scale) + about["history"]
        self.known: dict[str, np.ndarray] = {}  # text -> its z: what need not be encoded again

    def __call__(self, rows: pl.DataFrame) -> np.ndarray:
        """Numbers of N rows, (N, K + H) float32; each distinct text is encoded once, a known one not at all."""
        texts = pl.concat([rows.select(text_of(columns)).to_series() for columns in self.texts])
        distinct = texts.drop_nulls().unique(maintain_order=True)
        new = [text for text in distinct if text not in self.known]
        found = dict(zip(new, self.project(self.encode(new)), strict=True)) if new else {}
        table = np.zeros((1 + len(distinct), len(self.project.scale)), np.float32)
        for place, text in enumerate(distinct, 1):
            table[place] = self.known[text] if text in self.known else found[text]
        numbers = {text: place for place, text in enumerate(distinct, 1)}
        index = np.array([numbers.get(text, 0) for text in texts], dtype=np.int64).reshape(len(self.texts), len(rows))
        return numbers_of(table, index.T, self.project.scale)


def numbers_of(table: np.ndarray, index: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """z and c of N rows.

    Args:
        table: (T, K) z of every text; row 0 is zeros, no words.
        index: (N, 1 + H) rows of the table: the listing, then what the user looked at before, the latest first.
        scale: (K,).

    Returns:
        (N, K + H) float32.
    """
    z_NK = table[index[:, 0]]
    if index.shape[1] == 1:
        return z_NK
    own_NK, past_NHK = z_NK * scale, table[index[:, 1:]] * scale
    size_NH = np.linalg.norm(own_NK, axis=-1)[:, None] * np.linalg.norm(past_NHK, axis=-1)
    alike_NH = np.einsum("nk,nhk->nh", own_NK, past_NHK) / np.where(size_NH > 0, size_NH, 1)
    return np.concatenate([z_NK, alike_NH], axis=1)


def past(columns: Sequence[str], history: int) -> list[list[str]]:
    """Columns of the user's earlier listings in a row, the latest first."""
    return [[f"hist_{name}_{k + 1}" for name in columns] for k in range(history)]


def save_projection(projection: Projection, path: str | Path) -> None:
    """Write what `ListingText` reads."""
    save_file({name: np.ascontiguousarray(value) for name, value in vars(projection).items()}, path)


def text_of(columns: Sequence[str]) -> pl.Expr:
    """A listing's text: its columns, those that are known, joined by blanks; null when nothing is known."""
    joined = pl.concat_str([pl.col(name).cast(pl.String) for name in columns], separator=" ", ignore_nulls=True)
    text = joined.str.strip_chars()
    return pl.when(text.str.len_bytes() > 0).then(text).alias("text")


def _square(chunk: np.ndarray) -> np.ndarray:
    return chunk.T @ chunk
