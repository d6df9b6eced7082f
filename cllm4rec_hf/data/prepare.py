"""From raw rows to prepared data: filters, k-core, split, indexing, and the texts that training may see."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .filters import counts, k_core, last_of_duplicates, split_per_user, stable_order
from .prepared import FORMAT_VERSION, SPLITS
from .readers import display_name, reading
from .sources import RawData, as_codes, reject_beyond, row_numbers
from .texts import about, has_reviews, reviews
from .writer import Parts, write_prepared

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger(__name__)

# ISO 8601, the year first: sorts by time as text
_DATE = r"^\d{4}([-/.]\d{2}){1,2}([T ].*)?$"


@dataclass
class PrepareRules:
    """What `prepare` does to the rows.

    Args:
        min_rating: keep ratings of at least this; None keeps all.
        k_core: least interactions of every user and item that stays.
        validation_share: share of each user's items for validation, at least one.
        test_share: share for test, at least one.
        seed: seed of the split.
    """

    min_rating: float | None = None
    k_core: int = 5
    validation_share: float = 0.1
    test_share: float = 0.1
    seed: int = 98765

    def __post_init__(self) -> None:
        if self.k_core < 0:
            raise DataError(f"--k-core must be 0 or more, got {self.k_core}")
        if self.seed < 0:
            raise DataError(f"--seed must be 0 or more, got {self.seed}")
        if self.min_rating is not None and not np.isfinite(self.min_rating):
            raise DataError(f"--min-rating must be a finite number, got {self.min_rating}")
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise DataError(f"--{name.replace('_', '-')} must lie between 0 and 1, got {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise DataError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share} leave nothing to "
                "train on; their sum must be below 1"
            )


def prepare(raw: RawData, rules: PrepareRules, output: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Filter, split and index raw data, and write the prepared directory.

    Order of the steps: rating filter, duplicate pairs merged (the last kept), iterative k-core, indexing by the sorted
    external ids, per-user random split. Rows of `interactions` are sorted by user, then from oldest to newest
    (by timestamp where there is one, else as in the source).

    Args:
        raw: the raw data.
        rules: what to do to it.
        output: directory to write; appears only when it is complete.
        overwrite: whether an existing prepared directory is replaced.

    Returns:
        What meta.json holds: counts at each step, rules, seed, and the hash of the source.

    Raises:
        DataError: if the rows cannot be used, nothing is left, or the output exists.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise DataError(f"The output directory {output} exists; choose another --output, or --overwrite to replace it")
    origin = raw.origin or raw.name
    where = display_name(origin)
    with reading(origin):
        frame = raw.interactions.select(_without_text(raw.interactions)).collect(engine="streaming")
    steps: list[dict[str, Any]] = []

    def step(name: str, users: np.ndarray, items: np.ndarray) -> None:
        steps.append({"step": name, **counts(users, items)})
        logger.info("%s: %s", name, ", ".join(f"{k} {v:,}" for k, v in steps[-1].items() if k != "step"))

    if not len(frame):
        raise DataError(f"{where} has no rows; expected interactions")
    if "beyond" in frame.columns:
        reject_beyond(frame["beyond"], where)
    user_ids, users = as_codes(frame["user"], where, raw.columns.get("user_column", "user"))
    item_ids, items = as_codes(frame["item"], where, raw.columns.get("item_column", "item"))
    step("read", users, items)
    source_rows = len(users)
    rows = np.arange(source_rows)
    if "rating" in frame.columns:
        ratings = _numbers(frame["rating"], where)
        if rules.min_rating is not None:
            rows = np.flatnonzero(ratings >= rules.min_rating)
            users, items = users[rows], items[rows]
            step(f"rating at least {rules.min_rating:g}", users, items)
        del ratings
    elif rules.min_rating is not None:
        raise DataError("--min-rating needs ratings; name their column by --rating-column, or leave --min-rating out")
    order = np.arange(len(rows))
    if "timestamp" in frame.columns:
        order = np.argsort(_times(frame["timestamp"], where)[rows], kind="stable")
    del frame
    order = last_of_duplicates(users, items, order)
    rows, users, items = rows[order], users[order], items[order]
    step("duplicate pairs merged", users, items)
    kept, rounds = k_core(users, items, rules.k_core)
    for number, count in enumerate(rounds, start=1):
        logger.info("%d-core, round %d: %s", rules.k_core, number, count)
    if rounds:
        rows, users, items = rows[kept], users[kept], items[kept]
    step(f"{rules.k_core}-core", users, items)
    if not len(rows):
        raise DataError(_nothing_left(steps, rounds, rules))

    users, user_ids = _index(users, user_ids)
    items, item_ids = _index(items, item_ids)
    split = split_per_user(users, items, rules.validation_share, rules.test_share, rules.seed)
    meta = {
        "format_version": FORMAT_VERSION,
        "source": raw.name,
        "source_sha256": raw.hash(),
        **({"columns": raw.columns} if raw.columns else {}),
        "rules": {name: getattr(rules, name) for name in ("min_rating", "k_core", "validation_share", "test_share")},
        "seed": rules.seed,
        "steps": steps,
        "num_users": len(user_ids),
        "num_items": len(item_ids),
        "splits": {name: int((split == number).sum()) for number, name in enumerate(SPLITS)},
    }
    # a stable sort by user keeps each user's rows from oldest to newest
    by_user = stable_order(users)
    tables = _tables(raw, source_rows, rows, users, items, split, user_ids, item_ids, by_user)
    write_prepared(output, tables, meta)
    return meta


def _without_text(frame: "pl.LazyFrame") -> "list[pl.Expr]":
    """The columns that the filters need, text ids as categories.

    The texts of a million rows stay on disk until it is known which are kept.
    """
    import polars as pl

    schema = frame.collect_schema()
    ids = [name for name in ("user", "item") if schema[name] == pl.String]
    return [pl.col(name).cast(pl.Categorical) if name in ids else pl.col(name) for name in schema if name != "text"]


def _index(codes: np.ndarray, ids: "pl.Series") -> "tuple[np.ndarray, pl.Series]":
    """Indices without gaps, in the order of the sorted ids, and the ids that they stand for."""
    import polars as pl

    present = np.bincount(codes, minlength=len(ids)) > 0
    return (np.cumsum(present, dtype=np.int32) - 1)[codes], ids.filter(pl.Series(present))


def _numbers(series: "pl.Series", where: str) -> np.ndarray:
    import polars as pl

    if not (series.dtype.is_numeric() or series.dtype in (pl.String, pl.Boolean, pl.Null)):
        raise DataError(f"{where} has the type {series.dtype} in the rating column; expected numbers")
    values = series.cast(pl.Float64, strict=False)
    wrong = ~values.is_finite().fill_null(False)
    if wrong.any():
        example = series.filter(wrong)[0]
        raise DataError(
            f"{where} has ratings that are no numbers: {row_numbers(wrong)} (the first is {example!r}). "
            "Mend these rows, or leave --rating-column out for implicit feedback"
        )
    return values.to_numpy()


def _times(series: "pl.Series", where: str) -> np.ndarray:
    """Sortable time of each row: numbers as they are, dates by their order, missing ones first."""
    import polars as pl

    if not (series.dtype.is_numeric() or series.dtype.is_temporal() or series.dtype in (pl.String, pl.Null)):
        raise DataError(f"{where} has the type {series.dtype} in the timestamp column; expected numbers or dates")
    if series.dtype == pl.String:
        text = series.str.strip_chars()
        series = text.set(text == "", None)
        numbers = series.cast(pl.Float64, strict=False)
        # other ways to write dates (day or month first) do not sort by time as text
        is_date = series.str.contains(_DATE).fill_null(False)
        is_number = numbers.is_not_null()
        written_as_dates = is_date.sum() > is_number.sum()
        wrong = series.is_not_null() & ~(is_date if written_as_dates else is_number)
        if wrong.any():
            raise DataError(
                f"{where} has timestamps that are neither numbers nor dates as 2014-02-28: {row_numbers(wrong)} "
                f"(the first is {series.filter(wrong)[0]!r}). Mend these rows, or leave --timestamp-column out to "
                "keep the order of the rows"
            )
        series = series if written_as_dates else numbers
    if series.dtype == pl.String or series.dtype.is_temporal():
        series = series.rank("dense").cast(pl.Float64)
    return series.cast(pl.Float64).fill_null(float("-inf")).fill_nan(float("-inf")).to_numpy()


def _nothing_left(steps: list[dict[str, Any]], rounds: list[dict[str, int]], rules: PrepareRules) -> str:
    def line(name: str, count: dict[str, Any]) -> str:
        return f"{name}: {count['users']} users, {count['items']} items, {count['interactions']} interactions"

    told = [line(count["step"], count) for count in steps[:-1]]
    told += [line(f"{rules.k_core}-core, round {number}", count) for number, count in enumerate(rounds, start=1)]
    remedy = "a lower --k-core" + ("" if rules.min_rating is None else " or a lower --min-rating")
    return f"Nothing is left after the {rules.k_core}-core. {'; '.join(told)}. Try {remedy}"


def _tables(
    raw: RawData,
    source_rows: int,
    rows: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    split: np.ndarray,
    user_ids: "pl.Series",
    item_ids: "pl.Series",
    order: np.ndarray,
) -> dict[str, "pl.DataFrame | Parts"]:
    import polars as pl

    names = pl.Series(SPLITS)
    interactions = pl.DataFrame(
        {
            "user": users[order],
            "item": items[order],
            "split": names.gather(split[order]),
        }
    )
    user_table = pl.DataFrame({"index": np.arange(len(user_ids), dtype=np.int32), "user_id": user_ids})
    item_table = pl.DataFrame({"index": np.arange(len(item_ids), dtype=np.int32), "item_id": item_ids})
    described_texts = []
    titles = pl.DataFrame(schema={"item_id": pl.String, "title": pl.String})
    if raw.items is not None:
        described = item_table.join(raw.items, on="item_id", how="inner", maintain_order="left")
        described_texts.append(about("item", pl.lit(None, pl.Int32), pl.col("index"), described))
        titles = raw.items.select("item_id", "title")
    if raw.users is not None:
        described = user_table.join(raw.users, on="user_id", how="inner", maintain_order="left")
        described_texts.append(about("user", pl.col("index"), pl.lit(None, pl.Int32), described))
    train = order[split[order] == SPLITS.index("train")]

    def texts(scratch: Path) -> "Iterator[pl.DataFrame]":
        if has_reviews(raw):
            yield from reviews(raw, source_rows, rows[train], users[train], items[train], scratch)
        yield from described_texts

    return {
        "interactions": interactions,
        "texts": texts,
        "users": user_table,
        "items": item_table.join(titles, on="item_id", how="left", maintain_order="left"),
    }
