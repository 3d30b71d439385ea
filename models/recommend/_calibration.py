"""Scores -> probabilities: logistic regression with signed slopes (Platt), and the best rising steps (isotonic)."""

import torch
from torch import Tensor, nn

__all__ = ["Isotonic", "Platt"]

STEPS, CLOSE = 100, 1e-10  # of Newton's method; gradient per row at which it has arrived
RIDGE = 1e-9  # per row, on the slopes: keeps them finite where a score separates the classes


class Platt(nn.Module):
    """p = sigmoid(b_0 + sum_f b_f x_f), fitted by maximum likelihood in float64.

    The intercept is free, so that on the rows of the fit the mean prediction is the mean label.

    Args:
        features: F.
        signs: for each feature 1 where its slope must not be negative, -1 where not positive, 0 where free; None: all
            free. A slope that would have the wrong sign becomes 0.

    Source: Platt, 1999, "Probabilistic outputs for support vector machines", with several features; signs are ours.
    """

    def __init__(self, features: int, signs: list[int] | None = None):
        super().__init__()
        self.signs = [0] * features if signs is None else list(signs)
        if features < 1 or len(self.signs) != features or not set(self.signs) <= {-1, 0, 1}:
            raise ValueError(f"Platt needs at least one feature and a sign of -1, 0 or 1 for each; got {features} "
                             f"features and signs {signs}")  # fmt: skip
        self.register_buffer("slope", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("intercept", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, x_NF: Tensor, label_N: Tensor) -> "Platt":
        """Fit to rows; returns itself.

        Raises:
            ValueError: no row, a number that is not finite, or labels of one class only.
        """
        x, y = x_NF.double(), label_N.double()
        positives = int(y.sum())
        if x.shape != (len(y), len(self.signs)) or not torch.isfinite(x).all() or positives in (0, len(y)):
            raise ValueError(f"calibration needs finite rows (N, {len(self.signs)}) with labels 0 and 1; got "
                             f"{tuple(x.shape)}, {int((~torch.isfinite(x)).sum())} numbers not finite, {positives} of "
                             f"{len(y)} labels 1")  # fmt: skip
        centre, spread = x.mean(0), x.std(0, unbiased=False)
        spread = torch.where(spread > 0, spread, 1)
        scaled = torch.cat([torch.ones(len(y), 1, dtype=x.dtype, device=x.device), (x - centre) / spread], 1)
        free = torch.ones(scaled.shape[1], dtype=torch.bool, device=x.device)
        while True:
            weight = scaled.new_zeros(scaled.shape[1])
            weight[free] = _newton(scaled[:, free], y)
            wrong = [f for f, sign in enumerate(self.signs) if weight[f + 1] * sign < 0]
            if not wrong:
                break
            free[torch.tensor(wrong, device=x.device) + 1] = False
        self.slope.copy_(weight[1:] / spread)
        self.intercept.copy_(weight[0] - (self.slope * centre).sum())
        return self

    @torch.no_grad()
    def forward(self, x_NF: Tensor) -> Tensor:
        """(..., F) -> (...,) float64 in [0, 1]."""
        return torch.sigmoid(self.intercept + (x_NF.double() * self.slope).sum(-1))


class Isotonic(nn.Module):
    """The rising step function of a score with the least squared error; straight lines between the steps' ends.

    Source: Zadrozny and Elkan, 2002, doi:10.1145/775047.775151; pool adjacent violators: Ayer et al., 1955.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("score", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("value", torch.zeros(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, score_N: Tensor, label_N: Tensor) -> "Isotonic":
        """Fit to rows; returns itself.

        Raises:
            ValueError: no row, or a score that is not finite.
        """
        score, label = score_N.double().cpu(), label_N.double().cpu()
        if not len(score) or score.shape != label.shape or not torch.isfinite(score).all():
            odd = int((~torch.isfinite(score)).sum())
            raise ValueError(f"isotonic calibration needs finite scores, one a label; got {tuple(score.shape)} scores, "
                             f"{odd} not finite, and {tuple(label.shape)} labels")  # fmt: skip
        at, place, rows = score.unique(return_inverse=True, return_counts=True)
        mean = torch.zeros_like(at).index_add_(0, place, label) / rows
        blocks: list[list[float]] = []  # value, rows, first score, last score
        for value, count, where in zip(mean.tolist(), rows.tolist(), at.tolist(), strict=True):
            blocks.append([value, count, where, where])
            while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
                value, count, _, last = blocks.pop()
                before = blocks[-1]
                before[0] = (before[0] * before[1] + value * count) / (before[1] + count)
                before[1], before[3] = before[1] + count, last
        ends = [(block[k], block[0]) for block in blocks for k in ((2, 3) if block[2] < block[3] else (2,))]
        for name, column in zip(("score", "value"), zip(*ends, strict=True), strict=True):
            setattr(self, name, torch.tensor(column, dtype=torch.float64, device=score_N.device))
        return self

    @torch.no_grad()
    def forward(self, score_N: Tensor) -> Tensor:
        """(N,) -> (N,) float64; beyond the fitted scores the first and the last value."""
        if len(self.score) == 1:
            return self.value.expand(len(score_N)).clone()
        x = score_N.double().clamp(self.score[0], self.score[-1])
        right = torch.searchsorted(self.score, x).clamp(1, len(self.score) - 1)
        low, high = self.score[right - 1], self.score[right]
        return torch.lerp(self.value[right - 1], self.value[right], (x - low) / (high - low))

    def _load_from_state_dict(self, state, prefix, *rest):
        for name in ("score", "value"):  # as many steps as the fit found
            if f"{prefix}{name}" in state:
                setattr(self, name, torch.empty_like(state[f"{prefix}{name}"], device=self.score.device))
        super()._load_from_state_dict(state, prefix, *rest)


def _newton(x: Tensor, y: Tensor) -> Tensor:
    """Weights of the logistic regression of y on columns x, the first of which is the intercept."""
    rate = y.mean()
    weight = x.new_zeros(x.shape[1])
    weight[0] = torch.logit(rate)
    ridge = torch.full_like(weight, RIDGE)
    ridge[0] = 0
    loss = lambda w: torch.nn.functional.softplus(x @ w).mean() - (y * (x @ w)).mean() + (ridge * w * w).sum() / 2
    for _ in range(STEPS):
        p = torch.sigmoid(x @ weight)
        gradient = x.mT @ (p - y) / len(y) + ridge * weight
        if gradient.abs().max() < CLOSE:
            break
        curvature = (x * (p * (1 - p))[:, None]).mT @ x / len(y) + torch.diag(ridge + 1e-12)
        step = torch.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(weight)
        while loss(weight - size * step) > before and size > 1e-6:
            size /= 2
        weight = weight - size * step
    return weight
