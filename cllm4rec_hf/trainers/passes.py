"""Micro-batches in passes of a bounded number of tokens: memory does not depend on how long documents are."""

from typing import Any

import torch
from torch import Tensor

# where a pass is long enough for matrix products to run at full speed, and its activations are still small
CPU_TOKENS, ACCELERATOR_TOKENS = 4096, 8192


def tokens_per_pass(asked: int | None, device: torch.device) -> int:
    """The bound that was asked for, or the device's own."""
    return asked or (CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS)


def split_batch(batch: dict[str, Any], tokens: int, computes_padding: bool) -> list[dict[str, Any]]:
    """Split a batch of documents by their number of tokens.

    Args:
        batch: input_ids, attention_mask and labels, [B, …] int64, padded on the right, and what belongs to all of it.
        tokens: bound on a part's tokens; a single longer document is a part of its own.
        computes_padding: whether padding counts, as where layers compute it.

    Returns:
        The parts, long documents first; the batch itself where it is small enough.
    """
    lengths = batch["attention_mask"].sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    cuts, cost = [0], 0
    for index, length in enumerate(lengths[order].tolist()):
        longest = int(lengths[order[cuts[-1]]])
        cost += longest if computes_padding else length
        if cost > tokens and index > cuts[-1]:
            cuts.append(index)
            cost = length
    if len(cuts) == 1:
        return [batch]
    ends = [*cuts[1:], len(order)]
    return [_rows(batch, order[start:end]) for start, end in zip(cuts, ends, strict=True)]


def _rows(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some documents of a batch, without the columns that are padding in all of them."""
    columns = int(batch["attention_mask"][rows].sum(dim=1).max())
    width = batch["input_ids"].shape[1]
    part = {}
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.dim() == 2:
            value = value[rows]
            if value.shape[1] == width:
                value = value[:, :columns]
        part[name] = value
    return part
