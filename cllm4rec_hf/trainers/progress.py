"""What a training run tells about itself: the loss's parts, its speed, what it still takes, and its memory."""

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

_PARTS = ("lm_loss", "rec_loss", "mr_loss")


class Record:
    """Sums over the batches since the last log.

    Args:
        model: its configuration says what its passes read.
    """

    def __init__(self, model: Any):
        self.is_encoder_decoder = model.config.is_encoder_decoder
        self.begin()
        self.start_run()

    def begin(self) -> None:
        """Forget the batches so far."""
        self._sums: dict[str, Any] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self.pause()

    def pause(self) -> None:
        """Leave out of the speed what took place since the last batch, e.g. validation."""
        self._since = time.perf_counter()

    def start_run(self) -> None:
        """A run begins, or goes on from a checkpoint, with the next batch."""
        self._started: tuple[float, int] | None = None

    def add(self, inputs: dict[str, Any], outputs: Any, cells: int, step: int) -> None:
        """Count a batch of documents.

        Args:
            inputs: the model's input.
            outputs: what it returned.
            cells: tokens of the input that its layers computed, padding included.
            step: optimizer steps before this one.
        """
        if self._started is None:
            self._started = time.perf_counter(), step
        task, documents = inputs["task"], len(inputs["input_ids"])
        for part in _PARTS:
            if part in outputs:
                self._sums[f"{task}_{part}"] += outputs[part].detach() * documents
                self._counts[f"{task}_{part}"] += documents
        self._sums["tokens"] += inputs["attention_mask"].sum()
        self._counts["cells"] += cells
        if self.is_encoder_decoder and task != "recommendation":
            # the decoder reads the main text beside the encoder's prompt
            self._sums["tokens"] += (inputs["labels"] != -100).sum()
            self._counts["cells"] += inputs["labels"].numel()
        self._counts["documents"] += documents

    def __bool__(self) -> bool:
        return self._counts["documents"] > 0

    def summarize(self, state: Any, accelerator: Any) -> dict[str, float]:
        """Means and speeds since the last log, over all processes; a new record begins.

        Args:
            state: the trainer's state.
            accelerator: the running accelerator.

        Returns:
            The loss's parts, `tokens_per_second` (without padding), `documents_per_second`, `padding_share` (of the
            tokens that the layers computed), `eta_seconds` (to the end of this stage, validation included) and
            `peak_memory_mb` (of the largest process, or its device's, since the process began).
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self._add_up(accelerator)
        tokens = float(self._sums.pop("tokens"))
        logs = {name: round(float(total) / self._counts[name], 4) for name, total in self._sums.items()}
        logs["tokens_per_second"] = round(tokens / seconds, 1)
        logs["documents_per_second"] = round(self._counts["documents"] / seconds, 1)
        logs["padding_share"] = round(1 - tokens / self._counts["cells"], 3)
        started, first_step = self._started or (0.0, 0)
        if (done := state.global_step - first_step) > 0:
            seconds_a_step = (time.perf_counter() - started) / done
            logs["eta_seconds"] = round(seconds_a_step * (state.max_steps - state.global_step), 3)
        peak = torch.tensor([peak_memory(accelerator.device)], dtype=torch.float64)
        if accelerator.num_processes > 1:
            peak = accelerator.gather(peak.to(accelerator.device))
        logs["peak_memory_mb"] = round(float(peak.max()), 1)
        self.begin()
        return logs

    def _add_up(self, accelerator: Any) -> None:
        if accelerator.num_processes == 1:
            return
        for record in (self._sums, self._counts):
            names = sorted(record)
            values = torch.tensor([float(record[name]) for name in names], dtype=torch.float64)
            total = accelerator.reduce(values.to(accelerator.device), "sum").tolist()
            record.update(zip(names, total, strict=True))


def peak_memory(device: torch.device) -> float:
    """Highest memory in MB so far: of the device's allocator, or of the process on a CPU."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # unlike getrusage's, this peak does not begin with that of the process which started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:
        # no such account on Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def summary_line(logs: dict[str, float]) -> str:
    """Numbers of a log as one line, the time that is left in words."""
    logs = dict(logs)
    left = logs.pop("eta_seconds", None)
    line = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
    if left:
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        line += f"  {hours}:{minutes:02d}:{seconds:02d} left"
    return line
