"""What fine-tuning starts from: the pretrained state, or the warm start's where that ranks better."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from cllm4rec_hf import CLLM4RecConfig, CLLM4RecForRecommendation, RecommendationArguments
from cllm4rec_hf.data.corpora import DocumentKey
from cllm4rec_hf.evaluation.result import EvaluationResult
from cllm4rec_hf.inference.ranker import ModelRanker
from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.recommendation import RecommendationTrainer
from cllm4rec_hf.trainers.settings import RecipeSettings
from tests.conftest import QUICK
from tests.trainers.parts import Judge, make_parts, tables
from tests.trainers.test_steps import arguments, moved

RANKING = (
    "collaborative_item_embeddings.weight", "item_head.history_queries.weight", "item_head.item_bias",
    "item_head.log_history_scale", "item_head.history_basis",
)  # fmt: skip


@pytest.fixture
def recipe(prepared, saved_backbone, tmp_path):
    settings = {**QUICK, "content_epochs": 0, "pretraining_learning_rate": 0.05}
    return Recipe(
        RecipeSettings(data=str(prepared), output=str(tmp_path / "out"), backbone=str(saved_backbone), **settings)
    )


def state(recipe):
    return {name: x.clone() for name, x in recipe._ranking_state().items()}


def result(score, users=5):
    metrics = {"recall@20": score, "ndcg@100": 0.0}
    per_user = {name: np.full(users, value) for name, value in metrics.items()}
    return EvaluationResult("validation", users, metrics, {}, per_user, np.arange(users))


@pytest.mark.parametrize("center_hidden", [True, False])
@pytest.mark.parametrize("started", [0.4, 0.5, 0.6])
def test_the_warm_start_goes_on_unless_pretraining_ranks_better_on_validation(
    started, center_hidden, recipe, monkeypatch
):
    recipe.settings.center_hidden = center_hidden
    # each state with the language model's part of the logits, and without it
    scores, seen = iter([0.5, 0.5, started, started]), {}
    monkeypatch.setattr(RecommendationTrainer, "validate", lambda *_, **__: result(next(scores)))
    monkeypatch.setattr(RecommendationTrainer, "train", lambda *_, **__: seen.update(fine_tuned=state(recipe)))
    prepare, stage = Recipe._prepare_parts, Recipe._recommendation_stage

    def note_start(self):
        prepare(self)
        seen["started"] = state(self)

    def note_pretrained(self, directory):
        seen["pretrained"] = state(self)
        return stage(self, directory)

    monkeypatch.setattr(Recipe, "_prepare_parts", note_start)
    monkeypatch.setattr(Recipe, "_recommendation_stage", note_pretrained)
    recipe.run()
    expected = seen["started" if started >= 0.5 else "pretrained"]
    # the language model's share is measured anew
    for name in RANKING if started >= 0.5 else (*RANKING, "item_head.log_logit_scale"):
        torch.testing.assert_close(seen["fine_tuned"][name], expected[name], rtol=0, atol=0, msg=name)
    if center_hidden:
        # the calibration that pretraining measured for its own task is there in either case
        assert seen["fine_tuned"]["item_head.collaborative_mean"].any()
    other = seen["pretrained" if started >= 0.5 else "started"]
    assert not torch.equal(
        other["collaborative_item_embeddings.weight"], expected["collaborative_item_embeddings.weight"]
    )


def test_no_state_is_validated_twice(recipe, monkeypatch):
    validate, steps = RecommendationTrainer.validate, []

    def counted(self, evaluator=None):
        steps.append(self.state.global_step)
        return validate(self, evaluator)

    monkeypatch.setattr(RecommendationTrainer, "validate", counted)
    recipe.run()
    # pretraining's and the warm start's, each with the language model's part and without it, and two epochs'
    assert len(steps) == 6 and steps[:4] == [0, 0, 0, 0] and 0 < steps[4] < steps[5]
    scores = [entry["eval_score"] for entry in recipe.history["recommendation"] if "eval_score" in entry]
    assert len(scores) == 2


def test_the_start_of_a_run_that_came_to_nothing_is_not_used(recipe, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "_run_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            recipe.run()
    assert recipe._start_file.is_file()
    settings = {**vars(recipe.settings), "seed": 1}
    other = Recipe(RecipeSettings(**{name: value for name, value in settings.items() if value is not None}))
    monkeypatch.setattr(RecommendationTrainer, "train", lambda *_, **__: None)
    stage, seen = Recipe._recommendation_stage, {}

    def note(self, directory):
        seen.update(load_file(self._start_file), now=self.model.item_head.history_basis.clone())
        return stage(self, directory)

    monkeypatch.setattr(Recipe, "_recommendation_stage", note)
    other.run()
    # the basis is drawn by the run's own seed
    assert torch.equal(seen["item_head.history_basis"], seen["now"])


@pytest.mark.parametrize("ranks", [True, False])
def test_a_run_that_goes_on_behind_its_last_stage_ranks_as_the_stage_left_it(ranks, recipe, monkeypatch):
    def train(self, *_, **__):
        self.model.config.lm_term_ranks = ranks

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RecommendationTrainer, "train", train)
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            recipe.run()
    # the stage is done
    monkeypatch.setattr(RecommendationTrainer, "train", stop)
    again = Recipe(recipe.settings)
    again.run()
    assert again.model.config.lm_term_ranks is ranks
    assert CLLM4RecForRecommendation.from_pretrained(again.output).config.lm_term_ranks is ranks


def test_the_warm_start_competes_by_its_history_term_alone(recipe, monkeypatch):
    asked = []

    def validate(self, *_, **__):
        asked.append(self.model.config.lm_term_ranks)
        # pretraining with and without the language model's part, then the warm start
        return result([0.5, 0.4, 0.3, 0.6][len(asked) - 1])

    monkeypatch.setattr(RecommendationTrainer, "validate", validate)
    seen = {}
    monkeypatch.setattr(RecommendationTrainer, "train", lambda self, **_: seen.update(known=self.known))
    recipe.run()
    assert asked == [True, False, True, False]
    assert seen["known"].alone.mean() == pytest.approx(0.6) and seen["known"].values.mean() == pytest.approx(0.3)
    # training itself goes on with the language model's part
    assert recipe.model.config.lm_term_ranks


def trainer_of_one_epoch(parts, directory, judge):
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "save_strategy": "epoch"}
    settings |= {"eval_strategy": "epoch", "load_best_model_at_end": True}
    return RecommendationTrainer(
        parts.model, arguments(RecommendationArguments, directory, **settings), parts.recommendation,
        parts.recommendation_collator, evaluator=judge,
    )  # fmt: skip


def judged(base_tokenizer, directory, judge, seed=0, **fields):
    """A model after one epoch of fine-tuning, and its tables before.

    The judge is asked for the start's score, for its score without the language model's part, and for the epoch's.
    """
    parts = make_parts(base_tokenizer, seed=seed, **fields)
    before = tables(parts.model)
    trainer_of_one_epoch(parts, directory, judge).train()
    return parts.model, before


def test_another_model_in_the_same_directory_keeps_its_own_start(base_tokenizer, tmp_path):
    for seed in (0, 1):
        # no epoch ranks better than the start, so the start is what is left
        model, before = judged(base_tokenizer, tmp_path, Judge([0.5], [0.5], [0.5]), seed)
        assert not moved(before, tables(model)), seed


@pytest.mark.parametrize(("gains", "kept"), [([0.3, -0.2, 0.1], True), ([0.3, 0.1, 0.2], False)])
def test_an_epoch_takes_the_starts_place_where_it_ranks_better_by_more_than_chance(
    gains, kept, base_tokenizer, tmp_path
):
    start = np.array([0.2, 0.5, 0.6])
    trained = start + gains
    assert trained.mean() > start.mean()
    model, before = judged(base_tokenizer, tmp_path, Judge(start, start, trained))
    assert bool(moved(before, tables(model))) is not kept
    # what was trained ranks as it was trained
    assert model.config.lm_term_ranks is not kept


ALONE = np.array([0.5, 0.52, 0.48, 0.5])


@pytest.mark.parametrize(
    ("whole", "alone", "epoch", "kept", "ranks"),
    [
        # the part that has not been trained to rank must show what it is worth
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.4, 0.5, 0.5], True, False),
        ([0.5, 0.5, 0.5], [0.2, 0.3, 0.2], [0.4, 0.5, 0.5], True, True),
        # an epoch has to beat the better one of both
        ([0.5, 0.5, 0.5], [0.7, 0.7, 0.8], [0.6, 0.6, 0.6], True, False),
        ([0.5, 0.5, 0.5], [0.7, 0.7, 0.8], [0.9, 0.9, 0.9], False, True),
        # the whole is no better than the history term alone by more than chance, and no worse than the epoch
        (ALONE + np.array([0.05, -0.04, 0.05, -0.02]), ALONE, ALONE + 0.02, True, True),
    ],
)
def test_the_start_competes_without_the_language_models_part_too(
    whole, alone, epoch, kept, ranks, base_tokenizer, tmp_path
):
    model, before = judged(base_tokenizer, tmp_path / "trained", Judge(whole, alone, epoch))
    assert bool(moved(before, tables(model))) is not kept
    assert model.config.lm_term_ranks is ranks
    # with the checkpoint goes how it ranks
    model.config.backbone_name_or_path = "somewhere/else"
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", backbone=model.backbone)
    assert again.config.lm_term_ranks is ranks


def test_without_a_history_term_the_language_models_part_stays(base_tokenizer, tmp_path):
    # two states to judge: nothing else ranks the start
    model, _ = judged(base_tokenizer, tmp_path, Judge([0.5], [0.5]), history_rank=0)
    assert model.config.lm_term_ranks
    with pytest.raises(ValueError, match="give a history_rank"):
        CLLM4RecConfig(text_config=model.config.text_config, lm_term_ranks=False)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_part_that_does_not_rank_is_there_for_the_other_tasks(family, base_tokenizer, monkeypatch):
    parts = make_parts(base_tokenizer, family, lm_term_ranks=False)
    passes, encode = [], CLLM4RecForRecommendation.encode
    monkeypatch.setattr(
        CLLM4RecForRecommendation, "encode", lambda self, *args: passes.append(args[-1]) or encode(self, *args)
    )
    for corpus, collator in (
        (parts.recommendation, parts.recommendation_collator),
        (parts.collaborative, parts.collaborative_collator),
        (parts.content, parts.content_collator),
    ):
        batch = collator([{"task": corpus.task, "key": DocumentKey(0, k, 0), **corpus[k]} for k in range(2)])
        assert parts.model(**batch).loss.isfinite()
    assert passes == ["collaborative", "content"]
    parts.model.config.ranking_task = "collaborative"
    ranker = ModelRanker(parts.model, parts.prompts, 64)
    one, two = (ranker.score(np.array([user]), [np.array([1, 2])]) for user in (0, 1))
    assert not np.allclose(one, two) and passes[2:]


def test_further_fine_tuning_trains_a_part_that_did_not_rank(base_tokenizer, tmp_path):
    judge = Judge([0.5], [0.5], [0.4], [0.5], [0.4], [0.9])
    parts = make_parts(base_tokenizer)
    for expected in (False, True):
        trainer, seen = trainer_of_one_epoch(parts, tmp_path / str(expected), judge), []

        class Watch(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                seen.append(parts.model.config.lm_term_ranks)  # noqa: B023, called within the loop

        trainer.add_callback(Watch())
        trainer.train()
        assert seen and all(seen)
        assert parts.model.config.lm_term_ranks is expected
