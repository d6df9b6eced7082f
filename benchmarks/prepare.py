"""Time and peak memory of `cllm4rec prepare` on generated interactions with a text each.

    python benchmarks/prepare.py [--interactions 1000000] [--words 50] [--runs 3]

Users and items follow power laws, as they do in real data. The generator runs in a process of its own, and so does
each preparation, so that the figures are those of a whole `cllm4rec prepare` process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def generate(path: Path, interactions: int, words: int, seed: int = 0) -> None:
    """Write a CSV of distinct user-item pairs with ratings, times and random texts.

    Args:
        path: file to write.
        interactions: number of rows.
        words: words of each text.
        seed: seed.
    """
    import numpy as np
    import polars as pl

    generator = np.random.Generator(np.random.PCG64(seed))
    users, items = max(10, interactions // 20), max(10, interactions // 40)

    def draw(size: int, count: int) -> np.ndarray:
        # popularity falls with the square root of the rank
        return (size * generator.random(count) ** 2).astype(np.int64)

    pairs = np.empty(0, dtype=np.int64)
    while len(pairs) < interactions:
        more = draw(users, interactions) * items + draw(items, interactions)
        pairs = np.unique(np.concatenate([pairs, more]))
    pairs = generator.permutation(pairs)[:interactions]
    users_of, items_of = pairs // items, pairs % items
    vocabulary = np.array([f"w{k}" + "x" * (k % 7) for k in range(5000)])
    step = 50_000
    with path.open("wb") as file:
        for start in range(0, interactions, step):
            rows = slice(start, min(start + step, interactions))
            count = rows.stop - rows.start
            drawn = vocabulary[generator.integers(0, len(vocabulary), (count, words))]
            frame = pl.DataFrame(
                {
                    "user": [f"U{k}" for k in users_of[rows]],
                    "item": [f"I{k}" for k in items_of[rows]],
                    "rating": generator.integers(1, 6, count).astype(float),
                    "time": generator.integers(10**9, 2 * 10**9, count),
                    "text": [" ".join(row) for row in drawn],
                }
            )
            frame.write_csv(file, include_header=start == 0)


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; its wall time in seconds and its peak resident memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Generate, prepare several times, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--generate", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        generate(Path(options.generate), options.interactions, options.words)
        return
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "interactions.csv"
        size = ["--interactions", str(options.interactions), "--words", str(options.words)]
        subprocess.run([sys.executable, __file__, *size, "--generate", str(source)], check=True)
        command = [sys.executable, "-m", "cllm4rec_hf.cli", "prepare", "--interactions", str(source)]
        command += ["--rating-column", "rating", "--timestamp-column", "time", "--text-column", "text"]
        command += ["--min-rating", "1", "--overwrite", "--output", str(Path(directory) / "prepared")]
        runs = [measure(command) for _ in range(options.runs)]
        megabytes = source.stat().st_size / 1e6
        steps = json.loads((Path(directory) / "prepared" / "meta.json").read_text())["steps"]
    size_of_text = f"{options.words} words each, {megabytes:,.0f} MB of CSV"
    print(f"{options.interactions:,} interactions, {size_of_text}, {os.cpu_count()} cores")
    kept = steps[-1]
    print(f"kept: {kept['users']:,} users, {kept['items']:,} items, {kept['interactions']:,} interactions")
    for name, column, unit in (("wall time", 0, "s"), ("peak memory", 1, "GB")):
        values = [run[column] for run in runs]
        print(
            f"{name:<12} median {statistics.median(values):6.2f} {unit:<2}  "
            f"min {min(values):.2f}  max {max(values):.2f}  ({len(values)} runs)"
        )


if __name__ == "__main__":
    main()
