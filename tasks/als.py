"""Fit ALS by the `implicit` library: the floor that every trained retrieval model is shown against."""

import os

from models.recommend.retrieval._log import Log
from models.recommend.retrieval.als import ALS
from tasks.progress import progress

__all__ = ["fit_als"]


def fit_als(model: ALS, log: Log, iterations: int = 15, seed: int = 0, threads: int = 1) -> None:
    """Give the model its factors; the same seed gives the same ones.

    Args:
        model: its width, alpha and regularization are used.
        log: the training pairs.
        iterations: passes over users and items (the library's default).
        seed: of the starting factors.
        threads: of the library.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the library has threads of its own, and warns of others
    import numpy as np
    import torch
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    pairs = np.ones(len(log), np.float32), log.item.cpu().numpy(), log.starts.cpu().numpy()
    fitted = AlternatingLeastSquares(factors=model.item.shape[1], regularization=model.regularization,
                                     alpha=model.alpha, iterations=iterations, num_threads=threads,
                                     random_state=seed)  # fmt: skip
    with progress(iterations, "als", "pass") as bar:
        fitted.fit(csr_matrix(pairs, (log.users, log.items)), show_progress=False, callback=lambda *_: bar.update())
    model.set(torch.from_numpy(fitted.user_factors), torch.from_numpy(fitted.item_factors))
