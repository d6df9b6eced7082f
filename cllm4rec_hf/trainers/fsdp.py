"""FSDP2 for a frozen backbone: its layers are sharded over the processes, what learns is whole in each of them."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import CLLM4RecError
from ..modeling.quantization_cllm4rec import is_quantized
from .pushing import PushingTrainer

_ASKED = "ACCELERATE_USE_FSDP"


class ShardingTrainer(PushingTrainer):
    """A Trainer that takes accelerate's FSDP2 settings and applies them to the backbone's layers alone.

    What learns (tables, item head, adapters) stays an ordinary tensor in every process: its gradients are exchanged by
    rows, its optimizer states, checkpoints and resumed runs are those of any other number of processes. Only frozen
    layers are gathered when a step needs them. accelerate would wrap the whole model instead: it gathers each table
    whole in each step, and knows dense gradients only. On CPUs it takes no notice of FSDP; this does.
    """

    # accelerate's FullyShardedDataParallelPlugin, None where nothing is sharded
    sharding: Any = None
    # gathered weights, while they are saved
    _gathered_state: dict[str, torch.Tensor] | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Build the accelerator, as `Trainer` does, for plain data parallelism."""
        self.sharding = _sharding_plugin(self.args)
        asked, plugin_args = os.environ.pop(_ASKED, None), self.args.fsdp_plugin_args
        self.args.fsdp_plugin_args = None
        try:
            super().create_accelerator_and_postprocess()
        finally:
            self.args.fsdp_plugin_args = plugin_args
            if asked is not None:
                os.environ[_ASKED] = asked

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.sharding is None:
            super()._move_model_to_device(model, device)
        else:
            shard_backbone(model, self.sharding, device)

    def whole_backbone(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, every process holds the whole backbone and may run it as often as it likes.

        Sharded layers ask all processes for as many forward passes; ranking gives each another number of them.
        """
        if self.sharding is None:
            return contextlib.nullcontext()
        return _gathered(self.model, self.sharding.reshard_after_forward)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, see `Trainer.save_model`; every process calls it, the first one writes."""
        if self.sharding is not None and self._saves_backbone():
            # every process takes part, and under transformers 5.20 the first one alone comes to `_save`
            self._gathered_state = _whole_state(self.model)
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self._gathered_state = None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, self._gathered_state if state_dict is None else state_dict)

    def _saves_backbone(self) -> bool:
        return self.model.config.backbone_name_or_path is None and not hasattr(self.model, "peft_config")


def shard_backbone(model: Any, plugin: Any, device: torch.device) -> None:
    """Shard the frozen weights of the backbone's layers over the processes, and move all else to this one's device.

    Over several machines of the same size each machine holds all shards, so that layers are gathered inside of it.

    Args:
        model: a CLLM4Rec model, or a `PeftModel` around one; one that is sharded already stays as it is.
        plugin: accelerate's FSDP2 settings: `reshard_after_forward`, `cpu_offload`, `activation_checkpointing` count.
        device: where this process computes.

    Raises:
        CLLM4RecError: if the backbone is quantized or trains as a whole, or its layers cannot be told.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    backbone, stacks = model.backbone, _stacks(model)
    if any(isinstance(stack, FSDPModule) for stack in stacks):
        return
    if is_quantized(backbone):
        raise CLLM4RecError(
            "FSDP2 does not shard a quantized backbone; leave quantization out, or start without FSDP2 "
            "(examples/accelerate_configs/multi_gpu.yaml)"
        )
    layers = {stack: _frozen_layers(backbone, stack) for stack in stacks}
    mesh = _mesh(device)
    for stack, own in layers.items():
        settings: dict[str, Any] = {
            "mesh": mesh,
            # the model chooses its dtypes itself
            "mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False),
            "offload_policy": plugin.cpu_offload,
            # words and their head are used outside of the layers
            "ignored_params": set(stack.parameters()) - {p for layer in own for p in _frozen(layer)},
        }
        for layer in own:
            fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **settings)
        fully_shard(stack, **settings)
    _move_rest(model, device)
    _keep_shards_on_load(model)
    if plugin.activation_checkpointing:
        # its name before transformers 5.24 and after
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def _sharding_plugin(args: Any) -> Any:
    """FSDP2 settings of `accelerate launch` or of the training arguments, None if there is nothing to shard over."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    asked = os.environ.get(_ASKED, "false").lower() == "true"
    if args.world_size == 1 or not (asked or args.fsdp_plugin_args):
        return None
    plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise CLLM4RecError(f"FSDP version {plugin.fsdp_version} is not supported; set fsdp_version: 2")
    if plugin.cpu_ram_efficient_loading:
        raise CLLM4RecError(
            "Every process reads the backbone itself and keeps its shards; set fsdp_cpu_ram_efficient_loading: false"
        )
    return plugin


def _stacks(model: Any) -> list[Any]:
    """The backbone's decoder, and its encoder if it has one: what runs as a whole."""
    backbone = model.backbone
    return [backbone.get_decoder(), *([backbone.get_encoder()] if model.config.is_encoder_decoder else [])]


def _frozen_layers(backbone: Any, stack: nn.Module) -> list[nn.Module]:
    layers = [module for module in stack.modules() if type(module).__name__ in (backbone._no_split_modules or ())]
    if not layers:
        raise CLLM4RecError(
            f"{type(backbone).__name__} does not say which of its modules are layers (_no_split_modules), so FSDP2 "
            "cannot shard it; start with examples/accelerate_configs/multi_gpu.yaml"
        )
    if not all(_frozen(layer) for layer in layers):
        raise CLLM4RecError(
            "FSDP2 shards a frozen backbone, and this one trains as a whole; freeze it (adapters may train), or start "
            "with examples/accelerate_configs/multi_gpu.yaml"
        )
    return layers


def _frozen(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters() if not parameter.requires_grad]


def _mesh(device: torch.device) -> Any:
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh

    world = get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world > local and world % local == 0:
        return init_device_mesh(device.type, (world // local, local), mesh_dim_names=("machines", "processes"))
    return init_device_mesh(device.type, (world,))


def _move_rest(model: nn.Module, device: torch.device) -> None:
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                # the parameter itself stays, so that tied ones stay tied
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _keep_shards_on_load(model: nn.Module) -> None:
    """Let `load_state_dict` pass over frozen layers, which a checkpoint may hold whole: they do not change."""
    from torch.distributed.tensor import DTensor

    sharded = {name: parameter for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}

    def keep(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.update({prefix + name: x for name, x in sharded.items() if prefix + name in state_dict})

    model.register_load_state_dict_pre_hook(keep)


def _whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with gathered weights, a collective; on CPU where they were gathered."""
    from torch.distributed.tensor import DTensor

    state = model.state_dict()
    return {name: x.full_tensor().cpu() if isinstance(x, DTensor) else x for name, x in state.items()}


@contextlib.contextmanager
def _gathered(model: Any, reshard_after_forward: bool) -> Iterator[None]:
    from torch.distributed.fsdp import FSDPModule

    stacks = _stacks(model)
    parts = [module for stack in stacks for module in stack.modules() if isinstance(module, FSDPModule)]
    passed = set()
    hooks = [stack.register_forward_pre_hook(lambda module, _: passed.add(module)) for stack in stacks]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(reshard_after_forward, recurse=False)
        for hook in hooks:
            hook.remove()
        for stack in passed:
            # the order of these forward passes, another one in each process, is no order to prefetch layers in; where
            # nothing has passed there is no order to forget, and torch fails at it
            stack.reset_iter_state()
