"""What all trained competitors do: learn, stop, repeat themselves, save and load."""

import numpy as np
import pytest
import torch

from cllm4rec_hf.baselines import neural
from cllm4rec_hf.baselines.bert4rec import BERT4Rec
from cllm4rec_hf.baselines.lightgcn import LightGCN
from cllm4rec_hf.baselines.md_cvae import MDCVAE
from cllm4rec_hf.baselines.mult_vae import MultVAE
from cllm4rec_hf.baselines.neural import (
    draw_absent,
    hold_out,
    kl_to_standard_normal,
    multinomial_loss,
    one_hot_rows,
    sample_normal,
)
from cllm4rec_hf.baselines.s3rec import S3Rec
from cllm4rec_hf.baselines.selection import validation_score
from cllm4rec_hf.baselines.two_tower import TwoTower
from cllm4rec_hf.errors import CLLM4RecError, DataError
from cllm4rec_hf.evaluation.evaluator import Evaluator

BERT = {"hidden_size": 32, "num_layers": 1, "dropout": 0.1, "learning_rate": 2e-3, "batch_size": 32}
SMALL = {
    MultVAE: {"hidden_size": 64, "latent_size": 16, "learning_rate": 5e-3},
    MDCVAE: {"item_size": 32, "latent_size": 16, "content_hidden_size": 32, "learning_rate": 5e-3},
    BERT4Rec: BERT,
    S3Rec: {**BERT, "pretraining_epochs": 15, "sp_weight": 0.0},
    TwoTower: {"embedding_size": 16, "text_size": 16, "hidden_size": 32, "output_size": 16, "learning_rate": 5e-3},
    LightGCN: {"embedding_size": 16, "learning_rate": 2e-2},
}
SHORT = {"max_epochs": 2, "pretraining_epochs": 1}


def short(baseline):
    """Settings of a run of two epochs."""
    settings = {**SMALL[baseline], **SHORT}
    return {name: value for name, value in settings.items() if hasattr(baseline.config_class, name)}


@pytest.fixture(scope="module")
def fitted(planted_data):
    """A function that fits a class once, for two epochs."""
    models = {}

    def fit(baseline):
        if baseline not in models:
            models[baseline] = baseline.fit_to(planted_data, seed=3, **short(baseline))
        return models[baseline]

    return fit


@pytest.fixture(scope="module")
def asked(planted_data):
    """Users and histories, one of them empty."""
    train = planted_data.histories("train")
    return np.array([3, 8, 5]), [train[3], train[8], np.array([], dtype=np.int32)]


@pytest.mark.parametrize("baseline", SMALL)
def test_learns_what_popularity_cannot_know(baseline, planted_data, recall_over_popularity):
    model = baseline.fit_to(planted_data, **SMALL[baseline], max_epochs=25, patience=25)
    assert recall_over_popularity(model) > 2


@pytest.mark.parametrize("baseline", SMALL)
def test_scores_are_finite_for_any_history(baseline, planted_data, fitted, asked):
    scores = fitted(baseline).score(*asked)
    assert scores.dtype == np.float32 and scores.shape == (3, planted_data.num_items) and np.isfinite(scores).all()


@pytest.mark.parametrize("baseline", SMALL)
def test_scores_do_not_depend_on_the_batch(baseline, fitted, asked):
    users, histories = asked
    together = fitted(baseline).score(users, histories)
    for row in range(3):
        alone = fitted(baseline).score(users[row : row + 1], histories[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize("baseline", SMALL)
def test_saved_and_loaded(baseline, tmp_path, fitted, asked):
    model = fitted(baseline)
    model.save_pretrained(tmp_path)
    loaded = baseline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.score(*asked), model.score(*asked))
    settings, saved = (config.to_diff_dict() for config in (loaded.config, model.config))
    assert {**settings, "_name_or_path": None} == {**saved, "_name_or_path": None}
    other = MultVAE if baseline is not MultVAE else MDCVAE
    with pytest.raises(CLLM4RecError, match=f"of type '{baseline.config_class.model_type}'; expected"):
        other.from_pretrained(tmp_path)


@pytest.mark.parametrize("baseline", SMALL)
def test_the_same_seed_gives_the_same_and_another_another(baseline, planted_data, fitted, asked):
    state = torch.random.get_rng_state()
    torch.rand(7)
    scores = fitted(baseline).score(*asked)
    again = baseline.fit_to(planted_data, seed=3, **short(baseline))
    np.testing.assert_array_equal(again.score(*asked), scores)
    other = baseline.fit_to(planted_data, seed=4, **short(baseline))
    assert np.abs(other.score(*asked) - scores).max() > 1e-4
    torch.random.set_rng_state(state)


def test_training_leaves_the_global_generator_alone(planted_data):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    MultVAE.fit_to(planted_data, **short(MultVAE))
    assert torch.equal(torch.rand(3), expected)


def test_the_best_epoch_is_kept_and_patience_ends_training(planted_data, monkeypatch):
    seen = []

    def recorded(ranker, evaluator):
        seen.append(validation_score(ranker, evaluator)[0])
        return seen[-1], {}

    monkeypatch.setattr(neural, "validation_score", recorded)
    # so fast that it soon gets worse
    settings = {**SMALL[MultVAE], "learning_rate": 3e-2}
    model = MultVAE.fit_to(planted_data, **settings, max_epochs=60, patience=4)
    assert len(seen) < 60 and int(np.argmax(seen)) == len(seen) - 5
    assert validation_score(model, Evaluator(planted_data, split="validation"))[0] == max(seen) > seen[-1]
    assert not model.training


def test_an_epoch_has_as_many_passes_as_make_its_steps(planted_data, monkeypatch):
    passes = []
    whole = MultVAE.losses

    def recorded(self, train, done, generator):
        passes.append(done)
        return whole(self, train, done, generator)

    monkeypatch.setattr(MultVAE, "losses", recorded)
    steps = -(-planted_data.num_users // 100)
    model = MultVAE.fit_to(planted_data, **{**SMALL[MultVAE], "batch_size": 100}, max_epochs=2, min_steps=3 * steps)
    assert model.passes(planted_data.histories("train")) == 3 and passes == list(range(6))
    passes.clear()
    MultVAE.fit_to(planted_data, **{**SMALL[MultVAE], "batch_size": 100}, max_epochs=2, min_steps=1)
    assert passes == [0, 1]


def test_a_diverging_loss_is_an_error(planted_data):
    with pytest.raises(
        FloatingPointError, match=r"loss of MultVAE became (nan|inf); lower the learning_rate, now 1e\+30"
    ):
        MultVAE.fit_to(planted_data, **{**SMALL[MultVAE], "learning_rate": 1e30})


def test_chooses_on_validation(planted_data):
    settings = {name: value for name, value in short(MultVAE).items() if name != "learning_rate"}
    chosen = MultVAE.choose(planted_data, seed=2, grid=[{"learning_rate": rate} for rate in (1e-6, 1e-2)], **settings)
    assert chosen.settings == {**settings, "learning_rate": 1e-2} and chosen.model.config.learning_rate == 1e-2
    assert len(chosen.table) == 2 and chosen.score == chosen.table[1]["score"]


def test_wrong_settings():
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        MultVAE.config_class(batch_size=0)
    with pytest.raises(ValueError, match="min_mask_share"):
        BERT4Rec.config_class(min_mask_share=0.6)


@pytest.mark.parametrize("baseline", [MDCVAE, S3Rec])
def test_without_texts_they_say_what_is_missing(baseline, textless_data):
    with pytest.raises(DataError, match=f"{baseline.__name__} needs texts of items"):
        baseline.fit_to(textless_data)


def test_two_towers_do_without_texts(textless_data):
    model = TwoTower.fit_to(textless_data, **short(TwoTower))
    assert model.config.text_size == 0 and model.item_texts.shape == (textless_data.num_items, 0)


# ---- the parts that they share


def test_rows_of_ones():
    rows = one_hot_rows([np.array([2, 0]), np.array([], dtype=np.int32), np.array([3])], 4)
    assert rows.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_multinomial_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    p = np.exp([1.0, 2.0, 0.5]) / np.exp([1.0, 2.0, 0.5]).sum()
    expected = (-np.log(p[0]) - np.log(p[2]) + np.log(3)) / 2
    assert float(multinomial_loss(logits, targets)) == pytest.approx(expected, rel=1e-6)


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(4, 3), torch.randn(4, 3)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=1).mean()
    assert torch.allclose(kl_to_standard_normal(mean, log_variance), expected, atol=1e-6)


def test_draws_have_the_mean_and_the_variance():
    torch.manual_seed(0)
    draws = sample_normal(torch.full((200_000,), 2.0), torch.full((200_000,), np.log(9.0)))
    assert float(draws.mean()) == pytest.approx(2.0, abs=0.05) and float(draws.std()) == pytest.approx(3.0, abs=0.05)


def test_holding_out_partitions_each_history():
    generator = np.random.Generator(np.random.PCG64(0))
    histories = [np.arange(20), np.array([7]), np.arange(5) + 30]
    counts = set()
    for _ in range(50):
        visible, masked = hold_out(histories, (0.1, 0.5), generator)
        for history, left, out in zip(histories, visible, masked, strict=True):
            assert sorted([*left, *out]) == history.tolist() and 1 <= len(out) <= max(1, len(history) // 2)
            assert (np.diff(left) > 0).all()
        counts.add(len(masked[0]))
    assert {2, 10} <= counts or len(counts) > 5


def test_drawn_items_are_absent_ones():
    generator = np.random.Generator(np.random.PCG64(0))
    drawn = np.concatenate([draw_absent(np.array([0, 2, 3]), 5, 6, generator) for _ in range(40)])
    assert set(drawn) == {1, 4, 5}
    assert len(draw_absent(np.arange(3), 4, 3, generator)) == 4
