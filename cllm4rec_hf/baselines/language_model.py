"""What the two baselines that fine-tune a language model share: adapters, training, prompts padded left, files."""

import inspect
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from ..data.prepared import PreparedData
from ..errors import CLLM4RecError
from ..modeling.backbone_cllm4rec import has_bfloat16, load_backbone, load_backbone_config
from ..tokenization.base_tokenizer_cllm4rec import load_base
from . import storage
from .base import Baseline
from .neural import default_device
from .selection import is_main_process

logger = logging.getLogger(__name__)

MODEL_DIRECTORY = "language_model"
ADAPTER_FILE = "adapter_model.safetensors"
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(kw_only=True)
class LanguageModelConfig:
    """Settings of both.

    Args:
        backbone: name of a causal language model, see `modeling.backbone_cllm4rec.locate_backbone`.
        num_layers: keep only its first so many layers; None keeps all.
        num_users: number of users I.
        num_items: number of items J.
        lora_rank: rank of the adapters in all linear layers; 0 trains all parameters instead.
        lora_alpha: the adapters' scale times their rank.
        lora_dropout: dropout of the adapters' inputs.
        learning_rate: of AdamW, falling linearly to 0 after a warm-up over the first 5 % of the steps.
        batch_size: examples in a step.
        max_epochs: most passes over the examples.
        patience: epochs without a lower validation loss after which training ends; the best epoch is kept.
        max_length: longest prompt in tokens; longer ones lose their oldest items.
        precision: of the weights that predict, and of the frozen ones in training: `bfloat16`, `float32` or `auto`,
            bfloat16 where the machine computes in it.
    """

    model_type: ClassVar[str]

    backbone: str = ""
    num_layers: int | None = None
    num_users: int = 0
    num_items: int = 0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    learning_rate: float = 1e-3
    batch_size: int = 8
    max_epochs: int = 10
    patience: int = 2
    max_length: int = 512
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        for name in ("batch_size", "max_epochs", "patience", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be 0 (train all parameters) or more, got {self.lora_rank}")

    @property
    def dtype(self) -> torch.dtype:
        """The precision as a dtype."""
        if self.precision == "auto":
            return torch.bfloat16 if has_bfloat16() else torch.float32
        return getattr(torch, self.precision)


class LanguageModelBaseline(Baseline):
    """A causal language model, fine-tuned to answer in its own words.

    Subclasses define `read` (what they know of the data), `examples` and `collate` (what is trained on), `loss` where
    it is not the model's own, and `score`. After training the adapters are merged into the weights that predict; the
    adapters themselves are kept for saving.

    Args:
        config: the settings.
        tokenizer: the backbone's tokenizer.
        language_model: the backbone, or what was trained of it.
    """

    config_class: ClassVar[type[LanguageModelConfig]]
    # what `read` sets and checkpoints hold
    ARRAYS: ClassVar[tuple[str, ...]]

    # a loss of outputs, labels and the number of labels in the step; None takes the model's own
    loss: Callable[..., Tensor] | None = None

    def __init__(self, config: Any, tokenizer: Any, language_model: PreTrainedModel):
        self.config, self.tokenizer, self.language_model = config, tokenizer, language_model
        self.adapter: dict[str, Tensor] = {}
        self.adapter_config: Any = None
        self.device = default_device()
        self.pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        # what the tokenizer puts in front of every text, a LLaMA's <s>
        bare = self.tokens("a")
        full = tokenizer("a")["input_ids"]
        self.start = full[: full.index(bare[0])] if bare[0] in full else []

    # ---- what subclasses define

    @classmethod
    def read(cls, config: Any, data: PreparedData, seed: int) -> dict[str, Any]:
        """What the model knows of the data beside its weights, by attribute; see `Baseline.fit_to`."""
        raise NotImplementedError

    def examples(self, data: PreparedData, split: str) -> list[dict[str, Any]]:
        """What is trained on (`train`) or validated on (`validation`), each with its `length` in some unit."""
        raise NotImplementedError

    def collate(self, rows: list[dict[str, Any]], generator: np.random.Generator) -> dict[str, Tensor]:
        """A batch of examples as the language model's arguments and `labels`; what is drawn comes from `generator`."""
        raise NotImplementedError

    # ---- what both do

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> Any:
        """Fine-tune the backbone; the state of the epoch with the lowest validation loss is kept.

        Args:
            data: prepared data.
            seed: seed of everything random.
            settings: fields of the configuration; `backbone` must be among them.

        Returns:
            The fitted model.

        Raises:
            DataError: if the model needs names of items and there are none.
            ValueError: if the backbone is not named or is no causal language model.
            FloatingPointError: if the loss becomes no finite number.
        """
        config = cls.config_class(num_users=data.num_users, num_items=data.num_items, **settings)
        known = cls.read(config, data, seed)
        # where all parameters train, those that step are float32
        dtype = config.dtype if config.lora_rank else torch.float32
        language_model = _load_causal(config, dtype)
        model = cls(config, _load_tokenizer(config), language_model)
        for name, value in known.items():
            setattr(model, name, value)
        with torch.random.fork_rng():
            # initial adapters and dropout draw from the global generator
            torch.manual_seed(seed)
            model._train(data, seed)
        return model

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json, model.safetensors (what was read of the data) and language_model/.

        language_model/ holds peft's adapter files, or the whole model where all parameters were trained.
        """
        from safetensors.torch import save_file

        directory = Path(directory)
        storage.save(
            directory,
            self.config.model_type,
            asdict(self.config),
            {name: getattr(self, name) for name in self.ARRAYS},
        )
        beside, home = directory / f"{MODEL_DIRECTORY}.part", directory / MODEL_DIRECTORY
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        if self.config.lora_rank:
            self.adapter_config.save_pretrained(beside)
            save_file(self.adapter, beside / ADAPTER_FILE, metadata={"format": "pt"})
        else:
            self.language_model.save_pretrained(beside)
        shutil.rmtree(home, ignore_errors=True)
        beside.replace(home)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Any:
        """Read what `save_pretrained` wrote; the backbone and its tokenizer come from where its name says.

        Raises:
            CLLM4RecError: if no such model lies there.
        """
        settings, arrays = storage.load(directory, cls.config_class.model_type)
        home = Path(directory) / MODEL_DIRECTORY
        config = cls.config_class(**settings)
        file = home / (ADAPTER_FILE if config.lora_rank else "config.json")
        if not file.is_file():
            raise CLLM4RecError(f"{directory} holds no {MODEL_DIRECTORY}/{file.name}; fit and save the model again")
        if config.lora_rank:
            peft = _import_peft(config)
            model = cls(config, _load_tokenizer(config), _load_causal(config, config.dtype))
            model._merge(peft.PeftModel.from_pretrained(model.language_model, home))
        else:
            from transformers import AutoModelForCausalLM

            whole = AutoModelForCausalLM.from_pretrained(home, dtype=config.dtype)
            model = cls(config, _load_tokenizer(config), whole)
            model._set_up()
        for name in cls.ARRAYS:
            if name not in arrays:
                raise CLLM4RecError(f"The model in {directory} lacks {name}; fit and save it again")
            setattr(model, name, arrays[name])
        return model

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Rows of token ids with padding on the left, so that all end at the last column.

        Args:
            rows: B lists of token ids.

        Returns:
            input_ids, attention_mask and position_ids, [B, T] int64 each, on the CPU.
        """
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = 1
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}

    # ---- training

    def _train(self, data: PreparedData, seed: int) -> None:
        from datasets import Dataset
        from transformers import Trainer, TrainingArguments

        config = self.config
        model: Any = self.language_model
        model.to(self.device)
        examples = {split: self.examples(data, split) for split in ("train", "validation")}
        if not examples["train"]:
            raise CLLM4RecError("No user has enough training items to learn from; prepare the data with a --k-core")
        model.config.use_cache = False
        if self.device.type == "cpu" and config.dtype == torch.bfloat16:
            # faster there than the backward pass of sdpa
            model.set_attn_implementation("eager")
        trained: Any = _with_adapters(model, config) if config.lora_rank else model.requires_grad_(True)
        generator = np.random.Generator(np.random.PCG64(seed))
        best = _KeepBest(config.patience)
        with tempfile.TemporaryDirectory() as output:
            arguments = TrainingArguments(
                output_dir=output, seed=seed, report_to="none", save_strategy="no", logging_strategy="epoch",
                eval_strategy="epoch" if examples["validation"] else "no", remove_unused_columns=False,
                per_device_train_batch_size=config.batch_size, per_device_eval_batch_size=config.batch_size,
                num_train_epochs=config.max_epochs, learning_rate=config.learning_rate, warmup_steps=0.05,
                train_sampling_strategy="group_by_length", prediction_loss_only=True, label_names=["labels"],
                bf16=not config.lora_rank and config.dtype == torch.bfloat16, dataloader_pin_memory=False,
                disable_tqdm=not is_main_process(),
            )  # fmt: skip
            trainer = Trainer(
                model=trained,
                args=arguments,
                train_dataset=Dataset.from_list(examples["train"]),
                eval_dataset=Dataset.from_list(examples["validation"]) if examples["validation"] else None,
                data_collator=lambda rows: self.collate(rows, generator),
                compute_loss_func=self.loss,
                callbacks=[best],
            )
            _quiet(trainer)
            trainer.train()
        best.restore(trained)
        logger.info("%s: epoch %d is the best on validation, loss %.4f", type(self).__name__, best.epoch, best.loss)
        if config.lora_rank:
            self._merge(trained)
        else:
            model.to(config.dtype)
            self._set_up()

    def _merge(self, trained: Any) -> None:
        """Keep the adapters for saving, and merge them into the weights that predict."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(trained, save_embedding_layers=False)
        self.adapter = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        self.adapter_config = trained.peft_config["default"]
        self.adapter_config.inference_mode = True
        # where the weights were read on this machine is nobody else's business
        self.adapter_config.base_model_name_or_path = self.config.backbone
        self.language_model = trained.merge_and_unload()
        self._set_up()

    def _set_up(self) -> None:
        """Make the language model ready to predict."""
        model: Any = self.language_model
        model.to(self.device).eval().requires_grad_(False)
        if getattr(model, "_supports_sdpa", False):
            model.set_attn_implementation("sdpa")
        model.config.use_cache = True


def cache_name(model: Any) -> str:
    """The argument that takes a language model's cache of keys and values; releases of transformers differ."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class _KeepBest(TrainerCallback):
    """Remembers the trained parameters of the epoch with the lowest validation loss, and stops after it."""

    def __init__(self, patience: int):
        self.patience, self.loss, self.epoch = patience, math.inf, 0
        self.state: dict[str, Tensor] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Compare the validation loss."""
        epoch = round(state.epoch)
        if metrics["eval_loss"] < self.loss:
            self.loss, self.epoch = metrics["eval_loss"], epoch
            self.state = {name: value.detach().clone() for name, value in _trainable(kwargs["model"])}
        elif epoch - self.epoch >= self.patience:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Stop where the loss is no number."""
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(f"The loss became {loss}; lower the learning_rate, now {args.learning_rate:g}")

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        """Put the best state back; without any validation the last one stays."""
        for name, value in _trainable(model):
            if name in self.state:
                value.copy_(self.state[name])


def _trainable(model: Any) -> list[tuple[str, Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _quiet(trainer: Any) -> None:
    """Leave the Trainer's bar, if any, without its lines of raw dictionaries."""
    from transformers import PrinterCallback, ProgressCallback

    from ..trainers.base import BarOnly

    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(BarOnly)


def _import_peft(config: LanguageModelConfig) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModuleNotFoundError(
            f"lora_rank {config.lora_rank} needs the package peft: pip install 'cllm4rec-hf[peft]', or fit with "
            "lora_rank 0, which trains all parameters"
        ) from error
    return peft


def _with_adapters(model: Any, config: LanguageModelConfig) -> Any:
    peft = _import_peft(config)
    settings = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    return peft.get_peft_model(model, settings)


def _load_tokenizer(config: LanguageModelConfig) -> Any:
    return load_base(config.backbone, {}, with_rows=False)[0]


def _load_causal(config: LanguageModelConfig, dtype: torch.dtype) -> Any:
    if not config.backbone:
        raise ValueError(
            f"{config.model_type} needs a language model; name it by backbone=…, a Hub id, directory or GGUF file"
        )
    if load_backbone_config(config.backbone).is_encoder_decoder:
        raise ValueError(
            f"{config.model_type} needs a causal language model; {config.backbone!r} is an encoder–decoder model"
        )
    return load_backbone(config.backbone, num_layers=config.num_layers, dtype=dtype, attn_implementation="sdpa")
