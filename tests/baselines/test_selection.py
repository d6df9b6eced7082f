"""Choosing on validation."""

import logging

import numpy as np
import pytest

from cllm4rec_hf.baselines.selection import grid_of, select, validation_score
from cllm4rec_hf.evaluation.evaluator import Evaluator

from ..evaluation.factory import FixedScores


@pytest.fixture(scope="module")
def scores(planted_data):
    """From noise to the truth."""
    relevant = planted_data.histories("validation").to_csr().toarray()
    noise = np.random.Generator(np.random.PCG64(1)).normal(size=relevant.shape)
    return lambda share: FixedScores((share * relevant + noise).astype(np.float32))


def test_grid_is_all_combinations():
    assert grid_of(a=(1, 2), b=("x",)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]


def test_the_best_of_the_grid_and_all_scores(planted_data, scores):
    made = []

    def factory(share, name):
        made.append(scores(share))
        return made[-1]

    chosen = select(factory, grid_of(share=(0.0, 2.0, 1.0), name=("a",)), planted_data)
    assert chosen.settings == {"share": 2.0, "name": "a"} and chosen.model is made[1]
    assert [row["share"] for row in chosen.table] == [0.0, 2.0, 1.0]
    evaluator = Evaluator(planted_data, split="validation")
    for row, model in zip(chosen.table, made, strict=True):
        total, metrics = validation_score(model, evaluator)
        assert row == {"share": row["share"], "name": "a", **metrics, "score": total}
        assert total == pytest.approx(metrics["recall@20"] + metrics["recall@40"] + metrics["ndcg@100"])
    assert chosen.score == max(row["score"] for row in chosen.table)


def test_the_first_of_equals(planted_data, scores):
    same = scores(1.0)
    assert select(lambda k: same, grid_of(k=(3, 1, 2)), planted_data).settings == {"k": 3}


def test_ends_of_the_grid_are_remarked_on_but_for_an_off_switch(planted_data, scores, caplog):
    with caplog.at_level(logging.WARNING):
        select(lambda share: scores(share), grid_of(share=(0.5, 1.0, 2.0)), planted_data, "Oracle")
    assert "Oracle: the chosen share 2 is at the end of the grid" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        select(lambda share: scores(-share), grid_of(share=(0.0, 1.0, 2.0)), planted_data)
        select(lambda share: scores(share), grid_of(share=(1.0, 2.0)), planted_data)
    assert not caplog.text


def test_an_empty_grid_is_refused(planted_data):
    with pytest.raises(ValueError, match="grid of Oracle is empty"):
        select(lambda: None, [], planted_data, "Oracle")
