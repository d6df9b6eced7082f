"""Settings of the recipe that the trainers take as they are."""

import warnings

import pytest
import yaml

from cllm4rec_hf.cli import main
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.trainers.arguments import CLLM4RecTrainingArguments, ContentArguments
from cllm4rec_hf.trainers.content import ContentTrainer
from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.settings import RecipeSettings, parse_settings
from tests.conftest import QUICK
from tests.test_cli import flags
from tests.trainers.parts import make_parts

# value other than the default, and whether it decides the result
PASSED = {
    "row_sparse": (False, True),
    "sampled_softmax_above": (3, True),
    "sampled_softmax_size": (7, True),
    "tokens_per_pass": (40, False),
    "compile_layers": (True, False),
    "dataloader_num_workers": (1, False),
    "activation_checkpointing": (True, False),
    "logging_steps": (2, False),
}


@pytest.fixture
def argv(tmp_path, prepared, saved_backbone):
    settings = {"data": prepared, "output": tmp_path / "out", "backbone": saved_backbone, **QUICK}
    return flags({**settings, "recommendation_epochs": 1})


def arguments_of_stages(argv, monkeypatch):
    """The arguments that every stage's trainer got; nothing is trained."""
    found = {}
    monkeypatch.setattr(
        Recipe, "_run_stage", lambda self, name, directory, stage: found.update({name: stage(directory).args})
    )
    monkeypatch.setattr(Recipe, "_finish", lambda self: None)
    with warnings.catch_warnings():
        # of deprecated names, too
        warnings.simplefilter("error", FutureWarning)
        Recipe(parse_settings(argv)).run()
    assert list(found) == ["content", "pretraining", "recommendation"]
    return found


def test_each_reaches_every_trainer(argv, monkeypatch, tmp_path):
    changed = flags({name: value for name, (value, _) in PASSED.items() if name != "row_sparse"})
    found = arguments_of_stages([*argv, *changed, "--row_sparse", "false"], monkeypatch)
    for args in found.values():
        for name, (value, _) in PASSED.items():
            # what 5.20 calls it, and 5.24 still shows
            name = "gradient_checkpointing" if name == "activation_checkpointing" else name
            assert getattr(args, name) == value, name
        assert args.logging_strategy == "steps"
    # one that is left out is the trainers' own
    for args in arguments_of_stages([*argv, "--output", str(tmp_path / "other")], monkeypatch).values():
        own = CLLM4RecTrainingArguments(output_dir=str(tmp_path))
        for name in PASSED:
            name = "gradient_checkpointing" if name == "activation_checkpointing" else name
            assert getattr(args, name) == getattr(own, name), name
        assert args.logging_strategy == own.logging_strategy == "epoch"


def test_what_decides_the_result_tells_runs_apart_and_speed_does_not():
    plain = RecipeSettings(backbone="b").what_made_it()
    for name, (value, decides) in PASSED.items():
        made = RecipeSettings(backbone="b", **{name: value}).what_made_it()
        assert (made != plain) == (name in plain) == decides, name


@pytest.mark.slow
def test_speed_changes_the_tables_by_rounding_alone_and_a_run_that_knew_fewer_settings_is_finished(argv, tmp_path):
    from safetensors.torch import load_file

    out, faster = tmp_path / "out", tmp_path / "faster"
    assert main(["train", *argv]) == 0
    speed = {name: value for name, (value, decides) in PASSED.items() if not decides}
    assert main(["train", *argv, "--output", str(faster), *flags(speed)]) == 0
    first, second = (load_file(path / "model.safetensors") for path in (out, faster))
    for name, table in first.items():
        assert (table - second[name]).abs().max() < 2e-5, name
    # written before there were such settings
    file = out / "training.yaml"
    made = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k not in PASSED}
    file.write_text(yaml.safe_dump(made))
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert main(["train", *argv]) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    assert main(["train", *argv, "--sampled_softmax_size", "7"]) == 2


@pytest.mark.parametrize(
    "name, value, least",
    [
        ("tokens_per_pass", 0, 1),
        ("logging_steps", 0, 1),
        ("sampled_softmax_size", 0, 1),
        ("sampled_softmax_above", -1, 0),
        ("dataloader_num_workers", -1, 0),
    ],
)
def test_values_that_cannot_be(name, value, least):
    with pytest.raises(CLLM4RecError, match=f"{name} must be {least} or more, got {value}"):
        RecipeSettings(backbone="b", **{name: value})


def test_help_shows_them(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in PASSED)


def test_checkpointing_goes_by_the_name_that_transformers_has(monkeypatch):
    settings = RecipeSettings(backbone="b", activation_checkpointing=True)
    assert settings.of_trainers().keys() <= CLLM4RecTrainingArguments.__dataclass_fields__.keys()
    for known in ("gradient_checkpointing", "activation_checkpointing"):
        version = type("TrainingArguments", (), {"__dataclass_fields__": {known: None}})
        monkeypatch.setattr("cllm4rec_hf.trainers.settings.TrainingArguments", version)
        assert settings.of_trainers()[known] is True


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointed_layers_are_computed_again_in_the_backward_pass(checkpointed, base_tokenizer, tmp_path):
    parts, calls = make_parts(base_tokenizer), []
    settings = RecipeSettings(backbone="b", activation_checkpointing=checkpointed).of_trainers()
    args = ContentArguments(
        str(tmp_path), num_train_epochs=1, use_cpu=True, disable_tqdm=True, save_strategy="no", **settings
    )
    trainer = ContentTrainer(parts.model, args, parts.content, parts.content_collator)
    # inside of a layer, since checkpointing wraps the layer itself
    for layer in parts.model.backbone.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    trainer.train()
    assert len(calls) == trainer.state.global_step * 2 * (1 + checkpointed)
