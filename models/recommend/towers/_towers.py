"""A user's tower and an item's tower, which meet in one product only: that is what an index of items can serve.

    V(item) = MLP(e_item),   U(user) = MLP([e_user ; mean of e_item over the history]) + mean of V over it,   s = U . V

e are embedded fields: ids, numbers, and the mean of the words' vectors. A history is read through the item's own
embeddings, so an item that is new is as readable in a history as in the catalogue. The mean over watched items is that
of Covington et al., 2016, doi:10.1145/2959100.2959190. That both towers share the embeddings, and the last term, by
which untrained towers already find what is like the history, are ours.

What describes items is one integer tensor, (.., F + W): F fields, then up to W words, 0 for no word.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend._inputs import Inputs

__all__ = ["Columns", "Fields", "Pair", "Prompt", "described", "masked_mean", "perceptron", "recent"]


@dataclass(frozen=True)
class Fields:
    """What one side is described by."""

    sizes: tuple[int, ...] = ()  # rows of each categorical field's table, row 0 ("unknown") included
    dense: int = 0  # numerical columns
    words: int = 0  # places for words, after the fields
    rows: int = 0  # of the words' table, row 0 ("no word") included

    @property
    def ids(self) -> int:
        """Columns of the integer tensor."""
        return len(self.sizes) + self.words

    def __bool__(self) -> bool:
        return bool(self.sizes or self.dense or self.words)


class Columns(nn.Module):
    """Fields of N rows -> e (N, D).

    Args:
        fields: what there is; all empty gives D = 0.
        embedding: width of each field's vectors, and of the words' mean.
    """

    def __init__(self, fields: Fields, embedding: int):
        super().__init__()
        if fields.words and fields.rows < 2:
            raise ValueError(f"{fields.words} places for words need a table of 2 rows or more, got {fields.rows}")
        self.fields = fields
        plain = fields.sizes or fields.dense
        self.inputs = Inputs(list(fields.sizes), fields.dense, embedding) if plain else None
        self.bag = nn.EmbeddingBag(fields.rows, embedding, mode="mean", padding_idx=0) if fields.words else None
        # Vectors of length 1, about: with smaller ones all items start alike, and a softmax of cosines learns slowly.
        if plain:
            nn.init.normal_(self.inputs.table, std=embedding**-0.5)
        if self.bag is not None:
            nn.init.normal_(self.bag.weight, std=embedding**-0.5)
            self.bag.weight.data[0] = 0
        self.width = (self.inputs.width if plain else 0) + (embedding if fields.words else 0)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """(N, D) of ids (N, F + W) and numbers (N, M).

        Raises:
            ValueError: wrong number of columns, or an id outside its table.
        """
        if ids.shape[-1] != self.fields.ids or numbers.shape[-1] != self.fields.dense:
            raise ValueError(
                f"expected {self.fields.ids} columns of ids and {self.fields.dense} of numbers, got {ids.shape[-1]} "
                f"and {numbers.shape[-1]}; encode the rows as those of the training"
            )
        field, word = ids.long().split([len(self.fields.sizes), self.fields.words], -1)
        parts = [self.inputs(field, numbers)] if self.inputs is not None else []
        if self.bag is not None:
            parts.append(self.bag(word))
        return torch.cat(parts, -1) if parts else numbers.new_zeros(len(ids), 0)


class Pair(nn.Module):
    """Both towers: all that is served.

    Args:
        user: fields of users; may be empty where there are histories.
        item: fields of items.
        embedding: width of a field's vectors.
        widths: hidden layers of each tower.
        width: K, of the vectors.
        history: whether users have histories.
        cosine: vectors of length 1.

    Raises:
        ValueError: a side has nothing to be known by, or a width below 1.
    """

    def __init__(
        self,
        user: Fields,
        item: Fields,
        embedding: int,
        widths: tuple[int, ...],
        width: int,
        history: bool = True,
        cosine: bool = True,
    ):
        super().__init__()
        if not item or not (user or history) or min(embedding, width, *widths, 1) < 1:
            raise ValueError(
                f"towers need fields of items, fields or histories of users, and widths of 1 or more; got item={item}, "
                f"user={user}, history={history}, widths={[embedding, *widths, width]}"
            )
        self.width, self.history, self.cosine = width, history, cosine
        self.users, self.items = Columns(user, embedding), Columns(item, embedding)
        self.user_tower = perceptron([self.users.width + history * self.items.width, *widths, width])
        self.item_tower = perceptron([self.items.width, *widths, width])

    def user_vectors(
        self, user: Tensor, user_numbers: Tensor, history: Tensor | None = None, history_numbers: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, K).

        Args:
            user: (B, F) integer.
            user_numbers: (B, M) float.
            history: (B, T, F' + W) integer, what describes the items of each history.
            history_numbers: (B, T, M').
            kept: (B, T) bool, True where the history has an item.
        """
        own = self.users(user, user_numbers)
        if not self.history:
            return self._unit(self.user_tower(own))
        e_BTD = self.of_history(self.items, history, history_numbers)
        told = self.user_tower(torch.cat([own, masked_mean(e_BTD, kept)], -1))
        return self._unit(told + masked_mean(self.item_tower(e_BTD), kept))

    def item_vectors(self, item: Tensor, item_numbers: Tensor) -> Tensor:
        """(N, K) of items described by (N, F' + W) and (N, M')."""
        return self._unit(self.item_tower(self.items(item, item_numbers)))

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """(B, I) of vectors (B, K) and (I, K)."""
        return users @ items.mT

    @staticmethod
    def of_history(encode: nn.Module, history: Tensor, numbers: Tensor) -> Tensor:
        """(B, T, D): `encode`, of rows, at every place of the histories."""
        return encode(history.flatten(0, 1), numbers.flatten(0, 1)).unflatten(0, history.shape[:2])

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.cosine else x


class Prompt(nn.Module):
    """A new task on frozen towers: phi' = normalise(phi * (1 + q) + b); the items, and their index, stay as they are.

    It starts at q = b = 0, which changes nothing. Ours.
    """

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, users: Tensor) -> Tensor:
        """(B, K) of frozen unit vectors (B, K)."""
        return F.normalize(users * (1 + self.scale) + self.shift, dim=-1)


def perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, out in pairwise(widths):
        layers += [nn.Linear(width, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def masked_mean(x_BTD: Tensor, kept_BT: Tensor) -> Tensor:
    """(B, D) mean over the kept places; 0 where there are none."""
    # where, not a product: what stands at a place that is not kept must not matter, NaN included.
    total = torch.where(kept_BT[..., None], x_BTD, 0).sum(1)
    return total / kept_BT.sum(1, keepdim=True).clamp(min=1)


def recent(row: Tensor, item: Tensor, rows: int, length: int) -> Tensor:
    """Histories as a table (rows, length) int64: the last items of each row, the latest at the end; -1 is no item.

    Args:
        row: (P,) int64, whose item it is, rising; the items of a row in the order of time.
        item: (P,) int64.
    """
    count = row.bincount(minlength=rows)
    back = count.cumsum(0)[row] - torch.arange(len(row), device=row.device)  # 1 for the last item
    late = back <= length
    table = torch.full((rows, length), -1, dtype=torch.int64, device=row.device)
    table[row[late], length - back[late]] = item[late]
    return table


def described(history: Tensor, ids: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    """What the towers read of histories (B, T) of places in a catalogue, -1 for no item.

    Args:
        ids: (I, F + W) integer of all items.
        numbers: (I, M).
    """
    place = history.clamp(min=0)
    return {"history": ids[place], "history_numbers": numbers[place], "kept": history >= 0}
