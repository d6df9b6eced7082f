"""Compiling a backbone's layers while it trains."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import CLLM4RecError


@contextlib.contextmanager
def compiled_layers(backbone: Any, wanted: bool) -> Iterator[None]:
    """While it lasts, the layers run as torch.compile's code: each kind is compiled once, for any number of tokens.

    Args:
        backbone: the language model.
        wanted: False leaves the layers as they are.

    Raises:
        CLLM4RecError: if the backbone does not say which of its modules are layers.
    """
    names = (backbone._no_split_modules or ()) if wanted else ()
    layers = [module for module in backbone.modules() if type(module).__name__ in names]
    if wanted and not layers:
        raise CLLM4RecError(
            f"{type(backbone).__name__} does not say which of its modules are layers (_no_split_modules), so they "
            "cannot be compiled; leave compile_layers out"
        )
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
