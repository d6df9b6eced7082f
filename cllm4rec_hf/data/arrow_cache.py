"""Tables as memory-mapped Arrow files that the next start finds again."""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_STATE_FILE = "state.json"


def cache_root() -> Path:
    """`cllm4rec` in the cache directory of `datasets`."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "cllm4rec"


def read_or_write(entry: Path, file_name: str, write: Callable[[Path], None], what: str, doing: str) -> "Dataset":
    """The table of a cache entry; written first if there is none that is whole.

    Args:
        entry: directory of the entry; its name tells its content from any other.
        file_name: the table in it.
        write: writes the table, an Arrow stream, into the file it is given.
        what: the table's rows in words, e.g. `tokenized texts`.
        doing: what writing it is, e.g. `tokenizing`.

    Returns:
        The table, memory-mapped.

    Raises:
        OSError: if the cache cannot be written.
        NotImplementedError: if its file system has no locks.
    """
    from filelock import FileLock

    found = _read(entry, file_name, what, doing)
    if found is not None:
        return found
    entry.parent.mkdir(parents=True, exist_ok=True)
    # of several processes one writes, and the others wait for what it writes
    with FileLock(f"{entry}.lock"):
        found = _read(entry, file_name, what, doing)
        if found is not None:
            return found
        # of a process that was killed, since it held the lock
        for left in entry.parent.glob(f".{entry.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        beside = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}.part")
        beside.mkdir()
        try:
            write(beside / file_name)
            state = {"sha256": _hash(beside / file_name)}
            (beside / _STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            # what stands there is damaged, or it would have been read
            shutil.rmtree(entry, ignore_errors=True)
            beside.rename(entry)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    found = _read(entry, file_name, what, doing)
    if found is None:
        raise OSError(f"{entry} does not read back as it was written")
    return found


def _read(entry: Path, file_name: str, what: str, doing: str) -> "Dataset | None":
    """A cache entry, or None if there is none that is whole."""
    import pyarrow as pa
    from datasets import Dataset

    file = entry / file_name
    if not entry.is_dir():
        return None
    try:
        state = json.loads((entry / _STATE_FILE).read_text(encoding="utf-8"))
        if state["sha256"] == _hash(file):
            table = Dataset.from_file(str(file))
            logger.info("%d %s come from the cache in %s", len(table), what, entry)
            return table
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        logger.debug("%s: %s", entry, error)
    logger.warning("The %s in %s are damaged; %s again", what, entry, doing)
    return None


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
