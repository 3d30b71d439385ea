"""Parts of the click models: the loss, the first-order term, fields as vectors, their pairs, a deep logit.

Sizes: B rows, F fields, d width of a field's vector, M numerical columns. All numerical columns together are one field,
a Linear(M, d), as in the multi-task models (ours; the papers' data sets have binned numbers or a vector for each).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.recommend._inputs import Inputs
from models.recommend._layers import Experts, Joint, Towers, bce_per_task

__all__ = ["Click", "Deep", "Fields", "FirstOrder", "bi_interaction"]


class Click(nn.Module):
    """Loss and probability of a method that only says `logits(categorical, numerical) -> (B,)`."""

    def forward(self, categorical: Tensor, numerical: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean binary cross entropy of the rows whose label is present, in nats, and its terms.

        Args:
            categorical: (B, F) ids.
            numerical: (B, M) float.
            label: (B,) 1 or 0; NaN or negative where absent.

        Raises:
            ValueError: the labels have another shape.
        """
        loss = click_loss(self.logits(categorical, numerical), label)
        return loss, {"loss": loss}

    def score(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Served probabilities (B,), float32."""
        return self.logits(categorical, numerical).float().sigmoid()


def click_loss(logit: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross entropy over the rows whose label is present: scalar, float32, 0 without any."""
    return bce_per_task(logit.unsqueeze(-1), label.unsqueeze(-1))[0]


class Fields(nn.Module):
    """The vectors of a row's fields, the numerical columns as the first where there are any.

    Attributes:
        inputs: the joined vector and cheap products with it.
        count: F.

    Raises:
        ValueError: fewer fields than the method crosses.
    """

    def __init__(self, sizes: list[int], dense: int, embedding: int, least: int = 1):
        super().__init__()
        self.inputs = Inputs(sizes, dense, embedding, project_dense=True)
        self.count = self.inputs.width // embedding
        if self.count < least:
            raise ValueError(f"this method crosses fields and needs {least} or more; got sizes={sizes}, dense={dense} "
                             f"(all numerical columns are one field): add columns, or take wide_deep")  # fmt: skip

    def forward(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """(B, F, d)."""
        return self.inputs(categorical, numerical).unflatten(-1, (self.count, -1))


class FirstOrder(nn.Module):
    """w_0 + sum_f w_f[x_f] + <w, numerical>, which starts at 0: (B,)."""

    def __init__(self, sizes: list[int], dense: int):
        super().__init__()
        self.inputs = Inputs(sizes, dense, 1)
        self.numerical = nn.Parameter(torch.zeros(dense))
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.inputs.table)

    def forward(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        e_BD = self.inputs(categorical, numerical)
        dense = len(self.numerical)
        return e_BD[:, :dense] @ self.numerical + e_BD[:, dense:].sum(-1) + self.bias


class Deep(nn.Module):
    """A perceptron on the joined vector e; its first layer multiplies a batch's distinct ids once.

    Args:
        inputs: what makes e; not registered here, its owner trains it.
        widths: hidden layers.
        out: True ends in one logit (B,), False in the last hidden layer (B, widths[-1]).
    """

    def __init__(self, inputs: Inputs, widths: Sequence[int], dropout: float, norm: bool = False, out: bool = True):
        super().__init__()
        self.first = Joint(inputs.width, [widths[0]])
        self.hidden = Experts(1, widths, dropout, norm)
        self.out = Towers(1, widths[-1], ()) if out else None

    def forward(self, inputs: Inputs, categorical: Tensor, numerical: Tensor) -> Tensor:
        z_B1H = self.hidden(self.first(inputs, categorical, numerical))
        return z_B1H.squeeze(1) if self.out is None else self.out(z_B1H).squeeze(-1)


def bi_interaction(v_BFd: Tensor) -> Tensor:
    """sum of v_i * v_j over all pairs of fields, in time linear in their number: (B, d).

    >>> bi_interaction(torch.tensor([[[1.0], [2.0], [3.0]]]))
    tensor([[11.]])
    """
    return (v_BFd.sum(1).square() - v_BFd.square().sum(1)) / 2
