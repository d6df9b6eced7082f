"""Work that several processes share: who they are, and steps that fail in all of them or in none."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..errors import CLLM4RecError

T = TypeVar("T")


class OtherProcessError(CLLM4RecError):
    """Another process failed, so that this one stopped."""


def launched_processes() -> Any:
    """The processes that `accelerate launch` or torchrun started, one by default: accelerate's `PartialState`."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def together(processes: Any, step: Callable[[], T]) -> list[T]:
    """Run a step in every process, and wait for all; nobody goes on, or waits for ever, when it failed in one of them.

    Args:
        processes: accelerate's `PartialState`.
        step: what each does; returns something small.

    Returns:
        What it returned in each process, in the order of their numbers.

    Raises:
        OtherProcessError: where it failed in another process; the process itself raises its own error.
    """
    failure: Exception | None = None
    result: Any = None
    try:
        result = step()
    except Exception as error:
        failure = error
    answers = [(result, None if failure is None else f"{type(failure).__name__}: {failure}")]
    if processes.num_processes > 1:
        from accelerate.utils import gather_object

        answers = gather_object(answers)
    if failure is not None:
        raise failure
    for number, (_, text) in enumerate(answers):
        if text is not None:
            raise OtherProcessError(
                f"Process {number} of {processes.num_processes} failed, so nothing is done: {text}"
            )
    return [result for result, _ in answers]
