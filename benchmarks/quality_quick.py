"""A table on generated data with a tiny language model, which shows in seconds that everything runs."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from quality_config import Method, Seed, Table

NUM_USERS, NUM_ITEMS = 40, 30
_WORDS = (
    "great guitar strings that stay in tune for weeks and sound warm",
    "a quiet comedy about a detective and his old dog in a small town",
)
# what makes a run of CLLM4Rec short
SHORT = {
    "content_epochs": 1, "pretraining_epochs": 1, "recommendation_epochs": 1, "max_length": 64, "max_text_length": 32,
    "batch_size": 16, "gradient_accumulation_steps": 1, "warm_start_steps": 20,
}  # fmt: skip


def quick_table(table: Table | None, output: Path) -> Table:
    """The quick form of a table, or of one of its own.

    Args:
        table: its methods are kept; its data and language models are replaced, and epochs and lengths cut.
        output: directory of everything that is written.
    """
    materials = output / "materials"
    interactions, backbone = materials / "interactions.csv", materials / "backbone"
    if not backbone.is_dir():
        materials.mkdir(parents=True, exist_ok=True)
        write_interactions(interactions)
        write_backbone(backbone)
    if table is None:
        table = Table("CLLM4Rec", output, None, None, (Seed(0, 0),), _methods(str(backbone)))
    methods = [_quick(method, str(backbone)) for method in table.methods]
    # the ends of a sweep may lie beyond what two layers have
    swept = [method for method in methods if method.group == "sweep"][:2]
    methods = [method for method in methods if method.group != "sweep"] + swept
    columns = ("--rating-column", "rating", "--text-column", "text", "--k-core", "3")
    prepare = ("--interactions", str(interactions), *columns)
    changes = {"output": output, "prepare": prepare, "prepared": None, "methods": tuple(methods)}
    return dataclasses.replace(table, title=f"{table.title} (quick form)", seeds=table.seeds[:2], **changes)


def _methods(backbone: str) -> tuple[Method, ...]:
    return (
        Method("Popularity", "popularity", {}, group="baseline"),
        Method("EASE with text rows", "ease-text", {}, choose=True, group="baseline"),
        Method("CLLM4Rec", None, {"backbone": backbone}),
    )


def _quick(method: Method, backbone: str) -> Method:
    if method.baseline is None:
        settings = {**method.settings, **SHORT, "backbone": backbone}
        settings.pop("backbone_revision", None)
        # two layers are all there are
        if (settings.get("num_layers") or 1) > 2:
            settings["num_layers"] = 2
        return dataclasses.replace(method, settings=settings)
    from cllm4rec_hf.baselines.base import ArrayBaseline
    from cllm4rec_hf.baselines.registry import REGISTRY, baseline_class

    settings = dict(method.settings)
    if REGISTRY[method.baseline].needs_backbone or "backbone" in settings:
        settings["backbone"] = backbone
    # the grids of what is trained step by step take minutes
    closed_form = issubclass(baseline_class(method.baseline), ArrayBaseline)
    if hasattr(baseline_class(method.baseline), "config_class"):
        settings["max_epochs"] = 1
    return dataclasses.replace(method, settings=settings, choose=method.choose and closed_form)


def write_interactions(file: Path, seed: int = 7) -> None:
    """Write a CSV of users with one of two tastes, their ratings, and reviews whose words tell the taste."""
    generator = np.random.Generator(np.random.PCG64(seed))
    lines = ["user,item,rating,text"]
    for user in range(NUM_USERS):
        taste = user % 2
        likes = np.where(np.arange(NUM_ITEMS) % 2 == taste, 8.0, 1.0)
        for item in generator.choice(NUM_ITEMS, 9, replace=False, p=likes / likes.sum()):
            words = generator.choice(_WORDS[item % 2].split(), 6)
            lines.append(f"u{user:02d},i{item:02d},5,{' '.join(words)} number{item}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_backbone(directory: Path, config: Any = None) -> None:
    """Write a language model of random weights with a byte-level tokenizer; by default a LLaMA of two layers.

    Args:
        directory: where to.
        config: configuration of the model; its vocabulary becomes the tokenizer's.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_WORDS, trainer)
    base = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    if config is None:
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        )  # fmt: skip
    config.vocab_size, config.pad_token_id, config.eos_token_id = len(base), 0, 1
    config.bos_token_id = 1
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto_class.from_config(config).save_pretrained(directory)
    base.save_pretrained(directory)
