"""Prepared data with tastes that interactions and item texts both tell."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from cllm4rec_hf.data.prepared import PreparedData

from ..evaluation.factory import write_prepared

NUM_GROUPS, GROUP_SIZE, NUM_USERS = 6, 20, 240


def planted(directory: Path, seed: int = 0, with_texts: bool = True) -> PreparedData:
    """Users like one of six groups of 20 items, 9 items in 10; an item's text has words of its group and noise."""
    generator = np.random.Generator(np.random.PCG64(seed))
    num_items = NUM_GROUPS * GROUP_SIZE
    # group g is the items g, g + 6, …, so that no order of the indices gives it away
    group_of = np.arange(num_items) % NUM_GROUPS
    splits: tuple[list[list[int]], ...] = ([], [], [])
    for user in range(NUM_USERS):
        likes = np.where(group_of == user % NUM_GROUPS, 9.0 * (NUM_GROUPS - 1), 1.0)
        items = generator.choice(num_items, int(generator.integers(6, 11)), replace=False, p=likes / likes.sum())
        for lists, part in zip(splits, (items[2:], items[:1], items[1:2]), strict=True):
            lists.append(part.tolist())
    data = write_prepared(directory, *splits, num_items=num_items)
    rows = []
    for item in range(num_items if with_texts else 0):
        own = [f"topic{group_of[item]}word{k}" for k in generator.integers(0, 8, 6)]
        noise = [f"noise{k}" for k in generator.integers(0, 30, 4)]
        rows.append({"kind": "item", "user": None, "item": item, "text": " ".join([*own, *noise])})
    if rows:
        data.texts = Dataset.from_list(rows)
    return data
