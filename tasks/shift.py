"""How far two samples of one column lie apart: counts in, PSI and the Kolmogorov-Smirnov distance out.

    PSI = sum over bins (p - q) ln(p / q)        p, q: shares of the reference and of the new rows in a bin
    KS  = max over x |F(x) - G(x)|               F, G: their cumulative distributions

Numbers are counted in the cells of a grid of reference values, each value and each gap between two of them a cell, so
rows are read once, in any number of batches, and memory does not grow with them. KS is exact where the reference has at
most GRID distinct values; beyond, it is off by at most 2 / GRID.
Source: Siddiqi, Credit Risk Scorecards, 2006 (PSI); Massey, 1951, doi:10.1080/01621459.1951.10500769 (KS).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tasks.notice import drift

__all__ = ["GRID", "Counts", "auc_interval", "bins", "grid_of", "ks", "psi"]

GRID = 4096  # values of the reference that are told apart (ours)
Z = 1.959964  # of a 95 % interval


def grid_of(sample: np.ndarray) -> np.ndarray:
    """(M,) float64, ascending: the sample's distinct numbers, at most GRID of them, evenly spaced by rank."""
    values = np.unique(sample[np.isfinite(sample)])
    if len(values) > GRID:
        values = np.unique(np.quantile(sample[np.isfinite(sample)], np.linspace(0, 1, GRID), method="lower"))
    return values


@dataclass
class Counts:
    """Rows of one side in the cells of a grid: below the first value, at it, between it and the next, and so on."""

    grid: np.ndarray
    cells: np.ndarray = field(init=False)  # (2 M + 1,) int64
    missing: int = 0  # null and NaN

    def __post_init__(self):
        self.cells = np.zeros(2 * len(self.grid) + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count a batch: (N,) float64, NaN where a value is missing; an infinity lies beyond every number."""
        there = values[~np.isnan(values)]
        self.missing += len(values) - len(there)
        cell = np.searchsorted(self.grid, there, "left") + np.searchsorted(self.grid, there, "right")
        self.cells += np.bincount(cell, minlength=len(self.cells))

    @property
    def rows(self) -> int:
        return int(self.cells.sum()) + self.missing


def bins(reference: Counts, new: Counts, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of both sides in `count` bins of about equally many reference rows, and in one of missing values.

    A reference of at most `count` distinct values is not merged: each value is a bin, and so is each gap.
    """
    cells = len(reference.cells)
    if len(reference.grid) <= count:
        bin = np.arange(cells)
    else:
        share = reference.cells.cumsum() / max(1, reference.cells.sum())
        # Right-closed: an edge is a value of the grid, and the value's own cell is the last of its bin.
        edges = np.unique([np.searchsorted(share, part / count) for part in range(1, count)])
        bin = np.searchsorted(edges, np.arange(cells), "left")
    sides = []
    for side in (reference, new):
        rows = np.bincount(bin, weights=side.cells)
        sides.append({str(place): int(n) for place, n in enumerate(rows)} | {"missing": side.missing})
    return sides[0], sides[1]


def psi(reference: Mapping[str, int], new: Mapping[str, int]) -> float:
    """Population stability index of rows by bin; 0 when the shares are equal, a share below 1e-4 counts as 1e-4."""
    return drift(*({name: {"share": rows / max(1, sum(side.values()))} for name, rows in side.items()}
                   for side in (reference, new)))  # fmt: skip


def ks(reference: Counts, new: Counts) -> float:
    """Largest difference of both cumulative distributions, in [0, 1], missing values aside; NaN without any value."""
    sums = [side.cells.sum() for side in (reference, new)]
    if not all(sums):
        return float("nan")
    one, other = (side.cells.cumsum() / total for side, total in zip((reference, new), sums, strict=True))
    return float(np.abs(one - other).max())


def auc_interval(score: np.ndarray, label: np.ndarray) -> tuple[float, float, float]:
    """AUC of scores, and the ends of its 95 % interval, cut to [0, 1]; NaN with one class only.

    Args:
        score: (N,) float.
        label: (N,) 1 or 0.

    Source: DeLong, DeLong and Clarke-Pearson, 1988, doi:10.2307/2531595, with the midranks of Sun and Xu, 2014.
    """
    positive, negative = score[label == 1], score[label == 0]
    m, n = len(positive), len(negative)
    if not m or not n:
        return (float("nan"),) * 3
    whole = _midranks(np.concatenate([positive, negative]))
    of_positive = (whole[:m] - _midranks(positive)) / n  # chance that this positive outranks a negative
    of_negative = 1 - (whole[m:] - _midranks(negative)) / m
    auc = float(of_positive.mean())
    error = Z * float(np.sqrt(_variance(of_positive) / m + _variance(of_negative) / n))
    return auc, max(0.0, auc - error), min(1.0, auc + error)


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
