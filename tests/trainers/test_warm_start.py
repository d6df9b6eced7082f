"""The warm start: its closed forms, what it is allowed to see, and what it puts into a model."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from cllm4rec_hf import EASE, CLLM4RecForRecommendation, Evaluator, PreparedData
from cllm4rec_hf.trainers.calibration import calibrate_head
from cllm4rec_hf.trainers.warm_start import apply_warm_start, fit_warm_start, item_text_matrix
from tests.conftest import make_backbone
from tests.trainers.parts import make_parts


@pytest.fixture
def data(prepared):
    return PreparedData.load(prepared)


def test_texts_are_those_of_training_with_rows_of_norm_one(data):
    matrix = item_text_matrix(data)
    assert matrix.shape[0] == data.num_items
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=1)).ravel())
    written = {row["item"] for row in data.texts}
    assert np.allclose(norms[sorted(written)], 1)


@pytest.mark.parametrize("method", ["ease", "svd"])
def test_it_is_deterministic_and_ranks_better_than_chance(method, data):
    first, second = (fit_warm_start(data, 16, method, seed=3) for _ in range(2))
    assert np.array_equal(first.queries, second.queries) and np.array_equal(first.keys, second.keys)
    assert first.keys.shape == first.queries.shape and first.keys.shape[0] == data.num_items
    assert first.method == method and first.keys.shape[1] <= 16
    scores = first.scores([data.histories("train")[0], data.histories("train")[1]])
    # two tastes: the first user's history scores the first half of the catalog higher, the second's the other
    halves = [scores[:, :9].mean(axis=1), scores[:, 9:].mean(axis=1)]
    assert halves[0][0] > halves[1][0] and halves[1][1] > halves[0][1]


def test_texts_that_share_no_word_are_no_text_rows(data):
    rows = [{"kind": "item", "user": None, "item": k, "text": f"吉他{chr(0x4E00 + k)}"} for k in range(data.num_items)]
    data.texts = Dataset.from_list(rows)
    assert item_text_matrix(data) is None
    assert fit_warm_start(data, 16).text_weight == 0


def test_full_rank_without_text_is_ease(data):
    data.texts = data.texts.filter(lambda row: False, keep_in_memory=True)
    assert item_text_matrix(data) is None
    start = fit_warm_start(data, 512, "ease")
    ease = EASE(start.settings["ridge"]).fit(data.histories("train"))
    history = [data.histories("train")[4]]
    # all singular values but the smallest are kept
    assert start.settings["rank"] == data.num_items - 1
    np.testing.assert_allclose(start.scores(history), ease.score(np.array([4]), history), atol=0.05)
    best = max(
        sum(
            Evaluator(data, "validation")
            .evaluate(EASE(r).fit(data.histories("train")), bootstrap=False)
            .metrics.values()
        )
        for r in (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
    )
    assert start.score >= best - 0.2


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_model_scores_as_the_warm_start_does(family, data):
    start = fit_warm_start(data, 16)
    rank = start.keys.shape[1]
    model = CLLM4RecForRecommendation.from_backbone(
        make_backbone(family), data.num_users, data.num_items, history_rank=rank, logit_scale=1e-12
    )
    apply_warm_start(model, start, seed=1)
    first = model.first_item_id
    history = data.histories("train")[3]
    ids = torch.tensor([[model.first_user_id + 3, 5, *(first + int(item) for item in history), 7]])
    with torch.no_grad():
        logits = model(ids).logits[0].double().numpy()
    np.testing.assert_allclose(logits, start.scale * start.scores([history])[0], rtol=1e-3, atol=1e-4)
    spread = model.get_input_embeddings().weight.float().std().item()
    assert model.collaborative_item_embeddings.weight.std().item() == pytest.approx(spread, rel=1e-3)
    assert torch.equal(model.collaborative_item_embeddings.weight, model.content_item_embeddings.weight)


def test_it_sees_no_test_pair(data):
    start = fit_warm_start(data, 16)
    table = data.interactions.data.table.to_pandas()
    # other items in the test split: nothing of the warm start may change
    table.loc[table["split"] == "test", "item"] = 0
    data.interactions = Dataset.from_pandas(table, preserve_index=False)
    again = fit_warm_start(data, 16)
    assert np.array_equal(start.queries, again.queries) and start.scale == again.scale


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("task", ["collaborative", "recommendation"])
def test_calibration_centres_hidden_states_and_sets_the_size_of_the_logits(family, task, base_tokenizer):
    parts = make_parts(base_tokenizer, family)
    corpus = getattr(parts, task)
    collator = getattr(parts, f"{task}_collator")
    calibrate_head(parts.model, corpus, collator, lm_share=0.1, batch_size=3)
    features = [{"task": task, "key": (0, k, 0), **corpus[k]} for k in range(len(corpus))]
    inputs = {name: value for name, value in collator(features).items() if name != "task"}
    with torch.no_grad():
        hidden, history = parts.model.item_contexts(task=task, **inputs)
        head, items = parts.model.item_head, parts.model.collaborative_item_embeddings.weight
        centred = head.center(hidden, task)
        assert centred.mean(dim=0).abs().max() < 1e-4
        assert centred.pow(2).mean().item() == pytest.approx(1, abs=1e-4)
        language, linear = head.logit_scale * centred @ items.T, head.history(history) @ items.T
    assert language.std(dim=-1).mean().item() == pytest.approx(0.1 * linear.std(dim=-1).mean().item(), rel=1e-3)


def test_calibration_leaves_the_plain_head_alone(base_tokenizer):
    parts = make_parts(base_tokenizer, center_hidden=False, learn_logit_scale=False, history_rank=0)
    before = {name: value.clone() for name, value in parts.model.item_head.state_dict().items()}
    calibrate_head(parts.model, parts.recommendation, parts.recommendation_collator)
    after = parts.model.item_head.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
