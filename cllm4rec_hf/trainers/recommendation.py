"""Stage 3: recommendation fine-tuning, alternating with C-steps, validated by full ranking."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from transformers.integrations.integration_utils import default_logdir

from ..data.collators import ContentCollator, RecommendationCollator, TaskCollator
from ..data.corpora import ContentCorpus, InteractionCorpus
from ..errors import CLLM4RecError
from ..evaluation.result import EvaluationResult
from ..evaluation.validation_score import first_within_chance
from ..inference.ranker import ModelRanker
from .arguments import RecommendationArguments
from .base import CLLM4RecTrainer
from .tracking import place_curves

logger = logging.getLogger(__name__)

_START, _LEARNED, _VALUES = "start", "learned.safetensors", "values.safetensors"


@dataclass
class Standing:
    """How well a state ranks on validation.

    Args:
        values: [n] float64, what states are compared by, user by user; the language model has a part in the logits.
        alone: the same where the history term ranks alone, or None where that does not compete.
        results: all metrics of both, in the order of `candidates`.
    """

    values: np.ndarray
    alone: np.ndarray | None = None
    results: tuple[EvaluationResult, ...] = ()

    def candidates(self) -> list[np.ndarray]:
        """What competes, the preferred first: a part that was not trained to rank has to show what it is worth."""
        return [self.values] if self.alone is None else [self.alone, self.values]

    def __str__(self) -> str:
        alone = "" if self.alone is None else f" ({self.alone.mean():.4f} by the history term alone)"
        return f"{self.values.mean():.4f}{alone}"


class RecommendationTrainer(CLLM4RecTrainer):
    """Fine-tunes RecLLM on masked histories; validates by Recall@20, Recall@40 and NDCG@100 and keeps the best epoch.

    Args:
        model: a `CLLM4RecForRecommendation`.
        args: training arguments.
        interactions: interaction documents of the task `recommendation`.
        collator: their collator.
        content: the content documents of the C-steps, or None.
        content_collator: their collator.
        evaluator: validates the model; required unless `eval_strategy` is `no`.
        kwargs: see `CLLM4RecTrainer`.

    Raises:
        CLLM4RecError: if the model ranks by another task.
    """

    args: RecommendationArguments

    def __init__(
        self,
        model: Any,
        args: RecommendationArguments,
        interactions: InteractionCorpus,
        collator: RecommendationCollator,
        content: ContentCorpus | None = None,
        content_collator: ContentCollator | None = None,
        evaluator: Any = None,
        **kwargs: Any,
    ):
        if model.config.ranking_task != "recommendation":
            raise CLLM4RecError(
                f"The model ranks by its {model.config.ranking_task} task, so there is no recommendation task to "
                "fine-tune; set config.ranking_task to 'recommendation'"
            )
        self.evaluator = evaluator
        # the present state's, where it has been measured; `train` takes it
        self.known: Standing | None = None
        # what states are compared by, by the step that they were validated at
        self._values: dict[int, np.ndarray] = {}
        corpora = (interactions,) if content is None else (interactions, content)
        collators = {"recommendation": collator, "content": content_collator}
        # Trainer asks for an eval_dataset wherever eval_strategy is set
        super().__init__(model, args, corpora, TaskCollator(collators), eval_dataset=evaluator, **kwargs)
        self.ranker = ModelRanker(self.model, collator.prompts, collator.max_length)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train as `Trainer.train` does; the best epoch must rank better than the state before the first step.

        It must do so by more than a standard error, see `first_within_chance`: of several epochs the best one on
        validation owes something to luck. The start competes as it is, and without the language model's part of the
        logits, which need not have been trained to rank; where it is kept without, `config.lm_term_ranks` is false
        from then on. Adapters are for that part, and stored without the model's configuration: with them it stays.
        Without `start_competes` the best epoch is kept, whatever was before.

        Args:
            resume_from_checkpoint: checkpoint to go on from, or None.
            kwargs: see `Trainer.train`.
        """
        keeps_best = self.args.load_best_model_at_end and self.evaluator is not None and self.args.start_competes
        start = Path(self.args.output_dir or ".") / _START
        place_curves(self, Path(self.args.output_dir or ".") / default_logdir())
        # a part that an earlier fine-tuning did without is trained again
        self.model.config.lm_term_ranks = True
        # an interrupted run keeps its own start; any other directory of that name is of another model
        if keeps_best and not (resume_from_checkpoint and (start / _VALUES).is_file()):
            self._keep_start(start, self.known or self.standing())
        # steps will change the state
        self.known = None
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if keeps_best:
            kept = load_arrays(start / _VALUES)
            before = Standing(kept["values"], kept.get("alone"))
            # of the best epoch, whose state has been loaded; a run that went on may not have validated it itself
            after = self._values.get(self.state.best_global_step or -1)
            after = self._compared(self.validate()) if after is None else after
            candidates = before.candidates()
            chosen = first_within_chance([*candidates, after])
            if chosen < len(candidates):
                alone = before.alone is not None and chosen == 0
                logger.info(
                    "The best epoch ranks no better on validation than the start by more than chance (%.4f and %s); "
                    "the start is kept%s",
                    after.mean(), before, ", and the history term ranks alone" if alone else "",
                )  # fmt: skip
                self.model.load_state_dict(load_file(start / _LEARNED), strict=False)
                self.model.config.lm_term_ranks = not alone
        return result

    def _keep_start(self, directory: Path, standing: Standing) -> None:
        """Log how the state before the first step ranks, and store it and what it is compared by."""
        self._announce(standing.results[first_within_chance(standing.candidates())])
        if self.is_world_process_zero():
            shutil.rmtree(directory, ignore_errors=True)
            beside = directory.with_name(f"{directory.name}.part")
            beside.mkdir(parents=True, exist_ok=True)
            save_file({name: x.contiguous() for name, x in self.learned_state().items()}, beside / _LEARNED)
            alone = {} if standing.alone is None else {"alone": standing.alone}
            save_arrays({"values": standing.values, **alone}, beside / _VALUES)
            beside.replace(directory)
        self.accelerator.wait_for_everyone()

    def _compared(self, found: EvaluationResult) -> np.ndarray:
        """What states are compared by, [n] float64: each user's metric for the best model, higher is better."""
        name = str(self.args.metric_for_best_model).removeprefix("eval_")
        values = user_scores(found) if name == "score" else found.per_user[name]
        return values if self.args.greater_is_better else -values

    def standing(self) -> Standing:
        """Measure on validation how the present state ranks, with the language model's part of the logits or not."""
        result = self.validate()
        config = self.model.config
        if not (config.lm_term and config.history_rank) or hasattr(self.model, "peft_config"):
            return Standing(self._compared(result), results=(result,))
        config.lm_term_ranks = False
        try:
            alone = self.validate()
        finally:
            config.lm_term_ranks = True
        return Standing(self._compared(result), self._compared(alone), (alone, result))

    def validate(self, evaluator: Any = None) -> EvaluationResult:
        """The present state's result on validation, which no log and no callback hears of.

        Args:
            evaluator: another one than the trainer's own.
        """
        shared = {"accelerator": self.accelerator} if self.accelerator.num_processes > 1 else {}
        with self.whole_backbone():
            return (evaluator or self.evaluator).evaluate(self.ranker, bootstrap=False, **shared)

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rank the whole catalog for every user with validation items.

        Args:
            eval_dataset: another evaluator than the trainer's own.
            ignore_keys: not used.
            metric_key_prefix: prefix of the metrics' names.

        Returns:
            The metrics and `…_score`, their sum.
        """
        result = self.validate(eval_dataset)
        if eval_dataset in (None, self.evaluator):
            self._values[self.state.global_step] = self._compared(result)
        return self._announce(result, metric_key_prefix)

    def _announce(self, result: EvaluationResult, metric_key_prefix: str = "eval") -> dict[str, float]:
        found = result.metrics
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_score"] = sum(found.values())
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def user_scores(result: EvaluationResult) -> np.ndarray:
    """The sum of each user's metrics, [n] float64."""
    return np.sum(list(result.per_user.values()), axis=0)
