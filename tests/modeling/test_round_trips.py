"""Saving and loading: every family, class, dtype and attention, with the backbone and without it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from cllm4rec_hf import CLLM4RecForContent, CLLM4RecForRecommendation, CLLM4RecModel
from tests.conftest import FAMILIES, MORE_FAMILIES, make_backbone
from tests.modeling.test_models import CLASSES, HEAD, ITEMS, USERS, is_frozen, model_of, outputs, prompts

ALL = (*FAMILIES, *MORE_FAMILIES)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Directories of tiny backbones by family and dtype."""
    made = {}

    def directory(family, dtype):
        if (family, dtype) not in made:
            made[family, dtype] = tmp_path_factory.mktemp("backbone")
            make_backbone(family).to(dtype).save_pretrained(made[family, dtype])
        return made[family, dtype]

    return directory


def named_model(backbones, family, cls=CLLM4RecForRecommendation, dtype=torch.float32, attention="sdpa"):
    directory = backbones(family, dtype)
    kwargs = {"attn_implementation": attention}
    model = cls.from_backbone(directory, USERS, ITEMS, seed=1, backbone_kwargs=kwargs, **HEAD)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*model.collaborative_parameters(), *model.content_parameters()):
            parameter.normal_(0.0, 0.5, generator=generator)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("include_backbone", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("family", ALL)
def test_save_load_save(backbones, family, cls, include_backbone, dtype, attention, tmp_path):
    model = named_model(backbones, family, cls, dtype, attention)
    expected = outputs(model)
    model.save_pretrained(tmp_path / "first", include_backbone=include_backbone)
    # nothing said about the dtype: it comes from the checkpoint
    loaded = AutoModel.from_pretrained(tmp_path / "first", attn_implementation=attention)
    assert type(loaded) is cls and is_frozen(loaded) and not loaded.training
    assert loaded.dtype == loaded.backbone.dtype == dtype
    assert {table.weight.dtype for table in loaded.tables()} == {torch.float32}
    assert {p.dtype for p in loaded.item_head.parameters()} == {torch.float32}
    assert loaded.backbone.config._attn_implementation == attention
    assert torch.equal(outputs(loaded), expected)
    loaded.save_pretrained(tmp_path / "second", include_backbone=include_backbone)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert any(key.startswith("backbone.") for key in one) == include_backbone
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(
        outputs(AutoModel.from_pretrained(tmp_path / "second", attn_implementation=attention)), expected
    )


@pytest.mark.parametrize("include_backbone", [False, True])
def test_dtype_is_the_backbones(backbones, include_backbone, tmp_path):
    named_model(backbones, "llama").save_pretrained(tmp_path, include_backbone=include_backbone)
    for asked, got in (
        (None, torch.float32),
        ("auto", torch.float32),
        (torch.bfloat16, torch.bfloat16),
        ("float16", torch.float16),
    ):
        model = CLLM4RecForRecommendation.from_pretrained(tmp_path, dtype=asked)
        assert model.backbone.dtype == got, asked
        assert {table.weight.dtype for table in model.tables()} == {torch.float32}


@pytest.mark.parametrize("include_backbone", [False, True])
@pytest.mark.parametrize(
    "device_map", ["auto", "cpu", {"": "cpu"}, {"": "cpu", "backbone": "cpu"}, torch.device("cpu"), "meta"]
)
def test_device_map_places_tables_and_backbone(backbones, include_backbone, device_map, tmp_path):
    model = named_model(backbones, "llama")
    model.save_pretrained(tmp_path, include_backbone=include_backbone)
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path, device_map=device_map)
    devices = {parameter.device.type for parameter in loaded.parameters()}
    if device_map == "meta":
        assert devices == {"meta"}
    else:
        assert devices == {"cpu"} and torch.equal(outputs(loaded), outputs(model))


def test_a_device_map_of_parts_reaches_both(backbones, tmp_path):
    named_model(backbones, "llama").save_pretrained(tmp_path)
    parts = {"": "cpu", "backbone": "meta"}
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path, device_map=parts)
    assert {p.device.type for p in loaded.backbone.parameters()} == {"meta"}
    assert {table.weight.device.type for table in loaded.tables()} == {"cpu"}


@pytest.mark.parametrize("include_backbone", [False, True])
def test_sharded_checkpoints(backbones, include_backbone, tmp_path):
    model = named_model(backbones, "llama")
    model.save_pretrained(tmp_path, include_backbone=include_backbone, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(outputs(CLLM4RecForRecommendation.from_pretrained(tmp_path)), outputs(model))


@pytest.mark.parametrize("include_backbone", [False, True])
def test_subfolder(backbones, include_backbone, tmp_path):
    model = named_model(backbones, "gpt2")
    model.save_pretrained(tmp_path / "deep" / "inside", include_backbone=include_backbone)
    loaded = AutoModel.from_pretrained(tmp_path / "deep", subfolder="inside")
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("family", ALL)
def test_gradient_checkpointing(family):
    gradients = []
    for checkpointing in (False, True):
        model = model_of(family).train()
        if checkpointing:
            # transformers 5.23 renamed it
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.backbone.modules())
        ids, mask = prompts()
        first = model.first_item_id
        model(ids, mask, labels=torch.tensor([[first, first + 3], [first + 4, -100]])).loss.backward()
        gradients.append(model.collaborative_item_embeddings.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_attention_can_be_changed_on_a_loaded_model(backbones, tmp_path):
    model = named_model(backbones, "llama")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    loaded.set_attn_implementation("eager")
    assert loaded.backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(outputs(loaded), outputs(model))


def test_loading_information_and_mismatched_sizes(backbones, tmp_path):
    named_model(backbones, "llama").save_pretrained(tmp_path)
    _, info = CLLM4RecForRecommendation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["mismatched_keys"] and not info["missing_keys"]
    with pytest.raises(ValueError, match=r"5 users, 9 items.*collaborative_item_embeddings.weight is \[7, 32\] there"):
        CLLM4RecForRecommendation.from_pretrained(tmp_path, num_items=9)
    with pytest.raises(ValueError, match=r"6 users, 7 items.*user_embeddings.weight is \[5, 32\] there, \[6, 32\]"):
        AutoModel.from_pretrained(tmp_path, config=AutoConfig.from_pretrained(tmp_path, num_users=6))
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path, num_items=9, ignore_mismatched_sizes=True)
    assert loaded.collaborative_item_embeddings.weight.shape == (9, 32)


def test_another_models_checkpoint_is_named(backbones):
    for cls in CLASSES:
        with pytest.raises(ValueError, match="This is a 'gpt2' model, not a CLLM4Rec checkpoint"):
            cls.from_pretrained(backbones("gpt2", torch.float32))


def test_a_backbone_that_became_another_one_is_named(tmp_path):
    home = tmp_path / "backbone"
    make_backbone("llama").save_pretrained(home)
    CLLM4RecModel.from_backbone(home, USERS, ITEMS).save_pretrained(tmp_path / "saved")
    for change, message in (
        ("fewer layers", r"layers.1.*is missing"),
        ("narrower", r"is \[32, 32\], expected \[64, 32\]"),
        ("family", "llama"),
    ):
        for file in home.iterdir():
            file.unlink()
        if change == "family":
            make_backbone("gpt2").save_pretrained(home)
        else:
            other = make_backbone("llama").config
            if change == "fewer layers":
                other.num_hidden_layers = 1
            else:
                other.intermediate_size = 32
            type(make_backbone("llama"))(other).save_pretrained(home)
        with pytest.raises(ValueError, match=message):
            CLLM4RecModel.from_pretrained(tmp_path / "saved")


def test_a_given_backbone_of_another_depth_is_named(backbones, tmp_path):
    named_model(backbones, "llama").save_pretrained(tmp_path)
    config = make_backbone("llama").config
    config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="num_hidden_layers 3, but this model was made for num_hidden_layers 2"):
        CLLM4RecForRecommendation.from_pretrained(tmp_path, backbone=type(make_backbone("llama"))(config))


def test_a_given_backbone_is_shared_not_copied(backbones, tmp_path):
    model = named_model(backbones, "llama")
    model.save_pretrained(tmp_path)
    other = CLLM4RecForContent.from_pretrained(tmp_path, backbone=model.backbone)
    assert other.backbone is model.backbone


def test_a_saved_checkpoint_carries_its_code(backbones, tmp_path):
    named_model(backbones, "llama", CLLM4RecForContent).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cllm4rec.CLLM4RecConfig",
        "AutoModel": "modeling_cllm4rec.CLLM4RecForContent",
    }
    assert {"configuration_cllm4rec.py", "modeling_cllm4rec.py"} <= {path.name for path in tmp_path.iterdir()}
