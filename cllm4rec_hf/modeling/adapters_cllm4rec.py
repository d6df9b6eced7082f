"""peft's adapters in the backbone: the tables and the head learn beside them and are saved with them."""

import importlib
import logging
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger(__name__)

# peft trains adapters alone unless told; without these a CLLM4Rec adapter would be of no use to anybody
TRAINED_BESIDE_ADAPTERS = (
    "collaborative_user_embeddings",
    "collaborative_item_embeddings",
    "content_user_embeddings",
    "content_item_embeddings",
    "item_head",
)


class WithAdapters:
    """Makes `get_peft_model(model, LoraConfig(target_modules=…))` do what users of CLLM4Rec models expect.

    peft sets `model.peft_config` once its adapters are in place, and deletes it once they are taken out again. On the
    first, the tables and the item head join the adapter's `modules_to_save`, which its configuration records: they
    are trained, saved and loaded with it; and the language model has its part in the ranking, which adapters are for
    and which their files could not say. On the second, the backbone no longer counts as the one that was loaded,
    since adapters may have been merged into it.
    """

    config: Any
    backbone: Any

    @property
    def peft_config(self) -> dict[str, Any]:
        """Configurations of the adapters in the model by name.

        Raises:
            AttributeError: if it has none, which is how peft asks.
        """
        try:
            return self.__dict__["_adapter_configs"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no adapters") from None

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        self.__dict__["_adapter_configs"] = configs
        self.config.lm_term_ranks = True
        for name, config in configs.items():
            self._train_beside(name, config)

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["_adapter_configs"]
        if self.config.backbone_name_or_path is not None:
            logger.info(
                "Adapters may have been merged into the backbone, so it is no longer taken from %r: "
                "save_pretrained saves it with the tables",
                self.config.backbone_name_or_path,
            )
        self.config.backbone_name_or_path = self.config.backbone_revision = None

    def _train_beside(self, adapter: str, config: Any) -> None:
        if not hasattr(config, "modules_to_save"):
            return
        asked = list(config.modules_to_save or ())
        missing = [name for name in TRAINED_BESIDE_ADAPTERS if name not in asked]
        if missing:
            config.modules_to_save = asked + missing
            added = SimpleNamespace(modules_to_save=missing, inference_mode=config.inference_mode)
            # an import statement would make peft a requirement of code that is loaded from the Hub
            importlib.import_module("peft.utils").set_additional_trainable_modules(self, added, {}, adapter)

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether bitsandbytes holds the backbone in 8 bits; peft asks the whole model for it."""
        return getattr(self.backbone, "is_loaded_in_8bit", False)

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether bitsandbytes holds the backbone in 4 bits."""
        return getattr(self.backbone, "is_loaded_in_4bit", False)

    def has_wrapped_adapters(self) -> bool:
        """Whether a `PeftModel` holds this model, so that its own state dict is none that could be loaded again."""
        return "_adapter_configs" in self.__dict__ and not getattr(self, "_hf_peft_config_loaded", False)
