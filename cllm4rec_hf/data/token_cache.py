"""Tokenized texts as a memory-mapped Arrow file that the next start finds again."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrow_cache import cache_root, read_or_write
from .prompts import PromptBuilder

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# raised when the same texts come to give other files
_VERSION = 1
_TOKENS_FILE = "tokens.arrow"

# texts that the tokenizer is given at a time, which it reads in parallel
_BATCH = 2000
_BAR_AFTER_SECONDS = 2


def tokenized_texts(
    texts: Any,
    prompts: PromptBuilder,
    budget: int,
    fingerprint: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> "Dataset":
    """Texts as token ids; empty ones are left out.

    Args:
        texts: rows with the columns kind, user, item, text.
        prompts: the builder whose tokenizer reads the texts.
        budget: longer texts are cut after so many tokens.
        fingerprint: what tells these texts from any others. With one, the tokens are kept in the cache, and found
            there by the next start with the same texts, tokenizer, prompts and budget; without one, in memory.
        cache_dir: directory of the cache; by default `cllm4rec` in the cache directory of `datasets`.

    Returns:
        Rows with kind, user, item and input_ids; memory-mapped where they come from the cache.
    """
    import datasets

    if fingerprint is None or not datasets.is_caching_enabled():
        return _in_memory(texts, prompts, budget)
    root = cache_root() if cache_dir is None else Path(cache_dir)
    entry = root / cache_key(texts, prompts, budget, fingerprint)
    try:
        return _from_cache(entry, texts, prompts, budget)
    except (OSError, NotImplementedError) as error:
        # no room, no right to write, or a file system without locks
        logger.warning("The tokenized texts cannot be kept in %s (%s); they stay in memory", root, error)
        return _in_memory(texts, prompts, budget)


def cache_key(texts: Any, prompts: PromptBuilder, budget: int, fingerprint: str) -> str:
    """Name of a cache entry: a hash of everything that its tokens depend on.

    Args:
        texts: the texts; their number goes into the key.
        prompts: the prompt builder.
        budget: longest text in tokens.
        fingerprint: what tells these texts from any others.
    """
    parts = [_VERSION, fingerprint, len(texts), prompts.fingerprint(), budget]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _from_cache(entry: Path, texts: Any, prompts: PromptBuilder, budget: int) -> "Dataset":
    def write(file: Path) -> None:
        _write(file, texts, prompts, budget)

    return read_or_write(entry, _TOKENS_FILE, write, "tokenized texts", "tokenizing")


def _features() -> Any:
    from datasets import Features, List, Value

    return Features(
        {"kind": Value("string"), "user": Value("int32"), "item": Value("int32"), "input_ids": List(Value("int32"))}
    )


def _write(file: Path, texts: Any, prompts: PromptBuilder, budget: int) -> None:
    """Write an Arrow stream."""
    from datasets.arrow_writer import ArrowWriter

    with file.open("wb") as stream:
        writer = ArrowWriter(features=_features(), stream=stream)
        for table in _tables(texts, prompts, budget):
            writer.write_table(table)
        writer.finalize()


def _in_memory(texts: Any, prompts: PromptBuilder, budget: int) -> "Dataset":
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

    tables = list(_tables(texts, prompts, budget))
    table = pa.concat_tables(tables) if tables else _features().arrow_schema.empty_table()
    # with a fingerprint, datasets need not serialise the table to hash it
    return Dataset(table, fingerprint=generate_random_fingerprint())


def _tables(texts: Any, prompts: PromptBuilder, budget: int) -> Iterator[Any]:
    """Tokenized texts in Arrow tables, with a progress bar if it takes long."""
    import pyarrow as pa
    from datasets.utils import tqdm

    schema = _features().arrow_schema
    bar = tqdm(total=len(texts), desc="Tokenizing texts", unit="text", unit_scale=True, delay=_BAR_AFTER_SECONDS)
    with contextlib.closing(bar):
        for rows in texts.with_format("arrow").iter(_BATCH):
            words = rows["text"].to_pylist()
            written = [bool(text.strip()) for text in words]
            if not all(written):
                rows = rows.filter(pa.array(written))
                words = rows["text"].to_pylist()
            if words:
                ids = prompts.main_texts(words, budget)
                offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
                values = np.fromiter((token for row in ids for token in row), np.int32, count=int(offsets[-1]))
                tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
                columns = [rows["kind"], rows["user"], rows["item"], tokens]
                yield pa.table(columns, names=schema.names).cast(schema)
            bar.update(len(written))
