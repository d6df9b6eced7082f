"""What an evaluation yields, tables of several, and the difference of two."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import bootstrap_interval


@dataclass
class EvaluationResult:
    """Metrics of one ranker on one split.

    Args:
        split: the split that was ranked for.
        num_users: number n of users that the means are over, those with something to find.
        metrics: mean of each metric over users.
        intervals: 95 % bootstrap interval of each mean; empty when it was not asked for.
        per_user: each metric's values, [n] float64.
        users: [n] int64 user indices.
        num_skipped: users left out because the split holds nothing of theirs.
    """

    split: str
    num_users: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(repr=False)
    per_user: dict[str, np.ndarray] = field(repr=False)
    users: np.ndarray = field(repr=False)
    num_skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What evaluation.json holds: {"split", "num_users", "recall@20", …, "intervals": {"recall@20": [lo, hi], …}}.

        Returns:
            Plain Python values; `intervals` is there only if they were computed.
        """
        out: dict[str, Any] = {"split": self.split, "num_users": self.num_users, **self.metrics}
        if self.intervals:
            out["intervals"] = {name: list(bounds) for name, bounds in self.intervals.items()}
        return out


class PairedDifference(NamedTuple):
    """Mean over users of one ranker's metric minus another's, with the bounds of its bootstrap interval."""

    difference: float
    low: float
    high: float


def paired_difference(
    a: EvaluationResult, b: EvaluationResult, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> dict[str, PairedDifference]:
    """By how much ranker a beats ranker b, user by user.

    Users differ far more than rankers do, so this interval is much narrower than those of the two means suggest.

    Args:
        a: result of the one ranker.
        b: result of the other, of the same users and split.
        confidence: share of resampled differences inside the interval.
        num_resamples: resamples of the bootstrap.
        seed: seed of the bootstrap.

    Returns:
        For each metric that both have: the mean of a − b and its interval.

    Raises:
        ValueError: if the results are not of the same users and split.
    """
    if a.split != b.split or not np.array_equal(a.users, b.users):
        raise ValueError(
            f"Paired differences need the same split and users; got {a.split} with {a.num_users} users and {b.split} "
            f"with {b.num_users}. Evaluate both rankers by one Evaluator"
        )
    out = {}
    for name in a.metrics:
        if name in b.metrics:
            values = a.per_user[name] - b.per_user[name]
            out[name] = PairedDifference(
                float(values.mean()), *bootstrap_interval(values, confidence, num_resamples, seed)
            )
    return out


def format_table(rows: Sequence[tuple[str, EvaluationResult]]) -> str:
    """An aligned text table: a row a method, each metric with its interval as in `0.371 [0.355, 0.387]`.

    Args:
        rows: name and result of each method; a metric that one of them lacks stands as `-`.

    Returns:
        The lines, without a line end after the last.
    """
    names = list(dict.fromkeys(name for _, result in rows for name in result.metrics))
    cells = [["method", "users", *names]]
    for method, result in rows:
        cells.append([method, str(result.num_users), *(_cell(result, name) for name in names)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for method, users, *values in cells:
        parts = [method.ljust(widths[0]), users.rjust(widths[1])]
        parts += [value.ljust(width) for value, width in zip(values, widths[2:], strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _cell(result: EvaluationResult, name: str) -> str:
    if name not in result.metrics:
        return "-"
    mean = f"{result.metrics[name]:.3f}"
    if name not in result.intervals:
        return mean
    low, high = result.intervals[name]
    return f"{mean} [{low:.3f}, {high:.3f}]"
