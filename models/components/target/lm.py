"""Language modelling: name the next token.

    logits = W h, labels already shifted

Source: Radford et al., 2019 (GPT-2); rescaled by D^-0.5 under a tied head: Raffel et al., 2019 (T5), arXiv:1910.10683.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from models.components._loss import IGNORED, head_loss
from models.components._rows import Rows
from models.components.target._labels import count_labels, read_labels

__all__ = ["LanguageModel"]


class LanguageModel(nn.Module):
    """Cross-entropy of labels_lm (B, T), the token to predict at each place, -100 where none is asked.

    Args:
        width: D.
        vocabulary: V.
        head_bias: a bias for each token (BART, PEGASUS).
        rescale: multiply hidden states by D^-0.5 first (T5 with a tied head).
        smoothing: share of probability spread over all tokens.
        z_loss: weight of the squared log-partition; 1e-4 in PaLM.
    """

    label = "labels_lm"

    def __init__(
        self,
        width: int,
        vocabulary: int,
        head_bias: bool = False,
        rescale: bool = False,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ):
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.factor = width**-0.5 if rescale else None
        self.smoothing, self.z_loss = smoothing, z_loss
        self.head = nn.Linear(width, vocabulary, head_bias)

    def count(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Labelled tokens."""
        return count_labels(batch, self.label)

    def forward(self, hidden: Tensor, rows: Rows, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> sum over labelled tokens in nats; how many are right, and with smoothing or z-loss both apart.

        `nll` is the plain cross-entropy, whose mean is the logarithm of perplexity.
        """
        labels = read_labels(batch, self.label, hidden.shape[:2])
        asked = labels != IGNORED
        loss = head_loss(
            self.read(hidden[asked]), self.head.weight, labels[asked], self.head.bias, self.smoothing, self.z_loss
        )
        terms = {"correct": loss.correct}
        if self.smoothing or self.z_loss:
            terms["nll"] = loss.nll
        if self.z_loss:
            terms["z"] = loss.z
        return loss.total, terms

    def predict(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Logits (B, T, V)."""
        return self.head(self.read(hidden))

    def read(self, hidden: Tensor) -> Tensor:
        """What the head reads, of any places (..., D)."""
        return hidden if self.factor is None else hidden * self.factor
