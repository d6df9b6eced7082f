"""The metrics against plain loops, numbers worked out by hand, and LensKit."""

import math
import re

import numpy as np
import pytest

from cllm4rec_hf.data.prepared import Histories
from cllm4rec_hf.evaluation.evaluator import parse_metric
from cllm4rec_hf.evaluation.metrics.hits import hits
from cllm4rec_hf.evaluation.metrics.ndcg import ndcg
from cllm4rec_hf.evaluation.metrics.recall import recall


def loop_recall(ranked, relevant, k):
    found = sum(1 for item in ranked[:k] if item in relevant)
    return found / min(k, len(relevant))


def loop_ndcg(ranked, relevant, k):
    gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(ranked[:k], start=1) if item in relevant)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))


@pytest.fixture(scope="module")
def random_lists():
    """Rankings of 30 out of 80 items, some cut short by −1, and 1 to 40 relevant items each."""
    generator = np.random.Generator(np.random.PCG64(1))
    ranked = np.stack([generator.permutation(80)[:30] for _ in range(50)])
    for row in range(0, 50, 5):
        ranked[row, generator.integers(0, 30) :] = -1
    relevant = [generator.permutation(80)[: generator.integers(1, 41)].astype(np.int32) for _ in range(50)]
    return ranked, relevant


@pytest.mark.parametrize("k", [1, 2, 10, 30])
@pytest.mark.parametrize(("metric", "loop"), [(recall, loop_recall), (ndcg, loop_ndcg)])
def test_metrics_equal_plain_loops(random_lists, metric, loop, k):
    ranked, relevant = random_lists
    expected = [loop(row.tolist(), set(items.tolist()), k) for row, items in zip(ranked, relevant, strict=True)]
    values = metric(ranked, relevant, k)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_array_equal(metric(ranked, relevant, k, hit=hits(ranked, relevant)), values)
    np.testing.assert_array_equal(metric(ranked, Histories.from_lists(relevant, 80), k), values)


@pytest.mark.parametrize("k", [1, 5, 20, 30])
def test_metrics_equal_lenskit(random_lists, k):
    from lenskit.data import ItemList
    from lenskit.metrics import NDCG, Recall
    from lenskit.metrics.ranking import LogRankWeight

    ranked, relevant = random_lists
    # LensKit's default gives ranks 1 and 2 the same weight; an offset of 1 is log₂(rank + 1)
    oracles = {recall: Recall(n=k), ndcg: NDCG(n=k, weight=LogRankWeight(offset=1))}
    for metric, oracle in oracles.items():
        expected = [
            oracle.measure_list(ItemList(item_ids=row[row >= 0], ordered=True), ItemList(item_ids=items))
            for row, items in zip(ranked, relevant, strict=True)
        ]
        np.testing.assert_allclose(metric(ranked, relevant, k), expected, rtol=1e-9)


def test_values_by_hand():
    ranked, relevant = np.array([[7, 3, 5, 1]]), [np.array([3, 1, 9])]
    # found at ranks 2 and 4
    assert recall(ranked, relevant, 4)[0] == pytest.approx(2 / 3)
    assert recall(ranked, relevant, 2)[0] == pytest.approx(1 / 2)
    assert ndcg(ranked, relevant, 4)[0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / 2.1309297535714578)


def test_users_with_more_relevant_items_than_k_can_reach_one():
    ranked, relevant = np.array([[4, 2]]), [np.arange(10)]
    assert recall(ranked, relevant, 2)[0] == 1.0
    assert ndcg(ranked, relevant, 2)[0] == pytest.approx(1.0, abs=1e-15)


def test_padding_never_hits_the_last_relevant_item_of_the_row_above():
    # row * stride − 1 is the number of the highest item of the row before
    hit = hits(np.array([[0, 1], [-1, -1], [2, -1]]), [np.array([9]), np.array([9]), np.array([2, 9])])
    np.testing.assert_array_equal(hit, [[False, False], [False, False], [True, False]])


def test_items_of_other_users_are_no_hits():
    hit = hits(np.array([[5, 0], [0, 5]]), [np.array([0]), np.array([5])])
    np.testing.assert_array_equal(hit, [[False, True], [False, True]])


def test_users_without_relevant_items_are_nan():
    ranked, relevant = np.array([[1, 2], [1, 2]]), [np.array([], dtype=np.int32), np.array([1])]
    for metric in (recall, ndcg):
        values = metric(ranked, relevant, 2)
        assert np.isnan(values[0]) and values[1] == 1.0
    assert not hits(ranked, [np.array([]), np.array([])]).any()


@pytest.mark.parametrize("metric", [recall, ndcg])
@pytest.mark.parametrize("k", [0, 3])
def test_too_short_a_ranking_is_refused(metric, k):
    with pytest.raises(ValueError, match=f"depth {k} needs 1 <= k <= 2"):
        metric(np.array([[1, 2]]), [np.array([1])], k)


def test_rows_must_match():
    with pytest.raises(ValueError, match=re.escape("[1, K]")):
        hits(np.array([[1], [2]]), [np.array([1])])


@pytest.mark.parametrize("name", ["recall", "recall@0", "recall@-1", "recall@2.5", "mrr@10", "@20", "recall@20 ", ""])
def test_unknown_metrics_are_refused_with_those_known(name):
    with pytest.raises(ValueError, match="expected recall@k, ndcg@k"):
        parse_metric(name)


def test_metric_names():
    assert parse_metric("recall@20") == (recall, 20)
    assert parse_metric("ndcg@100") == (ndcg, 100)
