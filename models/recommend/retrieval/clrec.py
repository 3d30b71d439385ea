"""CLRec: picks the right item out of a batch's and a queue's, drawn as often as they are bought: popularity is undone.

    L = mean( -(s_y - b ln Q_y) + ln sum_{c in {y} u C} exp(s_c - b ln Q_c) )        s = cos(u, c) / temperature
    C = the batch's items and the queue's, without y itself             Q(c) = share of item c in the log

With b = 0 the fixed point is exp(s) ~ p(y | u) / Q(y), inverse propensity weighting; with b = 1, the logQ correction of
sampled softmax, it is p(y | u); what lies between is ours. The queue keeps the vectors of the latest positives, without
gradient, first in, first out; a batch enters after its own loss. It is part of the checkpoint.
Source: Zhou et al., 2021, arXiv:2005.12964; b = 1: Yi et al., 2019, doi:10.1145/3298689.3346996. Width and temperature
are those of CLRec in the RecDCL paper's code (arXiv:2401.15635), the queue's length is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recommend.retrieval._contrast import sampled_softmax
from models.recommend.retrieval._encoder import Encoder
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._retrieval import Retrieval

__all__ = ["CLRec"]


class CLRec(Retrieval):
    """Contrastive candidate generation.

    Args:
        log: the training pairs.
        width: D.
        encoder: "mf" or "lightgcn".
        layers: of lightgcn.
        temperature: of the softmax, above 0.
        queue: vectors kept; 0 for the batch's items only.
        correction: b, in [0, 1].

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        log: Log,
        width: int = 64,
        encoder: str = "mf",
        layers: int = 2,
        temperature: float = 0.2,
        queue: int = 4096,
        correction: float = 0.0,
    ):
        super().__init__(log)
        if not (temperature > 0 and queue >= 0 and 0 <= correction <= 1):
            raise ValueError(f"CLRec needs temperature > 0, queue >= 0 and correction in [0, 1]; got {temperature}, "
                             f"{queue}, {correction}")  # fmt: skip
        self.temperature, self.correction = temperature, correction
        self.encoder = Encoder(log, width, encoder, layers)
        share = log.item_degree.clamp(min=1).to(self.encoder.table.dtype) / len(log)
        self.register_buffer("log_q", share.log(), persistent=False)  # it follows from the log
        self.register_buffer("kept", torch.zeros(queue, width))
        self.register_buffer("kept_item", torch.full((queue,), -1))  # -1: nothing there yet
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # of the next to enter

    def forward(self, user: Tensor, item: Tensor, negative: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch in nats; in training, its items then enter the queue."""
        u, v = (F.normalize(e, dim=-1) for e in self.encoder(user, item))
        candidate = torch.cat([item, self.kept_item])
        absent = (candidate == item[:, None]) | (candidate < 0)
        # Cloned: the queue changes before the gradient of this product is taken.
        score_BC = u @ torch.cat([v, self.kept.clone()]).mT / self.temperature
        log_q = self.correction * self.log_q
        score_B = (u * v).sum(-1) / self.temperature
        loss = sampled_softmax(score_B, score_BC, absent, log_q[item], log_q[candidate]).mean()
        if self.training:
            self._enqueue(item, v.detach())
        return loss, {"clrec": loss}

    def _enqueue(self, item: Tensor, vector: Tensor) -> None:
        size = len(self.kept)
        if not size:
            return
        item, vector = item[-size:], vector[-size:]
        slot = (self.place + torch.arange(len(item), device=item.device)) % size
        self.kept[slot], self.kept_item[slot] = vector.to(self.kept.dtype), item
        self.place.copy_((self.place + len(item)) % size)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Unit vectors: served as trained."""
        return tuple(F.normalize(table, dim=-1) for table in self.encoder.all())
