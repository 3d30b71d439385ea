"""Prototypes: several interests of a user, more for the active, and item vectors that gather around prototypes.

    H = V(history) (T, K),   A = softmax_T(W_2 tanh(W_1 H^T)),   v_m = unit(A_m H + W e_user)             m = 1..M
    keep_m = [sigmoid(w . [v_m ; ln(1 + T)] + b) > 1/2], the best one always        interest selection
    L_s = sampled softmax of s(y) = v_{m*} . V(y) / temperature,   m* = the kept interest nearest to y
    L_p = -ln softmax_j( V(y) . c_j / concentration )[nearest j]                      prototypical contrast
    L = L_s + prototype L_p + sparsity mean(keep probability)

An item is drawn to the prototype of its cluster and away from the others, so that a negative that is much like the
positive (class collision) is not pushed further than what both have in common allows. Prototypes are means of unit
vectors, moved a little with each batch (online k-means); one that no item came to for long starts anew at an item.
Source: Li et al., 2022, arXiv:2211.12893, of which only the abstract and opening could be read: an adaptive interest
selection layer by activeness, learned end to end, and cluster centres of items as prototypes. The equations are ours,
after Cen et al., 2020, arXiv:2005.09347 (interests, m*), and Li et al., 2020, arXiv:2005.04966 (prototypes); so is
every number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.retrieval._contrast import sampled_softmax
from models.recommend.towers._candidates import Queue
from models.recommend.towers._towers import Columns, Fields, perceptron

__all__ = ["Prototypes"]

STALE = 1e-3  # share of an even prototype's weight below which one starts anew


class Prototypes(nn.Module):
    """Multi-interest candidate generation.

    Args:
        user: fields of users; may be empty.
        item: fields of items.
        items: I, the items that random negatives are drawn from.
        embedding: width of a field's vectors.
        widths: hidden layers of the item tower.
        width: K.
        interests: M, at most.
        prototypes: how many.
        temperature: of the softmax, above 0.
        concentration: of the prototypes, above 0.
        prototype: weight of L_p.
        sparsity: weight of the keep probabilities: what an interest must be worth.
        momentum: of the prototypes, in [0, 1).
        queue: vectors kept; see models/recommend/towers/two_tower.py.
        negatives: random items that each batch asks for.

    Attributes:
        towers: what is served.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        user: Fields,
        item: Fields,
        items: int,
        embedding: int = 16,
        widths: tuple[int, ...] = (128,),
        width: int = 64,
        interests: int = 4,
        prototypes: int = 64,
        temperature: float = 0.1,
        concentration: float = 0.1,
        prototype: float = 0.1,
        sparsity: float = 0.01,
        momentum: float = 0.99,
        queue: int = 0,
        negatives: int = 64,
    ):
        super().__init__()
        if min(temperature, concentration) <= 0 or not 0 <= momentum < 1 or min(prototypes, items) < 1 or negatives < 0:
            raise ValueError(
                f"prototypes need temperature and concentration > 0, momentum in [0, 1), a prototype and an item, "
                f"negatives >= 0; got {temperature}, {concentration}, {momentum}, {prototypes}, {items}, {negatives}"
            )
        self.items, self.negatives, self.temperature, self.concentration = items, negatives, temperature, concentration
        self.prototype, self.sparsity, self.momentum = prototype, sparsity, momentum
        self.towers = Interests(user, item, embedding, tuple(widths), width, interests)
        self.queue = Queue(queue, width)
        self.register_buffer("centre", torch.zeros(prototypes, width))
        self.register_buffer("weight", torch.zeros(prototypes))  # 0: nothing there yet

    def user_vectors(self, *described: Tensor) -> Tensor:
        """(B, M, K); see `Interests.user_vectors`."""
        return self.towers.user_vectors(*described)

    def item_vectors(self, item: Tensor, item_numbers: Tensor) -> Tensor:
        """(N, K)."""
        return self.towers.item_vectors(item, item_numbers)

    def forward(
        self, user: Tensor, user_numbers: Tensor, item_id: Tensor, item: Tensor, item_numbers: Tensor,
        history: Tensor, history_numbers: Tensor, kept: Tensor,
        negative_id: Tensor | None = None, negative: Tensor | None = None, negative_numbers: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Loss in nats, and its terms; arguments as of models/recommend/towers/two_tower.py."""
        v_BMK, keep_BM = self.towers.interests_of(user, user_numbers, history, history_numbers, kept)
        y = self.item_vectors(item, item_numbers)
        chosen = (keep_BM > 0.5) | (keep_BM == keep_BM.amax(-1, keepdim=True))
        near_BM = (v_BMK.detach() @ y.detach()[..., None]).squeeze(-1).masked_fill(~chosen, -torch.inf)
        m = near_BM.argmax(-1, keepdim=True)
        # Straight through: 1 forward; backward the keep probability learns whether its interest is of use.
        through = 1 + keep_BM.gather(1, m) - keep_BM.gather(1, m).detach()
        u = through * v_BMK.gather(1, m[..., None].expand(-1, -1, v_BMK.shape[-1])).squeeze(1)
        vectors, ids = [y, self.queue.vector.clone()], [item_id, self.queue.item]
        if negative_id is not None and len(negative_id):
            vectors.append(self.item_vectors(negative, negative_numbers))
            ids.append(negative_id)
        candidate = torch.cat(ids)
        hit_BC = (candidate == item_id[:, None]) | (candidate < 0)
        score_BC = u @ torch.cat(vectors).mT / self.temperature
        if self.training:
            self._move(y.detach())
        terms = {
            "softmax": sampled_softmax((u * y).sum(-1) / self.temperature, score_BC, hit_BC).mean(),
            "prototype": self.contrast(y),
            "kept": keep_BM.mean(),
        }
        if self.training:
            self.queue.push(item_id, y)
        loss = terms["softmax"] + self.prototype * terms["prototype"] + self.sparsity * terms["kept"]
        return loss, terms

    def contrast(self, y: Tensor) -> Tensor:
        """L_p of unit vectors (B, K): a scalar in nats; 0 before there are prototypes."""
        here = self.weight > 0
        if not here.any():
            return y.sum() * 0
        # Cloned: the prototypes move before the gradient of this product is taken.
        logit_BP = y @ self.centre[here].clone().mT / self.concentration
        return F.cross_entropy(logit_BP, logit_BP.detach().argmax(-1))

    @torch.no_grad()
    def _move(self, y: Tensor) -> None:
        """One step of online k-means by unit vectors (B, K)."""
        average = float(self.weight.sum()) / len(self.weight)
        stale = (self.weight <= STALE * average).nonzero().flatten()[: len(y)]
        # The items furthest from every prototype: the same ones in a run that was interrupted.
        near_B = (y @ self.centre.mT).amax(-1)
        fresh = y[near_B.argsort(stable=True)[: len(stale)]]
        self.centre[stale], self.weight[stale] = fresh.to(self.centre.dtype), max(average, 1.0)
        nearest = (y @ self.centre.mT).masked_fill(self.weight == 0, -torch.inf).argmax(-1)
        count = nearest.bincount(minlength=len(self.weight)).to(self.weight.dtype)
        total = torch.zeros_like(self.centre).index_add_(0, nearest, y.to(self.centre.dtype))
        moved = self.momentum * self.weight[:, None] * self.centre + (1 - self.momentum) * total
        self.weight.copy_(self.momentum * self.weight + (1 - self.momentum) * count)
        self.centre.copy_(torch.where(count[:, None] > 0, F.normalize(moved, dim=-1), self.centre))


class Interests(nn.Module):
    """Both towers, a user's as up to M vectors; arguments as of `Prototypes`."""

    def __init__(self, user: Fields, item: Fields, embedding: int, widths: tuple[int, ...], width: int, interests: int):
        super().__init__()
        if not item or interests < 1 or min(embedding, width, *widths, 1) < 1:
            raise ValueError(f"interests need fields of items, and counts and widths of 1 or more; got item={item}, "
                             f"interests={interests}, widths={[embedding, *widths, width]}")  # fmt: skip
        self.users, self.items = Columns(user, embedding), Columns(item, embedding)
        self.item_tower = perceptron([self.items.width, *widths, width])
        self.own = nn.Linear(self.users.width, width) if user else None
        self.attention = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, interests, bias=False))
        self.keep = nn.Linear(width + 1, 1)
        nn.init.constant_(self.keep.bias, 2.0)  # all are kept at first: one that is dropped learns nothing
        self.anybody = nn.Parameter(torch.randn(interests, width) * width**-0.5)  # of whom nothing is known

    def item_vectors(self, item: Tensor, item_numbers: Tensor) -> Tensor:
        """Unit vectors (N, K)."""
        return F.normalize(self.item_tower(self.items(item, item_numbers)), dim=-1)

    def interests_of(self, user, user_numbers, history, history_numbers, kept) -> tuple[Tensor, Tensor]:
        """All interests (B, M, K), and the probability to keep each (B, M); arguments as of `Pair.user_vectors`."""
        h_BTK = self.item_vectors(history.flatten(0, 1), history_numbers.flatten(0, 1)).unflatten(0, history.shape[:2])
        h_BTK = torch.where(kept[..., None], h_BTK, 0)
        # The lowest number, not -inf: an empty history would give NaN.
        logit_BTM = self.attention(h_BTK).masked_fill(~kept[..., None], torch.finfo(h_BTK.dtype).min)
        v_BMK = logit_BTM.softmax(1).mT @ h_BTK
        length = kept.sum(1)
        v_BMK = v_BMK + self.anybody / (1 + length)[:, None, None]
        if self.own is not None:
            v_BMK = v_BMK + self.own(self.users(user, user_numbers))[:, None]
        v_BMK = F.normalize(v_BMK, dim=-1)
        active = length.to(v_BMK.dtype).log1p()[:, None, None].expand(-1, v_BMK.shape[1], 1)
        return v_BMK, self.keep(torch.cat([v_BMK, active], -1)).squeeze(-1).sigmoid()

    def user_vectors(self, *described: Tensor) -> Tensor:
        """(B, M, K): the kept interests; the best stands in the others' places, so that a maximum is of the kept."""
        v_BMK, keep_BM = self.interests_of(*described)
        best = v_BMK.gather(1, keep_BM.argmax(-1)[:, None, None].expand(-1, 1, v_BMK.shape[-1]))
        return torch.where((keep_BM > 0.5)[..., None], v_BMK, best)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """(B, I) of (B, M, K) and (I, K): the nearest interest's."""
        return torch.einsum("bmk,ik->bmi", users, items).amax(1)
