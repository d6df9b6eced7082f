"""Arguments of the three trainers."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import CLLM4RecError


@dataclass
class CLLM4RecTrainingArguments(TrainingArguments):
    """What the trainers share beyond `TrainingArguments`, with defaults that fit tables beside a frozen backbone.

    Args:
        content_learning_rate: learning rate of the content tables; None takes `learning_rate`.
        user_learning_rate: learning rate of the collaborative user table; None takes `learning_rate`.
        head_learning_rate: learning rate of the item head's own parameters; None takes `learning_rate`.
        backbone_learning_rate: learning rate of what trains in the backbone: adapters, or all of it; None takes
            `learning_rate`.
        row_sparse: whether `RowAdamW` on row-sparse gradients takes the place of `optim` where that is AdamW.
        sampled_softmax_above: catalogs of more items train on a sample of their item softmax; others on all of it.
        sampled_softmax_size: items of that sample.
        tokens_per_pass: bound on the tokens of a forward and backward pass; a micro-batch of more goes through the
            model in several. None takes 4,096 on CPUs, 8,192 elsewhere.
        compile_layers: whether torch.compile compiles the backbone's layers: some 20 seconds at the start, and layers
            about a tenth faster from then on (measured on a CPU). It needs a C++ compiler.

    Raises:
        CLLM4RecError: if `hub_strategy` would upload pickles.
    """

    row_sparse: bool = field(
        default=True,
        metadata={
            "help": "AdamW by rows: a step moves the rows of the tables that its documents read, and no others."
        },
    )
    sampled_softmax_above: int = field(
        default=50_000, metadata={"help": "Catalogs of more items train on a sample of their item softmax."}
    )
    sampled_softmax_size: int = field(default=8_192, metadata={"help": "Items of that sample."})
    tokens_per_pass: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a forward and backward pass; by default 4,096 on CPUs, 8,192 elsewhere."},
    )
    compile_layers: bool = field(
        default=False, metadata={"help": "Compile the backbone's layers; pays for runs of several minutes and more."}
    )
    content_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the content tables; by default learning_rate."}
    )
    user_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the collaborative user table; by default learning_rate."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the item head's parameters; by default learning_rate."}
    )
    backbone_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of what trains in the backbone; by default learning_rate."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the collaborative item table."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Documents in a micro-batch."})
    lr_scheduler_type: Any = field(default="linear", metadata={"help": "Learning rate schedule."})
    # the loss is a sum over a document's tokens: a norm bound made for token means would always be in force
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 turns it off."})
    logging_strategy: Any = field(default="epoch", metadata={"help": "When to log."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses; they stop training here."})
    save_strategy: Any = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Corpora have no unused columns."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin memory in data loaders."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_pass is not None and self.tokens_per_pass < 1:
            raise CLLM4RecError(f"tokens_per_pass must be 1 or more, or left out; got {self.tokens_per_pass}")
        allowed = (HubStrategy.END, HubStrategy.EVERY_SAVE)
        if self.push_to_hub and self.hub_strategy not in allowed:
            raise CLLM4RecError(
                f"hub_strategy {HubStrategy(self.hub_strategy).value!r} would upload the optimizer's state, a pickle; "
                f"expected {' or '.join(strategy.value for strategy in allowed)}"
            )


@dataclass
class ContentArguments(CLLM4RecTrainingArguments):
    """Stage 1, content warm-up: the content LM alone."""


@dataclass
class MutualRegularizationArguments(CLLM4RecTrainingArguments):
    """Stage 2: L-steps and C-steps in turn."""


@dataclass
class RecommendationArguments(CLLM4RecTrainingArguments):
    """Stage 3: recommendation fine-tuning; validated each epoch, the best epoch is kept.

    Args:
        start_competes: whether the state before the first step is kept unless the best epoch ranks better than it by
            more than chance.
    """

    start_competes: bool = field(
        default=True,
        metadata={
            "help": "Keep the state before the first step unless the best epoch ranks better by more than chance."
        },
    )
    eval_strategy: Any = field(default="epoch", metadata={"help": "When to validate."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best epoch."})
    metric_for_best_model: str | None = field(
        default="score", metadata={"help": "Metric that chooses the best epoch; score is the sum of all metrics."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether a larger metric is better."})
