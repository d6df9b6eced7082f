"""Tables and paired differences."""

import numpy as np
import pytest

from cllm4rec_hf.evaluation.evaluator import EvaluationResult, format_table, paired_difference


def make_result(values, split="test", name="recall@20", intervals=None):
    values = np.asarray(values, dtype=float)
    metrics = {name: float(values.mean())}
    return EvaluationResult(split, len(values), metrics, intervals or {}, {name: values}, np.arange(len(values)))


def test_table():
    first = make_result([0.371], intervals={"recall@20": (0.355, 0.387)})
    second = make_result([0.5] * 1312)
    third = make_result([0.2], name="ndcg@100")
    assert format_table([("a method", first), ("b", second), ("c", third)]).splitlines() == [
        "method    users  recall@20             ndcg@100",
        "a method      1  0.371 [0.355, 0.387]  -",
        "b          1312  0.500                 -",
        "c             1  -                     0.200",
    ]


def test_paired_difference_sees_what_the_intervals_of_the_means_hide():
    generator = np.random.Generator(np.random.PCG64(0))
    hard = generator.random(400)
    worse, better = make_result(hard), make_result(hard + 0.01 + generator.normal(0, 0.02, 400))
    difference = paired_difference(better, worse)["recall@20"]
    assert difference.difference == pytest.approx(better.metrics["recall@20"] - worse.metrics["recall@20"])
    assert 0.005 < difference.low < difference.difference < difference.high < 0.015
    back = paired_difference(worse, better)["recall@20"]
    np.testing.assert_allclose([-back.high, -back.low], [difference.low, difference.high], atol=1e-3)


def test_paired_difference_of_a_ranker_with_itself_is_nothing():
    result = make_result([0.1, 0.4, 0.0])
    assert paired_difference(result, result)["recall@20"] == (0.0, 0.0, 0.0)


def test_paired_difference_needs_the_same_users_and_split():
    result = make_result([0.1, 0.4])
    for other in (make_result([0.1, 0.4, 0.5]), make_result([0.1, 0.4], split="validation")):
        with pytest.raises(ValueError, match="same split and users"):
            paired_difference(result, other)
    assert paired_difference(result, make_result([0.1, 0.4], name="ndcg@5")) == {}
