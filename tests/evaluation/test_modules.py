"""The metrics as modules of `evaluate`."""

import evaluate
import numpy as np
import pytest

from cllm4rec_hf import Evaluator, PreparedData
from cllm4rec_hf.evaluation.modules import module_path
from cllm4rec_hf.evaluation.ranking import top_k


@pytest.fixture(autouse=True)
def _modules_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


class Noise:
    """Scores that depend on user and item alone."""

    def __init__(self, num_items):
        self.num_items = num_items

    def score(self, users, histories):
        rows = [np.random.Generator(np.random.PCG64(int(user))).normal(size=self.num_items) for user in users]
        return np.asarray(rows, dtype=np.float32)


def test_the_same_numbers_as_the_evaluators(prepared):
    data = PreparedData.load(prepared)
    noise = Noise(data.num_items)
    expected = Evaluator(data, "test", metrics=("recall@2", "recall@5", "ndcg@7")).evaluate(noise).metrics
    seen, relevant = data.histories("train", "validation"), data.histories("test")
    ranked, _ = top_k(noise.score(range(data.num_users), None), seen, 7)
    predictions = [row[row >= 0].tolist() for row in ranked]
    references = [relevant[user].tolist() for user in range(data.num_users)]
    recall, ndcg = module_path("recall"), module_path("ndcg")
    together = evaluate.combine([evaluate.load(recall, "2"), evaluate.load(recall, "5"), evaluate.load(ndcg, "7")])
    found = together.compute(predictions=predictions, references=references)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found["recall@2"] < 1
    # batch by batch, and with external ids
    metric = evaluate.load(ndcg, "7")
    for start in range(0, len(predictions), 5):
        part = slice(start, start + 5)
        metric.add_batch(
            predictions=[[f"i{item}" for item in row] for row in predictions[part]],
            references=[[f"i{item}" for item in row] for row in references[part]],
        )
    assert metric.compute() == pytest.approx({"ndcg@7": expected["ndcg@7"]}, abs=1e-12)


def test_depth_users_without_relevant_items_and_errors():
    metric = evaluate.load(module_path("recall"), "3")
    rows = {"predictions": [[1, 2, 3], [4]], "references": [[3, 9], []]}
    assert metric.compute(**rows) == {"recall@3": 0.5}
    assert metric.compute(**rows, k=1) == {"recall@1": 0.0}
    with pytest.raises(ValueError, match="depth k must be a positive number, got 'default'"):
        evaluate.load(module_path("recall")).compute(**rows)
    with pytest.raises(ValueError, match="no metric 'auc'; expected one of recall, ndcg"):
        module_path("auc")
