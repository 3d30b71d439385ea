"""Extra memory of a divergence with its gradients, by number of tokens; a process for each, as peaks never fall.

    MALLOC_MMAP_THRESHOLD_=65536 python -m tests.models.distill._peak KIND/chunked|plain/TOKENS ...

The threshold gives every freed buffer back at once, so that what is measured is what is held.
"""

import os
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
    torch.set_num_threads(1)
    for case in sys.argv[1:]:
        if not os.fork():
            kind, how, tokens = case.split("/")
            print(extra(kind, how == "chunked", int(tokens)), flush=True)
            os._exit(0)
        if os.wait()[1]:
            sys.exit(f"{case} failed")
