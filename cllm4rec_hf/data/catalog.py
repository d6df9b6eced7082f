"""External ids and titles of the catalog; saved beside the tokenizer, it travels with the checkpoint."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnknownIdError
from .prepared import Histories

logger = logging.getLogger(__name__)

ITEMS_FILE = "catalog_items.parquet"
USERS_FILE = "catalog_users.parquet"
HISTORIES_FILE = "catalog_histories.parquet"
UNKNOWN_POLICIES = ("raise", "skip", "warn")


class Catalog:
    """External ids ↔ indices, and titles.

    Args:
        item_ids: external id of each item, in the order of their indices.
        titles: title of each item, or None.
        user_ids: external id of each user, in the order of their indices.
        histories: each user's items, `Histories`; None, the default, publishes nobody's history with the checkpoint.

    Raises:
        ValueError: if an id occurs twice, or the titles are not as many as the items.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str | None] | None = None,
        user_ids: Sequence[str] = (),
        histories: Histories | None = None,
    ):
        self.histories = histories
        self.item_ids, self.user_ids = list(item_ids), list(user_ids)
        self.titles: list[str | None] = [None] * len(self.item_ids) if titles is None else list(titles)
        if len(self.titles) != len(self.item_ids):
            raise ValueError(
                f"Expected one title an item, got {len(self.titles)} titles for {len(self.item_ids)} items"
            )
        self._items = {external: index for index, external in enumerate(self.item_ids)}
        self._users = {external: index for index, external in enumerate(self.user_ids)}
        for kind, ids, index in (("item", self.item_ids, self._items), ("user", self.user_ids, self._users)):
            if len(index) != len(ids):
                seen: set[str] = set()
                twice = next(external for external in ids if external in seen or seen.add(external))  # type: ignore[func-returns-value]
                raise ValueError(f"The {kind} id {twice!r} occurs twice; ids must be unique")

    @classmethod
    def from_prepared(cls, data: Any, include_histories: bool = False) -> "Catalog":
        """The catalog of prepared data.

        Args:
            data: `PreparedData`.
            include_histories: whether it holds every user's items, of all splits.
        """
        histories = data.histories("train", "validation", "test") if include_histories else None
        return cls(list(data.items["item_id"]), list(data.items["title"]), list(data.users["user_id"]), histories)

    def __len__(self) -> int:
        return len(self.item_ids)

    def item_indices(self, ids: Iterable[str], unknown: str = "raise") -> list[int]:
        """Indices of items.

        Args:
            ids: external ids.
            unknown: what to do with an id that the catalog lacks: `raise`, `skip`, or `warn` (skip and log).

        Raises:
            UnknownIdError: if an id is unknown and the policy is `raise`.
        """
        return _look_up(ids, self._items, "item", unknown)

    def user_indices(self, ids: Iterable[str], unknown: str = "raise") -> list[int]:
        """Indices of users; see `item_indices`."""
        return _look_up(ids, self._users, "user", unknown)

    def find_user(self, external: str | None) -> int | None:
        """Index of a user, or None for one that has no user token."""
        return None if external is None else self._users.get(str(external))

    def title(self, index: int) -> str:
        """Title of an item, its external id where it has none."""
        return self.titles[index] or self.item_ids[index]

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `catalog_items.parquet` and `catalog_users.parquet` into a directory, and the histories it has."""
        import pyarrow as pa

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        text = pa.string()
        items = {"item_id": pa.array(self.item_ids, text), "title": pa.array(self.titles, text)}
        _write(pa.table(items), directory / ITEMS_FILE)
        _write(pa.table({"user_id": pa.array(self.user_ids, text)}), directory / USERS_FILE)
        if self.histories is None:
            # nobody's history may stay behind from a checkpoint that was here before
            (directory / HISTORIES_FILE).unlink(missing_ok=True)
        else:
            rows = pa.LargeListArray.from_arrays(self.histories.indptr, pa.array(self.histories.items, pa.int32()))
            _write(pa.table({"items": rows}), directory / HISTORIES_FILE)

    def push_to_hub(self, repo_id: str, commit_message: str = "Upload catalog", **kwargs: Any) -> Any:
        """Upload both files in one commit, usually beside a model and its tokenizer.

        Args:
            repo_id: model repository; made if it does not exist.
            commit_message: the commit's message.
            kwargs: `private`, `token` and `revision`, as in transformers.

        Returns:
            The commit.

        Raises:
            HubError: if the upload fails; nothing of it is to be seen then.
        """
        from ..hub import push

        return push(self.save_pretrained, repo_id, commit_message, **kwargs)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, **hub_kwargs: Any) -> "Catalog":
        """Read the catalog of a checkpoint.

        Args:
            name_or_path: directory or Hub id.
            hub_kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, … as in transformers.

        Raises:
            OSError: if the checkpoint has no catalog.
        """
        import pyarrow.parquet as pq
        from transformers.utils import cached_file

        items = pq.read_table(cached_file(str(name_or_path), ITEMS_FILE, **hub_kwargs))
        users = pq.read_table(cached_file(str(name_or_path), USERS_FILE, **hub_kwargs))
        file = cached_file(
            str(name_or_path), HISTORIES_FILE, _raise_exceptions_for_missing_entries=False, **hub_kwargs
        )
        histories = None if file is None else _histories(pq.read_table(file)["items"], len(items))
        return cls(items["item_id"].to_pylist(), items["title"].to_pylist(), users["user_id"].to_pylist(), histories)


def _look_up(ids: Iterable[str], index: dict[str, int], kind: str, unknown: str) -> list[int]:
    if unknown not in UNKNOWN_POLICIES:
        raise ValueError(f"unknown must be one of {', '.join(UNKNOWN_POLICIES)}, got {unknown!r}")
    found, missing = [], []
    for external in ids:
        position = index.get(str(external))
        if position is None:
            missing.append(str(external))
        else:
            found.append(position)
    if missing and unknown != "skip":
        shown = ", ".join(repr(external) for external in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        message = f"{len(missing)} {kind} id{'s are' if len(missing) > 1 else ' is'} not in the catalog: {shown}{more}"
        if unknown == "raise":
            raise UnknownIdError(
                f"{message}. Expected ids of the data the model was trained on; skip or warn passes over them."
            )
        logger.warning("%s; passed over", message)
    return found


def _histories(column: Any, num_items: int) -> Histories:
    import numpy as np

    rows = column.combine_chunks()
    lengths = np.asarray(rows.value_lengths())
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(indptr, np.asarray(rows.flatten(), dtype=np.int32), num_items)


def _write(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    beside = path.with_name(path.name + ".part")
    pq.write_table(table, beside)
    beside.replace(path)
