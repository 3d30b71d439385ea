"""Recurrent encoders: stacks that read each document of a row by itself, forwards or both ways."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.components._rows import Rows

__all__ = ["BothWays", "OneWay", "Sequences"]


class Sequences:
    """The real tokens of each document of a row, moved to the left of a row of their own.

    A recurrent or convolutional layer that looks backwards only may then run over all places: nothing stands before a
    document, and what stands behind it is never read. Without documents the shape stays (B, T), and the device is not
    asked for any number.
    """

    def __init__(self, rows: Rows):
        mask = rows.mask
        if rows.documents is None:
            sequence, count = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask), len(mask)
            self.length = mask.shape[1]
        else:
            starts = mask.new_ones(mask.shape)
            starts[:, 1:] = rows.documents[:, 1:] != rows.documents[:, :-1]
            sequence = starts.flatten().cumsum(0).view_as(starts) - 1
            count = int(sequence[-1, -1]) + 1
            self.length = int(torch.bincount(sequence.flatten(), minlength=1).max())
        flat_mask, flat = mask.flatten(), sequence.flatten()
        real = flat_mask.long()
        sizes = torch.zeros(count, dtype=torch.long, device=mask.device).index_add_(0, flat, real)
        before = real.cumsum(0) - real  # real tokens before each place, in all rows
        first = torch.zeros(count, dtype=torch.long, device=mask.device)
        first[1:] = sizes.cumsum(0)[:-1]
        slot = flat * self.length + before - first[flat]
        self.count, self.mask, self.sizes = count, flat_mask, sizes
        self.slot = torch.where(flat_mask, slot, count * self.length)  # padding goes to a place that is cut off
        self.shape = mask.shape

    def gather(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (N, L, D): a document a row, zeros behind it."""
        width = hidden.shape[-1]
        packed = hidden.new_zeros(self.count * self.length + 1, width)
        packed = packed.index_copy(0, self.slot, hidden.reshape(-1, width))
        return packed[:-1].view(self.count, self.length, width)

    def scatter(self, packed: Tensor) -> Tensor:
        """(N, L, D) -> (B, T, D): back to where each token came from, zeros at padding."""
        width = packed.shape[-1]
        spare = torch.cat([packed.reshape(-1, width), packed.new_zeros(1, width)])
        return spare[self.slot].view(*self.shape, width)

    def reverse(self, packed: Tensor) -> Tensor:
        """Each document from its last token to its first; what is behind it stays. Twice is once undone."""
        place = torch.arange(self.length, device=packed.device).expand(self.count, -1)
        mirrored = torch.where(place < self.sizes[:, None], self.sizes[:, None] - 1 - place, place)
        return packed.gather(1, mirrored[..., None].expand_as(packed))


class OneWay(nn.Module):
    """Layers that read from left to right.

    Args:
        cell: nn.RNN, nn.LSTM or nn.GRU.
        width: D of what comes in and goes out.
        layers: how many.
        dropout: between the layers and after the last.
    """

    def __init__(self, cell: Callable[..., nn.RNNBase], width: int, layers: int, dropout: float):
        super().__init__()
        self.forwards = _stack(cell, width, width, layers, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        sequences = Sequences(rows)
        return self.dropout(sequences.scatter(self.forwards(sequences.gather(hidden))[0]))


class BothWays(nn.Module):
    """Two stacks that never see each other's states, as ELMo's: left to right gives the first half of D, right to left
    the second. Each language model of `bilm` therefore reads only what it may know.

    Arguments as OneWay.

    Raises:
        ValueError: D is odd.
    """

    def __init__(self, cell: Callable[..., nn.RNNBase], width: int, layers: int, dropout: float):
        super().__init__()
        if width % 2:
            raise ValueError(f"two directions share the width, but {width} is odd; give an even width")
        self.forwards = _stack(cell, width, width // 2, layers, dropout)
        self.backwards = _stack(cell, width, width // 2, layers, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        sequences = Sequences(rows)
        packed = sequences.gather(hidden)
        after = sequences.reverse(self.backwards(sequences.reverse(packed))[0])
        return self.dropout(sequences.scatter(torch.cat([self.forwards(packed)[0], after], -1)))


def _stack(cell: Callable[..., nn.RNNBase], width: int, units: int, layers: int, dropout: float) -> nn.RNNBase:
    if layers < 1:
        raise ValueError(f"a recurrent encoder needs at least 1 layer, got {layers}")
    return cell(width, units, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
