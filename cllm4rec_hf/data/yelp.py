"""The Yelp open data set: reviews, businesses and users."""

from pathlib import Path
from typing import Any

from ..errors import DataError
from .readers import read_table, reading, require_columns
from .sources import RawData

_REVIEW = {"user": "user_id", "item": "business_id", "rating": "stars", "timestamp": "date", "text": "text"}


def yelp(directory: str) -> RawData:
    """Reviews with stars and dates; businesses' names, categories and places; users' years on Yelp.

    Args:
        directory: directory with `yelp_academic_dataset_review.json`, `…_business.json` and `…_user.json`, plain or
            gzipped.

    Raises:
        DataError: if a file is missing or not of this layout.
    """
    import polars as pl

    files = [_find(Path(directory), kind) for kind in ("review", "business", "user")]
    frames = [read_table(file) for file in files]
    needed: list[dict[str, str]] = [
        dict.fromkeys(_REVIEW.values(), "the Yelp review layout"),
        dict.fromkeys(("business_id", "name", "categories"), "the Yelp business layout"),
        dict.fromkeys(("user_id",), "the Yelp user layout"),
    ]
    for file, frame, wanted in zip(files, frames, needed, strict=True):
        with reading(file):
            found = frame.collect_schema().names()
        require_columns(found, wanted, file.name)
    with reading(files[1]):
        businesses = _optional(frames[1], ("business_id", "name", "categories", "city", "state"))
    with reading(files[2]):
        people = _optional(frames[2], ("user_id", "yelping_since", "elite"))
    items = pl.DataFrame(
        [_business(row) for row in businesses],
        schema={"item_id": pl.String, "title": pl.String, "text": pl.String},
    )
    users = pl.DataFrame([_user(row) for row in people], schema={"user_id": pl.String, "text": pl.String})
    interactions = frames[0].select(pl.col(column).alias(role) for role, column in _REVIEW.items())
    return RawData(interactions, items, users, "yelp", files, files[0])


def _find(directory: Path, kind: str) -> Path:
    name = f"yelp_academic_dataset_{kind}.json"
    for candidate in (directory / name, directory / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{directory} holds no {name}; expected the unpacked Yelp data set there, plain or with .gz")


def _optional(frame: Any, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    present = set(frame.collect_schema().names())
    rows = frame.select([column for column in columns if column in present]).collect().to_dicts()
    return [{column: row.get(column) for column in columns} for row in rows]


def _business(row: dict[str, Any]) -> dict[str, Any]:
    text = f"{row['name']}."
    place = ", ".join(part for part in (row["city"], row["state"]) if part)
    if place:
        text = f"{row['name']}, in {place}."
    if row["categories"]:
        text += f" Categories: {row['categories']}."
    return {"item_id": row["business_id"], "title": row["name"], "text": text}


def _user(row: dict[str, Any]) -> dict[str, Any]:
    # names are left out: they say nothing about taste and belong to people
    text = None
    if row["yelping_since"]:
        text = f"A member since {str(row['yelping_since'])[:4]}"
        years = [year.strip() for year in str(row["elite"] or "").split(",") if year.strip().isdigit()]
        text += f", elite in {', '.join(years)}." if years else "."
    return {"user_id": row["user_id"], "text": text}
