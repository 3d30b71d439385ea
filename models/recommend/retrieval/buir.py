"""BUIR: predicts a slowly moving copy of the other side's vector; no negatives.

    L = mean (|q(u) - v'|^2 + |q(v) - u'|^2)          all four on the unit sphere
    u, v    vectors of user and item, trained; q a linear predictor
    u', v'  the same from the target table E' <- m E' + (1 - m) E after each step, without gradient
    score   q(u) . v + u . q(v)

With encoder "mf" it is BUIR-id, with "lightgcn" BUIR-nb, whose views differ by dropped pairs: each pass drops a share
of the graph drawn between 0 and `drop`, in both directions alike (ours), and scales the rest up.
Source: Lee et al., 2021, arXiv:2105.06323, sections 3.2 to 3.4; width, layers and momentum as in the authors' code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.retrieval._contrast import alignment
from models.recommend.retrieval._draws import generator
from models.recommend.retrieval._encoder import Encoder
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval, mean_of

__all__ = ["BUIR"]


class BUIR(Retrieval):
    """Bootstrapped user and item representations.

    Args:
        log: the training pairs.
        width: D.
        encoder: "mf" or "lightgcn".
        layers: of lightgcn.
        momentum: m, in [0, 1].
        drop: largest share of the graph's pairs that a pass leaves out, in [0, 1); 0.2 in the paper's BUIR-nb.
        seed: of what is dropped.

    Raises:
        ValueError: a setting outside its range; `drop` without a graph.
    """

    def __init__(
        self,
        log: Log,
        width: int = 250,
        encoder: str = "mf",
        layers: int = 3,
        momentum: float = 0.995,
        drop: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(log)
        if not (0 <= momentum <= 1 and 0 <= drop < 1):
            raise ValueError(f"momentum must be in [0, 1] and drop in [0, 1); got {momentum} and {drop}")
        self.encoder = Encoder(log, width, encoder, layers)
        if drop and not self.encoder.layers:
            raise ValueError(f"drop={drop} leaves out pairs of a graph, but encoder {encoder!r} has none; set drop=0")
        self.momentum, self.drop, self.seed, self.pairs = momentum, drop, seed, len(log)
        self.predictor = nn.Linear(width, width)
        self.register_buffer("target", self.encoder.table.detach().clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, in [0, 8]."""
        first, second = self._views()
        unit = lambda x: F.normalize(x, dim=-1)
        u, v = map(unit, map(self.predictor, self.encoder(user, item, first)))
        with torch.no_grad():
            target_u, target_v = map(unit, self.encoder(user, item, second, self.target))
        terms = {"user": alignment(u, target_v), "item": alignment(v, target_u)}
        return terms["user"] + terms["item"], terms

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the target table."""
        self.target.lerp_(self.encoder.table, 1 - self.momentum)

    def _views(self) -> tuple[Tensor | None, Tensor | None]:
        """Factors of the log's pairs, (E,), for the trained and the target pass."""
        if not (self.drop and self.training):
            return None, None
        draw = generator(self.seed, self.step)
        self.step += 1
        views = []
        for _ in range(2):
            share = self.drop * torch.rand((), generator=draw, device=self.step.device)
            kept = torch.rand(self.pairs, generator=draw, device=self.step.device) >= share
            views.append(kept / (1 - share))
        return tuple(views)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        users, items = self.encoder.all()
        return torch.cat([self.predictor(users), users], -1), torch.cat([items, self.predictor(items)], -1)

    @torch.no_grad()
    def fold_in(self, seen: Log) -> Tensor:
        """A user of these items alone is their mean (ours), and predicts as any other; one without items gets zeros."""
        user = mean_of(self.encoder.all()[1], seen)
        return torch.cat([self.predictor(user), user], -1) * (seen.user_degree > 0)[:, None]
