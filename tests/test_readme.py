"""Every command and every block of Python in the README runs."""

import re
import shlex
from pathlib import Path

import polars as pl
import pytest
import yaml

from cllm4rec_hf.cli import main
from tests.test_cli import QUICK

ROOT = Path(__file__).parent.parent


@pytest.fixture
def blocks():
    """Fenced blocks of the README as (language, text), in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_the_readme_from_top_to_bottom(blocks, tmp_path, interactions_file, saved_backbone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text(interactions_file.read_text())
    ids = [f"i{k:02d}" for k in range(18)]
    items = {"item": ids, "title": [f"Title {k}" for k in ids], "description": ["Words about it."] * len(ids)}
    pl.DataFrame(items).write_csv("items.csv")
    Path("ids.txt").write_text("u00\nu07\n")
    Path("histories.jsonl").write_text('{"user": "x", "history": ["i01", "i02"]}\n')
    names = {}
    for language, text in blocks:
        if language == "bash":
            for command in text.replace("\\\n", " ").strip().splitlines():
                program, *arguments = shlex.split(command)
                assert program == "cllm4rec"
                assert main(arguments) == 0, command
        elif language == "yaml":
            settings = yaml.safe_load(text) | QUICK | {"backbone": str(saved_backbone)}
            Path("settings.yaml").write_text(yaml.safe_dump(settings))
        else:
            assert language == "python"
            exec(compile(text, "README.md", "exec"), names)
    assert names["scores"].shape == (1, 18)
    assert Path("recs.parquet").is_file()


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
