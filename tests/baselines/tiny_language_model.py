"""A tiny language model whose tokenizer knows the words of the prompts, and data with something to learn."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from cllm4rec_hf.baselines.yes_no import ANSWER, INSTRUCTION, QUESTION
from cllm4rec_hf.data.prepared import PreparedData

from ..conftest import train_base_tokenizer
from ..evaluation.factory import write_prepared

NUM_ITEMS = 24
TASTES = ("guitar", "comedy")


def save_language_model(directory: Path, family: str = "llama") -> str:
    """Write a random model of two layers and its tokenizer."""
    prompt = f'{INSTRUCTION} "{TASTES[0]}" "{TASTES[1]}"{QUESTION} "{ANSWER} Yes No user has interacted with item'
    tokenizer = train_base_tokenizer([prompt] * 2, vocab_size=400)
    torch.manual_seed(0)
    size = len(tokenizer)
    model: LlamaForCausalLM | GPT2LMHeadModel
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0,
            pad_token_id=0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    else:
        llama = LlamaConfig(
            vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0,
            eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(llama)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # outputs that differ visibly
                parameter.mul_(4.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def chains(directory: Path) -> PreparedData:
    """Histories in which item 7 k is followed by item 7 (k + 1), modulo the number of items."""
    rows = [[(start + 7 * step) % NUM_ITEMS for step in range(7)] for start in range(NUM_ITEMS)]
    return write_prepared(
        directory, [row[:5] for row in rows], [row[5:6] for row in rows], [row[6:] for row in rows], NUM_ITEMS
    )


def tastes(directory: Path, num_users: int = 32) -> PreparedData:
    """Even users like even items, odd users odd ones; an item's text has a word for its parity."""
    generator = np.random.Generator(np.random.PCG64(0))
    rows = [(2 * generator.permutation(NUM_ITEMS // 2) + user % 2).tolist() for user in range(num_users)]
    data = write_prepared(
        directory, [row[:4] for row in rows], [row[4:5] for row in rows], [row[5:7] for row in rows], NUM_ITEMS
    )
    texts = [{"kind": "item", "user": None, "item": j, "text": f"{TASTES[j % 2]} {j}"} for j in range(NUM_ITEMS)]
    data.texts = Dataset.from_list(texts)
    return data
