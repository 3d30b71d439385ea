"""Compactors: two square matrices around a linear layer, of which only the kept rows and columns will remain.

    y = R (W (L x) + b)        R, L = identity at first

Which dimensions are kept is known to groups, one for all layers that read or write the same dimensions. Before the cut
all dimensions flow and norms look at the kept ones only; after it only the kept ones are computed.

Source: Wu et al., 2023 (WID), arXiv:2305.09098. What is multiplied first, and the cut inside of training, are ours.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CompactLinear", "CompactNorm", "Compactor", "Group", "cheapest", "multiply"]


class Group(nn.Module):
    """Dimensions that live and die together, and whether those that are lost still flow."""

    kept: Tensor
    cut: Tensor

    def __init__(self, width: int, cut: bool):
        super().__init__()
        self.register_buffer("kept", torch.ones(width, dtype=torch.bool))
        self.register_buffer("cut", torch.tensor(cut))
        self._read: tuple = ()

    @property
    def width(self) -> int:
        """Dimensions at first."""
        return len(self.kept)

    @property
    def flows(self) -> Tensor | None:
        """Numbers of the dimensions that are computed, int64; None for all of them."""
        return self._numbers()[0]

    @property
    def lasting(self) -> Tensor | None:
        """Numbers of the kept dimensions, int64; None for all of them."""
        return self._numbers()[1]

    def _numbers(self) -> tuple[Tensor | None, Tensor | None]:
        """Both lists, read again when a buffer was written or replaced: a GPU need not be asked at each layer."""
        state = (self.kept, self.kept._version, self.cut, self.cut._version)
        if not self._read or any(a is not b for a, b in zip(self._read[0], state, strict=True)):
            lasting = None if bool(self.kept.all()) else self.kept.nonzero().flatten()
            self._read = state, (lasting if bool(self.cut) else None, lasting)
        return self._read[1]


class Compactor(nn.Module):
    """The matrices of one layer.

    Args:
        reads: dimensions on the layer's input side; None for a layer without L.
        writes: on its output side; None for a layer without R.
    """

    def __init__(self, reads: Group | None = None, writes: Group | None = None):
        super().__init__()
        self.groups = (reads, writes)  # a tuple, so that a shared group is not in the state twice
        self.left = None if reads is None else nn.Parameter(torch.eye(reads.width))
        self.right = None if writes is None else nn.Parameter(torch.eye(writes.width))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., flowing inputs) -> (..., flowing outputs) through the layer, in the cheapest order."""
        left, right = self.input_side(), self.output_side()
        fold_left, fold_right = cheapest(x.numel() // x.shape[-1], len(right), *weight.shape, left.shape[1])
        if not fold_left:
            x = F.linear(x, left)
        if fold_left or fold_right:
            weight = multiply(right if fold_right else None, weight, left if fold_left else None)
        if fold_right and bias is not None:
            bias = F.linear(bias, right)
        y = F.linear(x, weight, bias)
        return y if fold_right else F.linear(y, right)

    def input_side(self) -> Tensor:
        """L of the dimensions that flow: (inputs, flowing)."""
        flows = self.groups[0].flows
        return self.left if flows is None else self.left.index_select(1, flows)

    def output_side(self) -> Tensor:
        """R of the dimensions that flow: (flowing, outputs)."""
        flows = self.groups[1].flows
        return self.right if flows is None else self.right.index_select(0, flows)

    def masks(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each matrix with what says which of its entries last: columns of L, rows of R."""
        reads, writes = self.groups
        left = [] if reads is None else [(self.left, reads.kept[None, :])]
        return left + ([] if writes is None else [(self.right, writes.kept[:, None])])


def multiply(right: Tensor | None, weight: Tensor, left: Tensor | None) -> Tensor:
    """R W L, of those that there are, in the cheaper order."""
    factors = [factor for factor in (right, weight, left) if factor is not None]
    return factors[0] if len(factors) == 1 else torch.linalg.multi_dot(factors)


def cheapest(tokens: int, writes: int, outputs: int, inputs: int, reads: int) -> tuple[bool, bool]:
    """Whether to multiply L, and R, into W (outputs x inputs) before the tokens come: the fewest multiplications.

    The backward pass does each product twice more, which changes no order.

    >>> cheapest(tokens=2048, writes=256, outputs=256, inputs=256, reads=256)
    (True, True)
    >>> cheapest(tokens=16, writes=256, outputs=256, inputs=256, reads=256)
    (False, False)
    """
    left, right = outputs * inputs * reads, writes * outputs * inputs
    both = min(left + writes * outputs * reads, right + writes * inputs * reads)
    costs = {
        (True, True): both + tokens * reads * writes,
        (True, False): left + tokens * outputs * (reads + writes),
        (False, True): right + tokens * inputs * (reads + writes),
        (False, False): tokens * (reads * inputs + inputs * outputs + outputs * writes),
    }
    return min(costs, key=costs.__getitem__)


class CompactLinear(nn.Linear):
    """A linear layer behind its compactor; it has the parameters, by the names, of the layer it stands for.

    Args:
        linear: that layer.
        compactor: of it; owned by the method, not by this layer.
    """

    def __init__(self, linear: nn.Linear, compactor: Compactor):
        super().__init__(1, 1, device="meta")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.owned_elsewhere = (compactor,)  # a tuple, so that it is not this layer's child

    def forward(self, x: Tensor) -> Tensor:
        return self.owned_elsewhere[0](x, self.weight, self.bias)


class CompactNorm(nn.LayerNorm):
    """LayerNorm with mean and deviation of the kept dimensions, which the narrow model's has; parameters as they were.

    Args:
        norm: that it stands for.
        group: of its dimensions.
        before: a compactor whose R is applied to what comes in: that of the embedding, of which tables are much longer
            than batches.
        after: a compactor whose L is applied to what goes out: that of the head, likewise.
    """

    def __init__(
        self, norm: nn.LayerNorm, group: Group, before: Compactor | None = None, after: Compactor | None = None
    ):
        super().__init__(norm.normalized_shape, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.owned_elsewhere = (group, before, after)

    def forward(self, x: Tensor) -> Tensor:
        group, before, after = self.owned_elsewhere
        if before is not None:
            x = F.linear(x, before.output_side())
        x = self._normalised(x, group)
        return x if after is None else F.linear(x, after.input_side())

    def _normalised(self, x: Tensor, group: Group) -> Tensor:
        flows, lasting = group.flows, group.lasting
        if lasting is None:
            return super().forward(x)
        if flows is not None:
            return F.layer_norm(x, flows.shape, self.weight[flows], self.bias[flows], self.eps)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
            share = group.kept.to(x.dtype) / len(lasting)  # a product with it is a mean of the kept dimensions
            centred = x - (x @ share)[..., None]
            deviation = (centred.square() @ share + self.eps).sqrt()
            return torch.addcmul(self.bias, centred / deviation[..., None], self.weight)
