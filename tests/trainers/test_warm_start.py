"""The warm start: its closed forms, what it is allowed to see, and what it puts into a model."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.sparse import diags

from cllm4rec_hf import CLLM4RecForRecommendation, PreparedData
from cllm4rec_hf.baselines.ease import solve_ease
from cllm4rec_hf.baselines.text_svd import interaction_counts
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.evaluation import validation_score
from cllm4rec_hf.evaluation.validation_score import ValidationScore
from cllm4rec_hf.trainers import linear_start, warm_start
from cllm4rec_hf.trainers.calibration import calibrate_head
from cllm4rec_hf.trainers.linear_start import RIDGES, TEXT_WEIGHTS, LinearStart, fit_ease
from cllm4rec_hf.trainers.multinomial_start import (
    MultinomialStart,
    _loss,
    affordable_draws,
    fit_multinomial,
    mean_of,
)
from cllm4rec_hf.trainers.warm_start import (
    WarmStart,
    _mixed,
    _preferred,
    apply_warm_start,
    fit_warm_start,
    item_text_matrix,
    multinomial_rank,
)
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
    first, second = (fit_warm_start(data, 16, method, seed=3, most_steps=40) for _ in range(2))
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
    assert fit_warm_start(data, 16, most_steps=40).text_weight == 0


def test_the_linear_part_of_full_rank_is_ease_with_users_weighted_and_items_damped(data):
    score = ValidationScore(data)
    start = fit_ease(data, None, 512, score)
    assert start.settings["rank"] == data.num_items - 1 and start.text_weight == 0
    interactions = data.histories("train").to_csr().toarray().astype(float)
    activity, popularity = interactions.sum(axis=1), np.maximum(interactions.sum(axis=0), 1)
    gram = interactions.T @ np.diag((activity / activity.mean()) ** -0.5) @ interactions
    inverse = np.linalg.inv(gram + start.settings["ridge"] * np.eye(data.num_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = np.diag(popularity ** -start.settings["damping"]) @ weights
    # all singular values but the smallest are kept
    smallest = np.linalg.svd(expected, compute_uv=False)[-1]
    assert np.abs(start.queries @ start.keys.T - expected).max() <= smallest * 1.01 + 1e-5
    assert start.score == pytest.approx(score(score.histories @ (start.queries @ start.keys.T)))


def test_the_linear_part_is_the_best_along_either_setting_with_fewer_fits(data, monkeypatch):
    fits = []

    def solve(gram, ridge):
        fits.append(ridge)
        return solve_ease(gram, ridge)

    monkeypatch.setattr(linear_start, "solve_ease", solve)
    score, texts = ValidationScore(data), item_text_matrix(data)
    start = fit_ease(data, texts, 512, score)
    assert len(fits) <= 2 * (len(RIDGES) + len(TEXT_WEIGHTS)) - 3
    interactions = data.histories("train").to_csr().astype(float)
    activity, popularity = interaction_counts(interactions, axis=1), interaction_counts(interactions, axis=0)
    gram = (interactions.T @ diags((activity / activity.mean()) ** -0.5) @ interactions).toarray()
    text_gram = (texts @ texts.T).toarray()

    def found(weight, ridge):
        return score(score.histories @ (popularity[:, None] ** -0.25 * solve_ease(gram + weight * text_gram, ridge)))

    weight, ridge = start.text_weight, start.settings["ridge"]
    best = found(weight, ridge)
    assert all(found(other, ridge) <= best for other in TEXT_WEIGHTS)
    assert all(found(weight, other) <= best for other in RIDGES)


def test_the_multinomial_part_minimizes_what_its_docstring_says(data):
    """One step by hand: the gradient of the masked items' likelihood."""
    train = data.histories("train").to_csr()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(data.num_items, 3, generator=generator, dtype=torch.float64).float().requires_grad_()
    bias = torch.randn(data.num_items, generator=generator).requires_grad_()
    scale = torch.tensor(0.3, requires_grad=True)
    loss = _loss(train[:4], vectors, bias, scale, 0.5, torch.Generator().manual_seed(5))
    masked = torch.rand(train[:4].nnz, generator=torch.Generator().manual_seed(5)) < 0.5
    expected, place = 0.0, 0
    for user in range(4):
        items = torch.from_numpy(train[user].indices.astype(np.int64))
        hidden = masked[place : place + len(items)]
        place += len(items)
        rest = items[~hidden]
        context = vectors[rest].sum(dim=0) / max(1, len(rest)) ** 0.5
        log_p = torch.log_softmax(scale.exp() * (vectors @ context) + bias, dim=0)
        expected = expected - log_p[items[hidden]].sum() / 4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.autograd.grad(loss, [vectors, bias, scale])
    theirs = torch.autograd.grad(expected, [vectors, bias, scale])
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(ours, theirs, strict=True))


def test_the_multinomial_part_keeps_its_best_state_and_scores_as_it_says(data):
    score = ValidationScore(data)
    initial = np.random.default_rng(0).normal(size=(data.num_items, 6))
    start = fit_multinomial(data, initial, 1.0, score, seed=2)
    assert start.steps > 0 and start.score == pytest.approx(score(start.scores(score.histories)), abs=1e-6)
    history = score.histories[3].indices
    expected = start.vectors[history].mean(dim=0) @ start.vectors.T + start.bias
    torch.testing.assert_close(start.scores(score.histories[3])[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(start.vectors, fit_multinomial(data, initial, 1.0, score, seed=2).vectors)
    # better than where the items' popularity alone would be
    assert start.score > score(start.bias.expand(len(score.users), -1))


def test_few_steps_are_steps(data):
    score = ValidationScore(data)
    initial = np.random.default_rng(0).normal(size=(data.num_items, 6))
    start = fit_multinomial(data, initial, 1.0, score, most_steps=3)
    assert start.steps == 3 and np.isfinite(start.score)


def test_where_few_items_have_texts_the_linear_model_starts_large_catalogs(data, monkeypatch):
    monkeypatch.setattr(warm_start, "_FEW_ITEMS", 1)
    score, texts = ValidationScore(data), item_text_matrix(data)
    linear = fit_ease(data, texts, 8, score)
    few = texts.multiply(np.arange(data.num_items)[:, None] < 3).tocsr()
    few.eliminate_zeros()
    assert {name for name, *_ in warm_start._starts(data, texts, None, linear, 0)} == {"texts"}
    assert {name for name, *_ in warm_start._starts(data, few, None, linear, 0)} == {"texts", "linear model"}


def test_the_closed_form_is_refused_where_its_matrix_would_not_fit(data, monkeypatch):
    monkeypatch.setattr("cllm4rec_hf.trainers.linear_start.MAX_ITEMS", data.num_items - 1)
    with pytest.raises(CLLM4RecError, match="set warm_start to auto or svd"):
        fit_warm_start(data, 16, "ease")


@pytest.mark.parametrize(("size", "rank"), [(576, 224), (4096, 224), (56, 28), (2, 1)])
def test_the_multinomial_part_leaves_room_in_small_backbones(size, rank):
    assert multinomial_rank(size) == rank


def test_the_mean_of_models_scores_as_their_mean_and_its_cut_is_the_best_of_its_rank(data):
    generator = torch.Generator().manual_seed(0)
    models = []
    for rank in (2, 3):
        vectors = torch.randn(data.num_items, rank, generator=generator)
        models.append(MultinomialStart(vectors, torch.randn(data.num_items, generator=generator), 0.5, 0.0, 1))
    histories = data.histories("train").to_csr()
    vectors, bias = mean_of(models, 5)
    scores = WarmStart("ease", vectors, vectors, 0.0, bias=bias, power=0.5).scores(histories)
    expected = (models[0].scores(histories) + models[1].scores(histories)) / 2
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    cut, _ = mean_of(models, 2)
    values, directions = np.linalg.eigh(vectors @ vectors.T)
    best = directions[:, -2:] * values[-2:] @ directions[:, -2:].T
    np.testing.assert_allclose(cut @ cut.T, best, atol=1e-8)


def test_cheap_models_are_fitted_with_other_masks_and_averaged(data, monkeypatch):
    fits, means = [], []

    def fit(data, initial, power, score, seed, most_steps):
        fits.append((initial.shape[1], power, seed))
        return fit_multinomial(data, initial, power, score, seed, most_steps)

    def mean(models, rank):
        means.append(len(models))
        return mean_of(models, rank)

    monkeypatch.setattr(warm_start, "fit_multinomial", fit)
    monkeypatch.setattr(warm_start, "mean_of", mean)
    fit_warm_start(data, 24, seed=4, most_steps=10)
    for width, power in {(width, power) for width, power, _ in fits}:
        seeds = [seed for *others, seed in fits if others == [width, power]]
        # two starts of this width at most, each with the same three seeds, one of them the run's own
        assert len(set(seeds)) == 3 and 4 in seeds and len(seeds) % 3 == 0
    assert means and all(count % 3 == 0 for count in means)


def test_the_larger_the_catalog_the_fewer_draws_are_affordable(data):
    assert affordable_draws(data, models=18) == 3
    # 1,500 steps of 100 users on 200,000 items are what one model may take, and three times that all together
    data.num_items = 200_000
    assert [affordable_draws(data, models) for models in (1, 2, 3, 4)] == [3, 1, 1, 0]
    assert affordable_draws(data, models=6, most_steps=100) == 3


def test_where_not_all_models_are_affordable_one_power_is_fitted_once(data, monkeypatch):
    fits = []

    def fit(data, initial, power, score, seed, most_steps):
        fits.append((initial.shape[1], power, seed))
        return fit_multinomial(data, initial, power, score, seed, most_steps)

    monkeypatch.setattr(warm_start, "fit_multinomial", fit)
    monkeypatch.setattr(warm_start, "affordable_draws", lambda *_: 0)
    fit_warm_start(data, 24, seed=4, most_steps=10)
    assert {power for _, power, _ in fits} == {0.75} and {seed for *_, seed in fits} == {4}


def test_the_parts_are_added_up(data):
    start = fit_warm_start(data, 24, most_steps=60)
    lists = [data.histories("train")[user] for user in (0, 5)]
    expected = np.stack(
        [start.queries[items].sum(axis=0) / len(items) ** start.power @ start.keys.T for items in lists]
    )
    np.testing.assert_allclose(start.scores(lists), expected + (0 if start.bias is None else start.bias), rtol=1e-9)
    score = ValidationScore(data)
    assert start.score == pytest.approx(score(start.scores(score.histories)), abs=1e-6)


def test_more_users_decide_between_starts_than_each_fit_asks(data, monkeypatch):
    whole = ValidationScore(data)
    asked, per_user = [], ValidationScore.per_user
    # a fit asks five users, and scores of eight are held at once
    monkeypatch.setattr(validation_score, "CELLS", 8 * data.num_items)
    monkeypatch.setattr(validation_score, "_LEAST_USERS", 5)
    monkeypatch.setattr(validation_score, "_WANTED_USERS", 5)
    monkeypatch.setattr(ValidationScore.__init__, "__defaults__", (0, 1))
    monkeypatch.setattr(
        ValidationScore, "per_user", lambda self, scores: asked.append(len(self.users)) or per_user(self, scores)
    )
    start = fit_warm_start(data, 16, most_steps=20)
    assert len(whole.users) > 8 and {5, 8} <= set(asked) and max(asked) == 8
    assert start.score == pytest.approx(per_user(whole, start.scores(whole.histories)).mean(), abs=1e-6)


def test_what_validation_does_not_tell_apart_is_taken_by_preference(data):
    """Item vectors that rank nothing take the linear part in; good ones do without a linear part that ranks nothing."""
    score, generator = ValidationScore(data), np.random.default_rng(0)
    useful = fit_ease(data, item_text_matrix(data), 12, score)
    half = np.where(np.arange(data.num_items) < data.num_items // 2, 1.0, -1.0)[:, None]
    noise = 1e-3 * generator.normal(size=(data.num_items, 12))
    useless = LinearStart(noise, noise, 0.0, {}, 0.0)
    zeros = torch.zeros(data.num_items)
    good = MultinomialStart(torch.from_numpy(half).float(), zeros, 0.5, 0.0, 1)
    bad = MultinomialStart(torch.from_numpy(noise).float(), zeros, 0.5, 0.0, 1)
    start, values = _mixed("ease", "texts", [good], useless, 8, score)
    assert start.settings["linear share"] == 0 and start.keys.shape[1] == 1
    assert values.mean() == pytest.approx(start.score) == score(start.scores(score.histories))
    assert _mixed("ease", "texts", [bad], useful, 8, score)[0].settings["linear share"] > 0


def test_words_alone_are_preferred_to_more_and_adding_up_evidence_to_means():
    fitted = dict.fromkeys([("linear model", 0.75), ("texts", 1.0), ("texts and states", 1.0), ("texts", 0.75)])
    assert _preferred(fitted) == [("texts", 0.75), ("texts", 1.0), ("texts and states", 1.0), ("linear model", 0.75)]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_model_scores_as_the_warm_start_does(family, data):
    start = fit_warm_start(data, 16, most_steps=40)
    rank = start.keys.shape[1]
    model = CLLM4RecForRecommendation.from_backbone(
        make_backbone(family),
        data.num_users,
        data.num_items,
        history_rank=rank,
        history_power=start.power,
        item_bias=start.bias is not None,
        logit_scale=1e-12,
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
    start = fit_warm_start(data, 16, most_steps=40)
    table = data.interactions.data.table.to_pandas()
    # other items in the test split: nothing of the warm start may change
    table.loc[table["split"] == "test", "item"] = 0
    data.interactions = Dataset.from_pandas(table, preserve_index=False)
    again = fit_warm_start(data, 16, most_steps=40)
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
