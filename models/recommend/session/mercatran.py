"""MercaTran: listings are known by their texts, and a session's history asks for its next few listings at once.

    v_i = norm(W mean of word vectors of listing i's title, brand and category)        or W of a ready vector of it
    q_1 ... q_K = decoder(K step vectors, encoder(v of the history))
    L = -mean log softmax over all step x row targets of the batch ( scale <q_s, v_target> )

A listing without a training event is found by its text. Categories and brands are ranked by their best listing.
Source: the model of MerRec's benchmark (arXiv:2402.14230; sizes and loss from its public description): width 64, inner
1,024, eight heads, two layers, dropout .1. Ours: vectors of unit length with a learned scale, and targets that show the
label's own listing in another row do not count as wrong.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components._dropout import dropout
from models.components._layers import Stack
from models.components._rows import Rows
from models.recommend.session._session import left

__all__ = ["MercaTran", "group_scores"]


class _Decoder(Stack):
    cross, kind = True, "causal"


class MercaTran(nn.Module):
    """Three towers on one table of listings: of a listing, of the history, of the steps ahead.

    Args:
        items: I listings, numbered 1..I; 0 is padding.
        content: of all listings, row 0 that of padding: (I + 1, L) int64 words, padding 0 behind, or (I + 1, E) float
            vectors. It is data, not state: a checkpoint does not hold it.
        width: D.
        length: positions: the longest history.
        steps: K, listings ahead.
        layers: of attention in the encoder and in the decoder.
        heads: a divisor of D.
        inner: width of the feed-forward layers.
        dropout: of inputs, attention and what each layer adds.
        words: rows of the word table; None for the largest word in `content` + 1.

    Raises:
        ValueError: content of another shape; a word outside the table.
    """

    causal = True

    def __init__(
        self,
        items: int,
        content: Tensor,
        width: int = 64,
        length: int = 22,
        steps: int = 4,
        layers: int = 2,
        heads: int = 8,
        inner: int = 1024,
        dropout: float = 0.1,
        words: int | None = None,
    ):
        super().__init__()
        if content.dim() != 2 or len(content) != items + 1 or steps < 1:
            raise ValueError(f"content must be ({items + 1}, words or width), a row for each of {items} items and for "
                             f"padding, and steps 1 or more; got {tuple(content.shape)} and {steps}")  # fmt: skip
        self.items, self.keep, self.steps, self.rate = items, length, steps, dropout
        self.register_buffer("content", content, persistent=False)
        if content.is_floating_point():
            self.words, self.project = None, nn.Linear(content.shape[1], width)
        else:
            largest = int(content.max()) if content.numel() else 0
            words = largest + 1 if words is None else words
            if int(content.min()) < 0 or largest >= words:
                raise ValueError(f"content has words {int(content.min())}..{largest}; the table has 0..{words - 1}")
            self.words = nn.EmbeddingBag(max(words, 2), width, mode="mean", padding_idx=0)
            self.project = nn.Linear(width, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.ahead = nn.Parameter(torch.randn(steps, width) * 0.02)
        how = {"heads": heads, "inner": inner, "dropout": dropout, "act": "relu", "norm_first": True}
        self.encoder = Stack(width, layers, mask="causal", **how)
        self.decoder = _Decoder(width, layers, **how)
        self.scale = nn.Parameter(torch.tensor(2.3))  # of e^2.3 = 10, at the start

    def forward(self, items: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean in-batch loss of all steps, in nats, and that of each.

        Args:
            items: (B, T) history, padding 0 in front.
            targets: (B, K) the listings that followed, in order; 0 where there are no more.

        Raises:
            ValueError: ids outside 0..I, another number of steps, no target at all.
        """
        if targets.shape != (len(items), self.steps) or not bool((targets > 0).any()):
            raise ValueError(f"targets must be ({len(items)}, {self.steps}) with a listing in them; got "
                             f"{tuple(targets.shape)}, {int((targets > 0).sum())} listings")  # fmt: skip
        left(targets.flip(1), self.items)  # ids inside their range, and no gap before a later step
        there_BK = targets > 0
        label_N = targets[there_BK].long()
        query_ND = self.queries(items)[there_BK]
        distinct_M, place_N = label_N.unique(return_inverse=True)
        vector_MD = self.vectors(distinct_M).float()
        with torch.autocast(items.device.type, enabled=False):
            logit_NM = self.scale.exp() * (query_ND.float() @ vector_MD.T)
        # A listing that is the target of c rows has c copies among the targets; all but a row's own are left out.
        copies_M = place_N.bincount(minlength=len(distinct_M)).float().log()
        weighed_NM = logit_NM + copies_M
        own_N1 = logit_NM.gather(1, place_N[:, None])
        every_N = weighed_NM.scatter(1, place_N[:, None], own_N1).logsumexp(-1)
        loss_N = every_N - own_N1[:, 0]
        step_N = there_BK.nonzero()[:, 1]
        count_K = step_N.bincount(minlength=self.steps).clamp(min=1)
        each_K = loss_N.new_zeros(self.steps).index_add(0, step_N, loss_N) / count_K
        loss = loss_N.mean()
        return loss, {"loss": loss, **{f"step_{k + 1}": value for k, value in enumerate(each_K)}}

    def queries(self, items: Tensor) -> Tensor:
        """What a history asks for at each step: (B, K, D), of unit length."""
        items, length = left(items, self.items, self.keep)
        hidden_BTD = self.vectors(items) * self.position.shape[-1] ** 0.5 + self.position[: items.shape[1]]
        hidden_BTD = dropout(hidden_BTD, self.rate, self.training)
        place = torch.arange(items.shape[1], device=items.device)
        rows = Rows.of(items.shape, items.device, mask=place < length.clamp(min=1)[:, None])
        memory = self.encoder.run(hidden_BTD, rows)
        ahead = Rows.of((len(items), self.steps), items.device)
        return F.normalize(self.decoder.run(self.ahead.expand(len(items), -1, -1), ahead, memory, rows), dim=-1)

    def vectors(self, items: Tensor) -> Tensor:
        """Listings as vectors of unit length, (...,) ids -> (..., D); padding's is not special."""
        distinct_M, place = items.unique(return_inverse=True)
        return self.describe(self.content[distinct_M])[place]

    def describe(self, content: Tensor) -> Tensor:
        """Contents of any listings, also new ones, (N, words or width) -> (N, D) of unit length."""
        told = content if self.words is None else self.words(content)
        return F.normalize(self.project(told), dim=-1)

    @torch.no_grad()
    def catalogue(self, chunk: int = 8192) -> Tensor:
        """Vectors of all listings, row 0 that of padding: (I + 1, D)."""
        return torch.cat([self.describe(part) for part in self.content.split(chunk)])

    @torch.no_grad()
    def score_steps(self, items: Tensor, catalogue: Tensor | None = None) -> Tensor:
        """Scores of all listings at every step, (B, K, I + 1) float32; padding's is -inf."""
        catalogue = self.catalogue() if catalogue is None else catalogue
        score_BKI = self.queries(items).float() @ catalogue.float().T
        score_BKI[..., 0] = -torch.inf
        return score_BKI

    def score(self, items: Tensor) -> Tensor:
        """Scores of all listings as the next one: (B, I + 1)."""
        return self.score_steps(items)[:, 0]


def group_scores(score: Tensor, group_I: Tensor, groups: int) -> Tensor:
    """The best score of each group (category, brand): (..., I) -> (..., groups); -inf for one without items.

    >>> group_scores(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0, 1, 0]), 2)
    tensor([0.5000, 0.9000])
    """
    start = score.new_full((*score.shape[:-1], groups), -torch.inf)
    return start.scatter_reduce(-1, group_I.expand(score.shape), score, "amax")
