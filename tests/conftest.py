"""Small random models, tokenizers and prepared data that the tests build themselves."""

import json

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    T5Config,
)

FAMILIES = ("gpt2", "llama", "llama-untied", "t5")
# current families, in the tests of saving and loading
MORE_FAMILIES = ("qwen3", "gemma3")

WORDS = (
    "great guitar strings that stay in tune for weeks",
    "the pedal is noisy and the knob broke after a day",
    "a comedy about a detective and his dog",
    "user profile of a teacher who likes drama has interacted with",
    "writes the following review for the description of is will interact",
)


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """A cache directory of `datasets` that goes away with the tests, for this process and those that it starts."""
    import datasets.config

    directory = tmp_path_factory.mktemp("datasets_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(directory))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", directory)
        yield directory


def train_base_tokenizer(words=WORDS, vocab_size=330):
    """A byte-level BPE tokenizer of at most so many tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="session")
def base_tokenizer():
    """That tokenizer, trained once."""
    return train_base_tokenizer()


def family_config(family: str, vocab_size: int = 96):
    """Configuration of a tiny backbone without dropout."""
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=128, attn_pdrop=0.0, embd_pdrop=0.0,
            resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
    if family == "t5":
        return T5Config(
            vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
    if family in MORE_FAMILIES:
        config_class = {"qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}[family]
        return config_class(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
            pad_token_id=0, tie_word_embeddings=True,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=family == "llama",
    )  # fmt: skip


def make_backbone(family: str, vocab_size: int = 96, seed: int = 0):
    """A tiny random language model with its head, large enough weights for its outputs to differ visibly."""
    config = family_config(family, vocab_size)
    torch.manual_seed(seed)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto_class.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "relative_attention" not in name:
                parameter.mul_(3.0 if family != "t5" else 1.0)
    return model.eval()


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each backbone family in turn."""
    return request.param


def save_backbone(directory, tokenizer):
    """Write a tiny LLaMA with its tokenizer, as somebody would have it on disk."""
    make_backbone("llama", vocab_size=len(tokenizer) + 6).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def saved_backbone(tmp_path, base_tokenizer):
    """Directory of such a LLaMA."""
    return save_backbone(tmp_path / "backbone", base_tokenizer)


def write_interactions(path):
    """Write a CSV of 24 users and 18 items with two tastes, and a review of each pair."""
    generator = np.random.Generator(np.random.PCG64(7))
    lines = ["user,item,rating,review"]
    for user in range(24):
        liked = np.arange(9) + 9 * (user % 2)
        for item in generator.permutation(liked)[:7]:
            words = WORDS[user % 2].split()
            text = " ".join(words[int(k)] for k in generator.integers(0, len(words), 6))
            lines.append(f"u{user:02d},i{item:02d},5,{text} number{item}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def interactions_file(tmp_path):
    """That CSV."""
    path = tmp_path / "interactions.csv"
    write_interactions(path)
    return path


def prepare_interactions(interactions_file, output):
    """Prepare that CSV."""
    from cllm4rec_hf.cli import main

    arguments = ["prepare", "--interactions", str(interactions_file), "--user-column", "user", "--item-column", "item"]
    arguments += ["--rating-column", "rating", "--text-column", "review", "--k-core", "3", "--output", str(output)]
    assert main(arguments) == 0
    assert json.loads((output / "meta.json").read_text())
    return output


@pytest.fixture
def prepared(tmp_path, interactions_file):
    """That CSV as prepared data."""
    return prepare_interactions(interactions_file, tmp_path / "prepared")


# settings of a training run that takes seconds
QUICK = {
    "max_length": 64, "max_text_length": 48, "content_epochs": 1, "pretraining_epochs": 1, "recommendation_epochs": 2,
    "batch_size": 8, "gradient_accumulation_steps": 1, "dtype": "float32", "warm_start_steps": 20,
}  # fmt: skip


@pytest.fixture
def settings_file(tmp_path, prepared, saved_backbone):
    """YAML file of such a run on the prepared data."""
    path = tmp_path / "settings.yaml"
    settings = {"data": str(prepared), "output": str(tmp_path / "out"), "backbone": str(saved_backbone), **QUICK}
    path.write_text(yaml.safe_dump(settings))
    return path
