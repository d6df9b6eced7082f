"""From documents to batches: random order, masking, prompt and main text without a gap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import CLLM4RecError
from .corpora import DocumentKey
from .prompts import PromptBuilder

IGNORED = -100

Batch = dict[str, Any]
Feature = dict[str, Any]


def document_generator(seed: int, key: DocumentKey) -> np.random.Generator:
    """The random stream of one reading of one document: independent of batches, workers and interruptions."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *key])))


def pad(rows: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Rows of unequal length as one [B, T] int64 tensor, padded on the right."""
    out = np.full((len(rows), max(1, max(len(row) for row in rows))), value, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


def attention_mask(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """[B, T] int64, 1 where a row has a token."""
    return pad([np.ones(len(row), dtype=np.int64) for row in rows], 0)


class LanguageModelCollator:
    """Base of the two language-model collators: joins prompts and main texts.

    Decoder-only backbones read prompt + main text as one row with labels on the main text; encoder-decoder backbones
    read the prompt, and their labels are the main text alone.

    Args:
        prompts: the prompt builder.
        max_length: longest document in tokens, prompt included.
        seed: seed of everything random.
    """

    def __init__(self, prompts: PromptBuilder, max_length: int, seed: int = 0):
        self.prompts, self.max_length, self.seed = prompts, max_length, seed

    def join(self, prompts: list[np.ndarray], mains: list[np.ndarray], task: str) -> Batch:
        """A batch of documents.

        Args:
            prompts: token ids of each prompt.
            mains: token ids of each main text, at least one.
            task: the documents' task.

        Returns:
            input_ids, attention_mask and labels, int64, and the task.
        """
        if self.prompts.is_encoder_decoder:
            rows, labels = prompts, mains
        else:
            rows = [np.concatenate(pair) for pair in zip(prompts, mains, strict=True)]
            labels = [
                np.concatenate([np.full(len(prompt), IGNORED), main])
                for prompt, main in zip(prompts, mains, strict=True)
            ]
        return {
            "input_ids": pad(rows, self.prompts.pad_id),
            "attention_mask": attention_mask(rows),
            "labels": pad(labels, IGNORED),
            "task": task,
        }


class ContentCollator(LanguageModelCollator):
    """Content documents: `<user_i> writes the following review for <item_j>:` + the words."""

    def __call__(self, features: list[Feature]) -> Batch:
        """Collate features with kind, user, item and input_ids (the words)."""
        prompts = [self.prompts.content(f["kind"], f["user"], f["item"]) for f in features]
        mains = [
            np.asarray(f["input_ids"][: self.max_length - len(prompt)], dtype=np.int64)
            for f, prompt in zip(features, prompts, strict=True)
        ]
        for feature, main in zip(features, mains, strict=True):
            if main.size and main.max() >= self.prompts.first_user_id:
                raise ValueError(
                    f"The main text of a {feature['kind']} (user {feature['user']}, item {feature['item']}) holds the "
                    f"ID token {main.max()}; expected words only. Tokenize texts with split_special_tokens=True."
                )
        return self.join(prompts, mains, "content")


class CollaborativeCollator(LanguageModelCollator):
    """Interaction documents: `<user_i> has interacted with` + its items in an order drawn anew at each reading.

    A history that does not fit loses its oldest items.

    Args:
        prompts: the prompt builder.
        max_length: longest document in tokens, prompt included.
        seed: seed of everything random.
        reorder: False keeps the stored order, oldest first (LLM-FixOrd).
    """

    def __init__(self, prompts: PromptBuilder, max_length: int, seed: int = 0, reorder: bool = True):
        super().__init__(prompts, max_length, seed)
        self.reorder = reorder

    def __call__(self, features: list[Feature]) -> Batch:
        """Collate features with user, items (oldest first) and key."""
        room = _room(self.max_length, self.prompts.interaction_overhead)
        prompts, mains = [], []
        for feature in features:
            items = np.asarray(feature["items"])[-room:]
            if self.reorder:
                items = document_generator(self.seed, feature["key"]).permutation(items)
            prompts.append(self.prompts.interaction(feature["user"]))
            mains.append(self.prompts.item_ids(items))
        return self.join(prompts, mains, "collaborative")


class RecommendationCollator:
    """Masks a random share of a user's items; the rest, in random order, is the prompt.

    A prompt that does not fit loses its oldest items; the ID tokens of the prompt's own words never.

    Args:
        prompts: the prompt builder.
        max_length: longest prompt in tokens.
        mask_share: lowest and highest share of items that are held out; drawn uniformly for each reading.
        anonymous_share: share of documents whose prompt has the word in place of the user token.
        seed: seed of everything random.
        reorder: False keeps the rest in the stored order, oldest first (LLM-FixOrd).

    Raises:
        ValueError: if a share is out of range.
    """

    def __init__(
        self,
        prompts: PromptBuilder,
        max_length: int,
        mask_share: tuple[float, float] = (0.2, 0.2),
        anonymous_share: float = 0.0,
        seed: int = 0,
        reorder: bool = True,
    ):
        low, high = mask_share
        if not 0 < low <= high < 1:
            raise ValueError(f"mask_share must be two ascending shares between 0 and 1, got {mask_share}")
        if not 0 <= anonymous_share <= 1:
            raise ValueError(f"anonymous_share must lie between 0 and 1, got {anonymous_share}")
        self.prompts, self.max_length, self.seed, self.reorder = prompts, max_length, seed, reorder
        self.mask_share, self.anonymous_share = mask_share, anonymous_share
        _room(max_length, prompts.recommendation_overhead)

    def __call__(self, features: list[Feature]) -> Batch:
        """Collate features with user, items (oldest first, two or more) and key."""
        room = _room(self.max_length, self.prompts.recommendation_overhead)
        rows, held_out = [], []
        for feature in features:
            generator = document_generator(self.seed, feature["key"])
            items = np.asarray(feature["items"])
            share = generator.uniform(*self.mask_share)
            count = min(max(1, round(share * len(items))), len(items) - 1)
            masked = np.zeros(len(items), dtype=bool)
            masked[generator.permutation(len(items))[:count]] = True
            kept = items[~masked][-room:]
            if self.reorder:
                kept = generator.permutation(kept)
            user = None if generator.random() < self.anonymous_share else feature["user"]
            rows.append(self.prompts.recommendation(user, kept))
            held_out.append(self.prompts.item_ids(items[masked]))
        return {**prompt_batch(rows, self.prompts.pad_id), "labels": pad(held_out, IGNORED), "task": "recommendation"}


def prompt_batch(rows: Sequence[np.ndarray], pad_id: int) -> Batch:
    """Prompts as input_ids and attention_mask, [B, T] int64."""
    return {"input_ids": pad(rows, pad_id), "attention_mask": attention_mask(rows)}


def history_prompts(
    prompts: PromptBuilder,
    users: Sequence[int | None],
    histories: Sequence[np.ndarray],
    max_length: int,
    task: str = "recommendation",
) -> list[np.ndarray]:
    """Prompts for prediction: the whole history in its stored order, its oldest items dropped where it does not fit.

    Args:
        prompts: the prompt builder.
        users: user indices, None for a history without a user token.
        histories: item indices of each history, oldest first.
        max_length: longest prompt in tokens.
        task: the model's `ranking_task`: `recommendation`, or `collaborative` for interaction documents, whose items
            follow the prompt without a gap.

    Returns:
        Token ids of each prompt.
    """
    is_document = task == "collaborative"
    room = _room(max_length, prompts.interaction_overhead if is_document else prompts.recommendation_overhead)
    rows = []
    for user, items in zip(users, histories, strict=True):
        latest = np.asarray(items)[-room:]
        if is_document:
            rows.append(np.concatenate([prompts.interaction(user), prompts.item_ids(latest)]))
        else:
            rows.append(prompts.recommendation(user, latest))
    return rows


class TaskCollator:
    """Hands a batch of one task's features to that task's collator.

    Args:
        collators: collator of each task.
    """

    def __init__(self, collators: dict[str, Any]):
        self.collators = collators

    def __call__(self, features: list[Feature]) -> Batch:
        """Collate features that all belong to one task."""
        tasks = {feature["task"] for feature in features}
        if len(tasks) != 1:
            raise ValueError(f"A batch must hold documents of one task, got {sorted(tasks)}")
        return self.collators[tasks.pop()](features)


def _room(max_length: int, overhead: int) -> int:
    if max_length <= overhead:
        raise CLLM4RecError(
            f"max_length {max_length} leaves no room for a single item beside the {overhead} tokens of the prompt; "
            f"expected at least {overhead + 1}"
        )
    return max_length - overhead
