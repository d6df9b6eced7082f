"""Two gloo processes with FSDP2 settings do what one process does, and each holds half of the backbone's layers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.trainers.fsdp import _sharding_plugin, shard_backbone
from tests.trainers.parts import make_parts
from tests.trainers.run_fsdp import ASKED, run_all
from tests.trainers.test_processes import same, same_tables

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.distributed

# without its part in the item logits nothing passes through the backbone while it is whole for ranking
KINDS = ("recommendation", "history", "dense", "clipped", "sampled", "adapters")
# their tiny gradients differ with the padding of a batch, so that they are compared with two processes, too
FAMILIES = ("t5", "gpt2")


def checkpoints(directory):
    return sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def keep_first(directory, copy):
    shutil.copytree(directory, copy)
    for path in checkpoints(copy)[1:]:
        shutil.rmtree(path)


def launch(directory, *names, processes=2, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "tests.trainers.run_fsdp", str(directory), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-4000:]


def result(directory):
    return json.loads((directory / "result.json").read_text()), load_file(directory / "tables.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of the runs in one process, and of those in two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_all(one, [*KINDS, "plain"], 6)
    keep_first(one / "plain", two / "resumed-fsdp-plain")
    names = [f"fsdp-{kind}" for kind in (*KINDS, *FAMILIES, "plain", "drifted")]
    launch(two, *names, *FAMILIES, "resumed-fsdp-plain")
    keep_first(two / "fsdp-plain", one / "resumed-plain")
    run_all(one, ["resumed-plain"], 6)
    torch.set_num_threads(threads)
    return one, two


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_layers_change_nothing(runs, kind):
    one, two = result(runs[0] / kind), result(runs[1] / f"fsdp-{kind}")
    same(one, two)
    # adapters learn, and stay whole
    assert one[0]["layers_held"] == 1 and two[0]["layers_held"] == pytest.approx(0.5, abs=0.02 * (kind == "adapters"))
    # nothing is left for DistributedDataParallel
    assert two[0]["wrapped"] == ("PeftModel" if kind == "adapters" else "CLLM4RecForRecommendation")


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_sharded(runs, family):
    plain, sharded = result(runs[1] / family), result(runs[1] / f"fsdp-{family}")
    same_tables(plain[1], sharded[1])
    assert plain[0]["layers_held"] == 1 and sharded[0]["layers_held"] == 0.5


def test_checkpoints_go_on_with_and_without_sharding(runs):
    one, two = runs
    mine, theirs = (
        load_file(checkpoints(path)[0] / "model.safetensors") for path in (two / "fsdp-plain", one / "plain")
    )
    # this model's backbone has no home, so that its checkpoints hold it, and hold it whole
    assert [name for name in mine if "layers.0" in name]
    same_tables(theirs, mine)
    expected = result(one / "plain")[1]
    same_tables(expected, result(two / "resumed-fsdp-plain")[1])
    same_tables(expected, result(one / "resumed-plain")[1])


def test_processes_start_from_the_first_ones_tables(runs):
    same(result(runs[0] / "plain"), result(runs[1] / "fsdp-drifted"))


@pytest.mark.slow
def test_every_machine_holds_all_shards(tmp_path):
    """Four processes that believe to be on two machines: halves of layers, not quarters."""
    launch(tmp_path, "plain", "fsdp-plain", processes=4, PRETENDED_LOCAL_WORLD_SIZE="2")
    plain, sharded = result(tmp_path / "plain"), result(tmp_path / "fsdp-plain")
    assert plain[0]["processes"] == sharded[0]["processes"] == 4 and sharded[0]["layers_held"] == 0.5
    same_tables(plain[1], sharded[1])


def asking(monkeypatch, **more):
    for name, value in {**ASKED, **more}.items():
        monkeypatch.setenv(name, value)
    return SimpleNamespace(world_size=2, fsdp_plugin_args=None)


def test_settings_that_are_not_supported(monkeypatch):
    assert _sharding_plugin(asking(monkeypatch)).activation_checkpointing
    assert _sharding_plugin(SimpleNamespace(world_size=1, fsdp_plugin_args=None)) is None
    with pytest.raises(CLLM4RecError, match="set fsdp_version: 2"):
        _sharding_plugin(asking(monkeypatch, FSDP_VERSION="1"))
    with pytest.raises(CLLM4RecError, match="fsdp_cpu_ram_efficient_loading: false"):
        _sharding_plugin(asking(monkeypatch, FSDP_CPU_RAM_EFFICIENT_LOADING="true"))


def test_backbones_that_cannot_be_sharded(monkeypatch, base_tokenizer):
    model, plugin = make_parts(base_tokenizer).model, _sharding_plugin(asking(monkeypatch))
    assert model._no_split_modules == {"LlamaDecoderLayer"}
    model.backbone._no_split_modules = None
    with pytest.raises(CLLM4RecError, match="does not say which of its modules are layers"):
        shard_backbone(model, plugin, torch.device("cpu"))
    model.backbone._no_split_modules = ["LlamaDecoderLayer"]
    model.backbone.requires_grad_(True)
    with pytest.raises(CLLM4RecError, match="trains as a whole"):
        shard_backbone(model, plugin, torch.device("cpu"))
    monkeypatch.setattr("cllm4rec_hf.trainers.fsdp.is_quantized", lambda backbone: True)
    with pytest.raises(CLLM4RecError, match="does not shard a quantized backbone"):
        shard_backbone(model, plugin, torch.device("cpu"))
