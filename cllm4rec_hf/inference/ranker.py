"""A trained model as a ranker: histories in, scores of the catalog or its best items out."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.collators import history_prompts, prompt_batch
from ..data.prompts import PromptBuilder
from .scoring import SCORE_CELLS, best_items, catalog_scores

Users = np.ndarray | Sequence[int | None]


class ModelRanker:
    """Scores every item for users given their histories, one forward pass of the prompts.

    The model's configuration says what ranks: RecLLM, or the collaborative language model (`ranking_task`).

    Args:
        model: a `CLLM4RecForRecommendation`, or another class of the same checkpoint's with that task.
        prompts: prompt builder over the model's tokenizer.
        max_length: longest prompt in tokens; longer histories lose their oldest items.
        tokens_per_batch: bound on padded tokens in one forward pass; by default 2,048 on a CPU, whose caches hold no
            more of them, and 16,384 elsewhere.
        score_cells: bound on users x items that are scored at once by `best`, see `best_items`.
    """

    def __init__(
        self,
        model: Any,
        prompts: PromptBuilder,
        max_length: int = 1024,
        tokens_per_batch: int | None = None,
        score_cells: int = SCORE_CELLS,
    ):
        self.model, self.prompts = model, prompts
        self.max_length, self.tokens_per_batch, self.score_cells = max_length, tokens_per_batch, score_cells

    def score(self, users: Users, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores of all items.

        Args:
            users: [B] user indices; None or a negative index for a history without a user token.
            histories: item indices of each history, oldest first.

        Returns:
            [B, J] float32 logits.
        """
        num_items = self.prompts.num_items
        out = np.empty((len(histories), num_items), dtype=np.float32)
        with self._inference():
            scores = catalog_scores(self.model, self._queries(users, histories))
            height = max(1, self.score_cells // num_items)
            for start in range(0, len(out), height):
                rows = slice(start, start + height)
                out[rows] = scores(rows, slice(0, num_items)).cpu().numpy()
        return out

    def best(
        self,
        users: Users,
        histories: Sequence[np.ndarray],
        seen: Sequence[np.ndarray],
        top_k: int,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each history; no matrix of users x items is ever held.

        Args:
            users: [B] user indices, as in `score`.
            histories: item indices of each history, oldest first.
            seen: items to leave out of each answer.
            top_k: how many.
            allowed: [J] bool, items that may be recommended; None for all.

        Returns:
            items [B, K] int64 and log p [B, K] float32, as `best_items` returns them.
        """
        with self._inference():
            scores = catalog_scores(self.model, self._queries(users, histories))
            return best_items(
                scores, self.prompts.num_items, seen, top_k, allowed, self.score_cells, self.model.device
            )

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)

    def _queries(self, users: Users, histories: Sequence[np.ndarray]) -> Tensor:
        """[B, d] float32 on the model's device: the one place where prompts run through the backbone."""
        device = self.model.device
        known = [None if user is None or user < 0 else int(user) for user in users]
        prompts = history_prompts(self.prompts, known, histories, self.max_length, ranking_task(self.model))
        queries = torch.empty(len(prompts), self.model.config.hidden_size, device=device)
        bound = self.tokens_per_batch or (2048 if device.type == "cpu" else 16_384)
        for batch in length_batches([len(prompt) for prompt in prompts], bound):
            inputs = prompt_batch([prompts[i] for i in batch], self.prompts.pad_id)
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            queries[torch.from_numpy(batch).to(device)] = self.model.recommendation_queries(**inputs).float()
        return queries


def ranking_task(model: Any) -> str:
    """The task whose prompts a model ranks by."""
    # a model of code that came with an older checkpoint knows one way only
    return getattr(model.config, "ranking_task", "recommendation")


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[np.ndarray]:
    """Group rows of similar length so that rows x longest length stays within a bound.

    Args:
        lengths: tokens of each row.
        tokens_per_batch: the bound; a single longer row makes a batch of its own.

    Returns:
        Index arrays that cover every row once.
    """
    order = np.argsort(lengths, kind="stable")[::-1].copy()
    batches, start = [], 0
    while start < len(order):
        count = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + count])
        start += count
    return batches
