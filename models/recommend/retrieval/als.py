"""ALS: weighted matrix factorisation of implicit feedback, solved in closed form; the strong cheap floor.

    min sum_ui c_ui (p_ui - x_u . y_i)^2 + lambda (sum_u |x_u|^2 + sum_i |y_i|^2)     p = 1, c = alpha where seen;
                                                                                       p = 0, c = 1 elsewhere
    x_u = (Y^T Y + (alpha - 1) Y_u^T Y_u + lambda I)^-1 alpha Y_u^T 1          Y_u: the rows of the items u has seen

Source: Hu, Koren and Volinsky, 2008, doi:10.1109/ICDM.2008.22, equations 3 and 4, with the confidence as the `implicit`
library counts it: alpha itself, not 1 + alpha. The factors are fitted outside (tasks/als.py) and set here; a new user
is folded in by the same equation.
"""

import torch
from torch import Tensor

from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["ALS"]


class ALS(Retrieval):
    """Two tables of factors; all zeros until they are set.

    Args:
        log: the training pairs.
        width: D, factors.
        alpha: confidence of a seen pair, from 1 on; ours: 30, in the middle of what four public logs chose.
        regularization: lambda; ours: 30, which they all chose.
    """

    fitted = True

    def __init__(self, log: Log, width: int = 128, alpha: float = 30.0, regularization: float = 30.0):
        super().__init__(log)
        if alpha < 1 or regularization <= 0 or width < 1:
            raise ValueError(f"width and alpha must be at least 1 and regularization above 0; got {width}, {alpha}, "
                             f"{regularization}")  # fmt: skip
        self.alpha, self.regularization = alpha, regularization
        self.register_buffer("user", torch.zeros(log.users, width))
        self.register_buffer("item", torch.zeros(log.items, width))

    def set(self, user: Tensor, item: Tensor) -> None:
        """Take fitted factors, (U, D) and (I, D).

        Raises:
            ValueError: other shapes, or factors that are not finite.
        """
        for name, given in (("user", user), ("item", item)):
            held = getattr(self, name)
            if given.shape != held.shape or not given.isfinite().all():
                raise ValueError(f"{name} factors must be finite and {tuple(held.shape)}; got {tuple(given.shape)}")
            held.copy_(given)

    @torch.no_grad()
    def fold_in(self, seen: Log) -> Tensor:
        """Factors (seen.users, D) of users known only by their items; a user without any has zeros.

        Raises:
            ValueError: a log of another number of items.
        """
        if seen.items != self.items:
            raise ValueError(f"the log has {seen.items} items, the model {self.items}")
        y_ID = self.item.double()  # the normal equations square the condition number
        ridge = self.regularization * torch.eye(y_ID.shape[1], dtype=y_ID.dtype, device=y_ID.device)
        common_DD, rows = y_ID.mT @ y_ID + ridge, []
        for first in range(seen.users):
            y_PD = y_ID[seen.item[seen.starts[first] : seen.starts[first + 1]]]
            system_DD = common_DD + (self.alpha - 1) * y_PD.mT @ y_PD
            rows.append(torch.linalg.solve(system_DD, self.alpha * y_PD.sum(0)))
        return torch.stack(rows).to(self.item.dtype)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user, self.item
