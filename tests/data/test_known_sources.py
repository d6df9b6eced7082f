"""The ready sources on small files of their true layouts."""

import gzip
import importlib.util
import json

import pytest

from cllm4rec_hf import PreparedData
from cllm4rec_hf.cli import main


def run(*arguments):
    return main(["prepare", *map(str, arguments)])


def text_of(data, kind, index):
    column = "item" if kind == "item" else "user"
    return next(row["text"] for row in data.texts if row["kind"] == kind and row[column] == index)


def recbole_layout(directory):
    directory.mkdir()
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    rows += [f"{user}\t{item}\t{3 + item % 3}\t{user * item}" for user in range(1, 9) for item in range(1, 7)]
    (directory / "ml-100k.inter").write_text("\n".join(rows))
    movies = ["1\tToy Story\t1995\tAnimation Children's Comedy", "2\tUsual Suspects, The\t1995\tCrime"]
    movies += [
        "3\tPostino, Il (The Postman)\t1994\tDrama",
        "4\tNo Year\t\tunknown",
        "5\tHeat\t1995\tAction",
        "6\tBabe\t1995\tDrama",
    ]
    (directory / "ml-100k.item").write_text(
        "\n".join(["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *movies])
    )
    people = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    people += [f"{user}\t{20 + user}\t{'M' if user % 2 else 'F'}\ttechnician\t85711" for user in range(1, 9)]
    (directory / "ml-100k.user").write_text("\n".join(people))


def check_movielens(data):
    assert data.num_users == 8 and data.num_items == 6
    assert data.items["title"][:4] == [
        "Toy Story (1995)",
        "The Usual Suspects (1995)",
        "Il Postino (The Postman) (1994)",
        "No Year",
    ]
    assert text_of(data, "item", 0) == "Toy Story, a movie of 1995. Genres: Animation, Children's, Comedy."
    assert text_of(data, "item", 3) == "No Year, a movie."
    assert text_of(data, "user", 1) == "A 22-year-old woman whose occupation is technician."


def test_movielens_in_the_layout_of_recbole(tmp_path):
    recbole_layout(tmp_path / "ml")
    assert run("--source", "movielens-100k", tmp_path / "ml", "--k-core", 2, "--output", tmp_path / "out") == 0
    check_movielens(PreparedData.load(tmp_path / "out"))


def test_movielens_in_the_layout_of_grouplens(tmp_path):
    recbole_layout(tmp_path / "ml")
    inter = (tmp_path / "ml" / "ml-100k.inter").read_text().splitlines()[1:]
    (tmp_path / "ml" / "u.data").write_text("\n".join(inter))
    genres = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"]
    genres += ["Documentary", "Drama"]
    lines = []
    for line in (tmp_path / "ml" / "ml-100k.item").read_text().splitlines()[1:]:
        number, title, year, kinds = line.split("\t")
        flags = ["1" if genre in kinds.split() else "0" for genre in genres] + ["0"] * (19 - len(genres))
        named = f"{title} ({year})" if year else title
        lines.append("|".join([number, named, f"01-Jan-{year}" if year else "", "", "http://x", *flags]))
    (tmp_path / "ml" / "u.item").write_text("\n".join(lines), encoding="latin-1")
    people = (tmp_path / "ml" / "ml-100k.user").read_text().splitlines()[1:]
    (tmp_path / "ml" / "u.user").write_text("\n".join(line.replace("\t", "|") for line in people))
    assert run("--source", "movielens-100k", tmp_path / "ml", "--k-core", 2, "--output", tmp_path / "out") == 0
    check_movielens(PreparedData.load(tmp_path / "out"))


def test_movielens_that_is_not_there(tmp_path, capsys, monkeypatch):
    assert run("--source", "movielens-100k", tmp_path, "--output", tmp_path / "out") == 2
    assert "lacks ml-100k.inter, ml-100k.item, ml-100k.user" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("--source", "movielens-100k", "--output", tmp_path / "out") == 2
    assert "pip install --no-deps recbole" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="the recbole wheel is not installed")
def test_the_real_movielens_of_the_recbole_wheel(tmp_path):
    assert run("--source", "movielens-100k", "--min-rating", 4, "--output", tmp_path / "out") == 0
    data = PreparedData.load(tmp_path / "out")
    assert (data.num_users, data.num_items, len(data.interactions)) == (938, 1008, 54413)
    assert all(data.items["title"]) and len(data.texts) == 938 + 1008


def amazon_reviews(path):
    rows = [
        {"reviewerID": f"A{user}", "asin": f"B{item}", "reviewerName": "x", "helpful": [0, 0],
         "reviewText": f"review {user} {item}", "overall": 5.0, "summary": "s", "unixReviewTime": 1000 + item,
         "reviewTime": "02 28, 2014"}
        for user in range(6) for item in range(5)
    ]  # fmt: skip
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("style", ["json", "python"])
def test_amazon_reviews_with_metadata_in_either_style(style, tmp_path):
    amazon_reviews(tmp_path / "reviews.json.gz")
    products = [
        {"asin": "B0", "title": "Guitar", "description": 'It\'s a "real" guitar', "price": 3.5},
        {"asin": "B1", "title": "Strings", "description": ["Nickel.", "Light."]},
        {"asin": "B2", "description": "No title"},
        {"asin": "B9", "title": "Never reviewed"},
    ]
    write = json.dumps if style == "json" else repr
    with gzip.open(tmp_path / "meta.json.gz", "wt", encoding="utf-8") as file:
        file.writelines(write(row) + "\n" for row in products)
    arguments = ["--source", "amazon-reviews", tmp_path / "reviews.json.gz", "--metadata", tmp_path / "meta.json.gz"]
    assert run(*arguments, "--min-rating", 4, "--output", tmp_path / "out") == 0
    data = PreparedData.load(tmp_path / "out")
    assert data.items["title"][:] == ["Guitar", "Strings", None, None, None]
    assert text_of(data, "item", 0) == 'Guitar. It\'s a "real" guitar.'
    assert text_of(data, "item", 1) == "Strings. Nickel. Light."
    assert text_of(data, "item", 2) == "No title."
    assert {row["kind"] for row in data.texts} == {"review", "item"}


def test_amazon_files_of_another_layout(tmp_path, capsys):
    (tmp_path / "reviews.json").write_text('{"reviewer": "a", "asin": "b"}\n')
    assert run("--source", "amazon-reviews", tmp_path / "reviews.json", "--output", tmp_path / "out") == 2
    assert "has no column 'reviewerID' (the Amazon review layout)" in capsys.readouterr().err
    amazon_reviews(tmp_path / "good.json.gz")
    (tmp_path / "meta.json").write_text("{'asin': 'B0'}\n__import__('os').system('true')\n")
    arguments = ["--source", "amazon-reviews", tmp_path / "good.json.gz", "--metadata", tmp_path / "meta.json"]
    assert run(*arguments, "--output", tmp_path / "out") == 2
    assert "meta.json, line 2, is neither JSON nor a Python literal" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_yelp(tmp_path, capsys):
    directory = tmp_path / "yelp"
    directory.mkdir()
    reviews = [
        {"review_id": f"r{u}{b}", "user_id": f"u{u}", "business_id": f"b{b}", "stars": 4.0, "useful": 0,
         "text": f"visit {u} {b}", "date": f"2018-07-0{b + 1} 22:09:11"}
        for u in range(5) for b in range(5)
    ]  # fmt: skip
    businesses = [
        {"business_id": f"b{b}", "name": f"Place {b}", "city": "Tampa", "state": "FL", "stars": 4.5,
         "categories": "Bars, Food" if b else None, "attributes": {"x": "1"}, "hours": None}
        for b in range(5)
    ]  # fmt: skip
    users = [
        {"user_id": f"u{u}", "name": "Ann", "yelping_since": "2012-01-02 03:04:05", "elite": "2015,2016" if u else ""}
        for u in range(5)
    ]
    for name, rows in (("review", reviews), ("business", businesses), ("user", users)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if name == "user":
            (directory / f"yelp_academic_dataset_{name}.json.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (directory / f"yelp_academic_dataset_{name}.json").write_text(text)
    assert run("--source", "yelp", directory, "--min-rating", 4, "--output", tmp_path / "out") == 0
    data = PreparedData.load(tmp_path / "out")
    assert data.items["title"][0] == "Place 0"
    assert text_of(data, "item", 0) == "Place 0, in Tampa, FL."
    assert text_of(data, "item", 1) == "Place 1, in Tampa, FL. Categories: Bars, Food."
    assert text_of(data, "user", 0) == "A member since 2012."
    assert text_of(data, "user", 1) == "A member since 2012, elite in 2015, 2016."
    assert [data.items["item_id"][i][1:] for i in data.histories("train", "validation", "test")[0]] == list("01234")
    (directory / "yelp_academic_dataset_business.json").unlink()
    assert run("--source", "yelp", directory, "--output", tmp_path / "again") == 2
    assert "holds no yelp_academic_dataset_business.json" in capsys.readouterr().err
