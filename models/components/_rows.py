"""What the places of a batch are, besides their content."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """B rows of T places. The mask is the only truth about padding."""

    mask: Tensor  # (B, T) bool, True at real places
    positions: Tensor  # (B, T) int64; one row, expanded, where all rows count alike
    documents: Tensor | None = None  # (B, T) int64, number of the document in its row; None: one document a row
    prefix: Tensor | None = None  # (B, T) bool, True at the source of a prefix language model

    @classmethod
    def read(cls, batch: Mapping[str, Tensor], stem: str = "") -> "Rows":
        """The rows of `ids` in a batch.

        Args:
            batch: fields; of `mask`, `positions`, `documents` and `prefix` each may be absent. Without a mask all
                places are real; without positions they count from 0.
            stem: in front of the fields' names, such as "target_".

        Raises:
            ValueError: neither ids nor a mask; a field of another shape.
        """
        field = {name: batch.get(stem + name) for name in ("mask", "positions", "documents", "prefix")}
        ids = batch.get(stem + "ids", field["mask"])
        if ids is None:
            listed = ", ".join(sorted(batch)) or "no field"
            raise ValueError(f"the batch has neither {stem}ids nor {stem}mask, only: {listed}")
        for name, value in field.items():
            if value is not None and value.shape != ids.shape[:2]:
                raise ValueError(f"{stem}{name} is {tuple(value.shape)}, but {stem}ids is {tuple(ids.shape[:2])}")
        return cls.of(ids.shape[:2], ids.device, **field)

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        device: torch.device | str = "cpu",
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> "Rows":
        """Rows of a shape (B, T); what is None takes its default."""
        full = mask is None
        if full:
            mask = torch.ones(1, 1, dtype=torch.bool, device=device).expand(shape)
        if positions is None:
            positions = torch.arange(shape[1], device=device)[None].expand(shape)
        rows = cls(mask.bool(), positions, documents, None if prefix is None else prefix.bool())
        if full:
            rows.__dict__["full"] = True  # known without looking, which on a GPU would wait for it
        return rows

    @cached_property
    def full(self) -> bool:
        """Whether every place is real."""
        return bool(self.mask.all())

    @cached_property
    def tail(self) -> bool:
        """Whether padding, if any, only ends rows."""
        return self.full or not bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any())

    @property
    def places(self) -> Tensor:
        """Positions (1, T) where all rows count alike, otherwise (B, T)."""
        return self.positions[:1] if self.positions.stride(0) == 0 else self.positions

    def counted(self, start: int) -> Tensor:
        """Numbers of the real places from `start` on, `start - 1` at padding: (B, T), or (1, T) as `places` has it.

        Packed rows keep their positions, which restart with each document.
        """
        if self.documents is None and self.full:
            return self.places + start
        number = self.mask.cumsum(-1) - 1 if self.documents is None else self.positions
        return (number + start).where(self.mask, start - 1)
