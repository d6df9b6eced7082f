"""A checkpoint beside Popularity and EASE under the same evaluator."""

import logging
from typing import Any

from ..data.catalog import Catalog
from ..data.prepared import PreparedData
from ..errors import DataError
from .evaluator import EvaluationResult, Evaluator

logger = logging.getLogger(__name__)


def evaluate_checkpoint(
    model: str, data: PreparedData, split: str = "test", baselines: bool = True, seed: int = 0, **kwargs: Any
) -> dict[str, EvaluationResult]:
    """Evaluate a checkpoint, and the baselines where they are asked for.

    Args:
        model: directory or Hub id.
        data: the prepared data that the model was trained on.
        split: `validation` or `test`.
        baselines: whether Popularity and EASE (λ by validation) stand beside it.
        seed: seed of the bootstrap.
        kwargs: arguments of the model's `from_pretrained`.

    Returns:
        Results by method, the model first.

    Raises:
        DataError: if the data is not the model's: other users or items.
    """
    # evaluation knows nothing of models; only this report brings the two together
    from ..inference.recommender import Recommender

    recommender = Recommender.from_pretrained(model, **kwargs)
    own, given = recommender.catalog, Catalog.from_prepared(data)
    for kind, one, other in (("items", own.item_ids, given.item_ids), ("users", own.user_ids, given.user_ids)):
        if one != other:
            raise DataError(
                f"The checkpoint {model} was trained on other {kind} than this data holds ({len(one)} against "
                f"{len(other)}); name the prepared data that it was trained on"
            )
    evaluator = Evaluator(data, split, seed=seed)
    results = {"CLLM4Rec": evaluator.evaluate(recommender.ranker, progress=True)}
    if baselines:
        from ..baselines.ease import EASE, MAX_ITEMS
        from ..baselines.popularity import Popularity

        results["Popularity"] = evaluator.evaluate(Popularity().fit(data.histories("train")))
        if data.num_items <= MAX_ITEMS:
            results["EASE"] = evaluator.evaluate(EASE.fit_validated(data))
        else:
            logger.warning("EASE is left out: %d items are more than its %d", data.num_items, MAX_ITEMS)
    return results
