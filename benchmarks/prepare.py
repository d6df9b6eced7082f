"""Time and peak memory of `cllm4rec prepare` on generated interactions.

    python benchmarks/prepare.py [texts | catalog | large]... [--format csv] [--interactions N] [--words N] [--runs N]

Three cases: `texts`, a million interactions with a text of 50 words each (the default); `catalog`, 20 million without
texts, of a million users and 200,000 items whose popularity follows Zipf's law; `large`, three million with texts. The
generator runs in a process of its own, and so does each preparation, so that the figures are those of a whole
`cllm4rec prepare` process.
"""

import argparse
import dataclasses
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# rows that the generator holds at a time
_CHUNK = 50_000
FORMATS = ("csv", "csv.gz", "jsonl", "parquet")


@dataclass
class Case:
    """What to generate.

    Args:
        interactions: number of distinct user-item pairs.
        users: number of users that are drawn from.
        items: number of items that are drawn from.
        words: words of each text; 0 for no texts.
        item_exponent: an item's popularity falls with this power of its rank.
        runs: how often to prepare.
    """

    interactions: int
    users: int
    items: int
    words: int
    item_exponent: float = 0.5
    runs: int = 3


CASES = {
    "texts": Case(1_000_000, 50_000, 25_000, 50),
    "catalog": Case(20_000_000, 1_000_000, 200_000, 0, item_exponent=1.0),
    "large": Case(3_000_000, 150_000, 75_000, 50, runs=1),
}


def draw(generator: Any, size: int, exponent: float, count: int) -> Any:
    """Random ranks from 0 to size − 1, [count] int64, whose probability falls with a power of the rank."""
    import numpy as np

    uniform = generator.random(count)
    if exponent == 1:
        ranks = np.exp(uniform * np.log(size + 1)) - 1
    else:
        power = 1 - exponent
        ranks = (1 + uniform * ((size + 1) ** power - 1)) ** (1 / power) - 1
    return np.minimum(ranks.astype(np.int64), size - 1)


def chunks(case: Case, seed: int) -> Iterator[Any]:
    """Frames of distinct pairs in random order, with ratings, times and random texts.

    Args:
        case: what to generate.
        seed: seed.
    """
    import numpy as np
    import polars as pl

    generator = np.random.Generator(np.random.PCG64(seed))
    pairs = np.empty(0, dtype=np.int64)
    while len(pairs) < case.interactions:
        count = case.interactions - len(pairs) + case.interactions // 10
        users = draw(generator, case.users, 0.5, count)
        pairs = np.unique(
            np.concatenate([pairs, users * case.items + draw(generator, case.items, case.item_exponent, count)])
        )
    generator.shuffle(pairs)
    pairs = pairs[: case.interactions]
    # ids do not sort by popularity
    user_names, item_names = generator.permutation(case.users), generator.permutation(case.items)
    vocabulary = np.array([f"w{k}" + "x" * (k % 7) for k in range(5000)])
    for start in range(0, case.interactions, _CHUNK):
        part = pairs[start : start + _CHUNK]
        frame = pl.DataFrame(
            {
                "user": user_names[part // case.items],
                "item": item_names[part % case.items],
                "rating": generator.integers(1, 6, len(part)).astype(float),
                "time": generator.integers(10**9, 2 * 10**9, len(part)),
            }
        ).with_columns(user=pl.format("U{}", "user"), item=pl.format("I{}", "item"))
        if case.words:
            drawn = vocabulary[generator.integers(0, len(vocabulary), (len(part), case.words))]
            frame = frame.with_columns(pl.Series("text", [" ".join(row) for row in drawn]))
        yield frame


def generate(path: Path, case: Case, seed: int = 0) -> None:
    """Write a file of interactions, part by part.

    Args:
        path: file to write; its suffix tells the format.
        case: what to generate.
        seed: seed.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        writer = None
        for frame in chunks(case, seed):
            table = frame.to_arrow()
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
        return
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with plain.open("wb") as file:
        for number, frame in enumerate(chunks(case, seed)):
            if plain.suffix == ".csv":
                frame.write_csv(file, include_header=number == 0)
            else:
                frame.write_ndjson(file)
    if plain != path:
        with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        plain.unlink()


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; its wall time in seconds and its peak resident memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def run(name: str, case: Case, suffix: str) -> None:
    """Generate a case, prepare it, and print the figures."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / f"interactions.{suffix}"
        request = json.dumps(dataclasses.asdict(case))
        subprocess.run([sys.executable, __file__, "--generate", str(source), request], check=True)
        command = [sys.executable, "-m", "cllm4rec_hf.cli", "prepare", "--interactions", str(source)]
        command += ["--rating-column", "rating", "--timestamp-column", "time", "--min-rating", "1"]
        command += ["--text-column", "text"] if case.words else []
        command += ["--overwrite", "--output", str(Path(directory) / "prepared")]
        runs = [measure(command) for _ in range(case.runs)]
        megabytes = source.stat().st_size / 1e6
        kept = json.loads((Path(directory) / "prepared" / "meta.json").read_text())["steps"][-1]
    texts = f"{case.words} words each" if case.words else "no texts"
    print(f"{name}: {case.interactions:,} interactions, {texts}, {megabytes:,.0f} MB of {suffix}")
    print(f"kept: {kept['users']:,} users, {kept['items']:,} items, {kept['interactions']:,} interactions")
    for figure, column, unit in (("wall time", 0, "s"), ("peak memory", 1, "GB")):
        values = [measured[column] for measured in runs]
        print(
            f"{figure:<12} median {statistics.median(values):6.2f} {unit:<2}  "
            f"min {min(values):.2f}  max {max(values):.2f}  ({len(values)} runs)"
        )


def main() -> None:
    """Generate, prepare several times, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; by default texts")
    parser.add_argument("--format", choices=FORMATS, default="csv")
    parser.add_argument("--interactions", type=int, help="instead of the case's own number; users and items follow")
    parser.add_argument("--words", type=int, help="instead of the case's own number")
    parser.add_argument("--runs", type=int, help="instead of the case's own number")
    parser.add_argument("--generate", nargs=2, metavar=("FILE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(Path(options.generate[0]), Case(**json.loads(options.generate[1])))
        return
    print(f"{os.cpu_count()} cores")
    for name in options.cases or ["texts"]:
        if name not in CASES:
            parser.error(f"unknown case {name!r}; expected {', '.join(CASES)}")
        case = CASES[name]
        if options.interactions is not None:
            share = options.interactions / case.interactions
            users, items = (max(10, int(size * share)) for size in (case.users, case.items))
            case = dataclasses.replace(case, interactions=options.interactions, users=users, items=items)
        changes = {field: getattr(options, field) for field in ("words", "runs")}
        changes = {field: value for field, value in changes.items() if value is not None}
        run(name, dataclasses.replace(case, **changes), options.format)


if __name__ == "__main__":
    main()
