"""Sorts texts that need not fit into memory: sorted runs on disk, merged part by part."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

# a run is sorted in memory
_RUN_BYTES = 64 << 20


def sorted_by_position(frames: Iterable["pl.DataFrame"], scratch: Path, part: int) -> Iterator["pl.DataFrame"]:
    """Sort rows by their column `position` (integers from 0, none twice) on disk.

    Args:
        frames: the rows, in frames of any size.
        scratch: an empty directory; about as large as the rows, it is left with what was written there.
        part: positions of a frame that is returned.

    Yields:
        Rows 0 to part − 1, then part to 2 · part − 1, and so on, so far as there are any.
    """
    runs = [
        _write_run(run, scratch / f"run-{number}.arrow", part)
        for number, run in enumerate(_gathered(frames, _RUN_BYTES))
    ]
    yield from _merged(runs)


def resized(frames: Iterable["pl.DataFrame"], rows: int) -> Iterator["pl.DataFrame"]:
    """The same rows in frames of so many, the last one smaller."""
    import polars as pl

    held: list[pl.DataFrame] = []
    count = 0
    for frame in frames:
        held.append(frame)
        count += len(frame)
        if count >= rows:
            joined = pl.concat(held)
            whole = count - count % rows
            yield from joined.head(whole).iter_slices(rows)
            held, count = [joined.slice(whole)], count - whole
    if count:
        yield pl.concat(held)


def _gathered(frames: Iterable["pl.DataFrame"], size: int) -> Iterator["pl.DataFrame"]:
    import polars as pl

    held: list[pl.DataFrame] = []
    total = 0
    for frame in frames:
        held.append(frame)
        total += int(frame.estimated_size())
        if total >= size:
            yield pl.concat(held)
            held, total = [], 0
    if held:
        yield pl.concat(held)


def _write_run(frame: "pl.DataFrame", path: Path, part: int) -> tuple[Path, list[int]]:
    """Write one sorted run; its file, and the number of the part that each of its record batches belongs to."""
    import numpy as np
    import polars as pl
    import pyarrow as pa

    frame = frame.sort("position").rechunk()
    parts, starts = np.unique(frame["position"].to_numpy() // part, return_index=True)
    # plain strings: views would write the texts of the whole run with each slice of it
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    with pa.ipc.new_file(path, table.schema) as writer:
        for start, stop in itertools.pairwise([*starts, len(frame)]):
            writer.write_table(table.slice(start, stop - start))
    return path, [int(number) for number in parts]


def _merged(runs: list[tuple[Path, list[int]]]) -> Iterator["pl.DataFrame"]:
    import polars as pl
    import pyarrow as pa

    with contextlib.ExitStack() as files:
        # no memory map, whose pages would count as memory of this process
        readers: list[Any] = [pa.ipc.open_file(files.enter_context(pa.OSFile(str(path), "rb"))) for path, _ in runs]
        batch_of = [{number: index for index, number in enumerate(parts)} for _, parts in runs]
        for number in sorted({number for _, parts in runs for number in parts}):
            batches = [
                reader.get_batch(batches[number])
                for reader, batches in zip(readers, batch_of, strict=True)
                if number in batches
            ]
            yield pl.DataFrame(pa.Table.from_batches(batches)).sort("position")
