"""A yes or no for each candidate, on tiny random language models."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from cllm4rec_hf.baselines.yes_no import YesNo, YesNoConfig
from cllm4rec_hf.errors import CLLM4RecError, DataError
from cllm4rec_hf.evaluation.evaluator import Evaluator
from tests.conftest import make_backbone, train_base_tokenizer

from ..evaluation.factory import FixedScores
from .tiny_language_model import NUM_ITEMS, chains, save_language_model, tastes

SETTINGS = {"precision": "float32", "num_candidates": NUM_ITEMS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tastes(tmp_path_factory.mktemp("tastes") / "prepared")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("language_model") / "llama")


@pytest.fixture(scope="module")
def adapted(data, backbone):
    """One epoch of LoRA."""
    return YesNo.fit_to(data, backbone=backbone, max_epochs=1, learning_rate=1e-2, lora_rank=4, **SETTINGS)


def untrained(data, backbone, tokenizer=None, **settings):
    """A model with the random weights of its backbone."""
    config = YesNoConfig(
        backbone=backbone, num_users=data.num_users, num_items=data.num_items, **{**SETTINGS, **settings}
    )
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(backbone)
    model = YesNo(config, tokenizer, AutoModelForCausalLM.from_pretrained(backbone).eval())
    for name, value in YesNo.read(config, data, 0).items():
        setattr(model, name, value)
    return model


def test_learns_whose_taste_an_item_is(data, backbone):
    model = YesNo.fit_to(
        data, backbone=backbone, lora_rank=0, max_epochs=16, patience=16, learning_rate=3e-3, pairs_per_user=4,
        **SETTINGS,
    )  # fmt: skip
    # 10 of 19 unseen items are of the taste, and 2 are to be found
    evaluator = Evaluator(data, metrics=("recall@10",), history_splits=("train", "validation"))
    assert evaluator.evaluate(model, bootstrap=False).metrics["recall@10"] > 0.8
    candidates = np.tile(np.arange(NUM_ITEMS), (data.num_users, 1))
    scores = model.score_candidates([data.histories("train")[user] for user in range(data.num_users)], candidates)
    is_liked = (candidates + np.arange(data.num_users)[:, None]) % 2 == 0
    assert ((scores > 0) == is_liked).mean() > 0.9


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_differences_of_logits_of_whole_prompts(data, tmp_path, family):
    model = untrained(data, save_language_model(tmp_path / family, family), candidates_per_pass=3)
    histories = [np.array([3, 8]), np.array([], dtype=np.int32), np.array([0, 2, 4, 6, 8, 10])]
    candidates = np.array([[1, 12, 5, 20], [7, -1, 23, 0], [-1, -1, 9, -1]])
    found = model.score_candidates(histories, candidates)
    assert found.dtype == np.float32
    yes, no = (model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" Yes", " No"))
    for row, history in enumerate(histories):
        shown = "".join(f' "{model.catalog.titles[item]}"' for item in history)
        for place, item in enumerate(candidates[row]):
            if item < 0:
                assert np.isneginf(found[row, place])
                continue
            title = model.catalog.titles[item]
            text = f'The user enjoyed these items, the oldest first:{shown}\nWill the user enjoy "{title}"? Answer Yes or No.\nAnswer:'
            ids = model._prefix(history) + model._suffix(item)
            assert model.tokenizer.decode(ids) == text
            with torch.no_grad():
                logits = model.language_model(torch.tensor([ids])).logits[0, -1]
            assert found[row, place] == pytest.approx((logits[yes] - logits[no]).item(), abs=1e-4)


def test_answers_that_begin_alike_are_told_apart(data, tmp_path):
    # this tokenizer spells Yes and No by letters, behind the same space
    tokenizer = train_base_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    make_backbone("llama", vocab_size=len(tokenizer) + 6).save_pretrained(tmp_path)
    model = untrained(data, str(tmp_path), tokenizer)
    assert tokenizer.convert_ids_to_tokens([model.yes, model.no]) == ["Y", "N"]
    assert tokenizer.decode(model._suffix(3)).endswith("Answer: ")


def test_candidates_are_the_retrievers_best_unseen_items(data, backbone):
    model = untrained(data, backbone, num_candidates=4)
    histories = [data.histories("train")[user] for user in range(3)]
    popularity = np.bincount(data.histories("train").items, minlength=NUM_ITEMS)
    for history, row in zip(histories, model.candidates(np.arange(3), histories), strict=True):
        left = [item for item in np.argsort(-popularity, kind="stable") if item not in history]
        assert row.tolist() == left[:4]
    generator = np.random.Generator(np.random.PCG64(0))
    model.retriever = FixedScores(generator.random((3, NUM_ITEMS), dtype=np.float32))
    chosen = model.candidates(np.arange(3), histories)
    scores = model.score(np.arange(3), histories)
    assert scores.shape == (3, NUM_ITEMS) and scores.dtype == np.float32
    for row in range(3):
        assert sorted(chosen[row]) == np.flatnonzero(np.isfinite(scores[row])).tolist()
    assert not np.isin(chosen[0], histories[0]).any()
    np.testing.assert_array_equal(
        np.take_along_axis(scores, chosen, axis=1), model.score_candidates(histories, chosen)
    )


def test_long_prompts_lose_their_oldest_items_and_nothing_else(data, backbone):
    model = untrained(data, backbone, max_length=100, name_length=5)
    history = np.arange(NUM_ITEMS)
    ids = model._prefix(history)
    text = model.tokenizer.decode(ids)
    kept = [int(name.split()[1]) for name in text.split('"')[1::2]]
    assert 3 < len(kept) < NUM_ITEMS and kept == list(range(NUM_ITEMS - len(kept), NUM_ITEMS))
    assert text.startswith("The user enjoyed") and text.endswith("Will the user enjoy")
    longest = max(len(ids) + len(model._suffix(item)) for item in range(NUM_ITEMS))
    assert 100 - 10 < longest <= 100


def test_what_it_is_trained_on(data, backbone):
    model = untrained(data, backbone, negatives=2, pairs_per_user=3)
    rows = model.examples(data, "train")
    assert len(rows) == 3 * data.num_users
    generator = np.random.Generator(np.random.PCG64(0))
    batch = model.collate(rows[:6], generator)
    assert batch["labels"].tolist() == [1.0, 0.0, 0.0] * 6
    for row, ids in enumerate(batch["input_ids"]):
        text = model.tokenizer.decode(ids[batch["attention_mask"][row] == 1])
        history, _, question = text.partition("\nWill")
        shown = {int(word.split()[1]) for word in history.split('"')[1::2]}
        asked = int(question.split('"')[1].split()[1])
        owned = set(data.histories("train")[row // 9].tolist())
        # the rest of the history, without what is asked about
        assert asked not in shown and (asked in owned) == (batch["labels"][row] == 1)
        assert shown < owned and len(shown) == len(owned) - 1
    # validation asks about held-out items, beside the whole of the history
    row = model.examples(data, "validation")[5]
    assert row["history"] == data.histories("train")[5].tolist()
    assert row["target"] in data.histories("validation")[5]
    texts = model.collate([row], generator)["input_ids"]
    assert torch.equal(texts, model.collate([row], generator)["input_ids"])
    assert all(f" {item}" in model.tokenizer.decode(ids) for ids in texts for item in row["history"])


def test_loss_is_the_mean_over_the_pairs_of_a_step(data, backbone):
    model = untrained(data, backbone)
    generator = np.random.Generator(np.random.PCG64(0))
    batch = model.collate(model.examples(data, "train")[:4], generator)
    labels = batch.pop("labels")
    with torch.no_grad():
        outputs = model.language_model(**batch)
        logits = outputs.logits[:, -1, [model.no, model.yes]]
    expected = torch.nn.functional.cross_entropy(logits, labels.long())
    torch.testing.assert_close(model.loss(outputs, labels), expected)
    torch.testing.assert_close(model.loss(outputs, labels, 4 * len(labels)), expected / 4)


def test_saved_and_loaded(data, backbone, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    loaded = YesNo.from_pretrained(tmp_path)
    histories = [data.histories("train")[user] for user in range(4)]
    before, after = (model.score(np.arange(4), histories) for model in (adapted, loaded))
    np.testing.assert_allclose(after, before, atol=1e-5)
    fresh = untrained(data, backbone).score(np.arange(4), histories)
    unseen = np.isfinite(before)
    assert not np.allclose(fresh[unseen], before[unseen], atol=1e-3)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "yes-no"
    (tmp_path / "language_model" / "adapter_model.safetensors").unlink()
    with pytest.raises(CLLM4RecError, match="holds no language_model/adapter_model.safetensors"):
        YesNo.from_pretrained(tmp_path)


def test_names_are_titles_or_first_words(data, backbone, tmp_path):
    titled = tastes(tmp_path / "prepared")
    titles = ["A title", *[None] * (NUM_ITEMS - 1)]
    titled.items = Dataset.from_dict({**titled.items.to_dict(), "title": titles})
    model = untrained(titled, backbone)
    assert model.catalog.titles[:2] == ["A title", "comedy 1"]


def test_needs_something_to_name_items_by(tmp_path):
    with pytest.raises(DataError, match="needs texts of items to name them by"):
        YesNo.fit_to(chains(tmp_path / "prepared"), backbone="nobody/asks")


def test_wrong_settings():
    with pytest.raises(ValueError, match="negatives must be 1 or more, got 0"):
        YesNoConfig(negatives=0)
    with pytest.raises(ValueError, match="lora_rank must be 0"):
        YesNoConfig(lora_rank=-1)
