"""Loading and saving: checkpoints with the backbone's weights and without, on this machine and on the Hub."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .adapters_cllm4rec import WithAdapters
from .attention_cllm4rec import choose_attention
from .backbone_cllm4rec import cut_layers, is_local_backbone, load_backbone
from .configuration_cllm4rec import CLLM4RecConfig
from .quantization_cllm4rec import CANNOT_BE_SAVED, is_quantized, quantize_backbone

logger = logging.getLogger(__name__)

_HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_BACKBONE_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "attn_implementation")
_BACKBONE_ONLY = ("max_memory", "offload_folder")
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


class BackboneElsewhere(WithAdapters, PreTrainedModel):
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of a model whose backbone may lie elsewhere."""

    config_class = CLLM4RecConfig
    backbone: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        backbone: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; the backbone comes from where the configuration says, or is the one given.

        Args:
            pretrained_model_name_or_path: directory or Hub id of the checkpoint.
            backbone: a live language model to use instead of loading one.
            kwargs: as in transformers; `dtype` and `quantization_config` are the backbone's, the tables stay float32.
                A backbone that lies elsewhere is loaded with the same `device_map` (or its part below `backbone`),
                `attn_implementation`, `cache_dir`, `token` and `local_files_only`; `revision` and `subfolder` are the
                checkpoint's own.

        Returns:
            The model in evaluation mode with its backbone frozen (with loading information if asked for).

        Raises:
            ValueError: if the checkpoint is another model's, or weights or backbone have not the sizes that the
                configuration says.
        """
        source = {name: kwargs.pop(name) for name in _HUB_KEYWORDS if name in kwargs}
        # the configuration has a field of this name and would keep the argument to itself
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            home: Any = config if config is not None else pretrained_model_name_or_path
            config, kwargs = cls.config_class.from_pretrained(home, return_unused_kwargs=True, **source, **kwargs)
        kwargs.update(source)
        # where it was asked for, either the arguments still have it or the configuration took it
        attention = kwargs.get("attn_implementation") or config._attn_implementation
        quantization = kwargs.pop("quantization_config", None)
        tolerates, wants_info = kwargs.pop("ignore_mismatched_sizes", False), kwargs.pop("output_loading_info", False)
        # sizes that differ are reported below, in the terms of the configuration
        kwargs.update(config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True)
        is_elsewhere = backbone is not None or not config.includes_backbone
        elsewhere: dict[str, Any] = {}
        if is_elsewhere:
            elsewhere = {name: kwargs[name] for name in _BACKBONE_KEYWORDS if kwargs.get(name) is not None}
            elsewhere["dtype"] = dtype or config.text_config.dtype
            for name in _BACKBONE_ONLY:
                if (value := kwargs.pop(name, None)) is not None:
                    elsewhere[name] = value
            kwargs["device_map"], elsewhere["device_map"] = _split_device_map(kwargs.pop("device_map", None))
            kwargs.update(dtype=torch.float32, attach_backbone=False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model, info = loaded
        if info["mismatched_keys"] and not tolerates:
            raise ValueError(_size_error(pretrained_model_name_or_path, config, info["mismatched_keys"]))
        if is_elsewhere:
            if backbone is None:
                backbone = load_backbone(
                    config.backbone_name_or_path,
                    config.backbone_revision,
                    config=cut_layers(config.text_config, None),
                    quantization_config=quantization,
                    **{"attn_implementation": attention, **elsewhere},
                )
            model.attach_backbone(backbone)
            if elsewhere["device_map"] is not None and kwargs["device_map"] is None:
                # a strategy placed the backbone; the tables belong beside the words
                for part in (*model.tables(), model.item_head):
                    part.to(backbone.get_input_embeddings().weight.device)
        elif quantization is not None:
            model.attach_backbone(quantize_backbone(model.backbone, quantization))
        if attention is None:
            choose_attention(model.backbone)
            model.config._attn_implementation = model.backbone.config._attn_implementation
        # a parameter that is loaded is a new one, and new ones require gradients
        model.backbone.requires_grad_(False)
        model.eval()
        model.hub_source = source
        return (model, info) if wants_info else model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike, include_backbone: bool = False, **kwargs: Any
    ) -> Any:
        """Save tables, head and configuration; the backbone only if asked, or if it has no home to be loaded from.

        Args:
            save_directory: where to.
            include_backbone: whether the weight file holds the backbone too.
            kwargs: as in transformers.

        Raises:
            ValueError: if the model carries the adapters of a `PeftModel`, which is then what should be saved, or a
                quantized backbone would have to be saved.
        """
        if self.has_wrapped_adapters():
            raise ValueError(
                "This model carries peft's adapters. Save the PeftModel (its adapters and the tables), or what its "
                "merge_and_unload() returns (a whole model with its backbone)."
            )
        include_backbone = include_backbone or self.config.backbone_name_or_path is None
        if include_backbone and is_quantized(self.backbone):
            raise ValueError(CANNOT_BE_SAVED)
        self.config.includes_backbone = include_backbone
        ignored = self._keys_to_ignore_on_save
        self._keys_to_ignore_on_save = (
            None if include_backbone else {f"backbone.{k}" for k in self.backbone.state_dict()}
        )
        try:
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            self._keys_to_ignore_on_save = ignored

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """Upload tables, head and configuration in one commit; the backbone only if nobody else could load it.

        Args:
            repo_id: repository; made if it does not exist.
            kwargs: as in transformers (`private`, `token`, `revision`, `commit_message`, …).

        Returns:
            What transformers returns, the commit.
        """
        with self.publishable():
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def publishable(self) -> Iterator[None]:
        """While it lasts, what is saved loads on any machine: a backbone that only this one has is saved along."""
        config = self.config
        before = (config.backbone_name_or_path, config.backbone_revision, config.includes_backbone)
        if before[0] is not None and is_local_backbone(before[0]):
            logger.warning(
                "The backbone lies in %s of this machine, so its weights go along with the tables. To publish the "
                "tables alone, train on a backbone that is named by a Hub id or by package://PACKAGE/FILE",
                before[0],
            )
            config.backbone_name_or_path = config.backbone_revision = None
        try:
            yield
        finally:
            config.backbone_name_or_path, config.backbone_revision, config.includes_backbone = before


def _split_device_map(device_map: Any) -> tuple[Any, Any]:
    """Placement of the tables, and of a backbone that is loaded apart from them."""
    if isinstance(device_map, dict):
        inner = {
            name.removeprefix("backbone").removeprefix("."): device
            for name, device in device_map.items()
            if name == "backbone" or name.startswith("backbone.")
        }
        own = {name: device for name, device in device_map.items() if name.partition(".")[0] != "backbone"}
        return own or None, inner or ({"": own[""]} if "" in own else None)
    return None if device_map in _STRATEGIES else device_map, device_map


def _size_error(name: Any, config: CLLM4RecConfig, mismatched: Any) -> str:
    keys = sorted(mismatched)
    shown = "; ".join(f"{key} is {list(stored)} there, {list(wanted)} here" for key, stored, wanted in keys[:4])
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return (
        f"The weights of {name} are not of the sizes that the configuration says ({config.num_users} users, "
        f"{config.num_items} items, hidden size {config.hidden_size}, history rank {config.history_rank}): {shown}"
        f"{more}. "
        "Load the checkpoint with its own config.json, or pass ignore_mismatched_sizes=True to draw these parts anew"
    )
