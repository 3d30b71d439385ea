"""What every next-item model is: rows of items in, a vector at each place out, scores of all items from the last one.

Sizes: B rows, T places, D width, I items numbered 1..I; 0 is padding, in front of a row only. Inside, rows are moved to
the left and cut to the longest: places after a row's end are seen by no causal model, and positions count from the
first real item, so padding changes nothing, whatever its length.

    full      cross-entropy over all I items, a chunk of logits at a time
    sampled   cross-entropy of the label among uniformly drawn items; labels drawn by chance do not count
    bce       log sigmoid of the label and of minus a drawn item     Kang and McAuley, 2018, arXiv:1808.09781
    bpr_max   label against drawn items, weighted by their softmax   Hidasi and Karatzoglou, 2018, arXiv:1706.03847

Drawn items follow from `seed` and the buffer `step`, so a resumed run draws what an unbroken one would.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._loss import head_loss

__all__ = ["Session", "gather_last", "generator", "left"]

LOSSES = ("full", "sampled", "bce", "bpr_max")


class Session(nn.Module):
    """Loss and scores of a method that says `hidden(items (B, T), length (B,)) -> (B, T, D)` of rows without gaps.

    Args:
        items: I.
        width: D of the item vectors that inputs and scores share.
        loss: one of those above.
        negatives: drawn items a step, shared by its rows; "bce" draws one for each label.
        seed: of the drawn items.

    Attributes:
        causal: whether a place sees no later one.
        keep: of a longer row only the last so many items are scored from; None: all are.

    Raises:
        ValueError: no such loss, one that needs drawn items without any, or vectors without a width.
    """

    causal = True
    keep: int | None = None
    extra = 0  # rows of the table after the items'

    def __init__(self, items: int, width: int, loss: str = "full", negatives: int = 0, seed: int = 0):
        super().__init__()
        if width < 1:
            raise ValueError(f"width, of the item vectors, is 1 or more; got {width}")
        if items < 1 or loss not in LOSSES or (loss in ("sampled", "bpr_max")) != (negatives > 0):
            raise ValueError(f"items must be 1 or more, loss one of {', '.join(LOSSES)}, and negatives given for "
                             f"sampled and bpr_max only; got {items} items, {loss!r} and {negatives}")  # fmt: skip
        self.items, self.loss, self.negatives, self.seed = items, loss, negatives, seed
        self.item = nn.Embedding(items + 1 + self.extra, width, padding_idx=0)
        nn.init.normal_(self.item.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(items))
        with torch.no_grad():
            self.item.weight[0] = 0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def hidden(self, items: Tensor, length: Tensor) -> Tensor:
        """Vectors of the places of rows that start at place 0, (B, T) -> (B, T, D); past `length` they are free."""
        raise NotImplementedError

    def forward(self, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the next item at every place that has one, in nats, and its terms.

        Args:
            items: (B, T) integer, padding 0 in front.

        Raises:
            ValueError: an id outside 0..I, padding inside a row, or no place that has a next item.
        """
        items, length = left(items, self.items)
        label = items[:, 1:]
        if not label.numel() or not bool(label.any()):
            raise ValueError(f"none of {len(items)} rows has two items: there is no next item to learn")
        loss = self.next_loss(self.hidden(items[:, :-1], (length - 1).clamp(min=0))[label > 0], label[label > 0])
        if self.training:
            self.step += 1
        return loss, {"loss": loss}

    @torch.no_grad()
    def score(self, items: Tensor) -> Tensor:
        """Scores of all items as the next one, (B, I + 1) float32; padding's is -inf. A row without items: biases."""
        items, length = left(items, self.items, self.keep)
        return self.scores(self.last(items, length), length)

    def scores(self, hidden_BD: Tensor, length: Tensor) -> Tensor:
        """Scores of all items from the vectors of rows of these lengths: (B, I + 1) float32."""
        hidden_BD = hidden_BD.float() * (length > 0)[:, None]
        logit = F.linear(hidden_BD, self.item.weight[1 : self.items + 1].float(), self.bias.float()).float()
        return torch.cat([logit.new_full((len(logit), 1), -torch.inf), logit], 1)

    def last(self, items: Tensor, length: Tensor) -> Tensor:
        """The vector that scores the next item, from rows that start at place 0: (B, D)."""
        return gather_last(self.hidden(items, length), length)

    def next_loss(self, hidden_ND: Tensor, label_N: Tensor) -> Tensor:
        """Mean loss of N labels 1..I, given the vector before each: scalar, float32."""
        hidden_ND = hidden_ND.float()
        table_ID = self.item.weight[1 : self.items + 1]
        if self.loss == "full":
            return head_loss(hidden_ND, table_ID, label_N - 1, self.bias).total / len(label_N)
        draw = generator(self.seed, self.step, hidden_ND.device)
        count = len(label_N) if self.loss == "bce" else self.negatives
        drawn_K = torch.randint(1, self.items + 1, (count,), generator=draw, device=hidden_ND.device)
        logit = lambda ids: (hidden_ND * self.item(ids)).sum(-1) + self.bias[ids - 1]
        right_N = logit(label_N)
        if self.loss == "bce":
            return (F.softplus(-right_N) + F.softplus(logit(drawn_K)).masked_fill(drawn_K == label_N, 0)).mean()
        wrong_NK = F.linear(hidden_ND, self.item(drawn_K), self.bias[drawn_K - 1])
        same_NK = label_N[:, None] == drawn_K
        if self.loss == "sampled":
            every = torch.cat([right_N[:, None], wrong_NK.masked_fill(same_NK, -torch.inf)], 1)
            return -every.log_softmax(-1)[:, 0].mean()
        return bpr_max(right_N, wrong_NK, same_NK)


def bpr_max(right_N: Tensor, wrong_NK: Tensor, same_NK: Tensor, weight: float = 1.0) -> Tensor:
    """-log sum_k s_k sigmoid(right - wrong_k) + weight sum_k s_k wrong_k^2, s = softmax of the drawn items' logits."""
    share_NK = wrong_NK.masked_fill(same_NK, torch.finfo(wrong_NK.dtype).min).softmax(-1)
    won = share_NK.clamp(min=1e-24).log() + F.logsigmoid(right_N[:, None] - wrong_NK)
    pull = (share_NK * wrong_NK.square()).sum(-1)
    return (weight * pull - won.masked_fill(same_NK, -torch.inf).logsumexp(-1).clamp(min=-55)).mean()


def left(items: Tensor, largest: int, keep: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows with padding in front -> rows that start at place 0, cut to the longest, and their lengths (B,).

    Args:
        items: (B, T) integer.
        largest: id.
        keep: of a longer row only the last so many places are kept; None: all are.

    Returns:
        (B, T') int64, T' at least 1; (B,) int64.

    Raises:
        ValueError: not (B, T) integers, an id outside 0..largest, padding after a real item; says how many and where.
    """
    if items.dim() != 2 or items.is_floating_point():
        raise ValueError(f"items must be (rows, places) integers; got {tuple(items.shape)} {items.dtype}")
    if keep is not None:
        items = items[:, -keep:]
    outside = (items < 0) | (items > largest)
    if bool(outside.any()):
        row, place = outside.nonzero()[0].tolist()
        raise ValueError(f"{int(outside.sum())} ids are outside 0..{largest}, the first in row {row}, place {place}: "
                         f"{int(items[row, place])}; encode rows with the vocabulary of the training")  # fmt: skip
    real = items > 0
    length = real.sum(1)
    gap = (real[:, :-1] & ~real[:, 1:]).any(1)
    if bool(gap.any()):
        raise ValueError(f"{int(gap.sum())} rows, the first is {int(gap.nonzero()[0])}, have padding (0) after an "
                         f"item; pad in front, and give unknown items an id of their own")  # fmt: skip
    longest = max(int(length.max()), 1) if len(items) else 1
    place_T = torch.arange(longest, device=items.device)
    if not items.shape[1]:
        return items.new_zeros(len(items), 1).long(), length
    start = (items.shape[1] - length)[:, None]
    index = (start + place_T).clamp(max=items.shape[1] - 1)
    return items.gather(1, index).long() * (place_T < length[:, None]), length


def gather_last(hidden_BTD: Tensor, length: Tensor) -> Tensor:
    """The vector at each row's last real place, the first where there is none: (B, D)."""
    return hidden_BTD[torch.arange(len(length), device=length.device), (length - 1).clamp(min=0)]


def generator(seed: int, step: Tensor, device: torch.device | str) -> torch.Generator:
    """A generator that a seed and a step decide."""
    return torch.Generator(device).manual_seed((seed * 0x9E3779B97F4A7C15 + int(step)) % 2**63)
