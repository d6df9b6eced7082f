"""From scores of the whole catalog to the best unseen items."""

from collections.abc import Sequence

import numpy as np


def top_k(scores: np.ndarray, seen: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row that were not seen; ties go to the lower index.

    Only the candidates for the first k are sorted, never a whole row (unless k reaches the catalog).

    Args:
        scores: [B, J] float, higher is better; left as they are. An item scored −inf is never returned.
        seen: items to leave out of each row; a list of B int arrays or `Histories`.
        k: how many.

    Returns:
        items [B, k] int64, best first, and their scores [B, k] in the scores' dtype; −1 and −inf where a row has
        fewer than k unseen items.

    Raises:
        ValueError: if a score is NaN or not a floating-point number, the rows do not match, k is not positive, or a
            seen item lies outside the catalog.
    """
    if scores.ndim != 2 or len(scores) != len(seen):
        raise ValueError(
            f"Expected scores of shape [{len(seen)}, J], one row a list of seen items; got {scores.shape}"
        )
    if not np.issubdtype(scores.dtype, np.floating):
        raise ValueError(f"Expected floating-point scores; got {scores.dtype}. Convert them by .astype(np.float32)")
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    is_nan = np.isnan(scores)
    if is_nan.any():
        row = int(is_nan.any(axis=1).argmax())
        count, item = int(is_nan[row].sum()), int(is_nan[row].argmax())
        raise ValueError(
            f"Row {row} of the scores holds {count} NaN, the first at item {item};"
            " every item needs a number (−inf to leave it out)"
        )
    left = scores.copy()
    _leave_out(left, seen)
    num_items = scores.shape[1]
    items = np.full((len(left), k), -1, dtype=np.int64)
    values = np.full((len(left), k), -np.inf, dtype=scores.dtype)
    for row, row_scores in enumerate(left):
        if k < num_items:
            border = np.partition(row_scores, num_items - k)[num_items - k]
            # all that reach the k-th score, so that ties at the border are broken by index too
            candidates = np.flatnonzero(row_scores >= border) if border > -np.inf else _ranked(row_scores)
            if len(candidates) > k:
                above = candidates[row_scores[candidates] > border]
                tied = candidates[row_scores[candidates] == border]
                candidates = np.concatenate([above, tied[: k - len(above)]])
        else:
            candidates = _ranked(row_scores)
        # the candidates of equal score stand in the order of their indices, which a stable sort keeps
        best = candidates[np.argsort(-row_scores[candidates], kind="stable")]
        items[row, : len(best)] = best
        values[row, : len(best)] = row_scores[best]
    return items, values


def _ranked(row_scores: np.ndarray) -> np.ndarray:
    return np.flatnonzero(row_scores > -np.inf)


def _leave_out(scores: np.ndarray, seen: Sequence[np.ndarray]) -> None:
    rows = [np.asarray(items, dtype=np.int64) for items in seen]
    if not rows:
        return
    items = np.concatenate(rows)
    outside = items[(items < 0) | (items >= scores.shape[1])]
    if len(outside):
        # a negative index would silently leave out an item from the end of the catalog
        raise ValueError(f"Seen item {int(outside[0])} lies outside the catalog of {scores.shape[1]} items")
    scores[np.repeat(np.arange(len(rows)), [len(row) for row in rows]), items] = -np.inf
