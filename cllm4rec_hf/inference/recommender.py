"""Recommendations with external ids in and titles out."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..card import publish_documents
from ..data.catalog import Catalog
from ..data.prompts import PromptBuilder
from ..errors import CLLM4RecError, HubError
from ..hub import push, reading, write_checkpoint
from .ranker import ModelRanker
from .requests import Request, allowed_items, answers
from .scoring import SCORE_CELLS
from .windows import Window, windows

_HUB_KEYWORDS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")
# enough requests for batches of equal length, few enough for answers to come soon and processes to share them out
BATCH_SIZE = 1024


class Ranked(NamedTuple):
    """The answers to a window of requests.

    Args:
        window: the requests.
        items: [B, k] int64 item indices, best first; −1 where the catalog has no more items left.
        scores: [B, k] float32, log p over the whole catalog.
    """

    window: Window
    items: np.ndarray
    scores: np.ndarray


class Recommender:
    """A model, its tokenizer and its catalog.

    Args:
        model: a `CLLM4RecForRecommendation`.
        tokenizer: the tokenizer of the same checkpoint.
        catalog: its catalog.
        batch_size: requests that are taken up at a time, sorted by length for the backbone and scored together.
        score_cells: bound on users x items that are scored at once; see `best_items`.

    Raises:
        CLLM4RecError: if the three do not belong together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        catalog: Catalog,
        batch_size: int = BATCH_SIZE,
        score_cells: int = SCORE_CELLS,
    ):
        check_parts(model.config, tokenizer, catalog)
        self.model, self.tokenizer, self.catalog, self.batch_size = model, tokenizer, catalog, batch_size
        prompts = PromptBuilder(tokenizer, model.config.is_encoder_decoder)
        self.ranker = ModelRanker(model, prompts, model.config.max_prompt_length, score_cells=score_cells)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        batch_size: int = BATCH_SIZE,
        score_cells: int = SCORE_CELLS,
        **kwargs: Any,
    ) -> "Recommender":
        """Load a checkpoint with its tokenizer and catalog.

        Args:
            name_or_path: directory or Hub id. All of it is read at one commit of the repository.
            batch_size: requests that are taken up at a time.
            score_cells: bound on users x items that are scored at once.
            kwargs: arguments of the model's `from_pretrained`, e.g. `dtype`, `revision`, `subfolder`, `token`.

        Raises:
            CLLM4RecError: if the name is that of a directory which is not there or holds no checkpoint, or if model,
                tokenizer and catalog are of different checkpoints.
            HubError: a CLLM4RecError and an OSError, if the Hub has no such repository for this reader, or it holds no
                complete checkpoint.
        """
        path, name = Path(name_or_path), os.fspath(name_or_path)
        is_hub_id = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None
        if not (path / kwargs.get("subfolder", "") / "config.json").is_file() and (path.exists() or not is_hub_id):
            raise CLLM4RecError(
                f"No checkpoint in {name_or_path}; expected a directory that `cllm4rec train --output` named, "
                "or a Hub id"
            )
        hub = {key: kwargs.pop(key) for key in _HUB_KEYWORDS if key in kwargs}
        with contextlib.nullcontext() if path.exists() else _reading_checkpoint(name, hub):
            model, tokenizer, catalog = _load(name, hub, kwargs)
        return cls(model, tokenizer, catalog, batch_size, score_cells)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write model, tokenizer and catalog into a directory; see the model's `save_pretrained`."""
        for part in (self.model, self.tokenizer, self.catalog):
            part.save_pretrained(directory)

    def push_to_hub(
        self, repo_id: str, commit_message: str = "Upload checkpoint", dataset: str | None = None, **kwargs: Any
    ) -> Any:
        """Upload model, tokenizer, catalog and model card in one commit, so that no reader ever finds a part of them.

        The backbone goes along only if it lies on this machine alone. A recommender that was loaded from a directory
        takes along what lies there: training.yaml, its log, evaluation.json, a card written by hand.

        Args:
            repo_id: repository; made if it does not exist.
            dataset: Hub id of the data set it was trained on, for the card.
            commit_message: the commit's message.
            kwargs: `private`, `token` and `revision`, as in transformers.

        Returns:
            The commit.

        Raises:
            HubError: a CLLM4RecError and an OSError, if the upload fails; nothing of it is to be seen then.
        """

        def write(directory: Path) -> None:
            write_checkpoint(directory, self.model, self.tokenizer, self.catalog)
            publish_documents(self.model.name_or_path, directory, repo_id, dataset)

        return push(write, repo_id, commit_message, **kwargs)

    def recommend(
        self,
        requests: Iterable[Request],
        top_k: int = 20,
        unknown: str = "raise",
        exclude_seen: bool = True,
        exclude: Iterable[str] | None = None,
        restrict_to: Iterable[str] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Recommend for each request in turn; streams, so that any number of requests needs bounded memory.

        Args:
            requests: the requests. A user whom the catalog lacks is served by the history alone.
            top_k: recommendations a request; fewer where the catalog has no more items left.
            unknown: what to do with item ids that the catalog lacks: `raise`, `skip` or `warn`.
            exclude_seen: whether the items of the history are left out.
            exclude: ids of items to leave out of every answer.
            restrict_to: ids of the only items to choose from.

        Yields:
            For each request a list of {"item", "title", "score"}, best first; score is log p over the whole catalog.

        Raises:
            UnknownIdError: if an item is unknown and the policy is `raise`.
            ValueError: if `top_k` is not positive.
        """
        for ranked in self.rank(requests, top_k, unknown, exclude_seen, exclude, restrict_to):
            yield from answers(self.catalog, ranked.items, ranked.scores)

    def rank(
        self,
        requests: Iterable[Request],
        top_k: int = 20,
        unknown: str = "raise",
        exclude_seen: bool = True,
        exclude: Iterable[str] | None = None,
        restrict_to: Iterable[str] | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> Iterator[Ranked]:
        """Recommend as `recommend` does, by item indices in arrays.

        Args:
            requests: the requests; `PreparedRequests` are never spelled out.
            top_k: recommendations a request.
            unknown: what to do with item ids that the catalog lacks: `raise`, `skip` or `warn`.
            exclude_seen: whether the items of the history are left out.
            exclude: ids of items to leave out of every answer.
            restrict_to: ids of the only items to choose from.
            part: which of the parts this process works on: of each `parts` windows of requests the one of this
                number, so that the windows, and with them all numbers, are the same however many processes there are.
            parts: number of parts.

        Yields:
            `Ranked` for each window of `batch_size` requests, in their order.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        allowed = allowed_items(self.catalog, exclude, restrict_to, unknown)
        for window in windows(requests, self.batch_size, self.catalog, unknown, part, parts):
            seen = window.histories if exclude_seen else [history[:0] for history in window.histories]
            yield Ranked(window, *self.ranker.best(window.users, window.histories, seen, top_k, allowed))


def check_parts(config: Any, tokenizer: Any, catalog: Catalog) -> None:
    """Whether model, tokenizer and catalog are of the same checkpoint.

    Args:
        config: the model's configuration.
        tokenizer: the tokenizer.
        catalog: the catalog.

    Raises:
        CLLM4RecError: if they disagree on a number of users, items or words.
    """
    if not hasattr(tokenizer, "num_items"):
        raise CLLM4RecError(
            f"A {type(tokenizer).__name__} has no user and item tokens; load the tokenizer of the model's checkpoint"
        )
    counts = {
        "items": (config.num_items, tokenizer.num_items, len(catalog)),
        "users": (config.num_users, tokenizer.num_users, len(catalog.user_ids) or config.num_users),
        "words": (config.base_vocab_size, tokenizer.base_vocab_size, config.base_vocab_size),
    }
    for name, (model_has, tokenizer_has, catalog_has) in counts.items():
        if not model_has == tokenizer_has == catalog_has:
            raise CLLM4RecError(
                f"Model, tokenizer and catalog are not of one checkpoint: {model_has} {name} in the model, "
                f"{tokenizer_has} in the tokenizer, {catalog_has} in the catalog; load all three from the same place"
            )


def _load(name: str, hub: dict[str, Any], kwargs: dict[str, Any]) -> tuple[Any, Any, Catalog]:
    from huggingface_hub import is_offline_mode, resolve_revision

    from ..modeling.modeling_cllm4rec import CLLM4RecForRecommendation
    from ..tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

    if not os.path.exists(name):
        # somebody may push between two of the three; and without a connection this tells at once
        options = {key: hub[key] for key in ("revision", "token", "cache_dir") if key in hub}
        local = hub.get("local_files_only", False) or is_offline_mode()
        hub = {**hub, "revision": resolve_revision(name, local_files_only=local, **options)}
    model = CLLM4RecForRecommendation.from_pretrained(name, **hub, **kwargs)
    try:
        tokenizer = CLLM4RecTokenizer.from_pretrained(name, **hub)
    except ValueError as error:
        # what transformers raises where there is no tokenizer.json
        raise OSError(f"The tokenizer of {name} cannot be read: {str(error).splitlines()[0]}") from error
    return model, tokenizer, Catalog.from_pretrained(name, **hub)


@contextlib.contextmanager
def _reading_checkpoint(name: str, hub: dict[str, Any]) -> Iterator[None]:
    try:
        with reading(name, "a directory that `cllm4rec train --output` named", revision=hub.get("revision")):
            yield
    except HubError:
        raise
    except OSError as error:
        where = "".join(f", {key} {hub[key]!r}" for key in ("revision", "subfolder") if hub.get(key))
        raise HubError(
            f"{name} on the Hub{where} holds no complete checkpoint ({str(error).splitlines()[0]}); expected a model, "
            "its tokenizer and its catalog, as Recommender.push_to_hub uploads them"
        ) from error
