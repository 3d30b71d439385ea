"""Words and image patches in one row: text first, then a class vector and the patches (ViLT).

    row = [W[id_1] .. W[id_T], class, x_1 .. x_P] + kind of each place: 0 text, 1 image

Source: Kim et al., 2021, arXiv:2102.03334, equations 1 to 3. Its text and image have position tables of their own; here
one table of positions is listed beside this part, where an image begins at row `text` however short its text is (ours).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.components._patches import Patches
from models.components._rows import Rows

__all__ = ["WordPatch"]


class WordPatch(nn.Module):
    """ids (B, T) and pixels (B, C, H, W) -> (B, T + 1 + P, D).

    Args:
        width: D.
        vocabulary: V.
        text: the longest text, in tokens.
        size: edge of a patch, in pixels.
        image: edge of the image, in pixels.
        channels: of the image.
        bias: of the patches' projection.

    Raises:
        ValueError: see `Patches`.
    """

    def __init__(
        self,
        width: int,
        vocabulary: int,
        text: int = 40,
        size: int = 32,
        image: int = 384,
        channels: int = 3,
        bias: bool = True,
    ):
        super().__init__()
        self.text = text
        self.weight = nn.Parameter(torch.empty(vocabulary, width).normal_(std=0.02))
        self.kind = nn.Parameter(torch.empty(2, width).normal_(std=0.02))
        self.patch = Patches(width, size, image, channels, bias)

    def rows(self, batch: Mapping[str, Tensor], stem: str = "") -> Rows:
        """The text's rows, then 1 + P real places from position `text` on.

        Raises:
            ValueError: a text that is too long, or packed.
        """
        words = Rows.read(batch, stem)
        count, length = words.mask.shape
        if length > self.text:
            raise ValueError(
                f"texts are {length} tokens long, but this model reads {self.text}; cut them, or set `text`"
            )
        if words.documents is not None:
            raise ValueError("word_patch reads one text and one image a row; do not pack its rows")
        image = self.patch.places(count, words.mask.device, start=self.text)
        mask, positions = torch.cat([words.mask, image.mask], 1), torch.cat([words.positions, image.positions], 1)
        return Rows.of(mask.shape, mask.device, mask=mask, positions=positions)

    def forward(self, batch: Mapping[str, Tensor], rows: Rows, hidden: Tensor | None = None) -> Tensor:
        words = nn.functional.embedding(batch["ids"], self.weight)
        return torch.cat([words + self.kind[0], self.patch(batch["pixels"]) + self.kind[1]], 1)
