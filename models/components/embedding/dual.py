"""Two streams, each with an embedding of its own: text beside image (CLIP), a sentence beside another (SBERT).

Source: Radford et al., 2021, arXiv:2103.00020; one embedding for both streams: Reimers and Gurevych, 2019,
arXiv:1908.10084.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor

from models import names
from models.components._model import Embedding, Settings, refuse_unknown
from models.components._rows import Rows
from models.components._streams import Streams

__all__ = ["Dual"]

STEMS = ("first_", "second_")


class Dual(Streams):
    """The batch's fields first_... and second_... -> a pair of (B, T, D).

    Args:
        width: D of both streams, where `widths` does not say otherwise.
        first: an embedding as in a recipe: parts by name, and settings of the whole such as norm.
        second: likewise; None with `tied`.
        tied: both streams share the first one's parameters.
        widths: D of each stream.
        facts: what the recipe says to all parts.

    Raises:
        LookupError: an unknown part or setting.
        ValueError: a second embedding that tied streams would not use, or none where it is needed; a stream without
            parts, or one that is dual itself.
    """

    def rows(self, batch: Mapping[str, Tensor], stem: str = "") -> tuple[Rows, Rows]:
        """What the places of each stream are."""
        return tuple(self._rows(part, batch, stem + each) for part, each in self._streams())

    def forward(
        self, batch: Mapping[str, Tensor], rows: tuple[Rows, Rows], hidden: None = None
    ) -> tuple[Tensor, Tensor]:
        return tuple(part(_fields(batch, stem))[0] for part, stem in self._streams())

    def _streams(self) -> zip:
        return zip((self.first, self.second), STEMS, strict=True)

    @staticmethod
    def _rows(part: Embedding, batch: Mapping[str, Tensor], stem: str) -> Rows:
        return getattr(part, part.content).rows(batch, stem) if part.content else Rows.read(batch, stem)

    @staticmethod
    def stream(name: str, section: Mapping[str, Any], settings: Settings) -> Embedding:
        files = names("components.embedding")
        own = [key for key in signature(Embedding).parameters if key not in ("parts", "settings", "stem")]
        for key in section:
            refuse_unknown(f"stream {name}", key, files + own)
        parts = {key: value for key, value in section.items() if key in files}
        if not parts or "dual" in parts:
            raise ValueError(f"stream {name} has the parts {', '.join(parts) or 'none'}; give it some, but not dual")
        rest = {key: value for key, value in section.items() if key not in files}
        return Embedding(parts, settings, **settings.complete(Embedding, {"width": None, **rest}))


def _fields(batch: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    return {name[len(stem) :]: value for name, value in batch.items() if name.startswith(stem)}
