"""Amazon reviews in the 5-core JSON layout (McAuley et al., SIGIR 2015)."""

import ast
import gzip
import json
from pathlib import Path
from typing import Any

from ..errors import DataError
from .readers import read_table, reading, require_columns
from .sources import RawData, describe

_COLUMNS = {
    "user": "reviewerID",
    "item": "asin",
    "rating": "overall",
    "timestamp": "unixReviewTime",
    "text": "reviewText",
}


def amazon_reviews(file: str, metadata: str | None = None) -> RawData:
    """Reviews, ratings and times; titles and descriptions where a metadata file is given.

    Args:
        file: reviews, one JSON object a line, plain or gzipped.
        metadata: products, one a line: strict JSON, or the Python literals of the 2014 release.

    Raises:
        DataError: if a file is missing or not of this layout.
    """
    import polars as pl

    frame = read_table(file)
    with reading(file):
        found = frame.collect_schema().names()
    require_columns(found, dict.fromkeys(_COLUMNS.values(), "the Amazon review layout"), Path(file).name)
    files = [Path(file)]
    items = None
    if metadata:
        files.append(Path(metadata))
        rows = [_product(row) for row in _products(Path(metadata))]
        items = pl.DataFrame(rows, schema={"item_id": pl.String, "title": pl.String, "text": pl.String})
        items = items.unique("item_id", keep="last", maintain_order=True)
    interactions = frame.select(pl.col(column).alias(role) for role, column in _COLUMNS.items())
    return RawData(interactions, items, None, "amazon-reviews " + ", ".join(path.name for path in files), files, file)


def _products(path: Path) -> Any:
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path), opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                try:
                    row = ast.literal_eval(line.strip())
                except (ValueError, SyntaxError) as error:
                    raise DataError(
                        f"{path.name}, line {number}, is neither JSON nor a Python literal: {line.strip()[:60]!r}"
                    ) from error
            if not isinstance(row, dict) or "asin" not in row:
                raise DataError(f"{path.name}, line {number}, has no key 'asin'; expected one product a line")
            yield row


def _product(row: dict[str, Any]) -> dict[str, Any]:
    description = row.get("description")
    if isinstance(description, list):
        description = " ".join(str(part) for part in description)
    title = " ".join(str(row.get("title") or "").split()) or None
    return {
        "item_id": str(row["asin"]),
        "title": title,
        "text": describe({"title": title, "description": None if description is None else str(description)}),
    }
