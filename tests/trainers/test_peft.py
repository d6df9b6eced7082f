"""peft's adapters in the backbone: what learns, what is saved, what comes back, and merging."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from cllm4rec_hf import CLLM4RecError, CLLM4RecForRecommendation, RecommendationArguments, RecommendationTrainer
from cllm4rec_hf.inference.ranker import ModelRanker
from cllm4rec_hf.trainers.calibration import calibrate_head
from tests.trainers.parts import Judge, make_parts, tables
from tests.trainers.test_steps import FAMILIES, arguments, moved, trainer_of

peft = pytest.importorskip("peft")

TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"]}
TABLES = {f"{kind}_{who}_embeddings" for kind in ("collaborative", "content") for who in ("user", "item")}
SETTINGS = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "optim": "adamw_torch", "learning_rate": 0.05}


def parts_with_adapters(base_tokenizer, directory, family="llama", lm_term_ranks=True, **lora):
    """Parts whose backbone has a home in `directory`, whose model lies in `directory`/checkpoint and has adapters."""
    parts = make_parts(base_tokenizer, family, lm_term_ranks=lm_term_ranks)
    parts.model.backbone.save_pretrained(directory / "backbone")
    parts.model.config.backbone_name_or_path = str(directory / "backbone")
    parts.model.attach_backbone(parts.model.backbone)
    parts.model.save_pretrained(directory / "checkpoint")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=16, **{"target_modules": TARGETS[family], **lora})
    parts.model = peft.get_peft_model(parts.model, config)
    return parts


def load(directory, adapter, **keywords):
    base = CLLM4RecForRecommendation.from_pretrained(directory / "checkpoint")
    return peft.PeftModel.from_pretrained(base, directory / adapter, **keywords).eval()


def scores(model, parts):
    users = [0, 3, None]
    return ModelRanker(model, parts.prompts).score(users, [parts.histories[user or 7] for user in users])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", ["content", "collaborative", "recommendation"])
def test_adapters_and_tables_learn_and_the_backbone_stays(stage, family, base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path, family)
    before = tables(parts.model)
    trainer_of(stage, parts, tmp_path / "run", with_content=True, **SETTINGS).train()
    changed = moved(before, tables(parts.model))
    learned = {name for name in changed if ".modules_to_save.default." in name}
    adapters = {name for name in changed if ".lora_" in name}
    # all else is the published backbone, and the tables as they were before the adapter came
    assert changed == learned | adapters
    assert any(".lora_A." in name for name in adapters) and any(".lora_B." in name for name in adapters)
    which = {part for part in TABLES if any(f".{part}." in name for name in learned)}
    assert which == ({part for part in TABLES if part.startswith("content_")} if stage == "content" else TABLES)
    assert any(".item_head." in name for name in learned) == (stage != "content")


def test_adapters_take_part_in_the_ranking_of_a_model_that_did_without(base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path, lm_term_ranks=False)
    stored = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert not stored["lm_term_ranks"] and parts.model.config.lm_term_ranks
    trainer_of("recommendation", parts, tmp_path / "run", **SETTINGS).train()
    trained = scores(parts.model, parts)
    parts.model.save_pretrained(tmp_path / "adapter")
    loaded = load(tmp_path, "adapter")
    assert abs(scores(loaded, parts) - trained).max() < 1e-5
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = CLLM4RecForRecommendation.from_pretrained(tmp_path / "merged").eval()
    assert abs(scores(merged, parts) - trained).max() < 1e-4
    merged.config.lm_term_ranks = False
    assert abs(scores(merged, parts) - trained).max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_loaded_and_merged_models_score_alike(family, base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path, family)
    untrained = scores(parts.model, parts)
    # statistics of the head are measured, not trained, and belong to the adapter all the same
    calibrate_head(parts.model, parts.recommendation, parts.recommendation_collator, 0.5)
    trainer_of("recommendation", parts, tmp_path / "run", with_content=True, **SETTINGS).train()
    trained = scores(parts.model, parts)
    parts.model.save_pretrained(tmp_path / "adapter")
    assert abs(trained - untrained).max() > 0.1
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(any(f".{part}." in name for name in saved) for part in TABLES)
    assert any(name.endswith("item_head.recommendation_mean") for name in saved)

    loaded = load(tmp_path, "adapter")
    assert (scores(loaded, parts) == trained).all()
    with loaded.disable_adapter():
        assert (scores(loaded, parts) == untrained).all()

    merged = loaded.merge_and_unload()
    assert type(merged) is CLLM4RecForRecommendation
    assert not [name for name, _ in merged.named_modules() if "lora" in name or "modules_to_save" in name]
    whole = scores(merged, parts)
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(trained), atol=1e-4, rtol=1e-4)
    # nobody asks for the backbone here, yet the merged one must not be lost, now or when it is saved again
    merged.save_pretrained(tmp_path / "merged")
    again = CLLM4RecForRecommendation.from_pretrained(tmp_path / "merged")
    again.save_pretrained(tmp_path / "again")
    for name in ("merged", "again"):
        assert (scores(CLLM4RecForRecommendation.from_pretrained(tmp_path / name), parts) == whole).all()


def test_all_linear_layers_leave_the_head_of_the_vocabulary_alone(base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path, target_modules="all-linear")
    layers = {name.rpartition(".")[2] for name in parts.model.targeted_module_names}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_an_adapter_of_the_vocabularys_head_learns_like_the_others(base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path, target_modules=["lm_head"])
    before = tables(parts.model)
    trainer_of("content", parts, tmp_path / "run", **SETTINGS).train()
    assert any("lm_head.lora_B" in name for name in moved(before, tables(parts.model)))


def test_modules_that_the_user_names_are_kept(base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path, modules_to_save=["item_head", "norm"])
    assert set(parts.model.peft_config["default"].modules_to_save) == TABLES | {"item_head", "norm"}
    parts.model.save_pretrained(tmp_path / "adapter")
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    assert set(recorded) == TABLES | {"item_head", "norm"}


def test_resuming_gives_the_same_adapters_and_tables_to_the_last_bit(base_tokenizer, tmp_path):
    settings = SETTINGS | {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    whole = parts_with_adapters(base_tokenizer, tmp_path, lora_dropout=0.1)
    trainer_of("recommendation", whole, tmp_path / "run", with_content=True, **settings).train()
    for step in (3, 4):
        resumed = parts_with_adapters(base_tokenizer, tmp_path, lora_dropout=0.1)
        trainer = trainer_of("recommendation", resumed, tmp_path / "more", with_content=True, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert not moved(tables(whole.model), tables(resumed.model)), step


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_epoch_comes_back_with_its_adapters(best, base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path)

    scores = [[1.5 if epoch == best else 0.5] for epoch in range(3)]
    settings = SETTINGS | {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    trainer = RecommendationTrainer(
        parts.model, arguments(RecommendationArguments, tmp_path / "run", **settings), parts.recommendation,
        parts.recommendation_collator, evaluator=Judge(*scores, max(scores[1:])),
    )  # fmt: skip
    states = [tables(parts.model)]

    class Snapshot(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            states.append(tables(parts.model))

    trainer.add_callback(Snapshot())
    trainer.train()
    assert len(states) == 3 and all(moved(one, two) for one, two in pairwise(states))
    assert not moved(states[best], tables(parts.model))


def test_adapters_that_do_not_train_the_tables_are_refused(base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path)
    parts.model.save_pretrained(tmp_path / "adapter")
    parts.model = load(tmp_path, "adapter")
    with pytest.raises(CLLM4RecError, match="does not train the user and item tables.*is_trainable=True"):
        trainer_of("recommendation", parts, tmp_path / "run")
    parts.model = load(tmp_path, "adapter", is_trainable=True)
    trainer_of("recommendation", parts, tmp_path / "run", **SETTINGS).train()
    parts.model.add_adapter("second", peft.LoraConfig(target_modules=["q_proj"]))
    parts.model.set_adapter("second")
    with pytest.raises(CLLM4RecError, match="modules_to_save=.'collaborative_user_embeddings'"):
        trainer_of("recommendation", parts, tmp_path / "run")


def test_a_model_that_carries_adapters_is_not_saved_as_if_it_had_none(base_tokenizer, tmp_path):
    parts = parts_with_adapters(base_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="Save the PeftModel"):
        parts.model.get_base_model().save_pretrained(tmp_path / "base")
    plain = parts.model.unload()
    plain.save_pretrained(tmp_path / "base")
    assert (scores(CLLM4RecForRecommendation.from_pretrained(tmp_path / "base"), parts) == scores(plain, parts)).all()
