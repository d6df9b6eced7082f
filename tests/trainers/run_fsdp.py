"""Several training runs in the same processes: `python -m tests.trainers.run_fsdp DIRECTORY NAME…`.

A name is a kind of `run_processes`, after `fsdp-` with FSDP2 settings, after `resumed-` from its directory's checkpoint.
"""

import os
import sys
from pathlib import Path

import torch

from tests.trainers.run_processes import run

# what `accelerate launch` makes of fsdp2.yaml
ASKED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}


def run_all(directory: Path, names: list[str], batch: int):
    """Run one after the other, and return the last one's accelerator."""
    accelerator = None
    for name in names:
        for variable in ASKED:
            os.environ.pop(variable, None)
        how, _, kind = name.rpartition("-")
        if "fsdp" in how:
            os.environ.update(ASKED)
        (directory / name).mkdir(parents=True, exist_ok=True)
        accelerator = run(kind, directory / name, batch, resume="resumed" in how)
    return accelerator


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "PRETENDED_LOCAL_WORLD_SIZE" in os.environ:
        os.environ["LOCAL_WORLD_SIZE"] = os.environ["PRETENDED_LOCAL_WORLD_SIZE"]
    run_all(Path(sys.argv[1]), sys.argv[2:], 3).end_training()
