"""A model and a split -> predictions and metrics per task, on the rows where the task's label is present."""

import numpy as np
import torch
from torch import nn

from models.metrics import auc, calibration, logloss
from tasks.batches import in_order

__all__ = ["metrics", "predict"]


@torch.no_grad()
def predict(model: nn.Module, categorical: np.ndarray, numerical: np.ndarray, batch: int = 8192) -> torch.Tensor:
    """Served probabilities of every task, (N, T) float32 on the CPU; the model is put into eval mode."""
    model.eval()
    device = next(model.parameters()).device
    rows = in_order({"categorical": categorical, "numerical": numerical}, batch)
    return torch.cat([model.score(*(part.to(device) for part in row.values())).float().cpu() for row in rows])


def metrics(probability: torch.Tensor, label: torch.Tensor) -> dict[str, float | int]:
    """AUC, logloss, calibration and counts of one task.

    Args:
        probability: (N,) in [0, 1].
        label: (N,) 1, 0, or negative or NaN where absent.
    """
    here = label >= 0  # false for NaN as well
    probability, label = probability[here], label[here].float()
    return {
        "auc": float(auc(probability, label)),
        "logloss": float(logloss(probability, label)),
        "calibration": float(calibration(probability, label)),
        "rows": len(label),
        "positives": int(label.sum()),
    }
