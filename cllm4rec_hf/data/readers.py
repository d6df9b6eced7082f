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

if TYPE_CHECKING:
    import polars as pl

HUB_SCHEME = "hub:"

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
        A lazy frame; text formats without types come as strings.

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
    with reading(path):
        if kind == "parquet":
            if path.suffix == ".gz":
                return pl.read_parquet(io.BytesIO(gzip.decompress(path.read_bytes()))).lazy()
            return pl.scan_parquet(path)
        if kind == "json lines":
            # all lines, not a sample of them: a key that first occurs late is a column, too
            return pl.scan_ndjson(path, infer_schema_length=None)
        # ids such as 007 and 1e5 must stay what they are, so nothing is inferred
        return pl.scan_csv(path, separator="," if kind == "csv" else "\t", infer_schema=False)


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = _FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        known = ", ".join(suffix for suffix in _FORMATS if suffix not in (".inter", ".item", ".user", ".tab"))
        raise DataError(f"The format of {path.name} is unknown; expected a file named {known}, each plain or with .gz")
    return kind


def _read_hub(name: str) -> "pl.LazyFrame":
    import polars as pl
    from datasets import DatasetDict, load_dataset

    repository, _, split = name.partition(":")
    try:
        loaded = load_dataset(repository, split=split or None)
    except Exception as error:
        # datasets raises a dozen unrelated classes for what cannot be found, reached or read
        raise DataError(
            f"The Hub data set {repository!r} cannot be loaded ({type(error).__name__}: {error}). "
            "Check its name, the network and your token"
        ) from error
    parts = list(loaded.values()) if isinstance(loaded, DatasetDict) else [loaded]
    frames = [pl.DataFrame(part.with_format("arrow")[:]) for part in parts]
    return pl.concat(frames).lazy()


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one `DataError` that names the file."""
    import polars as pl

    name = Path(path).name
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        if "utf-8" in text.lower() or "utf8" in text.lower():
            raise DataError(f"{name} is not UTF-8 text ({text}); convert it, e.g. iconv -f latin1 -t utf-8") from error
        if isinstance(error, pl.exceptions.NoDataError):
            raise DataError(f"{name} is empty; expected a header and rows") from error
        raise DataError(f"{name} cannot be read: {text}") from error


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
