"""Tables from files and from the Hub, as lazy polars frames, with errors that name the remedy."""

import contextlib
import difflib
import gzip
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from .diagnosis import where_it_breaks

if TYPE_CHECKING:
    import polars as pl

HUB_SCHEME = "hub:"

# last column of every text table: what a line holds beyond the header's fields, which polars would pass over silently
BEYOND = "fields beyond the header"

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".inter": "tsv",
    ".item": "tsv",
    ".user": "tsv",
    ".json": "json lines",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".parquet": "parquet",
}


def read_table(source: str | os.PathLike) -> "pl.LazyFrame":
    """Open a table.

    Args:
        source: a CSV, TSV, JSON lines or Parquet file, plain or gzipped, known by its suffix; or `hub:ORG/NAME` or
            `hub:ORG/NAME:SPLIT` for a data set of the Hub (all its splits by default).

    Returns:
        A lazy frame; text formats without types come as strings, with the column `BEYOND` (null in sound rows) behind
        those of the header.

    Raises:
        DataError: if the file is missing, of no known format, or not readable.
    """
    import polars as pl

    if str(source).startswith(HUB_SCHEME):
        return _read_hub(str(source).removeprefix(HUB_SCHEME))
    path = Path(source)
    kind = _format(path)
    if not path.is_file():
        raise DataError(f"No file {path}; expected a {kind} file")
    with path.open("rb") as file:
        if kind != "parquet" and file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path.name} is not UTF-8 text but UTF-16; convert it, e.g. iconv -f utf-16 -t utf-8")
    with reading(path):
        if kind == "parquet":
            if path.suffix == ".gz":
                return pl.read_parquet(io.BytesIO(gzip.decompress(path.read_bytes()))).lazy()
            return pl.scan_parquet(path)
        if kind == "json lines":
            # all lines, not a sample of them: a key that first occurs late is a column, too
            return pl.scan_ndjson(path, infer_schema_length=None)
        # ids such as 007 and 1e5 must stay what they are, so nothing is inferred
        separator = "," if kind == "csv" else "\t"
        names = pl.scan_csv(path, separator=separator, infer_schema=False).collect_schema().names()
        schema = dict.fromkeys([*names, BEYOND], pl.String)
        return pl.scan_csv(path, separator=separator, schema=schema, missing_columns="insert")


def columns_of(frame: "pl.LazyFrame") -> list[str]:
    """Names of the columns that the table itself has."""
    return [name for name in frame.collect_schema().names() if name != BEYOND]


def display_name(source: str | os.PathLike) -> str:
    """What to call a file or Hub data set: never a path of this machine."""
    text = str(source)
    if text.startswith(HUB_SCHEME) and not os.path.exists(text.removeprefix(HUB_SCHEME).partition(":")[0]):
        return text
    scheme = HUB_SCHEME if text.startswith(HUB_SCHEME) else ""
    return scheme + Path(text.removeprefix(HUB_SCHEME)).name


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _format(path: Path) -> str:
    kind = _kind(path)
    if kind is None:
        known = ", ".join(suffix for suffix in _FORMATS if suffix not in (".inter", ".item", ".user", ".tab"))
        raise DataError(f"The format of {path.name} is unknown; expected a file named {known}, each plain or with .gz")
    return kind


def _read_hub(name: str) -> "pl.LazyFrame":
    import polars as pl
    from datasets import DatasetDict, load_dataset

    repository, _, split = name.partition(":")
    if not repository:
        raise DataError(f"{HUB_SCHEME} names no data set; expected {HUB_SCHEME}ORG/NAME or {HUB_SCHEME}ORG/NAME:SPLIT")
    try:
        loaded = load_dataset(repository, split=split or None)
    except Exception as error:
        # datasets raises a dozen unrelated classes for what cannot be found, reached or read
        raise DataError(
            f"The Hub data set {repository!r} cannot be loaded ({type(error).__name__}: {error}). "
            "Check its name, the network and your token"
        ) from error
    parts = list(loaded.values()) if isinstance(loaded, DatasetDict) else [loaded]
    with reading(HUB_SCHEME + name):
        frames = [pl.DataFrame(part.with_format("arrow")[:]) for part in parts]
        return pl.concat(frames).lazy()


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one `DataError` that names the file."""
    import polars as pl

    name = display_name(path)
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        file, kind = Path(path), _kind(Path(path))
        if "utf-8" in text.lower() or "utf8" in text.lower():
            line = where_it_breaks(file, kind or "", encoding_only=True)
            remedy = "convert it, e.g. iconv -f latin1 -t utf-8"
            raise DataError(f"{name} is not UTF-8 text ({line or text}); {remedy}") from error
        if isinstance(error, pl.exceptions.NoDataError) or (file.is_file() and not file.stat().st_size):
            expected = "rows" if kind == "json lines" else "a header and rows"
            raise DataError(f"{name} is empty; expected {expected}") from error
        place = where_it_breaks(file, kind or "") if isinstance(error, pl.exceptions.PolarsError) else None
        raise DataError(f"{name} cannot be read: {place or text}") from error


def require_columns(found: Iterable[str], wanted: dict[str, str], where: str) -> None:
    """Check that columns exist.

    Args:
        found: names of the columns that there are.
        wanted: option that named each wanted column, by column name.
        where: the file, for the message.

    Raises:
        DataError: naming the first missing column, those found, and the nearest of them.
    """
    found = list(found)
    for column, option in wanted.items():
        if column not in found:
            folded = {name.casefold(): name for name in found}
            near = difflib.get_close_matches(column.casefold(), folded, n=1, cutoff=0.5)
            hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
            raise DataError(
                f"{where} has no column {column!r} ({option}). Columns found: {', '.join(found) or 'none'}.{hint}"
            )
