"""`cllm4rec prepare` on input that is subtly wrong, and what it promises about the directory that it writes."""

import gzip
import json

import numpy as np
import polars as pl
import pytest

from cllm4rec_hf import PreparedData
from cllm4rec_hf.cli import main
from cllm4rec_hf.data.prepared import TABLES
from cllm4rec_hf.data.writer import write_prepared

PAIRS = [(user, item) for user in range(8) for item in range(6)]
LINES = ["user,item,rating,time,text", *(f"u{u},i{i},5,{u * i},text of {u} and {i}" for u, i in PAIRS)]


@pytest.fixture
def source(tmp_path):
    """A sound CSV of eight users with six items each."""
    path = tmp_path / "data.csv"
    path.write_text("\n".join(LINES) + "\n")
    return path


def table(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def run(source, output, *options):
    return main(["prepare", "--interactions", str(source), "--k-core", "2", "--output", str(output), *options])


def fails(capsys, source, tmp_path, *options):
    """The one line of error, of a run that ends with code 2 and leaves nothing behind."""
    before = set(tmp_path.iterdir())
    capsys.readouterr()
    assert run(source, tmp_path / "out", *options) == 2
    assert set(tmp_path.iterdir()) == before
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


# ---- lines that are malformed


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
@pytest.mark.parametrize("options", [[], ["--text-column", "text"], ["--rating-column", "rating"]])
def test_a_line_with_too_many_fields_is_named_whichever_columns_are_read(options, suffix, tmp_path, capsys):
    text = "\n".join([*LINES[:9], "u1,an, unquoted comma,5,1,x", *LINES[9:]])
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    error = fails(capsys, path, tmp_path, *options)
    assert f"data.{suffix} has more fields than its header: row 9. Quote the fields" in error


def test_an_item_table_with_too_many_fields(source, tmp_path, capsys):
    (tmp_path / "items.csv").write_text("item,title,brand\ni0,One,A\ni1,Two, or so,B\n")
    options = ["--items", str(tmp_path / "items.csv"), "--item-title-column", "title"]
    assert "items.csv has more fields than its header: row 2" in fails(capsys, source, tmp_path, *options)


def test_a_quote_that_is_never_closed(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("\n".join([*LINES[:9], 'u1,i9,5,1,"open', *LINES[9:]]))
    error = fails(capsys, tmp_path / "data.csv", tmp_path, "--text-column", "text")
    assert "data.csv cannot be read: the row that starts in line 10 is malformed" in error


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"user": "u1", ', 'line 4 is not valid JSON: \'{"user": "u1",\''),
        ("nothing", "line 4 is not valid JSON: 'nothing'"),
        ("[1]", "line 4 is no JSON object: '[1]'"),
    ],
)
def test_a_broken_json_line_is_named(bad, message, suffix, tmp_path, capsys):
    good = [json.dumps({"user": "a", "item": item}) for item in range(5)]
    data = "\n".join([*good[:2], "", bad, *good[2:]]).encode()
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert f"data.{suffix} cannot be read: {message}" in fails(capsys, path, tmp_path)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_told_from_json_lines(indent, tmp_path, capsys):
    (tmp_path / "data.json").write_text(json.dumps([{"user": "a", "item": "b"}], indent=indent))
    assert "starts a JSON array; expected JSON lines" in fails(capsys, tmp_path / "data.json", tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl"])
def test_bytes_that_are_not_utf8_are_named_by_line(suffix, tmp_path, capsys):
    if suffix == "jsonl":
        lines = [b'{"user": "a", "item": "b"}', '{"user": "José", "item": "b"}'.encode("latin-1")]
    else:
        lines = [b"user,item", "José,b".encode("latin-1"), b"a,b"]
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(gzip.compress(b"\n".join(lines)) if suffix.endswith("gz") else b"\n".join(lines))
    error = fails(capsys, path, tmp_path)
    assert f"data.{suffix} is not UTF-8 text (line 2 holds the byte 0xe9); convert it" in error


def test_the_file_at_fault_is_named_when_there_are_several(tmp_path, capsys):
    (tmp_path / "data.csv").write_bytes(b"user,item,text\na,b,Jos\xe9\n")
    (tmp_path / "items.csv").write_text("item,title\nb,B\n")
    options = ["--items", str(tmp_path / "items.csv"), "--item-title-column", "title", "--text-column", "text"]
    assert "error: data.csv is not UTF-8" in fails(capsys, tmp_path / "data.csv", tmp_path, *options)
    (tmp_path / "data.csv").write_text("who,item,text\n,b,x\n")
    error = fails(capsys, tmp_path / "data.csv", tmp_path, *options, "--user-column", "who")
    assert "error: data.csv has missing or empty ids in the column 'who': row 1" in error


def test_utf16(tmp_path, capsys):
    (tmp_path / "data.csv").write_bytes("\n".join(LINES).encode("utf-16"))
    assert "data.csv is not UTF-8 text but UTF-16" in fails(capsys, tmp_path / "data.csv", tmp_path)


def test_byte_order_mark_and_windows_line_ends(source, tmp_path):
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode() + b"\r\n")
    for name in ("data", "windows"):
        assert run(tmp_path / f"{name}.csv", tmp_path / name, "--text-column", "text") == 0
    for name in TABLES:
        file = f"{name}.parquet"
        assert (tmp_path / "data" / file).read_bytes() == (tmp_path / "windows" / file).read_bytes()


# ---- values that are no ids, ratings or times


@pytest.mark.parametrize(
    "values, message",
    [
        ([1.0, float("nan")], "missing or empty ids in the column 'user': row 2"),
        ([1.0, None], "missing or empty ids in the column 'user': row 2"),
        ([float("inf"), 1.0], "missing or empty ids in the column 'user': row 1"),
        ([1.0, 2.0**60], "ids that are no whole numbers in the column 'user': row 2"),
        ([b"\xff", b"a"], "the type Binary in the id column 'user'"),
    ],
)
def test_ids_that_are_none(values, message, tmp_path, capsys):
    assert message in fails(capsys, table(tmp_path / "data.parquet", user=values, item=["a", "b"]), tmp_path)


def test_whole_floats_become_whole_numbers(tmp_path):
    users, items = zip(*PAIRS, strict=True)
    source = table(tmp_path / "data.parquet", user=np.array(users, dtype=float), item=items)
    assert run(source, tmp_path / "out") == 0
    assert PreparedData.load(tmp_path / "out").users["user_id"][:3] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "values, message",
    [
        ([{"stars": 5}], "the type Struct({'stars': Int64}) in the rating column"),
        ([[5]], "the type List(Int64) in the rating column"),
        ([float("inf")], "ratings that are no numbers: row 1"),
    ],
)
def test_ratings_that_are_none(values, message, tmp_path, capsys):
    source = table(tmp_path / "data.parquet", user=["a"], item=["b"], rating=values)
    assert message in fails(capsys, source, tmp_path, "--rating-column", "rating")


@pytest.mark.parametrize(
    "values, message",
    [
        (["02 28, 2014", "12 01, 2010"], "neither numbers nor dates as 2014-02-28: rows 1, 2"),
        (["9", "n/a"], "neither numbers nor dates as 2014-02-28: row 2 (the first is 'n/a')"),
        ([[1], [2]], "the type List(Int64) in the timestamp column"),
    ],
)
def test_times_that_do_not_sort_are_refused(values, message, tmp_path, capsys):
    source = table(tmp_path / "data.parquet", user=["a", "a"], item=["b", "c"], time=values)
    assert message in fails(capsys, source, tmp_path, "--timestamp-column", "time")


@pytest.mark.parametrize(
    "times",
    [
        ["10", "9", "", "100"],
        ["2014-02-10", "2014-02-09 23:59:59", "", "2014-02-10T00:00:01"],
        pl.Series(["2014-02-10", "2014-02-09", None, "2015-01-01"]).str.to_date(),
        [10, 9, None, 100],
    ],
)
def test_histories_are_oldest_first_however_time_is_written(times, tmp_path):
    source = table(tmp_path / "data.parquet", user=["a"] * 4, item=["p", "q", "r", "s"], time=times)
    assert run(source, tmp_path / "out", "--timestamp-column", "time", "--k-core", "0") == 0
    data = PreparedData.load(tmp_path / "out")
    history = data.histories("train", "validation", "test")[0]
    assert [data.items["item_id"][int(item)] for item in history] == ["r", "q", "p", "s"]


# ---- options


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--min-rating", "nan", "--rating-column", "rating"], "--min-rating must be a finite number, got nan"),
        (["--items", "ITEMS"], "--items names no column to read"),
        (["--users", "ITEMS"], "--users names no column to read"),
    ],
)
def test_options_that_cannot_be(options, message, source, tmp_path, capsys):
    items = tmp_path / "items.csv"
    items.write_text("item,user,title\ni0,u0,One\n")
    assert message in fails(capsys, source, tmp_path, *(o.replace("ITEMS", str(items)) for o in options))


@pytest.mark.parametrize("option", ["--items", "--rating-column", "--user-column", "--item-text-columns"])
def test_columns_of_a_ready_source_are_not_chosen_silently(option, tmp_path, capsys):
    arguments = ["prepare", "--source", "movielens-100k", option, "x", "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert f"error: {option} belongs to --interactions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_nothing(source, tmp_path, monkeypatch, capsys):
    from datasets import Dataset

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    monkeypatch.setattr(Dataset, "to_parquet", interrupt)
    assert run(source, tmp_path / "out") == 130
    assert set(tmp_path.iterdir()) == before
    assert "Traceback" not in capsys.readouterr().err


# ---- the directory


def test_bytes_do_not_depend_on_how_the_tables_are_chunked(tmp_path):
    parts = [pl.DataFrame({"text": [f"text {k} of part {part}" for k in range(37)]}) for part in range(2000)]
    meta = {"source": "x", "num_users": 0, "num_items": 0, "seed": 0}
    meta["splits"] = {"train": 0, "validation": 0, "test": 0}
    for name, rechunk in (("many", False), ("one", True)):
        frame = pl.concat(parts, rechunk=rechunk)
        assert (frame.n_chunks() == 1) == rechunk
        write_prepared(tmp_path / name, dict.fromkeys(TABLES, frame), dict(meta))
    for name in TABLES:
        file = f"{name}.parquet"
        assert (tmp_path / "many" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_an_empty_directory_and_a_link_are_replaced(source, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(source, tmp_path / "empty", "--overwrite") == 0
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert run(source, tmp_path / "link", "--overwrite", "--seed", "3") == 0
    assert (tmp_path / "link").is_symlink()
    assert PreparedData.load(tmp_path / "empty").meta["seed"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", "empty", "link"}


def test_titles_are_folded_and_empty_ones_are_none(source, tmp_path):
    rows = [{"item": "i0", "title": ""}, {"item": "i1", "title": " A\n title "}, {"item": "i2", "title": None}]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--items", str(tmp_path / "items.jsonl"), "--item-title-column", "title"]
    assert run(source, tmp_path / "out", *options) == 0
    assert PreparedData.load(tmp_path / "out").items["title"][:4] == [None, "A title", None, None]


def test_a_data_set_of_the_hub_is_told_by_its_rows_and_never_by_a_path(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    users, items = (list(column) for column in zip(*PAIRS, strict=True))
    metas = []
    for number, order in enumerate((items, items, items[::-1])):
        directory = tmp_path / f"{number}" / "hub_data"
        directory.mkdir(parents=True)
        table(directory / "train.parquet", user=users, item=order)
        assert run(f"hub:{directory}", tmp_path / f"out{number}") == 0
        metas.append(json.loads((tmp_path / f"out{number}" / "meta.json").read_text()))
        assert metas[-1]["source"] == "hub:hub_data"
        assert str(tmp_path) not in (tmp_path / f"out{number}" / "README.md").read_text()
    assert metas[0] == metas[1]
    assert metas[0]["source_sha256"] != metas[2]["source_sha256"]


def test_meta_tells_which_columns_were_read(source, tmp_path):
    fingerprints = set()
    for name, options in (("a", []), ("b", ["--timestamp-column", "time"]), ("c", ["--text-column", "text"])):
        assert run(source, tmp_path / name, *options) == 0
        data = PreparedData.load(tmp_path / name)
        fingerprints.add(data.fingerprint)
        expected = {"user_column": "user", "item_column": "item"}
        if options:
            expected[options[0].strip("-").replace("-", "_")] = options[1]
        assert data.meta["columns"] == expected
    assert len(fingerprints) == 3
