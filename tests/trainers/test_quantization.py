"""Quantized backbones: what is packed, what trains, what is recorded, and gradients against plain arithmetic."""

import copy
import importlib
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from cllm4rec_hf import CLLM4RecError, CLLM4RecForRecommendation
from cllm4rec_hf.inference.ranker import ModelRanker
from cllm4rec_hf.modeling.quantization_cllm4rec import is_packed, quantization_config
from tests.trainers.parts import ITEMS, USERS, make_parts, tables
from tests.trainers.test_steps import moved, trainer_of

HEAD = {"history_rank": 4, "center_hidden": True, "learn_logit_scale": True, "item_bias": True}
SETTINGS = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "optim": "adamw_torch", "learning_rate": 0.05}
# int8-activations is bitsandbytes' LLM.int8(): activations are rounded, too, but the gradient passes
METHODS = ("int8", "int4", "int8-activations")
# least correlation of the scores with those of the backbone in bfloat16
CORRELATION = {"int8": 0.999, "int4": 0.9, "int8-activations": 0.995}


def method(name):
    pytest.importorskip("torchao" if name == "int8" else "bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True) if name == "int8-activations" else quantization_config(name)


def quantized_parts(base_tokenizer, directory, name, family="llama"):
    """Parts whose bfloat16 backbone lies in `directory`/backbone and is loaded quantized (name None: as it is)."""
    parts = make_parts(base_tokenizer, family)
    parts.model.backbone.bfloat16().save_pretrained(directory / "backbone")
    keywords = {} if name is None else {"quantization_config": method(name)}
    learned = {k: v for k, v in parts.model.state_dict().items() if not k.startswith("backbone.")}
    parts.model = CLLM4RecForRecommendation.from_backbone(
        directory / "backbone", USERS, ITEMS, backbone_kwargs=keywords, **HEAD
    )
    parts.model.load_state_dict(learned, strict=False)
    return parts


def scores(model, parts):
    return torch.tensor(ModelRanker(model, parts.prompts).score([0, 3], [parts.histories[0], parts.histories[3]]))


def correlation(one, two):
    return torch.corrcoef(torch.stack([one.flatten(), two.flatten()]).double())[0, 1].item()


def weights_of(model):
    """Copies of everything stored, packed or not, as plain tensors."""
    state = {k: v for k, v in model.state_dict().items() if torch.is_tensor(v)}
    plain = (torch.Tensor, nn.Parameter)
    return {
        k: v.clone() if type(v) in plain or "bitsandbytes" in type(v).__module__ else v.dequantize()
        for k, v in state.items()
    }


def dequantized(backbone, plain):
    """The plain model with the weights that the quantized layers multiply by: the images of the unit vectors."""
    plain = copy.deepcopy(plain)
    for name, module in backbone.named_modules():
        if hasattr(module, "weight") and hasattr(module, "in_features") and is_packed(module.weight):
            unit = torch.eye(module.in_features, dtype=torch.bfloat16)
            image = module(unit) - (0 if module.bias is None else module.bias)
            target = plain.get_submodule(name)
            with torch.no_grad():
                target.weight.copy_(image.T if isinstance(target, nn.Linear) else image)
    return plain


def gradient(model, batches):
    model = model.train()
    model.zero_grad()
    for batch in batches:
        model(**batch).loss.backward()
    return torch.cat([table.weight.grad.flatten() for table in model.tables()])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("name", METHODS)
def test_gradient_is_that_of_the_dequantized_backbone(name, family, base_tokenizer, tmp_path):
    if (name, family) == ("int8", "gpt2"):
        pytest.skip("torchao knows nn.Linear alone")
    parts = quantized_parts(base_tokenizer, tmp_path, name, family)
    plain = quantized_parts(base_tokenizer, tmp_path, None, family).model
    packed = [n for n, p in parts.model.named_parameters() if is_packed(p)]
    assert len(packed) >= 8 and all(n.startswith("backbone.") for n in packed)
    reference = copy.deepcopy(plain)
    reference.attach_backbone(dequantized(parts.model.backbone, plain.backbone))
    trainer = trainer_of("recommendation", parts, tmp_path / "run", with_content=True, per_device_train_batch_size=8)
    batches = [dict(batch) for batch in trainer.get_train_dataloader()]
    assert {batch["task"] for batch in batches} == {"recommendation", "content"}
    # an evaluation in between must not cost the gradient, as bitsandbytes' repacking for the CPU would
    scores(parts.model, parts)
    found, expected, unquantized = (gradient(m, batches) for m in (parts.model, reference, plain))

    def cosine(other):
        return torch.nn.functional.cosine_similarity(found, other, dim=0)

    assert cosine(expected) > (0.999 if name != "int8-activations" else 0.99)
    torch.testing.assert_close(found.norm(), expected.norm(), atol=0, rtol=0.05)
    assert cosine(unquantized) > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_tables_learn_and_the_packed_backbone_stays(name, base_tokenizer, tmp_path):
    parts = quantized_parts(base_tokenizer, tmp_path, name)
    weights = weights_of(parts.model.backbone)
    before = {k: v for k, v in tables(parts.model).items() if not k.startswith("backbone.")}
    assert all(value.dtype == torch.float32 for value in before.values())
    scores(parts.model, parts)
    trainer_of("recommendation", parts, tmp_path / "run", with_content=True, save_strategy="epoch", **SETTINGS).train()
    assert moved(before, tables(parts.model)) == set(before)
    assert not moved(weights, weights_of(parts.model.backbone))
    # the Trainer's own checkpoint, opened in the same precision, is the model
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-8")
    loaded = CLLM4RecForRecommendation.from_pretrained(checkpoint, quantization_config=method(name))
    assert torch.equal(scores(loaded, parts), scores(parts.model, parts))


@pytest.mark.parametrize("name", METHODS)
def test_checkpoints_do_not_depend_on_the_quantization(name, base_tokenizer, tmp_path):
    parts = quantized_parts(base_tokenizer, tmp_path, name)
    parts.model.save_pretrained(tmp_path / "quantized")
    quantized_parts(base_tokenizer, tmp_path, None).model.save_pretrained(tmp_path / "plain")
    one, two = (json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("quantized", "plain"))
    assert one == two
    plain = CLLM4RecForRecommendation.from_pretrained(tmp_path / "quantized")
    assert not any(is_packed(parameter) for parameter in plain.parameters())
    # a live configuration that knows of the quantization says nothing about the weights on disk either
    live = CLLM4RecForRecommendation.from_pretrained(tmp_path / "quantized", config=parts.model.config)
    assert torch.equal(scores(live, parts), scores(plain, parts))
    assert CORRELATION[name] < correlation(scores(plain, parts), scores(parts.model, parts)) < 1
    # with the backbone inside, too: it alone is quantized, and saved again without it
    plain.save_pretrained(tmp_path / "whole", include_backbone=True)
    whole = CLLM4RecForRecommendation.from_pretrained(
        tmp_path / "whole", quantization_config=method(name), dtype=torch.bfloat16
    )
    torch.testing.assert_close(scores(whole, parts), scores(parts.model, parts), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="A quantized backbone cannot be saved"):
        whole.save_pretrained(tmp_path / "again", include_backbone=True)
    whole.save_pretrained(tmp_path / "again")
    assert torch.equal(
        scores(CLLM4RecForRecommendation.from_pretrained(tmp_path / "again"), parts), scores(plain, parts)
    )


def test_a_home_that_holds_packed_weights_is_read_as_such(base_tokenizer, tmp_path):
    parts = quantized_parts(base_tokenizer, tmp_path, None)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone", quantization_config=method("int4"))
    packed.save_pretrained(tmp_path / "packed")
    model = CLLM4RecForRecommendation.from_backbone(tmp_path / "packed", USERS, ITEMS, **HEAD)
    assert any(is_packed(parameter) for parameter in model.parameters())
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path / "checkpoint")
    assert torch.equal(scores(loaded, parts), scores(model, parts))
    with pytest.raises(ValueError, match="name it: from_backbone"):
        CLLM4RecForRecommendation.from_backbone(packed, USERS, ITEMS)


def test_quantized_activations_that_cut_the_gradient_are_refused(base_tokenizer, tmp_path, monkeypatch):
    torchao = pytest.importorskip("torchao.quantization")
    parts = quantized_parts(base_tokenizer, tmp_path, None)
    cutting = TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
    parts.model = CLLM4RecForRecommendation.from_backbone(
        tmp_path / "backbone", USERS, ITEMS, backbone_kwargs={"quantization_config": cutting}, **HEAD
    )
    with pytest.raises(CLLM4RecError, match=r"layers.0.self_attn.q_proj passes no gradient.*weights alone"):
        trainer_of("recommendation", parts, tmp_path / "run")


def test_a_quantization_that_finds_nothing_is_refused(base_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="TorchAoConfig quantized no weight of GPT2LMHeadModel"):
        quantized_parts(base_tokenizer, tmp_path, "int8", "gpt2")


def test_unknown_names_and_missing_libraries_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="Unknown quantization 'int3'; expected int8 or int4"):
        quantization_config("int3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, library in (("int8", "torchao"), ("int4", "bitsandbytes")):
        with pytest.raises(ModuleNotFoundError, match=rf"needs the package {library}: pip install .*\[quantization\]"):
            quantization_config(name)


@pytest.mark.parametrize("name", METHODS)
def test_adapters_on_a_quantized_backbone(name, base_tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    parts = quantized_parts(base_tokenizer, tmp_path, name)
    parts.model.save_pretrained(tmp_path / "checkpoint")
    parts.model = peft.get_peft_model(parts.model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    layer = parts.model.base_model.model.backbone.model.layers[0].self_attn.q_proj
    expected = {"int8": "TorchaoLoraLinear", "int4": "Linear4bit", "int8-activations": "Linear8bitLt"}
    assert type(layer).__name__ == expected[name] and type(layer).__module__.startswith("peft.")
    before = weights_of(parts.model)
    trainer_of("recommendation", parts, tmp_path / "run", with_content=True, **SETTINGS).train()
    changed = moved(before, weights_of(parts.model))
    assert any(".lora_B." in key for key in changed)
    assert all(".lora_" in key or ".modules_to_save." in key for key in changed)
    parts.model.save_pretrained(tmp_path / "adapter")
    # the adapter fits the backbone in any precision, and merges into a plain one
    base = CLLM4RecForRecommendation.from_pretrained(tmp_path / "checkpoint")
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    assert correlation(scores(plain, parts), scores(parts.model, parts)) > CORRELATION[name]
