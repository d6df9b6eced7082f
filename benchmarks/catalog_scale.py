"""What a larger catalog costs: step time, memory, and the time to save and load a checkpoint.

    python benchmarks/catalog_scale.py [--sizes 10000 100000 1000000] [--steps 24]

Each size, so many users and as many items with embeddings of 576 numbers on a tiny backbone, is measured in a process
of its own: alternating L- and C-steps of `MutualRegularizationTrainer` on documents of users and items drawn from the
whole catalog, popular items more often. Memory is what the process's anonymous memory grows by, from before the model
is built to its peak, against the tables and the rows of optimizer state that were touched. The checkpoint's file is
read once before it is loaded, as a bound for the loading.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SIZE, VOCABULARY, DOCUMENTS, ITEMS_A_USER, BATCH = 576, 2_000, 1_500, 20, 32


def anonymous_megabytes() -> float:
    """Memory that belongs to this process alone, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


class Peak:
    """Highest memory while it runs, looked at every 5 ms."""

    def __enter__(self) -> "Peak":
        self.value, self._stop = anonymous_megabytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.value = max(self.value, anonymous_megabytes())

    def __exit__(self, *args: Any) -> None:
        self._stop.set()
        self._thread.join()


def base_tokenizer() -> Any:
    """A tokenizer of words w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"w{k}": k + 1 for k in range(VOCABULARY - 1)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")


def documents(size: int, generator: Any) -> tuple[Any, Any]:
    """Histories of some users of the catalog, and a review of each user's first item."""
    import numpy as np
    from datasets import Dataset

    from cllm4rec_hf import Histories

    users = np.sort(generator.choice(size, DOCUMENTS, replace=False))
    counts = np.zeros(size, dtype=np.int64)
    counts[users] = ITEMS_A_USER
    indptr = np.concatenate([[0], np.cumsum(counts)])
    # half of a history by Zipf's law, the other half from anywhere
    popular = np.exp(generator.random((DOCUMENTS, ITEMS_A_USER // 2)) * np.log(size)).astype(np.int64) - 1
    items = np.concatenate([popular, generator.integers(0, size, popular.shape)], axis=1)
    texts = [" ".join(f"w{w}" for w in generator.integers(0, VOCABULARY - 1, 40)) for _ in users]
    table = {"kind": ["review"] * DOCUMENTS, "user": users.tolist(), "item": items[:, 0].tolist(), "text": texts}
    return Histories(indptr, items.reshape(-1).astype(np.int32), size), Dataset.from_dict(table)


def measure(size: int, steps: int) -> dict[str, float]:
    """Train, save and load at one size of the catalog."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

    import cllm4rec_hf as c
    from cllm4rec_hf.data.prompts import PromptBuilder

    generator = np.random.Generator(np.random.PCG64(size))
    result: dict[str, float] = {"size": size}
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        tokenizer = c.CLLM4RecTokenizer.from_backbone(base_tokenizer(), size, size, base_vocab_size=VOCABULARY)
        tokenizer.save_pretrained(f"{folder}/tokenizer")
        c.CLLM4RecTokenizer.from_pretrained(f"{folder}/tokenizer")
        result["tokenizer_s"] = time.perf_counter() - clock
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=SIZE, intermediate_size=SIZE, num_hidden_layers=2,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/backbone")
        histories, texts = documents(size, generator)
        prompts = PromptBuilder(tokenizer)
        interactions = c.InteractionCorpus(histories, "collaborative")
        content = c.ContentCorpus(texts, prompts, 64)
        ticks: list[float] = []

        class Watch(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                ticks.append(time.perf_counter())

        before = anonymous_megabytes()
        with Peak() as peak:
            model = c.CLLM4RecForRecommendation.from_backbone(f"{folder}/backbone", size, size, dtype=torch.float32)
            args = c.MutualRegularizationArguments(
                output_dir=f"{folder}/run", max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True,
                save_strategy="no", disable_tqdm=True, report_to="none",
            )  # fmt: skip
            trainer = c.MutualRegularizationTrainer(
                model, args, interactions, c.CollaborativeCollator(prompts, 64), content,
                c.ContentCollator(prompts, 64), callbacks=[Watch()],
            )  # fmt: skip
            trainer.train()
        # the first steps of each kind allocate
        result["step_s"] = float(np.median(np.diff(ticks)[4:]))
        tables = sum(table.weight.nbytes for table in model.tables())
        optimizer: Any = trainer.optimizer
        state = sum(
            int((s["step"] > 0).sum()) * 2 * p[0].numel() * 4
            for p, s in ((p, optimizer.state[p]) for group in optimizer.param_groups for p in group["params"])
            if s and p.dim() > 1
        )
        result |= {"tables_mb": tables / 2**20, "state_mb": state / 2**20, "peak_mb": peak.value - before}
        clock = time.perf_counter()
        model.save_pretrained(f"{folder}/checkpoint")
        result["save_s"] = time.perf_counter() - clock
        del model, trainer, optimizer
        clock = time.perf_counter()
        with open(f"{folder}/checkpoint/model.safetensors", "rb") as file:
            while file.read(1 << 24):
                pass
        result["read_s"] = time.perf_counter() - clock
        clock = time.perf_counter()
        c.CLLM4RecForRecommendation.from_pretrained(f"{folder}/checkpoint")
        result["load_s"] = time.perf_counter() - clock
    return result


def main() -> None:
    """Measure each size in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.steps)))
        return
    names = ("users=items", "step s", "ratio", "tables MB", "state MB", "peak MB", "over", "tokenizer s", "save s")
    print("  ".join(f"{name:>11}" for name in (*names, "read s", "load s")))
    first = None
    for size in options.sizes:
        arguments = ["--measure", str(size), "--steps", str(options.steps)]
        command = [sys.executable, str(Path(__file__).resolve()), *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        r = json.loads(done.stdout.splitlines()[-1])
        first = first or r
        over = r["peak_mb"] / (r["tables_mb"] + r["state_mb"])
        cells = [
            f"{size:,}", f"{r['step_s']:.3f}", f"{r['step_s'] / first['step_s']:.2f}", f"{r['tables_mb']:.0f}",
            f"{r['state_mb']:.0f}", f"{r['peak_mb']:.0f}", f"{over:.2f}",
            *(f"{r[name]:.2f}" for name in ("tokenizer_s", "save_s", "read_s", "load_s")),
        ]  # fmt: skip
        print("  ".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
