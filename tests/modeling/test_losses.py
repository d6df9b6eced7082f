"""Each stage's loss against plain arithmetic on a toy of 3 users, and the parts of the losses."""

import math

import numpy as np
import pytest
import torch

from cllm4rec_hf import CLLM4RecForRecommendation
from cllm4rec_hf.data.negatives import ItemSampler
from cllm4rec_hf.modeling import losses_cllm4rec
from cllm4rec_hf.modeling.losses_cllm4rec import (
    distinct_rows,
    multinomial_nll,
    mutual_regularization,
    sampled_nll,
    soft_capped,
    vocabulary_cross_entropy,
)
from tests.conftest import make_backbone

USERS, ITEMS, WORDS = 3, 4, 96
LAMBDA_C, LAMBDA_L = 0.7, 0.3


def user(index):
    return WORDS + index


def item(index):
    return WORDS + USERS + index


def toy(family, **fields):
    model = CLLM4RecForRecommendation.from_backbone(
        make_backbone(family), USERS, ITEMS, lambda_c=LAMBDA_C, lambda_l=LAMBDA_L, **fields
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (*model.collaborative_parameters(), *model.content_parameters()):
            parameter.normal_(0.0, 0.4, generator=generator)
    return model.train()


def table(model, name):
    return getattr(model, f"{name}_embeddings").weight.detach().double().numpy()


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


def states(model, task, prompt, main):
    """Hidden states that predict each token of the main text, for one unpadded document."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            decoder = torch.tensor([[0, *main[:-1]]])
            return model.encode(torch.tensor([prompt]), None, decoder, task)[0].double().numpy()
        hidden = model.encode(torch.tensor([[*prompt, *main]]), None, None, task)[0].double().numpy()
        return hidden[len(prompt) - 1 : len(prompt) + len(main) - 1]


def regularization(model, ids, learning="collaborative", prior=LAMBDA_L):
    """λ_c/2 Σ ‖z^l − z^c‖² + λ_l/2 Σ ‖z^l‖² over the distinct users and items of one document, by hand."""
    total = 0.0
    for token in set(ids):
        if token < WORDS:
            continue
        kind, row = ("user", token - WORDS) if token < item(0) else ("item", token - item(0))
        z = table(model, f"{learning}_{kind}")[row]
        other = table(model, f"{'content' if learning == 'collaborative' else 'collaborative'}_{kind}")[row]
        total += LAMBDA_C / 2 * ((z - other) ** 2).sum() + prior / 2 * (z**2).sum()
    return total


def batch(family, documents):
    """Right-padded batch of (prompt, main) documents."""
    seq2seq = family == "t5"
    rows = [prompt if seq2seq else [*prompt, *main] for prompt, main in documents]
    labels = [main if seq2seq else [-100] * len(prompt) + main for prompt, main in documents]
    width, depth = max(map(len, rows)), max(map(len, labels))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (depth - len(row)) for row in labels]),
    }


INTERACTIONS = [
    ([user(0), 3, 4], [item(2), item(0)]),
    ([user(1), 3, 4], [item(1)]),
    ([user(2), 3, 4], [item(3), item(0), item(1)]),
]
TEXTS = [
    ([user(0), 5, item(2), 6], [7, 8, 9]),
    ([7, item(1), 6], [10, 11]),
    ([8, user(2), 6], [12]),
]


def test_content_loss_by_hand(family):
    model = toy(family)
    vocabulary = model.backbone.get_output_embeddings().weight.detach().double().numpy()
    expected = 0.0
    for prompt, main in TEXTS:
        for state, word in zip(states(model, "content", prompt, main), main, strict=True):
            expected -= log_softmax(vocabulary @ state)[word]
    output = model(**batch(family, TEXTS), task="content", regularize=False)
    assert output.mr_loss is None
    assert output.loss.item() == pytest.approx(expected / 3, rel=1e-5)


def test_content_step_adds_the_mirror_image_of_the_regularization(family):
    model = toy(family)
    output = model(**batch(family, TEXTS), task="content")
    expected = sum(regularization(model, [*prompt, *main], "content", prior=0.0) for prompt, main in TEXTS) / 3
    assert output.mr_loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx((output.lm_loss + output.mr_loss).item())


@pytest.mark.parametrize("history", [False, True])
def test_collaborative_loss_by_hand(family, history):
    model = toy(family, history_rank=2 if history else 0, item_bias=history)
    items = table(model, "collaborative_item")
    expected, regularizer = 0.0, 0.0
    for prompt, main in INTERACTIONS:
        for k, (state, token) in enumerate(zip(states(model, "collaborative", prompt, main), main, strict=True)):
            query = state
            bias = 0.0
            if history:
                head = model.item_head
                rows = head.history_queries.weight.detach().double().numpy()
                basis = head.history_basis.double().numpy()
                seen = sum((rows[t - item(0)] for t in main[:k]), start=np.zeros(2))
                query = query + head.history_scale.item() * seen @ basis
                bias = head.item_bias.detach().double().numpy()
            expected -= log_softmax(items @ query + bias)[token - item(0)]
        regularizer += regularization(model, [*prompt, *main])
    output = model(**batch(family, INTERACTIONS), task="collaborative")
    assert output.lm_loss.item() == pytest.approx(expected / 3, rel=1e-5)
    assert output.mr_loss.item() == pytest.approx(regularizer / 3, rel=1e-5)
    assert output.loss.item() == pytest.approx((expected + regularizer) / 3, rel=1e-5)


@pytest.mark.parametrize("calibrated", [False, True])
def test_recommendation_loss_by_hand(family, calibrated):
    fields = {"history_rank": 2, "center_hidden": True, "logit_scale": 0.5} if calibrated else {}
    model = toy(family, **fields)
    if calibrated:
        model.item_head.recommendation_mean.normal_(generator=torch.Generator().manual_seed(1))
        model.item_head.recommendation_scale.fill_(1.7)
    items = table(model, "collaborative_item")
    documents = [
        ([user(0), 3, item(2), item(0), 4, user(0), 5], [item(1), item(3)]),
        ([user(1), 3, item(1), 4, user(1), 5], [item(0)]),
        ([user(2), 3, item(3), item(0), 4, user(2), 5], [item(2)]),
    ]
    expected, regularizer = 0.0, 0.0
    for prompt, held_out in documents:
        with torch.no_grad():
            state = model.prompt_states(torch.tensor([prompt]))[0].double().numpy()
        query = state
        if calibrated:
            head = model.item_head
            rows, basis = head.history_queries.weight.detach().double().numpy(), head.history_basis.double().numpy()
            seen = sum(rows[t - item(0)] for t in prompt if t >= item(0))
            query = 0.5 * (state - head.recommendation_mean.double().numpy()) / 1.7
            query = query + head.history_scale.item() * seen @ basis
        log_p = log_softmax(items @ query)
        expected -= sum(log_p[token - item(0)] for token in held_out)
        regularizer += regularization(model, [*prompt, *held_out])
    rows = [prompt for prompt, _ in documents]
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([[item(1), item(3)], [item(0), -100], [item(2), -100]]),
    }
    output = model(**inputs)
    assert output.rec_loss.item() == pytest.approx(expected / 3, rel=1e-5)
    assert output.mr_loss.item() == pytest.approx(regularizer / 3, rel=1e-5)


def test_mutual_regularization_closed_form_and_gradient():
    generator = torch.Generator().manual_seed(0)
    tables = [torch.nn.Embedding(4, 6, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        for table in tables:
            table.weight.normal_(generator=generator)
    learning, fixed = (table.weight for table in tables)
    # row 2 occurs in both documents and twice in the first; row 0 nowhere
    ids = torch.tensor([[12, 12, 11, 3], [12, 13, 99, 3]])
    loss = mutual_regularization(ids, 10, *tables, 0.5, prior=0.2)
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64).unsqueeze(1)
    expected = (weights * (0.25 * (learning - fixed) ** 2 + 0.1 * learning**2)).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    torch.testing.assert_close(
        learning.grad, weights * (0.5 * (learning - fixed) + 0.2 * learning).detach(), atol=1e-12, rtol=0
    )
    assert fixed.grad is None


def test_distinct_rows_counts_each_row_once_a_document():
    rows, counts = distinct_rows(torch.tensor([[5, 5, 6], [6, 6, 1], [9, 4, 1]]), offset=4, size=3)
    assert rows.tolist() == [0, 1, 2] and counts.tolist() == [1, 1, 2]


def test_multinomial_nll_against_a_loop():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, 3], [4, -100], [-100, -100]])
    expected = -sum(
        float(logits[b].log_softmax(-1)[j]) for b, row in enumerate(target.tolist()) for j in row if j >= 0
    )
    assert multinomial_nll(logits, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("task", ["collaborative", "recommendation"])
def test_item_losses_by_rows_equal_those_of_all_rows(task, family, monkeypatch):
    model = toy(family)
    inputs = batch(family, INTERACTIONS)
    if task == "recommendation":
        inputs = {**inputs, "labels": torch.tensor([[item(0), item(2)], [item(1), -100], [item(3), item(0)]])}
    found = []
    for cells in (10**9, 2 * ITEMS):
        monkeypatch.setattr(losses_cllm4rec, "_ITEM_CELLS", cells)
        model.zero_grad()
        held = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, held=held: held.append(tuple(x.shape)) or x, lambda x: x
        ):
            loss = model(**inputs, task=task).loss
        loss.backward()
        rows = max((shape[0] for shape in held if len(shape) == 2 and shape[1] == ITEMS), default=0)
        found.append(
            (rows, loss.detach(), {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None})
        )
    (all_rows, loss, gradients), (few_rows, by_rows, others) = found
    # two rows of logits at a time, and those computed anew on the way back
    assert all_rows > 2 >= few_rows
    torch.testing.assert_close(by_rows, loss)
    assert gradients.keys() == others.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_chunked_cross_entropy_equals_the_plain_one(softcap, bias, trains):
    generator = torch.Generator().manual_seed(0)
    rows = 2100 if trains else 600
    hidden = torch.randn(rows, 8, generator=generator)
    weight = torch.randn(50, 8, generator=generator)
    shift = torch.randn(50, generator=generator) if bias else None
    target = torch.randint(0, 50, (rows,), generator=generator)
    ways = []
    for chunked in (True, False):
        parts = [None if part is None else part.clone() for part in (hidden, weight, shift)]
        for part in parts if trains else parts[:1]:
            if part is not None:
                part.requires_grad_()
        if chunked:
            loss = vocabulary_cross_entropy(parts[0], parts[1], target, parts[2], softcap)
        else:
            logits = soft_capped(torch.nn.functional.linear(*parts), softcap)
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        (3 * loss).backward()
        ways.append([loss, *(part.grad for part in parts if part is not None and part.requires_grad)])
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_no_more_logits_than_a_chunks_are_held_over_a_head_that_trains():
    hidden, weight = torch.randn(5000, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        vocabulary_cross_entropy(hidden, weight, torch.zeros(5000, dtype=torch.int64))
    assert held and max(held) < 5000 * 300 / 4


def test_chunked_cross_entropy_in_bfloat16_adds_up_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(700, 16, generator=generator), torch.randn(90, 16, generator=generator)
    target = torch.randint(0, 90, (700,), generator=generator)
    exact = vocabulary_cross_entropy(hidden, weight, target)
    rounded = vocabulary_cross_entropy(hidden.bfloat16(), weight.bfloat16(), target)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-3)


def test_logits_come_with_the_loss_only_outside_training(family):
    model = toy(family)
    inputs = batch(family, INTERACTIONS)
    assert model(**inputs, task="collaborative").logits is None
    model.eval()
    output = model(**inputs, task="collaborative")
    assert output.logits.shape == (3, inputs["labels"].shape[1], ITEMS)
    assert model(**batch(family, TEXTS), task="content").logits.shape[-1] == WORDS


def catalog_loss(weights, query, target, sample=None):
    valid, own = target >= 0, target.clamp(min=0)
    if sample is None:
        return multinomial_nll(query @ weights.T, target)
    items, log_expected = sample
    is_positive = (items[None, :, None] == target[:, None, :]).any(-1)
    positive = (weights[own] @ query.unsqueeze(-1)).squeeze(-1)
    return sampled_nll(positive, query @ weights[items].T, log_expected, is_positive, valid)


def test_a_sampled_softmax_converges_to_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(300, 8, generator=generator)
    query = torch.randn(4, 8, generator=generator, requires_grad=True)
    target = torch.tensor([[1, 5, 9], [7, -100, -100], [200, 1, -100], [299, 298, 297]])
    popularity = np.arange(300)[::-1] ** 2
    (exact,) = torch.autograd.grad(catalog_loss(weights, query, target), query)
    errors = []
    for size in (30, 300, 3_000, 30_000):
        found = []
        for step in range(20):
            sample = ItemSampler(popularity, size, seed=3).draw(step)
            found.append(torch.autograd.grad(catalog_loss(weights, query, target, sample), query)[0])
        errors.append(float((torch.stack(found) - exact).square().mean().sqrt() / exact.square().mean().sqrt()))
    # a hundred times the sample is a tenth of the error
    assert errors[3] < 0.02 and errors[3] < 0.2 * errors[1] and errors[2] < 0.2 * errors[0]
    # without the correction it converges to something else
    items, log_expected = ItemSampler(popularity, 30_000, seed=3).draw(0)
    (wrong,) = torch.autograd.grad(
        catalog_loss(weights, query, target, (items, torch.zeros_like(log_expected))), query
    )
    assert float((wrong - exact).norm() / exact.norm()) > 0.05


def test_the_sampler_draws_what_it_says():
    popularity = np.array([0, 0, 100, 1, 3, 0])
    sampler = ItemSampler(popularity, 200_000, seed=1)
    items, log_expected = sampler.draw(7)
    counts = np.bincount(items, minlength=6)
    expected = 200_000 * (0.5 * popularity / 104 + 0.5 / 6)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())
    np.testing.assert_allclose(log_expected.exp().numpy(), expected[items], rtol=1e-5)
    again, _ = ItemSampler(popularity, 200_000, seed=1).draw(7)
    assert torch.equal(items, again) and not torch.equal(items, sampler.draw(8)[0])
    with pytest.raises(ValueError, match="got 0 items and size 5"):
        ItemSampler(np.array([]), 5)


@pytest.mark.parametrize("task", ["collaborative", "content", "recommendation"])
@pytest.mark.parametrize("sampled", [False, True])
def test_row_sparse_gradients_are_the_dense_ones(task, sampled):
    model = CLLM4RecForRecommendation.from_backbone(make_backbone("llama"), 5, 7, seed=1, history_rank=4, lambda_l=0.3)
    model.train()
    first = model.first_item_id
    ids = torch.tensor([[96, 3, first, first + 2], [98, 3, first + 6, first + 2]])
    labels = {"content": ids.masked_fill(ids >= 96, -100), "recommendation": torch.tensor([[first + 1], [first + 4]])}
    labels["collaborative"] = ids.masked_fill(ids < first, -100)
    sample = ItemSampler(np.ones(7), 50).draw(0) if sampled else None
    tables = [*model.tables(), model.item_head.history_queries]
    gradients = []
    for sparse in (False, True):
        for table in tables:
            table.sparse = sparse
        model.zero_grad()
        model(ids, torch.ones_like(ids), labels=labels[task], task=task, sample=sample).loss.backward()
        gradients.append([None if t.weight.grad is None else t.weight.grad for t in tables])
    for dense, by_rows in zip(*gradients, strict=True):
        assert (dense is None) == (by_rows is None)
        if dense is not None:
            torch.testing.assert_close(by_rows.to_dense(), dense)
    # the exact item softmax alone has something to say to every row
    is_sparse = [g.is_sparse for g in gradients[1] if g is not None]
    assert all(is_sparse) == (sampled or task == "content")
