"""Requests as indices, a window of them at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import overload

import numpy as np

from ..data.catalog import Catalog
from ..data.prepared import SPLITS, PreparedData
from ..errors import DataError
from .requests import Request, history_of


@dataclass(frozen=True)
class Window:
    """Requests that are scored together.

    Args:
        names: external ids of the B users, None for somebody without one.
        users: [B] int64 user indices of the model, −1 where it has no token for the user.
        histories: item indices of each user, oldest first.
    """

    names: list[str | None]
    users: np.ndarray
    histories: list[np.ndarray]

    @classmethod
    def of(cls, requests: Sequence[Request], catalog: Catalog, unknown: str = "raise") -> "Window":
        """Look requests up in a catalog; see `history_of`."""
        histories = [history_of(request, catalog, unknown) for request in requests]
        names = [request.user for request in requests]
        return cls(names, _find(names, catalog), histories)


class PreparedRequests(Sequence[Request]):
    """Requests for users of prepared data with all their interactions, none of them spelled out until asked for.

    Args:
        data: the prepared data.
        catalog: the model's catalog.
        users: external ids of the users; all of the data by default.
        unknown: what to do with unknown user ids: `raise`, `skip` or `warn`.

    Raises:
        DataError: if the data has other items than the model.
        UnknownIdError: if a user is unknown and the policy is `raise`.
    """

    def __init__(
        self, data: PreparedData, catalog: Catalog, users: Sequence[str] | None = None, unknown: str = "raise"
    ):
        items = data.items.data.table["item_id"].to_pylist()
        if items != catalog.item_ids:
            raise DataError(
                f"The model was trained on other items than the data holds ({len(catalog)} against {len(items)}); "
                "name the data it was trained on, or give histories by --histories"
            )
        self._item_ids = catalog.item_ids
        names = data.users.data.table["user_id"]
        chosen: Sequence[int] | range = range(len(names))
        if users is not None:
            chosen = Catalog([], user_ids=names.to_pylist()).user_indices(users, unknown)
            names = names.take(chosen)
        self._rows = np.asarray(chosen, dtype=np.int64)
        self._names = names
        is_same = users is None and names.to_pylist() == catalog.user_ids
        self._users = self._rows if is_same else _find(names.to_pylist(), catalog)
        self._histories = data.histories(*SPLITS)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        """Requests by position, spelled out."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        history = self._histories[int(self._rows[index])]
        return Request(self._names[index].as_py(), tuple(self._item_ids[item] for item in history))

    def window(self, start: int, stop: int) -> Window:
        """The requests from one position to another."""
        stop = min(stop, len(self))
        names = self._names.slice(start, stop - start).to_pylist()
        histories = [self._histories[int(row)] for row in self._rows[start:stop]]
        return Window(names, self._users[start:stop], histories)


def windows(
    requests: Iterable[Request], size: int, catalog: Catalog, unknown: str = "raise", part: int = 0, parts: int = 1
) -> Iterator[Window]:
    """Windows of so many requests each; nothing is read ahead of them.

    Args:
        requests: the requests.
        size: requests of a window; the last one may have fewer.
        catalog: the model's catalog.
        unknown: what to do with unknown items: `raise`, `skip` or `warn`.
        part: yield of each `parts` windows the one of this number.
        parts: see there.

    Raises:
        ValueError: if `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {size}")
    if isinstance(requests, PreparedRequests):
        for start in range(part * size, len(requests), parts * size):
            yield requests.window(start, start + size)
        return
    rest = iter(requests)
    number = 0
    while batch := list(islice(rest, size)):
        if number % parts == part:
            yield Window.of(batch, catalog, unknown)
        number += 1


def _find(names: Sequence[str | None], catalog: Catalog) -> np.ndarray:
    found = (catalog.find_user(name) for name in names)
    return np.fromiter((-1 if user is None else user for user in found), dtype=np.int64, count=len(names))
