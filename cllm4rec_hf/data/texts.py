"""The texts that training may see: reviews of training pairs, texts of items and of users."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .readers import reading
from .sources import RawData
from .spill import sorted_by_position

if TYPE_CHECKING:
    import polars as pl

# reviews that are put in order at a time
_PART = 50_000


def has_reviews(raw: RawData) -> bool:
    """Whether the interactions have a column of texts."""
    return "text" in raw.interactions.collect_schema().names()


def reviews(
    raw: RawData, source_rows: int, rows: np.ndarray, users: np.ndarray, items: np.ndarray, scratch: Path
) -> Iterator["pl.DataFrame"]:
    """Reviews of some pairs, read part by part and put in order on disk.

    Args:
        raw: the raw data.
        source_rows: number of its interactions.
        rows: [n] positions of the pairs in the raw data, in the order in which the reviews are wanted.
        users: [n] int32 user indices.
        items: [n] int32 item indices.
        scratch: an empty directory with as much room as the texts take.

    Yields:
        Frames with kind, user, item and text.

    Raises:
        DataError: if the source cannot be read.
    """
    import polars as pl

    position_of = np.full(source_rows, -1, dtype=np.int32 if len(rows) < 2**31 else np.int64)
    position_of[rows] = np.arange(len(rows), dtype=position_of.dtype)

    def wanted() -> Iterator[pl.DataFrame]:
        first = 0
        for frame in _read(raw):
            positions = pl.Series("position", position_of[first : first + len(frame)])
            first += len(frame)
            yield frame.with_columns(positions).filter((pl.col("position") >= 0) & is_written(pl.col("text")))

    for part in sorted_by_position(wanted(), scratch, _PART):
        positions = part["position"].to_numpy()
        yield part.select(
            pl.lit("review").alias("kind"),
            pl.Series("user", users[positions]),
            pl.Series("item", items[positions]),
            "text",
        )


def _read(raw: RawData) -> Iterator["pl.DataFrame"]:
    """The column of texts in frames, in the order of the rows."""
    import polars as pl

    with reading(raw.origin or raw.name):
        yield from raw.interactions.select(folded(pl.col("text").cast(pl.String))).collect_batches()


def about(kind: str, user: "pl.Expr", item: "pl.Expr", frame: "pl.DataFrame") -> "pl.DataFrame":
    """Texts of items or users as rows of the table of texts; white space is folded, and empty texts are no texts.

    Args:
        kind: `item` or `user`.
        user: the user index of a row.
        item: the item index of a row.
        frame: rows with a column `text`.
    """
    import polars as pl

    return frame.select(
        pl.lit(kind).alias("kind"), user.alias("user"), item.alias("item"), folded(pl.col("text"))
    ).filter(is_written(pl.col("text")))


def folded(text: "pl.Expr") -> "pl.Expr":
    """A text with one space in place of each stretch of white space, none at its ends."""
    # single spaces are no match: most texts are passed over without a change
    return text.str.replace_all(r"[^\S ]\s*| \s+", " ").str.strip_chars()


def is_written(text: "pl.Expr") -> "pl.Expr":
    """Whether a folded text has anything in it."""
    return text.is_not_null() & (text != "")
