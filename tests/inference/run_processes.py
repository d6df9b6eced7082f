"""Recommendations to files, started once or in several processes: `python -m tests.inference.run_processes OUTPUT`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from cllm4rec_hf import Catalog, Recommender, Request
from cllm4rec_hf.inference import batch
from cllm4rec_hf.inference.batch import recommend_to_file
from cllm4rec_hf.inference.sharing import launched_processes
from tests.conftest import train_base_tokenizer
from tests.trainers.parts import ITEMS, USERS, make_parts

FORMATS = ("parquet", "csv")


def make_recommender() -> Recommender:
    """A tiny model with windows of three requests."""
    parts = make_parts(train_base_tokenizer())
    titles = [f'Title {k}, "the {k}th"' if k % 3 else None for k in range(ITEMS)]
    catalog = Catalog([f"i{k}" for k in range(ITEMS)], titles, [f"u{k}" for k in range(USERS)])
    return Recommender(parts.model, parts.tokenizer, catalog, batch_size=3)


def make_requests(number: int = 20) -> list[Request]:
    """Requests of different lengths; the fourth window has nothing left to recommend."""
    generator = np.random.Generator(np.random.PCG64(0))
    lengths = [ITEMS if 9 <= k < 12 else int(generator.integers(0, ITEMS)) for k in range(number)]
    return [
        Request(f"u{k % (USERS + 2)}", tuple(f"i{j}" for j in generator.permutation(ITEMS)[:length]))
        for k, length in enumerate(lengths)
    ]


def run(output: Path) -> None:
    """Write both formats, and fail in every way that one process alone can."""
    torch.set_num_threads(1)
    processes = launched_processes()
    recommender, requests = make_recommender(), make_requests()
    said = {}
    for suffix in FORMATS:
        said[suffix] = recommend_to_file(recommender, iter(requests), str(output / f"recs.{suffix}"), top_k=4)
    if processes.num_processes > 1:
        # the second window falls to the second process; joining to the first
        failing = [*requests[:4], Request("u1", ("gone",)), *requests[5:]]
        said["second"] = _failure(recommender, failing, output)
        batch._join = _refuse
        said["first"] = _failure(recommender, requests, output)
    (output / f"said-{processes.process_index}.json").write_text(json.dumps(said))
    if processes.num_processes > 1:
        processes.destroy_process_group()


def _failure(recommender: Recommender, requests: list[Request], output: Path) -> list[str]:
    try:
        recommend_to_file(recommender, requests, str(output / "failed.parquet"))
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def _refuse(*args: object) -> None:
    raise OSError("No space left on device")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
