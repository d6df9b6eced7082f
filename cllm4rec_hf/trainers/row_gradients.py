"""Gradients that name the rows of a table: their norm, and their exchange between processes."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_NONE, _ROWS, _DENSE = 0, 1, 2


def gradient_norm(parameters: Iterable[Tensor], max_norm: float = math.inf) -> Tensor:
    """The norm of all gradients, row-sparse ones included; scales them down to `max_norm` where they exceed it.

    Args:
        parameters: their gradients count; a row-sparse one is coalesced on the way.
        max_norm: bound on the norm.

    Returns:
        Scalar float32, the norm before scaling.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            # a coalesced gradient hands out its values themselves, no copy
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    if not values:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value.float()) for value in values]))
    if math.isfinite(max_norm):
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for value in values:
            value.mul_(factor.to(value.dtype))
    return norm


def share_row_gradients(accelerator: Any, parameters: Iterable[Tensor]) -> None:
    """Give every process the mean of all processes' gradients, sending rows where only rows have one.

    What DistributedDataParallel does for dense gradients; it cannot do this for rows on every backend.

    Args:
        accelerator: the running accelerator.
        parameters: tables and others, the same in the same order in every process.
    """
    processes = accelerator.num_processes
    weights = [parameter for parameter in parameters if parameter.requires_grad]
    kinds = torch.tensor([_kind(weight.grad) for weight in weights], device=accelerator.device)
    # a process may have read no row of a table, or none yet
    kinds = accelerator.gather(kinds).view(processes, -1).amax(dim=0).tolist()
    for weight, kind in zip(weights, kinds, strict=True):
        if kind == _DENSE:
            own = torch.zeros_like(weight) if weight.grad is None else weight.grad.to_dense()
            weight.grad = accelerator.reduce(own, "mean")
        elif kind == _ROWS:
            rows, values = _rows(weight)
            count = torch.tensor([len(rows)], device=accelerator.device)
            counts = accelerator.gather(count).tolist()
            gathered = [accelerator.gather(accelerator.pad_across_processes(part)) for part in (rows, values)]
            longest = max(counts)
            kept = torch.cat([torch.arange(n, device=rows.device) + p * longest for p, n in enumerate(counts)])
            weight.grad = torch.sparse_coo_tensor(
                gathered[0][kept].unsqueeze(0), gathered[1][kept] / processes, weight.shape, check_invariants=False
            ).coalesce()


def _kind(gradient: Tensor | None) -> int:
    if gradient is None:
        return _NONE
    return _ROWS if gradient.is_sparse else _DENSE


def _rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    if weight.grad is None:
        return torch.empty(0, dtype=torch.int64, device=weight.device), weight.new_empty(0, *weight.shape[1:])
    gradient = weight.grad.coalesce()
    return gradient.indices()[0], gradient.values()
