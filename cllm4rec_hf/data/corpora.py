"""Training documents: interaction documents of users and content documents (reviews, item and user texts)."""

import logging
import os
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from ..errors import DataError
from .prepared import Histories
from .prompts import PromptBuilder
from .token_cache import tokenized_texts

logger = logging.getLogger(__name__)


class DocumentKey(NamedTuple):
    """Names one reading of one document; what is random in it depends on this key and the seed alone.

    Args:
        corpus: position of its corpus in the `DocumentSet`.
        document: index in the corpus.
        reading: how often the corpus has been gone through before, e.g. the epoch.
    """

    corpus: int
    document: int
    reading: int


class InteractionCorpus:
    """One document a user: the items of its training history.

    Args:
        histories: training items of all users, oldest first.
        task: `collaborative` or `recommendation`.
        min_items: users with fewer items make no document.
    """

    def __init__(self, histories: Histories, task: str, min_items: int = 1):
        self.task = task
        self.histories = histories
        counts = np.diff(histories.indptr)
        self.users = np.flatnonzero(counts >= min_items)
        if not len(self.users):
            raise DataError(
                f"No user has {min_items} or more training items; the {task} task has nothing to learn from"
            )
        self.lengths = counts[self.users]

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> dict[str, Any]:
        user = int(self.users[index])
        return {"user": user, "items": self.histories[user]}


class ContentCorpus:
    """Tokenized texts with what they are about.

    Args:
        texts: rows with the columns kind, user, item, text.
        prompts: the builder whose tokenizer reads the texts.
        max_length: longest document in tokens, prompt included; longer texts are cut at their end.
        fingerprint: what tells these texts from any others, e.g. the `fingerprint` of `PreparedData`. With one, the
            tokens are kept on disk, and the next corpus of the same texts, tokenizer and length starts from there.
        cache_dir: where they are kept; by default `cllm4rec` in the cache directory of `datasets`.

    Raises:
        DataError: if there are no texts.
    """

    task = "content"

    def __init__(
        self,
        texts: Any,
        prompts: PromptBuilder,
        max_length: int,
        fingerprint: str | None = None,
        cache_dir: str | os.PathLike | None = None,
    ):
        if not len(texts):
            raise DataError(
                "The prepared data holds no texts, so there is nothing for the content language model. "
                "Prepare it with --text-column, --item-text-columns or --user-text-columns."
            )
        budget = max_length - prompts.content_overhead
        if budget < 1:
            raise DataError(
                f"max_text_length {max_length} leaves no room for a text after a prompt of {prompts.content_overhead} "
                f"tokens; expected at least {prompts.content_overhead + 1}"
            )
        import pyarrow.compute as pc

        table = tokenized_texts(texts, prompts, budget, fingerprint, cache_dir)
        self.table = table.with_format("numpy", columns=["input_ids"], output_all_columns=True)
        self.lengths = pc.list_value_length(table.data["input_ids"]).to_numpy().astype(np.int64)
        cut = int((self.lengths >= budget).sum())
        if cut:
            logger.info("%d of %d texts reach %d tokens and are cut there", cut, len(self.lengths), budget)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.table[int(index)]


class DocumentSet(Dataset):
    """Several corpora behind one index, addressed by `DocumentKey`.

    Args:
        corpora: the corpora, in the order that keys count them.
    """

    def __init__(self, *corpora: InteractionCorpus | ContentCorpus):
        self.corpora = corpora

    def __len__(self) -> int:
        return sum(len(corpus) for corpus in self.corpora)

    def __getitem__(self, key: DocumentKey) -> dict[str, Any]:
        corpus = self.corpora[key.corpus]
        return {"task": corpus.task, "key": key, **corpus[key.document]}
