"""The model and the tokenizer of a run, as its settings ask for them."""

from typing import Any

import torch

from ..data.prepared import PreparedData
from ..errors import CLLM4RecError
from ..modeling.backbone_cllm4rec import has_bfloat16, load_backbone_config, pin_revision, random_backbone
from ..modeling.modeling_cllm4rec import CLLM4RecForRecommendation
from ..modeling.quantization_cllm4rec import quantization_config
from ..tokenization.tokenization_cllm4rec import CLLM4RecTokenizer
from .settings import RecipeSettings
from .warm_start import WarmStart, apply_warm_start


def backbone_config(settings: RecipeSettings) -> Any:
    """The configuration of the backbone, cut to the layers that are used.

    Raises:
        CLLM4RecError: if it cannot be had, or its context is too short for the settings.
    """
    try:
        config = load_backbone_config(str(settings.backbone), settings.backbone_revision, settings.num_layers)
    except ValueError as error:
        raise CLLM4RecError(f"The backbone {settings.backbone!r} cannot be used: {error}") from error
    context = getattr(config, "max_position_embeddings", None)
    for name in ("max_length", "max_text_length"):
        value = getattr(settings, name)
        if context is not None and value > context:
            raise CLLM4RecError(f"{name} {value} exceeds the backbone's context of {context} tokens; lower it")
    return config


def build(
    settings: RecipeSettings, data: PreparedData, config: Any, start: WarmStart | None
) -> tuple[CLLM4RecForRecommendation, CLLM4RecTokenizer]:
    """A model with its warm start, and its tokenizer.

    Args:
        settings: the run's settings.
        data: the prepared data.
        config: the backbone's configuration, see `backbone_config`.
        start: the warm start, or None.

    Raises:
        CLLM4RecError: if the backbone cannot be used as the settings ask for.
    """
    name: Any = settings.backbone
    # at one commit, or somebody may push between the model and the tokenizer
    revision = pin_revision(name, settings.backbone_revision, {})
    try:
        model: Any = CLLM4RecForRecommendation.from_backbone(
            num_users=data.num_users,
            num_items=data.num_items,
            seed=settings.seed,
            preset=settings.preset,
            lambda_c=settings.lambda_c,
            lambda_l=settings.lambda_l,
            max_prompt_length=settings.max_length,
            center_hidden=settings.center_hidden,
            learn_logit_scale=settings.center_hidden,
            item_bias=settings.item_bias,
            lm_term=settings.lm_term,
            ranking_task=settings.ranking_task,
            **_start_fields(start, settings),
            **_backbone(settings, config, revision),
        )
    except CLLM4RecError:
        raise
    except (ValueError, ImportError) as error:
        # e.g. an attention implementation that the family or the machine lacks
        raise CLLM4RecError(f"The backbone {name!r} cannot be used: {error}") from error
    if settings.train_backbone:
        model.unfreeze_backbone()
    tokenizer = CLLM4RecTokenizer.from_backbone(
        name,
        num_users=data.num_users,
        num_items=data.num_items,
        base_vocab_size=model.config.base_vocab_size,
        **({"revision": revision} if revision else {}),
    )
    if start is not None:
        apply_warm_start(model, start, settings.seed)
    return model, tokenizer


def choose_dtype(name: str, trains: bool = False) -> torch.dtype:
    """The backbone's dtype: one that is named, or for `auto` bfloat16 where the machine computes in it.

    Args:
        name: `auto` or the name of a dtype of torch.
        trains: whether the backbone trains, which it does in float32.

    Raises:
        CLLM4RecError: if there is no such dtype, or the backbone could not train in it.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16() and not trains else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CLLM4RecError(f"Unknown dtype {name!r}; expected auto, bfloat16, float16 or float32")
    if trains and dtype != torch.float32:
        raise CLLM4RecError(
            f"A backbone that trains has float32 weights, got dtype {name!r}: small steps vanish in the rounding of "
            "less; leave dtype out"
        )
    return dtype


def _backbone(settings: RecipeSettings, config: Any, revision: str | None) -> dict[str, Any]:
    """The arguments of `from_backbone` that say which one."""
    dtype = choose_dtype(settings.dtype, settings.train_backbone)
    attention = {} if settings.attn_implementation == "auto" else {"attn_implementation": settings.attn_implementation}
    if settings.random_backbone:
        # not the seed of the tables: their first rows would be the first words
        return {"backbone": random_backbone(config, dtype, settings.seed + 1, **attention)}
    return {
        "backbone": settings.backbone,
        "num_layers": settings.num_layers,
        "revision": revision,
        "dtype": dtype,
        "backbone_kwargs": {**attention, **_quantization(settings.quantization)},
    }


def _quantization(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"quantization_config": quantization_config(name)}


def _start_fields(start: WarmStart | None, settings: RecipeSettings) -> dict[str, Any]:
    if start is None:
        return {}
    rank = start.keys.shape[1]
    return {
        "warm_start": start.method,
        "warm_start_text_weight": start.text_weight,
        "warm_start_rank": rank,
        "history_rank": rank if settings.history_term else 0,
        "history_power": start.power if settings.history_term else 0.0,
    }
