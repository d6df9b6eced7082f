"""Choosing hyper-parameters on validation, the same way for every competitor."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.prepared import PreparedData
from ..evaluation.evaluator import Evaluator, Ranker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What was chosen, and what it was chosen from.

    Args:
        model: the fitted model with the best settings.
        settings: these settings, a point of the grid.
        score: its Recall@20 + Recall@40 + NDCG@100 on validation.
        table: a row for each point of the grid: its settings, the three metrics and their sum as `score`.
        further_fits: fits of what the model is made of, which was chosen before.
    """

    model: Any
    settings: dict[str, Any]
    score: float
    table: list[dict[str, Any]]
    further_fits: int = 0

    @property
    def fits(self) -> int:
        """All models that were fitted to choose this one."""
        return len(self.table) + self.further_fits


def grid_of(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of some values of some settings, the last one varying fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def validation_score(ranker: Ranker, evaluator: Evaluator) -> tuple[float, dict[str, float]]:
    """Recall@20 + Recall@40 + NDCG@100 under an evaluator of the validation split, and each of them."""
    metrics = evaluator.evaluate(ranker, bootstrap=False).metrics
    return sum(metrics.values()), metrics


def select(
    factory: Callable[..., Any], grid: Iterable[Mapping[str, Any]], data: PreparedData, name: str = "model"
) -> Selection:
    """Fit a model for each point of a grid and keep the one that validates best, the first of equals.

    Args:
        factory: called with a point's settings as keywords; returns a fitted model.
        grid: points, each a mapping of settings.
        data: prepared data.
        name: the model's name, for messages.

    Returns:
        The best model and the table of all scores; no other model is kept.

    Raises:
        CLLM4RecError: if nothing can be validated.
        ValueError: if the grid is empty.
    """
    from tqdm.auto import tqdm

    points = [dict(point) for point in grid]
    if not points:
        raise ValueError(f"The grid of {name} is empty; give at least one point")
    evaluator = Evaluator(data, split="validation")
    best, best_row, table = None, -1, []
    bar = tqdm(points, desc=f"Choosing {name}", unit="fit", delay=2, disable=len(points) == 1 or not is_main_process())
    for point in bar:
        model = factory(**point)
        score, metrics = validation_score(model, evaluator)
        table.append({**point, **metrics, "score": score})
        logger.debug("%s with %s: sum of the metrics on validation %.4f", name, _listed(point), score)
        if best is None or score > table[best_row]["score"]:
            best, best_row = model, len(table) - 1
        # the matrices of a large catalog are not to pile up while the next is fitted
        del model
    chosen, score = points[best_row], table[best_row]["score"]
    if len(points) > 1:
        logger.info("%s: %s chosen on validation, sum of the metrics %.4f", name, _listed(chosen), score)
        _remark_on_ends(name, chosen, points)
    return Selection(best, chosen, score, table)


def is_main_process() -> bool:
    """Whether this process is the one that talks, by what launchers set."""
    return os.environ.get("RANK", "0") == "0"


def _listed(point: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items()
    )


def _remark_on_ends(name: str, chosen: Mapping[str, Any], points: list[dict[str, Any]]) -> None:
    for setting, value in chosen.items():
        values = {point[setting] for point in points if setting in point}
        numbers = [number for number in values if isinstance(number, int | float) and not isinstance(number, bool)]
        # nothing lies beyond a 0 that turns something off
        if len(numbers) > 2 and len(numbers) == len(values) and value and value in (min(numbers), max(numbers)):
            logger.warning(
                "%s: the chosen %s %g is at the end of the grid; a wider grid may do better", name, setting, value
            )
