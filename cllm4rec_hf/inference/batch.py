"""Recommendations for many users: from ids or files to a table or the terminal."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.catalog import Catalog
from ..data.prepared import PreparedData
from ..errors import CLLM4RecError, DataError
from .recommender import Ranked, Recommender
from .requests import Request, answers, history_of
from .sharing import launched_processes, together
from .windows import PreparedRequests

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("user", "rank", "item", "title", "score")


class HistoriesFile(Iterable[Request]):
    """Requests of a JSON lines file of `{"user": id, "history": [item ids, oldest first]}`, read line by line.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[Request]:
        """Read the file from its start.

        Raises:
            DataError: if it cannot be read, or naming the line that is not of that form.
        """
        try:
            with self.path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield self._request(number, line)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error

    def _request(self, number: int, line: str) -> Request:
        expected = f'{self.path.name}, line {number}: expected {{"user": id, "history": [item ids]}}'
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{expected}, but it is not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("history"), list):
            raise DataError(f"{expected}, got {line.strip()[:80]}")
        user = row.get("user")
        return Request(None if user is None else str(user), tuple(str(item) for item in row["history"]))


def requests_from(
    catalog: Catalog, data: str | None, users: str | None, histories: str | None, unknown: str = "raise"
) -> Iterable[Request]:
    """Whom to recommend for; no request is spelled out before it is asked for.

    Args:
        catalog: the model's catalog.
        data: prepared data, where the histories of `users` are: all their interactions, of every split.
        users: file with one user id a line, or ids separated by commas; all users of the data by default.
        histories: JSON lines file of `{"user": id, "history": [item ids, oldest first]}`.
        unknown: what to do with unknown user ids: `raise`, `skip` or `warn`.

    Returns:
        `PreparedRequests` or a `HistoriesFile`.

    Raises:
        CLLM4RecError: if it is not clear whom to recommend for, or a file cannot be read.
        UnknownIdError: if a user is unknown and the policy is `raise`.
    """
    if (histories is None) == (data is None):
        raise CLLM4RecError("Name the histories by exactly one of --data (prepared data) and --histories (JSON lines)")
    if histories is not None or data is None:
        if users is not None:
            raise CLLM4RecError("--users chooses users of --data; --histories names its own")
        return HistoriesFile(Path(str(histories)))
    chosen = None if users is None else _read_users(users)
    return PreparedRequests(PreparedData.load(data), catalog, chosen, unknown)


def _read_users(users: str) -> list[str]:
    if os.path.isfile(users):
        try:
            lines = Path(users).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{users} is not UTF-8 text; expected one user id a line") from error
        return [line.strip() for line in lines if line.strip()]
    return [user.strip() for user in users.split(",") if user.strip()]


def recommend_to_file(
    recommender: Recommender, requests: Iterable[Request], output: str, top_k: int = 20, unknown: str = "raise"
) -> int:
    """Write recommendations as rows of user, rank, item, title, score (log p).

    Started in several processes (`accelerate launch`, torchrun), they share the windows of requests out among
    themselves, and the main one joins their parts to the very file that one process writes.

    Args:
        recommender: what recommends.
        requests: whom to recommend for.
        output: a .parquet or .csv file; appears only when it is complete.
        top_k: recommendations a user.
        unknown: policy for unknown items of histories.

    Returns:
        Number of requests.

    Raises:
        CLLM4RecError: if the file's format is unknown or its directory does not exist, or another process failed.
    """
    path, processes = Path(output), launched_processes()
    number, count = processes.process_index, processes.num_processes
    beside, directory = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.parts")
    table = _Table(recommender, requests, top_k, unknown)
    together(processes, lambda: _check_output(path))
    try:
        if count == 1:
            _write(beside, table.batches())
            beside.replace(path)
            return table.requests_seen
        together(processes, lambda: _make_anew(directory) if processes.is_main_process else None)
        together(processes, lambda: _write_part(directory / f"{number}.arrow", table.batches(number, count)))
        totals = together(processes, lambda: table.requests_seen)
        together(processes, lambda: _join(directory, count, beside, path) if processes.is_main_process else None)
        return sum(totals)
    finally:
        if processes.is_main_process:
            beside.unlink(missing_ok=True)
            shutil.rmtree(directory, ignore_errors=True)


def _check_output(path: Path) -> None:
    if path.suffix not in (".parquet", ".csv"):
        raise CLLM4RecError(f"The format of {str(path)!r} is unknown; expected a file named .parquet or .csv")
    if not path.parent.is_dir():
        raise CLLM4RecError(f"The directory {path.parent} does not exist; make it first")


class _Table:
    """Recommendations as Arrow columns, a window of requests at a time."""

    def __init__(self, recommender: Recommender, requests: Iterable[Request], top_k: int, unknown: str):
        import pyarrow as pa

        self._recommender, self._requests, self._top_k, self._unknown = recommender, requests, top_k, unknown
        self._item_ids = pa.array(recommender.catalog.item_ids, pa.string())
        self._titles = pa.array(recommender.catalog.titles, pa.string())
        self.requests_seen = 0

    def batches(self, part: int = 0, parts: int = 1) -> "Iterator[pa.RecordBatch]":
        """One for each window, or for every window that falls to one of several parts."""
        from tqdm.auto import tqdm

        total = len(self._requests) // parts if isinstance(self._requests, PreparedRequests | list) else None
        with tqdm(total=total, desc="Recommending", unit="user", delay=2, disable=part > 0) as shown:
            for ranked in self._recommender.rank(self._requests, self._top_k, self._unknown, part=part, parts=parts):
                yield self._batch(ranked)
                self.requests_seen += len(ranked.window.names)
                shown.update(len(ranked.window.names))

    def _batch(self, ranked: Ranked) -> "pa.RecordBatch":
        import pyarrow as pa

        found = ranked.items >= 0
        rows, ranks = found.nonzero()
        items = pa.array(ranked.items[found])
        return pa.record_batch(
            [
                pa.array(ranked.window.names, pa.string()).take(pa.array(rows)),
                pa.array((ranks + 1).astype(np.int32)),
                self._item_ids.take(items),
                self._titles.take(items),
                pa.array(ranked.scores[found]),
            ],
            schema=_schema(),
        )


def _schema() -> "pa.Schema":
    import pyarrow as pa

    types = (pa.string(), pa.int32(), pa.string(), pa.string(), pa.float32())
    return pa.schema(list(zip(_COLUMNS, types, strict=True)))


def _write(path: Path, batches: "Iterable[pa.RecordBatch]") -> None:
    write = _write_csv if path.name.endswith(".csv.part") else _write_parquet
    # a window without a single recommendation would be an empty row group
    write(path, (batch for batch in batches if batch.num_rows))


def _write_csv(path: Path, batches: "Iterable[pa.RecordBatch]") -> None:
    import polars as pl

    with path.open("wb") as file:
        file.write(f"{','.join(_COLUMNS)}\r\n".encode())
        for batch in batches:
            pl.DataFrame(batch).write_csv(file, include_header=False, line_terminator="\r\n")


def _write_parquet(path: Path, batches: "Iterable[pa.RecordBatch]") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema()) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]))


def _make_anew(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


def _write_part(path: Path, batches: "Iterable[pa.RecordBatch]") -> None:
    import pyarrow as pa

    if not path.parent.is_dir():
        raise CLLM4RecError(
            f"{path.parent}, which the main process made, is not to be seen here; name an --output on a file system "
            "that all processes share"
        )
    with pa.ipc.new_file(str(path), _schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _join(directory: Path, count: int, beside: Path, path: Path) -> None:
    """The windows of all parts in their order: part p holds the windows p, p + count, …"""
    import pyarrow as pa

    parts = [pa.ipc.open_file(pa.memory_map(str(directory / f"{number}.arrow"))) for number in range(count)]
    total = sum(part.num_record_batches for part in parts)
    _write(beside, (parts[window % count].get_batch(window // count) for window in range(total)))
    beside.replace(path)


def recommend_to_terminal(
    recommender: Recommender, requests: Iterable[Request], top_k: int = 20, unknown: str = "raise"
) -> None:
    """Print each user's latest items and the recommendations by title.

    Args:
        recommender: what recommends.
        requests: whom to recommend for.
        top_k: recommendations a user.
        unknown: policy for unknown items of histories.
    """
    catalog = recommender.catalog
    for window, items, scores in recommender.rank(requests, top_k, unknown):
        found = answers(catalog, items, scores)
        for name, history, best in zip(window.names, window.histories, found, strict=True):
            for line in describe(catalog, Request(name, tuple(catalog.item_ids[item] for item in history)), best):
                print(line)  # noqa: T201


def describe(catalog: Catalog, request: Request, found: list[dict[str, Any]], shown: int = 8) -> Iterator[str]:
    """Lines that show one user's latest items and recommendations."""
    history = [catalog.title(int(index)) for index in history_of(request, catalog, "skip")]
    latest = history[-shown:]
    more = f"{len(history) - len(latest)} earlier ones, then " if len(history) > len(latest) else ""
    name = "A history" if request.user is None else f"User {request.user}"
    yield f"\n{name} has interacted with {more}{'; '.join(latest)}"
    for rank, entry in enumerate(found, start=1):
        yield f"  {rank:>3}. {entry['title'] or entry['item']}  ({entry['score']:.2f})"
