"""What every retrieval model is: a loss of observed pairs, and vectors whose product is a score."""

import torch
from torch import Tensor, nn

from models.recommend.retrieval._log import Log

__all__ = ["Retrieval", "mean_of"]


class Retrieval(nn.Module):
    """A recommender of items from the pairs of a log.

    A subclass takes a log first and its hyper-parameters after it: `__init__(self, log, **settings)`. Of the log it may
    keep what the method needs (a graph, degrees) in buffers that are not saved; whatever changes with the training is a
    parameter or a saved buffer, so that a checkpoint continues as if nothing had happened. Two models of one log, made
    after the same torch.manual_seed, are equal.

    Args:
        log: the training pairs.

    Attributes:
        users: U.
        items: I.
        negatives: sampled items that each pair of a batch asks for, K.
        fitted: True where nothing is left to train once the model is made.
        product: False where a score is no product of vectors: then there is `score` only.
    """

    negatives: int = 0
    fitted: bool = False
    product: bool = True

    def __init__(self, log: Log):
        super().__init__()
        self.users, self.items = log.users, log.items

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of observed pairs.

        Args:
            user: (B,) int64.
            item: (B,) int64.
            negative: (B, K) int64, sampled items; None where `negatives` is 0.

        Returns:
            scalar, and its named terms.

        Raises:
            TypeError: the model has nothing to train.
        """
        raise TypeError(f"{type(self).__name__} is made from the log, and has no steps to train")

    def after_step(self) -> None:
        """What follows an update of the weights, such as a norm clip; the trainer calls it after each step."""

    def optimizer(self, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """Adam over all parameters, in one pass over them; `weight_decay` is an L2 penalty, as in the papers' code."""
        return torch.optim.Adam(self.parameters(), learning_rate, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """(U, D) and (I, D): the score of a user and an item is the product of their vectors, larger is better.

        A distance is written as a product with more columns: -|u - v|^2 orders items as [2u ; -1] . [v ; |v|^2] does.
        """
        raise NotImplementedError(f"{type(self).__name__} has no vectors")

    @torch.no_grad()
    def score(self, user: Tensor) -> Tensor:
        """Scores (B, I) of all items for the users (B,), larger is better; seen items are not left out."""
        users, items = self.vectors()
        return users[user] @ items.mT

    @torch.no_grad()
    def item_space(self) -> Tensor:
        """(I, D): the directions of two rows tell how alike their items are; the items' vectors, as a rule."""
        return self.vectors()[1]

    @torch.no_grad()
    def fold_in(self, seen: Log) -> Tensor:
        """Vectors (seen.users, D) of users known by their items only: the mean of these, unless a method knows better.

        The mean is ours. A user without items gets zeros. A method whose vectors of users and of items are not made
        alike must know better.
        """
        return mean_of(self.vectors()[1], seen)

    @torch.no_grad()
    def score_histories(self, seen: Log) -> Tensor:
        """Scores (seen.users, I) of all items for users known only by their items."""
        return self.fold_in(seen) @ self.vectors()[1].mT


def mean_of(items: Tensor, seen: Log) -> Tensor:
    """Mean (seen.users, D) of what each user has of items (I, D); zeros where it has none."""
    row, item = seen.of_users(torch.arange(seen.users, device=items.device))
    total = items.new_zeros(seen.users, items.shape[1]).index_add_(0, row, items[item])
    return total / seen.user_degree.clamp(min=1)[:, None]
