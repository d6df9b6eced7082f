"""NDCG@k with binary relevance, mean over users, as a module of the library `evaluate`."""

from typing import Any

import evaluate

from cllm4rec_hf.evaluation.metrics.ndcg import ndcg
from cllm4rec_hf.evaluation.modules import ByName, depth, features, mean_at_k


class NDCGAtK(ByName, evaluate.Metric):
    """NDCG@k with binary relevance, mean over users."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="NDCG@k with binary relevance, mean over users.",
            citation="",
            inputs_description="predictions: each user's ranked items, best first; references: the relevant ones",
            features=features(),
        )

    def _compute(self, predictions: Any, references: Any, k: int | None = None) -> dict[str, float]:
        number = depth(self.config_name, k)
        return {f"ndcg@{number}": mean_at_k(ndcg, predictions, references, number)}
