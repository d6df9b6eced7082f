"""A tiny model, its corpora and collators, for the trainers' tests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from cllm4rec_hf import (
    CLLM4RecForRecommendation,
    CLLM4RecTokenizer,
    CollaborativeCollator,
    ContentCollator,
    ContentCorpus,
    Histories,
    InteractionCorpus,
    PromptBuilder,
    RecommendationCollator,
)
from cllm4rec_hf.evaluation.result import EvaluationResult
from tests.conftest import WORDS, make_backbone

USERS, ITEMS = 8, 10


@dataclass
class Parts:
    model: Any
    tokenizer: Any
    prompts: PromptBuilder
    histories: Histories
    collaborative: InteractionCorpus
    recommendation: InteractionCorpus
    content: ContentCorpus
    collaborative_collator: CollaborativeCollator
    recommendation_collator: RecommendationCollator
    content_collator: ContentCollator


def make_parts(base_tokenizer, family="llama", seed=0, **fields) -> Parts:
    vocabulary = len(base_tokenizer) + 6
    fields = {"history_rank": 4, "center_hidden": True, "learn_logit_scale": True, "item_bias": True, **fields}
    backbone = make_backbone(family, vocab_size=vocabulary)
    model = CLLM4RecForRecommendation.from_backbone(backbone, USERS, ITEMS, seed=seed, **fields)
    with torch.no_grad():
        for table in model.tables():
            table.weight.mul_(20)
        if model.item_head.history_queries is not None:
            model.item_head.history_queries.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed))
    tokenizer = CLLM4RecTokenizer.from_backbone(base_tokenizer, USERS, ITEMS, base_vocab_size=vocabulary)
    prompts = PromptBuilder(tokenizer, model.config.is_encoder_decoder)
    generator = np.random.Generator(np.random.PCG64(seed))
    # from 2 to 9 items: documents of different lengths
    lists = [generator.permutation(ITEMS)[: 2 + user] for user in range(USERS)]
    histories = Histories.from_lists(lists, ITEMS)
    rows = [("review", user, int(items[0]), WORDS[user % 3]) for user, items in enumerate(lists)]
    rows += [("item", None, item, WORDS[3 + item % 2]) for item in range(4)]
    rows += [("user", user, None, WORDS[3]) for user in range(4)]
    texts = Dataset.from_dict(
        dict(zip(("kind", "user", "item", "text"), map(list, zip(*rows, strict=True)), strict=True))
    )
    return Parts(
        model,
        tokenizer,
        prompts,
        histories,
        InteractionCorpus(histories, "collaborative"),
        InteractionCorpus(histories, "recommendation", min_items=2),
        ContentCorpus(texts, prompts, 48),
        CollaborativeCollator(prompts, 64, seed=5),
        RecommendationCollator(prompts, 64, (0.2, 0.4), 0.2, seed=5),
        ContentCollator(prompts, 48, seed=5),
    )


def tables(model) -> dict[str, torch.Tensor]:
    """Copies of everything that may learn, and of the backbone."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Judge:
    """Gives each state in turn the next of some scores, user by user."""

    def __init__(self, *scores):
        self.scores = iter(scores)

    def evaluate(self, ranker, bootstrap):
        values = np.asarray(next(self.scores), dtype=float)
        metrics, per_user = {"recall@20": values.mean()}, {"recall@20": values}
        return EvaluationResult("validation", len(values), metrics, {}, per_user, np.arange(len(values)))
