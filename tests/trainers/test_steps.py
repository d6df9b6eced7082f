"""One optimizer step: what moves, what does not, and what must not change the gradient."""

import pytest
import torch
from transformers import TrainerCallback

from cllm4rec_hf import (
    ContentArguments,
    ContentTrainer,
    MutualRegularizationArguments,
    MutualRegularizationTrainer,
    RecommendationArguments,
    RecommendationTrainer,
)
from cllm4rec_hf.trainers.row_adamw import RowAdamW
from tests.trainers.parts import make_parts, tables

FAMILIES = ("gpt2", "llama", "t5")


def arguments(cls, directory, **settings):
    defaults = {
        "output_dir": str(directory),
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if cls is RecommendationArguments:
        defaults |= {"eval_strategy": "no", "load_best_model_at_end": False}
    return cls(**(defaults | settings))


def trainer_of(stage, parts, directory, with_content=False, **settings):
    if stage == "content":
        return ContentTrainer(
            parts.model, arguments(ContentArguments, directory, **settings), parts.content, parts.content_collator
        )
    cls, argument_cls, corpus, collator = {
        "collaborative": (
            MutualRegularizationTrainer, MutualRegularizationArguments, parts.collaborative,
            parts.collaborative_collator,
        ),
        "recommendation": (
            RecommendationTrainer, RecommendationArguments, parts.recommendation, parts.recommendation_collator,
        ),
    }[stage]  # fmt: skip
    content = (parts.content, parts.content_collator) if with_content else (None, None)
    return cls(parts.model, arguments(argument_cls, directory, **settings), corpus, collator, *content)


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", ["content", "collaborative", "recommendation"])
def test_gradient_does_not_depend_on_batches_accumulation_padding_or_order(stage, family, base_tokenizer, tmp_path):
    updates = []
    # all documents make one optimizer step, in micro-batches of another size, padding and order each time
    documents = {"content": 16, "collaborative": 8, "recommendation": 8}[stage]
    for number, accumulation in enumerate((1, 2, 4, 8)):
        parts = make_parts(base_tokenizer, family)
        before = tables(parts.model)
        settings = {
            "per_device_train_batch_size": documents // accumulation,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 1,
            "seed": number,
        }
        trainer_of(stage, parts, tmp_path / str(number), **settings).train()
        after = tables(parts.model)
        updates.append({name: after[name] - before[name] for name in before})
    learned = {name for name, update in updates[0].items() if update.abs().max() > 1e-4}
    assert learned, "nothing was learned"
    for other in updates[1:]:
        for name, update in updates[0].items():
            torch.testing.assert_close(
                other[name], update, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_more_padding_changes_nothing(base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer)
    sampler = trainer_of("collaborative", parts, tmp_path, per_device_train_batch_size=8).get_train_dataloader()
    batch = dict(next(iter(sampler)))
    wide = {
        name: torch.nn.functional.pad(batch[name], (0, 5), value=value)
        for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    }
    gradients = []
    for inputs in (batch, {**batch, **wide}):
        parts.model.zero_grad()
        parts.model.train()(**inputs).loss.backward()
        gradients.append(parts.model.collaborative_item_embeddings.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", ["content", "collaborative", "recommendation"])
def test_what_a_stage_moves(stage, family, base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer, family)
    before = tables(parts.model)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "optim": "adamw_torch", "weight_decay": 0.1}
    trainer_of(stage, parts, tmp_path, **settings).train()
    changed = moved(before, tables(parts.model))
    assert not [name for name in changed if name.startswith("backbone.")]
    content = {"content_user_embeddings.weight", "content_item_embeddings.weight"}
    collaborative = {"collaborative_user_embeddings.weight", "collaborative_item_embeddings.weight"}
    if stage == "content":
        assert changed == content
    else:
        assert collaborative <= changed and not content & changed


def test_c_steps_move_the_content_tables_alone_and_l_steps_the_others(base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer)
    trainer = trainer_of(
        "collaborative",
        parts,
        tmp_path,
        with_content=True,
        per_device_train_batch_size=4,
        max_steps=4,
        optim="adamw_torch",
    )
    snapshots, tasks = [tables(parts.model)], []
    add = trainer._record.add

    def note_task(inputs, *args):
        tasks.append(inputs["task"])
        add(inputs, *args)

    trainer._record.add = note_task

    class Snapshot(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            snapshots.append(tables(parts.model))

    trainer.add_callback(Snapshot())
    trainer.train()
    assert tasks == ["collaborative", "content"] * 2
    for task, before, after in zip(tasks, snapshots, snapshots[1:], strict=False):
        changed = moved(before, after)
        assert changed and all(name.startswith("content_") == (task == "content") for name in changed), (task, changed)


def test_parts_of_the_loss_and_the_speed_are_in_the_log(base_tokenizer, tmp_path):
    trainer = trainer_of(
        "recommendation",
        make_parts(base_tokenizer),
        tmp_path,
        with_content=True,
        per_device_train_batch_size=4,
        num_train_epochs=1,
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {
        "recommendation_rec_loss", "recommendation_mr_loss", "content_lm_loss", "content_mr_loss", "tokens_per_second",
        "documents_per_second", "padding_share",
    } <= set(entry)  # fmt: skip


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_stops_before_anything_is_saved(where, base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer)
    settings = {"per_device_train_batch_size": 4, "save_strategy": "epoch", "num_train_epochs": 3}
    trainer = trainer_of("collaborative", parts, tmp_path, **settings)
    original, calls = trainer.compute_loss, []

    def poisoned(model, inputs, *args, **kwargs):
        calls.append(1)
        if len(calls) > 3 and where == "loss":
            with torch.no_grad():
                model.collaborative_item_embeddings.weight.fill_(float("nan"))
        loss = original(model, inputs, *args, **kwargs)
        if len(calls) == 4 and where == "gradient":
            model.collaborative_item_embeddings.weight.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    trainer.compute_loss = poisoned
    with pytest.raises(
        FloatingPointError, match=r"stopped at step \d.*nothing was saved over them. Lower the learning"
    ):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_resuming_gives_the_same_tables_to_the_last_bit(base_tokenizer, tmp_path):
    settings = {
        "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3,
        "optim": "adamw_torch", "save_total_limit": None,
    }  # fmt: skip
    whole = make_parts(base_tokenizer)
    trainer_of("recommendation", whole, tmp_path, with_content=True, **settings).train()
    steps = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert len(steps) == 12
    for step in (3, 4, 7):
        resumed = make_parts(base_tokenizer)
        trainer = trainer_of("recommendation", resumed, tmp_path / "again", with_content=True, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert not moved(tables(whole.model), tables(resumed.model)), step


def test_checkpoints_hold_no_pickled_arguments_and_no_backbone(base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer)
    parts.model.config.backbone_name_or_path = "somewhere/else"
    parts.model.attach_backbone(parts.model.backbone)
    trainer_of("collaborative", parts, tmp_path, save_strategy="epoch", num_train_epochs=1).train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert not (checkpoint / "training_args.bin").exists()
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if key.startswith("backbone.")]  # noqa: SIM118


def test_tables_go_back_to_dense_gradients_for_another_optimizer(base_tokenizer, tmp_path):
    parts = make_parts(base_tokenizer)
    settings = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    for further, expected in (
        ({}, RowAdamW),
        ({"optim": "sgd"}, torch.optim.SGD),
        ({"row_sparse": False}, torch.optim.AdamW),
    ):
        args = MutualRegularizationArguments(output_dir=str(tmp_path), **settings, **further)
        trainer = MutualRegularizationTrainer(
            parts.model, args, parts.collaborative, parts.collaborative_collator, parts.content, parts.content_collator
        )
        before = tables(parts.model)
        trainer.train()
        assert type(trainer.optimizer.optimizer) is expected
        assert not torch.equal(before["content_item_embeddings.weight"], parts.model.content_item_embeddings.weight)
