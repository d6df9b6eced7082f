"""What the three trainers share: batches of documents, the per-document loss, its parts in the log, safe saving."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback

from ..data.collators import TaskCollator
from ..data.corpora import ContentCorpus, DocumentSet, InteractionCorpus
from ..data.negatives import ItemSampler
from ..data.sampling import AlternatingBatchSampler
from ..errors import CLLM4RecError
from ..modeling.adapters_cllm4rec import TRAINED_BESIDE_ADAPTERS
from ..modeling.attention_cllm4rec import attends_by_document
from ..modeling.quantization_cllm4rec import is_quantized, layer_without_gradient
from .arguments import CLLM4RecTrainingArguments
from .compiling import compiled_layers
from .fsdp import ShardingTrainer
from .passes import split_batch, tokens_per_pass
from .progress import Record, summary_line
from .row_adamw import RowAdamW
from .row_gradients import gradient_norm, share_row_gradients

logger = logging.getLogger(__name__)


class BarOnly(ProgressCallback):
    """The Trainer's progress bar without its lines of raw log dictionaries; `CLLM4RecTrainer` writes the summary."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write nothing."""


class CLLM4RecTrainer(ShardingTrainer):
    """Trains the tables of a CLLM4Rec model on one corpus, or on two whose steps alternate.

    The loss of an optimizer step is the mean over all its documents, whatever the micro-batches and the padding.

    Args:
        model: a CLLM4Rec model with a task head.
        args: training arguments.
        corpora: the corpora; an epoch is one pass over the first.
        collator: the tasks' collators.
        catalog: saved beside the tokenizer in every checkpoint, if given.
        kwargs: further arguments of `Trainer`, e.g. `processing_class` (the tokenizer) and `callbacks`.

    Raises:
        CLLM4RecError: if the model carries peft's adapters and they would be trained without the tables, or a
            quantized backbone lets no gradient through.
    """

    # compute_loss divides by the documents of the whole optimizer step itself
    loss_is_scaled_for_ga = True
    regularize = True
    args: CLLM4RecTrainingArguments
    model: Any

    def __init__(
        self,
        model: Any,
        args: CLLM4RecTrainingArguments,
        corpora: tuple[InteractionCorpus | ContentCorpus, ...],
        collator: TaskCollator,
        catalog: Any = None,
        **kwargs: Any,
    ):
        self.corpora, self.catalog = corpora, catalog
        self.documents = DocumentSet(*corpora)
        super().__init__(model=model, args=args, data_collator=collator, train_dataset=self.documents, **kwargs)
        self._check_tables_learn()
        self._check_gradient_reaches_tables()
        self._items = self._item_sampler()
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(BarOnly)
        self._record = Record(self.model)
        self._summary: dict[str, float] = {}

    def _check_tables_learn(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not hasattr(model, "peft_config") or any(table.weight.requires_grad for table in model.tables()):
            return
        raise CLLM4RecError(
            "The model's active adapter does not train the user and item tables. Load a trained one by "
            "PeftModel.from_pretrained(…, is_trainable=True); give a further one "
            f"modules_to_save={list(TRAINED_BESIDE_ADAPTERS)}"
        )

    def _check_gradient_reaches_tables(self) -> None:
        backbone = self.accelerator.unwrap_model(self.model).backbone
        if is_quantized(backbone) and (layer := layer_without_gradient(backbone)) is not None:
            raise CLLM4RecError(
                f"The backbone's {layer} passes no gradient to its input, so the tables would not learn through it. "
                "Quantize weights alone, not activations: quantization int8 or int4, e.g. "
                "TorchAoConfig(Int8WeightOnlyConfig())"
            )

    # ---- batches

    @property
    def _data_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def _item_sampler(self) -> ItemSampler | None:
        """What stands for the catalog in the item softmaxes, None where they are exact."""
        histories = next((corpus.histories for corpus in self.corpora if isinstance(corpus, InteractionCorpus)), None)
        if histories is None or histories.num_items <= self.args.sampled_softmax_above:
            return None
        popularity = np.bincount(histories.items, minlength=histories.num_items)
        return ItemSampler(popularity, self.args.sampled_softmax_size, self._data_seed)

    def get_train_dataloader(self) -> DataLoader:
        """This process's share of the batches of `AlternatingBatchSampler`."""
        sampler = AlternatingBatchSampler(
            self.corpora,
            self._train_batch_size,
            self.args.gradient_accumulation_steps,
            self._data_seed,
            self.args.process_index,
            self.args.world_size,
        )
        loader: DataLoader = DataLoader(
            self.documents,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # the sampler has shared the documents out; accelerate would drop what does not make equal batches
        return prepare_data_loader(
            loader, device=self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        documents = torch.tensor(sum(len(batch["input_ids"]) for batch in batch_samples), device=device)
        return self.accelerator.reduce(documents, "sum")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does."""
        self._record.start_run()
        with compiled_layers(self._bare_model().backbone, self.args.compile_layers):
            result = super().train(*args, **kwargs)
        if self.accelerator.num_processes > 1:
            # DistributedDataParallel must not outlive the process group: as its last owner it would wait for gloo's
            # threads with Python's lock held, which they need
            self.model_wrapped = self.model
            self.accelerator.free_memory()
        return result

    # ---- loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of a micro-batch, so scaled that the sum over an optimizer step is the mean over its documents.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        if self._items is not None and inputs["task"] != "content" and model.training:
            # one sample a step: micro-batches and processes share it, so they do not change the gradient
            sample = self._items.draw(self.state.global_step)
            inputs = {**inputs, "sample": tuple(part.to(self.args.device) for part in sample)}
        outputs = model(**inputs, regularize=self.regularize)
        documents = len(inputs["input_ids"])
        loss = outputs.loss
        if model.training:
            if not torch.isfinite(loss):
                raise FloatingPointError(self._divergence(f"the loss of a {inputs['task']} batch is {loss.item()}"))
            cells = self._computed_tokens(inputs["attention_mask"])
            self._record.add(inputs, outputs, cells, self.state.global_step)
        if num_items_in_batch is not None:
            # gradients are averaged over processes, documents are counted over all of them
            loss = loss * documents * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _divergence(self, what: str) -> str:
        return (
            f"Training stopped at step {self.state.global_step}: {what}. The checkpoints in {self.args.output_dir} "
            "are those of earlier steps, nothing was saved over them. Lower the learning rates "
            f"(learning_rate {self.args.learning_rate}, content_learning_rate {self.args.content_learning_rate}, "
            f"user_learning_rate {self.args.user_learning_rate}, head_learning_rate {self.args.head_learning_rate}, "
            f"backbone_learning_rate {self.args.backbone_learning_rate}), or train in float32."
        )

    # ---- optimizer

    def parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        """Parameters and their learning rates, by what they are."""
        return [*self._collaborative_groups(model), *self._content_groups(model), *self._other_groups(model)]

    def _collaborative_groups(self, model: Any) -> list[dict[str, Any]]:
        args = self.args
        return [
            _group("user tokens", [model.collaborative_user_embeddings.weight], args.user_learning_rate, args),
            _group("item tokens", [model.collaborative_item_embeddings.weight], None, args),
            _group("head", list(model.item_head.parameters()), args.head_learning_rate, args),
        ]

    def _content_groups(self, model: Any) -> list[dict[str, Any]]:
        return [_group("content", model.content_parameters(), self.args.content_learning_rate, self.args)]

    def _other_groups(self, model: Any) -> list[dict[str, Any]]:
        args = self.args
        return [_group("backbone", list(model.backbone.parameters()), args.backbone_learning_rate, args)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of `args.optim` over `parameter_groups`."""
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            optimizer_class, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, target
            )
            by_rows = self._steps_by_rows()
            if by_rows:
                optimizer_class = RowAdamW
                settings = {name: value for name, value in settings.items() if name in ("lr", "betas", "eps")}
            for table in self._row_tables():
                table.sparse = by_rows
            groups = [
                group for group in self.parameter_groups(self.accelerator.unwrap_model(target)) if group["params"]
            ]
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def _steps_by_rows(self) -> bool:
        is_adamw = self.optimizer_cls_and_kwargs is None and str(
            getattr(self.args.optim, "value", self.args.optim)
        ).startswith("adamw_torch")
        # these know dense gradients only
        knows_rows = not (self.is_deepspeed_enabled or self.args.device.type == "mps")
        return self.args.row_sparse and is_adamw and knows_rows

    def _row_tables(self) -> list[torch.nn.Embedding]:
        """Tables whose gradient comes from look-ups."""
        model = self.accelerator.unwrap_model(self.model)
        queries = model.item_head.history_queries
        return [*model.tables(), *([] if queries is None else [queries])]

    def _exchanged_here(self, model: Any) -> list[torch.Tensor]:
        """Parameters whose gradients DistributedDataParallel does not exchange."""
        if self.accelerator.num_processes == 1:
            return []
        if self.sharding is not None:
            return [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [table.weight for table in self._row_tables()] if self._steps_by_rows() else []

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if training and (exchanged := {id(parameter) for parameter in self._exchanged_here(model)}):
            # nobody else makes sure that all processes, on machines of their own, have found the same start
            for tensor in (*self._exchanged_here(model), *model.item_head.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)
            names = [name for name, parameter in model.named_parameters() if id(parameter) in exchanged]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
            if not any(p.requires_grad for p in model.parameters() if id(p) not in exchanged):
                # nothing is left for DistributedDataParallel, which refuses to wrap such a model
                self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        return super()._wrap_model(model, training=training, dataloader=dataloader)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch's backward pass; after the last of a step, processes exchange the gradients of rows."""
        *first, last = self._passes(inputs)
        loss: Any = 0.0
        for part in first:
            with self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        loss = loss + super().training_step(model, last, num_items_in_batch)
        if self.accelerator.sync_gradients and (exchanged := self._exchanged_here(model)):
            share_row_gradients(self.accelerator, exchanged)
        return loss

    def _passes(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        if self.sharding is not None or self.is_deepspeed_enabled:
            # every pass gathers layers from all processes, so all have to make the same number of them
            return [batch]
        bound = tokens_per_pass(self.args.tokens_per_pass, self.args.device)
        return split_batch(batch, bound, computes_padding=not attends_by_document(self._bare_model().backbone))

    def _computed_tokens(self, mask: torch.Tensor) -> int:
        return int(mask.sum()) if attends_by_document(self._bare_model().backbone) else mask.numel()

    def _bare_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        if not self._steps_by_rows():
            return super()._clip_grad_norm(model)
        return gradient_norm(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._steps_by_rows():
            grad_norm = gradient_norm(model.parameters())
        return super()._get_grad_norm(model, grad_norm)

    # ---- log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss's parts, speed, time left and memory to the log, and write one summary line an epoch."""
        if "loss" in logs and self._record:
            logs |= self._record.summarize(self.state, self.accelerator)
            self._summary = {k: v for k, v in logs.items() if k not in ("loss", "grad_norm", "learning_rate", "epoch")}
            if self.args.eval_strategy == "no":
                self._write_summary()
        elif any(name.startswith("eval_") for name in logs):
            self._summary |= {k: v for k, v in logs.items() if k != "epoch" and not k.endswith("per_second")}
            self._write_summary()
            self._record.pause()
        super().log(logs, start_time)

    def _write_summary(self) -> None:
        if self.is_world_process_zero():
            line = summary_line(self._summary)
            logger.info("%s epoch %.4g  %s", type(self).__name__, self.state.epoch or 0, line)

    # ---- saving

    def learned_state(self) -> dict[str, torch.Tensor]:
        """Everything that trains, by its name in the model: tables, head, adapters."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # a gradient can overflow where the loss did not; such tables must not replace good ones
        for name, parameter in self.learned_state().items():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(self._divergence(f"{name} holds values that are not finite"))
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir or ".")
        # the Trainer's pickle of its arguments; the recipe's training.yaml says the same in a safe format
        (directory / "training_args.bin").unlink(missing_ok=True)
        if self.catalog is not None:
            self.catalog.save_pretrained(directory)


def _group(name: str, parameters: list, learning_rate: float | None, args: Any) -> dict[str, Any]:
    return {
        "name": name,
        "params": [parameter for parameter in parameters if parameter.requires_grad],
        "lr": args.learning_rate if learning_rate is None else learning_rate,
        "weight_decay": args.weight_decay,
    }
