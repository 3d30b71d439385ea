"""CDM: a student that says of each candidate, in one pass, whether MMR would show it.

    w_ij = <A f_i, B [f_j, s_j]> / sqrt(k)                                how alike a target and a context member are
    P_i = top-M of (w_ij + Gumbel),  Q_i = top-M of (-w_ij + Gumbel)      positive and negative context
    c+_i = sum_{j in P_i} softmax(w)_j V [f_j, s_j],   c-_i likewise on Q_i
    z_i = MLP([f_i, s_i, c+_i, c-_i, f_i * c+_i, f_i * c-_i])
    L = BCE(sigmoid(z), 1[rank < K]) + beta N KL( softmax(-rank / T_r) || softmax(z / T) )
    served: s_i + gamma sigmoid(z_i), sorted

Rank is the place at which MMR, run over all candidates, shows the item. The context members of a request are its
`pool` most relevant candidates, so that the cost grows with N and not with its square.

Source: KDD 2024, arXiv:2406.09021, for contexts, Gumbel top-k, teacher and what is served; the sizes, the equations
above and the pool are ours, as the paper gives none that could be read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.rerank._rerank import Rerank, check, unit

__all__ = ["CDM", "gumbel_top_k", "teacher_ranks"]

SHARP = 8.0  # how sharply attention tells alike from unlike before it has learned; ours


class CDM(Rerank):
    """Contextual distillation model.

    Args:
        width: D of the candidates' vectors.
        members: M, context members on each side.
        places: K of the teacher's list that counts as shown.
        gamma: weight of the student's answer at serving; 0 is the order of relevance.
        beta: weight of the distribution over ranks.
        rank_temperature: T_r; None for K / 2.
        temperature: T of the student's distribution.
        hidden: width of attention and perceptron.
        pool: most context members that a request has.
        seed: of the Gumbel noise in training.

    Raises:
        ValueError: a size below 1, or a temperature that is not positive.
    """

    step: Tensor

    def __init__(
        self,
        width: int,
        members: int = 10,
        places: int = 10,
        gamma: float = 1.0,
        beta: float = 0.1,
        rank_temperature: float | None = None,
        temperature: float = 1.0,
        hidden: int = 64,
        pool: int = 100,
        seed: int = 7,
    ):
        super().__init__()
        rank_temperature = places / 2 if rank_temperature is None else rank_temperature
        if min(width, members, places, hidden, pool) < 1:
            raise ValueError(f"width, members, places, hidden and pool are at least 1; got {width}, {members}, "
                             f"{places}, {hidden}, {pool}")  # fmt: skip
        if min(rank_temperature, temperature) <= 0:
            raise ValueError(f"temperatures are above 0, got {rank_temperature} of ranks and {temperature}")
        self.members, self.places, self.gamma, self.beta, self.pool = members, places, gamma, beta, pool
        self.rank_temperature, self.temperature, self.seed = rank_temperature, temperature, seed
        # Of a member its relevance counts too: MMR shows the best of those alike.
        self.target, self.member = nn.Linear(width, hidden), nn.Linear(width + 1, hidden)
        self.value = nn.Linear(width + 1, width)
        self.judge = nn.Sequential(
            nn.Linear(5 * width + 1, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )
        self._begin_alike()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def _begin_alike(self) -> None:
        """Start with w_ij = SHARP cos(f_i, f_j): from small random weights attention takes long to tell items apart."""
        gain = (SHARP * self.member.out_features**0.5) ** 0.5
        nn.init.orthogonal_(self.target.weight, gain)
        self.member.weight.data.copy_(F.pad(self.target.weight, (0, 1)))
        nn.init.zeros_(self.target.bias)
        nn.init.zeros_(self.member.bias)

    def logits(self, relevance: Tensor, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """z (R, N): log-odds that the teacher shows the candidate; -inf where there is none."""
        mask = check(relevance, vectors, 1, mask)
        directions = unit(vectors)
        members, there = self._pool(relevance, mask)
        context = directions.gather(1, members[:, :, None].expand(-1, -1, directions.shape[-1]))
        worth = relevance.masked_fill(~mask, 0)
        context = torch.cat([context, worth.gather(1, members)[..., None]], -1)
        likeness = self.target(directions) @ self.member(context).transpose(1, 2) * self.member.out_features**-0.5
        own = torch.arange(relevance.shape[1], device=members.device)[None, :, None] == members[:, None, :]
        allowed = there[:, None, :] & ~own  # a candidate is no context of its own
        values, noise = self.value(context), self._noise()
        alike, unlike = (self._attend(side, allowed, noise) @ values for side in (likeness, -likeness))
        seen = [directions, worth[..., None], alike, unlike, directions * alike, directions * unlike]
        return self.judge(torch.cat(seen, -1)).squeeze(-1).masked_fill(~mask, -torch.inf)

    def forward(
        self, relevance: Tensor, vectors: Tensor, rank: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss averaged over requests, and its terms.

        Args:
            rank: (R, N) int64, the teacher's place of each candidate, 0 shown first.

        Raises:
            ValueError: a request without candidates.
        """
        mask = check(relevance, vectors, 1, mask)
        if empty := int((~mask.any(1)).sum()):
            raise ValueError(f"{empty} of {len(mask)} requests have no candidate; leave them out")
        z = self.logits(relevance, vectors, mask)
        count = mask.sum(1)
        shown = (rank < self.places).float()
        per_item = F.binary_cross_entropy_with_logits(z.masked_fill(~mask, 0), shown, reduction="none")
        hard = (per_item.masked_fill(~mask, 0).sum(1) / count).mean()
        wanted = (-rank.float() / self.rank_temperature).masked_fill(~mask, -torch.inf).log_softmax(-1)
        given = (z / self.temperature).log_softmax(-1)
        apart = (wanted.exp() * (wanted - given)).masked_fill(~mask, 0).sum(1)
        soft = (count * apart).mean()
        if self.training:
            self.step += 1
        loss = hard + self.beta * soft
        return loss, {"loss": loss, "shown": hard, "ranks": soft}

    @torch.no_grad()
    def order(self, relevance: Tensor, vectors: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
        mask = check(relevance, vectors, count, mask)
        served = relevance
        if self.gamma:
            served = relevance + self.gamma * self.logits(relevance, vectors, mask).sigmoid()
        best = served.masked_fill(~mask, -torch.inf).sort(dim=-1, descending=True, stable=True)
        return torch.where(best.values == -torch.inf, -1, best.indices)[:, :count]

    def _pool(self, relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (R, C) of the context members of each request, and which of them there are."""
        best = relevance.masked_fill(~mask, -torch.inf).topk(min(self.pool, relevance.shape[1]), dim=-1)
        return best.indices, best.values > -torch.inf

    def _noise(self) -> torch.Generator | None:
        """Noise of this step while training, none when serving."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step)) if self.training else None

    def _attend(self, likeness: Tensor, allowed: Tensor, noise: torch.Generator | None) -> Tensor:
        """Weights (R, N, C): softmax over the M chosen members; the gradient is that of the softmax over all."""
        blocked = likeness.masked_fill(~allowed, -torch.inf)
        chosen = gumbel_top_k(blocked, self.members, noise)
        hard = _softmax(blocked.masked_fill(~chosen, -torch.inf))
        if noise is None:
            return hard
        soft = _softmax(blocked)
        return hard.detach() + soft - soft.detach()


def gumbel_top_k(logits: Tensor, count: int, noise: torch.Generator | None) -> Tensor:
    """Which `count` entries are drawn, without replacement, in proportion to exp(logits): (..., C) bool.

    Without noise the largest ones. Entries of -inf are never drawn. Source: Kool et al., 2019, arXiv:1903.06059.
    """
    if noise is not None:
        uniform = torch.rand(logits.shape, generator=noise).to(logits.device).clamp(min=1e-20)
        logits = logits - torch.log((-torch.log(uniform)).clamp(min=1e-20))
    best = logits.topk(min(count, logits.shape[-1]), dim=-1)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best.indices, best.values > -torch.inf)
    return chosen


def teacher_ranks(teacher: Rerank, relevance: Tensor, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
    """The place (R, N) at which a teacher shows each candidate; N for what is no candidate."""
    count = relevance.shape[1]
    lists = teacher.order(relevance, vectors, count, mask)
    ranks = torch.full_like(lists, count)
    rows, places = (lists >= 0).nonzero(as_tuple=True)
    ranks[rows, lists[rows, places]] = places
    return ranks


def _softmax(logits: Tensor) -> Tensor:
    """Softmax, 0 everywhere in a row without any finite logit."""
    some = (logits > -torch.inf).any(-1, keepdim=True)
    return torch.where(some, logits, 0).softmax(-1) * some
