"""k-core, duplicates and the split against plain loops."""

import numpy as np
import pytest

from cllm4rec_hf.data.filters import k_core, last_of_duplicates, split_per_user, stable_order
from cllm4rec_hf.data.prepared import SPLITS


def pairs(seed, size=400, users=40, items=60):
    generator = np.random.Generator(np.random.PCG64(seed))
    codes = np.unique(generator.integers(0, users * items, size))
    return codes // items, codes % items


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_k_core_against_a_loop(seed, k):
    users, items = pairs(seed)
    rows = list(zip(users.tolist(), items.tolist(), strict=True))
    while True:
        kept = [(u, i) for u, i in rows if sum(a == u for a, _ in rows) >= k and sum(b == i for _, b in rows) >= k]
        if len(kept) == len(rows):
            break
        rows = kept
    keep, rounds = k_core(users, items, k)
    assert list(zip(users[keep].tolist(), items[keep].tolist(), strict=True)) == rows
    assert [r["interactions"] for r in rounds] == sorted((r["interactions"] for r in rounds), reverse=True)


def test_k_core_may_leave_nothing():
    keep, rounds = k_core(np.arange(5), np.arange(5), 2)
    assert not keep.any() and rounds[-1] == {"users": 0, "items": 0, "interactions": 0}


def test_last_of_duplicates_keeps_the_newest_and_the_order():
    users, items = np.array([0, 1, 0, 0, 1]), np.array([3, 3, 3, 4, 3])
    assert last_of_duplicates(users, items, np.array([0, 1, 2, 3, 4])).tolist() == [2, 3, 4]
    assert last_of_duplicates(users, items, np.array([4, 3, 2, 1, 0])).tolist() == [3, 1, 0]


@pytest.mark.parametrize("validation, test", [(0.1, 0.1), (0.2, 0.3), (0.45, 0.45)])
def test_split_sizes_follow_the_formula(validation, test):
    generator = np.random.Generator(np.random.PCG64(0))
    numbers = [1, 2, 3, 4, 9, 10, 19, 20, 29, 30, 99, 100]
    users = np.repeat(np.arange(len(numbers)), numbers)
    items = np.concatenate([generator.permutation(200)[:n] for n in numbers])
    split = split_per_user(users, items, validation, test, seed=1)
    for user, n in enumerate(numbers):
        counts = {name: int((split[users == user] == code).sum()) for code, name in enumerate(SPLITS)}
        if n < 3:
            assert counts == {"train": n, "validation": 0, "test": 0}
            continue
        for name, share in (("validation", validation), ("test", test)):
            assert counts[name] == max(1, int(np.floor(round(share * n, 6)))), (n, name)
        assert counts["train"] >= 1


def test_split_depends_on_the_pairs_and_the_seed_alone():
    users, items = pairs(3)
    order = np.random.Generator(np.random.PCG64(1)).permutation(len(users))
    straight = split_per_user(users, items, 0.1, 0.1, seed=5)
    shuffled = split_per_user(users[order], items[order], 0.1, 0.1, seed=5)
    assert np.array_equal(straight[order], shuffled)
    assert not np.array_equal(straight, split_per_user(users, items, 0.1, 0.1, seed=6))


def test_stable_order_is_a_stable_sort():
    codes = np.random.Generator(np.random.PCG64(2)).integers(0, 50, 3000).astype(np.int32)
    assert np.array_equal(stable_order(codes), np.argsort(codes, kind="stable"))
    assert len(stable_order(codes[:0])) == 0


def test_split_draws_one_key_a_pair_in_the_order_of_the_pairs():
    users, items = pairs(1)
    order = np.random.Generator(np.random.PCG64(9)).permutation(len(users))
    split = split_per_user(users[order], items[order], 0.2, 0.1, seed=4)
    got = {int(row): SPLITS[code] for row, code in zip(order, split, strict=True)}
    by_pair = sorted(range(len(users)), key=lambda row: (users[row], items[row]))
    keys = dict(zip(by_pair, np.random.Generator(np.random.PCG64(4)).random(len(users)), strict=True))
    for user in np.unique(users):
        drawn = sorted(np.flatnonzero(users == user).tolist(), key=lambda row: keys[row])
        n = len(drawn)
        validation = max(1, int(0.2 * n + 1e-9)) if n >= 3 else 0
        test = min(max(1, int(0.1 * n + 1e-9)), n - validation - 1) if n >= 3 else 0
        expected = ["validation"] * validation + ["test"] * test + ["train"] * (n - validation - test)
        assert [got[row] for row in drawn] == expected
