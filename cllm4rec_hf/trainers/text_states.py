"""What the backbone makes of the items' texts: a start for item vectors, and so for item tokens."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..baselines.text_encoder import TextEncoder, affordable_length, windows_of
from ..data.arrow_cache import cache_root, read_or_write
from ..data.item_texts import item_documents
from ..data.prepared import PreparedData
from ..modeling.backbone_cllm4rec import load_backbone_config
from .building import choose_dtype

logger = logging.getLogger(__name__)

# raised when the same words come to give other states
_VERSION = 1

# blocks that the words pass through: deeper states of a causal model turn to the next word
_LAYER = 6
# variances are taken to be at least this share of the largest: below it lies rounding
_LEAST_VARIANCE = 1e-6


def text_states(data: PreparedData, settings: Any) -> np.ndarray | None:
    """Whitened mean hidden state of each item's texts, in which rare words weigh more.

    A word's state counts with the word's inverse document frequency, as in TF-IDF. Hidden states share one large
    direction and vary in few; less their mean over the items and divided by the words' standard deviation along each
    principal direction, all directions count alike. They are kept in the cache of `datasets`, where the next run on
    the same words and weights finds them.

    Args:
        data: the prepared data.
        settings: the run's; `backbone`, `backbone_revision`, `num_layers` and `dtype` are read.

    Returns:
        [J, d] float32, zeros for items without text; None when fewer than two items have words, which then differ from
        nothing.
    """
    documents = item_documents(data)
    if not any(documents):
        return None
    config = load_backbone_config(settings.backbone, settings.backbone_revision, settings.num_layers)
    # the last block's output passes through a final norm, the others' does not
    layer = min(_LAYER, max(1, config.num_hidden_layers - 1))
    dtype = choose_dtype(settings.dtype)
    encoder = TextEncoder(settings.backbone, [layer], settings.backbone_revision, dtype)
    ids = encoder.tokenize(documents, affordable_length(data.num_items))
    has_text = np.array([bool(row) for row in ids])
    if has_text.sum() < 2:
        return None
    words = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    identity = json.dumps([_VERSION, words, encoder.fingerprint(), encoder.window])
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return _cached(key, lambda: _whitened_means(ids, encoder, layer))


def _cached(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array [J, d] float32 by its key in the cache; computed where the cache lacks it or cannot be used."""
    import datasets
    import pyarrow as pa

    if not datasets.is_caching_enabled():
        return compute()
    fresh = None

    def write(file: Path) -> None:
        nonlocal fresh
        fresh = compute()
        rows = pa.FixedSizeListArray.from_arrays(pa.array(fresh.ravel()), fresh.shape[1])
        table = pa.table({"states": rows})
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)

    entry = cache_root() / f"states-{key}"
    try:
        table = read_or_write(entry, "states.arrow", write, "items' states", "reading their texts")
    except (OSError, NotImplementedError) as error:
        logger.warning("The states of the items' texts cannot be kept in %s (%s)", entry.parent, error)
        return compute() if fresh is None else fresh
    column = table.data.column("states").combine_chunks()
    return np.array(column.flatten()).reshape(len(column), -1)


def _whitened_means(ids: list[list[int]], encoder: TextEncoder, layer: int) -> np.ndarray:
    """The states [J, d] float32 of texts as token ids."""
    has_text = np.array([bool(row) for row in ids])
    means, mean, covariance = _weighted_means(ids, encoder, layer)
    variances, directions = np.linalg.eigh(covariance - np.outer(mean, mean))
    deviations = np.sqrt(np.maximum(variances, _LEAST_VARIANCE * variances[-1]).clip(min=1e-12))
    states = means.astype(np.float32)
    states -= means[has_text].mean(axis=0).astype(np.float32)
    states = states @ (directions / deviations).astype(np.float32)
    states[~has_text] = 0
    return states


def _weighted_means(ids: list[list[int]], encoder: TextEncoder, layer: int) -> tuple[np.ndarray, ...]:
    """IDF-weighted mean states [J, d] of each item, mean [d] and second moment [d, d] over all words, float64."""
    weights = _inverse_document_frequencies(ids)
    windows = windows_of(ids, encoder.window)
    size = encoder.hidden_size
    sums, totals = torch.zeros(len(ids), size, dtype=torch.float64), torch.zeros(len(ids), dtype=torch.float64)
    second = torch.zeros(size, size, dtype=torch.float64)
    for numbers, mask, states in encoder.read([words for _, words in windows]):
        rows = states[layer][mask].float().cpu()
        items = torch.tensor([windows[number][0] for number in numbers for _ in windows[number][1]])
        weight = torch.tensor([weights[word] for number in numbers for word in windows[number][1]])[:, None]
        weighted = rows * weight
        sums.index_add_(0, items, weighted.double())
        totals.index_add_(0, items, weight[:, 0].double())
        second += (weighted.T @ rows).double()
    means = sums / totals.clamp(min=1e-12)[:, None]
    return means.numpy(), (sums.sum(dim=0) / totals.sum()).numpy(), (second / totals.sum()).numpy()


def _inverse_document_frequencies(ids: list[list[int]]) -> dict[int, float]:
    """1 + log((1 + J) / (1 + n)) of each word, n the items in whose texts it occurs."""
    counts: dict[int, int] = {}
    for row in ids:
        for word in set(row):
            counts[word] = counts.get(word, 0) + 1
    return {word: float(1 + np.log((1 + len(ids)) / (1 + count))) for word, count in counts.items()}
