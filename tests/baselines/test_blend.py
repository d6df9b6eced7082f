"""The blend."""

import numpy as np
import pytest

from cllm4rec_hf.baselines import blend
from cllm4rec_hf.baselines.blend import Blend, standardised
from cllm4rec_hf.baselines.ease import EASE, TextEASE
from cllm4rec_hf.baselines.mult_vae import MultVAE
from cllm4rec_hf.baselines.popularity import Popularity
from cllm4rec_hf.baselines.selection import validation_score
from cllm4rec_hf.baselines.text_svd import TextSVD
from cllm4rec_hf.baselines.tfidf import TfidfNeighbours
from cllm4rec_hf.evaluation.evaluator import Evaluator


@pytest.fixture(scope="module")
def members(planted_data):
    """A text-aware linear model and Mult-VAE."""
    return TextEASE.fit_to(planted_data), MultVAE.fit_to(planted_data, hidden_size=16, latent_size=8, max_epochs=2)


def test_standardised_rows():
    scores = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(standardised(scores), [[-np.sqrt(1.5), 0, np.sqrt(1.5)], [0, 0, 0]], rtol=1e-6)


def test_weighs_standardised_scores(planted_data, members):
    train = planted_data.histories("train")
    users, histories = np.arange(4), [train[user] for user in range(4)]
    first, second = (standardised(member.score(users, histories)) for member in members)
    scores = Blend(members, 0.3).score(users, histories)
    np.testing.assert_allclose(scores, 0.7 * first + 0.3 * second, atol=1e-6)
    assert scores.dtype == np.float32


def test_the_weight_is_chosen_on_validation_and_is_no_worse_than_a_member(planted_data, members):
    chosen = Blend.choose(planted_data, members=members)
    assert [row["weight"] for row in chosen.table] == [k / 10 for k in range(11)]
    evaluator = Evaluator(planted_data, split="validation")
    for member, row in ((members[0], chosen.table[0]), (members[1], chosen.table[-1])):
        assert validation_score(member, evaluator)[0] == pytest.approx(row["score"], abs=1e-6)
        assert chosen.score >= row["score"]


def test_members_are_chosen_where_none_are_given(planted_data, monkeypatch):
    monkeypatch.setattr(TextEASE, "GRID", [{"ridge": 1e6, "text_weight": 1e-3}])
    monkeypatch.setattr(TextSVD, "GRID", [{"rank": 16}])
    monkeypatch.setattr(MultVAE, "GRID", [{"hidden_size": 16, "latent_size": 8, "max_epochs": 1}])
    # the words' neighbours out of the way
    monkeypatch.setattr(Blend, "GRID", [{"weight": 0.0}])
    first, second = Blend.choose(planted_data).model.members
    # the one of the two that validates better: that EASE is all ridge
    assert isinstance(first, TextSVD) and isinstance(second, MultVAE)


def test_words_join_ease_with_text_rows_where_that_validates_better(planted_data, monkeypatch):
    monkeypatch.setattr(TextEASE, "GRID", [{"ridge": 1e6, "text_weight": 1e-3}])
    monkeypatch.setattr(TextSVD, "GRID", [{"rank": 1}])
    monkeypatch.setattr(MultVAE, "GRID", [{"hidden_size": 16, "latent_size": 8, "max_epochs": 1}])
    first, _ = Blend.choose(planted_data).model.members
    # neither linear model knows much
    assert isinstance(first, Blend)
    assert [type(member) for member in first.members] == [TextEASE, TfidfNeighbours]


def test_catalogs_too_large_for_ease_blend_without_it(planted_data, monkeypatch, caplog):
    monkeypatch.setattr(blend, "MAX_ITEMS", planted_data.num_items - 1)
    monkeypatch.setattr(TextEASE, "choose", None)
    monkeypatch.setattr(TextSVD, "GRID", [{"rank": 16}, {"rank": 8}])
    monkeypatch.setattr(MultVAE, "GRID", [{"hidden_size": 16, "latent_size": 8, "max_epochs": 1}])
    chosen = Blend.choose(planted_data)
    assert [type(member) for member in chosen.model.members] == [TextSVD, MultVAE]
    assert f"{planted_data.num_items} items are more than" in caplog.text
    # what it is made of is told, and counted
    assert chosen.settings["text-svd"]["rank"] in (8, 16) and chosen.settings["mult-vae"]["latent_size"] == 8
    assert chosen.fits == 11 + 2 + 1


def test_saved_and_loaded(tmp_path, planted_data, members):
    model = Blend(members, 0.3)
    model.save_pretrained(tmp_path)
    loaded = Blend.from_pretrained(tmp_path)
    assert loaded.weight == 0.3 and [type(member) for member in loaded.members] == [TextEASE, MultVAE]
    train = planted_data.histories("train")
    asked = np.arange(4), [train[user] for user in range(4)]
    np.testing.assert_array_equal(loaded.score(*asked), model.score(*asked))


def test_wrong_settings():
    model = Popularity()
    with pytest.raises(ValueError, match="two members and a weight from 0 to 1"):
        Blend((model, EASE()), 1.5)
    with pytest.raises(ValueError, match="two members"):
        Blend((model,), 0.5)
