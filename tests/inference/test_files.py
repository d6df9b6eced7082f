"""What the files of recommendations hold."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cllm4rec_hf import Catalog, Recommender, Request
from cllm4rec_hf.cli import main
from cllm4rec_hf.inference.batch import recommend_to_file
from tests.trainers.parts import ITEMS, USERS, make_parts

TITLES = [
    "plain",
    'with "quotes"',
    "with, comma",
    "two\nlines",
    "two\r\nmore",
    None,
    "",
    " spaced ",
    "né 東京",
    "';--",
]


@pytest.fixture
def recommender(base_tokenizer):
    parts = make_parts(base_tokenizer)
    catalog = Catalog([f"i,{k}" for k in range(ITEMS)], TITLES, [f'u"{k}' for k in range(USERS)])
    return Recommender(parts.model, parts.tokenizer, catalog, batch_size=2)


@pytest.fixture
def requests(recommender):
    named = [Request(name, ("i,1",)) for name in recommender.catalog.user_ids[:3]]
    return [*named, Request(None, ()), Request("new", tuple(recommender.catalog.item_ids))]


def test_columns_and_their_types(recommender, requests, tmp_path):
    assert recommend_to_file(recommender, requests, str(tmp_path / "recs.parquet"), ITEMS) == 5
    table = pq.read_table(tmp_path / "recs.parquet")
    text = pa.string()
    expected = {"user": text, "rank": pa.int32(), "item": text, "title": text, "score": pa.float32()}
    assert {field.name: field.type for field in table.schema} == expected
    found = recommender.recommend(requests, ITEMS)
    rows = [
        {"user": request.user, "rank": rank, **entry}
        for request, entries in zip(requests, found, strict=True)
        for rank, entry in enumerate(entries, start=1)
    ]
    assert table.to_pylist() == rows and len(rows) == 3 * (ITEMS - 1) + ITEMS


def test_csv_and_parquet_hold_the_same(recommender, requests, tmp_path):
    for name in ("recs.parquet", "recs.csv"):
        recommend_to_file(recommender, iter(requests), str(tmp_path / name), ITEMS)
    expected = pq.read_table(tmp_path / "recs.parquet").to_pylist()
    with (tmp_path / "recs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == [row["rank"] for row in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([row["score"] for row in expected], rel=1e-6)
    for name in ("user", "item", "title"):
        assert [row[name] for row in rows] == [row[name] or "" for row in expected]
    written = (tmp_path / "recs.csv").read_bytes()
    assert written.startswith(b"user,rank,item,title,score\r\n") and b",plain," in written


@pytest.mark.parametrize("name", ["recs.parquet", "recs.csv"])
def test_nobody_to_recommend_for(recommender, name, tmp_path):
    assert recommend_to_file(recommender, [], str(tmp_path / name)) == 0
    path = tmp_path / name
    header = pq.read_table(path).column_names if path.suffix == ".parquet" else path.read_text().strip().split(",")
    assert header == ["user", "rank", "item", "title", "score"]


def test_the_bound_on_scores_is_an_option(recommender, tmp_path, capsys):
    recommender.save_pretrained(tmp_path / "model")
    (tmp_path / "histories.jsonl").write_text('{"user": "a", "history": ["i,1"]}\n')
    command = ["recommend", "--model", str(tmp_path / "model"), "--histories", str(tmp_path / "histories.jsonl")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert main([*command, "--score-cells", "3"]) == 0
    assert capsys.readouterr().out == said and "User a has interacted with" in said
    assert main([*command, "--score-cells", "0"]) == 2
    assert "--score-cells must be 1 or more, got 0" in capsys.readouterr().err
