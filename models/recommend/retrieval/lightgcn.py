"""LightGCN: user and item vectors are averages over the layers of a plain graph propagation.

    E' = 1 / (L + 1) sum_l A^^l E          A^ = D^-1/2 A D^-1/2 of the training graph, no weights, no activation
    L  = - mean ln sigma(e'_u . e'_i - e'_u . e'_j) + lambda / 2 (|e_u|^2 + |e_i|^2 + |e_j|^2)      j unseen by u

The penalty is of the vectors before propagation.
Source: He et al., 2020, arXiv:2002.02126, equations 3, 7, 8 and 15; width 64, 3 layers,
lambda 1e-4 and N(0, 0.1) as there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.retrieval._graph import Graph
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["LightGCN"]


class LightGCN(Retrieval):
    """Linear graph convolution with the pairwise loss.

    Args:
        log: the training pairs, also the edges.
        width: D.
        layers: L; 0 is matrix factorisation.
        negatives: unseen items for each pair.
        penalty: lambda; the mean over the batch of each pair's penalty, over the negatives as well.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(self, log: Log, width: int = 64, layers: int = 3, negatives: int = 1, penalty: float = 1e-4):
        super().__init__(log)
        if width < 1 or layers < 0 or negatives < 1:
            raise ValueError(f"LightGCN needs width >= 1, layers >= 0 and negatives >= 1; got {width}, {layers} and "
                             f"{negatives}")  # fmt: skip
        self.layers, self.negatives, self.penalty = layers, negatives, penalty
        self.graph = Graph(log)
        self.table = nn.Parameter(torch.randn(self.graph.nodes, width) * 0.1)

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        parts = [len(user), len(item), negative.numel()]
        node = torch.cat([user, self.users + item, self.users + negative.flatten()])
        mean, own = (rows.split(parts) for rows in self.graph.rows(self.table, self.layers, node))
        e_BD, seen_BD, unseen_BKD = mean[0], mean[1], mean[2].view(*negative.shape, -1)
        gap_BK = (e_BD[:, None] * (seen_BD[:, None] - unseen_BKD)).sum(-1)
        ranking = F.softplus(-gap_BK).mean()
        norm = own[0].square().sum() + own[1].square().sum() + own[2].square().sum() / negative.shape[1]
        penalty = self.penalty / 2 * norm / len(user)
        return ranking + penalty, {"bpr": ranking, "penalty": penalty}

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        mean_ND = self.graph.propagate(self.table, self.layers)
        return mean_ND[: self.users], mean_ND[self.users :]
