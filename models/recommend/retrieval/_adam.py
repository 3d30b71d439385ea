"""Adam from gradients that hold the touched rows only: all rows step as in Adam or, another algorithm, these alone."""

import torch

__all__ = ["LazyAdam", "RowAdam"]


class RowAdam(torch.optim.Adam):
    """torch.optim.Adam, fused, for parameters of which some have row-sparse gradients; the steps are Adam's.

    The rows are added to a gradient of zeros that is kept for all steps, and are made zero again after the update: no
    dense gradient is made, zeroed or added up.
    """

    def __init__(self, parameters, learning_rate: float, weight_decay: float = 0.0):
        super().__init__(parameters, learning_rate, weight_decay=weight_decay, fused=True)
        self.kept: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure=None):
        """One update; gradients that were sparse are None after it."""
        touched = []
        for parameter in (each for group in self.param_groups for each in group["params"]):
            if parameter.grad is not None and parameter.grad.is_sparse:
                row, value = parameter.grad._indices()[0], parameter.grad._values()
                if parameter not in self.kept:
                    self.kept[parameter] = torch.zeros_like(parameter)
                parameter.grad = self.kept[parameter].index_add_(0, row, value)
                touched.append((parameter, row))
        loss = super().step(closure)
        for parameter, row in touched:
            parameter.grad = None
            self.kept[parameter].index_fill_(0, row, 0)
        return loss


class LazyAdam(torch.optim.Optimizer):
    """torch.optim.SparseAdam's steps in less time: a row that no gradient touches neither moves nor forgets.

    Args:
        parameters: with row-sparse gradients.
        learning_rate: of Adam.
        betas: of Adam.
        eps: of Adam.
    """

    def __init__(self, parameters, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(parameters, {"lr": learning_rate, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of the touched rows."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (first, second) = state["step"].item(), group["betas"]
        row, place = parameter.grad._indices()[0].unique(return_inverse=True)
        value = parameter.grad._values()
        grad = value.new_zeros(len(row), *value.shape[1:]).index_add_(0, place, value)
        mean = state["exp_avg"].index_select(0, row).lerp_(grad, 1 - first)
        square = state["exp_avg_sq"].index_select(0, row).mul_(second).addcmul_(grad, grad, value=1 - second)
        state["exp_avg"].index_copy_(0, row, mean)
        state["exp_avg_sq"].index_copy_(0, row, square)
        size = -group["lr"] * (1 - second**step) ** 0.5 / (1 - first**step)
        parameter.index_add_(0, row, mean.div_(square.sqrt_().add_(group["eps"])), alpha=size)
