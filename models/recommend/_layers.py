"""Parts of the multi-task recommenders: perceptrons side by side, gates, a reversed gradient, masked losses, heads.

Sizes: B rows, N perceptrons side by side, T tasks, D width of a row's vector e, H width of a layer.
Every layer starts as torch's Linear does, uniform in +-1/sqrt(fan-in), weights and biases alike.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.recommend._inputs import Inputs

__all__ = [
    "Block",
    "Experts",
    "GateHead",
    "Head",
    "Joint",
    "MultiTask",
    "ParallelLinear",
    "Perceptrons",
    "TowerHead",
    "Towers",
    "bce_per_row",
    "bce_per_task",
    "gate",
    "half_square",
    "mix",
    "named",
    "per_layer",
    "relu_dropout",
    "require_frozen",
    "reverse_gradient",
]


class Joint(nn.Module):
    """Linear layers that all read the same e, computed as one product.

    Args:
        width: D of the vector e.
        sizes: outputs of each layer.
        plain: outputs of one more layer, which has no bias; 0 for none.
    """

    def __init__(self, width: int, sizes: Sequence[int], plain: int = 0):
        super().__init__()
        self.sizes, self.plain = [*sizes, *([plain] if plain else [])], plain
        self.weight = nn.Parameter(torch.empty(sum(self.sizes), width))
        self.bias = nn.Parameter(torch.empty(sum(sizes)))
        for parameter in self.parameters():
            parameter.data.uniform_(-(width**-0.5), width**-0.5)

    def forward(self, inputs: Inputs, categorical: Tensor, numerical: Tensor) -> tuple[Tensor, ...]:
        """One (B, size) for each layer, in the order of `sizes`; the one without bias last."""
        bias = F.pad(self.bias, (0, self.plain))
        return inputs.project_split(categorical, numerical, self.weight, bias, self.sizes)

    def rows(self, layer: int) -> Tensor:
        """The weight of one layer: a (size, D) view of the common weight."""
        return self.weight.split(self.sizes)[layer]


class ParallelLinear(nn.Module):
    """N linear layers side by side, each on its own input: (B, N, I) -> (B, N, O) as one batched product."""

    def __init__(self, count: int, width: int, out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width, out).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(count, 1, out).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x_BNI: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x_BNI.transpose(0, 1), self.weight).transpose(0, 1)

    def apart(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The same for N inputs (B, I), one after another."""
        return [torch.addmm(*layer) for layer in zip(self.bias.unbind(), parts, self.weight.unbind(), strict=True)]


class Norm(nn.Module):
    """Batch normalisation of N layers of H outputs: every feature by statistics of its own, so nothing mixes.

    One row alone has no variance: in training it is normalised by the running statistics, which it leaves as they are.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count, width))
        self.bias = nn.Parameter(torch.zeros(count, width))
        self.register_buffer("running_mean", torch.zeros(count, width))
        self.register_buffer("running_var", torch.ones(count, width))

    def forward(self, x_BNH: Tensor) -> Tensor:
        state = (self.running_mean, self.running_var, self.weight, self.bias)
        return self._norm(x_BNH.flatten(1), *(part.flatten() for part in state)).view(x_BNH.shape)

    def apart(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The same for N inputs (B, H), one after another."""
        state = (self.running_mean, self.running_var, self.weight, self.bias)
        return [self._norm(*part) for part in zip(parts, *(part.unbind() for part in state), strict=True)]

    def _norm(self, x_BH: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x_BH, mean, var, weight, bias, training=self.training and len(x_BH) > 1)


class Block(nn.Module):
    """What follows a hidden linear layer, N side by side: (batch norm,) ReLU (, dropout); (B, N, H) -> (B, N, H)."""

    def __init__(self, count: int, width: int, dropout: float, norm: bool):
        super().__init__()
        self.norm = Norm(count, width) if norm else None
        self.dropout = dropout

    def forward(self, x_BNH: Tensor) -> Tensor:
        return self._activate(x_BNH if self.norm is None else self.norm(x_BNH))

    def apart(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The same for N inputs (B, H), one after another."""
        return [self._activate(part) for part in (parts if self.norm is None else self.norm.apart(parts))]

    def _activate(self, x: Tensor) -> Tensor:
        return relu_dropout(x, self.dropout) if self.training and self.dropout else F.relu(x)


class Perceptrons(nn.Module):
    """N perceptrons side by side: `layers`, each of them for all N."""

    layers: nn.Sequential

    def run(self, parts: Sequence[Tensor]) -> Tensor:
        """N inputs (B, I) -> (B, N, O).

        A GPU takes all N at once. On a CPU one after another is faster: a layer of one still lies in the cache when its
        norm and activation follow.
        """
        if parts[0].is_cuda or torch.compiler.is_compiling():
            return self.layers(torch.stack(list(parts), 1))
        for layer in self.layers:
            parts = layer.apart(parts)
        return torch.stack(list(parts), 1)


class Experts(Perceptrons):
    """N perceptrons of equal widths, after their first linear layer: N times (B, widths[0]) -> (B, N, widths[-1]).

    That first layer reads e and belongs to a `Joint`. Every layer, also the last, ends in a ReLU.

    Args:
        count: N.
        widths: outputs of each layer.
        dropout: a rate for all layers, or one for each.
        norm: batch normalisation before each ReLU.
    """

    def __init__(self, count: int, widths: Sequence[int], dropout: float | Sequence[float] = 0.0, norm: bool = False):
        super().__init__()
        self.count, self.width = count, widths[-1]
        rates = per_layer(dropout, widths)
        layers: list[nn.Module] = [Block(count, widths[0], rates[0], norm)]
        for (width, out), rate in zip(pairwise(widths), rates[1:], strict=True):
            layers += [ParallelLinear(count, width, out), Block(count, out, rate, norm)]
        self.layers = nn.Sequential(*layers)

    def forward(self, first: Sequence[Tensor]) -> Tensor:
        return self.run(first)


class Towers(Perceptrons):
    """N perceptrons that end in one logit each: (B, N, width) -> (B, N). The last layer is linear."""

    def __init__(
        self, count: int, width: int, widths: Sequence[int], dropout: float | Sequence[float] = 0.0, norm: bool = False
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for (before, after), rate in zip(pairwise([width, *widths]), per_layer(dropout, widths), strict=True):
            layers += [ParallelLinear(count, before, after), Block(count, after, rate, norm)]
        self.layers = nn.Sequential(*layers, ParallelLinear(count, [width, *widths][-1], 1))

    def forward(self, z_BNH: Tensor) -> Tensor:
        return self.run(z_BNH.unbind(1)).squeeze(-1)


class MultiTask(nn.Module):
    """Loss and probabilities of a method that only says `logits(categorical, numerical) -> (B, T)`.

    `weigh` turns the tasks' losses (T,) into one: mean as in MTReclib, sum where the method's paper sums.
    """

    weigh = staticmethod(torch.mean)

    def forward(self, categorical: Tensor, numerical: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its terms.

        Args:
            categorical: (B, F) ids.
            numerical: (B, M) float.
            labels: (B, T) 1 or 0; NaN or negative where absent.
        """
        return self.losses(self.logits(categorical, numerical), labels)

    def losses(self, logit_BT: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighed loss of all tasks, and its terms."""
        per_task = bce_per_task(logit_BT, labels)
        loss = self.weigh(per_task)
        return loss, {"loss": loss, **named(per_task)}

    def score(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """Served probabilities (B, T), float32."""
        return self.logits(categorical, numerical).float().sigmoid()


class Head(nn.Module):
    """A new task's model on a frozen backbone: `forward(represented) -> logit (B,)`, and its training loss."""

    def loss(self, represented: dict[str, Tensor], label: Tensor) -> Tensor:
        """Mean binary cross entropy over the rows whose `label` (B,) is present, in nats."""
        return bce_per_task(self(represented).unsqueeze(-1), label.unsqueeze(-1))[0]


class TowerHead(Head):
    """A new tower on the frozen representation `reads` (B, width)."""

    def __init__(self, reads: str, width: int, towers: Sequence[int], dropout: float | Sequence[float], norm: bool):
        super().__init__()
        self.reads = reads
        self.tower = Towers(1, width, towers, dropout, norm)

    def forward(self, represented: dict[str, Tensor]) -> Tensor:
        return self.tower(represented[self.reads].unsqueeze(1)).squeeze(1)


class GateHead(Head):
    """A new gate over frozen experts, and a new tower: logit = tower(sum_i softmax(W x + b)_i f_i).

    It reads x (B, width) and f (B, experts, H).
    """

    def __init__(
        self,
        width: int,
        experts: int,
        expert_width: int,
        towers: Sequence[int],
        dropout: float | Sequence[float],
        norm: bool,
    ):
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.tower = Towers(1, expert_width, towers, dropout, norm)

    def forward(self, represented: dict[str, Tensor]) -> Tensor:
        gate_B1N = gate(self.gate(represented["x"]), 1)
        return self.tower(mix(gate_B1N, represented["f"])).squeeze(1)


def gate(logit_BO: Tensor, count: int) -> Tensor:
    """`count` softmax gates from their logits side by side: (B, count * N) -> (B, count, N), rows sum to 1, float32."""
    return logit_BO.unflatten(-1, (count, -1)).float().softmax(-1)


def mix(gate_BTN: Tensor, f_BNH: Tensor) -> Tensor:
    """Each task's weighted sum of experts: (B, T, H)."""
    return torch.bmm(gate_BTN.to(f_BNH.dtype), f_BNH)


def bce_per_task(logit_BT: Tensor, label_BT: Tensor) -> Tensor:
    """Binary cross entropy per task, averaged over its present labels: (T,) nats, float32.

    A label is absent where it is NaN or negative: no loss and no gradient; a task without any present label gives 0.
    """
    loss_BT, present_BT = bce_per_row(logit_BT, label_BT)
    return loss_BT.sum(0) / present_BT.sum(0).clamp(min=1)


def bce_per_row(logit_BT: Tensor, label_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of each row and task, 0 where the label is absent, and where it is present: both (B, T).

    Raises:
        ValueError: the labels have another shape than the logits.
    """
    if logit_BT.shape != label_BT.shape:
        raise ValueError(
            f"labels must be {tuple(logit_BT.shape)}, one column for each task; got {tuple(label_BT.shape)}"
        )
    present_BT = label_BT >= 0  # false for NaN too
    label_BT = torch.where(present_BT, label_BT, 0).float()
    loss_BT = F.binary_cross_entropy_with_logits(logit_BT.float(), label_BT, reduction="none")
    return torch.where(present_BT, loss_BT, 0), present_BT


def half_square(*weights: Tensor) -> Tensor:
    """1/2 of the sum of squares of all weights, in float32 also under autocast."""
    return sum(torch.linalg.vector_norm(weight.float()).square() for weight in weights) / 2


def named(per_task: Tensor) -> dict[str, Tensor]:
    """Losses (T,) as terms: {"task_0": ..., ...}."""
    return {f"task_{i}": value for i, value in enumerate(per_task)}


def per_layer(dropout: float | Sequence[float], widths: Sequence[int]) -> list[float]:
    """One dropout rate for each layer.

    Raises:
        ValueError: as many rates as layers are needed, each in [0, 1).
    """
    rates = [float(dropout)] * len(widths) if isinstance(dropout, (int, float)) else [float(rate) for rate in dropout]
    if len(rates) != len(widths) or not all(0 <= rate < 1 for rate in rates):
        raise ValueError(f"dropout must be a rate in [0, 1), or one for each width of {list(widths)}; got {dropout}")
    return rates


def require_frozen(model: nn.Module) -> None:
    """Refuse to represent rows with dropout or batch statistics at work.

    Raises:
        RuntimeError: the model is in training mode.
    """
    if model.training:
        raise RuntimeError(
            f"{type(model).__name__} is in training mode, where each call shows something else; call eval()"
        )


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate):
        limit = round(rate * 2**16)  # of the 2^16 values of a draw, so many drop
        ctx.scale = 1 / (1 - limit / 2**16)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draw = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = torch.empty_like(x)  # 0 or 1 in the type of x: choosing by a bool is not vectorised
        y = x.clamp(min=0).mul_(torch.ge(draw, limit - 2**15, out=keep).mul_(ctx.scale))
        ctx.save_for_backward(y)  # positive exactly where the gradient passes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, y, 0).mul_(ctx.scale), None


def relu_dropout(x: Tensor, rate: float) -> Tensor:
    """dropout(relu(x)) for training: each output is 0 with chance `rate`, or scaled by 1 / (1 - rate).

    On a CPU the draws of torch's dropout cost as much as a small matrix product. Here four share one random number of
    64 bits, so the rate is rounded to a multiple of 2^-16, and the scale fits the rounded rate.
    """
    if x.is_cuda or torch.compiler.is_compiling():
        return F.dropout(F.relu(x), rate)
    return _ReluDropout.apply(x, rate)


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(alpha)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        (alpha,) = ctx.saved_tensors
        return -alpha.to(gradient.dtype) * gradient, None


def reverse_gradient(x: Tensor, alpha: Tensor) -> Tensor:
    """x itself; on the way back its gradient is multiplied by -alpha (a scalar tensor).

    Source: Ganin and Lempitsky, 2015, arXiv:1409.7495.
    """
    return _ReverseGradient.apply(x, alpha)
