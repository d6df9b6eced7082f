"""Stage 1: the content language model alone."""

from typing import Any

from ..data.collators import ContentCollator, TaskCollator
from ..data.corpora import ContentCorpus
from .arguments import ContentArguments
from .base import CLLM4RecTrainer


class ContentTrainer(CLLM4RecTrainer):
    """Content warm-up: moves the content tables alone, without mutual regularization.

    Args:
        model: a CLLM4Rec model with a task head.
        args: training arguments.
        content: the content documents.
        collator: their collator.
        kwargs: see `CLLM4RecTrainer`.
    """

    regularize = False

    def __init__(
        self, model: Any, args: ContentArguments, content: ContentCorpus, collator: ContentCollator, **kwargs: Any
    ):
        super().__init__(model, args, (content,), TaskCollator({"content": collator}), **kwargs)

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        """The content tables, and the backbone where it trains."""
        return [*self._content_groups(model), *self._other_groups(model)]
