"""Experiment trackers: which ones a run can report to, and where the curves of its stages lie."""

from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from ..errors import CLLM4RecError

RUNS_DIRECTORY = "runs"


def check_trackers(names: list[str]) -> None:
    """Make sure, before anything takes long, that `Trainer` will find the trackers.

    Args:
        names: values of `report_to`.

    Raises:
        CLLM4RecError: if one is unknown, or its package is not installed.
    """
    for name in [] if names in (["none"], ["all"]) else names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise CLLM4RecError(f"Unknown tracker {name!r} in report_to; expected none, all, or some of {known}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            # transformers would have PyTorch updated for TensorBoard
            reason = "its package is not installed" if name == "tensorboard" else str(error).splitlines()[0]
            remedy = f": pip install {name}" if name in ("tensorboard", "trackio") else ""
            raise CLLM4RecError(f"Cannot report to {name}, {reason}{remedy}") from error


def place_curves(trainer: Any, directory: Path, run: str = "") -> None:
    """Say where a trainer's TensorBoard files go, before it logs.

    `TensorBoardCallback` itself finds a place when training begins only; what is logged earlier, as the validation of
    the start, would take it to `runs` in the current directory.

    Args:
        trainer: a trainer that has not logged yet.
        directory: the directory, unless TENSORBOARD_LOGGING_DIR names another.
        run: name of a directory in it, for runs that share one.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(Path(callback.logging_dir or directory) / run)
