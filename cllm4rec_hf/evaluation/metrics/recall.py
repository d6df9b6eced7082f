"""Recall with the paper's denominator."""

from collections.abc import Sequence

import numpy as np

from .hits import hits_to_depth, num_relevant


def recall(ranked: np.ndarray, relevant: Sequence[np.ndarray], k: int, *, hit: np.ndarray | None = None) -> np.ndarray:
    """Recall@k = (relevant items among the first k) / min(k, number of relevant items).

    With that denominator 1 can be reached by users with more than k relevant items too (Liang et al., WWW 2018).

    Args:
        ranked: [B, K] int item indices, best first, −1 for none; K >= k.
        relevant: distinct relevant items of each row; a list of B int arrays or `Histories`.
        k: depth.
        hit: [B, K] bool, `hits(ranked, relevant)` where it is already known.

    Returns:
        [B] float64; NaN for users without a relevant item.

    Raises:
        ValueError: if k is not positive, the ranking is shorter than k, or the rows do not match.
    """
    found = hits_to_depth(ranked, relevant, k, hit).sum(axis=1)
    possible = np.minimum(k, num_relevant(relevant))
    return np.divide(found, possible, out=np.full(len(found), np.nan), where=possible > 0)
