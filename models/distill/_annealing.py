"""A temperature that falls in steps."""

import math

__all__ = ["annealed"]


def annealed(progress: float, levels: int) -> float:
    """phi = 1 - (k - 1) / levels with k = max(1, ceil((1 - progress) levels)): from 1 / levels up to 1.

    >>> [annealed(p, 4) for p in (0, 0.3, 0.5, 1)]
    [0.25, 0.5, 0.75, 1.0]

    Source: Jafari et al., 2021, arXiv:2104.07163.
    """
    return 1 - (max(1, math.ceil((1 - progress) * levels - 1e-9)) - 1) / levels  # 1e-9: what rounding adds is no level
