"""Item vectors that start from the language model's states of the items' texts."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from cllm4rec_hf import PreparedData
from cllm4rec_hf.baselines.m6_retrieval import embed_texts
from cllm4rec_hf.data.item_texts import item_documents
from cllm4rec_hf.trainers import warm_start
from cllm4rec_hf.trainers.linear_start import LinearStart
from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.settings import RecipeSettings
from cllm4rec_hf.trainers.text_states import text_states
from cllm4rec_hf.trainers.warm_start import fit_warm_start
from tests.conftest import QUICK, make_backbone, train_base_tokenizer


@pytest.fixture
def data(prepared):
    return PreparedData.load(prepared)


@pytest.fixture(scope="module", params=["llama", "t5"])
def settings(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("backbone")
    tokenizer = train_base_tokenizer()
    make_backbone(request.param, vocab_size=len(tokenizer) + 6).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return SimpleNamespace(backbone=str(directory), backbone_revision=None, num_layers=None)


def test_states_are_centred_means_and_zero_without_text(data, settings):
    rows = [{"kind": "item", "user": None, "item": k, "text": f"guitar pedal {k}"} for k in range(1, data.num_items)]
    data.texts = Dataset.from_list(rows)
    states = text_states(data, settings)
    assert states.shape[0] == data.num_items and not states[0].any()
    # two layers: the last one's output would have passed through a norm
    means = embed_texts(item_documents(data), settings.backbone, [1])[1]
    np.testing.assert_allclose(states[1:], means[1:] - means[1:].mean(axis=0), atol=1e-4)


def test_without_texts_there_are_no_states(data, settings):
    data.texts = Dataset.from_dict({"kind": ["user"], "user": [0], "item": [None], "text": ["a teacher"]})
    assert text_states(data, settings) is None


def test_states_that_know_the_tastes_are_chosen_over_texts_that_do_not(data, monkeypatch):
    """Two tastes: items of one half lie together, and neither the texts nor the linear model say so."""
    nothing = np.zeros((data.num_items, 1))
    monkeypatch.setattr(warm_start, "fit_ease", lambda *_: LinearStart(nothing, nothing, 0.0, {}, 0.0))
    half = np.arange(data.num_items) < data.num_items // 2
    rows = [{"kind": "item", "user": None, "item": k, "text": f"w{k % 3} v{k % 5}"} for k in range(data.num_items)]
    data.texts = Dataset.from_list(rows)
    noise = np.random.default_rng(0).normal(size=(data.num_items, 24)) * 0.05
    states = np.where(half, 1.0, -1.0)[:, None] + noise
    with_states, without = (fit_warm_start(data, 24, states=given, most_steps=60) for given in (states, None))
    assert "states" in with_states.settings["item vectors from"] and with_states.score > without.score
    assert "states" not in without.settings["item vectors from"]


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({}, True),
        ({"warm_start_lm": False}, False),
        ({"ablation": "no-lm"}, False),
        ({"ablation": "llm-cf"}, False),
        ({"ablation": "llm-scratch"}, False),
        ({"ablation": "no-content-lm"}, True),
    ],
)
def test_who_reads_the_states(changes, reads, prepared, settings, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("cllm4rec_hf.trainers.recipe.text_states", lambda *_: asked.append(True))
    monkeypatch.setattr("cllm4rec_hf.trainers.recipe.fit_warm_start", lambda *args: args)
    values = {**QUICK, "backbone": settings.backbone, **changes}
    recipe = Recipe(RecipeSettings(data=str(prepared), output=str(tmp_path / "out"), **values))
    recipe.data = PreparedData.load(prepared)
    recipe._warm_start(16)
    assert bool(asked) == reads
