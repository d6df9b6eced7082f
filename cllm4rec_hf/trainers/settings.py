"""The settings of a training run: a preset, what overrides it, and where things lie; from YAML or flags."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, SchedulerType, TrainingArguments

from ..errors import CLLM4RecError
from .ablations import ABLATIONS
from .arguments import CLLM4RecTrainingArguments
from .presets import PRESETS


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _of_trainers(name: str, text: str | None = None) -> Any:
    """A setting with the trainers' own default."""
    own = CLLM4RecTrainingArguments.__dataclass_fields__[name]
    return _setting(own.default, text or own.metadata["help"])


_FILLED_LATER = ("row_sparse", "sampled_softmax_above")


def _by_preset(name: str) -> Any:
    """A setting of the trainers that presets fill."""
    return _setting(None, CLLM4RecTrainingArguments.__dataclass_fields__[name].metadata["help"])


# the data is told by its fingerprint, and where it lay concerns nobody else; the others change speed, memory and the
# log, and the result by rounding alone
_OUTSIDE = (
    "data", "output", "overwrite", "report_to", "logging_steps", "tokens_per_pass", "activation_checkpointing",
    "compile_layers", "dataloader_num_workers",
)  # fmt: skip

# what fine-tuning of pretrained language models usually takes; the tables' rates would undo the pretraining
PRETRAINED_BACKBONE_RATE = 2e-5


@dataclass
class RecipeSettings:
    """What `cllm4rec train` and examples/train.py take.

    A field left at None takes the preset's value. An ablation's settings take the place of any others given.
    """

    data: str = _setting(
        "prepared", "Directory that `cllm4rec prepare` wrote, or org/name of such a data set on the Hub."
    )
    output: str = _setting("out", "Directory of the checkpoint.")
    backbone: str | None = _setting(None, "Hub id, directory, GGUF file or package://PACKAGE/FILE of the backbone.")
    backbone_revision: str | None = _setting(None, "Revision of the backbone's Hub repository.")
    num_layers: int | None = _setting(None, "Use only the backbone's first so many layers; all by default.")
    preset: str = _setting("default", "Recipe that fills the settings left out: default or paper.")
    ablation: str | None = _setting(None, f"Named settings that win over all others: {', '.join(ABLATIONS)}.")
    dtype: str = _setting("auto", "Backbone's dtype: auto (bfloat16 where it is faster), bfloat16 or float32.")
    quantization: str | None = _setting(None, "Hold the frozen backbone in int8 or int4; its dtype by default.")
    attn_implementation: str = _setting("auto", "Attention of the backbone: auto, eager, sdpa, …")
    seed: int = _setting(0, "Seed of everything random.")
    overwrite: bool = _setting(False, "Start again where the output directory holds another run.")
    include_histories: bool = _setting(
        False, "Store every user's history in the checkpoint, so that a user id is request enough."
    )
    report_to: str = _setting("none", "Experiment trackers of the Trainer, comma-separated, e.g. tensorboard,trackio.")
    logging_steps: int | None = _setting(None, "Optimizer steps between two logs; by default one log an epoch.")
    row_sparse: bool | None = _by_preset("row_sparse")
    sampled_softmax_above: int | None = _by_preset("sampled_softmax_above")
    sampled_softmax_size: int = _of_trainers("sampled_softmax_size")
    tokens_per_pass: int | None = _of_trainers("tokens_per_pass")
    compile_layers: bool = _of_trainers("compile_layers")
    activation_checkpointing: bool = _setting(
        False, "Compute activations of the backbone again in the backward pass: less memory, more time."
    )
    dataloader_num_workers: int = _of_trainers(
        "dataloader_num_workers", "Processes that make batches, beside each training process; 0 makes them in it."
    )
    train_backbone: bool = _setting(False, "Train the backbone, too; it is saved with the checkpoint.")
    random_backbone: bool = _setting(False, "Start the backbone at random instead of with its pretrained weights.")
    backbone_learning_rate: float | None = _setting(
        None, f"Learning rate of a backbone that trains; {PRETRAINED_BACKBONE_RATE:g}, or the stage's from random."
    )
    use_content: bool = _setting(True, "Whether there is a content LM: content warm-up and C-steps.")
    warm_start_texts: bool = _setting(True, "Whether the warm start reads the items' texts.")
    warm_start_lm: bool = _setting(True, "Whether item vectors may start from the LM's hidden states of the texts.")
    warm_start_steps: int | None = _setting(
        None, "Most optimizer steps of item vectors in the warm start; 0 leaves its linear part alone."
    )
    reorder: bool = _setting(True, "Whether items come in random order in training; else oldest first.")
    lm_term: bool = _setting(True, "Whether the LM has a part in the item logits; else the history term ranks alone.")
    ranking_task: str = _setting(
        "recommendation", "What ranks: recommendation, or collaborative, the pretrained LM's next-item distribution."
    )
    lambda_c: float | None = _setting(None, "Weight of the mutual regularization.")
    lr_scheduler_type: str | None = _setting(None, "Learning rate schedule of each stage.")
    lambda_l: float | None = _setting(None, "Precision of the collaborative embeddings' prior.")
    warm_start: str | None = _setting(None, "Start of the item tables: none, auto, ease or svd.")
    history_term: bool | None = _setting(None, "Whether the head has a history term (needs a warm start).")
    center_hidden: bool | None = _setting(None, "Whether the head centres and scales hidden states.")
    item_bias: bool | None = _setting(None, "Whether the head has an item bias.")
    initial_lm_share: float | None = _setting(None, "The LM's share of the item logits' spread at the start.")
    max_length: int | None = _setting(None, "Longest interaction document or prompt in tokens.")
    max_text_length: int | None = _setting(None, "Longest content document in tokens.")
    mask_share: list[float] | None = _setting(None, "Lowest and highest share of a history that is held out.")
    anonymous_share: float | None = _setting(None, "Share of training prompts without the user token.")
    content_epochs: float | None = _setting(None, "Epochs of the content warm-up.")
    content_stage_learning_rate: float | None = _setting(None, "Learning rate of the content warm-up.")
    pretraining_epochs: float | None = _setting(None, "Epochs of mutually regularized pretraining.")
    pretraining_learning_rate: float | None = _setting(None, "Learning rate of pretraining.")
    recommendation_epochs: float | None = _setting(None, "Epochs of recommendation fine-tuning.")
    recommendation_learning_rate: float | None = _setting(None, "Learning rate of fine-tuning.")
    content_learning_rate: float | None = _setting(None, "Learning rate of C-steps; by default the stage's.")
    user_learning_rate: float | None = _setting(None, "Learning rate of user tokens; by default the stage's.")
    head_learning_rate: float | None = _setting(None, "Learning rate of the head; by default the stage's.")
    batch_size: int | None = _setting(None, "Documents in a micro-batch.")
    gradient_accumulation_steps: int | None = _setting(None, "Micro-batches in an optimizer step.")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise CLLM4RecError(f"Unknown preset {self.preset!r}; expected one of {', '.join(PRESETS)}")
        if self.ablation is not None and self.ablation not in ABLATIONS:
            raise CLLM4RecError(f"Unknown ablation {self.ablation!r}; expected one of {', '.join(ABLATIONS)}")
        for name, value in ABLATIONS.get(self.ablation or "", {}).items():
            setattr(self, name, value)
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not self.backbone:
            raise CLLM4RecError(
                "No backbone given; name a pretrained language model, e.g. --backbone HuggingFaceTB/SmolLM2-135M"
            )
        for name in (
            "batch_size", "gradient_accumulation_steps", "max_length", "max_text_length", "sampled_softmax_size",
            "tokens_per_pass", "logging_steps",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CLLM4RecError(f"{name} must be 1 or more, got {value}")
        for name in (
            "content_epochs", "pretraining_epochs", "recommendation_epochs", "lambda_c", "lambda_l",
            "sampled_softmax_above", "dataloader_num_workers",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise CLLM4RecError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.warm_start_steps is not None and self.warm_start_steps < 0:
            raise CLLM4RecError(f"warm_start_steps must be 0 or more, got {self.warm_start_steps}")
        if self.quantization not in (None, "int8", "int4"):
            raise CLLM4RecError(f"quantization must be int8 or int4, or left out; got {self.quantization!r}")
        schedules = [str(schedule.value) for schedule in SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise CLLM4RecError(
                f"Unknown lr_scheduler_type {self.lr_scheduler_type!r}; expected {', '.join(schedules)}"
            )
        if self.seed < 0:
            raise CLLM4RecError(f"seed must be 0 or more, got {self.seed}")
        share = self.mask_share
        if not isinstance(share, list) or len(share) != 2 or not 0 < share[0] <= share[1] < 1:
            raise CLLM4RecError(f"mask_share must be two ascending shares between 0 and 1, e.g. 0.1 0.3; got {share}")
        if not 0 <= (self.anonymous_share or 0) <= 1:
            raise CLLM4RecError(f"anonymous_share must lie between 0 and 1, got {self.anonymous_share}")
        if self.warm_start not in ("none", "auto", "ease", "svd"):
            raise CLLM4RecError(f"warm_start must be none, auto, ease or svd; got {self.warm_start!r}")
        if self.history_term and self.warm_start == "none":
            raise CLLM4RecError(
                "The history term needs a warm start; set warm_start to auto, or history_term to false"
            )
        if not self.lm_term and not self.history_term:
            raise CLLM4RecError(
                "Without the LM's term the history term has to rank, and there is none; set history_term to true and "
                "warm_start to auto, as the preset default does"
            )
        self._check_ranking()
        self._check_backbone()

    def _check_ranking(self) -> None:
        if self.ranking_task not in ("recommendation", "collaborative"):
            raise CLLM4RecError(f"ranking_task must be recommendation or collaborative, got {self.ranking_task!r}")
        if self.ranking_task == "collaborative" and (self.recommendation_epochs or not self.pretraining_epochs):
            raise CLLM4RecError(
                "The collaborative LM ranks as pretraining leaves it; set recommendation_epochs to 0 and "
                f"pretraining_epochs to 1 or more, got {self.recommendation_epochs} and {self.pretraining_epochs}"
            )

    def _check_backbone(self) -> None:
        if (self.train_backbone or self.random_backbone) and self.quantization is not None:
            raise CLLM4RecError(
                f"A quantized backbone has pretrained weights that stay as they are; leave quantization "
                f"{self.quantization} out, or train_backbone and random_backbone"
            )
        rate = self.backbone_learning_rate
        if rate is not None and not self.train_backbone:
            raise CLLM4RecError(f"backbone_learning_rate {rate:g} needs train_backbone, or nothing would learn by it")
        if self.train_backbone and not self.random_backbone and rate is None:
            self.backbone_learning_rate = PRETRAINED_BACKBONE_RATE

    def what_made_it(self) -> dict[str, Any]:
        """The settings that decide the result, for training.yaml and for telling one run from another."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _OUTSIDE}

    def trackers(self) -> list[str]:
        """The names in `report_to`."""
        return [name.strip() for name in self.report_to.split(",")]

    def of_trainers(self) -> dict[str, Any]:
        """The settings that every stage's trainer takes as they are, by the names of its arguments."""
        names = (
            "row_sparse", "sampled_softmax_above", "sampled_softmax_size", "tokens_per_pass", "compile_layers",
            "dataloader_num_workers",
        )  # fmt: skip
        steps = self.logging_steps
        logging = {} if steps is None else {"logging_strategy": "steps", "logging_steps": steps}
        # the name that transformers 5.20 has is deprecated in 5.24
        new = "activation_checkpointing"
        checkpointing = new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
        return {
            **{name: getattr(self, name) for name in names},
            **logging,
            checkpointing: self.activation_checkpointing,
        }


# values of the settings that no preset fills, and of those that none filled at first
SETTLED = {
    **{f.name: f.default for f in dataclasses.fields(RecipeSettings) if f.default is not None},
    **{name: CLLM4RecTrainingArguments.__dataclass_fields__[name].default for name in _FILLED_LATER},
}


def parse_settings(argv: list[str]) -> RecipeSettings:
    """Settings from `--config FILE` (YAML) and flags; flags win over the file.

    Args:
        argv: command-line arguments.

    Raises:
        CLLM4RecError: if the file cannot be read or names an unknown setting.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    chosen, rest = first.parse_known_args(argv)
    settings_class: Any = RecipeSettings
    parser = HfArgumentParser(settings_class, prog="cllm4rec train", allow_abbrev=False)
    parser.add_argument("--config", help="YAML file of settings; flags win over it.")
    if chosen.config:
        parser.set_defaults(**_read_yaml(Path(chosen.config)))
    values = vars(parser.parse_args(rest))
    values.pop("config")
    return RecipeSettings(**values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CLLM4RecError(f"Cannot read the settings file {path}: {error}") from error
    if not isinstance(values, dict):
        raise CLLM4RecError(f"The settings file {path} must hold `name: value` lines")
    known = [f.name for f in dataclasses.fields(RecipeSettings)]
    unknown = [name for name in values if name not in known]
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CLLM4RecError(f"{path} has the unknown setting {unknown[0]!r}{hint} Known settings: {', '.join(known)}")
    return values
