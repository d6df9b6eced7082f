"""The configuration of CLLM4Rec models."""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class CLLM4RecConfig(PreTrainedConfig):
    """Everything that a CLLM4Rec model is built from: the backbone's own configuration, the catalog's size, the head.

    The defaults of the head's fields are neutral: they give the plain tied head of the paper. The `default` preset
    of the trainers turns the calibrated parts on.

    Args:
        text_config: configuration (object or dict) of the backbone language model. It is copied: wrapping the
            configuration object of a live model would reset that model's attention implementation in place. How its
            weights are quantized is not kept: that is for their home to say, or for whoever loads them.
        num_users: number of user tokens I; `<user_i>` has the id N + i, N = rows of the backbone's embedding.
        num_items: number of item tokens J; `<item_j>` has the id N + I + j.
        lambda_c: precision of z^c around z^l, the weight of the mutual regularization.
        lambda_l: precision of the prior of z^l around 0.
        backbone_name_or_path: where the frozen backbone is loaded from: Hub id, directory, GGUF file or
            `package://PACKAGE/FILE`. `None` when the backbone has no home of its own and is saved with the tables.
        backbone_revision: revision of that Hub repository.
        includes_backbone: whether the checkpoint's weight file holds the backbone too (set by `save_pretrained`).
        max_prompt_length: longest prompt in tokens; longer histories lose their oldest items.
        initializer_range: standard deviation of freshly drawn user and item embeddings.
        preset: name of the recipe that made the checkpoint, `paper` or `default`.
        center_hidden: whether the head subtracts a stored mean from the hidden state and divides by a stored scale.
        logit_scale: factor on the language model's part of the item logits.
        learn_logit_scale: whether that factor is a parameter.
        item_bias: whether the head adds a learned bias to each item's logit.
        history_rank: rank r of the history term's query table, J x r; 0 turns the history term off.
        history_power: power ν of a history's length that its sum is divided by: 0 for the sum, 1 for the mean.
        lm_term: whether the language model's hidden states have a part in the item logits; without them the history
            term ranks alone, and the item tasks do not run the backbone.
        lm_term_ranks: whether that part, where there is one, is in the recommendation task's logits, too.
            `RecommendationTrainer` turns it off where validation finds that the history term ranks no worse alone;
            the collaborative task keeps it.
        ranking_task: what ranks the catalog for a user: `recommendation`, or `collaborative`, the next-item
            distribution of the collaborative language model after the history (LLM-PreRec).
        warm_start: what the tables were started from: `none`, `ease` or `svd`.
        warm_start_text_weight: weight w of the items' text rows in the warm start.
        warm_start_rank: rank of the warm start's factorization.

    Raises:
        ValueError: if a number is out of range; the message names the field.
    """

    model_type = "cllm4rec"
    # saving copies this module and its siblings beside the checkpoint, for loading without the package
    _auto_class = "AutoConfig"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="gpt2")}

    text_config: Any = None
    num_users: int = 0
    num_items: int = 0
    lambda_c: float = 1.0
    lambda_l: float = 0.0
    backbone_name_or_path: str | None = None
    backbone_revision: str | None = None
    includes_backbone: bool = True
    max_prompt_length: int = 1024
    initializer_range: float = 0.02
    preset: str = "paper"
    center_hidden: bool = False
    logit_scale: float = 1.0
    learn_logit_scale: bool = False
    item_bias: bool = False
    history_rank: int = 0
    history_power: float = 0.0
    lm_term: bool = True
    lm_term_ranks: bool = True
    ranking_task: str = "recommendation"
    warm_start: str = "none"
    warm_start_text_weight: float = 0.0
    warm_start_rank: int = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = without_quantization(copy.deepcopy(self.text_config))
        super().__post_init__(**kwargs)
        self.is_encoder_decoder = bool(self.text_config.is_encoder_decoder)
        # transformers reads the composite's own switch before it ties the backbone's head to its embedding
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", True))
        for name in ("num_users", "num_items", "history_rank", "warm_start_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("lambda_c", "lambda_l", "warm_start_text_weight", "history_power"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be a number of 0 or more, got {getattr(self, name)}")
        if not self.logit_scale > 0:
            raise ValueError(f"logit_scale must be positive, got {self.logit_scale}")
        if self.warm_start not in ("none", "ease", "svd"):
            raise ValueError(f"warm_start must be 'none', 'ease' or 'svd', got {self.warm_start!r}")
        if self.ranking_task not in ("recommendation", "collaborative"):
            raise ValueError(f"ranking_task must be 'recommendation' or 'collaborative', got {self.ranking_task!r}")
        if not (self.lm_term and self.lm_term_ranks) and not self.history_rank:
            raise ValueError("Without the language model's term nothing is left to rank by; give a history_rank")
        if self.history_rank > self.hidden_size:
            raise ValueError(
                f"history_rank {self.history_rank} exceeds the backbone's hidden size {self.hidden_size}; "
                "choose a rank of at most that"
            )

    @property
    def base_vocab_size(self) -> int:
        """N, the number of rows of the backbone's vocabulary embedding; the first user token has this id."""
        return self.text_config.vocab_size

    @property
    def hidden_size(self) -> int:
        """d, the dimension of the backbone's hidden states and of every user and item embedding."""
        return self.text_config.hidden_size

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a config.json holds.

        Raises:
            ValueError: if it is another model's.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is a {model_type!r} model, not a CLLM4Rec checkpoint; a language model becomes one by "
                "from_backbone(name, num_users=…, num_items=…)"
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as it is written to config.json, without the local path a backbone was loaded from."""
        output = super().to_dict()
        if isinstance(output.get("text_config"), dict):
            output["text_config"].pop("_name_or_path", None)
        return output


def without_quantization(text_config: Any) -> Any:
    """A backbone's configuration (object or dict) without its quantization; the same object if it has none.

    The tables fit a backbone in any precision, and a checkpoint must open where the library of the quantization that
    it was trained with is missing.
    """
    if isinstance(text_config, dict):
        return {name: value for name, value in text_config.items() if name != "quantization_config"}
    if hasattr(text_config, "quantization_config"):
        text_config = copy.deepcopy(text_config)
        del text_config.quantization_config
    return text_config
