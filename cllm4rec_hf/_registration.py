"""Makes transformers' Auto classes know CLLM4Rec, without importing torch before somebody needs it.

Registering needs the classes, and the classes need torch. So each registration waits until transformers itself
imports the module of that Auto class, which is when torch has been imported anyway.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def _register_config() -> None:
    from transformers import AutoConfig

    from .modeling.configuration_cllm4rec import CLLM4RecConfig

    AutoConfig.register(CLLM4RecConfig.model_type, CLLM4RecConfig, exist_ok=True)


def _register_tokenizer() -> None:
    from transformers import AutoTokenizer

    from .modeling.configuration_cllm4rec import CLLM4RecConfig
    from .tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

    AutoTokenizer.register(CLLM4RecConfig, tokenizer_class=CLLM4RecTokenizer, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel

    from .modeling.configuration_cllm4rec import CLLM4RecConfig
    from .modeling.modeling_cllm4rec import (
        CLLM4RecForCollaborative,
        CLLM4RecForContent,
        CLLM4RecForRecommendation,
        CLLM4RecModel,
    )

    # AutoModel picks the class that config.architectures names
    classes = (CLLM4RecForRecommendation, CLLM4RecForCollaborative, CLLM4RecForContent, CLLM4RecModel)
    AutoModel.register(CLLM4RecConfig, classes, exist_ok=True)


def _register_pipeline() -> None:
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .inference.pipeline import RecommendationPipeline

    PIPELINE_REGISTRY.register_pipeline(
        RecommendationPipeline.task_name, RecommendationPipeline, pt_model=AutoModel, type="text"
    )
    # what this leaves on the class would make checkpoints ask for trust in code that is installed
    delattr(RecommendationPipeline, "_registered_impl")


# module of transformers that has to be there -> what to do then
_STEPS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.tokenization_auto": _register_tokenizer,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.pipelines": _register_pipeline,
}
# what the registrations import; any of these may itself be what makes transformers import its Auto classes
_OWN = tuple(f"{__package__}.{folder}." for folder in ("modeling", "tokenization", "inference"))
_done: set[str] = set()


def _is_being_imported(name: str, finished: str | None) -> bool:
    module = sys.modules.get(name)
    return module is not None and name != finished and getattr(module.__spec__, "_initializing", False)


def _register_what_is_ready(finished: str | None = None) -> None:
    """Run each step whose module of transformers is there, unless one of our own is halfway through its import."""
    if any(_is_being_imported(name, finished) for name in list(sys.modules) if name.startswith(_OWN)):
        return
    for module, register in _STEPS.items():
        if module not in _done and module in sys.modules and not _is_being_imported(module, finished):
            _done.add(module)
            register()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Looks whether a registration is ready after each import of a watched module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _STEPS and not fullname.startswith(_OWN):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _register_what_is_ready(fullname)

        loader.exec_module = exec_module
        return spec


def install() -> None:
    """Register with what transformers has imported already, and wait for the rest."""
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    _register_what_is_ready()
