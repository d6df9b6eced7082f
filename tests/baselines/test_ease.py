"""EASE against the least-squares problem that it solves."""

import logging

import numpy as np
import pytest

from cllm4rec_hf.baselines.ease import EASE
from cllm4rec_hf.baselines.popularity import Popularity
from cllm4rec_hf.baselines.selection import grid_of
from cllm4rec_hf.data.prepared import Histories
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.evaluation.evaluator import Evaluator

from ..evaluation.factory import random_prepared


@pytest.fixture(scope="module")
def histories():
    generator = np.random.Generator(np.random.PCG64(4))
    lists = [generator.permutation(15)[: generator.integers(1, 8)] for _ in range(60)]
    return Histories.from_lists(lists, num_items=15)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return random_prepared(tmp_path_factory.mktemp("data") / "prepared", num_users=300, keep_all=True)


@pytest.mark.parametrize("ridge", [0.5, 20.0])
def test_equals_ridge_regression_of_each_item_on_the_others(histories, ridge):
    matrix = histories.to_csr().toarray().astype(np.float64)
    expected = np.zeros((15, 15))
    for item in range(15):
        others = np.delete(np.arange(15), item)
        # least squares with √λ·I rows below: min ‖x_item − X_others b‖² + λ‖b‖²
        stacked = np.vstack([matrix[:, others], np.sqrt(ridge) * np.eye(14)])
        target = np.concatenate([matrix[:, item], np.zeros(14)])
        expected[others, item] = np.linalg.lstsq(stacked, target, rcond=None)[0]
    model = EASE(ridge).fit(histories)
    np.testing.assert_allclose(model.weights, expected, atol=1e-6)
    assert np.all(np.diag(model.weights) == 0)
    assert model.weights.dtype == np.float32
    # not symmetric: a transposed B would go unnoticed otherwise
    assert np.abs(expected - expected.T).max() > 1e-3


def test_scores_are_the_history_times_the_weights(histories):
    model = EASE(5.0).fit(histories)
    lists = [np.array([3, 1], dtype=np.int32), np.array([], dtype=np.int32)]
    scores = model.score(np.array([0, 1]), lists)
    assert scores.shape == (2, 15) and scores.dtype == np.float32
    np.testing.assert_allclose(scores[0], model.weights[3] + model.weights[1], rtol=1e-6)
    np.testing.assert_array_equal(scores[1], 0)


def test_items_that_nobody_has_are_fine():
    model = EASE(1.0).fit(Histories.from_lists([[0, 1], [0, 1, 2]], num_items=6))
    assert np.isfinite(model.weights).all()
    np.testing.assert_array_equal(model.weights[:, 3:], 0)


def test_validation_chooses_the_best_of_the_grid(data):
    grid = (0.1, 3.0, 30.0, 1e5)
    evaluator = Evaluator(data, split="validation")
    train = data.histories("train")
    by_hand = [sum(evaluator.evaluate(EASE(r).fit(train), bootstrap=False).metrics.values()) for r in grid]
    assert len(set(by_hand)) == len(grid)
    best = EASE.choose(data, grid=grid_of(ridge=grid)).model
    assert best.ridge == grid[int(np.argmax(by_hand))]
    np.testing.assert_array_equal(best.weights, EASE(best.ridge).fit(train).weights)


def test_a_choice_at_the_end_of_the_grid_is_remarked_on(data, caplog):
    best = EASE.choose(data).model.ridge
    with caplog.at_level(logging.WARNING):
        EASE.choose(data, grid=grid_of(ridge=(best, best * 1e4, best * 1e5)))
    assert "at the end of the grid" in caplog.text


def test_beats_popularity_where_there_are_tastes(data):
    evaluator = Evaluator(data, metrics=("recall@5",))
    ease = evaluator.evaluate(EASE.choose(data).model, bootstrap=False)
    popularity = evaluator.evaluate(Popularity().fit(data.histories("train")), bootstrap=False)
    assert ease.metrics["recall@5"] > 1.1 * popularity.metrics["recall@5"]


def test_saved_and_loaded(tmp_path, histories):
    model = EASE(7.0).fit(histories)
    model.save_pretrained(tmp_path / "model")
    loaded = EASE.from_pretrained(tmp_path / "model")
    assert loaded.ridge == 7.0
    np.testing.assert_array_equal(loaded.weights, model.weights)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_what_is_not_a_saved_model_is_refused(tmp_path, histories):
    with pytest.raises(CLLM4RecError, match=r"holds no config\.json"):
        EASE.from_pretrained(tmp_path)
    Popularity().fit(histories).save_pretrained(tmp_path)
    with pytest.raises(CLLM4RecError, match="type 'popularity'; expected 'ease'"):
        EASE.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CLLM4RecError, match="cannot be read"):
        EASE.from_pretrained(tmp_path)


def test_too_large_a_catalog_is_refused_before_any_memory_is_taken():
    histories = Histories.from_lists([[0, 999_999]], num_items=1_000_000)
    with pytest.raises(CLLM4RecError, match="1000000 items are more than the bound of 20000 and would take 36000 GB"):
        EASE().fit(histories)


def test_the_bound_can_be_moved(histories, data):
    with pytest.raises(CLLM4RecError, match="bound of 14"):
        EASE(max_items=14).fit(histories)
    with pytest.raises(CLLM4RecError, match="bound of 39"):
        EASE.choose(data, max_items=39)
    EASE(max_items=15).fit(histories)


def test_wrong_arguments(data):
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            EASE(ridge)
    with pytest.raises(ValueError, match="grid of EASE is empty"):
        EASE.choose(data, grid=())
    with pytest.raises(ValueError, match="call fit"):
        EASE().score(np.array([0]), [np.array([0])])
