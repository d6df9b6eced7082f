"""The whole training: warm start, content warm-up, mutually regularized pretraining, recommendation fine-tuning."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from tqdm.contrib.logging import logging_redirect_tqdm

from ..card import LOG_FILE, SETTINGS_FILE, about_run, write_card
from ..data.catalog import Catalog
from ..data.collators import CollaborativeCollator, ContentCollator, RecommendationCollator
from ..data.corpora import ContentCorpus, InteractionCorpus
from ..data.prepared import PreparedData
from ..data.prompts import PromptBuilder
from ..errors import CLLM4RecError
from ..evaluation.evaluator import Evaluator
from ..evaluation.validation_score import first_within_chance
from .arguments import ContentArguments, MutualRegularizationArguments, RecommendationArguments
from .building import backbone_config, build
from .calibration import calibrate_head
from .content import ContentTrainer
from .mutual_regularization import MutualRegularizationTrainer
from .recommendation import RecommendationTrainer
from .settings import SETTLED, RecipeSettings
from .text_states import text_states
from .tracking import RUNS_DIRECTORY, check_trackers, place_curves
from .warm_start import WarmStart, fit_warm_start

logger = logging.getLogger(__name__)

STAGES_DIRECTORY = "stages"
STAGES = ("content", "pretraining", "recommendation")

# settings whose product with the number of processes makes the documents of a step
_STEP = ("batch_size", "gradient_accumulation_steps")
# seconds between two looks for what the main process writes
_WAIT = 0.2
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_WRITTEN = (
    "config.json", "model*.safetensors*", "tokenizer*.json", "special_tokens_map.json", "chat_template.jinja",
    "catalog_*.parquet", "evaluation*.json", "README.md", SETTINGS_FILE, LOG_FILE, STAGES_DIRECTORY, "*.part",
    *(f"{RUNS_DIRECTORY}/{stage}" for stage in STAGES),
)  # fmt: skip


def train(settings: RecipeSettings) -> Path:
    """Run the three stages and write the checkpoint; an interrupted run goes on from its last checkpoint.

    Args:
        settings: the run's settings.

    Returns:
        The checkpoint's directory: tables, tokenizer, catalog, training.yaml and training_log.json.

    Raises:
        CLLM4RecError: if the output directory holds a run with other settings.
    """
    return Recipe(settings).run()


class Recipe:
    """The stages of one run on one model.

    Args:
        settings: the run's settings.
    """

    def __init__(self, settings: RecipeSettings):
        # the preset has filled every field that may be None
        self.settings: Any = settings
        self.output = Path(settings.output)
        self.history: dict[str, list[dict[str, Any]]] = {}
        # every process trains, the main one alone writes
        self.processes = PartialState(cpu=not torch.accelerator.is_available())

    def run(self) -> Path:
        """Train, save, and return the checkpoint's directory."""
        check_trackers(self.settings.trackers())
        self.data = PreparedData.load(self.settings.data)
        self.made_by = {**self.settings.what_made_it(), "data_fingerprint": self.data.fingerprint}
        if self._ask_main_process(self._is_finished):
            logger.info("%s already holds this run's checkpoint; nothing to do", self.output)
            return self.output
        self._prepare_parts()
        stages = self._stages()
        for number, (name, stage) in enumerate(stages.items(), start=1):
            directory = self.output / STAGES_DIRECTORY / f"{number}-{name}"
            if (directory / "final").is_dir():
                logger.info("Stage %d (%s) is done; its tables are read from %s", number, name, directory / "final")
                self._load_tables(directory / "final")
                self.history[name] = json.loads((directory / "final" / LOG_FILE).read_text())
            else:
                logger.info("Stage %d of %d: %s", number, len(stages), name)
                self._run_stage(name, directory, stage)
        if "recommendation" not in stages and self.settings.ranking_task == "recommendation":
            # the head is calibrated for what ranks, trained or not
            self._recommendation_stage(self.output / STAGES_DIRECTORY / "untrained-recommendation")
        if self.processes.is_main_process:
            self._finish()
        self.processes.wait_for_everyone()
        return self.output

    # ---- before the stages

    def _ask_main_process(self, question: Callable[[], Any]) -> Any:
        """The main process's answer, in every process; so is the error that it met."""
        answer: list[Any] = [None, None]
        if self.processes.is_main_process:
            try:
                answer[0] = question()
            except CLLM4RecError as error:
                answer[1] = str(error)
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise CLLM4RecError(answer[1])
        return answer[0]

    def _is_finished(self) -> bool:
        file = self.output / SETTINGS_FILE
        if not file.is_file():
            # curves may have been kept where the checkpoint was not
            if self.output.exists() and any(path.name != RUNS_DIRECTORY for path in self.output.iterdir()):
                raise CLLM4RecError(
                    f"The output directory {self.output} exists and holds something else than a training run; "
                    "choose another one by --output"
                )
            return False
        before, now = _read_settings(file), self.made_by
        finished = any((self.output / name).is_file() for name in _WEIGHT_FILES)
        documents = self._documents_a_step(before), self._documents_a_step(now)
        other = [name for name in now if before.get(name) != now[name]]
        # who goes on with another number of processes keeps the documents of a step, or steps would be counted anew
        if not set(other) - set(_STEP) and (documents[0] == documents[1] or (finished and not other)):
            return finished
        trained = [*self.output.glob("model*.safetensors*"), *self.output.glob(f"{STAGES_DIRECTORY}/*/*")]
        if not trained:
            # of a run that came to nothing, perhaps by other settings
            for path in (self._start_file, self._warm_start_file):
                path.unlink(missing_ok=True)
            return False
        if not self.settings.overwrite:
            told = [f"{name}: {before.get(name)!r} there, {now[name]!r} here" for name in other]
            if not set(other) - set(_STEP):
                told.append(
                    f"documents in a step: {documents[0]} there, {documents[1]} here, by batch_size x "
                    f"gradient_accumulation_steps x {self.processes.num_processes} processes"
                )
            raise CLLM4RecError(
                f"{self.output} holds a run with other settings ({'; '.join(told[:4])}). "
                "Choose another --output, or --overwrite to start again"
            )
        # only what a run writes: the directory may hold other things of the user's
        for pattern in _WRITTEN:
            for path in self.output.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return False

    def _documents_a_step(self, made_by: dict[str, Any]) -> int:
        """Interaction documents of an optimizer step, over all processes."""
        # runs of earlier versions did not say in how many
        processes = (made_by.get("about") or {}).get("processes", self.processes.num_processes)
        return int(made_by["batch_size"] * made_by["gradient_accumulation_steps"] * processes)

    def _prepare_parts(self) -> None:
        settings = self.settings
        backbone = backbone_config(settings)
        if self.processes.is_main_process:
            self._write_settings()
        self.catalog = Catalog.from_prepared(self.data, settings.include_histories)
        start = self._warm_start(backbone.hidden_size)
        self.model, self.tokenizer = build(settings, self.data, backbone, start)
        if start is not None and settings.pretraining_epochs and settings.recommendation_epochs:
            self._keep_start()
        self.prompts = PromptBuilder(self.tokenizer, self.model.config.is_encoder_decoder)
        histories = self.data.histories("train")
        length, seed = settings.max_length, settings.seed
        self.collaborative = InteractionCorpus(histories, "collaborative")
        self.recommendation = InteractionCorpus(histories, "recommendation", min_items=2)
        self.content: Any = (
            ContentCorpus(self.data.texts, self.prompts, settings.max_text_length, self.data.fingerprint)
            if settings.use_content and len(self.data.texts)
            else None
        )
        if self.content is None and self.model.config.lambda_c:
            logger.info("There are no content documents, so nothing is pulled towards content embeddings")
            self.model.config.lambda_c = 0.0
        self.collaborative_collator = CollaborativeCollator(self.prompts, length, seed, settings.reorder)
        self.content_collator = ContentCollator(self.prompts, settings.max_text_length, seed)
        self.recommendation_collator = RecommendationCollator(
            self.prompts, length, tuple(settings.mask_share), settings.anonymous_share, seed, settings.reorder
        )

    def _write_settings(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        beside = self.output / f"{SETTINGS_FILE}.part"
        about = about_run(self.data.meta, self.settings.backbone, self.settings.backbone_revision)
        about["processes"] = self.processes.num_processes
        beside.write_text(yaml.safe_dump({**self.made_by, "about": about}, sort_keys=False), encoding="utf-8")
        beside.replace(self.output / SETTINGS_FILE)

    def _warm_start(self, max_rank: int) -> WarmStart | None:
        """Fitted once, by the main process: its choices rest on sums that may differ elsewhere in their last bits."""
        if self.settings.warm_start == "none":
            return None
        failure = self._warm_start_file.with_suffix(".failed")
        if self.processes.is_main_process:
            # of an earlier attempt
            failure.unlink(missing_ok=True)
        self.processes.wait_for_everyone()
        if self.processes.is_main_process and not self._warm_start_file.is_file():
            try:
                self._fit_warm_start(max_rank).save(self._warm_start_file)
            except BaseException as error:
                failure.parent.mkdir(parents=True, exist_ok=True)
                beside = failure.with_suffix(".part")
                beside.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
                beside.replace(failure)
                raise
        # it may take longer than processes wait for each other
        while not self._warm_start_file.is_file():
            if failure.is_file():
                raise CLLM4RecError(
                    f"The main process could not fit the warm start ({failure.read_text(encoding='utf-8')}); its own "
                    "message says where, and --warm-start none does without it"
                )
            time.sleep(_WAIT)
        return WarmStart.load(self._warm_start_file)

    def _fit_warm_start(self, max_rank: int) -> WarmStart:
        settings = self.settings
        # a backbone that starts at random knows nothing of the texts
        reads = settings.warm_start_texts and settings.warm_start_lm and not settings.random_backbone
        states = text_states(self.data, settings) if reads else None
        return fit_warm_start(
            self.data,
            max_rank,
            settings.warm_start,
            settings.seed,
            settings.warm_start_texts,
            states,
            settings.warm_start_steps,
        )

    # ---- the stages

    def _stages(self) -> dict[str, Callable[[Path], Any]]:
        stages: dict[str, Callable[[Path], Any]] = {}
        if self.content is not None and self.settings.content_epochs:
            stages["content"] = self._content_stage
        if self.settings.pretraining_epochs:
            stages["pretraining"] = self._pretraining_stage
        if self.settings.recommendation_epochs:
            stages["recommendation"] = self._recommendation_stage
        return stages

    def _content_stage(self, directory: Path) -> ContentTrainer:
        settings = self.settings
        args = ContentArguments(
            **self._arguments(directory, settings.content_epochs, settings.content_stage_learning_rate),
            backbone_learning_rate=settings.backbone_learning_rate,
        )
        return ContentTrainer(self.model, args, self.content, self.content_collator, **self._parts())

    def _pretraining_stage(self, directory: Path) -> MutualRegularizationTrainer:
        settings = self.settings
        args = MutualRegularizationArguments(
            **self._arguments(directory, settings.pretraining_epochs, settings.pretraining_learning_rate),
            **self._group_rates(),
        )
        trainer = MutualRegularizationTrainer(
            self.model,
            args,
            self.collaborative,
            self.collaborative_collator,
            self.content,
            self.content_collator,
            **self._parts(),
        )
        # by now the model is where it computes
        with trainer.whole_backbone():
            calibrate_head(
                self.model,
                self.collaborative,
                self.collaborative_collator,
                settings.initial_lm_share,
                seed=settings.seed,
            )
        return trainer

    def _recommendation_stage(self, directory: Path) -> RecommendationTrainer:
        settings = self.settings
        args = RecommendationArguments(
            **self._arguments(directory, settings.recommendation_epochs, settings.recommendation_learning_rate),
            **self._group_rates(),
            # tables that were drawn at random rank nothing
            start_competes=settings.warm_start != "none",
        )
        trainer = RecommendationTrainer(
            self.model,
            args,
            self.recommendation,
            self.recommendation_collator,
            self.content,
            self.content_collator,
            evaluator=Evaluator(self.data, split="validation"),
            **self._parts(),
        )
        self._calibrate(trainer, settings.initial_lm_share if not settings.pretraining_epochs else None)
        return trainer

    def _calibrate(self, trainer: RecommendationTrainer, lm_share: float | None) -> None:
        with trainer.whole_backbone():
            calibrate_head(
                self.model, self.recommendation, self.recommendation_collator, lm_share, seed=self.settings.seed
            )

    # ---- the warm start's own state, which pretraining may make worse

    @property
    def _start_file(self) -> Path:
        return self.output / STAGES_DIRECTORY / "start.safetensors"

    @property
    def _warm_start_file(self) -> Path:
        return self.output / STAGES_DIRECTORY / "warm_start.safetensors"

    def _ranking_state(self) -> dict[str, Any]:
        """A copy of the item tokens and of the head."""
        parts = ("collaborative_item_embeddings.", "item_head.")
        state = {name: x for name, x in self.model.state_dict().items() if name.startswith(parts)}
        return {name: x.to("cpu", copy=True).contiguous() for name, x in state.items()}

    def _keep_start(self) -> None:
        if self.processes.is_main_process:
            self._start_file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._start_file.with_suffix(".part")
            save_file(self._ranking_state(), beside)
            beside.replace(self._start_file)
        self.processes.wait_for_everyone()

    def _choose_start(self, trainer: RecommendationTrainer) -> None:
        """Give item tokens and head back what the warm start gave them, unless pretraining made them rank better.

        Better on validation, and by more than a standard error, see `first_within_chance`.
        """
        of_pretrained, state = trainer.standing(), self._ranking_state()
        # the collaborative task's calibration was measured in pretraining and stays
        start = load_file(self._start_file).items()
        kept = {name: x for name, x in start if not name.startswith("item_head.collaborative_")}
        self.model.load_state_dict(kept, strict=False)
        self._calibrate(trainer, self.settings.initial_lm_share)
        of_start = trainer.standing()
        candidates = [*of_start.candidates(), *of_pretrained.candidates()]
        stays = first_within_chance(candidates) < len(of_start.candidates())
        logger.info(
            "Validation score %s after pretraining, %s by the warm start: %s goes on",
            of_pretrained, of_start, "the warm start" if stays else "pretraining",
        )  # fmt: skip
        if not stays:
            self.model.load_state_dict(state, strict=False)
        trainer.known = of_start if stays else of_pretrained

    def _arguments(self, directory: Path, epochs: float | None, learning_rate: float | None) -> dict[str, Any]:
        settings, stage = self.settings, directory.name.partition("-")[2]
        return {
            "output_dir": str(directory),
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "lr_scheduler_type": settings.lr_scheduler_type,
            "per_device_train_batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "seed": settings.seed,
            # said outright, or several processes on CPUs would not find each other
            "use_cpu": not torch.accelerator.is_available(),
            "report_to": settings.trackers(),
            "project": self.output.resolve().name,
            "run_name": f"{self.output.resolve().name}-{stage}",
            **settings.of_trainers(),
        }

    def _group_rates(self) -> dict[str, Any]:
        names = ("content_learning_rate", "user_learning_rate", "head_learning_rate", "backbone_learning_rate")
        return {name: getattr(self.settings, name) for name in names}

    def _parts(self) -> dict[str, Any]:
        return {"catalog": self.catalog, "processing_class": self.tokenizer}

    def _run_stage(self, name: str, directory: Path, stage: Callable[[Path], Any]) -> None:
        trainer = stage(directory)
        last = self._ask_main_process(lambda: _last_complete_checkpoint(directory))
        if last is not None:
            logger.info("Going on from %s", last)
        elif self.processes.is_main_process:
            # of an attempt that came to nothing
            shutil.rmtree(self.output / RUNS_DIRECTORY / name, ignore_errors=True)
        place_curves(trainer, self.output / RUNS_DIRECTORY, name)
        if name == "recommendation" and last is None and self._start_file.is_file():
            self._choose_start(trainer)
        with logging_redirect_tqdm():
            trainer.train(resume_from_checkpoint=last)
        self.history[name] = trainer.state.log_history
        if self.processes.is_main_process:
            beside = directory / "final.part"
            self.model.save_pretrained(beside)
            (beside / LOG_FILE).write_text(json.dumps(self.history[name]))
            beside.replace(directory / "final")
        self.processes.wait_for_everyone()

    def _load_tables(self, directory: Path) -> None:
        missing, unexpected = self.model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
        # of weights that are tied, one name is stored
        learned = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        lost = [name for name in missing if name in learned or not name.startswith("backbone.")]
        if lost or unexpected:
            raise CLLM4RecError(f"The tables in {directory} are not this model's: {(lost + unexpected)[:3]}")
        # a stage may have found that the history term ranks no worse alone; before there was this choice, none did
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.model.config.lm_term_ranks = config.get("lm_term_ranks", True)

    # ---- after the stages

    def _finish(self) -> None:
        beside = self.output / "checkpoint.part"
        self.model.save_pretrained(beside)
        self.tokenizer.save_pretrained(beside)
        self.catalog.save_pretrained(beside)
        (beside / LOG_FILE).write_text(json.dumps(self.history, indent=1))
        # the weights come last: where they are, the checkpoint is complete
        for path in sorted(beside.iterdir(), key=lambda path: (path.name in _WEIGHT_FILES, path.name)):
            path.replace(self.output / path.name)
        beside.rmdir()
        write_card(self.output)
        # the stages' checkpoints held optimizer states for resuming; nothing needs them any more
        shutil.rmtree(self.output / STAGES_DIRECTORY, ignore_errors=True)
        logger.info("The checkpoint lies in %s", self.output)


def _read_settings(file: Path) -> dict[str, Any]:
    """Settings of the run whose training.yaml this is."""
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CLLM4RecError(f"{file} cannot be read ({error}); choose another --output") from error
    if not isinstance(before, dict) or not {"preset", "backbone", "data_fingerprint"} <= before.keys():
        raise CLLM4RecError(f"{file} is not that of a training run; choose another --output")
    # settings that were none yet when the file was written had the values that are their defaults now
    return {**SETTLED, **before}


def _last_complete_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint of a stage; one whose saving was cut short is no checkpoint and is removed."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        # the Trainer writes this file last
        if (path / "trainer_state.json").is_file():
            return str(path)
        shutil.rmtree(path)
    return None
