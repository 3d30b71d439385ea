"""What chunks cost or save in a divergence over a vocabulary: CPU time, against holding all logits.

    python benchmarks/divergence.py [--tokens 2048] [--words 30522] [--width 384] [--repeats 3]

Both ways compute the loss and the gradients of states and head, from the same numbers, in turn in one process.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.distill._divergence import Divergence, word_divergence
from models.distill._words import Words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"tokens": 2048, "words": 30522, "width": 384, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    print("| divergence | precision | plain / chunks, CPU time | range |\n|---|---|---|---|")
    for kind in ("forward", "reverse", "jsd"):
        for precision in (None, torch.bfloat16):
            ratios = [
                plain / chunks for chunks, plain in (measure(sizes, kind, precision) for _ in range(sizes.repeats))
            ]
            print(f"| {kind} | {'float32' if precision is None else 'bfloat16'} | {statistics.median(ratios):.2f} | "
                  f"{min(ratios):.2f} to {max(ratios):.2f} |", flush=True)  # fmt: skip


def measure(sizes: argparse.Namespace, kind: str, precision: torch.dtype | None) -> tuple[float, float]:
    """CPU seconds of chunks and of the plain way."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator) / size[-1] ** 0.5
    hidden, weight = draw(sizes.tokens, sizes.width).requires_grad_(), draw(sizes.words, sizes.width).requires_grad_()
    teacher = Words(draw(sizes.tokens, sizes.width), draw(sizes.words, sizes.width))
    which, seconds = Divergence(kind), []
    for way in (word_divergence, plain):
        start = time.process_time()
        with torch.autocast("cpu", precision, enabled=precision is not None):
            torch.autograd.grad(way(Words(hidden, weight), teacher, which), [hidden, weight])
        seconds.append(time.process_time() - start)
    return tuple(seconds)


def plain(student: Words, teacher: Words, which: Divergence) -> Tensor:
    """The divergence by its definition, on all logits at once."""
    with torch.no_grad():
        log_p = (teacher.hidden @ teacher.weight.mT).float().log_softmax(-1)
    log_q = (student.hidden @ student.weight.mT).float().log_softmax(-1)
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1).mean()
    if which.kind == "forward":
        return kl(log_p, log_q)
    if which.kind == "reverse":
        return kl(log_q, log_p)
    log_m = torch.logaddexp(log_p + math.log(which.mix), log_q + math.log1p(-which.mix))
    return which.mix * kl(log_p, log_m) + (1 - which.mix) * kl(log_q, log_m)


if __name__ == "__main__":
    main()
