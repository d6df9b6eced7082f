"""Where raw data comes from: any table with a column mapping, or a data set whose layout is known."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .readers import BEYOND, HUB_SCHEME, columns_of, display_name, read_table, reading, require_columns

if TYPE_CHECKING:
    import polars as pl

# columns that are read as prose; the value of any other is introduced by the column's name
_PROSE = {"title", "name", "text", "description", "summary", "abstract", "body", "content", "plot", "profile", "bio"}


@dataclass
class RawData:
    """Raw rows in one form, whatever they came from.

    Args:
        interactions: lazy frame with user, item and, where there are any, rating, timestamp and text; and `beyond`,
            true in malformed rows, where the format can have such.
        items: item_id, title, text of items, or None.
        users: user_id, text of users, or None.
        name: what to call the source in meta.json; never a path.
        files: the source files, for the hash.
        origin: the file or `hub:` name of the interactions, which errors about rows name; by default `name`.
        columns: which columns of a user's own tables were read as what; empty for known layouts.
        hub_tables: tables that lie in no file, for the hash.
    """

    interactions: "pl.LazyFrame"
    items: "pl.DataFrame | None" = None
    users: "pl.DataFrame | None" = None
    name: str = "table"
    files: list[Path] = field(default_factory=list)
    origin: str | Path | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    hub_tables: "list[pl.DataFrame]" = field(default_factory=list)

    def hash(self) -> str:
        """SHA-256 of the source files in order, then of the rows read from the Hub."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        for table in self.hub_tables:
            for rows in table.iter_slices(50_000):
                digest.update(rows.write_ndjson().encode())
        return digest.hexdigest()


@dataclass
class TableMapping:
    """Which columns of a user's own tables mean what.

    Args:
        interactions: file or `hub:` name of the interactions.
        user_column: column of user ids.
        item_column: column of item ids.
        rating_column: column of ratings, or None for implicit feedback.
        timestamp_column: column that orders a user's interactions, or None.
        text_column: column of reviews, or None.
        items: file of items, or None.
        item_id_column: its column of item ids; by default `item_column`.
        item_title_column: its column of titles, or None.
        item_text_columns: its columns of texts.
        users: file of users, or None.
        user_id_column: its column of user ids; by default `user_column`.
        user_text_columns: its columns of texts.
    """

    interactions: str
    user_column: str
    item_column: str
    rating_column: str | None = None
    timestamp_column: str | None = None
    text_column: str | None = None
    items: str | None = None
    item_id_column: str | None = None
    item_title_column: str | None = None
    item_text_columns: Sequence[str] = ()
    users: str | None = None
    user_id_column: str | None = None
    user_text_columns: Sequence[str] = ()


def from_tables(mapping: TableMapping) -> RawData:
    """Raw data from a user's own tables.

    Raises:
        DataError: if a file or a column is missing.
    """
    import polars as pl

    frame = read_table(mapping.interactions)
    wanted = {
        "user": (mapping.user_column, "--user-column"),
        "item": (mapping.item_column, "--item-column"),
        "rating": (mapping.rating_column, "--rating-column"),
        "timestamp": (mapping.timestamp_column, "--timestamp-column"),
        "text": (mapping.text_column, "--text-column"),
    }
    given = {role: (column, option) for role, (column, option) in wanted.items() if column}
    with reading(mapping.interactions):
        names = frame.collect_schema().names()
        require_columns(columns_of(frame), dict(given.values()), display_name(mapping.interactions))
    chosen = [pl.col(column).alias(role) for role, (column, _) in given.items()]
    if BEYOND in names:
        chosen.append(pl.col(BEYOND).is_not_null().alias("beyond"))
    interactions = frame.select(chosen)
    files = [mapping.interactions]
    items = users = None
    if mapping.items:
        files.append(mapping.items)
        items = _side_table(
            mapping.items,
            mapping.item_id_column or mapping.item_column,
            "--item-id-column",
            mapping.item_title_column,
            mapping.item_text_columns,
            "--item-text-columns",
            "item_id",
        )
        if not mapping.item_title_column and not mapping.item_text_columns:
            raise DataError("--items names no column to read; name them by --item-title-column or --item-text-columns")
    elif mapping.item_text_columns or mapping.item_title_column:
        raise DataError("--item-title-column and --item-text-columns need a table of items; name it by --items")
    if mapping.users:
        files.append(mapping.users)
        users = _side_table(
            mapping.users,
            mapping.user_id_column or mapping.user_column,
            "--user-id-column",
            None,
            mapping.user_text_columns,
            "--user-text-columns",
            "user_id",
        )
        if not mapping.user_text_columns:
            raise DataError("--users names no column to read; name them by --user-text-columns")
    elif mapping.user_text_columns:
        raise DataError("--user-text-columns needs a table of users; name it by --users")
    hub_tables = [interactions.collect()] if mapping.interactions.startswith(HUB_SCHEME) else []
    hub_tables += [
        table
        for file, table in ((mapping.items, items), (mapping.users, users))
        if file and file.startswith(HUB_SCHEME) and table is not None
    ]
    return RawData(
        interactions,
        items,
        users,
        ", ".join(display_name(file) for file in files),
        [Path(file) for file in files if not file.startswith(HUB_SCHEME)],
        mapping.interactions,
        _columns(mapping),
        hub_tables,
    )


def _columns(mapping: TableMapping) -> dict[str, Any]:
    """The columns that were named, for meta.json."""
    named = {name: getattr(mapping, name) for name in mapping.__dataclass_fields__ if "_column" in name}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items() if value}


def _side_table(
    file: str,
    id_column: str,
    id_option: str,
    title_column: str | None,
    text_columns: Sequence[str],
    text_option: str,
    id_name: str,
) -> "pl.DataFrame":
    import polars as pl

    frame = read_table(file)
    with reading(file):
        wanted = {id_column: id_option, **dict.fromkeys(text_columns, text_option)}
        if title_column:
            wanted[title_column] = "--item-title-column"
        require_columns(columns_of(frame), wanted, display_name(file))
        beyond = [BEYOND] if BEYOND in frame.collect_schema().names() else []
        table = frame.select([*dict.fromkeys(wanted), *beyond]).collect()
    if beyond:
        reject_beyond(table[BEYOND].is_not_null(), display_name(file))
    parts = {id_name: as_ids(table[id_column], display_name(file), id_column)}
    if id_name == "item_id":
        titles = _plain(table[title_column]) if title_column else pl.Series([None] * len(table), dtype=pl.String)
        titles = titles.str.replace_all(r"\s+", " ").str.strip_chars()
        parts["title"] = titles.set(titles == "", None)
    texts = {column: _plain(table[column]).to_list() for column in text_columns}
    parts["text"] = pl.Series(
        [describe(dict(zip(texts, values, strict=True))) for values in zip(*texts.values(), strict=True)]
        if texts
        else [None] * len(table),
        dtype=pl.String,
    )
    return pl.DataFrame(parts).unique(id_name, keep="last", maintain_order=True)


def describe(values: dict[str, str | None]) -> str | None:
    """One text from several columns, as sentences for a language model.

    Args:
        values: value of each column; None and empty ones are passed over.

    Returns:
        E.g. `Toy Story. Genres: Animation, Comedy.`, or None when nothing is left.
    """
    if len(values) == 1 and next(iter(values)).casefold() in _PROSE:
        return " ".join((next(iter(values.values())) or "").split()) or None
    sentences = []
    for column, value in values.items():
        value = " ".join((value or "").split())
        if not value:
            continue
        if column.casefold() not in _PROSE:
            value = f"{column.replace('_', ' ').strip().capitalize()}: {value}"
        sentences.append(value if value[-1] in ".!?…" else f"{value}.")
    return " ".join(sentences) or None


def _plain(series: "pl.Series") -> "pl.Series":
    """Any column as strings; lists become comma-separated."""
    import polars as pl

    if isinstance(series.dtype, pl.List):
        return series.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    return series.cast(pl.String)


def as_ids(series: "pl.Series", where: str, column: str) -> "pl.Series":
    """A column of external ids as strings.

    Whole numbers become their decimal text, also those stored as floats (12.0 becomes `12`). CSV and TSV have no
    types: there an id is the text that is written, so that `007` and `12.0` stay what they are.

    Args:
        series: the column.
        where: what to call the table in errors.
        column: what to call the column in errors.

    Returns:
        A column of strings.

    Raises:
        DataError: if ids are missing, empty, fractions, floats too large to be exact, or of another type.
    """
    import polars as pl

    series = _known_type(series, where, column)
    ids = series.cast(pl.String)
    _reject(_is_blank(ids), f"{where} has missing or empty ids in the column {column!r}")
    return ids


def as_codes(series: "pl.Series", where: str, column: str) -> "tuple[pl.Series, np.ndarray]":
    """A column of external ids as integers; only the distinct ids are ever held as strings of their own.

    Args:
        series: the column, see `as_ids`; text is quickest as categories, made while it is read.
        where: what to call the table in errors.
        column: what to call the column in errors.

    Returns:
        The distinct ids as sorted strings, and [n] int32, the position among them of each row's id.

    Raises:
        DataError: see `as_ids`.
    """
    import polars as pl

    series = _known_type(series, where, column)
    if series.dtype == pl.String:
        series = series.cast(pl.Categorical)
    distinct = series.unique()
    ids = distinct.cast(pl.String)
    if _is_blank(ids).any():
        as_ids(series, where, column)
    order = ids.arg_sort()
    if series.dtype.is_integer():
        ranks = pl.DataFrame({"id": distinct.gather(order)}).with_row_index("code")
        found = pl.DataFrame({"id": series}).join(ranks, on="id", how="left", maintain_order="left")["code"]
        return ids.gather(order), found.to_numpy().astype(np.int32)
    numbers = distinct.gather(order).to_physical().to_numpy()
    code_of = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int32)
    code_of[numbers] = np.arange(len(numbers), dtype=np.int32)
    return ids.gather(order), code_of[series.to_physical().to_numpy()]


def _known_type(series: "pl.Series", where: str, column: str) -> "pl.Series":
    """Whole numbers or text; see `as_ids`."""
    import polars as pl

    if series.dtype.is_float():
        _reject(~series.is_finite().fill_null(False), f"{where} has missing or empty ids in the column {column!r}")
        # above 2^53 (2^24 in single precision) neighbours fall together
        exact = 2.0**53 if series.dtype == pl.Float64 else 2.0**24
        inexact = (series != series.floor()) | (series.abs() > exact)
        _reject(inexact, f"{where} has ids that are no whole numbers in the column {column!r}")
        return series.cast(pl.Int64)
    if not (
        series.dtype == pl.String or series.dtype.is_integer() or isinstance(series.dtype, (pl.Categorical, pl.Enum))
    ):
        raise DataError(
            f"{where} has the type {series.dtype} in the id column {column!r}; expected text or whole numbers"
        )
    return series


def _is_blank(ids: "pl.Series") -> "pl.Series":
    return ids.is_null() | (ids.str.strip_chars() == "").fill_null(True)


def _reject(wrong: "pl.Series", what: str) -> None:
    if wrong.any():
        raise DataError(f"{what}: {row_numbers(wrong)}. Remove or mend these rows")


def reject_beyond(wrong: "pl.Series", where: str) -> None:
    """Refuse rows with more fields than the header names, whose values may stand in the wrong columns.

    Raises:
        DataError: naming the rows.
    """
    if wrong.any():
        raise DataError(
            f"{where} has more fields than its header: {row_numbers(wrong)}. Quote the fields that hold the separator"
        )


def row_numbers(wrong: "pl.Series") -> str:
    """Which rows are true, e.g. `rows 3, 17 and 5 more`; counted from 1, a header not included."""
    rows = wrong.arg_true() + 1
    shown = ", ".join(str(row) for row in rows.head(5))
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
