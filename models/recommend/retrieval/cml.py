"""CML: users and items as points; what a user buys lies near, what it does not lies a margin farther.

    d(u, i) = |u - v_i|^2                                            score = -d
    l = [m + d(u, i) - min_w d(u, j_w)]_+                            the nearest of W sampled negatives
    rank weight  = ln(1 + I (1/W) sum_w 1[m + d(u, i) - d(u, j_w) > 0])          without gradient
    L_m = sum over the batch of rank weight * l
    L_f = lambda_f sum_i |v_i - clip(s f(x_i), c)|^2                 f = Linear-ReLU-Dropout-Linear of item features
    L_c = lambda_c sum_{a != b} Cov_ab^2 / N                         Cov of all N points' coordinates
    L = L_m + L_f + L_c, and after each step every point is clipped to the ball of radius c

An item outside the training has its place from f alone. So that f is trained for that, a step can take f(x_i) for v_i
with some probability (ours). The covariance is squared: the authors' code sums it with its sign, which can be driven
below 0.
Source: Hsieh et al., 2017, doi:10.1145/3038912.3052639, and the authors' code for width, margin, W and f.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.retrieval._draws import generator
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval, mean_of

__all__ = ["CML", "MetricPrompt", "clip", "hinge"]


class CML(Retrieval):
    """Collaborative metric learning.

    Args:
        log: the training pairs.
        width: K.
        negatives: W.
        margin: m, below 4 c^2: no two points of the ball are farther apart.
        clip: c, radius of the ball.
        rank_weight: False weighs all violations 1.
        covariance: lambda_c.
        features: (I, F) of the items; None trains without f.
        feature_weight: lambda_f.
        feature_scale: s.
        hidden: width of f's hidden layer.
        dropout: of that layer.
        item_dropout: probability of f(x_i) in place of v_i, drawn for each item and step.
        seed: of what is dropped.

    Raises:
        ValueError: a setting outside its range, or features of another number of items.
    """

    def __init__(
        self,
        log: Log,
        width: int = 100,
        negatives: int = 20,
        margin: float = 1.9,
        clip: float = 1.0,
        rank_weight: bool = True,
        covariance: float = 0.0,
        features: Tensor | None = None,
        feature_weight: float = 0.1,
        feature_scale: float = 1.0,
        hidden: int = 512,
        dropout: float = 0.3,
        item_dropout: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(log)
        _check(log, width, negatives, margin, clip, features, item_dropout)
        self.negatives, self.margin, self.clip, self.rank_weight = negatives, margin, clip, rank_weight
        self.covariance, self.feature_weight, self.feature_scale = covariance, feature_weight, feature_scale
        self.item_dropout, self.seed = item_dropout, seed
        self.user = nn.Parameter(torch.randn(log.users, width) / width**0.5)
        self.item = nn.Parameter(torch.randn(log.items, width) / width**0.5)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.content = None
        if features is not None:
            self.register_buffer("features", features.to(self.user.dtype), persistent=False)  # they are data
            self.content = Content(features.shape[1], hidden, width, dropout)
            with torch.no_grad():
                self.item.copy_(self.place(self.features))
        self.after_step()

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, the sum of its rows'; negative (B, W) are items that the users have no pair with."""
        items_IK, terms = self.item, {}
        if self.content is not None:
            draw = self._drawing()
            content_IK = self._clipped(self.content(self.features, draw))
            terms["feature"] = self.feature_weight * (self.item - content_IK).square().sum()
            if self.item_dropout and draw is not None:
                chosen = torch.rand(self.items, 1, generator=draw, device=self.step.device) < self.item_dropout
                items_IK = torch.where(chosen, content_IK, self.item)
        near, far = F.embedding(item, items_IK), F.embedding(negative, items_IK)
        u = F.embedding(user, self.user)
        d_B, d_BW = (u - near).square().sum(-1), (u[:, None] - far).square().sum(-1)
        terms["metric"] = hinge(d_B, d_BW, self.margin, self.items if self.rank_weight else None).sum()
        if self.covariance:
            terms["covariance"] = self.covariance * off_diagonal(torch.cat([self.user, self.item]))
        return sum(terms.values()), terms

    @torch.no_grad()
    def after_step(self) -> None:
        """Clips every point to the ball."""
        for table in (self.user, self.item):
            table.copy_(clip(table, self.clip))

    @torch.no_grad()
    def place(self, features: Tensor) -> Tensor:
        """Points (M, K) of items (M, F) from their features alone: how an item enters that nobody has bought.

        Raises:
            ValueError: the model has no features.
        """
        if self.content is None:
            raise ValueError("this CML was trained without features, so it cannot place a new item; give features")
        return self._clipped(self.content(features.to(self.user)))

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """(U, K + 2) and (I, K + 2) with product -d."""
        return as_product(self.user.detach(), self.item.detach())

    @torch.no_grad()
    def item_space(self) -> Tensor:
        """The points (I, K): seen from the middle of the ball, alike items lie in one direction."""
        return self.item.detach()

    @torch.no_grad()
    def fold_in(self, seen: Log) -> Tensor:
        """A user of these items alone stands in their mean point (ours); one without items gets zeros."""
        point = mean_of(self.item.detach(), seen)
        return as_product(point, point)[0] * (seen.user_degree > 0)[:, None]

    def _clipped(self, f_IK: Tensor) -> Tensor:
        return clip(self.feature_scale * f_IK, self.clip)

    def _drawing(self) -> torch.Generator | None:
        if not self.training:
            return None
        self.step += 1
        return generator(self.seed, self.step)


class Content(nn.Module):
    """f: Linear-ReLU-Dropout-Linear, (M, F) -> (M, K)."""

    def __init__(self, features: int, hidden: int, width: int, dropout: float):
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(features, hidden), nn.Linear(hidden, width), dropout
        for linear in (self.first, self.last):  # the authors' start; PyTorch's own puts all items in one place
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_MF: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """`draw` None: no dropout."""
        hidden = self.first(x_MF).relu()
        if draw is not None and self.dropout:
            kept = torch.rand(hidden.shape, generator=draw, device=hidden.device) >= self.dropout
            hidden = hidden * kept / (1 - self.dropout)
        return self.last(hidden)


class MetricPrompt(nn.Module):
    """A new objective on frozen points: d_w(u, i) = sum_k w_k (u_k - v_k)^2, w >= 0, with w alone to train (ours).

    w = 1 at the start, so that the first ranking is the backbone's. The points are not part of its checkpoint.

    Args:
        users: (U, K).
        items: (I, K).
        margin: m.
    """

    def __init__(self, users: Tensor, items: Tensor, margin: float = 1.9):
        super().__init__()
        self.margin = margin
        self.root = nn.Parameter(torch.ones(users.shape[1], dtype=users.dtype))  # w = root^2
        self.register_buffer("users", users.detach(), persistent=False)
        self.register_buffer("items", items.detach(), persistent=False)

    def forward(self, user: Tensor, item: Tensor, negative: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As CML's, with the rank weight."""
        w, u = self.root.square(), self.users[user]
        d_B = (w * (u - self.items[item]).square()).sum(-1)
        d_BW = (w * (u[:, None] - self.items[negative]).square()).sum(-1)
        loss = hinge(d_B, d_BW, self.margin, len(self.items)).sum()
        return loss, {"metric": loss}

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """(U, K + 2) and (I, K + 2) with product -d_w."""
        root = self.root.detach()
        return as_product(self.users * root, self.items * root)


def hinge(d_B: Tensor, d_BW: Tensor, margin: float, items: int | None) -> Tensor:
    """Rank weight times the hinge of the nearest negative: (B,); `items` None weighs all 1."""
    loss_B = (margin + d_B - d_BW.amin(-1)).clamp(min=0)
    if items is None:
        return loss_B
    impostors_B = (margin + d_B.detach()[:, None] > d_BW.detach()).to(d_B.dtype).mean(-1)
    return (items * impostors_B).log1p() * loss_B


def clip(x: Tensor, radius: float) -> Tensor:
    """Rows into the ball; those inside stay as they are."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > radius, x * (radius / norm.clamp(min=radius)), x)


def off_diagonal(points_NK: Tensor) -> Tensor:
    """sum_{a != b} Cov_ab^2 / N: a scalar >= 0."""
    centred = points_NK - points_NK.mean(0)
    covariance = centred.mT @ centred / len(points_NK)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / len(points_NK)


def as_product(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors whose product is -|u - v|^2: [2u ; -1 ; -|u|^2] . [v ; |v|^2 ; 1]."""
    square = lambda x: x.square().sum(-1, keepdim=True)
    one = lambda x: torch.ones_like(x[:, :1])
    return torch.cat([2 * u, -one(u), -square(u)], -1), torch.cat([v, square(v), one(v)], -1)


def _check(
    log: Log, width: int, negatives: int, margin: float, radius: float, features: Tensor | None, item_dropout: float
):
    if width < 1 or negatives < 1 or radius <= 0:
        raise ValueError(f"CML needs width >= 1, negatives >= 1 and clip > 0; got {width}, {negatives} and {radius}")
    if not 0 < margin < 4 * radius**2:
        raise ValueError(f"margin must be in (0, {4 * radius**2:g}), got {margin}: squared distances in the ball of "
                         f"radius {radius} are at most 4 clip^2, so a larger margin is always violated")  # fmt: skip
    if features is not None and (features.dim() != 2 or len(features) != log.items):
        raise ValueError(f"features must be ({log.items}, F), one row an item; got {tuple(features.shape)}")
    if item_dropout and (features is None or not 0 <= item_dropout <= 1):
        raise ValueError(f"item_dropout must be in [0, 1] and needs features to fall back on; got {item_dropout}")
