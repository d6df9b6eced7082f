"""docs/scaling.md quotes what benchmarks/scaling_arithmetic.py computes, and that is what the code allocates."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cllm4rec_hf.modeling.losses_cllm4rec import _ITEM_CELLS
from cllm4rec_hf.trainers.arguments import CLLM4RecTrainingArguments
from cllm4rec_hf.trainers.row_adamw import RowAdamW
from tests.conftest import make_backbone

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def arithmetic():
    specification = importlib.util.spec_from_file_location(
        "scaling_arithmetic", ROOT / "benchmarks" / "scaling_arithmetic.py"
    )
    module = importlib.util.module_from_spec(specification)
    # dataclasses look their module up
    sys.modules["scaling_arithmetic"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["scaling_arithmetic"]


def test_the_document_quotes_every_table(arithmetic):
    for name, make in arithmetic.TABLES.items():
        assert make() in TEXT, f"docs/scaling.md does not hold the table {name!r}: run the script and copy it"


def test_numbers_of_the_prose(arithmetic):
    assert arithmetic.LOGITS == _ITEM_CELLS
    everything = arithmetic.row_bytes(4096) * (arithmetic.USERS + arithmetic.ITEMS)
    assert "10.8 TB, fills 135 GPUs of 80 GB, or\n17 machines" in TEXT
    assert round(everything / 1e12, 1) == 10.8
    assert round(everything / 80e9) == 135 and -(-everything // 640e9) == 17
    assert "take 983 GB with their moments, still 13 GPUs" in TEXT
    items = arithmetic.row_bytes(4096) * arithmetic.ITEMS
    assert round(items / 1e9) == 983 and -(-items // 80e9) == 13
    assert "8 (I + J) d, says 9.2 GB" in TEXT and round(8 * 2e6 * 576 / 1e9, 1) == 9.2


def test_parameters_are_those_of_the_model(arithmetic):
    b = arithmetic.SEVEN_B
    config = LlamaConfig(
        hidden_size=b.hidden, intermediate_size=b.inner, num_hidden_layers=b.num_layers, vocab_size=b.words,
        num_attention_heads=32, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        count = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    assert b.layer_parameters + b.word_parameters == pytest.approx(count, rel=1e-3)


def test_a_row_takes_what_the_formula_says(arithmetic):
    from cllm4rec_hf import CLLM4RecForRecommendation

    model = CLLM4RecForRecommendation.from_backbone(make_backbone("llama"), 5, 7)
    weights = [table.weight for table in model.tables()]
    optimizer = RowAdamW(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    taken = sum(w.nbytes for w in weights)
    taken += sum(x.nbytes for state in optimizer.state.values() for name, x in state.items() if name != "step")
    assert taken == arithmetic.row_bytes(model.config.hidden_size) * (5 + 7)


def test_defaults_and_files_that_it_names(arithmetic, tmp_path):
    args = CLLM4RecTrainingArguments(output_dir=str(tmp_path))
    assert args.row_sparse and args.sampled_softmax_size == arithmetic.SAMPLE and args.save_total_limit == 2
    assert args.per_device_train_batch_size == arithmetic.BATCH and args.sampled_softmax_above == 50_000
    for file in set(re.findall(r"`(\w+\.yaml)`", TEXT)):
        assert (ROOT / "examples" / "accelerate_configs" / file).is_file()
