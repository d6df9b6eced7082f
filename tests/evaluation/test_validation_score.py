"""The quick score of validation against the evaluator."""

import numpy as np
import pytest
from datasets import Dataset

from cllm4rec_hf import CLLM4RecError, Evaluator, PreparedData
from cllm4rec_hf.evaluation.validation_score import ValidationScore


@pytest.fixture
def data(prepared):
    return PreparedData.load(prepared)


class _Fixed:
    def __init__(self, scores):
        self.scores = scores

    def score(self, users, histories):
        return self.scores[users]


def test_it_is_the_sum_of_the_evaluators_metrics(data):
    scores = np.random.default_rng(1).normal(size=(data.num_users, data.num_items)).astype(np.float32)
    metrics = Evaluator(data, "validation").evaluate(_Fixed(scores), bootstrap=False).metrics
    quick = ValidationScore(data)
    assert quick(scores[quick.users]) == pytest.approx(sum(metrics.values()), abs=1e-6)


def test_many_users_are_a_sample_that_the_seed_decides(data):
    first, second, other = (ValidationScore(data, seed, cells=1) for seed in (0, 0, 1))
    assert np.array_equal(first.users, second.users) and len(first.users) <= 100
    assert first.histories.shape == (len(first.users), data.num_items) and len(other.users) == len(first.users)


def test_without_validation_nothing_can_be_chosen(data):
    table = data.interactions.data.table.to_pandas()
    data.interactions = Dataset.from_pandas(table[table["split"] != "validation"], preserve_index=False)
    with pytest.raises(CLLM4RecError, match="No user has validation items"):
        ValidationScore(data)
