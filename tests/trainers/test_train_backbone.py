"""A backbone that trains: what moves and how fast, gradients by every way of attending, saving, resuming."""

from itertools import pairwise

import pytest
import torch
from transformers import TrainerCallback

from cllm4rec_hf import CLLM4RecForRecommendation, RecommendationArguments, RecommendationTrainer
from cllm4rec_hf.data.corpora import DocumentKey
from cllm4rec_hf.inference.ranker import ModelRanker
from cllm4rec_hf.modeling.attention_cllm4rec import attends_by_document
from tests.trainers.parts import Judge, make_parts, tables
from tests.trainers.test_steps import arguments, moved, trainer_of

FAMILIES = ("gpt2", "llama", "llama-untied", "t5")
SETTINGS = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "optim": "adamw_torch", "learning_rate": 0.01}


def parts_that_train(base_tokenizer, family="llama", **fields):
    parts = make_parts(base_tokenizer, family, **fields)
    parts.model.unfreeze_backbone()
    return parts


def learned_weights(model):
    return {name for name, _ in model.named_parameters() if name.startswith("backbone.")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", ["content", "collaborative", "recommendation"])
def test_every_weight_learns_beside_the_tables(stage, family, base_tokenizer, tmp_path):
    parts = parts_that_train(base_tokenizer, family)
    before = tables(parts.model)
    trainer_of(stage, parts, tmp_path, **SETTINGS).train()
    changed = moved(before, tables(parts.model))
    still = {name for name in learned_weights(parts.model) if name not in changed}
    # the item tasks do not read an untied head of the vocabulary
    allowed = {"backbone.lm_head.weight"} if stage != "content" else set()
    if stage != "content":
        allowed |= {name for name in before if "shared" in name or "embed_tokens" in name or "wte" in name}
    if (family, stage) == ("t5", "recommendation"):
        # the decoder's only position has nothing else to attend to
        allowed |= {name for name in before if ".decoder." in name and "SelfAttention" in name and ".v." not in name}
    assert still <= allowed, still


def test_it_has_a_learning_rate_of_its_own(base_tokenizer, tmp_path):
    parts = parts_that_train(base_tokenizer)
    before = tables(parts.model)
    trainer_of("recommendation", parts, tmp_path, backbone_learning_rate=0.0, **SETTINGS).train()
    changed = moved(before, tables(parts.model))
    assert "collaborative_item_embeddings.weight" in changed and not changed & learned_weights(parts.model)
    trainer = trainer_of("content", parts, tmp_path, backbone_learning_rate=1e-3, **SETTINGS)
    rates = {group["name"]: group["lr"] for group in trainer.create_optimizer().param_groups}
    assert rates == {"content": 0.01, "backbone": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["content", "collaborative", "recommendation"])
def test_gradients_of_its_weights_are_the_same_by_every_way_of_attending(stage, base_tokenizer):
    found = []
    for attention in (None, "eager", "sdpa"):
        parts = parts_that_train(base_tokenizer)
        if attention is not None:
            parts.model.backbone.set_attn_implementation(attention)
        assert attends_by_document(parts.model.backbone) == (attention is None)
        corpus, collator = getattr(parts, stage), getattr(parts, f"{stage}_collator")
        batch = collator([{"key": DocumentKey(0, k, 0), **corpus[k]} for k in range(len(corpus))])
        parts.model.train()(**batch).loss.backward()
        gradients = {n: p.grad for n, p in parts.model.named_parameters() if n.startswith("backbone.")}
        found.append({name: gradient for name, gradient in gradients.items() if gradient is not None})
    assert found[0].keys() == found[1].keys() == found[2].keys()
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        for other in found[1:]:
            torch.testing.assert_close(other[name], gradient, atol=2e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_computing_activations_again_changes_nothing(family, base_tokenizer, tmp_path):
    ends = []
    for again in (False, True):
        parts = parts_that_train(base_tokenizer, family)
        settings = {"optim": "sgd", "max_steps": 4, "gradient_checkpointing": again}
        trainer_of("recommendation", parts, tmp_path, with_content=True, **{**SETTINGS, **settings}).train()
        ends.append(tables(parts.model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_with_the_tables_and_comes_back_exactly(family, base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer, family)
    parts.model.backbone.save_pretrained(tmp_path / "home")
    half = CLLM4RecForRecommendation.from_backbone(str(tmp_path / "home"), 8, 10, dtype=torch.bfloat16)
    half.unfreeze_backbone()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    parts.model = model = CLLM4RecForRecommendation.from_backbone(str(tmp_path / "home"), 8, 10)
    model.unfreeze_backbone()
    trainer_of("recommendation", parts, tmp_path / "run", with_content=True, **SETTINGS).train()
    model.save_pretrained(tmp_path / "out")
    loaded = CLLM4RecForRecommendation.from_pretrained(tmp_path / "out")
    assert loaded.config.backbone_name_or_path is None and loaded.config.includes_backbone
    assert not moved(dict(model.eval().state_dict()), dict(loaded.state_dict()))
    asked = [0, None], [parts.histories[0], parts.histories[5]]
    one, other = (ModelRanker(each, parts.prompts, 64).score(*asked) for each in (model, loaded))
    assert (one == other).all()
    # frozen until somebody asks for it again
    assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())


@pytest.mark.slow
def test_resuming_gives_the_same_weights_to_the_last_bit(base_tokenizer, tmp_path):
    settings = SETTINGS | {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    whole = parts_that_train(base_tokenizer)
    trainer_of("recommendation", whole, tmp_path, with_content=True, **settings).train()
    for step in (3, 4):
        resumed = parts_that_train(base_tokenizer)
        trainer = trainer_of("recommendation", resumed, tmp_path / "again", with_content=True, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert not moved(tables(whole.model), tables(resumed.model)), step


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_epoch_comes_back_with_its_backbone(best, base_tokenizer, tmp_path):
    parts = parts_that_train(base_tokenizer)

    scores = [[1.5 if epoch == best else 0.5] for epoch in range(3)]
    settings = SETTINGS | {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    trainer = RecommendationTrainer(
        parts.model, arguments(RecommendationArguments, tmp_path, **settings), parts.recommendation,
        parts.recommendation_collator, evaluator=Judge(scores[0], *scores),
    )  # fmt: skip
    states = [tables(parts.model)]

    class Snapshot(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            states.append(tables(parts.model))

    trainer.add_callback(Snapshot())
    trainer.train()
    assert all(learned_weights(parts.model) & moved(one, two) for one, two in pairwise(states))
    assert not moved(states[best], tables(parts.model))


def test_a_model_that_ranks_by_its_collaborative_task_has_nothing_to_fine_tune(base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer, ranking_task="collaborative")
    with pytest.raises(ValueError, match="set config.ranking_task to 'recommendation'"):
        trainer_of("recommendation", parts, tmp_path)
