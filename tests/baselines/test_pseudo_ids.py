"""Items as numbers, generated digit by digit, on tiny random language models."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cllm4rec_hf.baselines.pseudo_ids import Generated, PseudoIds, PseudoIdsConfig, number_items
from cllm4rec_hf.data.prepared import Histories
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.evaluation.evaluator import Evaluator
from tests.conftest import make_backbone, train_base_tokenizer

from .tiny_language_model import NUM_ITEMS, chains, save_language_model

SETTINGS = {"precision": "float32", "shuffle": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return chains(tmp_path_factory.mktemp("chains") / "prepared")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("language_model") / "llama")


@pytest.fixture(scope="module")
def adapted(data, backbone):
    """Two epochs of LoRA."""
    return PseudoIds.fit_to(data, backbone=backbone, max_epochs=2, learning_rate=1e-2, lora_rank=4, **SETTINGS)


def untrained(data, backbone, **settings):
    """A model with the random weights of its backbone."""
    config = PseudoIdsConfig(
        backbone=backbone, num_users=data.num_users, num_items=data.num_items, **{**SETTINGS, **settings}
    )
    model = PseudoIds(
        config, AutoTokenizer.from_pretrained(backbone), AutoModelForCausalLM.from_pretrained(backbone).eval()
    )
    for name, value in PseudoIds.read(config, data, 0).items():
        setattr(model, name, value)
    return model


def log_p(model, user, history, number):
    """log p of a number's digits after a prompt, from one plain pass without padding or cache."""
    prompt = model._text(user, history) + model.item
    digits = [model.digits[int(digit)] for digit in f"{number:02d}"]
    with torch.no_grad():
        logits = model.language_model(torch.tensor([prompt + digits])).logits[0].log_softmax(dim=-1)
    return sum(logits[len(prompt) - 1 + place, digit].item() for place, digit in enumerate(digits))


def test_learns_what_follows_what(data, backbone):
    model = PseudoIds.fit_to(
        data, backbone=backbone, max_epochs=60, patience=60, learning_rate=5e-3, lora_rank=0, batch_size=12, **SETTINGS
    )
    evaluator = Evaluator(data, metrics=("recall@1", "recall@5"), history_splits=("train", "validation"))
    metrics = evaluator.evaluate(model, bootstrap=False).metrics
    # 19 items are unseen
    assert metrics["recall@1"] > 5 / 19 and metrics["recall@5"] > 11 / 19
    # training keeps the search to numbers that exist, mostly
    found = model.generate(np.arange(NUM_ITEMS), [data.histories("train")[user] for user in range(NUM_ITEMS)])
    assert found.nonexistent_share < untrained(data, backbone).generate(np.arange(1), [np.arange(3)]).nonexistent_share


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_constrained_search_ranks_all_unseen_items_by_their_probability(data, tmp_path, family):
    model = untrained(data, save_language_model(tmp_path / family, family), constrained=True, num_beams=NUM_ITEMS)
    # of unequal length, in one batch: padding and the repeated cache must make no difference
    histories = [np.array([3]), np.array([5, 6, 7, 20, 21]), np.array([], dtype=np.int32)]
    found = model.generate(np.array([0, 4, 9]), histories)
    for row, (user, history) in enumerate(zip((0, 4, 9), histories, strict=True)):
        unseen = np.setdiff1d(np.arange(NUM_ITEMS), history)
        exact = {item: log_p(model, user, history, model.item_numbers[item]) for item in unseen}
        items = found.items[row][found.items[row] >= 0]
        assert sorted(items) == unseen.tolist() and np.isneginf(found.scores[row][len(items) :]).all()
        np.testing.assert_allclose(found.scores[row][: len(items)], [exact[i] for i in items], atol=1e-4)
        assert (np.diff(found.scores[row][: len(items)]) <= 0).all()
    assert found.nonexistent_share == 0


def test_free_search_finds_the_likeliest_sequences_and_counts_what_does_not_exist(data, backbone):
    model = untrained(data, backbone, num_beams=8)
    history = np.array([2, 3, 4])
    found = model.generate(np.array([1]), [history])
    # the same search by hand
    prompt = torch.tensor([model._text(1, history) + model.item])
    with torch.no_grad():
        first = model.language_model(prompt).logits[0, -1].log_softmax(-1)
        first[0] = -torch.inf  # the end of the text may not come before two tokens
        starts = first.topk(8).indices
        seconds = model.language_model(torch.cat([prompt.repeat(8, 1), starts[:, None]], 1)).logits[:, -1]
    seconds = seconds.log_softmax(-1)
    seconds[:, 0] = -torch.inf
    both = (first[starts][:, None] + seconds).flatten().topk(8)
    np.testing.assert_allclose(found.scores[0], both.values, atol=1e-4)
    pairs = [(starts[k // seconds.shape[1]].item(), k % seconds.shape[1]) for k in both.indices.tolist()]
    spelt = {tuple(model._spelt(number, 2)): item for item, number in enumerate(model.item_numbers)}
    assert found.items[0].tolist() == [spelt.get(pair, -1) for pair in pairs]
    assert found.nonexistent_share == np.mean([pair not in spelt for pair in pairs]) > 0
    scores = model.score(np.array([1]), [history])
    assert scores.shape == (1, NUM_ITEMS) and scores.dtype == np.float32
    assert np.isfinite(scores).sum() == (found.items >= 0).sum()


def test_share_of_nonexistent_leaves_out_what_was_not_generated():
    found = Generated(np.array([[3, -1, -1]]), np.array([[-1.0, -2.0, -np.inf]], dtype=np.float32))
    assert found.nonexistent_share == 0.5


def test_loss_falls_on_digits_alone_and_long_histories_lose_their_oldest(data, backbone):
    model = untrained(data, backbone, max_length=40)
    room = model.room
    long = [k % NUM_ITEMS for k in range(room + 3)]
    generator = np.random.Generator(np.random.PCG64(0))
    rows = [
        {"user": 3, "context": [], "targets": long},
        {"user": 4, "context": [7, 8], "targets": [9]},
        {"user": 5, "context": long, "targets": [9]},
    ]
    batch = model.collate(rows, generator)
    assert batch["input_ids"].shape[1] <= 40
    for row, (user, shown, targets) in enumerate(
        [(3, long[3:], long[3:]), (4, [7, 8, 9], [9]), (5, [*long[4:], 9], [9])]
    ):
        ids = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        assert ids == model._text(user, shown)
        labels = batch["labels"][row]
        wanted = list(itertools.chain.from_iterable(model._spelt(model.item_numbers[t], 2) for t in targets))
        assert labels[labels >= 0].tolist() == wanted
        assert (labels[labels >= 0] == batch["input_ids"][row][labels >= 0]).all()
        assert labels[batch["attention_mask"][row] == 0].eq(-100).all()


def test_shuffles_what_it_learns_but_not_what_it_validates(data, backbone):
    model = untrained(data, backbone, shuffle=True)
    generator = np.random.Generator(np.random.PCG64(0))
    train = {"user": 0, "context": [], "targets": list(range(12))}
    assert not torch.equal(model.collate([train], generator)["labels"], model.collate([train], generator)["labels"])
    row = {"user": 0, "context": list(range(6)), "targets": list(range(6, 12))}
    assert torch.equal(model.collate([row], generator)["labels"], model.collate([row], generator)["labels"])


def test_numbers_are_permutations_and_related_items_share_digits():
    generator = np.random.Generator(np.random.PCG64(0))
    groups = [np.flatnonzero(np.arange(40) % 4 == g) for g in range(4)]
    rows = [generator.choice(groups[user % 4], 5, replace=False) for user in range(120)]
    train = Histories.from_lists(rows, 41)
    for numbering in ("random", "sequential", "collaborative"):
        numbers = number_items(train, numbering, generator)
        assert sorted(numbers) == list(range(41))
        spread = np.mean([np.ptp(numbers[group]) for group in groups])
        assert (spread < 20) == (numbering == "collaborative")
    assert number_items(train, "sequential", generator)[rows[0]].tolist() == [0, 1, 2, 3, 4]


def test_saved_and_loaded(data, backbone, adapted, tmp_path):
    histories = [data.histories("train")[user] for user in range(6)]
    before = adapted.generate(np.arange(6), histories)
    adapted.save_pretrained(tmp_path / "model")
    adapted.save_pretrained(tmp_path / "model")
    files = sorted(
        p.relative_to(tmp_path / "model").as_posix() for p in (tmp_path / "model").rglob("*") if p.is_file()
    )
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert files == ["config.json", *(f"language_model/{name}" for name in names), "model.safetensors"]
    state = load_file(tmp_path / "model" / "language_model" / "adapter_model.safetensors")
    assert all("lora_" in name for name in state) and any(value.abs().sum() > 0 for value in state.values())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "pseudo-ids"
    loaded = PseudoIds.from_pretrained(tmp_path / "model")
    after = loaded.generate(np.arange(6), histories)
    np.testing.assert_array_equal(after.items, before.items)
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)
    # the adapters matter
    fresh = untrained(data, backbone).generate(np.arange(6), histories)
    assert not np.allclose(fresh.scores, before.scores, atol=1e-2)


def test_the_adapter_is_one_that_peft_loads(backbone, adapted, tmp_path):
    from peft import PeftModel

    adapted.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), tmp_path / "language_model")
    ids = torch.tensor([adapted._text(0, [1, 2])])
    with torch.no_grad():
        np.testing.assert_allclose(model(ids).logits, adapted.language_model(ids).logits, atol=1e-4)


def test_all_parameters_saved_and_loaded(data, backbone, tmp_path):
    model = PseudoIds.fit_to(data, backbone=backbone, max_epochs=1, lora_rank=0, **SETTINGS)
    model.save_pretrained(tmp_path)
    loaded = PseudoIds.from_pretrained(tmp_path)
    histories = [np.array([1, 2])]
    np.testing.assert_array_equal(loaded.score(np.array([0]), histories), model.score(np.array([0]), histories))


def test_the_same_seed_gives_the_same_model(data, backbone, adapted):
    again = PseudoIds.fit_to(data, backbone=backbone, max_epochs=2, learning_rate=1e-2, lora_rank=4, **SETTINGS)
    other = PseudoIds.fit_to(
        data, seed=1, backbone=backbone, max_epochs=2, learning_rate=1e-2, lora_rank=4, **SETTINGS
    )
    assert all(torch.equal(again.adapter[name], value) for name, value in adapted.adapter.items())
    assert not all(torch.equal(other.adapter[name], value) for name, value in adapted.adapter.items())


def test_wrong_settings_and_files(data, backbone, tmp_path):
    with pytest.raises(ValueError, match="needs a language model; name it by backbone="):
        PseudoIds.fit_to(data)
    with pytest.raises(ValueError, match="Unknown numbering 'x'"):
        PseudoIdsConfig(numbering="x")
    with pytest.raises(ValueError, match="Unknown precision 'x'"):
        PseudoIdsConfig(precision="x")
    with pytest.raises(ValueError, match="num_beams must be 2"):
        PseudoIdsConfig(num_beams=1)
    with pytest.raises(ValueError, match="leaves no room"):
        PseudoIds.fit_to(data, backbone=backbone, max_length=8)
    with pytest.raises(CLLM4RecError, match="holds no config.json"):
        PseudoIds.from_pretrained(tmp_path)
    tokenizer = train_base_tokenizer()
    make_backbone("t5", vocab_size=len(tokenizer) + 6).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="causal language model; .* is an encoder–decoder model"):
        PseudoIds.fit_to(data, backbone=str(tmp_path / "t5"))
