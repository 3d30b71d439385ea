"""BPR-MF: matrix factorisation that ranks a seen item above an unseen one.

    L = - mean ln sigma(e_u . e_i - e_u . e_j) + lambda / 2 (|e_u|^2 + |e_i|^2 + |e_j|^2)      j unseen by u

Source: Rendle et al., 2009, arXiv:1205.2618, sections 4 and 5.1. The paper fixes neither width nor lambda; ours: 64,
the usual one, and 1e-4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recommend.retrieval._adam import LazyAdam, RowAdam
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["BPR"]

UPDATES = ("rows", "dense", "lazy")


class BPR(Retrieval):
    """Matrix factorisation with the pairwise loss.

    Args:
        log: the training pairs.
        width: D.
        negatives: unseen items for each pair.
        penalty: lambda; the mean over the batch of each pair's penalty, over the negatives as well.
        update: "rows" is Adam as written, from gradients of the touched rows; "dense" is the same from dense gradients,
            which a limit of the gradient's norm needs; "lazy" is another algorithm, that of SparseAdam: only touched
            rows move and remember, so that a step costs what its batch costs, not what the tables cost.

    Raises:
        ValueError: an unknown `update`, or a number outside its range.
    """

    def __init__(self, log: Log, width: int = 64, negatives: int = 1, penalty: float = 1e-4, update: str = "rows"):
        super().__init__(log)
        if update not in UPDATES:
            raise ValueError(f"update is {update!r}; it is one of {', '.join(UPDATES)}")
        if width < 1 or negatives < 1:
            raise ValueError(f"BPR-MF needs width >= 1 and negatives >= 1; got {width} and {negatives}")
        self.negatives, self.penalty, self.update = negatives, penalty, update
        self.user = nn.Parameter(nn.init.xavier_normal_(torch.empty(log.users, width)))
        self.item = nn.Parameter(nn.init.xavier_normal_(torch.empty(log.items, width)))

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        sparse = self.update != "dense"
        e_BD = F.embedding(user, self.user, sparse=sparse)
        # One lookup: two would be two gradients, to be added.
        rows = F.embedding(torch.cat([item, negative.flatten()]), self.item, sparse=sparse)
        seen_BD, unseen_BKD = rows[: len(item)], rows[len(item) :].view(*negative.shape, -1)
        gap_BK = (e_BD[:, None] * (seen_BD[:, None] - unseen_BKD)).sum(-1)
        ranking = F.softplus(-gap_BK).mean()
        norm = e_BD.square().sum() + seen_BD.square().sum() + unseen_BKD.square().sum() / negative.shape[1]
        penalty = self.penalty / 2 * norm / len(user)
        return ranking + penalty, {"bpr": ranking, "penalty": penalty}

    def optimizer(self, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """What `update` says.

        Raises:
            ValueError: weight decay with "lazy".
        """
        if self.update == "dense":
            return super().optimizer(learning_rate, weight_decay)
        if self.update == "rows":
            return RowAdam(self.parameters(), learning_rate, weight_decay)
        if weight_decay:
            raise ValueError(f"weight_decay is {weight_decay}, but lazy Adam leaves the untouched rows as they are; "
                             f"set penalty instead, or another update")  # fmt: skip
        return LazyAdam(self.parameters(), learning_rate)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user.detach(), self.item.detach()
