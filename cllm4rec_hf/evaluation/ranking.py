"""From scores of the catalog to the best unseen items of each row."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# scores are first reduced to the maxima of so many neighbours: nothing but the best k groups can hold the best k items
_GROUP = 64
_SMALL_GROUP = 8


class BestItems:
    """The k best items of each row, of scores that come in blocks of items; ties go to the lower index.

    What it returns does not depend on how the catalog is cut into blocks. A whole row is never sorted: k groups of
    neighbours are chosen by their maxima, and only their items are compared with the best so far.

    Args:
        rows: number of rows B.
        k: how many.
        dtype: the scores' dtype.
        device: where the scores are.
    """

    def __init__(self, rows: int, k: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None):
        self.items = torch.full((rows, k), -1, dtype=torch.int64, device=device)
        self.values = torch.full((rows, k), -torch.inf, dtype=dtype, device=device)
        self._num_items = 0

    def add(self, scores: Tensor) -> None:
        """Take in the next items of the catalog.

        Args:
            scores: [B, n], higher is better, no NaN; of the n items that follow those of the blocks before. An item
                scored −inf is never among the best.
        """
        first, k = self._num_items, self.items.shape[1]
        self._num_items += scores.shape[1]
        groups = _grouped(scores, _GROUP)
        maxima = groups.amax(-1)
        # a later item has to be better than the last one so far: as good is not enough
        rows = (maxima.amax(1) > self.values[:, -1]).nonzero().squeeze(1)
        if not len(rows):
            return
        chosen = _top_positions(maxima[rows], min(k, maxima.shape[1]))
        candidates = groups[rows.unsqueeze(1), chosen].flatten(1)
        items = first + _members(chosen, _GROUP)
        # among equals, positions in this pool are in the order of the items' indices
        values = torch.cat([self.values[rows], candidates], dim=1)
        items = torch.cat([self.items[rows], items], dim=1)
        best = _top_positions(values, k)
        values, items = values.gather(1, best), items.gather(1, best)
        values, order = values.sort(dim=1, descending=True, stable=True)
        self.values[rows] = values
        self.items[rows] = items.gather(1, order).masked_fill(values == -torch.inf, -1)


def _top_positions(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest values of each row, [B, k] ascending; ties go to the lower position."""
    if values.shape[1] <= 4 * _SMALL_GROUP * k:
        return _top_of_few(values, k)
    groups = _grouped(values, _SMALL_GROUP)
    chosen = _top_positions(groups.amax(-1), k)
    positions = _members(chosen, _SMALL_GROUP)
    best = _top_of_few(groups.flatten(1).gather(1, positions), k)
    return positions.gather(1, best)


def _top_of_few(values: Tensor, k: int) -> Tensor:
    border = values.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, tied = values > border, values == border
    room = k - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(len(values), k)


def _grouped(values: Tensor, size: int) -> Tensor:
    """[B, n] as groups of neighbours [B, ceil(n / size), size], the last one filled up by −inf."""
    if missing := -values.shape[1] % size:
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    return values.unflatten(1, (-1, size))


def _members(groups: Tensor, size: int) -> Tensor:
    """Positions [B, k * size] of the members of groups [B, k]."""
    return (size * groups.unsqueeze(-1) + torch.arange(size, device=groups.device)).flatten(1)


def top_k(scores: np.ndarray, seen: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row that were not seen; ties go to the lower index.

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
    left = np.array(scores, order="C")
    rows, items = flat_pairs(seen, scores.shape[1])
    left[rows, items] = -np.inf
    best = BestItems(len(left), k, torch.from_numpy(left).dtype)
    if left.size:
        best.add(torch.from_numpy(left))
    return best.items.numpy(), best.values.numpy()


def flat_pairs(lists: Sequence[np.ndarray], num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and item of every entry of a ragged list of items, [n] int64 each.

    Args:
        lists: item indices of each row.
        num_items: size J of the catalog.

    Raises:
        ValueError: if an item lies outside the catalog.
    """
    rows = [np.asarray(items, dtype=np.int64) for items in lists]
    items = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    outside = items[(items < 0) | (items >= num_items)]
    if len(outside):
        # a negative index would silently leave out an item from the end of the catalog
        raise ValueError(f"Seen item {int(outside[0])} lies outside the catalog of {num_items} items")
    return np.repeat(np.arange(len(rows)), [len(row) for row in rows]), items
