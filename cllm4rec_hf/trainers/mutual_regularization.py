"""Stage 2: collaborative and content language model learn in turn and regularize each other."""

from typing import Any

from ..data.collators import CollaborativeCollator, ContentCollator, TaskCollator
from ..data.corpora import ContentCorpus, InteractionCorpus
from .arguments import MutualRegularizationArguments
from .base import CLLM4RecTrainer


class MutualRegularizationTrainer(CLLM4RecTrainer):
    """Mutually regularized pretraining: an L-step on interaction documents, then a C-step on content documents.

    An epoch is one pass over the interaction documents; the content documents go on from epoch to epoch. Without
    content there are L-steps alone (the ablation LLM-CF).

    Args:
        model: a CLLM4Rec model with a task head.
        args: training arguments.
        interactions: interaction documents of the task `collaborative`.
        collator: their collator.
        content: the content documents, or None.
        content_collator: their collator.
        kwargs: see `CLLM4RecTrainer`.
    """

    def __init__(
        self,
        model: Any,
        args: MutualRegularizationArguments,
        interactions: InteractionCorpus,
        collator: CollaborativeCollator,
        content: ContentCorpus | None = None,
        content_collator: ContentCollator | None = None,
        **kwargs: Any,
    ):
        corpora = (interactions,) if content is None else (interactions, content)
        collators = {"collaborative": collator, "content": content_collator}
        super().__init__(model, args, corpora, TaskCollator(collators), **kwargs)
