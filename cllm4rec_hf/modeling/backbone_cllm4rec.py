"""Finding, loading and cutting a pretrained backbone language model."""

import contextlib
import copy
import functools
import importlib.util
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GgufConfig, PreTrainedModel
from transformers.utils import resolve_revision

from .attention_cllm4rec import choose_attention
from .quantization_cllm4rec import check_quantized, quantize_backbone

PACKAGE_SCHEME = "package://"

_HUB_KEYWORDS = ("revision", "gguf_file", "cache_dir", "force_download", "local_files_only", "token")
_LAYER_COUNT_FIELDS = ("num_hidden_layers", "num_decoder_layers")


def locate_backbone(name_or_path: str) -> tuple[str, str | None]:
    """Translate a backbone's name into the arguments of `from_pretrained`.

    Args:
        name_or_path: Hub id, directory, path of a GGUF file, `org/repo/file.gguf`, or `package://PACKAGE/FILE`.

    Returns:
        The name or directory, and the GGUF file name in it or `None`.

    Raises:
        FileNotFoundError: if a GGUF file or a package's file does not exist.
        ModuleNotFoundError: if the package is not installed.
    """
    path = name_or_path
    if path.startswith(PACKAGE_SCHEME):
        package, _, file = path.removeprefix(PACKAGE_SCHEME).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"The backbone {name_or_path!r} lies in the package {package!r}, which is not installed. "
                f"Install it: pip install {package.replace('_', '-')}"
            )
        path = os.path.join(next(iter(spec.submodule_search_locations)), file)
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"The package {package!r} is installed but holds no file {file!r} ({name_or_path!r})"
            )
    if not path.endswith(".gguf"):
        return path, None
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"Reading the GGUF file {name_or_path!r} needs the package gguf: pip install 'cllm4rec-hf[gguf]'"
        )
    directory, file = os.path.split(path)
    if not os.path.isfile(path) and (os.path.isabs(path) or directory.count("/") != 1):
        raise FileNotFoundError(
            f"No GGUF file at {name_or_path!r}; expected a path, or 'org/repo/file.gguf' on the Hub"
        )
    return directory or ".", file


def is_local_backbone(name_or_path: str) -> bool:
    """Whether a backbone's name means something on this machine only."""
    if name_or_path.startswith(PACKAGE_SCHEME):
        return False
    return os.path.isabs(name_or_path) or name_or_path.startswith((".", "~")) or os.path.exists(name_or_path)


def pin_revision(name_or_path: str, revision: str | None, options: dict[str, Any]) -> str | None:
    """The revision to load a backbone at, and to record.

    Args:
        name_or_path: see `locate_backbone`.
        revision: what the user asked for; is returned as it is.
        options: `token`, `cache_dir` and `local_files_only` of the download.

    Returns:
        The present commit of a Hub repository's main branch if nothing was asked for; None if it has no such thing.
    """
    if revision is not None or name_or_path.startswith(PACKAGE_SCHEME) or is_local_backbone(name_or_path):
        return revision
    hub = {key: options[key] for key in ("token", "cache_dir", "local_files_only") if key in options}
    path, _ = locate_backbone(name_or_path)
    return getattr(resolve_revision(path, **hub), "resolved", None)


def load_backbone(
    name_or_path: str,
    revision: str | None = None,
    num_layers: int | None = None,
    config: Any = None,
    dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a pretrained language model with its head, optionally only its first layers.

    Args:
        name_or_path: see `locate_backbone`.
        revision: revision of a Hub repository.
        num_layers: keep only the first so many layers (encoder and decoder alike); `None` keeps all.
        config: configuration to load with instead of the stored one, as recorded in a checkpoint.
        dtype: dtype of the weights; `None` or `"auto"` takes the stored one, float32 for GGUF files.
        kwargs: passed on to `from_pretrained` (`attn_implementation`, `quantization_config`, `cache_dir`, `token`, …).
            Without `attn_implementation`, the one that measures best is chosen.

    Returns:
        A causal or sequence-to-sequence language model.

    Raises:
        ValueError: if it has fewer than `num_layers` layers, weights are missing or of other sizes, or a quantization
            finds nothing to quantize.
    """
    path, gguf_file = locate_backbone(name_or_path)
    quantization = kwargs.pop("quantization_config", None)
    if gguf_file is not None:
        kwargs["gguf_file"] = gguf_file
    if revision is not None:
        kwargs["revision"] = revision
    is_cut = config is not None or num_layers is not None
    hub = {key: value for key, value in kwargs.items() if key in _HUB_KEYWORDS}
    if config is None:
        config = load_backbone_config(name_or_path, num_layers=num_layers, **hub)
    elif gguf_file is None:
        # a checkpoint does not record how its backbone's weights are packed: their home does
        packed = getattr(AutoConfig.from_pretrained(path, **hub), "quantization_config", None)
        if packed is not None:
            config = copy.deepcopy(config)
            config.quantization_config = packed
    if gguf_file is not None:
        # packed GGUF weights would be multiplied in float32 by a kernel of their own, and could not be saved
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
        if dtype in (None, "auto"):
            dtype = torch.float32
    elif quantization is not None:
        kwargs["quantization_config"] = quantization
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kwargs.update(config=config, dtype=dtype or "auto", ignore_mismatched_sizes=True, output_loading_info=True)
    with _without_unexpected_key_report() if is_cut else contextlib.nullcontext():
        loaded: Any = auto_class.from_pretrained(path, **kwargs)
    backbone, info = loaded
    _check_complete(name_or_path, config, info)
    if gguf_file is not None:
        _forget_quantization(backbone)
        if quantization is not None:
            backbone = quantize_backbone(backbone, quantization)
    elif quantization is not None:
        check_quantized(backbone, quantization)
    if kwargs.get("attn_implementation") is None:
        choose_attention(backbone)
    return backbone


def random_backbone(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0, **kwargs: Any) -> PreTrainedModel:
    """A language model with its family's random start in place of pretrained weights.

    Args:
        config: the backbone's configuration, see `load_backbone_config`.
        dtype: dtype of the weights.
        seed: seed of the weights.
        kwargs: `attn_implementation`; without it, the one that measures best is chosen.

    Returns:
        A causal or sequence-to-sequence language model.
    """
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = auto_class.from_config(config, dtype=dtype, **kwargs)
    if kwargs.get("attn_implementation") is None:
        choose_attention(backbone)
    return backbone


def load_backbone_config(
    name_or_path: str, revision: str | None = None, num_layers: int | None = None, **kwargs: Any
) -> Any:
    """The configuration of a pretrained language model, without its weights.

    Args:
        name_or_path: see `locate_backbone`.
        revision: revision of a Hub repository.
        num_layers: keep only the first so many layers; `None` keeps all.
        kwargs: passed on to `AutoConfig.from_pretrained`.
    """
    path, gguf_file = locate_backbone(name_or_path)
    if gguf_file is not None:
        kwargs["gguf_file"] = gguf_file
    if revision is not None:
        kwargs["revision"] = revision
    return cut_layers(AutoConfig.from_pretrained(path, **kwargs), num_layers)


@functools.cache
def has_bfloat16() -> bool:
    """Whether this machine gains by bfloat16: it has it, and a CPU multiplies matrices faster in it than in float32.

    Some CPUs that have the instructions are slower by them, so they are timed, once a process, for some 50 ms.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if not (supported and supported()):
        return False
    # in turns, and the shortest of each, so that other work on the machine slows both or neither
    turns = [(_product_seconds(torch.bfloat16), _product_seconds(torch.float32)) for _ in range(6)]
    bfloat16, float32 = (min(seconds) for seconds in zip(*turns[1:], strict=True))
    return bfloat16 < float32


def _product_seconds(dtype: torch.dtype) -> float:
    """Time of a product of a block of states and a layer's weights."""
    states, weights = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    start = time.perf_counter()
    torch.nn.functional.linear(states, weights)
    return time.perf_counter() - start


def cut_layers(config: Any, num_layers: int | None) -> Any:
    """A copy of a backbone's configuration with only the first `num_layers` layers.

    Args:
        config: the backbone's configuration.
        num_layers: number of layers to keep; `None` keeps all.

    Raises:
        ValueError: if `num_layers` is not between 1 and the number of layers.
    """
    config = copy.deepcopy(config)
    if num_layers is None:
        return config
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise ValueError(
            f"num_layers must lie between 1 and the backbone's {config.num_hidden_layers} layers, got {num_layers}"
        )
    for field in _LAYER_COUNT_FIELDS:
        if getattr(config, field, None) is not None:
            setattr(config, field, num_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return config


def _check_complete(name: str, config: Any, info: dict[str, Any]) -> None:
    # transformers would draw at random what is missing, and only warn
    wrong = [f"{key} is {list(stored)}, expected {list(wanted)}" for key, stored, wanted in info["mismatched_keys"]]
    wrong += [f"{key} is missing" for key in info["missing_keys"]]
    if wrong:
        raise ValueError(
            f"The weights of the backbone {name!r} are not those of a {config.model_type} model with "
            f"{config.num_hidden_layers} layers, hidden size {config.hidden_size} and {config.vocab_size} words: "
            f"{'; '.join(sorted(wrong)[:3])}. Name the backbone that the configuration was made for, with its head"
        )


def _forget_quantization(model: PreTrainedModel) -> None:
    # a model read from GGUF refuses save_pretrained although its weights are plain floats by now
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@contextlib.contextmanager
def _without_unexpected_key_report() -> Iterator[None]:
    # the layers that were cut away would be listed one by one as unexpected keys
    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    loading_report = logging.getLogger("transformers.utils.loading_report")
    for target in (logger, loading_report):
        target.addFilter(keep)
    try:
        yield
    finally:
        for target in (logger, loading_report):
            target.removeFilter(keep)
