"""The whole road by the command line: prepare → train → evaluate → recommend."""

import importlib.util
import json

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoTokenizer

from cllm4rec_hf import Catalog, CLLM4RecForRecommendation, CLLM4RecTokenizer
from cllm4rec_hf.cli import main
from tests.conftest import QUICK, make_backbone


def flags(settings):
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def test_train_evaluate_and_recommend(settings_file, prepared, tmp_path, capsys):
    assert main(["train", "--config", str(settings_file)]) == 0
    out = tmp_path / "out"
    files = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.yaml", "training_log.json"} <= files
    assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (out / "stages").exists()
    made = yaml.safe_load((out / "training.yaml").read_text())
    assert made["preset"] == "default" and made["max_length"] == 64
    log = json.loads((out / "training_log.json").read_text())
    assert list(log) == ["content", "pretraining", "recommendation"]
    assert [e["eval_score"] for e in log["recommendation"] if "eval_score" in e]

    model, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(model) is CLLM4RecForRecommendation and type(tokenizer) is CLLM4RecTokenizer
    assert model.config.warm_start == "ease" and model.config.history_rank > 0 and model.config.preset == "default"
    assert len(Catalog.from_pretrained(out)) == model.config.num_items

    assert main(["evaluate", "--model", str(out), "--data", str(prepared)]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["CLLM4Rec", "Popularity", "EASE"]
    report = json.loads((out / "evaluation.json").read_text())
    assert report["split"] == "test" and report["num_users"] == 24
    for name in ("recall@20", "recall@40", "ndcg@100"):
        low, high = report["intervals"][name]
        assert 0 <= low <= report[name] <= high <= 1
    assert set(report["baselines"]) == {"Popularity", "EASE"}
    card = ModelCard.load(out / "README.md")
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["recall@20"] == report["recall@20"]
    assert "| EASE |" in card.text and str(tmp_path) not in card.content
    # validation has a report of its own, and a card written by hand stays
    (out / "README.md").write_text("my own words")
    before = (out / "evaluation.json").read_text()
    assert main(["evaluate", "--model", str(out), "--data", str(prepared), "--split", "validation"]) == 0
    assert (out / "evaluation.json").read_text() == before and (out / "evaluation-validation.json").is_file()
    assert main(["evaluate", "--model", str(out), "--data", str(prepared)]) == 0
    assert (out / "README.md").read_text() == "my own words"
    capsys.readouterr()

    recommend = ["recommend", "--model", str(out), "--data", str(prepared)]
    assert main([*recommend, "--users", "u01,u02", "--top-k", "3"]) == 0
    assert "User u01 has interacted with" in capsys.readouterr().out
    assert main([*recommend, "--output", str(tmp_path / "recs.parquet"), "--top-k", "4"]) == 0
    assert pq.read_table(tmp_path / "recs.parquet").num_rows == 24 * 4
    assert main([*recommend, "--users", "nobody"]) == 2
    assert "'nobody'" in capsys.readouterr().err
    assert main([*recommend, "--users", "nobody,u01", "--unknown", "skip", "--top-k", "1"]) == 0
    (tmp_path / "h.jsonl").write_text('{"user": "new", "history": ["i00", "i01"]}\n')
    assert main(["recommend", "--model", str(out), "--histories", str(tmp_path / "h.jsonl"), "--top-k", "2"]) == 0
    assert "User new has interacted with i00; i01" in capsys.readouterr().out


def test_a_finished_run_is_not_repeated_and_another_one_not_overwritten(settings_file, tmp_path, capsys):
    assert main(["train", "--config", str(settings_file)]) == 0
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--config", str(settings_file)]) == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(["train", "--config", str(settings_file), "--batch_size", "4"]) == 2
    assert "batch_size: 8 there, 4 here" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    # so is a run on data that was prepared anew by other rules
    prepared = tmp_path / "prepared"
    source = ["--interactions", str(tmp_path / "interactions.csv"), "--rating-column", "rating"]
    anew = [*source, "--text-column", "review", "--k-core", "3", "--overwrite", "--output", str(prepared)]
    assert main(["prepare", *anew, "--seed", "1"]) == 0
    assert main(["train", "--config", str(settings_file)]) == 2
    assert "data_fingerprint" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(tmp_path / "out"), "--data", str(prepared)]) == 2
    assert "its test pairs may have been trained on" in capsys.readouterr().err
    assert main(["prepare", *anew]) == 0
    assert main(["train", "--config", str(settings_file)]) == 0
    # told to start again, it replaces what a run writes and nothing else
    (tmp_path / "out" / "notes.txt").write_text("mine")
    again = ["--recommendation_epochs", "1", "--overwrite", "true"]
    assert main(["train", "--config", str(settings_file), *again]) == 0
    assert yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())["recommendation_epochs"] == 1
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    # the same settings and seed give the same model
    assert main(["train", "--config", str(settings_file), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "stage",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("content", "pretraining")), "recommendation"],
)
def test_an_interrupted_run_goes_on_and_ends_the_same(stage, settings_file, tmp_path, monkeypatch):
    from cllm4rec_hf.trainers.recipe import Recipe
    from cllm4rec_hf.trainers.settings import parse_settings

    argv = ["--config", str(settings_file), "--content_epochs", "2", "--pretraining_epochs", "2"]
    assert main(["train", *argv, "--output", str(tmp_path / "whole")]) == 0
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    argv += ["--output", str(tmp_path / "broken")]

    class Interrupted(Exception):
        pass

    original = Recipe._run_stage

    def interrupt(self, name, directory, make):
        def make_with_interruption(where):
            trainer = make(where)
            save = trainer._save_checkpoint

            def save_and_stop(*args):
                save(*args)
                raise Interrupted

            trainer._save_checkpoint = save_and_stop
            return trainer

        original(self, name, directory, make_with_interruption if name == stage else make)

    monkeypatch.setattr(Recipe, "_run_stage", interrupt)
    with pytest.raises(Interrupted):
        Recipe(parse_settings(argv)).run()
    assert list((tmp_path / "broken").glob(f"stages/*-{stage}/checkpoint-*"))
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    monkeypatch.undo()
    Recipe(parse_settings(argv)).run()
    assert (tmp_path / "broken" / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("family", ["gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_the_road_is_the_same_for_other_families(family, prepared, base_tokenizer, tmp_path, capsys):
    make_backbone(family, vocab_size=len(base_tokenizer) + 6).save_pretrained(tmp_path / "other")
    base_tokenizer.save_pretrained(tmp_path / "other")
    settings = QUICK | {"recommendation_epochs": 1}
    paths = {"data": prepared, "backbone": tmp_path / "other", "output": tmp_path / "out"}
    assert main(["train", *flags(paths), *flags(settings)]) == 0
    assert main(["evaluate", "--model", str(tmp_path / "out"), "--data", str(prepared), "--no-baselines"]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["recall@20"] > 0
    recommend = ["recommend", "--model", str(tmp_path / "out"), "--data", str(prepared), "--users", "u01"]
    assert main([*recommend, "--top-k", "3"]) == 0
    assert "User u01 has interacted with" in capsys.readouterr().out


def test_divergence_is_one_line_and_exit_code_1(settings_file, tmp_path, capsys):
    assert main(["train", "--config", str(settings_file), "--content_stage_learning_rate", "1e38"]) == 1
    assert "error: Training stopped at step" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_paper_preset_is_the_papers(prepared, saved_backbone, tmp_path):
    settings = QUICK | {"preset": "paper", "recommendation_epochs": 1}
    paths = {"data": prepared, "backbone": saved_backbone, "output": tmp_path / "out"}
    assert main(["train", *flags(paths), *flags(settings)]) == 0
    model = CLLM4RecForRecommendation.from_pretrained(tmp_path / "out")
    config = model.config
    assert (config.preset, config.warm_start, config.history_rank) == ("paper", "none", 0)
    assert not config.center_hidden and not config.item_bias and not config.learn_logit_scale
    assert (config.logit_scale, config.lambda_c) == (1.0, 1.0)
    made = yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())
    assert made["mask_share"] == [0.2, 0.2] and made["anonymous_share"] == 0.0
    assert (made["pretraining_learning_rate"], made["recommendation_learning_rate"]) == (1e-3, 1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preset": "best"}, "Unknown preset 'best'; expected one of paper, default"),
        ({"max_length": 999}, "max_length 999 exceeds the backbone's context of 256 tokens"),
        ({"dtype": "int3"}, "Unknown dtype 'int3'"),
        ({"quantization": "int3"}, "quantization must be int8 or int4, or left out; got 'int3'"),
        ({"num_layers": 9}, "num_layers must lie between 1 and the backbone's 2 layers, got 9"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"recommendation_epochs": -1}, "recommendation_epochs must be 0 or more, got -1"),
        ({"lr_scheduler_type": "zigzag"}, "Unknown lr_scheduler_type 'zigzag'; expected linear"),
        ({"attn_implementation": "nonsense"}, "cannot be used: "),
        ({"max_length": 5}, "max_length 5 leaves no room for a single item"),
        ({"gradient_accumulation_steps": 999}, "fewer than the 999 micro-batches"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"warm_start": "magic"}, "warm_start must be none, auto, ease or svd; got 'magic'"),
        ({"warm_start": "none"}, "The history term needs a warm start"),
        ({"data": "nowhere"}, "nowhere holds no meta.json"),
    ],
)
def test_settings_that_cannot_be(settings, message, settings_file, capsys, tmp_path):
    assert main(["train", "--config", str(settings_file), *flags(settings)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_corrected_command_is_not_held_up_by_the_wrong_one(settings_file, tmp_path, capsys):
    assert main(["train", "--config", str(settings_file), "--attn_implementation", "nonsense"]) == 2
    assert main(["train", "--config", str(settings_file)]) == 0
    (tmp_path / "odd").mkdir()
    for text in ("", "a: [", "preset: x"):
        (tmp_path / "odd" / "training.yaml").write_text(text)
        arguments = ["train", "--config", str(settings_file), "--output", str(tmp_path / "odd"), "--overwrite", "true"]
        assert main(arguments) == 2
        assert "choose another --output" in capsys.readouterr().err
        assert (tmp_path / "odd" / "training.yaml").read_text() == text


def test_a_checkpoint_whose_saving_was_cut_short_is_passed_over(tmp_path):
    from cllm4rec_hf.trainers.recipe import _last_complete_checkpoint

    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_text("x")
    assert (tmp_path / "checkpoint-11").is_dir()
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    assert _last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-11").exists()
    assert _last_complete_checkpoint(tmp_path / "none") is None


def test_settings_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("bacth_size: 3\n")
    assert main(["train", "--config", str(tmp_path / "a.yaml")]) == 2
    assert "unknown setting 'bacth_size'; did you mean 'batch_size'?" in capsys.readouterr().err
    (tmp_path / "a.yaml").write_text("- 1\n")
    assert main(["train", "--config", str(tmp_path / "a.yaml")]) == 2
    assert main(["train", "--config", str(tmp_path / "gone.yaml")]) == 2
    assert main(["train", "--data", "x"]) == 2
    assert "No backbone given" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--no-such-flag"])
    assert exit_.value.code == 2


def test_an_output_directory_of_somebody_else_is_left_alone(settings_file, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    assert main(["train", "--config", str(settings_file), "--overwrite", "true"]) == 2
    assert "holds something else than a training run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_evaluating_on_other_data_is_an_error(settings_file, tmp_path, interactions_file, capsys):
    assert main(["train", "--config", str(settings_file)]) == 0
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join(interactions_file.read_text().splitlines()[:100]))
    arguments = ["prepare", "--interactions", str(fewer), "--k-core", "2", "--output", str(tmp_path / "other")]
    assert main(arguments) == 0
    assert main(["evaluate", "--model", str(tmp_path / "out"), "--data", str(tmp_path / "other")]) == 2
    assert "was trained on other" in capsys.readouterr().err
    for nothing in (tmp_path / "nothing", tmp_path / "other"):
        assert main(["evaluate", "--model", str(nothing), "--data", str(tmp_path / "other")]) == 2
        assert f"No checkpoint in {nothing}; expected a directory" in capsys.readouterr().err


def test_help_costs_nothing():
    import subprocess
    import sys

    code = (
        "import sys; from cllm4rec_hf.cli import main\n"
        "try: main(['prepare', '--help'])\n"
        "except SystemExit as e: print(e.code, [m for m in ('torch', 'polars', 'datasets', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "0 []", result.stdout + result.stderr


@pytest.mark.parametrize("name, library", [("int8", "torchao"), ("int4", "bitsandbytes")])
def test_a_quantized_backbone_trains_and_its_checkpoint_opens_without_the_library(
    name, library, settings_file, prepared, tmp_path, capsys, monkeypatch
):
    pytest.importorskip(library)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == library else find(wanted))
    assert main(["train", "--config", str(settings_file), "--quantization", name]) == 2
    assert f"needs the package {library}: pip install 'cllm4rec-hf[quantization]'" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", "--config", str(settings_file), "--quantization", name]) == 0
    assert yaml.safe_load((tmp_path / "out" / "training.yaml").read_text())["quantization"] == name
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == library else find(wanted))
    assert main(["evaluate", "--model", str(tmp_path / "out"), "--data", str(prepared)]) == 0
