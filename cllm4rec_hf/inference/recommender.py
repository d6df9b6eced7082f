"""Recommendations with external ids in and titles out."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.catalog import Catalog
from ..data.prompts import PromptBuilder
from ..errors import CLLM4RecError
from ..evaluation.ranking import top_k as rank_top_k
from .ranker import ModelRanker


@dataclass(frozen=True)
class Request:
    """Whom to recommend for.

    Args:
        user: external id, or None for somebody without one.
        history: external ids of the items, oldest first.
    """

    user: str | None
    history: tuple[str, ...]


class Recommender:
    """A model, its tokenizer and its catalog.

    Args:
        model: a `CLLM4RecForRecommendation`.
        tokenizer: the tokenizer of the same checkpoint.
        catalog: its catalog.
        batch_size: requests that are scored at once; bounds memory at batch_size x catalog scores.
    """

    def __init__(self, model: Any, tokenizer: Any, catalog: Catalog, batch_size: int = 256):
        self.model, self.tokenizer, self.catalog, self.batch_size = model, tokenizer, catalog, batch_size
        prompts = PromptBuilder(tokenizer, model.config.is_encoder_decoder)
        self.ranker = ModelRanker(model, prompts, model.config.max_prompt_length)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, batch_size: int = 256, **kwargs: Any) -> "Recommender":
        """Load a checkpoint with its tokenizer and catalog.

        Args:
            name_or_path: directory or Hub id.
            batch_size: requests that are scored at once.
            kwargs: arguments of the model's `from_pretrained`, e.g. `dtype`.

        Raises:
            CLLM4RecError: if the name is that of a directory which is not there or holds no checkpoint.
        """
        path = Path(name_or_path)
        is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", os.fspath(name_or_path)) is not None
        if not (path / "config.json").is_file() and (path.exists() or not is_hub_id):
            raise CLLM4RecError(
                f"No checkpoint in {name_or_path}; expected a directory that `cllm4rec train --output` named, "
                "or a Hub id"
            )
        from ..modeling.modeling_cllm4rec import CLLM4RecForRecommendation
        from ..tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

        model = CLLM4RecForRecommendation.from_pretrained(name_or_path, **kwargs)
        hub = {k: v for k, v in kwargs.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
        tokenizer = CLLM4RecTokenizer.from_pretrained(name_or_path, **hub)
        return cls(model, tokenizer, Catalog.from_pretrained(name_or_path, **hub), batch_size)

    def recommend(
        self, requests: Iterable[Request], top_k: int = 20, unknown: str = "raise", exclude_seen: bool = True
    ) -> Iterator[list[dict[str, Any]]]:
        """Recommend for each request in turn; streams, so that any number of requests needs bounded memory.

        Args:
            requests: the requests. A user whom the catalog lacks is served by the history alone.
            top_k: recommendations a request; fewer where the catalog has no more unseen items.
            unknown: what to do with items of a history that the catalog lacks: `raise`, `skip` or `warn`.
            exclude_seen: whether the items of the history are left out.

        Yields:
            For each request a list of {"item", "title", "score"}, best first; score is log p over the whole catalog.

        Raises:
            UnknownIdError: if an item is unknown and the policy is `raise`.
            ValueError: if `top_k` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        requests = iter(requests)
        while batch := list(islice(requests, self.batch_size)):
            histories = [
                np.asarray(self.catalog.item_indices(request.history, unknown), dtype=np.int64) for request in batch
            ]
            users = [self.catalog.find_user(request.user) for request in batch]
            scores = self.ranker.score(users, histories)
            seen = histories if exclude_seen else [history[:0] for history in histories]
            items, _ = rank_top_k(scores, seen, top_k)
            normalizer = _log_sum_exp(scores)
            for row, ranked in enumerate(items):
                yield [
                    {
                        "item": self.catalog.item_ids[index],
                        "title": self.catalog.titles[index],
                        "score": float(scores[row, index] - normalizer[row]),
                    }
                    for index in ranked[ranked >= 0]
                ]


def _log_sum_exp(scores: np.ndarray) -> np.ndarray:
    largest = scores.max(axis=1, keepdims=True)
    return np.log(np.exp(scores - largest).sum(axis=1)) + largest[:, 0]
