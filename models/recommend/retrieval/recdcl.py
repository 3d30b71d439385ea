"""RecDCL: decorrelates the feature columns of users and items, and pulls each towards the other's last vector.

    Z = bn(projector(e / |e|))                                columns of mean 0 and variance 1 over the batch
    L_UIBT = (1/D) sum_m (C_mm - 1)^2 + gamma (1/D) sum_{m != n} C_mn^2         C = Z_U^T Z_I / N
    L_UUII = 1/2 k(Z_U) + 1/2 k(Z_I)                          k(Z) = ln mean_{m,n} (a (Z^T Z)_mn + c)^e
    L_BCL  = -1/2 mean cos(h(e_u), t_i) - 1/2 mean cos(h(e_i), t_u)
    t      = tau H[node] + (1 - tau) e                        then H[node] <- e, or t for a true moving average
    L      = w L_UIBT + alpha L_UUII + beta L_BCL             score = e_u . e_i

N pairs, D wide. No negatives. H, the vector of each node when it was last in a batch, is part of the checkpoint.
Source: Zhang et al., 2024, arXiv:2401.15635, equations 5 to 10.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.retrieval._contrast import cosine
from models.recommend.retrieval._encoder import Encoder
from models.recommend.retrieval._features import cross_correlation, polynomial
from models.recommend.retrieval._history import History
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["RecDCL"]


class RecDCL(Retrieval):
    """Dual contrastive learning of observed pairs.

    Args:
        log: the training pairs.
        width: D.
        encoder: "lightgcn" or "mf".
        layers: of lightgcn.
        w: weight of L_UIBT; a term of weight 0 is not computed.
        gamma: weight of the off-diagonal in L_UIBT.
        alpha: weight of L_UUII.
        beta: weight of L_BCL.
        tau: share of the past in the targets, in [0, 1].
        history: "overwrite" (the authors' code) or "average" (their text).
        a: scale in the kernel.
        c: shift in the kernel, at least 0.
        e: degree of the kernel, even.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        log: Log,
        width: int = 2048,
        encoder: str = "lightgcn",
        layers: int = 2,
        w: float = 1.0,
        gamma: float = 0.01,
        alpha: float = 0.2,
        beta: float = 10.0,
        tau: float = 0.3,
        history: str = "overwrite",
        a: float = 1.0,
        c: float = 1e-7,
        e: int = 4,
    ):
        super().__init__(log)
        if not 0 <= tau <= 1:
            raise ValueError(f"tau is the share of the past in a target, in [0, 1]; got {tau}")
        if e < 2 or e % 2 or a <= 0 or c < 0:
            raise ValueError(f"the kernel needs an even degree e, a > 0 and c >= 0; got e={e}, a={a}, c={c}")
        self.w, self.gamma, self.alpha, self.beta, self.tau = w, gamma, alpha, beta, tau
        self.a, self.c, self.e = a, c, e
        self.encoder = Encoder(log, width, encoder, layers)
        self.projector = Projector(width)
        self.predictor = nn.Linear(width, width)
        self.user_history, self.item_history = History(log.users, width, history), History(log.items, width, history)

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch; in training, the histories of its nodes change.

        A batch of one row has no columns to compare: only L_BCL is left (ours).
        """
        e_u, e_i = self.encoder(user, item)
        t_u = self.user_history.target(user, e_u, self.tau)
        t_i = self.item_history.target(item, e_i, self.tau)
        terms = {}
        if (self.w or self.alpha) and len(user) > 1:
            z_u, z_i = self.projector(e_u, e_i)
            if self.w:
                terms["uibt"] = self.w * cross_correlation(z_u, z_i, self.gamma)
            if self.alpha:
                terms["uuii"] = self.alpha * (self.kernel(z_u) + self.kernel(z_i)) / 2
        if self.beta:
            h_u, h_i = self.predictor(torch.cat([e_u, e_i])).chunk(2)
            terms["bcl"] = -self.beta * (cosine(h_u, t_i).mean() + cosine(h_i, t_u).mean()) / 2
        return sum(terms.values(), e_u.sum() * 0), terms

    def kernel(self, z_ND: Tensor) -> Tensor:
        """k of the feature columns, a scalar between 4 ln N - ln D and 4 ln N with a = 1, c = 0 and e = 4."""
        return polynomial(z_ND, self.a, self.c, self.e)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.encoder.all()


class Projector(nn.Module):
    """Linear-BN-ReLU-Linear-BN-ReLU-Linear of unit vectors, then batch norm without weights.

    Users and items pass together, each with its own statistics: they lie side by side as two sets of columns. The
    statistics are the batch's, always: nothing is projected when scores are made.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, track_running_stats=False) for _ in range(2))
        for linear in self.linears:
            nn.init.xavier_normal_(linear.weight)

    def forward(self, e_u: Tensor, e_i: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) vectors of users and items -> Z_U, Z_I, both (N, D)."""
        x_N2D = F.normalize(torch.stack([e_u, e_i], 1), dim=-1)
        for linear, norm in zip(self.linears, [*self.norms, None], strict=True):
            x = linear(x_N2D).flatten(1)
            if norm is None:
                x_N2D = F.batch_norm(x, None, None, training=True).view_as(x_N2D)
                break
            x = F.batch_norm(x, None, None, norm.weight.repeat(2), norm.bias.repeat(2), training=True, eps=norm.eps)
            x_N2D = x.relu().view_as(x_N2D)
        return x_N2D[:, 0], x_N2D[:, 1]
