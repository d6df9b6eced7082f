"""The ranking of unseen items against a plain sort of whole rows."""

import numpy as np
import pytest

from cllm4rec_hf.evaluation.ranking import top_k


def sorted_rows(scores, seen, k):
    """All unseen items, best first, lower index first among equals."""
    out = np.full((len(scores), k), -1, dtype=np.int64)
    for row, values in enumerate(scores.tolist()):
        left = [j for j in range(len(values)) if j not in set(seen[row].tolist()) and values[j] != float("-inf")]
        best = sorted(left, key=lambda j: (-values[j], j))[:k]
        out[row, : len(best)] = best
    return out


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("levels", [1, 3, 12, 10**6])
@pytest.mark.parametrize("k", [1, 7, 39, 40, 55])
def test_equals_a_full_sort_with_and_without_ties(dtype, levels, k):
    generator = np.random.Generator(np.random.PCG64(levels + k))
    scores = (generator.integers(-levels, levels, size=(30, 40)) / levels).astype(dtype)
    seen = [generator.permutation(40)[: generator.integers(0, 41)].astype(np.int32) for _ in range(30)]
    before = scores.copy()
    items, values = top_k(scores, seen, k)
    np.testing.assert_array_equal(items, sorted_rows(scores, seen, k))
    assert items.dtype == np.int64 and values.dtype == dtype and items.shape == values.shape == (30, k)
    np.testing.assert_array_equal(scores, before)
    found = items >= 0
    np.testing.assert_array_equal(values[found], np.take_along_axis(scores, np.maximum(items, 0), axis=1)[found])
    assert np.all(np.isneginf(values[~found]))


def test_read_only_scores_are_fine_and_unchanged():
    scores = np.broadcast_to(np.array([1.0, 3.0, 2.0], dtype=np.float32), (2, 3))
    items, _ = top_k(scores, [np.array([1]), np.array([], dtype=np.int32)], 2)
    np.testing.assert_array_equal(items, [[2, 0], [1, 2]])


def test_minus_infinity_is_never_returned_and_plus_infinity_comes_first():
    scores = np.array([[-np.inf, np.inf, 0.0, -np.inf]], dtype=np.float32)
    for k in (3, 4):
        items, values = top_k(scores, [np.array([], dtype=np.int32)], k)
        np.testing.assert_array_equal(items[0], [1, 2] + [-1] * (k - 2))
        np.testing.assert_array_equal(values[0], [np.inf, 0.0] + [-np.inf] * (k - 2))


def test_no_rows():
    items, values = top_k(np.empty((0, 5), dtype=np.float32), [], 3)
    assert items.shape == values.shape == (0, 3)


def test_nan_is_refused_and_located():
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match="Row 1 of the scores holds 1 NaN, the first at item 2"):
        top_k(scores, [np.array([], dtype=np.int32)] * 3, 2)


@pytest.mark.parametrize("item", [-1, 4])
def test_seen_items_outside_the_catalog_are_refused(item):
    with pytest.raises(ValueError, match=f"Seen item {item} lies outside the catalog of 4 items"):
        top_k(np.zeros((1, 4), dtype=np.float32), [np.array([item])], 2)


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (np.zeros((2, 4), dtype=np.float32), 2, r"shape \[1, J\]"),
        (np.zeros(4, dtype=np.float32), 2, r"shape \[1, J\]"),
        (np.zeros((1, 4), dtype=np.int64), 2, "got int64"),
        (np.zeros((1, 4), dtype=np.float32), 0, "k must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments(scores, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(scores, [np.array([0])], k)
