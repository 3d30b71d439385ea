"""AITM: in a chain of ordered tasks (click, cart, buy) each takes over what the one before has learned.

    q_t = bottom_t(e),  z_1 = q_1,  p_t = relu(info_t(z_{t-1}))
    z_t = sum_{u in {p_t, q_t}} w_u V u,  w = softmax_u(<K u, Q u> / sqrt(k))
    y_t = sigmoid(tower_t(z_t))
    L = sum_t BCE(y_t) + lambda sum_{t>1} mean(max(y_t - y_{t-1}, 0))

The last term, the calibrator, asks a later step never to be likelier than an earlier one.
Source: Xi et al., 2021, arXiv:2105.08489, with the sizes of its Ali-CCP code. Ours: weights start scaled by fan-in
instead of N(0, 0.01); its L2 penalty of 1e-6 is left to the optimizer; the head appends one more task to the frozen
chain: V, K and Q stay the chain's, bottom, info and tower are new.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, Head, Joint, MultiTask, Towers, per_layer, require_frozen

__all__ = ["AITM", "ChainHead"]


class AITM(MultiTask):
    """A chain of tasks, in the order in which they happen.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: T.
        embedding: width of a field's embedding.
        bottom: widths of each task's bottom; the last is k.
        towers: hidden widths of each tower; none: one linear layer.
        dropout: after the bottom's layers, the last rate also after info.
        calibrator: lambda.
        norm: batch normalisation before each ReLU of bottoms and towers.
        dense_field: one Linear(dense, embedding) makes the numerical columns one more field.
    """

    weigh = staticmethod(torch.sum)

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        tasks: int,
        embedding: int = 5,
        bottom: Sequence[int] = (128, 64, 32),
        towers: Sequence[int] = (),
        dropout: float | Sequence[float] = (0.1, 0.3, 0.3),
        calibrator: float = 0.6,
        norm: bool = False,
        dense_field: bool = False,
    ):
        super().__init__()
        self.bottom_widths, self.tower_widths = tuple(bottom), tuple(towers)
        self.dropout, self.calibrator, self.norm = per_layer(dropout, bottom), calibrator, norm
        self.inputs = Inputs(sizes, dense, embedding, dense_field)
        self.first = Joint(self.inputs.width, [bottom[0]] * tasks)
        self.bottoms = Experts(tasks, bottom, self.dropout, norm)
        self.info = nn.ModuleList(Info(bottom[-1], self.dropout[-1]) for _ in range(tasks - 1))
        self.transfer = nn.Parameter(torch.stack([start(bottom[-1]) for _ in "VKQ"]))
        self.towers = Towers(tasks, bottom[-1], towers, self.dropout[-1], norm)

    def forward(self, categorical: Tensor, numerical: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its terms; `labels` (B, T) 1 or 0, NaN or negative where absent."""
        logit_BT = self.logits(categorical, numerical)
        loss, terms = self.losses(logit_BT, labels)
        terms["calibrator"] = calibrate(logit_BT.float().sigmoid())
        loss = loss + self.calibrator * terms["calibrator"]
        return loss, terms | {"loss": loss}

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        return self.towers(self._chain(categorical, numerical))

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: e (B, D) and z (B, k), the chain's last link. Needs eval mode."""
        require_frozen(self)
        return {"e": self.inputs(categorical, numerical), "z": self._chain(categorical, numerical)[:, -1]}

    def head(
        self,
        bottom: Sequence[int] | None = None,
        towers: Sequence[int] | None = None,
        dropout: float | Sequence[float] | None = None,
    ) -> "ChainHead":
        """The next task of the chain. What is None is as in this backbone; `bottom` must end in the same width.

        The new bottom reads all of e, so it holds most of the head's parameters: narrow it to tune fewer.
        """
        widths = self.bottom_widths if bottom is None else tuple(bottom)
        if widths[-1] != self.bottom_widths[-1]:
            raise ValueError(f"bottom must end in {self.bottom_widths[-1]}, the width of the chain; got {widths}")
        if dropout is None:
            dropout = self.dropout if len(widths) == len(self.dropout) else self.dropout[-1]
        towers = self.tower_widths if towers is None else towers
        return ChainHead(self.transfer, self.inputs.width, widths, towers, per_layer(dropout, widths), self.norm)

    def _chain(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        own, *rest = self.bottoms(self.first(self.inputs, categorical, numerical)).unbind(1)
        chain = [own]
        for info, own in zip(self.info, rest, strict=True):
            chain.append(transfer(info(chain[-1]), own, self.transfer))
        return torch.stack(chain, 1)


class Info(nn.Sequential):
    """What a task hands to the next: linear, ReLU, dropout: (B, k) -> (B, k)."""

    def __init__(self, width: int, dropout: float):
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))


class ChainHead(Head):
    """One more link on the frozen chain's last z; `matrices` V, K, Q (3, k, k) are copied and never trained."""

    def __init__(
        self,
        matrices: Tensor,
        width: int,
        bottom: Sequence[int],
        towers: Sequence[int],
        dropout: Sequence[float],
        norm: bool,
    ):
        super().__init__()
        self.register_buffer("transfer", matrices.detach().clone())
        self.first = nn.Linear(width, bottom[0])
        self.bottom = Experts(1, bottom, dropout, norm)
        self.info = Info(bottom[-1], dropout[-1])
        self.tower = Towers(1, bottom[-1], towers, dropout[-1], norm)

    def forward(self, represented: dict[str, Tensor]) -> Tensor:
        own_BK = self.bottom([self.first(represented["e"])]).squeeze(1)
        link_BK = transfer(self.info(represented["z"]), own_BK, self.transfer)
        return self.tower(link_BK.unsqueeze(1)).squeeze(1)


def transfer(p_BK: Tensor, q_BK: Tensor, matrices: Tensor) -> Tensor:
    """z: the sum of V p and V q, weighted by an attention of each to itself; `matrices` are V, K and Q (3, k, k)."""
    u_B2K = torch.stack([p_BK, q_BK], 1)
    value, key, query = (F.linear(u_B2K, matrix) for matrix in matrices)
    weight_B2 = ((key * query).sum(-1) / u_B2K.shape[-1] ** 0.5).softmax(-1)
    return (weight_B2.unsqueeze(-1) * value).sum(1)


def calibrate(probability_BT: Tensor) -> Tensor:
    """How far later steps are likelier than the ones before: a scalar, 0 if never."""
    return F.relu(probability_BT.diff(dim=-1)).mean(0).sum()


def start(width: int) -> Tensor:
    """A (width, width) weight, uniform in +-1/sqrt(width)."""
    return torch.empty(width, width).uniform_(-(width**-0.5), width**-0.5)
