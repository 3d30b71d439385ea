"""BERT4Rec: attention both ways guesses masked items; a mask after the last item guesses the next.

    training   a share of the items is hidden behind [mask]; in some rows only the last one, as it is in use
    scores     <gelu(W norm(x) + c), E_i> + b_i at the mask

Source: Sun et al., 2019, arXiv:1904.06690. Its sizes; masked share .2 as for MovieLens; one row in ten masks its last
item only (ours; the paper adds such rows to the data).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._layers import Stack
from models.components._rows import Rows
from models.recommend.session._blocks import Places
from models.recommend.session._session import Session, gather_last, generator, left

__all__ = ["BERT4Rec"]


class BERT4Rec(Session):
    """Transformer layers that see the whole row.

    Args:
        items: I.
        width: D.
        length: positions: the longest row, with the mask of the next item.
        layers: of attention.
        heads: a divisor of D.
        inner: width of the feed-forward layers; None for 4 D.
        dropout: of inputs, attention and what each layer adds.
        masked: share of the items of a training row that are hidden, at least one.
        final: share of the training rows that hide their last item only.
        loss: "full", "sampled", "bce" or "bpr_max".
        negatives: drawn items a step, for sampled and bpr_max.
        seed: of masks and drawn items.
    """

    causal = False
    extra = 1  # the mask

    def __init__(
        self,
        items: int,
        width: int = 64,
        length: int = 50,
        layers: int = 2,
        heads: int = 2,
        inner: int | None = None,
        dropout: float = 0.1,
        masked: float = 0.2,
        final: float = 0.1,
        loss: str = "full",
        negatives: int = 0,
        seed: int = 0,
    ):
        super().__init__(items, width, loss, negatives, seed)
        if not (0 < masked <= 1 and 0 <= final <= 1) or length < 2:
            raise ValueError(f"masked is a share above 0, final a share, length 2 or more (an item and the mask); got "
                             f"{masked}, {final} and {length}")  # fmt: skip
        self.masked, self.final, self.keep = masked, final, length - 1
        self.places = Places(width, length, dropout)
        self.encoder = Stack(width, layers, heads, inner or 4 * width, norm_first=False, act="gelu", dropout=dropout)
        self.out = nn.Linear(width, width)

    def forward(self, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the masked items, in nats, and its terms; `items` (B, T), padding 0 in front."""
        items, length = left(items, self.items)
        if not bool((length > 1).any()):
            raise ValueError(f"none of {len(items)} rows has two items: there is nothing to guess one from")
        hidden_at = self.draw(items, length)
        shown = items.masked_fill(hidden_at, self.items + 1)
        loss = self.next_loss(self.hidden(shown, length)[hidden_at], items[hidden_at])
        if self.training:
            self.step += 1
        return loss, {"loss": loss}

    def draw(self, items: Tensor, length: Tensor) -> Tensor:
        """Which items of this step are masked, (B, T) bool: at least one in each row of two or more, never all."""
        draw = generator(self.seed, self.step, items.device)
        chance = torch.rand(items.shape, generator=draw, device=items.device).masked_fill(items == 0, 2.0)
        count = (length * self.masked).round().clamp(min=1).minimum((length - 1).clamp(min=0))
        chosen = chance.argsort(1).argsort(1) < count[:, None]
        final = torch.rand(len(items), generator=draw, device=items.device) < self.final
        place = torch.arange(items.shape[1], device=items.device)
        last = (place == (length - 1)[:, None]) & (length > 1)[:, None]
        return torch.where(final[:, None], last, chosen)

    def hidden(self, items: Tensor, length: Tensor) -> Tensor:
        mask = torch.arange(items.shape[1], device=items.device) < length[:, None]
        rows = Rows.of(items.shape, items.device, mask=mask)
        return F.gelu(self.out(self.encoder.run(self.places(self.item(items)), rows)))

    def last(self, items: Tensor, length: Tensor) -> Tensor:
        """The vector at a mask after each row's last item: (B, D)."""
        items = F.pad(items, (0, 1)).scatter(1, length[:, None], self.items + 1)
        return gather_last(self.hidden(items, length + 1), length + 1)
