"""The losses and scores of the trained competitors against their formulas, written out in numpy."""

import numpy as np
import pytest
import torch

from cllm4rec_hf.baselines import md_cvae, mult_vae
from cllm4rec_hf.baselines.bert4rec import BERT4Rec
from cllm4rec_hf.baselines.lightgcn import LightGCN, normalised_graph
from cllm4rec_hf.baselines.md_cvae import MDCVAE
from cllm4rec_hf.baselines.mult_vae import MultVAE
from cllm4rec_hf.baselines.s3rec import S3Rec, top_words
from cllm4rec_hf.baselines.two_tower import TwoTower
from cllm4rec_hf.data.item_texts import item_text_matrix

HISTORIES = [np.array([4, 9, 2, 77], dtype=np.int32), np.array([9, 30], dtype=np.int32)]


@pytest.fixture
def generator():
    return np.random.Generator(np.random.PCG64(5))


@pytest.fixture
def no_noise(monkeypatch):
    """Draws of z are its mean plus half a standard deviation."""
    for module in (mult_vae, md_cvae):
        monkeypatch.setattr(
            module, "sample_normal", lambda mean, log_variance: mean + 0.5 * (0.5 * log_variance).exp()
        )


def numbers(module):
    """Weights of a model as float64 arrays."""
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def make(baseline, data, **settings):
    torch.manual_seed(2)
    model = baseline.create(data, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def interactions(data, histories=HISTORIES):
    rows = np.zeros((len(histories), data.num_items))
    for row, history in enumerate(histories):
        rows[row, history] = 1
    return rows


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def bound(w, x, hidden_of, logits_of, encoder, beta):
    """Negative ELBO, mean over rows: −Σ x log π(z) + β KL with z = μ + σ/2."""
    stacked = hidden_of(x / np.linalg.norm(x, axis=1, keepdims=True)) @ w[f"{encoder}.weight"].T + w[f"{encoder}.bias"]
    mean, log_variance = np.split(stacked, 2, axis=1)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum(axis=1)
    latent = mean + 0.5 * np.exp(0.5 * log_variance)
    return (-(x * log_softmax(logits_of(latent))).sum(axis=1) + beta * kl).mean(), mean, logits_of


def test_mult_vae_bound(planted_data, no_noise, generator):
    model = make(MultVAE, planted_data, hidden_size=12, latent_size=5, beta=0.4, anneal_epochs=10)
    w, x = numbers(model), interactions(planted_data)
    for epoch, beta in ((0.0, 0.0), (2.5, 0.1), (30.0, 0.4)):
        expected, mean, logits_of = bound(
            w,
            x,
            lambda x: np.tanh(x @ w["encoder_in.weight"].T + w["encoder_in.bias"]),
            lambda z: (
                np.tanh(z @ w["decoder_in.weight"].T + w["decoder_in.bias"]) @ w["decoder_out.weight"].T
                + w["decoder_out.bias"]
            ),
            "encoder_out",
            beta,
        )
        loss = model.loss(torch.tensor([0, 1]), HISTORIES, epoch, generator)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(model.score(np.arange(2), HISTORIES), logits_of(mean), atol=1e-4)


def test_mult_vae_drops_input_in_training_alone(planted_data):
    model = make(MultVAE, planted_data, hidden_size=12, latent_size=5)
    rows = torch.from_numpy(interactions(planted_data)).float()
    assert torch.equal(model.encode(rows)[0], model.encode(rows)[0])
    model.train()
    assert not torch.equal(model.encode(rows)[0], model.encode(rows)[0])


def test_md_cvae_losses_of_both_sides(planted_data, no_noise, generator):
    settings = {"item_size": 6, "latent_size": 4, "content_hidden_size": 7, "lambda_v": 3.0, "beta": 0.2}
    model = make(MDCVAE, planted_data, **settings, batch_size=500, anneal_epochs=0)
    w, train = numbers(model), planted_data.histories("train")
    x = train.to_csr().toarray().astype(float)
    v = w["items.weight"]
    users, *_ = bound(
        w,
        x,
        lambda x: np.tanh(x @ v + w["encoder_bias"]),
        lambda u: np.tanh(u @ w["decoder_in.weight"].T + w["decoder_in.bias"]) @ v.T + w["item_bias"],
        "encoder_out",
        0.2,
    )
    content = {name.removeprefix("content."): value for name, value in w.items()}
    words = model.words.toarray().astype(float)
    items, means, _ = bound(
        content,
        words,
        lambda x: np.tanh(x @ content["encoder_in.weight"].T + content["encoder_in.bias"]),
        lambda z: (
            np.tanh(z @ content["decoder_in.weight"].T + content["decoder_in.bias"]) @ content["decoder_out.weight"].T
            + content["decoder_out.bias"]
        ),
        "encoder_out",
        1.0,
    )
    gap = ((v - means) ** 2).sum()
    losses = list(model.losses(train, 3, generator))
    assert len(losses) == 2
    assert losses[0].item() == pytest.approx(users + 3.0 / 2 * gap / planted_data.num_users, rel=1e-4)
    assert losses[1].item() == pytest.approx(items + 3.0 / 2 * gap / planted_data.num_items, rel=1e-4)
    assert next(model.pretraining_losses(train, generator)).item() == pytest.approx(items, rel=1e-4)


def test_md_cvae_sides_pull_each_other_alternately(planted_data, generator):
    model = make(MDCVAE, planted_data, item_size=6, latent_size=4, content_hidden_size=7, batch_size=500)
    users, items = model.losses(planted_data.histories("train"), 0, generator)
    users.backward()
    assert model.items.weight.grad is not None and all(p.grad is None for p in model.content.parameters())
    model.zero_grad()
    items.backward()
    assert model.items.weight.grad is None and all(p.grad is not None for p in model.content.parameters())


def test_md_cvae_counts_different_words(planted_data):
    model = make(MDCVAE, planted_data, item_size=6, latent_size=4, max_words=20)
    texts = item_text_matrix(planted_data).toarray()
    kept = np.sort(np.argsort(-(texts > 0).sum(axis=0), kind="stable")[:20])
    words = model.words.toarray()
    assert words.shape == (planted_data.num_items, 20) and model.config.num_words == 20
    np.testing.assert_allclose(words.sum(axis=1), (texts[:, kept] > 0).sum(axis=1), rtol=1e-5)
    ratio = words[0][words[0] > 0] / texts[0, kept][words[0] > 0]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_bert4rec_reads_from_the_newest_and_ends_in_padding(planted_data):
    model = make(BERT4Rec, planted_data, hidden_size=8, num_layers=1, max_length=3)
    mask, padding = planted_data.num_items, planted_data.num_items + 1
    assert model.sequences(HISTORIES).tolist() == [[mask, 77, 2, 9], [mask, 30, 9, padding]]


def test_bert4rec_loss_and_logits(planted_data, monkeypatch, generator):
    model = make(BERT4Rec, planted_data, hidden_size=8, num_layers=1)
    visible, masked = [HISTORIES[0][:2], HISTORIES[1][:1]], [HISTORIES[0][2:], HISTORIES[1][1:]]
    w = numbers(model)
    hidden = model.encode(model.sequences(visible))[:, 0].detach().double()
    hidden = torch.nn.functional.gelu(
        hidden @ torch.tensor(w["transform.weight"]).T + torch.tensor(w["transform.bias"])
    )
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    hidden = (hidden * torch.tensor(w["norm.weight"]) + torch.tensor(w["norm.bias"])).numpy()
    logits = hidden @ w["encoder.embeddings.word_embeddings.weight"][: planted_data.num_items].T + w["item_bias"]
    np.testing.assert_allclose(model.score(np.arange(2), visible), logits, atol=1e-4)
    monkeypatch.setattr("cllm4rec_hf.baselines.bert4rec.hold_out", lambda *arguments: (visible, masked))
    expected = -(interactions(planted_data, masked) * log_softmax(logits)).sum(axis=1).mean()
    assert model.loss(torch.tensor([0, 1]), HISTORIES, 0.0, generator).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def s3rec(planted_data):
    return make(S3Rec, planted_data, hidden_size=8, num_layers=1, attributes_per_item=4)


def cross_entropy(logits, targets):
    p = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


@pytest.mark.parametrize("name", ["aap", "map"])
def test_s3rec_attributes(s3rec, name):
    w, items = numbers(s3rec), torch.tensor([3, 50, 7])
    vectors = torch.randn(3, 8)
    logits = vectors.numpy() @ w[f"maps.{name}.weight"].T @ w["attribute_embeddings.weight"].T + w["attribute_bias"]
    expected = cross_entropy(logits, s3rec.attributes.numpy()[items]).sum(axis=1).mean() / 4
    assert s3rec.attribute_loss(name, vectors, items).item() == pytest.approx(expected, rel=1e-4)


def test_s3rec_items(s3rec):
    w, vectors = numbers(s3rec), torch.randn(2, 8)
    table, mapped = w["encoder.embeddings.word_embeddings.weight"], vectors.numpy() @ w["maps.mip.weight"].T
    gaps = (mapped * (table[[4, 9]] - table[[60, 61]])).sum(axis=1)
    expected = np.log1p(np.exp(-gaps)).mean()
    loss = s3rec.mip_loss(vectors, torch.tensor([4, 9]), torch.tensor([60, 61]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_s3rec_segments_are_those_of_other_users(s3rec, monkeypatch, generator):
    read = []
    encode = s3rec.encode
    monkeypatch.setattr(s3rec, "encode", lambda sequences: read.append(sequences) or encode(sequences))
    loss = s3rec.sp_loss(HISTORIES, generator).item()
    mask, num_items = s3rec.mask_id, s3rec.config.num_items
    for context, segment, history in zip(*[rows.tolist() for rows in read], HISTORIES, strict=True):
        left, taken = [k for k in context[1:] if k < num_items], [k for k in segment[1:] if k < num_items]
        assert sorted([*left, *taken]) == sorted(history.tolist()) and left and taken
        assert context[1:].count(mask) == len(taken)
    states = [encode(rows)[:, 0].detach().double().numpy() for rows in read]
    mapped = states[0] @ numbers(s3rec)["maps.sp.weight"].T
    gaps = (mapped * (states[1] - states[1][::-1])).sum(axis=1)
    assert loss == pytest.approx(np.log1p(np.exp(-gaps)).mean(), rel=1e-4)


def test_s3rec_masks_an_item_of_each_user_and_draws_what_he_lacks(s3rec, generator):
    sequences = s3rec.sequences(HISTORIES)
    is_item = sequences < s3rec.config.num_items
    counts = []
    for _ in range(40):
        masked = s3rec._mask(is_item, generator)
        assert masked.any(dim=1).all() and not (masked & ~is_item).any()
        negatives = s3rec._negatives(HISTORIES, masked, generator).tolist()
        for row in range(2):
            count = int(masked[row].sum())
            assert not {negatives.pop(0) for _ in range(count)} & set(HISTORIES[row].tolist())
        counts.append(int(masked[0].sum()))
    assert min(counts) == 1 and max(counts) > 1


def test_s3rec_weighs_its_four_losses(s3rec, monkeypatch, generator):
    parts = {"mip": 0.3, "map": 0.5, "aap": 0.7, "sp": 1.1}
    monkeypatch.setattr(s3rec, "mip_loss", lambda *_: torch.tensor(parts["mip"]))
    monkeypatch.setattr(s3rec, "sp_loss", lambda *_: torch.tensor(parts["sp"]))
    monkeypatch.setattr(s3rec, "attribute_loss", lambda name, *_: torch.tensor(parts[name]))
    for name, weight in (("mip", 2.0), ("map", 3.0), ("aap", 5.0), ("sp", 7.0)):
        setattr(s3rec.config, f"{name}_weight", weight)
    expected = 2 * 0.3 + 3 * 0.5 + 5 * 0.7 + 7 * 1.1
    assert s3rec.pretraining_loss(HISTORIES, generator).item() == pytest.approx(expected)


def test_attributes_are_the_top_words():
    from scipy.sparse import csr_matrix

    texts = csr_matrix([[0.9, 0.1, 0.0, 0.3], [0.8, 0.0, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0]])
    assert top_words(texts, per_item=2, most=10).tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    # the word of two items, and the first of equals
    assert top_words(texts, per_item=2, most=2).tolist() == [[1, 0], [1, 1], [0, 0]]


def test_light_gcn_propagates_and_ranks(planted_data, generator, monkeypatch):
    model = make(LightGCN, planted_data, embedding_size=6, num_layers=2, embedding_penalty=0.3)
    train = planted_data.histories("train")
    x = train.to_csr().toarray().astype(float)
    adjacency = np.block([[np.zeros((len(x), len(x))), x], [x.T, np.zeros((x.shape[1], x.shape[1]))]])
    degrees = np.maximum(adjacency.sum(axis=1), 1)
    graph = adjacency / np.sqrt(degrees)[:, None] / np.sqrt(degrees)
    np.testing.assert_allclose(normalised_graph(train).to_dense().numpy(), graph, atol=1e-6)
    e = numbers(model)["embeddings.weight"]
    smooth = (e + graph @ e + graph @ graph @ e) / 3
    np.testing.assert_allclose(model.propagate().detach().numpy(), smooth, atol=1e-5)
    model.train()
    scores = model.score(np.array([5]), [train[5]])
    np.testing.assert_allclose(scores[0], smooth[5] @ smooth[len(x) :].T, atol=1e-4)
    negatives = iter([[100, 101, 102, 103], [104, 105]])
    monkeypatch.setattr("cllm4rec_hf.baselines.lightgcn.draw_absent", lambda *arguments: np.array(next(negatives)))
    triples = [(2, i, j) for i, j in zip(HISTORIES[0], range(100, 104), strict=True)]
    triples += [(7, i, j) for i, j in zip(HISTORIES[1], (104, 105), strict=True)]
    losses = []
    for user, positive, negative in triples:
        nodes = [user, len(x) + positive, len(x) + negative]
        gap = smooth[nodes[0]] @ (smooth[nodes[1]] - smooth[nodes[2]])
        losses.append(np.log1p(np.exp(-gap)) + 0.3 / 2 * (e[nodes] ** 2).sum())
    loss = model.loss(torch.tensor([2, 7]), HISTORIES, 0.0, generator)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_two_tower_scores(planted_data):
    model = make(TwoTower, planted_data, embedding_size=6, text_size=5, hidden_size=7, output_size=4)
    w = numbers(model)

    def tower(name, x):
        hidden = np.maximum(x @ w[f"{name}.1.weight"].T + w[f"{name}.1.bias"], 0)
        out = hidden @ w[f"{name}.3.weight"].T + w[f"{name}.3.bias"]
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    mean = np.stack([w["items.weight"][history].mean(axis=0) for history in HISTORIES])
    users = tower("user_tower", np.hstack([w["users.weight"][[3, 4]], mean]))
    items = tower("item_tower", np.hstack([w["items.weight"], w["item_texts"]]))
    expected = np.exp(w["log_scale"]) * users @ items.T
    np.testing.assert_allclose(model.score(np.array([3, 4]), HISTORIES), expected, atol=1e-4)


def test_two_tower_loss_is_that_of_the_masked_items_given_the_rest(planted_data, monkeypatch, generator):
    model = make(TwoTower, planted_data, embedding_size=6, text_size=5, hidden_size=7, output_size=4)
    visible, masked = [HISTORIES[0][:2], HISTORIES[1][:1]], [HISTORIES[0][2:], HISTORIES[1][1:]]
    asked = []
    monkeypatch.setattr(
        "cllm4rec_hf.baselines.two_tower.hold_out", lambda *given: asked.append(given) or (visible, masked)
    )
    logits = model.score(np.array([3, 4]), visible).astype(np.float64)
    expected = -(interactions(planted_data, masked) * log_softmax(logits)).sum(axis=1).mean()
    assert model.loss(torch.tensor([3, 4]), HISTORIES, 0.0, generator).item() == pytest.approx(expected, rel=1e-5)
    assert asked == [(HISTORIES, (model.config.min_mask_share, model.config.max_mask_share), generator)]


def test_two_tower_text_features_keep_the_cosines(planted_data):
    model = make(TwoTower, planted_data, text_size=1000)
    texts = item_text_matrix(planted_data)
    features = model.item_texts.double().numpy()
    gram = features @ features.T
    np.testing.assert_allclose(gram / gram[0, 0], (texts @ texts.T).toarray(), atol=1e-4)
