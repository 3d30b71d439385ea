"""Extra memory of one divergence with its gradients, by number of tokens; its own process, as peaks never fall.

    python -m tests.models.distill._memory KIND chunked|plain TOKENS
"""

import resource
import sys

import torch

from models.distill._divergence import Divergence, word_divergence
from models.distill._words import Words

WIDTH, VOCABULARY, ROWS = 32, 8192, 64


def peak() -> int:
    """Bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def extra(kind: str, chunked: bool, tokens: int) -> int:
    """Bytes beyond inputs and the buffers of gradients."""
    weights = [torch.randn(VOCABULARY, WIDTH).requires_grad_(), torch.randn(VOCABULARY, WIDTH)]

    def step(tokens: int) -> int:
        states = [torch.randn(tokens, WIDTH).requires_grad_(), torch.randn(tokens, WIDTH)]
        before = peak()
        student, teacher = (Words(h, w) for h, w in zip(states, weights, strict=True))
        if not chunked:
            student, teacher = student.tensor(), teacher.tensor()
        loss = word_divergence(student, teacher, Divergence(kind), rows=ROWS)
        torch.autograd.grad(loss, [states[0], weights[0]])
        return peak() - before - 2 * states[0].nbytes  # its gradient, and that times the loss's own

    step(8)  # libraries are loaded
    return step(tokens)


if __name__ == "__main__":
    kind, how, tokens = sys.argv[1:]
    torch.set_num_threads(1)
    print(extra(kind, how == "chunked", int(tokens)))
