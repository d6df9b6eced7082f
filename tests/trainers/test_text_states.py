"""Item vectors that start from the language model's states of the items' texts."""

import shutil
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file

from cllm4rec_hf import PreparedData
from cllm4rec_hf.baselines.text_encoder import TextEncoder
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
    return SimpleNamespace(backbone=str(directory), backbone_revision=None, num_layers=None, dtype="float32")


def states_by_hand(documents, settings, layer, window):
    """Each word's state of every item, read alone, beside the word."""
    encoder = TextEncoder(settings.backbone, [layer])
    read = []
    for words in encoder.tokenize(documents, 2048):
        parts = [words[first : first + window] for first in range(0, len(words), window)]
        states = [next(iter(encoder.read([part])))[2][layer][0].cpu().numpy() for part in parts]
        read.append((words, np.concatenate(states) if states else np.zeros((0, encoder.hidden_size))))
    return read


def test_states_are_whitened_means_in_which_rare_words_weigh_more(data, settings, monkeypatch):
    monkeypatch.setattr(TextEncoder, "window", 4)
    texts = [f"great guitar strings {'pedal ' * (k % 5)} comedy noisy {k}" for k in range(data.num_items)]
    rows = [{"kind": "item", "user": None, "item": k, "text": texts[k]} for k in range(1, data.num_items)]
    data.texts = Dataset.from_list(rows)
    states = text_states(data, settings)
    assert states.shape[0] == data.num_items and not states[0].any()
    # two layers: the last one's output would have passed through a norm
    read = states_by_hand(item_documents(data), settings, 1, 4)
    occurs = Counter(word for words, _ in read for word in set(words))
    weights = [
        np.array([1 + np.log((1 + data.num_items) / (1 + occurs[word])) for word in words]) for words, _ in read
    ]
    means = np.stack([w @ h / w.sum() for w, (_, h) in zip(weights[1:], read[1:], strict=True)])
    words = np.cov(np.concatenate([h for _, h in read]).T, aweights=np.concatenate(weights), bias=True)
    # whitening makes distances those of Mahalanobis, under the words' covariance
    centred = means - means.mean(axis=0)
    expected = centred @ np.linalg.pinv(words, rcond=1e-5, hermitian=True) @ centred.T
    np.testing.assert_allclose(states[1:] @ states[1:].T, expected, atol=2e-2 * np.abs(expected).max())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache directory of this test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_the_next_run_finds_the_states_of_the_same_words_and_weights(data, settings, cache, tmp_path, monkeypatch):
    first, read = text_states(data, settings), []
    whole = TextEncoder.read
    monkeypatch.setattr(TextEncoder, "read", lambda *args: read.append(1) or whole(*args))
    again = text_states(data, settings)
    assert not read and np.array_equal(first, again) and again.dtype == np.float32
    again[0] = 7.0
    # other words, other weights in the same place
    rows = data.texts.to_list()
    rows[0] = {**rows[0], "text": "a noisy guitar"}
    data.texts = Dataset.from_list(rows)
    assert not np.array_equal(text_states(data, settings), first) and len(read) == 1
    moved = shutil.copytree(settings.backbone, tmp_path / "backbone")
    here = SimpleNamespace(**{**vars(settings), "backbone": str(moved)})
    text_states(data, here)
    assert len(read) == 1
    weights = load_file(moved / "model.safetensors")
    # T5 is read at its encoder
    name = next(name for name in weights if name.endswith(("q_proj.weight", "q.weight")) and "decoder" not in name)
    save_file({**weights, name: weights[name] * 1.5}, moved / "model.safetensors", {"format": "pt"})
    text_states(data, here)
    assert len(read) == 2


def test_states_that_were_damaged_are_read_again(data, settings, cache, caplog):
    first = text_states(data, settings)
    (file,) = cache.rglob("states.arrow")
    file.write_bytes(file.read_bytes()[:-40])
    assert np.array_equal(text_states(data, settings), first) and "damaged; reading their texts again" in caplog.text


def test_without_a_cache_there_are_states_all_the_same(data, settings, cache, caplog):
    cache.mkdir()
    (cache / "cllm4rec").write_text("no directory")
    states = text_states(data, settings)
    assert np.isfinite(states).all() and "cannot be kept in" in caplog.text
    (cache / "cllm4rec").unlink()
    datasets.disable_caching()
    try:
        assert np.array_equal(text_states(data, settings), states) and not list(cache.rglob("*.arrow"))
    finally:
        datasets.enable_caching()


def test_without_texts_there_are_no_states(data, settings):
    data.texts = Dataset.from_dict({"kind": ["user"], "user": [0], "item": [None], "text": ["a teacher"]})
    assert text_states(data, settings) is None


def test_a_single_text_is_no_representation_of_items(data, settings):
    data.texts = Dataset.from_dict({"kind": ["item"], "user": [None], "item": [2], "text": ["a guitar"]})
    assert text_states(data, settings) is None
    assert np.isfinite(fit_warm_start(data, 16, states=None, most_steps=20).score)


def test_states_that_know_the_tastes_help_where_texts_do_not(data, monkeypatch):
    """Two tastes: items of one half lie together, and neither the texts nor the linear model say so."""
    nothing = np.zeros((data.num_items, 1))
    monkeypatch.setattr(warm_start, "fit_ease", lambda *_: LinearStart(nothing, nothing, 0.0, {}, 0.0))
    half = np.arange(data.num_items) < data.num_items // 2
    rows = [{"kind": "item", "user": None, "item": k, "text": f"w{k % 3} v{k % 5}"} for k in range(data.num_items)]
    data.texts = Dataset.from_list(rows)
    noise = np.random.default_rng(0).normal(size=(data.num_items, 24)) * 0.05
    states = np.where(half, 1.0, -1.0)[:, None] + noise
    with_states, without = (fit_warm_start(data, 24, states=given, most_steps=60) for given in (states, None))
    assert with_states.settings["item vectors from"] == "texts and states" and with_states.score > without.score


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
    recipe._fit_warm_start(16)
    assert bool(asked) == reads
