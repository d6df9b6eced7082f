"""What a run keeps for going on, what it compares before it does, and heads of stages that were left out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

from cllm4rec_hf import PreparedData
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.modeling.modeling_cllm4rec import CLLM4RecForRecommendation
from cllm4rec_hf.trainers import recipe as recipe_module
from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.recommendation import RecommendationTrainer
from cllm4rec_hf.trainers.settings import RecipeSettings
from cllm4rec_hf.trainers.warm_start import WarmStart
from tests.conftest import QUICK


@pytest.fixture
def make(prepared, saved_backbone, tmp_path):
    """A function that makes a recipe."""

    def make(**settings):
        places = {"data": str(prepared), "output": str(tmp_path / "out"), "backbone": str(saved_backbone)}
        return Recipe(RecipeSettings(**{**places, **QUICK, **settings}))

    return make


def asked(recipe, processes):
    """Whether a recipe's output is finished, as a run of so many processes asks."""
    recipe.data = PreparedData.load(recipe.settings.data)
    recipe.made_by = {**recipe.settings.what_made_it(), "data_fingerprint": recipe.data.fingerprint}
    recipe.processes = SimpleNamespace(num_processes=processes, is_main_process=True)
    return recipe._is_finished()


def interrupted(recipe, processes):
    """Leave what an interrupted run of so many processes does."""
    recipe.output.mkdir()
    assert asked(recipe, processes) is False
    recipe._write_settings()
    (recipe.output / "stages" / "2-pretraining" / "checkpoint-3").mkdir(parents=True)


def test_another_number_of_processes_goes_on_with_the_same_documents_a_step_alone(make):
    interrupted(make(batch_size=8), processes=1)
    assert yaml.safe_load((make().output / "training.yaml").read_text())["about"]["processes"] == 1
    assert asked(make(batch_size=8), 1) is False
    assert asked(make(batch_size=4), 2) is False
    assert asked(make(batch_size=1, gradient_accumulation_steps=2), 4) is False
    with pytest.raises(
        CLLM4RecError, match=r"documents in a step: 8 there, 16 here, by batch_size x .* x 2 processes"
    ):
        asked(make(batch_size=8), 2)
    with pytest.raises(CLLM4RecError, match="lambda_c: 1.0 there, 3.0 here"):
        asked(make(batch_size=8, lambda_c=3.0), 1)


def test_a_finished_run_is_finished_whoever_asks(make):
    recipe = make(batch_size=8)
    interrupted(recipe, processes=1)
    (recipe.output / "model.safetensors").touch()
    assert asked(make(batch_size=8), 2) is True
    with pytest.raises(CLLM4RecError, match="documents in a step: 8 there, 4 here"):
        asked(make(batch_size=4), 1)


def test_the_warm_start_is_fitted_once(make, monkeypatch):
    fits, fit = [], recipe_module.fit_warm_start
    monkeypatch.setattr(recipe_module, "fit_warm_start", lambda *args: fits.append(args[3]) or fit(*args))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "_run_stage", stop)
        for seed in (0, 0, 1):
            with pytest.raises(KeyboardInterrupt):
                make(seed=seed).run()
    # the second run read what the first had fitted, the third is another
    assert fits == [0, 1]


def test_who_waits_for_the_warm_start_hears_of_its_failure(make, monkeypatch):
    fit = recipe_module.fit_warm_start

    def fail(*_):
        raise MemoryError("no room for 8 GB")

    monkeypatch.setattr(recipe_module, "fit_warm_start", fail)
    with pytest.raises(MemoryError):
        make().run()
    other = make()
    other.processes = SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: None)
    with pytest.raises(
        CLLM4RecError, match=r"fit the warm start \(MemoryError: no room for 8 GB\).*--warm-start none"
    ):
        other._warm_start(max_rank=8)
    # a failure is of one attempt
    monkeypatch.setattr(recipe_module, "fit_warm_start", fit)
    monkeypatch.setattr(Recipe, "_stages", lambda self: {})
    monkeypatch.setattr(Recipe, "_finish", lambda self: None)
    make().run()
    assert other._warm_start_file.is_file() and not other._warm_start_file.with_suffix(".failed").exists()
    assert other._warm_start(max_rank=8) is not None


def test_a_warm_start_is_read_as_it_was_written(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(5, 3))
    start = WarmStart("ease", numbers, numbers + 1, 3.0, {"linear share": 0.1}, 0.5, numbers[:, 0], 0.75, 2.0)
    start.save(tmp_path / "stages" / "start.safetensors")
    read = WarmStart.load(tmp_path / "stages" / "start.safetensors")
    assert vars(read).keys() == vars(start).keys()
    for name, value in vars(start).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    assert not list(tmp_path.rglob("*.part"))
    WarmStart("svd", numbers, numbers, 0.0).save(tmp_path / "plain.safetensors")
    assert WarmStart.load(tmp_path / "plain.safetensors").bias is None


@pytest.mark.parametrize("pretraining", [0, 1])
def test_the_head_of_a_run_without_fine_tuning_is_calibrated(pretraining, make):
    recipe = make(content_epochs=0, pretraining_epochs=pretraining, recommendation_epochs=0)
    recipe.run()
    head = CLLM4RecForRecommendation.from_pretrained(recipe.output).item_head
    assert head.recommendation_mean.any() and head.recommendation_scale != 1
    # a small part of the history term's spread
    items = recipe.model.collaborative_item_embeddings.weight
    states = torch.randn(64, items.shape[1], generator=torch.Generator().manual_seed(0))
    of_lm = (head.logit_scale * states @ items.T).std(dim=1).mean()
    vectors = head.history_queries.weight
    assert of_lm < 0.5 * (head.history(vectors) @ items.T).std(dim=1).mean()


def test_nothing_is_pulled_towards_content_that_there_is_not(make, monkeypatch):
    load = PreparedData.load

    def without_texts(name):
        data = load(name)
        data.texts = Dataset.from_dict({"kind": [], "user": [], "item": [], "text": []}, features=data.texts.features)
        return data

    recipe = make(pretraining_epochs=0, recommendation_epochs=0)
    monkeypatch.setattr(recipe_module.PreparedData, "load", without_texts)
    recipe.run()
    assert recipe.content is None and recipe.model.config.lambda_c == 0
    assert CLLM4RecForRecommendation.from_pretrained(recipe.output).config.lambda_c == 0


@pytest.mark.parametrize(("warm_start", "competes"), [("none", False), ("auto", True)])
def test_tables_drawn_at_random_do_not_compete_with_epochs(warm_start, competes, make, monkeypatch):
    seen = []
    monkeypatch.setattr(RecommendationTrainer, "train", lambda self, **_: seen.append(self.args.start_competes))
    monkeypatch.setattr(recipe_module, "write_card", lambda _: None)
    make(warm_start=warm_start, history_term=competes, content_epochs=0, pretraining_epochs=0).run()
    assert seen == [competes]
