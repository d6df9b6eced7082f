"""Which ranked items are relevant: computed once, shared by the metrics."""

from collections.abc import Sequence

import numpy as np


def hits(ranked: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Whether each ranked item is relevant.

    Args:
        ranked: [B, K] int item indices, best first, −1 for none.
        relevant: distinct relevant items of each row; a list of B int arrays or `Histories`.

    Returns:
        [B, K] bool; never true at −1.

    Raises:
        ValueError: if there is not one list of relevant items for each row.
    """
    if ranked.ndim != 2 or len(ranked) != len(relevant):
        raise ValueError(
            f"Expected ranked items of shape [{len(relevant)}, K], a row for each list of relevant items; "
            f"got {ranked.shape}"
        )
    counts = num_relevant(relevant)
    if not ranked.size or not counts.sum():
        return np.zeros(ranked.shape, dtype=bool)
    items = np.concatenate([np.asarray(row, dtype=np.int64) for row in relevant])
    # (row, item) as one number, so that all rows are looked up at once
    stride = int(max(ranked.max(), items.max())) + 1
    wanted = np.repeat(np.arange(len(ranked)), counts) * stride + items
    found = np.arange(len(ranked))[:, None] * stride + ranked.astype(np.int64)
    return np.isin(found, wanted) & (ranked >= 0)


def num_relevant(relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Number of relevant items of each row, [B] int64."""
    return np.fromiter((len(row) for row in relevant), dtype=np.int64, count=len(relevant))


def hits_to_depth(
    ranked: np.ndarray, relevant: Sequence[np.ndarray], k: int, hit: np.ndarray | None = None
) -> np.ndarray:
    """The first k columns of the hit matrix, from `hit` where it is already known.

    Args:
        ranked: [B, K] int, K >= k.
        relevant: relevant items of each row.
        k: depth of the metric.
        hit: [B, K] bool, `hits(ranked, relevant)`.

    Returns:
        [B, k] bool.

    Raises:
        ValueError: if k is not positive or the ranking is shorter than k.
    """
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(
            f"A metric at depth {k} needs 1 <= k <= {ranked.shape[1]}, the length of the rankings; "
            "rank deeper, and fill with −1 where the catalog ends"
        )
    return (hits(ranked, relevant) if hit is None else hit)[:, :k]
