"""Whom to recommend for, and the answer: external ids in, external ids and titles out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.catalog import Catalog
from ..errors import CLLM4RecError


@dataclass(frozen=True)
class Request:
    """Whom to recommend for.

    Args:
        user: external id, or None for somebody without one.
        history: external ids of the items, oldest first. None takes the history that the checkpoint stores for this
            user, where it was asked to store any.
    """

    user: str | None
    history: tuple[str, ...] | None = None

    @classmethod
    def of(cls, value: Any) -> "Request":
        """A request from `{"user": id, "history": [item ids, oldest first]}`; either key may be left out.

        Raises:
            CLLM4RecError: if the value is not of that form.
        """
        if isinstance(value, cls):
            return value
        expected = 'Expected a request of the form {"user": id, "history": [item ids, oldest first]}'
        if not isinstance(value, Mapping):
            raise CLLM4RecError(f"{expected}, got {value!r:.80}")
        unknown = [key for key in value if key not in ("user", "history")]
        if unknown:
            raise CLLM4RecError(f"{expected}, got the key {unknown[0]!r}")
        user, history = value.get("user"), value.get("history")
        if history is not None and (isinstance(history, str) or not isinstance(history, Sequence | np.ndarray)):
            raise CLLM4RecError(f"{expected}, got the history {history!r:.80}")
        if user is None and history is None:
            raise CLLM4RecError(f"{expected}, got neither a user nor a history")
        return cls(None if user is None else str(user), None if history is None else tuple(map(str, history)))


def history_of(request: Request, catalog: Catalog, unknown: str = "raise") -> np.ndarray:
    """Item indices of a request's history, oldest first, [n] int64.

    Args:
        request: the request.
        catalog: the model's catalog.
        unknown: what to do with items that the catalog lacks: `raise`, `skip` or `warn`.

    Raises:
        UnknownIdError: if an item is unknown and the policy is `raise`.
        CLLM4RecError: if the request has no history and the checkpoint stores none for its user.
    """
    if request.history is not None:
        return np.asarray(catalog.item_indices(request.history, unknown), dtype=np.int64)
    if catalog.histories is None:
        raise CLLM4RecError(
            f"The request for user {request.user!r} has no history, and this checkpoint stores none; pass the items "
            "under 'history', or train with include_histories"
        )
    user = catalog.find_user(request.user)
    if user is None:
        raise CLLM4RecError(
            f"The request for user {request.user!r} has no history, and this checkpoint knows no such user; pass the "
            "items under 'history'"
        )
    return np.asarray(catalog.histories[user], dtype=np.int64)


def allowed_items(
    catalog: Catalog,
    exclude: Iterable[str] | None = None,
    restrict_to: Iterable[str] | None = None,
    unknown: str = "raise",
) -> np.ndarray | None:
    """Which items may be recommended at all.

    Args:
        catalog: the model's catalog.
        exclude: external ids of items to leave out.
        restrict_to: external ids of the only items to choose from.
        unknown: what to do with ids that the catalog lacks: `raise`, `skip` or `warn`.

    Returns:
        [J] bool, or None where every item may be.

    Raises:
        CLLM4RecError: if either is a single string.
        UnknownIdError: if an id is unknown and the policy is `raise`.
    """
    if exclude is None and restrict_to is None:
        return None
    for name, ids in (("exclude", exclude), ("restrict_to", restrict_to)):
        if isinstance(ids, str):
            raise CLLM4RecError(f"{name} takes a list of item ids, got the string {ids!r}; write [{ids!r}]")
    allowed = np.full(len(catalog), restrict_to is None)
    if restrict_to is not None:
        allowed[catalog.item_indices(restrict_to, unknown)] = True
    if exclude is not None:
        allowed[catalog.item_indices(exclude, unknown)] = False
    return allowed


def answers(catalog: Catalog, items: np.ndarray, scores: np.ndarray) -> list[list[dict[str, Any]]]:
    """The best items of each row, by name.

    Args:
        catalog: the model's catalog.
        items: [B, k] int64, best first, −1 where there is none.
        scores: [B, k] float32.

    Returns:
        For each row a list of {"item", "title", "score"}, best first.
    """
    return [
        [
            {"item": catalog.item_ids[item], "title": catalog.titles[item], "score": score}
            for item, score in zip(row_items, row_scores, strict=True)
            if item >= 0
        ]
        for row_items, row_scores in zip(items.tolist(), scores.tolist(), strict=True)
    ]
