"""Construction, freezing, causality, saving and the ranges of ids."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from cllm4rec_hf import (
    CLLM4RecConfig,
    CLLM4RecForCollaborative,
    CLLM4RecForContent,
    CLLM4RecForRecommendation,
    CLLM4RecModel,
)
from tests.conftest import family_config, make_backbone

CLASSES = (CLLM4RecForRecommendation, CLLM4RecForCollaborative, CLLM4RecForContent, CLLM4RecModel)
USERS, ITEMS, WORDS = 5, 7, 96
HEAD = {"history_rank": 4, "center_hidden": True, "learn_logit_scale": True, "item_bias": True}


def user(index):
    return WORDS + index


def item(index):
    return WORDS + USERS + index


def model_of(family, cls=CLLM4RecForRecommendation, **fields):
    model = cls.from_backbone(make_backbone(family), USERS, ITEMS, seed=1, **fields)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*model.collaborative_parameters(), *model.content_parameters()):
            parameter.normal_(0.0, 0.5, generator=generator)
    return model


def prompts():
    rows = torch.tensor([[user(0), 3, 4, item(1), item(5), item(2), 9], [user(3), 3, 4, item(6), 1, 0, 0]])
    return rows, torch.tensor([[1] * 7, [1, 1, 1, 1, 1, 0, 0]])


def outputs(model):
    ids, mask = prompts()
    with torch.no_grad():
        out = model(ids, mask) if isinstance(model, CLLM4RecModel) else model(ids, mask, **decoder(model, ids))
    return out.last_hidden_state if out.logits is None else out.logits


def decoder(model, ids):
    if not model.config.is_encoder_decoder or model.task == "recommendation":
        return {}
    return {"decoder_input_ids": torch.full((len(ids), 3), 5)}


def is_frozen(model):
    return not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_frozen_after_every_way_of_construction(family, tmp_path):
    config = CLLM4RecConfig(text_config=family_config(family), num_users=USERS, num_items=ITEMS)
    built = model_of(family)
    built.save_pretrained(tmp_path / "own")
    make_backbone(family).save_pretrained(tmp_path / "backbone")
    named = CLLM4RecForRecommendation.from_backbone(tmp_path / "backbone", USERS, ITEMS)
    named.save_pretrained(tmp_path / "named")
    ways = {
        "constructor": CLLM4RecForRecommendation(config),
        "AutoModel.from_config": AutoModel.from_config(copy.deepcopy(named.config)),
        "from_backbone object": built,
        "from_backbone path": named,
        "from_pretrained with backbone": CLLM4RecForRecommendation.from_pretrained(tmp_path / "own"),
        "from_pretrained without": CLLM4RecForRecommendation.from_pretrained(tmp_path / "named"),
        "AutoModel": AutoModel.from_pretrained(tmp_path / "named"),
        "deepcopy": copy.deepcopy(named),
    }
    for way, model in ways.items():
        assert is_frozen(model), way
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {
            f"{t}_{k}_embeddings.weight" for t in ("collaborative", "content") for k in ("user", "item")
        } <= trainable


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_causal_after_every_way_of_construction(family, attention, tmp_path):
    make_backbone(family).save_pretrained(tmp_path / "backbone")
    keywords = {"attn_implementation": attention}
    made = CLLM4RecModel.from_backbone(tmp_path / "backbone", USERS, ITEMS, backbone_kwargs=keywords)
    made.save_pretrained(tmp_path / "saved")
    live = make_backbone(family)
    wrapped = CLLM4RecModel.from_backbone(live, USERS, ITEMS)
    for model in (made, wrapped, CLLM4RecModel.from_pretrained(tmp_path / "saved", **keywords)):
        ids, _ = prompts()
        changed = ids.clone()
        changed[:, -1] = 17
        before, after = model(ids).last_hidden_state, model(changed).last_hidden_state
        torch.testing.assert_close(before[:, :-1], after[:, :-1])
        assert not torch.allclose(before[:, -1], after[:, -1])
    # the model whose configuration was wrapped keeps working, too
    ids = torch.randint(0, WORDS, (1, 6), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % WORDS
    torch.testing.assert_close(live(ids).logits[:, :-1], live(other).logits[:, :-1])


@pytest.mark.parametrize("cls", CLASSES)
def test_round_trip_is_exact(family, cls, tmp_path):
    model = model_of(family, cls, **HEAD)
    model.save_pretrained(tmp_path / "saved")
    loaded = cls.from_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(model), outputs(loaded))
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_checkpoint_holds_no_backbone_by_default(family, tmp_path):
    make_backbone(family).save_pretrained(tmp_path / "backbone")
    model = CLLM4RecForRecommendation.from_backbone(tmp_path / "backbone", USERS, ITEMS, **HEAD)
    model.save_pretrained(tmp_path / "tables")
    model.save_pretrained(tmp_path / "all", include_backbone=True)
    assert not [key for key in load_file(tmp_path / "tables" / "model.safetensors") if key.startswith("backbone.")]
    assert [key for key in load_file(tmp_path / "all" / "model.safetensors") if key.startswith("backbone.")]
    without = CLLM4RecForRecommendation.from_pretrained(tmp_path / "tables")
    # the copy with its backbone needs no other home
    for file in (tmp_path / "backbone").iterdir():
        file.unlink()
    complete = CLLM4RecForRecommendation.from_pretrained(tmp_path / "all")
    assert torch.equal(outputs(without), outputs(complete))


def test_one_checkpoint_serves_all_classes(family, tmp_path):
    model = model_of(family, **HEAD)
    model.save_pretrained(tmp_path)
    for cls in CLASSES:
        other = cls.from_pretrained(tmp_path)
        for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(one, two), name
    assert type(AutoModel.from_pretrained(tmp_path)) is CLLM4RecForRecommendation
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CLLM4RecConfig)


def test_tables_stay_float32_beside_a_bfloat16_backbone(tmp_path):
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    model = CLLM4RecForRecommendation.from_backbone(tmp_path / "backbone", USERS, ITEMS, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "tables")
    model.save_pretrained(tmp_path / "all", include_backbone=True)
    for directory in ("tables", "all"):
        loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path / directory, dtype=torch.bfloat16)
        assert {table.weight.dtype for table in loaded.tables()} == {torch.float32}
        assert {p.dtype for p in loaded.item_head.parameters()} <= {torch.float32}
        assert {p.dtype for p in loaded.backbone.parameters()} == {torch.bfloat16}
        assert torch.equal(outputs(model), outputs(loaded))


def test_no_local_path_in_the_nested_configuration(tmp_path):
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    model = CLLM4RecForRecommendation.from_backbone(tmp_path / "backbone", USERS, ITEMS)
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "_name_or_path" not in config["text_config"]


def test_padding_on_either_side_changes_nothing(family):
    model = model_of(family, **HEAD)
    ids, mask = prompts()
    left = torch.tensor([[0, 0, *ids[1, :5]]])
    left_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    alone = model(ids[1:, :5]).logits
    for given in (model(ids, mask).logits[1:], model(left, left_mask).logits):
        torch.testing.assert_close(given, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [WORDS + USERS + ITEMS, -1])
def test_ids_out_of_range_are_an_error(wrong):
    model = model_of("llama")
    with pytest.raises(ValueError, match=rf"id {wrong}; expected ids from 0 to 107 \(96 words, 5 users, 7 items\)"):
        model(torch.tensor([[user(0), wrong]]))


def test_id_token_in_the_main_text_of_a_content_document_is_an_error():
    model = model_of("llama", CLLM4RecForContent)
    ids = torch.tensor([[user(0), 3, item(1)]])
    with pytest.raises(ValueError, match=f"labels of a content document holds the id {item(1)}"):
        model(ids, labels=torch.tensor([[-100, 3, item(1)]]))


def test_word_among_the_labels_of_items_is_an_error():
    model = model_of("llama")
    for task in ("collaborative", "recommendation"):
        with pytest.raises(ValueError, match="holds the id 3; expected ids from 101"):
            model(torch.tensor([[user(0), 3]]), labels=torch.tensor([[-100, 3]]), task=task)


def test_wrong_backbone_is_named():
    model = model_of("llama")
    with pytest.raises(ValueError, match="model_type 'gpt2', but this model was made for model_type 'llama'"):
        model.attach_backbone(make_backbone("gpt2"))
    with pytest.raises(ValueError, match="vocab_size 97"):
        model.attach_backbone(make_backbone("llama", vocab_size=97))


@pytest.mark.parametrize("family, context", [("gpt2", 128), ("llama", 256)])
def test_a_prompt_longer_than_the_context_is_an_error(family, context):
    model = model_of(family)
    assert model(torch.full((1, context), 3)).logits.isfinite().all()
    with pytest.raises(
        ValueError, match=f"A prompt of {context + 1} tokens exceeds the backbone's context of {context}"
    ):
        model(torch.full((1, context + 1), 3))


def test_unknown_task_and_impossible_configuration():
    model = model_of("llama")
    with pytest.raises(ValueError, match="Unknown task 'rating'; expected one of collaborative, content"):
        model(torch.tensor([[user(0)]]), task="rating")
    with pytest.raises(ValueError, match="history_rank 33 exceeds the backbone's hidden size 32"):
        CLLM4RecConfig(text_config=family_config("llama"), history_rank=33)
    with pytest.raises(ValueError, match="lambda_c must be a number of 0 or more, got -1"):
        CLLM4RecConfig(text_config=family_config("llama"), lambda_c=-1)


def test_id_tokens_are_rows_of_the_tables():
    model = CLLM4RecModel.from_backbone(make_backbone("llama"), 3, 4)
    ids = torch.tensor([[WORDS + 1, 5, WORDS + 3 + 2]])
    embedded = model.embed(ids, "collaborative")
    assert torch.equal(embedded[0, 0], model.collaborative_user_embeddings.weight[1])
    assert torch.equal(embedded[0, 2], model.collaborative_item_embeddings.weight[2])
    assert torch.equal(model.embed(ids, "content")[0, 2], model.content_item_embeddings.weight[2])
    assert torch.equal(embedded[0, 1], model.get_input_embeddings().weight[5])
