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
    check_trained_on(model, recommender.catalog, data, **kwargs)
    evaluator = Evaluator(data, split, seed=seed)
    results = {"CLLM4Rec": evaluator.evaluate(recommender.ranker, progress=True)}
    if baselines:
        from ..baselines.ease import EASE, MAX_ITEMS
        from ..baselines.popularity import Popularity

        results["Popularity"] = evaluator.evaluate(Popularity().fit(data.histories("train")))
        if data.num_items <= MAX_ITEMS:
            results["EASE"] = evaluator.evaluate(EASE.choose(data).model)
        else:
            logger.warning("EASE is left out: %d items are more than its %d", data.num_items, MAX_ITEMS)
    return results


def check_trained_on(model: str, catalog: Catalog, data: PreparedData, **kwargs: Any) -> None:
    """Refuse data that is not what a checkpoint was trained on.

    Data that was prepared anew is other data, too: what is a test pair now may have been trained on.

    Args:
        model: directory or Hub id of the checkpoint.
        catalog: its catalog.
        data: prepared data.
        kwargs: `revision`, `token`, `cache_dir` and `local_files_only` of the download.

    Raises:
        DataError: if users, items, rules or the seed of the split are others.
    """
    import yaml
    from transformers.utils import cached_file

    given = Catalog.from_prepared(data)
    for kind, one, other in (
        ("items", catalog.item_ids, given.item_ids),
        ("users", catalog.user_ids, given.user_ids),
    ):
        if one != other:
            raise DataError(
                f"The checkpoint {model} was trained on other {kind} than this data holds ({len(one)} against "
                f"{len(other)}); name the prepared data that it was trained on"
            )
    hub = {k: v for k, v in kwargs.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
    file = cached_file(model, "training.yaml", _raise_exceptions_for_missing_entries=False, **hub)
    if file is None:
        return
    with open(file, encoding="utf-8") as text:
        trained_on = (yaml.safe_load(text) or {}).get("data_fingerprint")
    if trained_on not in (None, data.fingerprint):
        raise DataError(
            f"The checkpoint {model} was trained on data prepared by other rules or another seed (fingerprint "
            f"{trained_on}, this data has {data.fingerprint}), so its test pairs may have been trained on. Name the "
            "data it was trained on, or train again"
        )
