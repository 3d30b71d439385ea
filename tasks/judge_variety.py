"""How unlike the items of reordered lists are, and what is found by them all the same.

Distances by the vectors that a method reorders by say little about what people see: give items a category too.
"""

import numpy as np
import polars as pl
import torch
from torch import Tensor

from models.recommend.rerank._diversity import alpha_ndcg, category_coverage, category_entropy, list_distances
from models.recommend.rerank._rerank import Rerank
from tasks.candidates import Candidates, lists_of
from tasks.judge_lists import judge_lists

__all__ = ["Judge"]

CHUNK = 256  # requests at a time


class Judge:
    """Metrics of lists that a system reordered.

    Args:
        served: the recommender whose candidates they are.
        log: its training pairs `user`, `item`.
        vectors: (I, D) of its items.
        category: (I,) int64; None where items have none.
        teacher: what `as_mmr` compares with.
        places: K.

    Attributes:
        ndcg: name of that metric.
        compared: metrics by which two systems are compared.
    """

    def __init__(
        self, served, log: pl.DataFrame, vectors: Tensor, category: Tensor | None, teacher: Rerank, places: int
    ):
        self.served, self.log, self.vectors, self.category = served, log, vectors, category
        self.teacher, self.places, self.ndcg = teacher, places, f"ndcg@{places}"
        self.compared = (self.ndcg, "ilad", *(["categories"] if category is not None else []))

    def __call__(self, lists: Tensor, there: Candidates, asked: pl.DataFrame) -> tuple[dict[str, Tensor], dict]:
        """Of each request (R,), and the summary: what is found as of any list (tasks/judge_lists.py), and

            ilad, ilmd                          mean and smallest 1 - cosine of a list's pairs
            categories, entropy, alpha_ndcg     how many kinds of items, how evenly, and what is found of each kind
            as_mmr                              share of the list that the teacher shows too

        Args:
            lists: (R, K) numbers of candidates, -1 for none.
            there: the candidates.
            asked: the requests with their `truth`.
        """
        rows, found = judge_lists(lists_of(self.served, there, lists), asked, self.log, (self.places,))
        each = {name: torch.from_numpy(rows[name].to_numpy().astype(np.float64)) for name in rows.columns}
        parts = [
            self._unlike(lists[part], there[part], asked[part.numpy()])
            for part in torch.arange(len(lists)).split(CHUNK)
        ]
        each |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        told = found | {name: float(value.nanmean()) for name, value in each.items() if name not in found}
        return each, {name: value for name, value in told.items() if value == value}  # a slice may have no request

    def _unlike(self, lists: Tensor, there: Candidates, asked: pl.DataFrame) -> dict[str, Tensor]:
        vectors = self.vectors[there.item]
        taught = self.teacher.order(there.relevance, vectors, self.places, there.mask)
        same = (lists[:, :, None] == taught[:, None, :]) & (lists >= 0)[:, :, None]
        mean, least = list_distances(lists, vectors)
        found = {"ilad": mean, "ilmd": least, "as_mmr": same.any(2).double().sum(1) / self.places}
        if self.category is None:
            return found
        category = self.category[there.item]
        truth = asked.select("truth").with_row_index("row").explode("truth")
        truth = truth.join(self.served.number, left_on="truth", right_on="item", how="inner")
        row, item = (torch.from_numpy(truth[name].cast(pl.Int64).to_numpy().copy()) for name in ("row", "index"))
        key = lambda row, item: row * len(self.vectors) + item
        relevant = torch.isin(key(torch.arange(len(lists))[:, None], there.item), key(row, item)) & there.mask
        some = relevant.any(1)
        alpha = torch.full((len(lists),), torch.nan, dtype=torch.float64)
        if some.any():
            alpha[some] = alpha_ndcg(lists[some], category[some], relevant[some])
        return found | {"categories": category_coverage(lists, category).double(),
                        "entropy": category_entropy(lists, category), "alpha_ndcg": alpha}  # fmt: skip
