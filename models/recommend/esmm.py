"""ESMM: click and conversion are learned over all impressions, the conversion rate only as a factor of their product.

    pCTR = sigmoid(tower_1(e)),  pCVR = sigmoid(tower_2(e)),  pCTCVR = pCTR pCVR
    L = BCE(click, pCTR) + BCE(click * conversion, pCTCVR)

pCVR has no loss of its own, so rows without a click train it too. The product is taken on logits, without a logarithm
of a rounded probability: logit(sigmoid(a) sigmoid(b)) = -log(e^-a + e^-b + e^-(a+b)).
Source: Ma et al., 2018, arXiv:1804.07931, with its sizes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, Joint, MultiTask, TowerHead, Towers, require_frozen

__all__ = ["ESMM"]


class ESMM(MultiTask):
    """Two towers on shared embeddings. Task 0 is the click, task 1 the conversion.

    The conversion's label may be absent where there was no click: nothing to convert is no conversion.

    Args:
        sizes: rows of each categorical field's table.
        dense: numerical columns.
        tasks: must be 2.
        embedding: width of a field's embedding.
        towers: hidden widths of each tower.
        dropout: after each hidden layer.
        norm: batch normalisation before each ReLU.
        dense_field: one Linear(dense, embedding) makes the numerical columns one more field.
        serve: what task 1's score is: "ctcvr", the conversion of an impression (what the loss trains), or "cvr", that
            of a click (for a task whose label is asked of clicked rows only).
    """

    weigh = staticmethod(torch.sum)

    def __init__(
        self,
        sizes: list[int],
        dense: int,
        tasks: int,
        embedding: int = 18,
        towers: Sequence[int] = (360, 200, 80),
        dropout: float = 0.0,
        norm: bool = False,
        dense_field: bool = False,
        serve: str = "ctcvr",
    ):
        super().__init__()
        if tasks != 2:
            raise ValueError(
                f"ESMM has the two tasks click and conversion; got {tasks} tasks: take another method for them"
            )
        if serve not in ("ctcvr", "cvr"):
            raise ValueError(f"serve must be ctcvr or cvr; got {serve!r}")
        self.tower_widths, self.dropout, self.norm, self.serve = tuple(towers), dropout, norm, serve
        self.inputs = Inputs(sizes, dense, embedding, dense_field)
        self.first = Joint(self.inputs.width, [towers[0]] * 2)
        self.hidden = Experts(2, towers, dropout, norm)
        self.towers = Towers(2, towers[-1], ())

    def forward(self, categorical: Tensor, numerical: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its terms; `labels` (B, 2): click and conversion, NaN or negative where absent."""
        if labels.shape[-1:] != (2,):
            raise ValueError(f"labels must be (B, 2), click and conversion; got {tuple(labels.shape)}")
        click, conversion = labels.unbind(-1)
        # Either label 0 settles the product, whatever the other is; otherwise it is absent if one of them is.
        both = torch.where((click == 0) | (conversion == 0), 0, torch.where(click >= 0, conversion, torch.nan))
        return super().forward(categorical, numerical, torch.stack([click, both], -1))

    def logits(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Logits of pCTR and pCTCVR: (B, 2)."""
        click, conversion = self.factors(categorical, numerical).unbind(-1)
        return torch.stack([click, both_logit(click, conversion)], -1)

    def factors(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Logits of pCTR and pCVR: (B, 2), float32."""
        return self.towers(self.hidden(self.first(self.inputs, categorical, numerical))).float()

    def score(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Served probabilities (B, 2), float32: pCTR, and pCTCVR or pCVR as `serve` says."""
        shown = self.logits if self.serve == "ctcvr" else self.factors
        return shown(categorical, numerical).sigmoid()

    @torch.no_grad()
    def represent(self, categorical: Tensor, numerical: Tensor) -> dict[str, Tensor]:
        """What the head reads: e (B, D), the only part that the tasks share."""
        require_frozen(self)
        return {"e": self.inputs(categorical, numerical)}

    def head(self, towers: Sequence[int] | None = None, dropout: float | None = None) -> TowerHead:
        """A new tower on the frozen shared embedding; what is None is as in this backbone."""
        widths, rate = self.tower_widths if towers is None else towers, self.dropout if dropout is None else dropout
        return TowerHead("e", self.inputs.width, widths, rate, self.norm)


def both_logit(a: Tensor, b: Tensor) -> Tensor:
    """logit of the product of two probabilities, given their logits."""
    return -torch.stack([-a, -b, -a - b]).logsumexp(0)
