"""Filters on interactions as integer codes: duplicates, k-core, and the split of each user's items."""

import numpy as np

from .prepared import SPLITS


def stable_order(codes: np.ndarray) -> np.ndarray:
    """Positions of rows sorted by an integer code, equal codes in their present order; a counting sort.

    Args:
        codes: [n] integers from 0.

    Returns:
        [n] positions, `np.argsort(codes, kind="stable")`.
    """
    from scipy.sparse import coo_matrix

    # one matrix row a code, and in it, in ascending order, the positions that have it
    ones, positions = np.ones(len(codes), dtype=bool), np.arange(len(codes))
    shape = (int(codes.max(initial=-1)) + 1, len(codes))
    return coo_matrix((ones, (codes, positions)), shape=shape).tocsr().indices if len(codes) else positions


def last_of_duplicates(users: np.ndarray, items: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Keep the last of each (user, item) pair.

    Args:
        users: [n] integer codes from 0.
        items: [n] integer codes from 0.
        order: [m] positions of the rows from oldest to newest.

    Returns:
        Positions of the rows kept, from oldest to newest.
    """
    users, items = users[order], items[order]
    by_pair = _by_pair(users, items)
    users, items = users[by_pair], items[by_pair]
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    keep = np.zeros(len(order), dtype=bool)
    keep[by_pair[is_last]] = True
    return order[keep]


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, list[dict[str, int]]]:
    """Drop users and items with fewer than k interactions until none is left to drop.

    Args:
        users: [n] integer codes from 0.
        items: [n] integer codes from 0.
        k: least number of interactions; 0 or 1 keeps everything.

    Returns:
        [n] bool, rows kept, and the counts after each round.
    """
    keep = np.ones(len(users), dtype=bool)
    rounds: list[dict[str, int]] = []
    while k > 1:
        enough = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
        if enough.all():
            break
        keep[keep] = enough
        users, items = users[enough], items[enough]
        rounds.append(counts(users, items))
    return keep, rounds


def counts(users: np.ndarray, items: np.ndarray) -> dict[str, int]:
    """Numbers of users, items and interactions.

    Args:
        users: [n] integer codes from 0.
        items: [n] integer codes from 0.
    """
    distinct_users, distinct_items = (int(np.count_nonzero(np.bincount(codes))) for codes in (users, items))
    return {"users": distinct_users, "items": distinct_items, "interactions": len(users)}


def split_per_user(
    users: np.ndarray, items: np.ndarray, validation_share: float, test_share: float, seed: int
) -> np.ndarray:
    """Random split of each user's items: max(1, ⌊share · n⌋) for validation and for test, the rest for training.

    A function of the set of pairs and the seed, not of the order of the rows. Users with fewer than three items keep
    them all for training.

    Args:
        users: [n] integer user indices.
        items: [n] integer item indices, no pair twice.
        validation_share: share of validation.
        test_share: share of test.
        seed: seed.

    Returns:
        [n] int8 positions in `SPLITS`.
    """
    by_pair = _by_pair(users, items)
    users = users[by_pair]
    generator = np.random.Generator(np.random.PCG64(seed))
    # one key a pair; sorted by it, then by user, each user's pairs stand in random order
    by_key = np.argsort(generator.random(len(users)), kind="stable")
    order = by_pair[by_key[stable_order(users[by_key])]]
    n = np.bincount(users)
    # a share of n that is whole must not fall below it by rounding
    validation = np.maximum(1, np.floor(validation_share * n + 1e-9).astype(np.int64))
    test = np.minimum(np.maximum(1, np.floor(test_share * n + 1e-9).astype(np.int64)), n - validation - 1)
    validation, test = (np.where(n >= 3, size, 0) for size in (validation, test))
    rank = np.arange(len(users)) - np.repeat(np.cumsum(n) - n, n)
    split = np.full(len(users), SPLITS.index("train"), dtype=np.int8)
    split[order[rank < np.repeat(validation + test, n)]] = SPLITS.index("test")
    split[order[rank < np.repeat(validation, n)]] = SPLITS.index("validation")
    return split


def _by_pair(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Positions of rows sorted by user, then by item, then as they are."""
    by_item = stable_order(items)
    return by_item[stable_order(users[by_item])]
