"""The metrics as modules of the library `evaluate`: `evaluate.load(module_path("recall"), "20")`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MODULES = ("recall", "ndcg")


def module_path(name: str) -> str:
    """Path of a metric's script, the first argument of `evaluate.load`; the second is the depth k, `"20"`.

    Args:
        name: `recall` or `ndcg`.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in MODULES:
        raise ValueError(f"There is no metric {name!r}; expected one of {', '.join(MODULES)}")
    return str(Path(__file__).parent / f"{name}_at_k.py")


class ByName:
    """Base of the modules: takes external ids and indices alike, by making text of both."""

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add users: their ranked items, best first, and the relevant ones."""
        predictions, references = ([list(map(str, row)) for row in rows] for rows in (predictions, references))
        super().add_batch(predictions=predictions, references=references, **kwargs)  # type: ignore[misc]

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one user."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)


def features() -> Any:
    """What the modules take: ranked and relevant items of each user."""
    from datasets import Features, Sequence, Value

    return Features({name: Sequence(Value("string")) for name in ("predictions", "references")})


def depth(config_name: str | None, k: int | None) -> int:
    """The depth k: an argument of `compute`, or the configuration that was loaded.

    Raises:
        ValueError: if it is neither given nor a positive number.
    """
    value: Any = config_name if k is None else k
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ValueError(
            f"The depth k must be a positive number, got {value!r}; load the metric as evaluate.load(path, '20')"
        )
    return number


def mean_at_k(
    metric: Callable[..., np.ndarray], predictions: Sequence[Sequence], references: Sequence[Sequence], k: int
) -> float:
    """The metric's mean over the users with at least one relevant item, as the evaluator takes it.

    Args:
        metric: a function of ranked [B, K], relevant, k.
        predictions: ranked items of each user, best first.
        references: relevant items of each user.
        k: depth.

    Returns:
        The mean; NaN if no user has a relevant item.
    """
    index: dict[Any, int] = {}
    relevant = [
        np.array(sorted({index.setdefault(item, len(index)) for item in row}), dtype=np.int64) for row in references
    ]
    ranked = np.full((len(predictions), max(k, 1)), -1, dtype=np.int64)
    for row, items in zip(ranked, predictions, strict=True):
        best = [index.setdefault(item, len(index)) for item in items[:k]]
        row[: len(best)] = best
    values = metric(ranked, relevant, k)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
