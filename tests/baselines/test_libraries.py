"""The adapters of other libraries against those libraries."""

import sys

import numpy as np
import pytest

from cllm4rec_hf.baselines.cornac_sasrec import CornacSASRec
from cllm4rec_hf.baselines.implicit_als import ImplicitALS

SMALL = {
    ImplicitALS: {"factors": 16, "regularization": 0.1, "alpha": 5.0},
    CornacSASRec: {"embedding_dim": 16, "n_epochs": 3},
}
PACKAGES = {ImplicitALS: "implicit", CornacSASRec: "cornac"}


@pytest.fixture(scope="module")
def fitted(planted_data):
    """A function that fits a class once."""
    models = {}

    def fit(baseline, seed=0):
        pytest.importorskip(PACKAGES[baseline])
        if (baseline, seed) not in models:
            models[baseline, seed] = baseline.fit_to(planted_data, seed, **SMALL[baseline])
        return models[baseline, seed]

    return fit


@pytest.fixture(scope="module")
def some_histories(planted_data):
    train = planted_data.histories("train")
    return [train[3], train[8][:1], np.array([], dtype=np.int32)]


def test_als_solves_for_users_as_the_library_does(planted_data, fitted):
    als = pytest.importorskip("implicit.cpu.als")
    model = fitted(ImplicitALS)
    library = als.AlternatingLeastSquares(factors=16, regularization=0.1, alpha=model.alpha, num_threads=1)
    library.item_factors = model.item_factors
    rows = planted_data.histories("train").to_csr()[:20]
    expected = library.recalculate_user(np.arange(20), rows)
    train = planted_data.histories("train")
    np.testing.assert_allclose(model.user_factors([train[user] for user in range(20)]), expected, rtol=2e-3, atol=2e-4)


def test_sasrec_scores_as_the_library_does(planted_data, fitted, some_histories):
    cornac = pytest.importorskip("cornac")
    model = fitted(CornacSASRec)
    library = cornac.models.SASRec(max_len=model.max_len)
    library.model, library.pad_idx = model._build(), model.num_items
    scores = model.score(np.arange(3), some_histories)
    for row in range(2):
        expected = library.score(0, some_histories[row].tolist()) + model.log_draws
        np.testing.assert_allclose(scores[row], expected, atol=1e-5)
    assert scores.dtype == np.float32 and scores.shape == (3, planted_data.num_items) and np.isfinite(scores).all()


def test_sasrec_undoes_what_its_sampled_softmax_did_to_popularity(planted_data):
    cornac = pytest.importorskip("cornac")
    from cornac.models.seq_utils import session_seq_iter

    model = CornacSASRec.fit_to(planted_data, n_epochs=1, embedding_dim=4)
    library = cornac.models.SASRec()
    train = planted_data.histories("train")
    rows = [(user, user, int(item), k) for user in range(len(train)) for k, item in enumerate(train[user])]
    items = {item: item for item in range(planted_data.num_items)}
    sessions = cornac.data.SequentialDataset.build(rows, fmt="USIT", global_iid_map=items)
    counts, steps = np.zeros(planted_data.num_items), 0
    for seed in range(40):
        batches = session_seq_iter(
            sessions, planted_data.num_items, library.batch_size, 5, library.n_sample, library.sample_alpha,
            np.random.RandomState(seed),
        )  # fmt: skip
        for _, histories, drawn in batches:
            # the last batch of an epoch is smaller
            if len(histories) == library.batch_size:
                counts, steps = counts + np.bincount(drawn, minlength=len(counts)), steps + 1
    assert steps
    np.testing.assert_allclose(np.exp(model.log_draws), counts / steps, rtol=0.15)


@pytest.mark.parametrize("baseline", PACKAGES)
def test_saved_and_loaded_and_the_same_again(baseline, tmp_path, planted_data, fitted, some_histories):
    model = fitted(baseline)
    model.save_pretrained(tmp_path)
    loaded = baseline.from_pretrained(tmp_path)
    again = baseline.fit_to(planted_data, 0, **SMALL[baseline])
    scores = model.score(np.arange(3), some_histories)
    np.testing.assert_array_equal(loaded.score(np.arange(3), some_histories), scores)
    np.testing.assert_array_equal(again.score(np.arange(3), some_histories), scores)
    assert np.abs(fitted(baseline, seed=1).score(np.arange(3), some_histories) - scores).max() > 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_als_beats_popularity(fitted, recall_over_popularity):
    assert recall_over_popularity(fitted(ImplicitALS)) > 2


@pytest.mark.parametrize("baseline", PACKAGES)
def test_a_missing_library_is_named_with_its_extra(baseline, planted_data, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGES[baseline]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, PACKAGES[baseline], None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cllm4rec-hf\[baselines\]'"):
        baseline.fit_to(planted_data)
    with pytest.raises(ValueError, match="is not fitted"):
        baseline().score(np.array([0]), [np.array([0])])
