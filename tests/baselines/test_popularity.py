"""Popularity."""

import numpy as np
import pytest

from cllm4rec_hf.baselines.popularity import Popularity
from cllm4rec_hf.data.prepared import Histories
from cllm4rec_hf.evaluation.evaluator import Evaluator

from ..evaluation.factory import write_prepared

HISTORIES = Histories.from_lists([[0, 2], [2], [2, 0, 3], []], num_items=5)


def test_scores_are_counts_for_everybody():
    scores = Popularity().fit(HISTORIES).score(np.array([1, 3]), [np.array([2]), np.array([])])
    np.testing.assert_array_equal(scores, [[2, 0, 3, 1, 0]] * 2)
    assert scores.dtype == np.float32 and scores.flags.writeable


def test_ranks_by_count_among_unseen_items(tmp_path):
    # counts: item 0 three, item 1 two, item 2 one, item 3 one
    data = write_prepared(tmp_path, [[0, 1], [0, 1], [0, 2], [3]], [[], [], [], []], [[2], [3], [1], [2]], 4)
    result = Evaluator(data, metrics=("recall@1", "recall@2")).evaluate(Popularity().fit(data.histories("train")))
    # user 0: 2 before 3 by index; user 1: 3 is second; user 2: 1 is first; user 3: 0, 1, then 2
    np.testing.assert_array_equal(result.per_user["recall@1"], [1, 0, 1, 0])
    np.testing.assert_array_equal(result.per_user["recall@2"], [1, 1, 1, 0])


def test_saved_and_loaded(tmp_path):
    model = Popularity().fit(HISTORIES)
    model.save_pretrained(tmp_path / "model")
    loaded = Popularity.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.counts, model.counts)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_needs_fitting_first(tmp_path):
    with pytest.raises(ValueError, match="call fit"):
        Popularity().score(np.array([0]), [np.array([0])])
    with pytest.raises(ValueError, match="call fit"):
        Popularity().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
