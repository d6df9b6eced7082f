"""Full-ranking evaluation: every item but the seen ones is ranked for every user."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from ..data.prepared import Histories, PreparedData
from ..errors import CLLM4RecError
from .bootstrap import bootstrap_interval
from .metrics.hits import hits
from .metrics.ndcg import ndcg
from .metrics.recall import recall
from .ranking import top_k
from .result import EvaluationResult, PairedDifference, format_table, paired_difference

__all__ = [
    "EvaluationResult",
    "Evaluator",
    "PairedDifference",
    "Ranker",
    "format_table",
    "paired_difference",
    "parse_metric",
]

logger = logging.getLogger(__name__)

METRICS: dict[str, Callable[..., np.ndarray]] = {"recall": recall, "ndcg": ndcg}
PAPER_METRICS = ("recall@20", "recall@40", "ndcg@100")

# what is known at the time of each split, and therefore neither ranked nor forbidden to a ranker
KNOWN_SPLITS = {"validation": ("train",), "test": ("train", "validation")}


class Ranker(Protocol):
    """Anything that scores the whole catalog for users given their histories."""

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Scores [B, J] float32, higher is better, for user indices [B] int64 and their histories, oldest first."""
        ...


class Evaluator:
    """Ranks all items but those seen in training (and in validation, when testing), as the paper does.

    Works batch by batch: no users x items matrix is ever held.

    Args:
        data: prepared data.
        split: `validation` or `test`.
        metrics: names of the form `recall@20`.
        batch_size: users scored at once.
        seed: seed of the bootstrap.
        num_resamples: resamples of the bootstrap.
        history_splits: splits that make the history a ranker is given. For the test split `("train", "validation")`
            gives it all that is known by then; what is left out of the ranking does not depend on this.

    Raises:
        CLLM4RecError: if the split or a metric is unknown, or the history would hold what is to be found.
        ValueError: if `batch_size` is not positive.
    """

    def __init__(
        self,
        data: PreparedData,
        split: str = "test",
        metrics: Sequence[str] = PAPER_METRICS,
        batch_size: int = 256,
        seed: int = 0,
        num_resamples: int = 1000,
        history_splits: Sequence[str] = ("train",),
    ):
        if split not in KNOWN_SPLITS:
            raise CLLM4RecError(f"Unknown split {split!r} to evaluate on; expected {' or '.join(KNOWN_SPLITS)}")
        if isinstance(metrics, str) or not metrics:
            raise CLLM4RecError(f"Expected a list of metrics, e.g. {list(PAPER_METRICS)}; got {metrics!r}")
        if isinstance(history_splits, str) or not set(history_splits) <= set(KNOWN_SPLITS[split]):
            raise CLLM4RecError(
                f"A history for the {split} split may hold {' and '.join(KNOWN_SPLITS[split])} only, or the answers "
                f"leak; got {history_splits!r}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        self.split, self.batch_size, self.seed, self.num_resamples = split, batch_size, seed, num_resamples
        self.metrics = {name: parse_metric(name) for name in metrics}
        self.histories = data.histories(*history_splits)
        self.seen = data.histories(*KNOWN_SPLITS[split])
        self.relevant = data.histories(split)

    def evaluate(
        self,
        ranker: Ranker,
        users: np.ndarray | None = None,
        progress: bool = False,
        bootstrap: bool = True,
        accelerator: Any = None,
    ) -> EvaluationResult:
        """Rank for every user with something to find.

        Args:
            ranker: what is evaluated.
            users: [n] int distinct user indices; all users by default. Those without an item in the split are left
                out of the means and counted in `num_skipped`.
            progress: whether to show a progress bar (after two seconds).
            bootstrap: whether to compute intervals.
            accelerator: shares the users out among its processes; every process gets the result.

        Returns:
            The metrics.

        Raises:
            CLLM4RecError: if no user has anything to find.
            ValueError: if a user index is out of range or given twice, or the ranker's scores are not [B, J] finite
                numbers.
        """
        chosen = self._choose(users)
        per_user = {name: np.zeros(len(chosen)) for name in self.metrics}
        depth = max(k for _, k in self.metrics.values())
        process, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        starts: Iterable[int] = range(process * self.batch_size, len(chosen), self.batch_size * processes)
        if progress:
            from tqdm.auto import tqdm

            starts = tqdm(starts, desc=f"Ranking ({self.split})", unit="batch", delay=2)
        warned = False
        for start in starts:
            batch = chosen[start : start + self.batch_size]
            scores = ranker.score(batch, _rows(self.histories, batch))
            self._check(scores, batch, ranker)
            if scores.dtype == np.float16 and not warned:
                warned = True
                logger.warning(
                    "%s scores in float16, which makes many items tie; expected float32", type(ranker).__name__
                )
            try:
                ranked, _ = top_k(scores, _rows(self.seen, batch), depth)
            except ValueError as error:
                raise ValueError(
                    f"{type(ranker).__name__}.score for users {batch[0]} to {batch[-1]} cannot be ranked: {error}"
                ) from error
            relevant = _rows(self.relevant, batch)
            hit = hits(ranked, relevant)
            for name, (metric, k) in self.metrics.items():
                per_user[name][start : start + len(batch)] = metric(ranked, relevant, k, hit=hit)
        if processes > 1:
            per_user = {name: _add_up(accelerator, values) for name, values in per_user.items()}
        intervals = {}
        if bootstrap:
            intervals = {
                name: bootstrap_interval(values, num_resamples=self.num_resamples, seed=self.seed)
                for name, values in per_user.items()
            }
        means = {name: float(values.mean()) for name, values in per_user.items()}
        skipped = (len(self.relevant) if users is None else len(users)) - len(chosen)
        return EvaluationResult(self.split, len(chosen), means, intervals, per_user, chosen, skipped)

    def _choose(self, users: np.ndarray | None) -> np.ndarray:
        num_users = len(self.relevant)
        chosen = np.arange(num_users) if users is None else np.asarray(users)
        if chosen.size:
            if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
                raise ValueError(f"Expected a vector of user indices; got {chosen.dtype} of shape {chosen.shape}")
            outside = chosen[(chosen < 0) | (chosen >= num_users)]
            if len(outside):
                raise ValueError(f"User {int(outside[0])} is out of range; there are {num_users} users, from 0")
            if len(np.unique(chosen)) < len(chosen):
                raise ValueError("A user is listed twice and would count twice in the means; pass np.unique(users)")
            chosen = chosen[np.diff(self.relevant.indptr)[chosen] > 0].astype(np.int64)
        if not chosen.size:
            asked = num_users if users is None else len(users)
            raise CLLM4RecError(
                f"None of the {asked} users has an item in the {self.split} split, so there is nothing to evaluate; "
                "prepare the data with a larger share for it, or choose other users"
            )
        return chosen

    def _check(self, scores: Any, users: np.ndarray, ranker: Ranker) -> None:
        name = f"{type(ranker).__name__}.score"
        if not isinstance(scores, np.ndarray):
            raise ValueError(
                f"{name} returned {type(scores).__name__}; expected a float32 numpy array "
                "(for a tensor: .detach().float().cpu().numpy())"
            )
        expected = (len(users), self.relevant.num_items)
        if scores.shape != expected:
            hint = "; are rows and columns swapped?" if scores.shape == expected[::-1] else ""
            raise ValueError(
                f"{name} returned the shape {scores.shape} for {len(users)} users; expected {expected}, one score for "
                f"each item of the catalog{hint}"
            )
        if not np.issubdtype(scores.dtype, np.floating):
            raise ValueError(f"{name} returned {scores.dtype}; expected float32 (.astype(np.float32))")


def parse_metric(name: str) -> tuple[Callable[..., np.ndarray], int]:
    """The function and the depth that a name like `recall@20` stands for.

    Args:
        name: name of a known metric, an at sign and a positive integer.

    Returns:
        The metric, called as `metric(ranked, relevant, k, hit=…)`, and k.

    Raises:
        CLLM4RecError: if the name has another form or the metric is unknown.
    """
    match = re.fullmatch(r"(\w+)@([1-9][0-9]*)", name)
    if match is None or match[1] not in METRICS:
        known = ", ".join(f"{metric}@k" for metric in METRICS)
        raise CLLM4RecError(f"Unknown metric {name!r}; expected {known} with a positive k, e.g. recall@20")
    return METRICS[match[1]], int(match[2])


def _rows(histories: Histories, users: np.ndarray) -> list[np.ndarray]:
    return [histories[int(user)] for user in users]


def _add_up(accelerator: Any, values: np.ndarray) -> np.ndarray:
    """The sum over processes: each has filled in its own users, and zeros elsewhere."""
    import torch

    return accelerator.reduce(torch.from_numpy(values).to(accelerator.device), "sum").cpu().numpy()
