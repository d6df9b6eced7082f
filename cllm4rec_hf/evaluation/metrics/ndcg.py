"""Normalised discounted cumulative gain with binary relevance."""

from collections.abc import Sequence

import numpy as np

from .hits import hits_to_depth, num_relevant


def ndcg(ranked: np.ndarray, relevant: Sequence[np.ndarray], k: int, *, hit: np.ndarray | None = None) -> np.ndarray:
    """NDCG@k = Σ_{relevant at rank r <= k} 1/log₂(r + 1) / Σ_{r = 1}^{min(k, relevant)} 1/log₂(r + 1).

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
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gain = hits_to_depth(ranked, relevant, k, hit) @ discounts
    possible = np.minimum(k, num_relevant(relevant))
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[possible]
    return np.divide(gain, ideal, out=np.full(len(gain), np.nan), where=possible > 0)
