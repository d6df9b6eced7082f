"""The quick score of validation against the evaluator."""

import numpy as np
import pytest
from datasets import Dataset

from cllm4rec_hf import CLLM4RecError, Evaluator, PreparedData
from cllm4rec_hf.evaluation import validation_score
from cllm4rec_hf.evaluation.validation_score import ValidationScore, first_within_chance


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


def test_many_users_are_a_sample_that_the_seed_decides(data, monkeypatch):
    assert len(ValidationScore(data, cells=1).users) == data.num_users
    monkeypatch.setattr(validation_score, "_LEAST_USERS", 5)
    monkeypatch.setattr(validation_score, "_WANTED_USERS", 7)
    first, second, other = (ValidationScore(data, seed, cells=1) for seed in (0, 0, 1))
    assert np.array_equal(first.users, second.users) and len(first.users) == 7
    assert not np.array_equal(first.users, other.users)
    # no more of them than memory allows, but never too few to compare
    monkeypatch.setattr(validation_score, "_MOST_CELLS", 6 * data.num_items)
    assert len(ValidationScore(data, cells=1).users) == 6
    monkeypatch.setattr(validation_score, "_MOST_CELLS", 1)
    assert len(ValidationScore(data, cells=1).users) == 5
    assert first.histories.shape == (len(first.users), data.num_items) and len(other.users) == len(first.users)


def test_without_validation_nothing_can_be_chosen(data):
    table = data.interactions.data.table.to_pandas()
    data.interactions = Dataset.from_pandas(table[table["split"] != "validation"], preserve_index=False)
    with pytest.raises(CLLM4RecError, match="No user has validation items"):
        ValidationScore(data)


def test_each_users_metrics_have_the_score_as_their_mean(data):
    score = ValidationScore(data)
    scores = np.random.default_rng(2).normal(size=(len(score.users), data.num_items))
    values = score.per_user(scores)
    assert values.shape == (len(score.users),) and values.mean() == pytest.approx(score(scores))
    alone = [score.per_user(np.where(np.arange(len(scores))[:, None] == k, scores, 0.0))[k] for k in range(3)]
    np.testing.assert_allclose(values[:3], alone)


def test_the_first_candidate_stays_where_a_better_one_may_be_luck():
    generator = np.random.default_rng(0)
    first, noise = generator.uniform(size=400), generator.normal(size=400)
    noise -= noise.mean()
    error = noise.std() / np.sqrt(400)
    # above the first by less than one standard error of the difference, and by more
    lucky, better = first + noise + 0.9 * error, first + noise + 1.1 * error
    assert first_within_chance([first, lucky]) == 0 and first_within_chance([lucky, first]) == 0
    assert first_within_chance([first, better]) == 1 and first_within_chance([better, first]) == 0
    # small differences that all users share are none of chance
    assert first_within_chance([first, first + 1e-6]) == 1
    assert first_within_chance([first]) == 0


def test_parts_are_the_whole_in_its_order(data, monkeypatch):
    score = ValidationScore(data)
    scores = np.random.default_rng(3).normal(size=(len(score.users), data.num_items))
    monkeypatch.setattr(validation_score, "CELLS", 7 * data.num_items)
    parts = list(score.parts())
    assert len(parts) > 1 and max(len(part.users) for part in parts) == 7
    assert np.array_equal(np.concatenate([part.users for part in parts]), score.users)
    rows = np.split(scores, np.cumsum([len(part.users) for part in parts])[:-1])
    for part, some in zip(parts, rows, strict=True):
        assert part.histories.shape[0] == len(some)
    together = np.concatenate([part.per_user(some) for part, some in zip(parts, rows, strict=True)])
    np.testing.assert_array_equal(together, score.per_user(scores))
