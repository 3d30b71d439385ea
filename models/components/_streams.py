"""What the two streams of a dual embedding and those of a dual encoder have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from models.components._model import Settings

__all__ = ["Streams", "stream_widths"]


class Streams(nn.Module):
    """Parts `first` and `second`, which are one where they are tied; `stream` builds each from its section."""

    def __init__(
        self,
        width: int,
        first: Mapping[str, Any],
        second: Mapping[str, Any] | None = None,
        tied: bool = False,
        widths: Sequence[int] | None = None,
        facts: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        widths = stream_widths(width, widths, second, tied)
        self.first = self.stream("first", first, Settings({**(facts or {}), "width": widths[0]}))
        self.second = (
            self.first if tied else self.stream("second", second, Settings({**(facts or {}), "width": widths[1]}))
        )


def stream_widths(width: int, widths: Sequence[int] | None, second: Any, tied: bool) -> tuple[int, int]:
    """D of each stream.

    Args:
        width: of both, where `widths` is None.
        widths: of each.
        second: the second stream's section of the recipe, or None.
        tied: one stream serves both.

    Raises:
        ValueError: a second stream that tied ones would not use, or none where it is needed; widths that do not fit.
    """
    if tied and second is not None:
        raise ValueError("tied streams share the first one's parameters: leave `second` out, or set tied: false")
    if not tied and second is None:
        raise ValueError("two streams need `first` and `second`; for one that serves both, set tied: true")
    widths = tuple(widths or (width, width))
    if len(widths) != 2 or (tied and widths[0] != widths[1]):
        raise ValueError(f"widths is {list(widths)}; it needs one for each of two streams, equal where they are tied")
    return widths
