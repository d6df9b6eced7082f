"""Retrieval by text embeddings, on a tiny random language model."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cllm4rec_hf.baselines.m6_retrieval import M6Retrieval
from cllm4rec_hf.baselines.text_encoder import embed_texts
from tests.conftest import make_backbone, train_base_tokenizer

from .planted import planted

TEXTS = ["great guitar strings", "", "the pedal is noisy and the knob broke", "a comedy"]


@pytest.fixture(scope="module", params=["llama", "t5"])
def backbone(request, tmp_path_factory):
    """Directory of a language model with two layers and its tokenizer."""
    directory = tmp_path_factory.mktemp("backbone")
    tokenizer = train_base_tokenizer()
    make_backbone(request.param, vocab_size=len(tokenizer) + 6).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Planted data whose texts have few words."""
    data = planted(tmp_path_factory.mktemp("m6") / "prepared")
    rows = [{"kind": "item", "user": None, "item": k, "text": f"{TEXTS[2 * (k % 2)]} {k % 7}"} for k in range(1, 120)]
    data.texts = Dataset.from_list(rows)
    return data


def by_hand(directory, text, layer, max_length=256):
    """Mean hidden state of one text, alone and without padding, under the whole model."""
    is_t5 = "T5" in (directory / "config.json").read_text(encoding="utf-8")
    model = (AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM).from_pretrained(directory).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(directory)(text)["input_ids"][:max_length]])
    inner = model.get_encoder() if is_t5 else model
    with torch.no_grad():
        states = inner(input_ids=ids, output_hidden_states=True).hidden_states
    return states[layer][0].mean(dim=0).numpy()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_embeddings_are_means_of_hidden_states_whatever_the_batch(backbone, layer):
    means = embed_texts(TEXTS, str(backbone), [layer], max_length=5, batch_size=3)[layer]
    assert means.dtype == np.float32 and np.isnan(means[1]).all()
    for row in (0, 2, 3):
        np.testing.assert_allclose(means[row], by_hand(backbone, TEXTS[row], layer, 5), atol=1e-4)


def test_scores_are_cosines_of_centred_embeddings(backbone, data):
    model = M6Retrieval.fit_to(data, backbone=str(backbone), layer=1)
    texts = [""] + [row["text"] for row in data.texts]
    means = embed_texts(texts, str(backbone), [1])[1]
    centred = means[1:] - means[1:].mean(axis=0)
    vectors = np.vstack([np.zeros(centred.shape[1]), centred / np.linalg.norm(centred, axis=1, keepdims=True)])
    histories = [np.array([3, 9, 50]), np.array([0]), np.array([], dtype=np.int32)]
    scores = model.score(np.arange(3), histories)
    profile = vectors[histories[0]].mean(axis=0)
    np.testing.assert_allclose(scores[0], vectors @ profile / np.linalg.norm(profile), atol=1e-4)
    # nothing to go by: no text, no history
    np.testing.assert_array_equal(scores[1:], 0)
    assert scores.dtype == np.float32


def test_chooses_the_layer_in_one_pass(backbone, data):
    chosen = M6Retrieval.choose(data, backbone=str(backbone), max_length=20)
    assert [row["layer"] for row in chosen.table] == [2]
    chosen = M6Retrieval.choose(data, grid=[{"layer": 1}, {"layer": 0}], backbone=str(backbone))
    again = M6Retrieval.fit_to(data, **chosen.settings)
    np.testing.assert_allclose(chosen.model.vectors, again.vectors, atol=1e-6)


def test_saved_and_loaded_without_the_backbone(backbone, data, tmp_path):
    model = M6Retrieval.fit_to(data, backbone=str(backbone), layer=1)
    model.save_pretrained(tmp_path)
    loaded = M6Retrieval.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.vectors, model.vectors)
    assert (loaded.layer, loaded.backbone) == (1, str(backbone))


def test_wrong_settings(backbone, data):
    with pytest.raises(ValueError, match="needs a language model; name it by backbone="):
        M6Retrieval.fit_to(data)
    with pytest.raises(ValueError, match="has 2 layers; got layer 6"):
        M6Retrieval.fit_to(data, backbone=str(backbone))
    with pytest.raises(ValueError, match="a layer of 0 or more"):
        M6Retrieval(layer=-1)
