"""Prepared directories with splits of the test's own choice, and a ranker that returns given scores."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cllm4rec_hf.data.prepared import FORMAT_VERSION, META_FILE, PreparedData


def write_prepared(
    directory: Path,
    train: list[list[int]],
    validation: list[list[int]],
    test: list[list[int]],
    num_items: int,
) -> PreparedData:
    """Write the tables of a prepared directory without any text, and read them back."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        (user, item, split)
        for user in range(len(train))
        for split, lists in (("train", train), ("validation", validation), ("test", test))
        for item in lists[user]
    ]
    users, items, splits = zip(*rows, strict=True)
    tables = {
        "interactions": {
            "user": pa.array(users, pa.int32()),
            "item": pa.array(items, pa.int32()),
            "split": pa.array(splits, pa.string()),
        },
        "texts": {
            "kind": pa.array([], pa.string()),
            "user": pa.array([], pa.int32()),
            "item": pa.array([], pa.int32()),
            "text": pa.array([], pa.string()),
        },
        "users": {
            "index": pa.array(range(len(train)), pa.int32()),
            "user_id": pa.array([f"u{u}" for u in range(len(train))], pa.string()),
        },
        "items": {
            "index": pa.array(range(num_items), pa.int32()),
            "item_id": pa.array([f"i{j}" for j in range(num_items)], pa.string()),
            "title": pa.array([None] * num_items, pa.string()),
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")
    (directory / META_FILE).write_text(json.dumps({"format_version": FORMAT_VERSION}))
    return PreparedData.load(directory)


def random_prepared(
    directory: Path, num_users: int = 60, num_items: int = 40, seed: int = 0, keep_all: bool = False
) -> PreparedData:
    """Two tastes, 3 to 14 items a user; unless `keep_all`, each seventh user has nothing to validate or test."""
    generator = np.random.Generator(np.random.PCG64(seed))
    splits: tuple[list[list[int]], ...] = ([], [], [])
    for user in range(num_users):
        likes = np.where(np.arange(num_items) % 2 == user % 2, 6.0, 1.0) / (1 + np.arange(num_items) // 4)
        count = int(generator.integers(3, 15))
        items = generator.choice(num_items, count, replace=False, p=likes / likes.sum()).tolist()
        held_out = 0 if user % 7 == 3 and not keep_all else int(generator.integers(1, max(2, count // 3)))
        parts = items[2 * held_out :], items[:held_out], items[held_out : 2 * held_out]
        for lists, part in zip(splits, parts, strict=True):
            lists.append(part)
    return write_prepared(directory, *splits, num_items=num_items)


class FixedScores:
    """A ranker that returns rows of a matrix and remembers what it was asked."""

    def __init__(self, scores: np.ndarray):
        self.scores = scores
        self.batches: list[np.ndarray] = []
        self.histories: list[np.ndarray] = []

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        self.batches.append(users)
        self.histories.extend(histories)
        return self.scores[users]
