"""How a baseline lies on disk: config.json and model.safetensors, never a pickle."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CLLM4RecError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save(directory: str | os.PathLike, model_type: str, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a fitted baseline; each file is complete before it takes its name.

    Args:
        directory: where to; made if need be.
        model_type: name of the baseline.
        config: its settings, as JSON values.
        arrays: what was fitted.
    """
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f"{WEIGHTS_FILE}.part"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, beside)
    beside.replace(directory / WEIGHTS_FILE)
    beside = directory / f"{CONFIG_FILE}.part"
    text = json.dumps({"model_type": model_type, **config}, indent=2, sort_keys=True)
    beside.write_text(f"{text}\n", encoding="utf-8")
    beside.replace(directory / CONFIG_FILE)


def load(directory: str | os.PathLike, model_type: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `save` wrote.

    Args:
        directory: where from.
        model_type: name of the baseline that is expected there.

    Returns:
        Its settings and its arrays.

    Raises:
        CLLM4RecError: if a file is missing or cannot be read, or another kind of model lies there.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    directory = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise CLLM4RecError(f"{directory} holds no {name}; expected a directory written by save_pretrained")
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        arrays = load_file(directory / WEIGHTS_FILE)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CLLM4RecError(f"The model in {directory} cannot be read ({error}); save it again") from error
    found = config.pop("model_type", None)
    if found != model_type:
        raise CLLM4RecError(f"{directory} holds a model of type {found!r}; expected {model_type!r}")
    return config, arrays
