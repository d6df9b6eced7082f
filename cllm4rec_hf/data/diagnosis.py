"""Finds the line at which a text file goes wrong, once a reader has refused it without saying where."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

# a quote that is never closed swallows the rest of the file; no field of a sane table is this long
_LONGEST_FIELD = 1 << 24


def where_it_breaks(path: Path, kind: str, encoding_only: bool = False) -> str | None:
    """Describe the first line of a file that cannot be read.

    Args:
        path: file, plain or gzipped.
        kind: `csv`, `tsv` or `json lines`; nothing is said about other kinds.
        encoding_only: look for bytes that are not UTF-8 alone.

    Returns:
        E.g. `line 20 is not valid JSON: '{"user": '`, or None if no such line is found.
    """
    if kind not in ("csv", "tsv", "json lines") or not path.is_file():
        return None
    try:
        for number, line in enumerate(_lines(path), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} holds the byte 0x{line[error.start]:02x}"
        if encoding_only:
            return None
        return _broken_json(path) if kind == "json lines" else _broken_csv(path, "," if kind == "csv" else "\t")
    except (OSError, EOFError):
        # the file itself breaks off; the reader's own message says so
        return None


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_gzip else path.open("rb") as file:
        yield from file


def _broken_json(path: Path) -> str | None:
    for number, line in enumerate(_lines(path), start=1):
        text = line.decode("utf-8").strip()
        if not text:
            continue
        if number == 1 and text.startswith("["):
            return "line 1 starts a JSON array; expected JSON lines, one object a line (e.g. by jq -c '.[]')"
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return f"line {number} is not valid JSON: {text[:60]!r}"
        if not isinstance(value, dict):
            return f"line {number} is no JSON object: {text[:60]!r}"
    return None


def _broken_csv(path: Path, separator: str) -> str | None:
    limit = csv.field_size_limit(_LONGEST_FIELD)
    text = (line.decode("utf-8") for line in _lines(path))
    rows = csv.reader(text, delimiter=separator, strict=True)
    start, width = 1, 0
    try:
        for row in rows:
            width = width or len(row)
            if len(row) > width:
                return f"line {start} has {len(row)} fields; the header has {width}"
            start = rows.line_num + 1
    except csv.Error as error:
        return f"the row that starts in line {start} is malformed ({error})"
    finally:
        csv.field_size_limit(limit)
    return None
