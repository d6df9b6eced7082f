"""Checkpoints of every released version load and answer what they answered then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.make_checkpoint import FAMILIES, answers

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINTS = sorted(FIXTURES.glob("checkpoint-*/*"))


def close(found, expected):
    assert found["input_ids"] == expected["input_ids"]
    for name in ("recommendation", "collaborative", "content"):
        assert found[name] == pytest.approx(expected[name], abs=2e-5, rel=1e-5)
    for one, other in zip(found["recommendations"], expected["recommendations"], strict=True):
        assert [(e["item"], e["title"]) for e in one] == [(e["item"], e["title"]) for e in other]
        assert [e["score"] for e in one] == pytest.approx([e["score"] for e in other], abs=1e-4)


@pytest.mark.parametrize("directory", CHECKPOINTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_old_checkpoint_answers_as_ever(directory):
    close(answers(directory), json.loads((directory / "answers.json").read_text()))


def test_every_version_has_its_fixture_and_they_stay_small():
    import cllm4rec_hf

    assert len(CHECKPOINTS) >= len(FAMILIES)
    assert (FIXTURES / f"checkpoint-{cllm4rec_hf.__version__}").is_dir()
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 2**20


OWN_CODE = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "cllm4rec_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel, AutoTokenizer

for name in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    said = json.load(open(name + "/answers.json"))
    ids = tokenizer("<user_1> has interacted with <item_2> <item_6>, <user_1> will interact with", return_tensors="pt")
    assert ids["input_ids"].tolist() == said["input_ids"]
    with torch.no_grad():
        logits = model(ids["input_ids"]).logits.flatten()[-40:]
    torch.testing.assert_close(logits, torch.tensor(said["recommendation"]), atol=2e-5, rtol=1e-5)
print("equal")
"""


def test_the_code_that_travels_with_an_old_checkpoint_still_runs(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", OWN_CODE, *(str(path) for path in CHECKPOINTS if list(path.glob("*.py")))],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert result.stdout.strip() == "equal", result.stderr[-3000:]
