"""When numbers of two language models can be held against each other, and row by row who is right."""

import math
from dataclasses import dataclass

import polars as pl

__all__ = ["NotComparable", "OtherRows", "Rescored", "paired"]


class NotComparable(ValueError):
    """No rows give numbers of these two models that could be held against each other."""


class OtherRows(ValueError):
    """The data at hand are not those that the candidate was measured on."""


@dataclass(frozen=True)
class Rescored:
    """What a model does on today's rows: metrics, and its answers where every row has one."""

    metrics: dict[str, float]
    answers: pl.DataFrame | None = None


def paired(candidate: pl.DataFrame, champion: pl.DataFrame) -> dict[str, float]:
    """Row by row, who is right: McNemar's exact test (doi:10.1007/BF02295996) of two models' answers.

    Args:
        candidate: answers with `split`, `label` and `predicted`; its dev rows are those of `champion`, in order.

    Returns:
        rows, only_candidate and only_champion right, and p: how often chance alone splits those rows as unevenly.

    Raises:
        OtherRows: the two tables are not of the same rows.
    """
    ours = candidate.filter(pl.col("split") == "dev") if "split" in candidate.columns else candidate
    same = [name for name in ("text", "second", "label") if name in ours.columns and name in champion.columns]
    if not ours.select(same).equals(champion.select(same)):
        raise OtherRows(f"the candidate's {len(ours)} answers are not to the champion's {len(champion)} rows")
    right = [table["predicted"] == table["label"] for table in (ours, champion)]
    only = [int((one & ~other).sum()) for one, other in (right, right[::-1])]
    return {"rows": len(ours), "only_candidate": only[0], "only_champion": only[1], "p": _chance(*only)}


def _chance(one: int, other: int) -> float:
    """Two-sided binomial probability of a split as uneven, when either side is as likely.

    >>> _chance(5, 1)  # 2 (1 + 6) / 64
    0.21875
    >>> _chance(3, 3)
    1.0
    """
    tail = sum(math.comb(one + other, few) for few in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2 ** (one + other))
