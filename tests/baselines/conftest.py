"""Planted data, written once."""

import pytest

from cllm4rec_hf.baselines.popularity import Popularity
from cllm4rec_hf.evaluation.evaluator import Evaluator

from .planted import planted


@pytest.fixture(scope="session")
def planted_data(tmp_path_factory):
    """Data with six tastes, with item texts."""
    return planted(tmp_path_factory.mktemp("planted") / "prepared")


@pytest.fixture(scope="session")
def textless_data(tmp_path_factory):
    """The same without any text."""
    return planted(tmp_path_factory.mktemp("textless") / "prepared", with_texts=False)


@pytest.fixture(scope="session")
def recall_over_popularity(planted_data):
    """A function: Recall@10 on the test split divided by that of popularity."""
    evaluator = Evaluator(planted_data, metrics=("recall@10",))

    def recall(ranker):
        return evaluator.evaluate(ranker, bootstrap=False).metrics["recall@10"]

    popularity = recall(Popularity.fit_to(planted_data))
    return lambda ranker: recall(ranker) / popularity
