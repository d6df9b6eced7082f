"""Writes prepared data through `datasets`, all or nothing."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .prepared import META_FILE, TABLES
from .spill import resized

if TYPE_CHECKING:
    import polars as pl
    from datasets import Dataset

# a table too large for memory: given an empty directory to work in, its rows in frames
Parts = Callable[[Path], "Iterator[pl.DataFrame]"]

# rows of a Parquet row group; the writer holds one at a time
_ROWS = 50_000

_TEXTS = {"kind": "string", "user": "int32", "item": "int32", "text": "string"}

_CARD = """---
configs:
{configs}
---
# Prepared interactions

Written by `cllm4rec prepare` from {source}: {num_users:,} users, {num_items:,} items; training pairs {train:,},
validation {validation:,}, test {test:,} (seed {seed}). `interactions` is sorted by user, then from oldest to newest.
`texts` holds reviews of training pairs only. The filters and their counts are in `meta.json`.
"""


def write_prepared(output: Path, tables: dict[str, "pl.DataFrame | Parts"], meta: dict[str, Any]) -> None:
    """Write the tables, meta.json and a card that lets `datasets.load_dataset` name the tables.

    Args:
        output: the directory; complete when it appears. One that exists is replaced only then.
        tables: interactions, texts, users and items; texts may come in parts, which are written as they come.
        meta: what meta.json holds.

    Raises:
        DataError: if `output` is a file, or a directory that is not prepared data.
    """
    from datasets import Dataset

    known = {META_FILE, "README.md", *(f"{name}.parquet" for name in TABLES)}
    if output.exists():
        found = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
        if found and (META_FILE not in found or found - known):
            others = ", ".join(sorted(found - known)[:3]) or "no meta.json"
            raise DataError(
                f"{output} exists and is not prepared data alone ({others}), so it is not replaced; "
                "choose another --output"
            )
    # `.` has no name to write beside, and a link's target is what is to be replaced
    output = Path(os.path.realpath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    beside.mkdir()

    def table(name: str) -> "Dataset | Parts":
        rows = tables.pop(name)
        # without a fingerprint, datasets would serialise the whole table in memory to hash it
        return rows if callable(rows) else Dataset(_arrow(rows), fingerprint=name)

    try:
        write_files(beside, table, meta)
        if output.exists():
            old = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.old")
            output.rename(old)
            try:
                beside.rename(output)
            except OSError:
                old.rename(output)
                raise
            shutil.rmtree(old)
        else:
            beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_files(directory: Path, table: Callable[[str], "Dataset | Parts"], meta: dict[str, Any]) -> None:
    """Write the files of prepared data into a directory.

    Args:
        directory: an empty one.
        table: gives each table by its name, asked for one after the other.
        meta: what meta.json holds.
    """
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    had_bar = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        for name in TABLES:
            rows, file = table(name), directory / f"{name}.parquet"
            if callable(rows):
                scratch = directory / "scratch"
                scratch.mkdir()
                _write_parts(rows(scratch), _TEXTS, file)
                shutil.rmtree(scratch)
            else:
                rows.to_parquet(file, batch_size=_ROWS)
    finally:
        if had_bar:
            enable_progress_bar()
    (directory / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    configs = "\n".join(f"- config_name: {name}\n  data_files: {name}.parquet" for name in TABLES)
    card = _CARD.format(configs=configs, **meta, **meta["splits"])
    (directory / "README.md").write_text(card, encoding="utf-8")


def _write_parts(parts: "Iterator[pl.DataFrame]", columns: dict[str, str], file: Path) -> None:
    """Write a table of which one row group at a time is in memory."""
    import pyarrow as pa
    from datasets.arrow_writer import ParquetWriter

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    with file.open("wb") as stream:
        writer = ParquetWriter(schema=schema, stream=stream, writer_batch_size=_ROWS)
        for rows in resized(parts, _ROWS):
            writer.write_table(_arrow(rows))
        writer.finalize()


def _arrow(frame: "pl.DataFrame") -> Any:
    """An Arrow table with the plain types that every reader knows."""
    import pyarrow as pa

    fields = []
    for column in frame.head(0).to_arrow().schema:
        is_text = pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
        fields.append(pa.field(column.name, pa.string() if is_text else column.type))
    # in parts, since plain strings of one part must not exceed 2 GiB
    schema = pa.schema(fields)
    # each of one chunk, since chunks come as threads deliver them and would show in the bytes of the file
    parts = [rows.rechunk().to_arrow().cast(schema).combine_chunks() for rows in frame.iter_slices(_ROWS)]
    return pa.concat_tables(parts) if parts else schema.empty_table()
