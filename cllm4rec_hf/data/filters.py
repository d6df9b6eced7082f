"""Filters on interactions as integer codes: duplicates, k-core, and the split of each user's items."""

import numpy as np

from .prepared import SPLITS


def last_of_duplicates(users: np.ndarray, items: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Keep the last of each (user, item) pair.

    Args:
        users: [n] int64 codes.
        items: [n] int64 codes.
        order: [n] positions of the rows from oldest to newest.

    Returns:
        Positions of the rows kept, from oldest to newest.
    """
    if not len(order):
        return order
    newest_first = order[::-1]
    pairs = users[newest_first] * (items.max() + 1) + items[newest_first]
    _, first = np.unique(pairs, return_index=True)
    return newest_first[np.sort(first)][::-1]


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, list[dict[str, int]]]:
    """Drop users and items with fewer than k interactions until none is left to drop.

    Args:
        users: [n] int64 codes from 0.
        items: [n] int64 codes from 0.
        k: least number of interactions; 0 or 1 keeps everything.

    Returns:
        [n] bool, rows kept, and the counts after each round.
    """
    keep = np.ones(len(users), dtype=bool)
    rounds: list[dict[str, int]] = []
    while k > 1:
        user_counts = np.bincount(users[keep], minlength=users.max(initial=-1) + 1)
        item_counts = np.bincount(items[keep], minlength=items.max(initial=-1) + 1)
        enough = keep & (user_counts[users] >= k) & (item_counts[items] >= k)
        if enough.sum() == keep.sum():
            break
        keep = enough
        rounds.append(counts(users[keep], items[keep]))
    return keep, rounds


def counts(users: np.ndarray, items: np.ndarray) -> dict[str, int]:
    """Numbers of users, items and interactions."""
    return {"users": len(np.unique(users)), "items": len(np.unique(items)), "interactions": len(users)}


def split_per_user(
    users: np.ndarray, items: np.ndarray, validation_share: float, test_share: float, seed: int
) -> np.ndarray:
    """Random split of each user's items: max(1, ⌊share · n⌋) for validation and for test, the rest for training.

    A function of the set of pairs and the seed, not of the order of the rows. Users with fewer than three items keep
    them all for training.

    Args:
        users: [n] int64 user indices.
        items: [n] int64 item indices, no pair twice.
        validation_share: share of validation.
        test_share: share of test.
        seed: seed.

    Returns:
        [n] int8 positions in `SPLITS`.
    """
    by_pair = np.lexsort((items, users))
    generator = np.random.Generator(np.random.PCG64(seed))
    order = by_pair[np.lexsort((generator.random(len(users)), users[by_pair]))]
    number = np.bincount(users)
    starts = np.concatenate([[0], np.cumsum(number)])[:-1]
    rank = np.empty(len(users), dtype=np.int64)
    rank[order] = np.arange(len(users)) - starts[users[order]]
    n = number[users]
    # a share of n that is whole must not fall below it by rounding
    validation = np.maximum(1, np.floor(validation_share * n + 1e-9).astype(np.int64))
    test = np.minimum(np.maximum(1, np.floor(test_share * n + 1e-9).astype(np.int64)), n - validation - 1)
    split = np.full(len(users), SPLITS.index("train"), dtype=np.int8)
    large = n >= 3
    split[large & (rank < validation)] = SPLITS.index("validation")
    split[large & (rank >= validation) & (rank < validation + test)] = SPLITS.index("test")
    return split
