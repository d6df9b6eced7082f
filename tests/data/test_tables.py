"""Large tables of prepared data are mapped from a copy in the cache, small ones are read."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cllm4rec_hf import DataError, PreparedData
from cllm4rec_hf.data import tables

COPIES = "cllm4rec/*/table.arrow"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache directory of this test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(tables, "_IN_MEMORY", 0)


def contents(data):
    names = ("interactions", "texts", "users", "items")
    return {name: (getattr(data, name).features, getattr(data, name).to_dict()) for name in names}


def copies(cache):
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.glob(COPIES)}


def test_small_tables_are_not_copied(prepared, cache):
    data = PreparedData.load(prepared)
    assert not cache.exists() and not data.texts.cache_files


def test_a_copy_is_the_table_and_the_next_start_finds_it(prepared, cache, monkeypatch):
    expected = PreparedData.load(prepared)
    monkeypatch.setattr(tables, "_IN_MEMORY", 0)
    monkeypatch.setattr(tables, "_BATCH", 7)
    written = PreparedData.load(prepared)
    before = copies(cache)
    read = PreparedData.load(prepared)
    assert len(before) == 4 and copies(cache) == before
    for data in (written, read):
        assert contents(data) == contents(expected)
        assert data.texts._fingerprint == expected.texts._fingerprint
        (file,) = data.texts.cache_files
        assert Path(file["filename"]).parent.name in before
        for split in ("train", "validation", "test"):
            assert data.histories(split).items.tolist() == expected.histories(split).items.tolist()
    # mapped or not, they are published alike
    written.texts.to_parquet(cache / "a.parquet")
    expected.texts.to_parquet(cache / "b.parquet")
    assert (cache / "a.parquet").read_bytes() == (cache / "b.parquet").read_bytes()


def test_other_rows_under_the_same_meta_are_not_taken_for_the_old_ones(prepared, cache, everything_is_large):
    PreparedData.load(prepared)
    table = pq.read_table(prepared / "texts.parquet")
    pq.write_table(table.slice(1), prepared / "texts.parquet")
    assert PreparedData.load(prepared).texts.to_dict() == table.slice(1).to_pydict()
    assert len(copies(cache)) == 5


def test_without_a_cache_tables_are_read(prepared, cache, everything_is_large, caplog):
    cache.mkdir()
    (cache / "cllm4rec").write_text("no directory")
    with caplog.at_level(logging.WARNING):
        data = PreparedData.load(prepared)
    assert "texts.parquet cannot be copied to" in caplog.text and not data.texts.cache_files
    (cache / "cllm4rec").unlink()
    datasets.disable_caching()
    try:
        assert contents(PreparedData.load(prepared)) == contents(data)
    finally:
        datasets.enable_caching()
    assert not list(cache.iterdir())


def test_a_damaged_table_is_one_line(prepared, cache, everything_is_large):
    file = prepared / "texts.parquet"
    whole = bytearray(file.read_bytes())
    whole[4:40] = bytes(36)
    file.write_bytes(whole)
    with pytest.raises(DataError, match="texts.parquet cannot be read as Parquet .*prepare the data again"):
        PreparedData.load(prepared)
    assert not [path for path in cache.glob("cllm4rec/*") if path.name.endswith(".part")]


MEASURE = """
import re, sys
from pathlib import Path
import pyarrow as pa
from cllm4rec_hf import PreparedData
from cllm4rec_hf.data import tables

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

PreparedData.load(sys.argv[1])
pool = pa.default_memory_pool()
for limit in (2**20, 2**20, 2**40):
    tables._IN_MEMORY = limit
    # what the pool keeps is not in use
    pool.release_unused()
    before = anonymous()
    data = PreparedData.load(sys.argv[2])
    assert sum(len(row["text"]) for row in data.texts.select(range(0, len(data.texts), 5000))) > 0
    pool.release_unused()
    print(anonymous() - before, pool.max_memory())
    del data
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by Linux's /proc")
def test_a_large_table_takes_no_memory(prepared, tmp_path):
    rows, width = 50_000, 1_200
    large = tmp_path / "large"
    large.mkdir()
    for file in prepared.iterdir():
        (large / file.name).write_bytes(file.read_bytes())
    schema = pq.read_schema(large / "texts.parquet")
    with pq.ParquetWriter(large / "texts.parquet", schema) as writer:
        for start in range(0, rows, 5_000):
            texts = [f"{number:09d}" + "word " * (width // 5) for number in range(start, start + 5_000)]
            columns = [["item"] * 5_000, [None] * 5_000, [0] * 5_000, texts]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
    meta = json.loads((large / "meta.json").read_text())
    (large / "meta.json").write_text(json.dumps({**meta, "source": "large"}))
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", MEASURE, str(prepared), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (written, peak), (read, _), (in_memory, _) = (map(int, line.split()) for line in done.stdout.splitlines())
    size = rows * width
    assert in_memory > 0.8 * size, "the measure does not see a table in memory"
    assert peak < 0.4 * size and max(written, read) < 0.3 * size, (written, peak, read, in_memory)
    print(written, peak, read, in_memory, size)
