"""Backbones in 8 or 4 bits a weight. The tables are never quantized; what is recorded never depends on it."""

import importlib
import importlib.util
import tempfile
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

CANNOT_BE_SAVED = (
    "A quantized backbone cannot be saved, and this one has no home that it could be loaded from again. Load the "
    "model without quantization to save it; to train on a quantized backbone, name it: from_backbone(name_or_path, …, "
    "backbone_kwargs={'quantization_config': …})"
)
_LIBRARIES = {"int8": "torchao", "int4": "bitsandbytes"}


def quantization_config(name: str) -> Any:
    """The quantization that a short name stands for; both work on CPUs and let gradients through.

    Args:
        name: `int8` (torchao, 8-bit weights, one scale a row) or `int4` (bitsandbytes, NF4 with blocks of 64).

    Returns:
        A quantization configuration of transformers, as `from_pretrained` takes it.

    Raises:
        ValueError: if the name is unknown.
        ModuleNotFoundError: if the library is not installed.
    """
    if name not in _LIBRARIES:
        raise ValueError(f"Unknown quantization {name!r}; expected {' or '.join(_LIBRARIES)}")
    library = _LIBRARIES[name]
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(
            f"A backbone in {name} needs the package {library}: pip install 'cllm4rec-hf[quantization]'"
        )
    if name == "int8":
        # an import statement would make torchao a requirement of code that is loaded from the Hub
        return TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def quantize_backbone(backbone: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A quantized copy of a language model, by way of a temporary directory: transformers quantizes while it loads.

    Args:
        backbone: a language model whose weights are plain floats.
        config: a quantization configuration of transformers.

    Raises:
        ValueError: if it leaves every weight as it was.
    """
    with tempfile.TemporaryDirectory() as directory:
        backbone.save_pretrained(directory)
        quantized = type(backbone).from_pretrained(
            directory,
            dtype=backbone.dtype,
            quantization_config=config,
            attn_implementation=backbone.config._attn_implementation,
        )
    check_quantized(quantized, config)
    return quantized


def check_quantized(backbone: PreTrainedModel, config: Any) -> None:
    """Refuse a quantization that found nothing to quantize, e.g. torchao's in GPT-2, which has no `nn.Linear`.

    Args:
        backbone: the loaded language model.
        config: the quantization configuration that it was loaded with.

    Raises:
        ValueError: if no weight is quantized.
    """
    if not any(is_packed(parameter) for parameter in backbone.parameters()):
        raise ValueError(
            f"{type(config).__name__} quantized no weight of {type(backbone).__name__}; choose a method that knows "
            "its layers, e.g. BitsAndBytesConfig"
        )


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether a weight is stored in another form than plain floats."""
    return not parameter.is_floating_point() or type(parameter) is not nn.Parameter


def keep_gradient(backbone: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU.

    The repacked form has no gradient, also in training steps that follow, without an error wherever anything else has
    one. It also rounds the scales again, and asserts that sizes are multiples of 32 and 64.

    Args:
        backbone: a language model, quantized or not.
    """
    module: Any
    for module in backbone.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            # asking for the state undoes it where it has happened
            module.state_dict()
            module.support_avx512bf16_for_cpu = False


def is_quantized(backbone: Any) -> bool:
    """Whether a language model was loaded with a quantization."""
    return getattr(backbone, "hf_quantizer", None) is not None


def layer_without_gradient(backbone: nn.Module) -> str | None:
    """Name of a linear layer whose output has no gradient to its input, None if all have.

    Methods that quantize activations cut the gradient without a word: only residual connections would train.

    Args:
        backbone: a quantized language model.
    """
    dtype = next((p.dtype for p in backbone.parameters() if not is_packed(p)), torch.float32)
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Linear) or not is_packed(module.weight):
            continue
        with torch.enable_grad():
            rows = torch.ones(2, module.in_features, dtype=dtype, device=module.weight.device, requires_grad=True)
            out = module(rows)
            if not out.requires_grad or not torch.autograd.grad(out.float().square().sum(), rows)[0].any():
                return name
    return None
