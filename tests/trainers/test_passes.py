"""Batches in passes of a bounded number of tokens, and what the log says of a run."""

import shutil

import pytest
import torch

from cllm4rec_hf import MutualRegularizationArguments, MutualRegularizationTrainer
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.trainers.passes import split_batch
from cllm4rec_hf.trainers.progress import peak_memory, summary_line
from tests.trainers.parts import make_parts, tables


def make_batch(lengths, held_out=3):
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths).unsqueeze(1)).long()
    ids = torch.arange(1, len(lengths) * width + 1).view(-1, width) * mask
    labels = torch.arange(len(lengths) * held_out).view(-1, held_out)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "task": "recommendation"}


@pytest.mark.parametrize("computes_padding", [False, True])
def test_parts_cover_the_batch_within_the_bound(computes_padding):
    batch = make_batch([3, 9, 4, 4, 20, 1, 9])
    parts = split_batch(batch, 18, computes_padding)
    assert len(parts) > 2
    rows = {}
    for part in parts:
        mask = part["attention_mask"]
        assert mask.any(dim=0).all() and part["task"] == "recommendation"
        cost = mask.numel() if computes_padding else int(mask.sum())
        assert cost <= 18 or len(mask) == 1
        for ids, labels in zip(part["input_ids"], part["labels"], strict=True):
            rows[tuple(labels.tolist())] = ids[ids > 0].tolist()
    expected = {
        tuple(labels.tolist()): ids[ids > 0].tolist()
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    }
    assert rows == expected


def test_a_small_batch_stays_whole():
    batch = make_batch([3, 4])
    assert split_batch(batch, 7, False) == [batch]
    assert split_batch(batch, 7, True) != [batch]


def run(base_tokenizer, tmp_path, family, **settings):
    parts = make_parts(base_tokenizer, family, lambda_l=0.1)
    args = MutualRegularizationArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=2, use_cpu=True, learning_rate=0.02, disable_tqdm=True,
        logging_strategy="steps", logging_steps=1, save_strategy="no", per_device_train_batch_size=8, **settings,
    )  # fmt: skip
    trainer = MutualRegularizationTrainer(
        parts.model, args, parts.collaborative, parts.collaborative_collator, parts.content, parts.content_collator
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_passes_do_not_change_training(base_tokenizer, tmp_path, family):
    one = run(base_tokenizer, tmp_path, family, tokens_per_pass=10_000)
    two = run(base_tokenizer, tmp_path, family, tokens_per_pass=30)
    for name, table in tables(one.model).items():
        assert (table - tables(two.model)[name]).abs().max() < 2e-5, name
    for before, after in zip(one.state.log_history, two.state.log_history, strict=True):
        for part in ("loss", "collaborative_lm_loss", "content_lm_loss", "content_mr_loss"):
            assert before.get(part) == pytest.approx(after.get(part), abs=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_train_the_same(base_tokenizer, tmp_path):
    one, two = (run(base_tokenizer, tmp_path, "llama", compile_layers=wanted) for wanted in (False, True))
    for name, table in tables(one.model).items():
        assert (table - tables(two.model)[name]).abs().max() < 1e-4, name
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    layers = two.model.backbone.get_decoder().layers
    assert all(layer._compiled_call_impl is None for layer in layers)


def test_the_log_says_what_is_left(base_tokenizer, tmp_path):
    logs = [entry for entry in run(base_tokenizer, tmp_path, "llama").state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 and 0 <= entry["padding_share"] < 0.5 for entry in logs)
    assert all(entry["peak_memory_mb"] == pytest.approx(peak_memory(torch.device("cpu")), rel=0.5) for entry in logs)
    left = [entry["eta_seconds"] for entry in logs]
    assert left[0] > 0 and left[-1] == 0
    assert "0:02:05 left" in summary_line({"padding_share": 0.1, "eta_seconds": 125.2})


def test_a_bound_below_one_is_an_error(tmp_path):
    with pytest.raises(CLLM4RecError, match="tokens_per_pass must be 1 or more"):
        MutualRegularizationArguments(output_dir=str(tmp_path), tokens_per_pass=0)
