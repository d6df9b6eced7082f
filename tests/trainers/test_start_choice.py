"""What fine-tuning starts from: the pretrained state, or the warm start's where that ranks better."""

import pytest
import torch

from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.recommendation import RecommendationTrainer
from cllm4rec_hf.trainers.settings import RecipeSettings
from tests.conftest import QUICK


@pytest.fixture
def recipe(prepared, saved_backbone, tmp_path):
    settings = {**QUICK, "content_epochs": 0, "pretraining_learning_rate": 0.05}
    return Recipe(
        RecipeSettings(data=str(prepared), output=str(tmp_path / "out"), backbone=str(saved_backbone), **settings)
    )


def state(recipe):
    return {name: x.clone() for name, x in recipe._ranking_state().items()}


@pytest.mark.parametrize("started", [0.4, 0.5, 0.6])
def test_the_state_that_ranks_better_on_validation_goes_on(started, recipe, monkeypatch):
    scores, seen = iter([0.5, started]), {}
    monkeypatch.setattr(RecommendationTrainer, "evaluate", lambda *_, **__: {"eval_score": next(scores)})
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
    expected = seen["started" if started > 0.5 else "pretrained"]
    assert {"collaborative_item_embeddings.weight", "item_head.history_queries.weight"} <= expected.keys()
    for name, tensor in expected.items():
        # the language model's share is measured anew
        if name != "item_head.log_logit_scale" or started <= 0.5:
            torch.testing.assert_close(seen["fine_tuned"][name], tensor, rtol=0, atol=0, msg=name)
    other = seen["pretrained" if started > 0.5 else "started"]
    assert not torch.equal(
        other["collaborative_item_embeddings.weight"], expected["collaborative_item_embeddings.weight"]
    )
