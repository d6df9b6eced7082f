"""`cllm4rec prepare` from end to end: formats, sources, what training may see, and one clear error for each bad input."""

import gzip
import json

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset

from cllm4rec_hf import PreparedData
from cllm4rec_hf.cli import main
from cllm4rec_hf.data.prepared import TABLES
from cllm4rec_hf.data.sources import describe


def frame(users=12, items=10, seed=0):
    """Every user has 6 of 10 items, with ratings, times and a review that names the pair."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = [
        {"user": f"u{user:02d}", "item": f"i{item}", "rating": 4.0 + item % 2, "time": int(generator.integers(10**6)),
         "review": f"review of pair {user}-{item} end"}
        for user in range(users) for item in generator.permutation(items)[:6]
    ]  # fmt: skip
    return pl.DataFrame(rows)


def write(table, path):
    kind = [suffix for suffix in path.suffixes if suffix != ".gz"][-1]
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if kind == ".csv":
        table.write_csv(plain)
    elif kind == ".tsv":
        table.write_csv(plain, separator="\t")
    elif kind == ".parquet":
        table.write_parquet(plain)
    else:
        table.write_ndjson(plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def prepare(source, output, *options):
    columns = ["--rating-column", "rating", "--timestamp-column", "time", "--text-column", "review"]
    return main(
        ["prepare", "--interactions", str(source), *columns, "--k-core", "3", "--output", str(output), *options]
    )


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


FORMATS = ("csv", "tsv", "jsonl", "json", "ndjson", "parquet")


@pytest.mark.parametrize("suffix", [*FORMATS, *(f"{name}.gz" for name in FORMATS)])
def test_every_format_gives_the_same_tables(suffix, tmp_path):
    assert prepare(write(frame(), tmp_path / f"data.{suffix}"), tmp_path / "out") == 0
    assert prepare(write(frame(), tmp_path / "reference.csv"), tmp_path / "expected") == 0
    for name in TABLES:
        assert (tmp_path / "out" / f"{name}.parquet").read_bytes() == (
            tmp_path / "expected" / f"{name}.parquet"
        ).read_bytes(), name


def test_same_input_and_seed_give_the_same_bytes_and_datasets_loads_them(tmp_path):
    source = write(frame(), tmp_path / "data.csv")
    for name in ("a", "b"):
        assert prepare(source, tmp_path / name) == 0
    assert prepare(source, tmp_path / "c", "--seed", "1") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    for name, columns in TABLES.items():
        table = load_dataset(str(tmp_path / "a"), name, cache_dir=str(tmp_path / "cache"))["train"]
        assert tuple(table.column_names) == columns and len(table)


def test_split_and_index_do_not_depend_on_the_order_of_the_rows(tmp_path):
    table = frame()
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=3)
    for name, rows in (("a", table), ("b", shuffled)):
        assert prepare(write(rows, tmp_path / f"{name}.csv"), tmp_path / name) == 0
    for name in ("interactions", "users", "items"):
        file = f"{name}.parquet"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_texts_hold_train_pairs_only_and_history_is_oldest_first(tmp_path):
    table = frame()
    assert prepare(write(table, tmp_path / "data.csv"), tmp_path / "out") == 0
    data = PreparedData.load(tmp_path / "out")
    users, items = data.users["user_id"], data.items["item_id"]
    times = {(row["user"], row["item"]): row["time"] for row in table.to_dicts()}
    train = set()
    for user in range(data.num_users):
        history = [times[users[user], items[item]] for item in data.histories("train", "validation", "test")[user]]
        assert history == sorted(history) and len(history) == 6
        train |= {(users[user], items[item]) for item in data.histories("train")[user]}
    reviews = {(users[row["user"]], items[row["item"]]): row["text"] for row in data.texts}
    assert reviews.keys() == train
    for (user, item), text in reviews.items():
        assert text == f"review of pair {int(user[1:])}-{item[1:]} end"
    assert data.meta["splits"] == {"train": len(train), "validation": 12, "test": 12}
    assert [step["step"] for step in data.meta["steps"]] == ["read", "duplicate pairs merged", "3-core"]
    assert "/" not in data.meta["source"] and len(data.meta["source_sha256"]) == 64


def test_rating_filter_and_duplicates(tmp_path):
    table = frame()
    doubled = pl.concat([table.with_columns(review=pl.lit("an older text"), time=pl.lit(-1, pl.Int64)), table])
    assert prepare(write(doubled, tmp_path / "data.csv"), tmp_path / "out", "--min-rating", "5") == 0
    data = PreparedData.load(tmp_path / "out")
    counts = {step["step"]: step["interactions"] for step in data.meta["steps"]}
    liked = int((table["rating"] >= 5).sum())
    assert counts["read"] == 144 and counts["rating at least 5"] == 2 * liked
    assert counts["duplicate pairs merged"] == liked
    assert not [text for text in data.texts["text"] if text == "an older text"]


def test_item_and_user_tables(tmp_path):
    source = write(frame(), tmp_path / "data.csv")
    items = pl.DataFrame(
        {"item": [f"i{k}" for k in range(12)], "name": [f"Thing {k}" for k in range(12)], "brand": ["Acme", None] * 6}
    )
    users = pl.DataFrame({"id": ["u00", "stranger"], "about": ["likes  old\nfilms", "x"]})
    options = ["--items", str(write(items, tmp_path / "items.jsonl")), "--item-title-column", "name"]
    options += ["--item-text-columns", "name,brand", "--users", str(write(users, tmp_path / "users.tsv"))]
    options += ["--user-id-column", "id", "--user-text-columns", "about"]
    assert prepare(source, tmp_path / "out", *options) == 0
    data = PreparedData.load(tmp_path / "out")
    assert data.items["title"][:2] == ["Thing 0", "Thing 1"] and data.num_items == 10
    texts = {(row["kind"], row["user"], row["item"]): row["text"] for row in data.texts}
    assert texts["item", None, 0] == "Thing 0. Brand: Acme."
    assert texts["item", None, 1] == "Thing 1."
    assert texts["user", 0, None] == "About: likes old films."
    assert ("user", 1, None) not in texts


def test_describe_writes_sentences():
    assert describe({"title": "A title", "description": "More!", "genres": "x, y"}) == "A title. More! Genres: x, y."
    assert describe({"description": " as  it is "}) == "as it is"
    assert describe({"title": None, "brand": ""}) is None


def test_hub_data_set(tmp_path):
    directory = tmp_path / "on_the_hub"
    directory.mkdir()
    write(frame(), directory / "train.parquet")
    assert prepare(f"hub:{directory}", tmp_path / "out") == 0
    assert PreparedData.load(tmp_path / "out").num_users == 12
    assert prepare(f"hub:{directory}:train", tmp_path / "out2") == 0


def test_whole_number_ids_become_text(tmp_path):
    table = frame().with_columns(user=pl.col("user").str.slice(1).cast(pl.Int64))
    assert prepare(write(table, tmp_path / "data.parquet"), tmp_path / "out") == 0
    assert PreparedData.load(tmp_path / "out").users["user_id"][:2] == ["0", "1"]


# ---- errors


def fails(capsys, output, *arguments):
    """Exit code 2, one line of error, and neither the output nor anything beside it."""
    before = set(output.parent.iterdir())
    assert main(["prepare", *arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in error
    assert set(output.parent.iterdir()) == before
    return error


def test_missing_column_names_the_nearest(tmp_path, capsys):
    source = str(write(frame(), tmp_path / "data.csv"))
    error = fails(capsys, tmp_path / "out", "--interactions", source, "--rating-column", "Ratings")
    assert "data.csv has no column 'Ratings' (--rating-column)" in error
    assert "Columns found: user, item, rating, time, review. Did you mean 'rating'?" in error


def test_nothing_left_tells_the_counts_and_the_remedy(tmp_path, capsys):
    source = str(write(frame(), tmp_path / "data.csv"))
    arguments = ["--interactions", source, "--rating-column", "rating", "--min-rating", "5", "--k-core", "9"]
    error = fails(capsys, tmp_path / "out", *arguments)
    assert "read: 12 users, 10 items, 72 interactions; rating at least 5: 12 users, 5 items" in error
    assert "9-core, round 1: 0 users" in error and "Try a lower --k-core or a lower --min-rating" in error


@pytest.mark.parametrize("bad, shown", [("good", "'good'"), ("NaN", "'NaN'"), ("", "")])
def test_ratings_that_are_no_numbers_are_named_by_row(bad, shown, tmp_path, capsys):
    lines = ["user,item,rating", *(f"u{k},i{k},{bad if k in (3, 7) else 5}" for k in range(9))]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    error = fails(capsys, tmp_path / "out", "--interactions", str(tmp_path / "data.csv"), "--rating-column", "rating")
    assert "ratings that are no numbers: rows 4, 8" in error and shown in error


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_empty_ids_are_named_by_row(suffix, tmp_path, capsys):
    table = frame().with_row_index("n").with_columns(
        item=pl.when(pl.col("n") == 4).then(None).when(pl.col("n") == 9).then(pl.lit("  ")).otherwise("item")
    )  # fmt: skip
    source = str(write(table.drop("n"), tmp_path / f"data.{suffix}"))
    error = fails(capsys, tmp_path / "out", "--interactions", source)
    assert "missing or empty ids in the column 'item': rows 5, 10" in error


def test_fractions_are_no_ids(tmp_path, capsys):
    table = frame().with_columns(item=pl.lit(1.5))
    error = fails(capsys, tmp_path / "out", "--interactions", str(write(table, tmp_path / "data.parquet")))
    assert "ids that are no whole numbers in the column 'item': rows 1, 2, 3, 4, 5 and 67 more" in error


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("item", float("nan"), "missing or empty ids in the column 'item': rows 1, 2, 3, 4, 5 and 67 more"),
        ("item", float("inf"), "missing or empty ids in the column 'item'"),
        ("item", [1], "has the type List(Int64) in the id column 'item'"),
        ("rating", [1], "has the type List(Int64) in the rating column"),
        ("rating", float("nan"), "ratings that are no numbers: rows 1, 2"),
        ("time", {"date": 1}, "data.parquet has the type Struct({'date': Int64}) in the timestamp column"),
    ],
)
def test_columns_of_odd_types(column, value, message, tmp_path, capsys):
    table = frame().drop(column)
    source = write(table.with_columns(pl.Series(column, [value] * len(table))), tmp_path / "data.parquet")
    arguments = ["--interactions", str(source), "--rating-column", "rating", "--timestamp-column", "time"]
    assert message in fails(capsys, tmp_path / "out", *arguments)


def test_not_utf8(tmp_path, capsys):
    (tmp_path / "data.csv").write_bytes("user,item\nJosé,1\n".encode("latin-1"))
    error = fails(capsys, tmp_path / "out", "--interactions", str(tmp_path / "data.csv"))
    assert "data.csv is not UTF-8 text" in error and "iconv" in error


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.csv", None, "No file"),
        ("data.xlsx", b"x", "The format of data.xlsx is unknown; expected a file named .csv"),
        ("data.csv", b"", "data.csv is empty"),
        ("data.csv", b"user,item\n", "has no rows"),
        ("data.csv", b"user,item\n1,2\n1,2,3\n", "data.csv has more fields than its header: row 2"),
        ("data.jsonl", b'{"user": 1, "item": 2}\n{"user": \n', "data.jsonl cannot be read: line 2 is not valid JSON"),
        ("data.parquet", b"user,item\n1,2\n", "data.parquet cannot be read"),
        ("data.csv.gz", gzip.compress(b"user,item\n" + b"1,2\n" * 9999)[:-30], "data.csv.gz cannot be read"),
        ("data.parquet.gz", b"no gzip", "data.parquet.gz cannot be read"),
    ],
)
def test_unreadable_files(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in fails(capsys, tmp_path / "out", "--interactions", str(tmp_path / name))


def test_options_that_contradict_each_other(tmp_path, capsys):
    source = str(write(frame(), tmp_path / "data.csv"))
    output = tmp_path / "out"
    assert "exactly one of" in fails(capsys, output)
    assert "exactly one of" in fails(capsys, output, "--interactions", source, "--source", "yelp", "x")
    assert "needs ratings" in fails(capsys, output, "--interactions", source, "--min-rating", "4")
    assert "need a table of items" in fails(capsys, output, "--interactions", source, "--item-text-columns", "a")
    assert "Unknown source 'netflix'" in fails(capsys, output, "--source", "netflix", "x")
    assert "takes one path" in fails(capsys, output, "--source", "yelp")
    assert "leave nothing to train" in fails(
        capsys, output, "--interactions", source, "--validation-share", "0.5", "--test-share", "0.5"
    )
    assert "cannot be loaded" in fails(capsys, output, "--interactions", f"hub:{tmp_path / 'nothing'}")


def test_existing_output_is_kept_unless_told_otherwise(tmp_path, capsys):
    source = write(frame(), tmp_path / "data.csv")
    assert prepare(source, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    assert prepare(source, tmp_path / "out", "--seed", "3") == 2
    assert "exists; choose another --output, or --overwrite" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    assert prepare(source, tmp_path / "out", "--seed", "3", "--overwrite") == 0
    assert contents(tmp_path / "out") != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years of work")
    assert prepare(source, tmp_path / "mine", "--overwrite") == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_prepared_data_that_is_damaged(tmp_path):
    from cllm4rec_hf import DataError

    with pytest.raises(DataError, match="holds no meta.json"):
        PreparedData.load(tmp_path)
    assert prepare(write(frame(), tmp_path / "data.csv"), tmp_path / "out") == 0
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta | {"format_version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        PreparedData.load(tmp_path / "out")
    (tmp_path / "out" / "meta.json").write_text('{"format_version":')
    with pytest.raises(DataError, match=r"meta\.json is no JSON"):
        PreparedData.load(tmp_path / "out")
    (tmp_path / "out" / "meta.json").write_text(json.dumps(meta))
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "out" / "users.parquet")
    with pytest.raises(DataError, match="has the columns a; expected index, user_id"):
        PreparedData.load(tmp_path / "out")
    (tmp_path / "out" / "texts.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks texts\.parquet"):
        PreparedData.load(tmp_path / "out")
