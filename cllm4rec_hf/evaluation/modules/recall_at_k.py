"""Recall@k with the denominator min(k, relevant items), mean over users, as a module of the library `evaluate`."""

from typing import Any

import evaluate

from cllm4rec_hf.evaluation.metrics.recall import recall
from cllm4rec_hf.evaluation.modules import ByName, depth, features, mean_at_k


class RecallAtK(ByName, evaluate.Metric):
    """Recall@k with the denominator min(k, relevant items), mean over users."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall@k with the denominator min(k, relevant items), mean over users.",
            citation="",
            inputs_description="predictions: each user's ranked items, best first; references: the relevant ones",
            features=features(),
        )

    def _compute(self, predictions: Any, references: Any, k: int | None = None) -> dict[str, float]:
        number = depth(self.config_name, k)
        return {f"recall@{number}": mean_at_k(recall, predictions, references, number)}
