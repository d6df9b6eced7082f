"""Every command and every block of Python in the README runs."""

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from huggingface_hub import ModelCard

from tests.hub.conftest import client_environment
from tests.hub.fake_hub import TOKEN, FakeHub

ROOT = Path(__file__).parent.parent


def test_the_readme_from_top_to_bottom(tmp_path, interactions_file, saved_backbone):
    (tmp_path / "reviews.csv").write_text(interactions_file.read_text())
    ids = [f"i{k:02d}" for k in range(18)]
    items = {"item": ids, "title": [f"Title {k}" for k in ids], "description": ["Words about it."] * len(ids)}
    pl.DataFrame(items).write_csv(tmp_path / "items.csv")
    (tmp_path / "histories.jsonl").write_text('{"user": "x", "history": ["i01", "i02"]}\n')
    assert saved_backbone == tmp_path / "backbone"
    with FakeHub() as hub:
        environment = client_environment(hub.url, tmp_path / "home", TOKEN)
        command = [sys.executable, "-m", "tests.readme_runner", str(tmp_path)]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        assert result.stdout.strip().endswith("every block ran")
        files = hub.files("org/cllm4rec-instruments")
    # what was published names the results and nothing of this machine
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["org/instruments"] and card.data.eval_results
    assert {"training.yaml", "evaluation.json", "training_curves.png", "catalog_items.parquet"} <= set(files)
    for name, content in files.items():
        assert str(tmp_path).encode() not in content and b"prepared/" not in content, name


@pytest.mark.parametrize("name", ["movielens-100k", "musical-instruments"])
def test_the_shipped_settings_are_valid(name):
    from cllm4rec_hf.trainers.settings import parse_settings

    settings = parse_settings(["--config", str(ROOT / "examples" / "configs" / f"{name}.yaml")])
    assert settings.preset == "default" and settings.num_layers == 6


def test_every_command_of_the_makefile_names_files_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for path in re.findall(r"(?:examples|benchmarks)/[\w./-]+", makefile):
        assert (ROOT / path).is_file(), path


def test_the_changelog_knows_the_version():
    import cllm4rec_hf

    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text or f"## [{cllm4rec_hf.__version__}]" in text
