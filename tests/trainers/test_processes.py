"""Two gloo processes do what one does with the same global batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.distributed


def run(kind, output, batch, processes, *more):
    output.mkdir(exist_ok=True)
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *start, "-m", "tests.trainers.run_processes", kind, str(output), str(batch), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((output / "result.json").read_text()), load_file(output / "tables.safetensors")


def same_tables(tables, others):
    assert tables.keys() == others.keys()
    for name, table in tables.items():
        torch.testing.assert_close(others[name], table, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def same(one, other):
    (first, tables), (second, others) = one, other
    assert (first["processes"], second["processes"]) == (1, 2)
    same_tables(tables, others)
    assert len(first["log"]) == len(second["log"])
    for a, b in zip(first["log"], second["log"], strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"padding_share", "total_flos"}:
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-4), name


# 8 documents in global batches of 6: uneven last ones
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("dense", "clipped", "sampled", "paper")]


@pytest.mark.parametrize("kind", ["plain", "recommendation", *SLOW])
def test_two_processes_are_one(kind, tmp_path):
    one = run(kind, tmp_path / "one", 6, 1)
    two = run(kind, tmp_path / "two", 3, 2)
    same(one, two)
    losses = [entry["loss"] for entry in one[0]["log"] if "loss" in entry]
    assert len(losses) >= 6 and losses[-1] != losses[0]
    assert two[0]["wrapped"] == ("DistributedDataParallel" if kind != "paper" else "CLLM4RecForRecommendation")
    if kind == "recommendation":
        assert [entry["eval_recall@2"] for entry in one[0]["log"] if "eval_recall@2" in entry]


def test_resuming_with_another_number_of_processes(tmp_path):
    whole = run("plain", tmp_path / "run", 6, 1)
    # its first checkpoint goes on in two processes
    first, *later = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in later:
        shutil.rmtree(path)
    steps = int(first.name.rpartition("-")[2])
    resumed = run("plain", tmp_path / "run", 3, 2, "resume")
    assert 0 < steps < whole[0]["log"][-1]["step"] == resumed[0]["log"][-1]["step"]
    same_tables(whole[1], resumed[1])


# tests/test_accelerate_configs.py starts the recipe in two processes, too
@pytest.mark.slow
def test_the_recipe_in_two_processes(prepared, saved_backbone, tmp_path):
    from tests.conftest import QUICK
    from tests.test_cli import flags

    found = []
    for number, batch in ((1, 8), (2, 4)):
        output = tmp_path / f"out{number}"
        settings = QUICK | {"batch_size": batch, "data": prepared, "backbone": saved_backbone, "output": output}
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if number == 2 else []
        command = [sys.executable, *start, str(ROOT / "examples" / "train.py"), *flags(settings)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-4000:]
        found.append(load_file(output / "model.safetensors"))
        files = {path.name for path in output.iterdir()}
        assert "stages" not in files and not [name for name in files if name.endswith(".part")]
        # one process speaks
        assert result.stderr.count("The checkpoint lies in") == 1
    same_tables(*found)
    # an error is said once, and ends all
    command = [*command, "--batch_size", "5"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0 and "holds a run with other settings" in result.stderr
