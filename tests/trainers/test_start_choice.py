"""What fine-tuning starts from: the pretrained state, or the warm start's where that ranks better."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cllm4rec_hf import CLLM4RecForRecommendation
from cllm4rec_hf.evaluation.result import EvaluationResult
from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.recommendation import RecommendationTrainer
from cllm4rec_hf.trainers.settings import RecipeSettings
from tests.conftest import QUICK

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


@pytest.mark.parametrize("lm_term", [True, False])
def test_a_run_that_goes_on_behind_its_last_stage_ranks_as_the_stage_left_it(lm_term, recipe, monkeypatch):
    def train(self, *_, **__):
        self.model.rank_by_lm_term(lm_term)

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
    assert again.model.config.lm_term is again.model.item_head.lm_term is lm_term
    model = CLLM4RecForRecommendation.from_pretrained(again.output)
    assert model.config.lm_term is lm_term


def test_the_warm_start_competes_by_its_history_term_alone(recipe, monkeypatch):
    """It is compared by the better of its two ways to rank."""
    asked = []

    def validate(self, *_, **__):
        asked.append(self.model.config.lm_term)
        # pretraining with and without the language model's part, then the warm start
        return result([0.5, 0.4, 0.3, 0.6][len(asked) - 1])

    monkeypatch.setattr(RecommendationTrainer, "validate", validate)
    seen = {}
    monkeypatch.setattr(RecommendationTrainer, "train", lambda self, **_: seen.update(known=self.known))
    recipe.run()
    assert asked == [True, False, True, False]
    assert seen["known"].values.mean() == pytest.approx(0.6) and not seen["known"].lm_term
    # training itself goes on with it
    assert recipe.model.config.lm_term
