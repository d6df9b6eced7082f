"""Two gloo processes write the file that one writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cllm4rec_hf.cli import main
from tests.inference.run_processes import FORMATS, make_recommender, make_requests, run

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.distributed


def launch(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_write_the_file_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    # what an interrupted run left behind is of no harm
    (two / "recs.csv.parts").mkdir()
    (two / "recs.csv.parts" / "7.arrow").write_text("left over")
    run(one)
    result = launch("-m", "tests.inference.run_processes", str(two))
    assert result.returncode == 0, result.stderr[-4000:]
    for suffix in FORMATS:
        assert (two / f"recs.{suffix}").read_bytes() == (one / f"recs.{suffix}").read_bytes()
    # no parts, and no file of a run that failed in one of the processes
    assert sorted(path.name for path in two.iterdir()) == ["recs.csv", "recs.parquet", "said-0.json", "said-1.json"]
    first, second = (json.loads((two / f"said-{number}.json").read_text()) for number in (0, 1))
    assert [said[suffix] for said in (first, second) for suffix in FORMATS] == [20] * 4
    assert second["second"][0] == "UnknownIdError" and "'gone'" in second["second"][1]
    assert first["second"][0] == "OtherProcessError"
    assert "Process 1 of 2 failed" in first["second"][1] and "'gone'" in first["second"][1]
    assert first["first"] == ["OSError", "No space left on device"]
    assert second["first"][0] == "OtherProcessError" and "Process 0 of 2" in second["first"][1]


def test_the_command_in_two_processes(tmp_path, capsys):
    make_recommender().save_pretrained(tmp_path / "model")
    histories = tmp_path / "histories.jsonl"
    requests = make_requests(2_500)
    rows = [{"user": request.user, "history": request.history} for request in requests]
    histories.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["recommend", "--model", str(tmp_path / "model"), "--histories", str(histories), "--top-k", "3"]
    assert main([*command, "--output", str(tmp_path / "one.parquet")]) == 0
    said = capsys.readouterr().out
    assert said == f"Recommendations for 2,500 users written to {tmp_path / 'one.parquet'}\n"
    # three windows: two for the first process, one for the second
    result = launch("-m", "cllm4rec_hf.cli", *command, "--output", str(tmp_path / "two.parquet"))
    assert result.returncode == 0, result.stderr[-4000:]
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert result.stdout == said.replace("one.parquet", "two.parquet")
