"""Recommendations for many users: from ids or files to a table or the terminal."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..data.catalog import Catalog
from ..data.prepared import SPLITS, PreparedData
from ..errors import CLLM4RecError, DataError
from .recommender import Recommender
from .requests import Request, history_of

_COLUMNS = ("user", "rank", "item", "title", "score")
_ROWS_PER_GROUP = 100_000


def requests_from(
    catalog: Catalog, data: str | None, users: str | None, histories: str | None, unknown: str = "raise"
) -> list[Request]:
    """Whom to recommend for.

    Args:
        catalog: the model's catalog.
        data: prepared data, where the histories of `users` are: all their interactions, of every split.
        users: file with one user id a line, or ids separated by commas; all users of the data by default.
        histories: JSON lines file of `{"user": id, "history": [item ids, oldest first]}`.
        unknown: what to do with unknown user ids: `raise`, `skip` or `warn`.

    Raises:
        CLLM4RecError: if it is not clear whom to recommend for, or a file cannot be read.
        UnknownIdError: if a user is unknown and the policy is `raise`.
    """
    if (histories is None) == (data is None):
        raise CLLM4RecError("Name the histories by exactly one of --data (prepared data) and --histories (JSON lines)")
    if histories is not None or data is None:
        if users is not None:
            raise CLLM4RecError("--users chooses users of --data; --histories names its own")
        return list(read_histories(Path(str(histories))))
    prepared = PreparedData.load(data)
    known = Catalog.from_prepared(prepared)
    if known.item_ids != catalog.item_ids:
        raise DataError(
            f"The model was trained on other items than {data} holds ({len(catalog)} against {len(known)}); name the "
            "data it was trained on, or give histories by --histories"
        )
    indices = range(prepared.num_users) if users is None else known.user_indices(_read_users(users), unknown)
    items = prepared.histories(*SPLITS)
    return [Request(known.user_ids[u], tuple(known.item_ids[i] for i in items[u])) for u in indices]


def read_histories(path: Path) -> Iterator[Request]:
    """Requests of a JSON lines file; see `requests_from`.

    Raises:
        DataError: naming the line that is not of that form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        expected = f'{path.name}, line {number}: expected {{"user": id, "history": [item ids]}}'
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{expected}, but it is not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("history"), list):
            raise DataError(f"{expected}, got {line.strip()[:80]}")
        user = row.get("user")
        yield Request(None if user is None else str(user), tuple(str(item) for item in row["history"]))


def _read_users(users: str) -> list[str]:
    if os.path.isfile(users):
        try:
            lines = Path(users).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{users} is not UTF-8 text; expected one user id a line") from error
        return [line.strip() for line in lines if line.strip()]
    return [user.strip() for user in users.split(",") if user.strip()]


def _rows(recommender: Recommender, requests: list[Request], top_k: int, unknown: str) -> Iterator[tuple]:
    from tqdm.auto import tqdm

    answers = recommender.recommend(requests, top_k, unknown)
    shown = tqdm(requests, desc="Recommending", unit="user", delay=2)
    for request, found in zip(shown, answers, strict=True):
        for rank, entry in enumerate(found, start=1):
            yield request.user, rank, entry["item"], entry["title"], entry["score"]


def recommend_to_file(
    recommender: Recommender, requests: list[Request], output: str, top_k: int = 20, unknown: str = "raise"
) -> int:
    """Write recommendations as rows of user, rank, item, title, score (log p).

    Args:
        recommender: what recommends.
        requests: whom to recommend for.
        output: a .parquet or .csv file; appears only when it is complete.
        top_k: recommendations a user.
        unknown: policy for unknown items of histories.

    Returns:
        Number of requests.

    Raises:
        CLLM4RecError: if the file's format is unknown or its directory does not exist.
    """
    path = Path(output)
    if path.suffix not in (".parquet", ".csv"):
        raise CLLM4RecError(f"The format of {output!r} is unknown; expected a file named .parquet or .csv")
    if not path.parent.is_dir():
        raise CLLM4RecError(f"The directory {path.parent} does not exist; make it first")
    beside = path.with_name(f"{path.name}.part")
    write = _write_csv if path.suffix == ".csv" else _write_parquet
    try:
        write(beside, _rows(recommender, requests, top_k, unknown))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return len(requests)


def _write_csv(path: Path, rows: Iterable[tuple]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Iterator[tuple]) -> None:
    from itertools import islice

    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (pa.string(), pa.int32(), pa.string(), pa.string(), pa.float32())
    schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*group, strict=True), types, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def recommend_to_terminal(
    recommender: Recommender, requests: list[Request], top_k: int = 20, unknown: str = "raise"
) -> None:
    """Print each user's latest items and the recommendations by title.

    Args:
        recommender: what recommends.
        requests: whom to recommend for.
        top_k: recommendations a user.
        unknown: policy for unknown items of histories.
    """
    for request, found in zip(requests, recommender.recommend(requests, top_k, unknown), strict=True):
        for line in describe(recommender.catalog, request, found):
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
