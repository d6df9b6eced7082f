"""The ready files of examples/accelerate_configs: accelerate reads them, and starts what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from cllm4rec_hf.cli import main
from cllm4rec_hf.trainers.fsdp import _sharding_plugin
from tests.test_cli import QUICK, flags
from tests.trainers.test_processes import same_tables

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "accelerate_configs"
# distributed type, processes, machines
EXPECTED = {
    "one_gpu": ("NO", 1, 1),
    "multi_gpu": ("MULTI_GPU", 8, 1),
    "fsdp2": ("FSDP", 8, 1),
    "multi_node": ("FSDP", 32, 4),
    "cpu_gloo": ("MULTI_GPU", 2, 1),
}


def launch_arguments(name):
    """What `accelerate launch --config_file` makes of a file."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "train.py"])
    return _validate_launch_command(arguments)[0]


def test_every_file_is_known():
    assert {path.stem for path in CONFIGS.iterdir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision == "no" and not config.use_cpu
    # accelerate itself passes over unknown names in here
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert not [key for key in config.fsdp_config if key not in known]
    # its command line is in its comment, with its own name
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# ") and f"accelerate launch --config_file examples/accelerate_configs/{name}.yaml" in text


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_started_trains_in_that_many_processes(name, monkeypatch):
    arguments = launch_arguments(name)
    # with neither of these, accelerate starts one process whatever num_processes says
    assert (arguments.multi_gpu or arguments.use_fsdp) == (EXPECTED[name][1] > 1)
    assert arguments.use_fsdp == (EXPECTED[name][0] == "FSDP")
    if arguments.use_fsdp:
        for variable, value in prepare_multi_gpu_env(arguments).items():
            if variable.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
                monkeypatch.setenv(variable, value)
        plugin = _sharding_plugin(SimpleNamespace(world_size=2, fsdp_plugin_args=None))
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward and plugin.activation_checkpointing


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["cpu_gloo", "fsdp2"])
def test_the_recipe_starts_from_it(name, prepared, saved_backbone, tmp_path):
    """Both batches of 4 are one of 8: a single process with batches of 4 would train other tables."""
    settings = QUICK | {"data": prepared, "backbone": saved_backbone}
    assert main(["train", *flags(settings | {"output": tmp_path / "one"})]) == 0
    output = tmp_path / "two"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", str(ROOT / "examples" / "train.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command += flags(settings | {"output": output, "batch_size": 4})
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-4000:]
    same_tables(load_file(tmp_path / "one" / "model.safetensors"), load_file(output / "model.safetensors"))
    logs = [json.loads((path / "training_log.json").read_text()) for path in (tmp_path / "one", output)]
    scores = [[e["eval_ndcg@100"] for e in log["recommendation"] if "eval_ndcg@100" in e] for log in logs]
    assert len(scores[0]) == 2 and scores[0] == pytest.approx(scores[1]) and 0 < scores[0][-1] < 1
    # one process speaks, and writes what one writes
    assert result.stderr.count("The checkpoint lies in") == 1
    assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
