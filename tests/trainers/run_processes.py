"""One training run, started once or in several processes: `python -m tests.trainers.run_processes KIND OUTPUT BATCH`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from cllm4rec_hf import (
    MutualRegularizationArguments,
    MutualRegularizationTrainer,
    RecommendationArguments,
    RecommendationTrainer,
)
from tests.conftest import FAMILIES, train_base_tokenizer
from tests.trainers.parts import ITEMS, make_parts

SHARED: dict[str, Any] = {
    "num_train_epochs": 3, "use_cpu": True, "learning_rate": 0.02, "disable_tqdm": True, "report_to": "none",
    "logging_strategy": "steps", "logging_steps": 1,
}  # fmt: skip


class Halves:
    """An evaluator whose users are scored in two batches."""

    def __init__(self, histories):
        from cllm4rec_hf import Evaluator

        class Data:
            def histories(self, *splits):
                return histories if splits != ("validation",) else held_out

        lists = [[(int(row[0]) + 3) % ITEMS] for row in histories]
        held_out = type(histories).from_lists(lists, ITEMS)
        self.inner = Evaluator(
            Data(), "validation", metrics=("recall@2", "ndcg@5"), batch_size=3, history_splits=("train",)
        )

    def evaluate(self, *args, **kwargs):
        return self.inner.evaluate(*args, **kwargs)


def _share_held(stack) -> float:
    """Share of the weights of a backbone's layers that lie in this process."""
    weights = [p for name, p in stack.named_parameters() if ".0." in name or ".1." in name]
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in weights)
    return held / sum(p.numel() for p in weights)


def run(kind: str, output: Path, batch: int, resume: bool = False) -> Any:
    """Train, write what came of it from the first process, and return the accelerator."""
    fields: dict[str, Any] = {}
    if kind == "paper":
        fields = {"history_rank": 0, "center_hidden": False, "learn_logit_scale": False, "item_bias": False}
    if kind == "history":
        fields = {"lm_term": False}
    parts = make_parts(train_base_tokenizer(), kind if kind in FAMILIES else "llama", lambda_l=0.1, **fields)
    model = parts.model
    if kind == "adapters":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    if kind == "drifted" and os.environ.get("RANK") == "1":
        # a warm start that came out differently on another machine
        parts.model.collaborative_user_embeddings.weight.data += 0.5
        parts.model.item_head.collaborative_mean += 0.5
    settings = {**SHARED, "output_dir": str(output), "per_device_train_batch_size": batch}
    if kind == "sampled":
        settings |= {"sampled_softmax_above": 5, "sampled_softmax_size": 16}
    if kind == "dense":
        settings |= {"row_sparse": False}
    if kind == "clipped":
        settings |= {"max_grad_norm": 0.5}
    content = {"content": parts.content, "content_collator": parts.content_collator}
    trainer: Any
    if kind in ("recommendation", "history"):
        trainer = RecommendationTrainer(
            model, RecommendationArguments(**settings), parts.recommendation, parts.recommendation_collator,
            evaluator=Halves(parts.histories), **content,
        )  # fmt: skip
    else:
        trainer = MutualRegularizationTrainer(
            model, MutualRegularizationArguments(**settings), parts.collaborative,
            parts.collaborative_collator, **content,
        )  # fmt: skip
    wrapped: list[str] = []

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            wrapped.append(type(trainer.model_wrapped).__name__)

    trainer.add_callback(Watch)
    if resume:
        last = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        trainer.train(resume_from_checkpoint=str(last[0]))
    else:
        trainer.train()
    if trainer.is_world_process_zero():
        tables = {name: tensor.detach().clone() for name, tensor in trainer.learned_state().items()}
        save_file(tables, output / "tables.safetensors")
        log = [
            {k: v for k, v in entry.items() if not any(own in k for own in ("second", "runtime", "memory"))}
            for entry in trainer.state.log_history
        ]
        result = {
            "log": log,
            "processes": trainer.accelerator.num_processes,
            "wrapped": wrapped[0],
            "lm_term_ranks": parts.model.config.lm_term_ranks,
            "layers_held": _share_held(parts.model.backbone.get_decoder()),
        }
        (output / "result.json").write_text(json.dumps(result))
    trainer.accelerator.wait_for_everyone()
    return trainer.accelerator


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), resume="resume" in sys.argv).end_training()
