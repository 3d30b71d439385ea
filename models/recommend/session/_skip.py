"""Skipping of blocks: a small network reads the session and says which blocks of the large one run for it.

    (a_l0, a_l1) = policy(x_1 ... x_t),  g_l = 1 where a_l1 + noise > a_l0 + noise,  x = g_l block_l(x) + (1 - g_l) x

The noise is Gumbel's; the gradient of g_l is that of softmax((a_l + noise) / temperature) (straight-through). In use
there is no noise, and a block runs on the rows that want it: with none it does not run at all.

Source: Chen et al., 2021 (SkipRec), doi:10.1609/aaai.v35i5.16518, and MerRec's benchmark (arXiv:2402.14230) for the
temperature. Ours: one choice for the whole row would tell earlier places about later ones, so gates are trained on the
last item of a row only, read from the items before it, beside the plain loss of all places and all blocks; and a price
for each block that runs.
"""

import torch
from torch import Tensor, nn

from models.recommend.session._blocks import Dilated
from models.recommend.session._session import Session, gather_last, generator, left

__all__ = ["Policy", "SkipSession"]


class Policy(nn.Module):
    """Item vectors of a row -> a pair of logits, skip and run, for each block: (B, L, 2)."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.read = Dilated(width, 3, 1)
        self.choose = nn.Linear(width, 2 * blocks)

    def forward(self, x_BTD: Tensor, length: Tensor) -> Tensor:
        return self.choose(gather_last(self.read(x_BTD), length)).unflatten(-1, (-1, 2))


class SkipSession(Session):
    """A causal model whose `blocks` may be skipped; subclasses say `embed(items)` and `finish(x)` around them.

    Args:
        items: I.
        width: D.
        blocks: of the model.
        temperature: of the gates' gradient.
        price: nats that all blocks together cost.
        loss, negatives, seed: see `Session`; the seed also draws the noise.

    Raises:
        ValueError: no block, a temperature that is not positive, a negative price.
    """

    def __init__(
        self,
        items: int,
        width: int,
        blocks: nn.ModuleList,
        temperature: float,
        price: float,
        loss: str,
        negatives: int,
        seed: int,
    ):
        super().__init__(items, width, loss, negatives, seed)
        if not len(blocks) or temperature <= 0 or price < 0:
            raise ValueError(f"skipping needs a block, a temperature above 0 and a price of 0 or more; got "
                             f"{len(blocks)} blocks, {temperature} and {price}")  # fmt: skip
        self.blocks, self.temperature, self.price = blocks, temperature, price
        self.policy = Policy(width, len(blocks))

    def embed(self, items: Tensor) -> Tensor:
        """What the first block reads: (B, T, D)."""
        return self.item(items)

    def finish(self, x_BTD: Tensor) -> Tensor:
        """What scores items, from what the last block gave."""
        return x_BTD

    def hidden(self, items: Tensor, length: Tensor) -> Tensor:
        """All blocks run."""
        x_BTD = self.embed(items)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.finish(x_BTD)

    def forward(self, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all places with all blocks, of the last item with gated ones, and their price; `items` (B, T)."""
        items, length = left(items, self.items)
        two = length > 1
        if not bool(two.any()):
            raise ValueError(f"none of {len(items)} rows has two items: there is no next item to learn")
        items, length = items[two], length[two]
        before, label = items[:, :-1], items[:, 1:]
        full = self.next_loss(self.hidden(before, length - 1)[label > 0], label[label > 0])
        gate_BL = self.gates(before, length - 1)
        final = self.next_loss(self._gated(before, gate_BL, length - 1), gather_last(items[..., None], length)[:, 0])
        runs = gate_BL.mean()
        if self.training:
            self.step += 1
        loss = full + final + self.price * runs
        return loss, {"loss": loss, "full": full, "gated": final, "runs": runs}

    def gates(self, items: Tensor, length: Tensor) -> Tensor:
        """Which blocks run for each row, 1 or 0 with the gradient of the soft choice; noisy in training: (B, L)."""
        logit_BL2 = self.policy(self.item(items), length).float()
        if self.training:
            draw = generator(self.seed + 1, self.step, items.device)
            even = torch.rand(logit_BL2.shape, generator=draw, device=items.device).clamp(1e-9, 1 - 1e-7)
            logit_BL2 = logit_BL2 - (-even.log()).log()
        hard_BL = (logit_BL2[..., 1] > logit_BL2[..., 0]).float()
        soft_BL = (logit_BL2 / self.temperature).softmax(-1)[..., 1]
        return hard_BL + (soft_BL - soft_BL.detach())  # in this order the value is exactly hard

    def last(self, items: Tensor, length: Tensor) -> Tensor:
        """The vector that scores the next item, (B, D); a block runs on the rows that want it, or not at all."""
        x_BTD = self.embed(items)
        wanted_BL = self._wanted(items, length)
        for block, wanted, count in zip(self.blocks, wanted_BL.unbind(1), wanted_BL.sum(0).tolist(), strict=True):
            if count == len(wanted):
                x_BTD = block(x_BTD)
            elif count:
                rows = wanted.nonzero()[:, 0]
                x_BTD = x_BTD.index_copy(0, rows, block(x_BTD[rows]))
        return gather_last(self.finish(x_BTD), length)

    @torch.no_grad()
    def wanted(self, items: Tensor) -> Tensor:
        """Which blocks `score` runs for each row: (B, L) bool."""
        return self._wanted(*left(items, self.items, self.keep))

    @torch.no_grad()
    def score_all(self, items: Tensor) -> Tensor:
        """Scores with every block running, what skipping is measured against: (B, I + 1)."""
        items, length = left(items, self.items, self.keep)
        return self.scores(gather_last(self.hidden(items, length), length), length)

    def _wanted(self, items: Tensor, length: Tensor) -> Tensor:
        logit_BL2 = self.policy(self.item(items), length)
        return logit_BL2[..., 1] > logit_BL2[..., 0]

    def _gated(self, items: Tensor, gate_BL: Tensor, length: Tensor) -> Tensor:
        x_BTD = self.embed(items)
        for block, gate_B in zip(self.blocks, gate_BL.unbind(1), strict=True):
            x_BTD = x_BTD + gate_B[:, None, None].to(x_BTD.dtype) * (block(x_BTD) - x_BTD)
        return gather_last(self.finish(x_BTD), length)
