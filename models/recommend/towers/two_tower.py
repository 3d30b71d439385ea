"""Two-tower: a softmax over sampled items - the batch's, a queue's, some at random - corrected for how they are drawn.

    L = mean( -(s_y - b ln Q_y) + ln sum_{c in {y} u C} exp(s_c - b ln Q_c) )          s = U(x) . V(c) / temperature
    Q(c) = expected times that c is among the candidates C
         = (batch + queue) share(c) + random / items

With b = 1 (sampled softmax with logQ) the fixed point is exp(s) ~ p(y | x), which repeats the logging policy's
popularity; with b = 0 (CLRec's contrastive loss) it is p(y | x) / Q(y), which takes popularity away. What lies between
is ours. Candidates that are the row's own item are left out. The correction belongs to the loss: it is not served.
Source: b = 1, and the estimate of share(c) from the stream: Yi et al., 2019, doi:10.1145/3298689.3346996; b = 0 and the
queue: Zhou et al., 2021, arXiv:2005.12964. Random items beside the batch's are those of Yang et al., 2020,
doi:10.1145/3366424.3386195. Sizes are ours.
"""

import torch
from torch import Tensor, nn

from models.recommend.retrieval._contrast import sampled_softmax
from models.recommend.towers._candidates import Frequency, Queue
from models.recommend.towers._towers import Fields, Pair

__all__ = ["TwoTower"]


class TwoTower(nn.Module):
    """Candidate generation by sampled softmax.

    Args:
        user: fields of users.
        item: fields of items.
        items: I, the items that random negatives are drawn from.
        embedding: width of a field's vectors.
        widths: hidden layers of each tower.
        width: K.
        history: whether users have histories.
        cosine: unit vectors; else the bare product, for which a temperature of 1 is usual.
        temperature: above 0.
        queue: vectors kept; 0 for none. With large steps the towers turn away from vectors of a while ago instead of
            learning: give it a small learning rate, and few times the batch.
        negatives: random items that each batch asks for.
        correction: b, in [0, 1].
        slots: of the estimate of the share; None for one an item.
        rate: of the estimate.

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
        history: bool = True,
        cosine: bool = True,
        temperature: float = 0.1,
        queue: int = 0,
        negatives: int = 64,
        correction: float = 1.0,
        slots: int | None = None,
        rate: float = 0.01,
    ):
        super().__init__()
        if not (temperature > 0 and negatives >= 0 and 0 <= correction <= 1 and items >= 1):
            raise ValueError(
                f"a two-tower model needs temperature > 0, negatives >= 0, correction in [0, 1] and an item; got "
                f"{temperature}, {negatives}, {correction}, {items} items"
            )
        self.items, self.negatives, self.temperature, self.correction = items, negatives, temperature, correction
        self.towers = Pair(user, item, embedding, tuple(widths), width, history, cosine)
        self.queue, self.frequency = Queue(queue, width), Frequency(slots or items, rate)

    def user_vectors(self, *described: Tensor) -> Tensor:
        """(B, K); see `Pair.user_vectors`."""
        return self.towers.user_vectors(*described)

    def item_vectors(self, item: Tensor, item_numbers: Tensor) -> Tensor:
        """(N, K); see `Pair.item_vectors`."""
        return self.towers.item_vectors(item, item_numbers)

    def forward(
        self, user: Tensor, user_numbers: Tensor, item_id: Tensor, item: Tensor, item_numbers: Tensor,
        history: Tensor | None = None, history_numbers: Tensor | None = None, kept: Tensor | None = None,
        negative_id: Tensor | None = None, negative: Tensor | None = None, negative_numbers: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Loss in nats, and its terms; in training, the batch's items then enter the queue.

        Args:
            user, user_numbers, history, history_numbers, kept: as of `Pair.user_vectors`.
            item_id: (B,) int64, which item each row's right one is.
            item, item_numbers: (B, ..) what describes it.
            negative_id, negative, negative_numbers: (N, ..) random items, alike; shared by the batch.
        """
        u = self.user_vectors(user, user_numbers, history, history_numbers, kept)
        v = self.item_vectors(item, item_numbers)
        # Cloned: the queue changes before the gradient of this product is taken.
        vectors, ids = [v, self.queue.vector.clone()], [item_id, self.queue.item]
        random = 0 if negative_id is None else len(negative_id)
        if random:
            vectors.append(self.item_vectors(negative, negative_numbers))
            ids.append(negative_id)
        if self.training:
            self.frequency.update(item_id)
        candidate = torch.cat(ids)
        hit_BC = (candidate == item_id[:, None]) | (candidate < 0)
        score_BC = self.towers.score(u, torch.cat(vectors)) / self.temperature
        score_B = (u * v).sum(-1) / self.temperature
        log_q = (self._log_q(items, len(item_id), random) for items in (item_id, candidate.clamp(min=0)))
        loss = sampled_softmax(score_B, score_BC, hit_BC, *log_q).mean()
        if self.training:
            self.queue.push(item_id, v)
        return loss, {"softmax": loss}

    def _log_q(self, item: Tensor, batch: int, random: int) -> Tensor:
        """b ln of how many times each item is expected among the candidates."""
        drawn = batch + (self.queue.item >= 0).sum()
        return self.correction * (drawn * self.frequency.share(item) + random / self.items).log()
