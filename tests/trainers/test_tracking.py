"""What a run reports to experiment trackers, and where their files lie."""

import importlib.machinery
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import types

import pytest

from cllm4rec_hf.cli import main
from cllm4rec_hf.trainers.arguments import RecommendationArguments
from cllm4rec_hf.trainers.recommendation import RecommendationTrainer
from tests.trainers.parts import Judge, make_parts

SPEED = {"tokens_per_second", "documents_per_second", "padding_share", "eta_seconds", "peak_memory_mb"}
PARTS = {
    "content": {"content_lm_loss"},
    "pretraining": {"collaborative_lm_loss", "collaborative_mr_loss", "content_lm_loss", "content_mr_loss"},
    "recommendation": {"recommendation_rec_loss", "recommendation_mr_loss", "content_lm_loss", "content_mr_loss"},
}
METRICS = {"eval/recall@20", "eval/recall@40", "eval/ndcg@100", "eval/score"}


def curves(directory):
    """Values of every scalar by step, in the one run that a directory holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def train(settings_file, *flags):
    return main(["train", "--config", str(settings_file), *flags])


def test_tensorboard_has_the_curves_of_every_stage(settings_file, tmp_path, monkeypatch, caplog, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with caplog.at_level(logging.INFO):
        assert train(settings_file, "--report_to", "tensorboard", "--pretraining_epochs", "2") == 0
    out = tmp_path / "out"
    assert not (out / "stages").exists() and not (tmp_path / "runs").exists()
    assert {path.name for path in (out / "runs").iterdir()} == set(PARTS)
    log = json.loads((out / "training_log.json").read_text())
    for stage, parts in PARTS.items():
        found = curves(out / "runs" / stage)
        assert {f"train/{name}" for name in SPEED | parts | {"loss"}} <= found.keys()
        assert found.keys() >= METRICS or stage != "recommendation"
        # every stage's steps are its own, and the values are those of the log
        for entry in log[stage]:
            for name, value in entry.items():
                tag = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                if name not in ("step", "epoch") and not name.startswith("train_") and name != "total_flos":
                    assert found[tag][entry["step"]] == pytest.approx(value, rel=1e-6), (stage, name)
        assert 0 <= min(found["train/padding_share"].values()) <= max(found["train/padding_share"].values()) < 1
        assert min(found["train/tokens_per_second"].values()) > 0 < min(found["train/peak_memory_mb"].values())
        assert list(found["train/eta_seconds"].values())[-1] == 0
    assert 0 in curves(out / "runs" / "recommendation")["eval/score"]

    # the line that is shown: time is left after the first epoch of two, and none after the last
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("RecommendationTrainer epoch")]
    first, last = (next(line for line in lines if f"epoch {epoch} " in line) for epoch in (1, 2))
    for name in SPEED - {"eta_seconds"}:
        assert f"{name} " in first and f"{name} " in last
    assert re.search(r"\d:\d\d:\d\d left$", first) and "left" not in last

    # curves are no part of what tells a run from another, nor in the way of the next one
    capsys.readouterr()
    assert train(settings_file) == 2
    assert "pretraining_epochs: 2.0 there, 1 here" in capsys.readouterr().err
    before = {path.name for path in (out / "runs" / "pretraining").iterdir()}
    (out / "runs" / "mine").mkdir()
    again = ("--overwrite", "true", "--report_to", "tensorboard", "--content_epochs", "0")
    assert train(settings_file, *again) == 0
    assert {path.name for path in (out / "runs").iterdir()} == {"pretraining", "recommendation", "mine"}
    assert not before & {path.name for path in (out / "runs" / "pretraining").iterdir()}


def test_a_directory_of_tensorboard_s_own_holds_a_run_a_stage_and_an_attempt_s_curves_go(
    settings_file, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    # as an attempt that diverged leaves them
    left = tmp_path / "out" / "runs" / "content" / "events.out.tfevents.1"
    left.parent.mkdir(parents=True)
    left.write_text("x")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    assert train(settings_file, "--report_to", "tensorboard", "--logging_steps", "1") == 0
    assert not left.exists()
    steps = {stage: len(curves(tmp_path / "elsewhere" / stage)["train/loss"]) for stage in PARTS}
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    for stage, count in steps.items():
        assert count == log[stage][-1]["step"] > 2


def test_a_trainer_without_the_recipe_keeps_its_curves_in_its_output_directory(base_tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    parts = make_parts(base_tokenizer)
    args = RecommendationArguments(
        str(tmp_path / "out"), num_train_epochs=1, report_to="tensorboard", use_cpu=True, disable_tqdm=True
    )

    trainer = RecommendationTrainer(
        parts.model, args, parts.recommendation, parts.recommendation_collator, evaluator=Judge([0.25], [0.25], [0.25])
    )
    trainer.train()
    assert not (tmp_path / "runs").exists()
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert curves(run)["eval/recall@20"] == {0: 0.25, 1: 0.25}


@pytest.fixture
def fake_trackio(monkeypatch):
    """A module of that name, as `TrackioCallback` uses it, that writes down what it is told."""
    calls = []
    fake = types.ModuleType("trackio")
    fake.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    fake.__version__ = "0"
    fake.config = {}
    fake.init = lambda **kwargs: calls.append(("init", kwargs))
    fake.log = lambda values: calls.append(("log", values))
    fake.finish = lambda: calls.append(("finish", None))
    space = types.SimpleNamespace(get=lambda: None)
    fake.context_vars = types.SimpleNamespace(current_space_id=space)
    fake.config = type("Config", (dict,), {"update": lambda self, values, **kwargs: None})()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return calls


def test_trackio_is_given_a_run_a_stage(fake_trackio, settings_file):
    assert train(settings_file, "--report_to", "trackio") == 0
    starts = [values for kind, values in fake_trackio if kind == "init"]
    assert [(start["project"], start["name"]) for start in starts] == [("out", f"out-{stage}") for stage in PARTS]
    assert all(start["space_id"] is None for start in starts)
    assert [kind for kind, _ in fake_trackio].count("finish") == 3
    logged: dict = {}
    for kind, values in fake_trackio:
        if kind == "init":
            logged[values["name"]] = set()
            here = logged[values["name"]]
        elif kind == "log":
            here.update(values)
    for stage, parts in PARTS.items():
        assert {f"train/{name}" for name in SPEED | parts | {"loss", "global_step"}} <= logged[f"out-{stage}"]
    assert logged["out-recommendation"] >= METRICS


def test_trackio_itself_keeps_them(settings_file, tmp_path):
    pytest.importorskip("trackio")
    code = (
        "import json; from cllm4rec_hf.cli import main\n"
        f"assert main(['train', '--config', {str(settings_file)!r}, '--report_to', 'trackio']) == 0\n"
        "from trackio import Api; from trackio.sqlite_storage import SQLiteStorage\n"
        "runs = {run.name: SQLiteStorage.get_logs('out', run.name, run_id=run.id) for run in Api().runs('out')}\n"
        "print(json.dumps({name: sorted({key for log in logs for key in log}) for name, logs in runs.items()}))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])
    assert set(runs) == {f"out-{stage}" for stage in PARTS}
    for stage, parts in PARTS.items():
        assert {f"train/{name}" for name in SPEED | parts | {"loss"}} <= set(runs[f"out-{stage}"])
    assert set(runs["out-recommendation"]) >= METRICS


@pytest.mark.parametrize(
    "names, message",
    [
        ("tensorboard", "Cannot report to tensorboard, its package is not installed: pip install tensorboard"),
        ("trackio", "requires trackio to be installed"),
        ("nonsense", "Unknown tracker 'nonsense' in report_to; expected none, all, or some of"),
        ("none,tensorboard", "Unknown tracker 'none' in report_to"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line_at_once(names, message, settings_file, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    gone = ("tensorboard", "tensorboardX", "trackio")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name in gone else find(name, *args))
    assert train(settings_file, "--report_to", names) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "out").exists()
