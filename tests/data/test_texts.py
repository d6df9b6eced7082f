"""Texts that are read part by part and sorted on disk."""

import re

import numpy as np
import polars as pl
import pytest

from cllm4rec_hf.cli import main
from cllm4rec_hf.data import spill, texts, writer
from cllm4rec_hf.data.prepared import TABLES
from cllm4rec_hf.data.spill import resized, sorted_by_position
from cllm4rec_hf.data.texts import folded


def shuffled(count, seed=0):
    """Rows with positions below count in random order, every tenth left out."""
    positions = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    positions = positions[positions % 10 != 3].astype(np.int32)
    return pl.DataFrame({"text": [f"text {k} é, too long to lie in a view" for k in positions], "position": positions})


@pytest.mark.parametrize("run_bytes", [1, 400, 1 << 20])
@pytest.mark.parametrize("part", [1, 17, 1000])
def test_rows_come_back_sorted_from_any_number_of_runs(run_bytes, part, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "_RUN_BYTES", run_bytes)
    frame = shuffled(120)
    parts = list(sorted_by_position(frame.iter_slices(7), tmp_path, part))
    assert pl.concat(parts).equals(frame.sort("position"))
    for rows in parts:
        assert len(set(rows["position"] // part)) == 1
    runs = len(list(tmp_path.iterdir()))
    assert runs == {1: 16, 1 << 20: 1}.get(run_bytes, runs) and (run_bytes != 400 or 2 < runs < 16)


def test_a_run_holds_each_text_once(tmp_path):
    frame = shuffled(2000)
    list(sorted_by_position([frame], tmp_path, 100))
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert written < 2 * frame["text"].str.len_bytes().sum() + 40 * len(frame)


def test_nothing_to_sort(tmp_path):
    assert list(sorted_by_position([], tmp_path, 10)) == []
    assert list(resized([], 10)) == []


@pytest.mark.parametrize("rows", [1, 4, 25, 26])
def test_resized_frames_keep_every_row(rows):
    frame = pl.DataFrame({"a": range(25)})
    sizes = [len(part) for part in resized(frame.iter_slices(6), rows)]
    assert sizes == [len(part) for part in frame.iter_slices(rows)]
    assert pl.concat(resized(frame.iter_slices(6), rows)).equals(frame)


def test_white_space_of_any_kind_is_folded():
    generator = np.random.Generator(np.random.PCG64(0))
    alphabet = list("ab  \t\n\r\x0b\x0c\x85\u00a0\u2003\u3000\u200bé")
    rows = ["".join(generator.choice(alphabet, generator.integers(0, 12))) for _ in range(3000)]
    got = pl.DataFrame({"text": rows}).select(folded(pl.col("text")))["text"].to_list()
    # Python calls the separators 0x1c to 0x1f white space, too; they are not in the alphabet
    assert got == [re.sub(r"\s+", " ", row).strip() for row in rows]


def test_what_is_written_does_not_depend_on_how_much_is_in_memory(tmp_path, monkeypatch):
    generator = np.random.Generator(np.random.PCG64(1))
    rows = [(u, i) for u in range(60) for i in generator.permutation(20)[:8]]
    generator.shuffle(rows)
    lines = ["user,item,time,text", *(f"u{u},i{i},{(u * 7 + i) % 5},{'word ' * (i % 3)}" for u, i in rows)]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    (tmp_path / "items.csv").write_text("item,title\ni1,One\ni2,Two\n")
    arguments = ["prepare", "--interactions", str(tmp_path / "data.csv"), "--timestamp-column", "time"]
    arguments += ["--text-column", "text", "--items", str(tmp_path / "items.csv"), "--item-title-column", "title"]
    arguments += ["--item-text-columns", "title"]
    monkeypatch.setattr(writer, "_ROWS", 50)
    assert main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(spill, "_RUN_BYTES", 1)
    monkeypatch.setattr(texts, "_PART", 13)
    assert main([*arguments, "--output", str(tmp_path / "parts")]) == 0
    for name in TABLES:
        file = f"{name}.parquet"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    written = pl.read_parquet(tmp_path / "parts" / "texts.parquet")
    assert written["kind"].to_list()[-2:] == ["item", "item"] and len(written) > 200
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        "README.md", "meta.json", *(f"{name}.parquet" for name in TABLES)
    }  # fmt: skip
