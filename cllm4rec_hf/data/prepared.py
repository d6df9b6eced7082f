"""Prepared data: what `cllm4rec prepare` wrote, read back."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .tables import read_table

if TYPE_CHECKING:
    from datasets import Dataset
    from scipy.sparse import csr_matrix

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
META_FILE = "meta.json"
TABLES = {
    "interactions": ("user", "item", "split"),
    "texts": ("kind", "user", "item", "text"),
    "users": ("index", "user_id"),
    "items": ("index", "item_id", "title"),
}


class Histories:
    """Ragged lists of items, one a user.

    Args:
        indptr: int64 [num_users + 1]; user u's items are `items[indptr[u]:indptr[u + 1]]`.
        items: int32 [nnz], oldest first within a user.
        num_items: size J of the catalog.
    """

    def __init__(self, indptr: np.ndarray, items: np.ndarray, num_items: int):
        self.indptr, self.items, self.num_items = indptr, items, num_items

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        if not -len(self) <= user < len(self):
            raise IndexError(f"user {user} is out of range; there are {len(self)} users")
        user %= len(self)
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int] | np.ndarray], num_items: int) -> "Histories":
        """Histories from one list of items a user."""
        indptr = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in lists], out=indptr[1:])
        items = np.concatenate([np.asarray(row, dtype=np.int32) for row in lists]) if len(lists) else np.empty(0)
        return cls(indptr, items.astype(np.int32), num_items)

    def to_csr(self) -> "csr_matrix":
        """The matrix X of ones, [num_users, num_items] float32."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self.items), dtype=np.float32)
        return csr_matrix((ones, self.items, self.indptr), shape=(len(self), self.num_items))


class PreparedData:
    """The tables of prepared data.

    Args:
        meta: counts, rules, seed and hash of the source; `fingerprint` is a short hash of it all.
        tables: the four tables as `datasets.Dataset`s.
    """

    def __init__(self, meta: dict[str, Any], tables: dict[str, "Dataset"]):
        self.meta = meta
        self.interactions, self.texts = tables["interactions"], tables["texts"]
        self.users, self.items = tables["users"], tables["items"]
        self.num_users, self.num_items = len(self.users), len(self.items)
        self.fingerprint = _fingerprint(meta)

    @classmethod
    def load(cls, name_or_directory: str | os.PathLike, **hub_kwargs: Any) -> "PreparedData":
        """Read prepared data; of large tables a copy in the cache directory of `datasets` is memory-mapped.

        Args:
            name_or_directory: what `cllm4rec prepare --output` named, or a dataset repository `org/name` of the Hub.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` of the repository.

        Raises:
            DataError: if a file is missing or is not what it should be.
            HubError: if there is neither such a directory nor such a repository.
        """
        directory = _locate(name_or_directory, hub_kwargs)
        if not (directory / META_FILE).is_file():
            raise DataError(
                f"{name_or_directory} holds no {META_FILE}; expected a directory that `cllm4rec prepare --output` "
                "wrote"
            )
        try:
            meta = json.loads((directory / META_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{directory / META_FILE} is no JSON ({error}); prepare the data again") from error
        version = meta.get("format_version") if isinstance(meta, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{name_or_directory} has format version {version!r}; this version reads {FORMAT_VERSION}. "
                "Prepare the data again"
            )
        fingerprint = _fingerprint(meta)
        tables = {}
        for name, columns in TABLES.items():
            file = directory / f"{name}.parquet"
            if not file.is_file():
                raise DataError(f"{name_or_directory} lacks {file.name}; prepare the data again")
            tables[name] = read_table(file, columns, fingerprint)
        return cls(meta, tables)

    def push_to_hub(self, repo_id: str, commit_message: str = "Upload prepared data", **kwargs: Any) -> Any:
        """Upload the tables, meta.json and the card as a dataset repository, in one commit.

        Args:
            repo_id: dataset repository; made if it does not exist.
            commit_message: the commit's message.
            kwargs: `private`, `token` and `revision`, as in transformers. Interactions and reviews are people's
                data: make the repository private unless you may publish them.

        Returns:
            The commit.

        Raises:
            HubError: if the upload fails; nothing of it is to be seen then.
        """
        from ..hub import push
        from .writer import write_files

        def write(directory: Path) -> None:
            write_files(directory, lambda name: getattr(self, name), self.meta)

        return push(write, repo_id, commit_message, repo_type="dataset", **kwargs)

    def histories(self, *splits: str) -> Histories:
        """Every user's items of some splits, oldest first.

        Args:
            splits: one or more of `train`, `validation`, `test`.

        Raises:
            ValueError: if a split is unknown.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        for split in splits:
            if split not in SPLITS:
                raise ValueError(f"Unknown split {split!r}; expected {', '.join(SPLITS)}")
        table = self.interactions.data.table
        users, items = (table[name].to_numpy() for name in ("user", "item"))
        # in Arrow: as Python strings the column would take longer than everything else
        chosen = pc.is_in(table["split"], pa.array(splits, pa.string())).to_numpy()
        counts = np.bincount(users[chosen], minlength=self.num_users)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Histories(indptr, items[chosen].astype(np.int32), self.num_items)


def _locate(name_or_directory: str | os.PathLike, hub_kwargs: dict[str, Any]) -> Path:
    """The directory of prepared data; downloaded if it is no directory but may be a repository."""
    from ..hub import is_repo_id, reading

    directory, name = Path(name_or_directory), os.fspath(name_or_directory)
    if directory.exists() or not is_repo_id(name):
        return directory
    from huggingface_hub import snapshot_download

    files = [META_FILE, *(f"{table}.parquet" for table in TABLES)]
    with reading(name, "a directory that `cllm4rec prepare --output` wrote", "dataset", hub_kwargs.get("revision")):
        found = snapshot_download(
            name, repo_type="dataset", allow_patterns=files, library_name="cllm4rec_hf", **hub_kwargs
        )
    return Path(found)


def _fingerprint(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]
