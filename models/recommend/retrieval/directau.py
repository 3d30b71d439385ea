"""DirectAU: pulls the two of a pair together on the unit sphere and spreads users, and items, over it; no negatives.

    L = mean |u - v|^2 + gamma / 2 (uniform(U_batch) + uniform(I_batch))          u, v unit vectors
    uniform(X) = ln mean over pairs exp(-2 |x - y|^2)
    score = e_u . e_i, not normalised

Source: Wang et al., 2022, arXiv:2206.12811, section 4.2; width 64 as there, gamma is tuned between 0.2 and 10.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recommend.retrieval._contrast import alignment, uniformity
from models.recommend.retrieval._encoder import Encoder
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["DirectAU"]


class DirectAU(Retrieval):
    """Alignment and uniformity, optimised directly.

    Args:
        log: the training pairs.
        width: D.
        encoder: "mf" or "lightgcn".
        layers: of lightgcn.
        gamma: weight of uniformity.
    """

    def __init__(self, log: Log, width: int = 64, encoder: str = "mf", layers: int = 2, gamma: float = 1.0):
        super().__init__(log)
        self.gamma = gamma
        self.encoder = Encoder(log, width, encoder, layers)

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch; a batch of one row has nothing to spread."""
        u, v = (F.normalize(e, dim=-1) for e in self.encoder(user, item))
        terms = {"align": alignment(u, v), "uniform": self.gamma * (uniformity(u) + uniformity(v)) / 2}
        return terms["align"] + terms["uniform"], terms

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.encoder.all()
