"""The best items of many users from blocks of scores: never a users x items matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.ranking import BestItems, flat_pairs

# 16 MB of float32: large enough for matrix products at full speed, small enough for any machine
SCORE_CELLS = 1 << 22
_MOST_ROWS = 1024

Scores = Callable[[slice, slice], Tensor]


def catalog_scores(model: Any, queries: Tensor) -> Scores:
    """Logits of any users and items, computed when they are asked for.

    Args:
        model: a CLLM4Rec model.
        queries: [B, d] float32, see the model's `recommendation_queries`.

    Returns:
        A function of a slice of rows and a slice of items that returns fresh logits, float32.
    """
    table, bias = model.collaborative_item_embeddings.weight, model.item_head.item_bias

    def scores(rows: slice, items: slice) -> Tensor:
        return torch.nn.functional.linear(queries[rows], table[items], None if bias is None else bias[items])

    return scores


@torch.inference_mode()
def best_items(
    scores: Scores,
    num_items: int,
    seen: Sequence[np.ndarray],
    top_k: int,
    allowed: np.ndarray | None = None,
    score_cells: int = SCORE_CELLS,
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each row and their log-probabilities, with at most `score_cells` scores in memory at a time.

    Args:
        scores: logits of a slice of the B rows and a slice of the items; see `catalog_scores`. What it returns is
            written over.
        num_items: size J of the catalog.
        seen: B int arrays, the items to leave out of each row.
        top_k: how many.
        allowed: [J] bool, items that may be recommended; None for all.
        score_cells: bound on users x items that are scored at once. Memory is some four times that many float32,
            whatever the number of rows and items.
        device: where the scores are.

    Returns:
        items [B, K] int64, best first, ties by lower index, and log p over the whole catalog [B, K] float32, where
        K = min(top_k, J); −1 and −inf where a row has fewer than K items left.

    Raises:
        ValueError: if `score_cells` is not positive, or a seen item lies outside the catalog.
        FloatingPointError: if a row's scores have no finite normalizer.
    """
    if score_cells < 1:
        raise ValueError(f"score_cells must be 1 or more, got {score_cells}")
    num_rows, k = len(seen), min(top_k, num_items)
    # as square as the rows allow: a block of the item table serves as many rows as there are
    height = max(1, min(num_rows, _MOST_ROWS, int(score_cells**0.5)))
    width = min(num_items, max(1, score_cells // height))
    parts = [slice(start, min(start + height, num_rows)) for start in range(0, num_rows, height)]
    best = [BestItems(part.stop - part.start, k, device=device) for part in parts]
    normalizer = torch.full((num_rows,), -torch.inf, device=device)
    leave_out = [_SeenItems(seen[part], num_items, device) for part in parts]
    may_not = None if allowed is None else torch.from_numpy(~allowed).to(device)
    for start in range(0, num_items, width):
        block = slice(start, min(start + width, num_items))
        # a block of the item table stays in the cache while all rows make use of it
        for part, found, out in zip(parts, best, leave_out, strict=True):
            logits = scores(part, block)
            # the probabilities are those of the model's multinomial, whatever is left out of the answer
            normalizer[part] = torch.logaddexp(normalizer[part], logits.logsumexp(1))
            if may_not is not None:
                logits.masked_fill_(may_not[block], -torch.inf)
            out.remove(logits, block)
            found.add(logits)
    if not torch.isfinite(normalizer).all():
        raise FloatingPointError(
            "The model's scores hold NaN or infinity, so there is nothing to rank by; it diverged in training, or its "
            "backbone overflows in its dtype (load it with dtype=torch.float32)"
        )
    if not best:
        return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
    items, values = torch.cat([found.items for found in best]), torch.cat([found.values for found in best])
    return items.cpu().numpy(), (values - normalizer.unsqueeze(1)).cpu().numpy()


class _SeenItems:
    """The seen items of some rows, in the order of the catalog."""

    def __init__(self, seen: Sequence[np.ndarray], num_items: int, device: torch.device | None):
        rows, items = flat_pairs(seen, num_items)
        order = np.argsort(items, kind="stable")
        self._sorted = items[order]
        self._rows, self._items = (torch.from_numpy(a[order]).to(device) for a in (rows, items))

    def remove(self, logits: Tensor, block: slice) -> None:
        low, high = np.searchsorted(self._sorted, (block.start, block.stop)).tolist()
        logits[self._rows[low:high], self._items[low:high] - block.start] = -torch.inf
