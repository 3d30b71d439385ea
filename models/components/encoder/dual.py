"""Two streams, each with an encoder of its own, which never see each other (CLIP, SBERT, siamese LSTM).

Source: Radford et al., 2021, arXiv:2103.00020; one encoder for both streams: Reimers and Gurevych, 2019,
arXiv:1908.10084.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models.components._model import Settings
from models.components._rows import Rows
from models.components._streams import Streams

__all__ = ["Dual"]


class Dual(Streams):
    """A pair of (B, T, D) -> a pair of (B, T, D).

    Args:
        width: D of both streams, where `widths` does not say otherwise.
        first: an encoder as in a recipe: one name with its settings.
        second: likewise; None with `tied`.
        tied: both streams share the first one's parameters.
        widths: D of each stream.
        facts: what the recipe says to all parts.

    Raises:
        LookupError: an unknown encoder or setting.
        ValueError: a second encoder that tied streams would not use, or none where it is needed; a stream with no or
            several encoders, or one that is dual itself.
    """

    def forward(self, hidden: tuple[Tensor, Tensor], rows: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        return self.first(hidden[0], rows[0]), self.second(hidden[1], rows[1])

    @staticmethod
    def stream(name: str, section: Mapping[str, Any], settings: Settings) -> nn.Module:
        if len(section) != 1 or "dual" in section:
            raise ValueError(
                f"stream {name} has the encoders {', '.join(section) or 'none'}; give it one that is not dual"
            )
        ((encoder, own),) = section.items()
        return settings.build("encoder", encoder, own)
