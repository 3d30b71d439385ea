"""Which task a step is of: P(k) ~ |D_k|^alpha, a pure function of the seed and the number of the step.

Steps are drawn in blocks. Within a block the draws are spread evenly over the cumulated probabilities, then shuffled:
each task gets its share to within a step a block, and the mean over seeds is the law itself. The spreading is ours.
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["BLOCK", "TaskSampler", "alpha_for"]

BLOCK = 1024  # steps


def alpha_for(sizes: Mapping[str, int]) -> float:
    """1 where the sizes are within two orders of magnitude, else .75, which keeps the smallest from being forgotten.

    >>> alpha_for({"a": 100, "b": 10_000}), alpha_for({"a": 100, "b": 20_000})
    (1.0, 0.75)
    """
    return 1.0 if max(sizes.values()) <= 100 * min(sizes.values()) else 0.75


class TaskSampler:
    """The task of each step, and how many steps of that task went before.

    Args:
        sizes: rows by task.
        alpha: 1 draws tasks in proportion to their rows, 0 all alike.
        seed: of the order.

    Raises:
        ValueError: a task has no rows, or alpha is below 0.
    """

    def __init__(self, sizes: Mapping[str, int], alpha: float = 1.0, seed: int = 0):
        if not sizes:
            raise ValueError("there is no task to draw; give at least one")
        if empty := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{len(empty)} of {len(sizes)} tasks have no rows: {', '.join(empty)}; leave them out")
        if not alpha >= 0:
            raise ValueError(f"alpha must be >= 0: 1 for shares by size, 0 for equal ones; got {alpha}")
        self.names, self.seed = tuple(sizes), seed
        weights = np.array(list(sizes.values()), dtype=np.float64) ** alpha
        self.shares = weights / weights.sum()
        self._drawn: list[np.ndarray] = []  # tasks of each block
        self._before = [np.zeros(len(sizes), dtype=np.int64)]  # steps of each task before each block

    def at(self, step: int) -> tuple[str, int]:
        """The task of a step (from 0), and its number among the steps of that task."""
        block, place = divmod(step, BLOCK)
        while len(self._drawn) <= block:
            drawn = self._draw(len(self._drawn))
            self._drawn.append(drawn)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self.names)))
        drawn = self._drawn[block]
        task = drawn[place]
        return self.names[task], int(self._before[block][task] + (drawn[:place] == task).sum())

    def mix(self, steps: int) -> dict[str, float]:
        """The share of each task among the first steps."""
        found = np.bincount([self.names.index(self.at(step)[0]) for step in range(steps)], minlength=len(self.names))
        return {name: float(count / max(steps, 1)) for name, count in zip(self.names, found, strict=True)}

    def _draw(self, block: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, block])
        even = (np.arange(BLOCK) + random.random()) / BLOCK
        tasks = np.searchsorted(np.cumsum(self.shares), even, side="right").clip(max=len(self.names) - 1)
        return random.permutation(tasks)
