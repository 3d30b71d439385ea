"""Purchase intent: what a visitor looked at and did so far -> the chance that the session ends in a purchase.

    h_t = GRU([E[x_t] ; A[event_t] ; w log(1 + gap_t)], h_(t-1)),  logit = perceptron([h_last ; mean h])

MerRec's abstract speaks of six tasks (arXiv:2402.14230) and its public code holds five; this sixth is ours, as are all
sizes. It reads a session up to some moment before its first purchase, never the purchase itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend._layers import bce_per_task
from models.recommend.session._session import gather_last, left

__all__ = ["Intent"]


class Intent(nn.Module):
    """A recurrent reader of items, events and pauses.

    Args:
        items: I, numbered 1..I; 0 is padding.
        events: kinds of event, numbered 1..events; 0 is padding.
        width: of the item vectors.
        event: of the event vectors.
        units: of the recurrent network.
        dropout: of what the network reads and of what it says.
    """

    def __init__(
        self, items: int, events: int = 6, width: int = 32, event: int = 8, units: int = 64, dropout: float = 0.1
    ):
        super().__init__()
        if min(items, events, width, event, units) < 1:
            raise ValueError(f"items, events and widths must be 1 or more; got {items}, {events}, {width}, {event} and "
                             f"{units}")  # fmt: skip
        self.items, self.events = items, events
        self.item = nn.Embedding(items + 1, width, padding_idx=0)
        self.event = nn.Embedding(events + 1, event, padding_idx=0)
        self.gap = nn.Linear(1, event)
        self.network = nn.GRU(width + 2 * event, units, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.hidden, self.out = nn.Linear(2 * units, units), nn.Linear(units, 1)

    def forward(self, items: Tensor, events: Tensor, gaps: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean binary cross entropy of the rows whose label is present, in nats, and its terms.

        Args:
            items: (B, T) ids, padding 0 in front.
            events: (B, T) kinds, padding 0 in front.
            gaps: (B, T) float, seconds since the event before; 0 at the first.
            label: (B,) 1 where a purchase follows, else 0; NaN or negative where absent.
        """
        loss = bce_per_task(self.logits(items, events, gaps)[:, None], label[:, None])[0]
        return loss, {"loss": loss}

    def score(self, items: Tensor, events: Tensor, gaps: Tensor) -> Tensor:
        """Probabilities of a purchase (B,), float32."""
        return self.logits(items, events, gaps).float().sigmoid()

    def logits(self, items: Tensor, events: Tensor, gaps: Tensor) -> Tensor:
        """(B,).

        Raises:
            ValueError: ids outside their range, shapes that differ, items and events padded differently, no event.
        """
        if not items.shape == events.shape == gaps.shape or bool(((items > 0) != (events > 0)).any()):
            raise ValueError(f"items, events and gaps need one shape and one padding; got {tuple(items.shape)}, "
                             f"{tuple(events.shape)} and {tuple(gaps.shape)}")  # fmt: skip
        places = items.shape[1]
        items, length = left(items, self.items)
        if bool((length == 0).any()):
            raise ValueError(f"{int((length == 0).sum())} of {len(length)} rows have no event; drop them")
        events, _ = left(events, self.events)
        place_T = torch.arange(items.shape[1], device=items.device)
        real_BT = place_T < length[:, None]
        moved = (places - length)[:, None] + place_T
        gaps = gaps.gather(1, moved.clamp(max=places - 1)) * real_BT
        read = [self.item(items), self.event(events), self.gap(gaps.clamp(min=0).log1p()[..., None])]
        h_BTU = self.network(self.dropout(torch.cat(read, -1)))[0]
        mean_BU = (h_BTU * real_BT[..., None]).sum(1) / length[:, None]
        told = torch.cat([gather_last(h_BTU, length), mean_BU], -1)
        return self.out(F.relu(self.hidden(self.dropout(told)))).squeeze(-1)
