"""`pipeline("recommendation")`: transformers' own interface to a checkpoint's recommendations."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Pipeline

from ..data.catalog import Catalog
from ..data.collators import history_prompts
from ..data.prompts import PromptBuilder
from ..errors import CLLM4RecError
from .ranker import ranking_task
from .recommender import check_parts
from .requests import Request, allowed_items, answers, history_of
from .scoring import best_items

# what transformers' factory hands on although it has made use of it
_USED_BY_THE_FACTORY = ("local_files_only", "torch_dtype")


class RecommendationPipeline(Pipeline):
    """Recommends items to users: external ids in, titles out.

    Importing `cllm4rec_hf` registers it as the task `recommendation`. One request, `{"user": id, "history": [item ids,
    oldest first]}`, is answered by a list of {"item", "title", "score"}, best first, score = log p over the whole
    catalog; a list or a column of requests by a list of such lists; a generator or a data set of requests by an
    iterator. A user whom the catalog does not know is served by the history alone.

    Args:
        model: a CLLM4Rec model with a task head.
        tokenizer: the tokenizer of the same checkpoint.
        catalog: its catalog, or the name of one; by default the one of the checkpoint that the model came from.
        kwargs: arguments of `Pipeline` (`batch_size`, `device`, …) and defaults for those of a call.

    Raises:
        CLLM4RecError: if the model has no head for recommendation, there is no catalog, or the parts do not belong
            together.
    """

    task_name = "recommendation"
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _pipeline_calls_generate = False

    def __init__(
        self, model: Any, tokenizer: Any = None, catalog: Catalog | str | os.PathLike | None = None, **kwargs: Any
    ):
        if not hasattr(model, "recommendation_queries"):
            raise CLLM4RecError(
                f"A {type(model).__name__} has no head that ranks items; load the checkpoint as "
                "CLLM4RecForRecommendation"
            )
        self.catalog = catalog if isinstance(catalog, Catalog) else _load_catalog(model, catalog)
        check_parts(model.config, tokenizer, self.catalog)
        self._prompts = PromptBuilder(tokenizer, model.config.is_encoder_decoder)
        self._unknown = kwargs.get("unknown", "raise")
        kwargs = {name: value for name, value in kwargs.items() if name not in _USED_BY_THE_FACTORY}
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)
        self.tokenizer: Any

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Recommend.

        Args:
            inputs: a request, or a list, column, generator or data set of requests.
            kwargs: `top_k` (20), `exclude_seen` (True), `exclude` and `restrict_to` (lists of item ids), `unknown`
                (`raise`, `skip` or `warn`: what to do with ids that the catalog lacks), `batch_size` (1).

        Raises:
            UnknownIdError: if an id is unknown and the policy is `raise`.
            CLLM4RecError: if a request is not of the form above.
            TypeError: if an argument is unknown.
        """
        if isinstance(inputs, Request | Mapping):
            return super().__call__(Request.of(inputs), **kwargs)
        if isinstance(inputs, str) or not isinstance(inputs, Iterable | Dataset):
            Request.of(inputs)
        if isinstance(inputs, Sequence):
            # a list, a tuple, a column of `datasets`
            return super().__call__(list(inputs), **kwargs) if len(inputs) else []
        if not isinstance(inputs, Dataset):
            inputs = (request for request in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        exclude_seen: bool | None = None,
        exclude: Iterable[str] | None = None,
        restrict_to: Iterable[str] | None = None,
        unknown: str | None = None,
        **others: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if others:
            raise TypeError(
                f"The recommendation pipeline has no argument {next(iter(others))!r}; expected top_k, exclude_seen, "
                "exclude, restrict_to, unknown or batch_size"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        policy = {} if unknown is None else {"unknown": unknown}
        after: dict[str, Any] = {"top_k": top_k, "exclude_seen": exclude_seen}
        after["allowed"] = allowed_items(self.catalog, exclude, restrict_to, unknown or self._unknown)
        return policy, {}, {name: value for name, value in after.items() if value is not None}

    def preprocess(self, request: Any, unknown: str = "raise") -> dict[str, Any]:  # type: ignore[override]
        """A request's prompt: input_ids and attention_mask [1, T], and the history's item indices."""
        request = Request.of(request)
        history = history_of(request, self.catalog, unknown)
        user = self.catalog.find_user(request.user)
        (ids,) = history_prompts(
            self._prompts, [user], [history], self.model.config.max_prompt_length, ranking_task(self.model)
        )
        input_ids = torch.from_numpy(ids).unsqueeze(0)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "history": history}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        logits = self.model(inputs["input_ids"], inputs["attention_mask"], task="recommendation").logits
        return {"logits": logits, "history": inputs["history"]}

    def postprocess(  # type: ignore[override]
        self, outputs: dict[str, Any], top_k: int = 20, exclude_seen: bool = True, allowed: Any = None
    ) -> list[dict[str, Any]]:
        """The best items of one request, by name."""
        # taken out of a batch it still has the batch's axis
        history = outputs["history"].reshape(-1)
        seen = history if exclude_seen else history[:0]
        logits = outputs["logits"].float()

        def scores(rows: slice, items: slice) -> torch.Tensor:
            return logits[rows, items].clone()

        (found,) = answers(self.catalog, *best_items(scores, len(self.catalog), [seen], top_k, allowed))
        return found

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, tokenizer and catalog as a checkpoint that needs no trust in its code beside the package.

        Args:
            save_directory: where to.
            kwargs: arguments of the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)
        self.catalog.save_pretrained(save_directory)


def _load_catalog(model: Any, name: str | os.PathLike | None) -> Catalog:
    source = {} if name is not None else model.hub_source
    home = name or model.name_or_path
    if not home:
        raise CLLM4RecError(
            "This model came from no checkpoint; pass its catalog: pipeline(..., catalog=Catalog(...))"
        )
    try:
        return Catalog.from_pretrained(home, **source)
    except OSError as error:
        raise CLLM4RecError(
            f"{home} holds no catalog ({error}); save one beside the tokenizer by Catalog.save_pretrained, or pass "
            "pipeline(..., catalog=…)"
        ) from error
