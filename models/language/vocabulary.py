"""Vocabulary extension: a new token's row is the mean of the rows of the pieces that it was cut into so far.

    E_new[c] = 1/m sum_j E[i_j]     W_new[c] = 1/m sum_j W[i_j]     where the old tokenizer cuts c into i_1 .. i_m

once in the table of embeddings and once in the head, unless both are one. So the model begins with what it knew of the
pieces; rows of N(0, 0.02) are the alternative to beat. Source: ChatFlow, 2024, arXiv:2405.10626, after the Linly team's
description of Chinese-LLaMA-2; random rows: TencentPretrain, scripts/dynamic_vocab_adapter.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Extension", "mean_rows"]

WAYS = ("mean", "random")


class Extension:
    """New rows for a causal language model of transformers' form.

    Args:
        rows: "mean" or "random".
        std: of random rows.
        seed: of random rows.
    """

    def __init__(self, rows: str = "mean", std: float = 0.02, seed: int = 7):
        if rows not in WAYS:
            raise ValueError(f"rows is one of {', '.join(WAYS)}, got {rows!r}")
        if not std > 0:
            raise ValueError(f"std must be above 0, got {std}")
        self.rows, self.std, self.seed = rows, std, seed

    @torch.no_grad()
    def __call__(self, model: nn.Module, pieces: Sequence[Sequence[int]], first: int) -> dict[str, float]:
        """Give the model rows first .. first + N - 1, in place; all other rows stay as they are, to the bit.

        Args:
            model: has get_input_embeddings, get_output_embeddings and resize_token_embeddings.
            pieces: for each of the N new tokens, ids below `first`.
            first: id of the first new token: the old tokenizer's size. Tables may be longer already (padding).

        Returns:
            rows, tied (1.0 or 0.0), and mean norms of new rows over mean norms of old ones: input_norm, output_norm.

        Raises:
            ValueError: a token without pieces, an id that is not below `first`, or tables shorter than `first`.
        """
        if empty := [number for number, ids in enumerate(pieces) if not len(ids)]:
            raise ValueError(f"{len(empty)} of {len(pieces)} new tokens have no pieces, the first is number {empty[0]}")
        highest = max((max(ids) for ids in pieces), default=-1)
        before = len(model.get_input_embeddings().weight)
        if highest >= first or before < first:
            raise ValueError(f"the pieces' ids reach {highest} and the table has {before} rows; both must fit the old "
                             f"vocabulary of {first}")  # fmt: skip
        if before < first + len(pieces):
            model.resize_token_embeddings(first + len(pieces), mean_resizing=False)
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        tied = head is not None and head.weight is table
        generator = torch.Generator().manual_seed(self.seed)
        report = {"rows": float(len(table)), "tied": float(tied)}
        report["input_norm"] = self._fill(table, pieces, first, generator)
        report["output_norm"] = report["input_norm"]
        if head is not None and not tied:
            report["output_norm"] = self._fill(head.weight, pieces, first, generator)
        if head is not None and getattr(head, "bias", None) is not None:
            head.bias[first : first + len(pieces)] = mean_rows(head.bias[:first, None], pieces)[:, 0]
        return report

    def _fill(self, table_VD: Tensor, pieces: Sequence[Sequence[int]], first: int, generator) -> float:
        if self.rows == "mean":
            new_ND = mean_rows(table_VD[:first], pieces)
        else:
            new_ND = torch.randn(len(pieces), table_VD.shape[1], generator=generator) * self.std
        table_VD[first : first + len(pieces)] = new_ND.to(table_VD)
        norm = lambda rows: rows.float().norm(dim=1).mean()
        return float(norm(new_ND) / norm(table_VD[:first])) if len(pieces) else 1.0


def mean_rows(table_VD: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """(N, D): for each list of ids the mean of their rows, summed in float32.

    >>> mean_rows(torch.tensor([[1.0], [2.0], [6.0]]), [[0, 2], [1], [1, 1, 2]]).flatten().tolist()
    [3.5, 2.0, 3.3333332538604736]
    """
    sizes = torch.tensor([len(ids) for ids in pieces], dtype=torch.long)
    flat = torch.tensor([row for ids in pieces for row in ids], dtype=torch.long)
    owner = torch.arange(len(pieces)).repeat_interleave(sizes)
    total_ND = torch.zeros(len(pieces), table_VD.shape[1])
    total_ND.index_add_(0, owner, table_VD.cpu().float()[flat])
    return (total_ND / sizes[:, None]).to(table_VD)
