"""AdamW that touches only the rows of a table which the step's documents read."""

import math
import mmap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RowAdamW(torch.optim.Optimizer):
    """AdamW whose state belongs to rows: a row without a gradient is left as it is, moments and all.

    Every row counts its own updates t. A row's trajectory is that of dense AdamW (Loshchilov and Hutter, ICLR 2019)
    run on that row alone and on the steps that gave it a gradient:

        m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,
        θ ← (1 − η λ) θ − η · m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε).

    Where every row has a gradient in every step, the result is that of `torch.optim.AdamW`. A sparse gradient names
    its rows; a dense gradient touches them all. Rows of moments take memory once they are touched (on CPU): nobody
    writes the pages of the others.

    Args:
        params: parameters or groups of them.
        lr: learning rate η.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ, decoupled; a row decays in the steps that touch it.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie between 0 and 1, got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as in torch, which leaves counts of steps where they were saved: they belong beside the rows."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["step"] = state["step"].to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every row that has a gradient.

        Args:
            closure: computes the loss anew, as in torch.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(parameter.shape[:1], dtype=torch.int32, device=parameter.device)
                    state["exp_avg"], state["exp_avg_sq"] = _untouched(parameter), _untouched(parameter)
                if parameter.grad.is_sparse:
                    self._step_rows(parameter, state, group)
                else:
                    self._step_all(parameter, state, group)
        return loss

    def _step_rows(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        # .grad keeps the sorted form, so that whoever asks next need not sort again
        parameter.grad = gradient = parameter.grad.coalesce()  # type: ignore[union-attr]
        rows, values = gradient.indices()[0], gradient.values()
        if not len(rows):
            return
        parts = [state[name].index_select(0, rows) for name in ("step", "exp_avg", "exp_avg_sq")]
        moved = parameter.index_select(0, rows)
        _update(moved, values, parts[0], parts[1], parts[2], group)
        for name, part in zip(("step", "exp_avg", "exp_avg_sq"), parts, strict=True):
            state[name].index_copy_(0, rows, part)
        parameter.index_copy_(0, rows, moved)

    def _step_all(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        _update(parameter, parameter.grad, state["step"], state["exp_avg"], state["exp_avg_sq"], group)  # type: ignore[arg-type]


def _untouched(parameter: Tensor) -> Tensor:
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return torch.zeros_like(parameter, memory_format=torch.preserve_format)
    # pages that the system hands out when they are first written; torch's zeros would write them all
    pages = mmap.mmap(-1, max(1, parameter.numel() * 4))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # by small pages, or a row would take two megabytes
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, dtype=np.float32, count=parameter.numel())).view(parameter.shape)


def _update(
    weight: Tensor, gradient: Tensor, step: Tensor, average: Tensor, square: Tensor, group: dict[str, Any]
) -> None:
    """AdamW in place on rows with their own step counts."""
    beta1, beta2 = group["betas"]
    step += 1
    shape = step.shape + (1,) * (weight.dim() - 1)
    count = step.float().view(shape)
    size = group["lr"] / _correction(count, beta1)
    scale = _correction(count, beta2) ** 0.5
    if group["weight_decay"]:
        weight.mul_(1 - group["lr"] * group["weight_decay"])
    average.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    weight.sub_(average / (square.sqrt() / scale).add_(group["eps"]) * size)


def _correction(count: Tensor, beta: float) -> Tensor:
    # 1 − βᵗ, which would lose half its digits in single precision for small t
    return torch.ones_like(count) if beta == 0 else -torch.expm1(count * math.log(beta))
