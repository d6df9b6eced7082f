"""A trained model as a ranker: histories in, scores of the whole catalog out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data.collators import history_prompts, prompt_batch
from ..data.prompts import PromptBuilder


class ModelRanker:
    """Scores every item for users given their histories, one forward pass of the prompts (RecLLM's prediction).

    Args:
        model: a `CLLM4RecForRecommendation`, or another class of the same checkpoint's with that task.
        prompts: prompt builder over the model's tokenizer.
        max_length: longest prompt in tokens; longer histories lose their oldest items.
        tokens_per_batch: bound on padded tokens in one forward pass.
    """

    def __init__(self, model: Any, prompts: PromptBuilder, max_length: int = 1024, tokens_per_batch: int = 8192):
        self.model, self.prompts = model, prompts
        self.max_length, self.tokens_per_batch = max_length, tokens_per_batch

    def score(self, users: np.ndarray | Sequence[int | None], histories: Sequence[np.ndarray]) -> np.ndarray:
        """Scores of all items.

        Args:
            users: [B] user indices; None or a negative index for a history without a user token.
            histories: item indices of each history, oldest first.

        Returns:
            [B, J] float32 logits.
        """
        known = [None if user is None or user < 0 else int(user) for user in users]
        rows = history_prompts(self.prompts, known, histories, self.max_length)
        scores = np.empty((len(rows), self.prompts.num_items), dtype=np.float32)
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in length_batches([len(row) for row in rows], self.tokens_per_batch):
                inputs = prompt_batch([rows[i] for i in batch], self.prompts.pad_id)
                inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
                with torch.inference_mode():
                    scores[batch] = self.model(**inputs, task="recommendation").logits.float().cpu().numpy()
        finally:
            self.model.train(was_training)
        return scores


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[np.ndarray]:
    """Group rows of similar length so that rows x longest length stays within a bound.

    Args:
        lengths: tokens of each row.
        tokens_per_batch: the bound; a single longer row makes a batch of its own.

    Returns:
        Index arrays that cover every row once.
    """
    order = np.argsort(lengths, kind="stable")[::-1]
    batches, start = [], 0
    while start < len(order):
        count = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + count])
        start += count
    return batches
