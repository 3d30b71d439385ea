"""Running a language model without forming its logits: what its head would read is kept instead, as Words.

In place of the head, a few known numbers are put out. What the model does to them afterwards, scaling or a soft cap,
shows in its output, so it is neither looked up by the model's kind nor forgotten; what is neither is refused.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.components._model import Model
from models.distill._words import Words, finish

__all__ = ["Unformed", "unformed"]

PROBES = (0.0, 1.0, -3.0, 40.0, 1e9)


class Unformed:
    """The head of a model inside `unformed`."""

    def __init__(self, head: nn.Module):
        self.head = head
        self.hidden: Tensor | None = None

    def put(self, hidden: Tensor) -> Tensor:
        """Stands for the head: keeps what it would read."""
        self.hidden = hidden
        return torch.tensor(PROBES, device=hidden.device).repeat(*hidden.shape[:-1], 1)

    def words(self, output: Tensor) -> Words:
        """The logits of the last forward pass; `output`: what stands where its logits should.

        Raises:
            LookupError: the model does something to its logits that Words cannot say; form them.
        """
        if self.hidden is None:
            raise LookupError("this model's head was not called in the forward pass; form its logits")
        if output.shape != (*self.hidden.shape[:-1], len(PROBES)):
            raise LookupError("this model reshapes its logits or adds to them; form them")
        seen = output.detach().flatten(0, -2)[0].double().tolist()
        cap = None if seen[4] > 1e6 * abs(seen[1]) else seen[4]
        scale = seen[1] if cap is None else cap * math.atanh(seen[1] / cap)
        wanted = finish(torch.tensor(PROBES, dtype=torch.float64), scale, cap)
        rows = output.detach().double().flatten(0, -2)
        if not torch.allclose(rows, wanted.to(rows), rtol=1e-5, atol=1e-6):
            raise LookupError(f"this model makes {seen} of logits {list(PROBES)}: neither a scale nor a cap; form them")
        return Words(self.hidden, self.head.weight, self.head.bias, float(f"{scale:.7g}"), cap)


@contextmanager
def unformed(model: nn.Module, target: str | None = None) -> Iterator[Unformed]:
    """Forward passes inside the block leave `words` in place of logits.

        with unformed(model) as head:
            words = head.words(model(input_ids=ids, attention_mask=mask).logits)

    Args:
        model: of transformers, or ours.
        target: of ours, whose `predict` is called.

    Raises:
        LookupError: it has no head that is one linear map.
    """
    head = model.targets[target].head if isinstance(model, Model) else model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise LookupError(
            f"the head of {type(model).__name__} is {type(head).__name__}, not one linear map: form logits"
        )
    kept, before = Unformed(head), vars(head).get("forward")  # which another library may have put there
    head.forward = kept.put
    try:
        yield kept
    finally:
        del head.forward
        if before is not None:
            head.forward = before
