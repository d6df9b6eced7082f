"""Parquet tables of prepared data: small ones in memory, large ones memory-mapped from a copy in the cache."""

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .arrow_cache import cache_root, read_or_write

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# raised when the same table comes to give another copy
_VERSION = 1
_COPY_FILE = "table.arrow"

# a table of fewer bytes is read in less time than its copy takes to be checked and mapped
_IN_MEMORY = 64 * 2**20
# of a row beside its words: what Parquet's dictionaries and run lengths hide
_ROW_BYTES = 16
_BATCH = 2_000
_BAR_AFTER_SECONDS = 2


def read_table(file: Path, columns: tuple[str, ...], fingerprint: str) -> "Dataset":
    """A table that lies on disk as Parquet.

    Parquet has to be decoded before it can be read row by row. From 64 MB on this is done once, into an Arrow file in
    the cache directory of `datasets`, which takes no memory of the process; the next start maps the same file.

    Args:
        file: the Parquet file.
        columns: its columns.
        fingerprint: what tells the data that the table is part of from any other.

    Returns:
        The table; memory-mapped where it is large.

    Raises:
        DataError: if the file is no Parquet, or has other columns.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
        names = tuple(metadata.schema.to_arrow_schema().names)
        if names != columns:
            raise DataError(f"{file} has the columns {', '.join(names)}; expected {', '.join(columns)}")
        # a fingerprint of our own spares hashing the table, and tells one prepared directory from another
        own = f"{file.stem}-{fingerprint}"
        if _size(metadata) >= _IN_MEMORY and datasets.is_caching_enabled():
            table = _mapped(file, fingerprint)
            if table is not None:
                return datasets.Dataset(table.data, info=table.info, fingerprint=own)
        return datasets.Dataset(pq.read_table(file), fingerprint=own)
    except (OSError, pa.ArrowException) as error:
        # some of Arrow's reasons come in several lines
        reason = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read as Parquet ({reason}); prepare the data again") from error


def _size(metadata: Any) -> int:
    """Bytes of a table in memory, about."""
    words = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return words + _ROW_BYTES * metadata.num_rows


def _mapped(file: Path, fingerprint: str) -> "Dataset | None":
    """The table's copy in the cache, or None if it cannot be kept there."""
    import pyarrow as pa

    # the footer names the place, the size and the statistics of every column of every row group
    parts = [_VERSION, file.stem, fingerprint, file.stat().st_size, _footer(file)]
    entry = cache_root() / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    try:
        return read_or_write(entry, _COPY_FILE, lambda copy: _copy(file, copy), f"rows of {file.stem}", "copying")
    except (OSError, NotImplementedError, pa.ArrowException) as error:
        # no room, no right to write, or a file system without locks; if it was the Parquet file, reading it will tell
        logger.warning("%s cannot be copied to %s (%s); it is read into memory", file, entry.parent, error)
        return None


def _footer(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return hashlib.sha256(stream.read(length)).hexdigest()


def _copy(file: Path, copy: Path) -> None:
    """Write the table as an Arrow stream, a part at a time, with a progress bar if it takes long."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.utils import tqdm

    with pq.ParquetFile(file) as table, pa.OSFile(str(copy), "wb") as stream:
        rows = table.metadata.num_rows
        bar = tqdm(total=rows, desc=f"Copying {file.stem}", unit="row", unit_scale=True, delay=_BAR_AFTER_SECONDS)
        with contextlib.closing(bar), pa.ipc.new_stream(stream, table.schema_arrow) as writer:
            for batch in table.iter_batches(_BATCH):
                writer.write_batch(batch)
                bar.update(len(batch))
