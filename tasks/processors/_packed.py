"""Which pieces of a stream share a row: the packers of models/language/packing.py, by name."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from models.language.packing import Plan, alone, best_fit, concat, first_fit, split

__all__ = ["pack", "pieces", "report"]

KINDS = ("none", "concat", "first_fit", "best_fit")


def pack(
    lengths: np.ndarray, length: int, packing: str, bins: int, seed: int, overhead: int = 0, whole: bool = False
) -> Plan:
    """Lay documents into rows.

    Args:
        lengths: (D,) places that each document takes.
        length: of a row.
        packing: "none" (a document alone in its row), "concat", "first_fit" or "best_fit".
        bins: open rows of first_fit.
        seed: of the order of documents.
        overhead: places that each piece takes besides.
        whole: documents longer than a row are left out and counted, instead of cut into several pieces.

    Raises:
        ValueError: an unknown packing, or nothing fits.
    """
    if packing not in KINDS:
        raise ValueError(f"packing must be one of {', '.join(KINDS)}; got {packing!r}")
    if packing == "concat":
        return concat(lengths, length, seed, overhead)
    lengths = np.asarray(lengths, np.int64)
    if whole:
        document, start, stop = np.arange(len(lengths)), np.zeros_like(lengths), lengths
    else:
        document, start, stop = split(lengths, length - overhead)
    if packing == "none":
        plan = alone(stop - start, length, overhead)
    elif packing == "best_fit":
        plan = best_fit(stop - start, length, seed, overhead)
    else:
        plan = first_fit(stop - start, length, seed, bins, overhead)
    if not len(plan):
        raise ValueError(f"none of {len(lengths)} examples fits into a row of {length}; lengthen the row")
    piece = plan.document  # the packer numbered the pieces that it was given: back to documents
    return replace(plan, document=document[piece], start=start[piece], stop=stop[piece])


def pieces(plan: Plan, row: int) -> Iterator[tuple[int, int, int]]:
    """The pieces of a row from left to right: document, start, stop."""
    inside = slice(plan.rows[row], plan.rows[row + 1])
    columns = (plan.document, plan.start, plan.stop)
    return zip(*(column[inside].tolist() for column in columns), strict=True)


def report(plan: Plan, lengths: np.ndarray) -> dict[str, float]:
    """What became of the documents: rows, efficiency (taken places over all), how many were cut or left out."""
    pieces = np.bincount(plan.document, minlength=len(lengths))
    return {
        "rows": len(plan),
        "efficiency": plan.efficiency,
        "documents": int((pieces > 0).sum()),
        "documents_cut": int((pieces > 1).sum()),
        "documents_left_out": plan.dropped,
        "tokens_left_out": plan.lost,
    }
