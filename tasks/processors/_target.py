"""What is to be said after something else: by a decoder, or by the same Transformer behind a prefix."""

import numpy as np

__all__ = ["prefixed", "target"]


def target(tokens: np.ndarray, start: int, end: int) -> dict[str, np.ndarray]:
    """Teacher forcing: target_ids `start t1 .. tn`, labels_lm `t1 .. tn end`, both (n + 1,) int64.

    >>> {name: value.tolist() for name, value in target(np.array([5, 6]), start=1, end=2).items()}
    {'target_ids': [1, 5, 6], 'labels_lm': [5, 6, 2]}
    """
    tokens = np.asarray(tokens, np.int64)
    return {"target_ids": np.concatenate([[start], tokens]), "labels_lm": np.concatenate([tokens, [end]])}


def prefixed(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """A row of two parts, of which `after` is predicted, its first token by the last place of `before`.

    >>> prefixed(np.array([1, 2]), np.array([3, 4]))["labels_lm"].tolist()
    [-100, 3, 4, -100]
    """
    ids = np.concatenate([before, after])
    labels = np.full(len(ids), -100, np.int64)
    labels[len(before) - 1 : -1] = after
    rest = np.arange(len(ids)) >= len(before)
    return {"ids": ids, "segments": rest.astype(np.int64), "prefix": ~rest, "labels_lm": labels}
