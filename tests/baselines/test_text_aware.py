"""The closed forms that read item texts, against dense solutions of their formulas."""

import numpy as np
import pytest

from cllm4rec_hf.baselines import storage
from cllm4rec_hf.baselines.ease import EASE, TextEASE
from cllm4rec_hf.baselines.text_svd import TextSVD
from cllm4rec_hf.baselines.tfidf import TfidfNeighbours
from cllm4rec_hf.data.item_texts import item_documents, item_text_matrix
from cllm4rec_hf.errors import CLLM4RecError, DataError

CLASSES = (TextEASE, TextSVD, TfidfNeighbours)


@pytest.fixture(scope="module")
def dense(planted_data):
    """X and T."""
    return planted_data.histories("train").to_csr().toarray().astype(float), item_text_matrix(planted_data).toarray()


@pytest.fixture(scope="module")
def some_histories(planted_data):
    train = planted_data.histories("train")
    return [train[3], train[8], np.array([], dtype=np.int32)]


def test_documents_join_what_is_written_about_an_item(planted_data):
    documents = item_documents(planted_data)
    assert len(documents) == planted_data.num_items
    assert documents[7] == planted_data.texts[7]["text"]


def test_text_rows_enter_ease_by_its_normal_equations(planted_data, dense):
    interactions, texts = dense
    weight, ridge = 7.0, 20.0
    stacked = np.vstack([interactions, np.sqrt(weight) * texts.T, np.sqrt(ridge) * np.eye(len(texts))])
    model = EASE.fit_to(planted_data, ridge=ridge, text_weight=weight)
    for item in (0, 17, 80):
        others = np.delete(np.arange(len(texts)), item)
        # x_item is explained by the other columns in both kinds of rows; the ridge rows aim at 0
        target = np.concatenate([interactions[:, item], np.sqrt(weight) * texts[item], np.zeros(len(texts))])
        expected = np.linalg.lstsq(stacked[:, others], target, rcond=None)[0]
        np.testing.assert_allclose(model.weights[others, item], expected, atol=1e-6)


def test_ease_chooses_its_text_weight_with_one_gram_matrix(planted_data):
    chosen = TextEASE.choose(planted_data, grid=[{"text_weight": w, "ridge": 30.0} for w in (0.0, 5.0, 50.0)])
    again = EASE.fit_to(planted_data, **chosen.settings)
    np.testing.assert_array_equal(chosen.model.weights, again.weights)
    assert len(chosen.table) == 3 and chosen.model.text_weight == chosen.settings["text_weight"]


def test_neighbours_sum_cosines(planted_data, dense, some_histories):
    _, texts = dense
    scores = TfidfNeighbours.fit_to(planted_data).score(np.arange(3), some_histories)
    expected = np.array([(texts[history] @ texts.T).sum(axis=0) for history in some_histories])
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float32


@pytest.mark.parametrize(("rank", "power", "weight"), [(8, 1.0, 2.0), (120, 0.5, 0.0)])
def test_svd_equals_a_dense_one(planted_data, dense, some_histories, rank, power, weight):
    interactions, texts = dense
    users, items = interactions.sum(axis=1), interactions.sum(axis=0)
    scaled = interactions / np.sqrt(users)[:, None] / items**0.25
    scaled *= np.sqrt(len(texts)) / np.linalg.norm(scaled)
    _, singular, right = np.linalg.svd(np.vstack([scaled, np.sqrt(weight) * texts.T]), full_matrices=False)
    vectors = right[:rank].T * singular[:rank] ** power
    expected = [(items[h, None] ** -0.25 * vectors[h]).sum(axis=0) @ vectors.T for h in some_histories]
    model = TextSVD.fit_to(planted_data, rank=rank, power=power, text_weight=weight)
    scores = model.score(np.arange(3), some_histories)
    np.testing.assert_allclose(scores, expected, atol=2e-4 * np.abs(expected).max())
    assert scores.dtype == np.float32 and scores.shape == (3, len(texts))


def test_svd_chooses_what_it_would_fit(planted_data):
    grid = [{"rank": rank, "text_weight": w} for rank in (4, 16) for w in (0.0, 2.0)]
    chosen = TextSVD.choose(planted_data, seed=5, grid=grid)
    np.testing.assert_array_equal(chosen.model.vectors, TextSVD.fit_to(planted_data, 5, **chosen.settings).vectors)


@pytest.mark.parametrize("baseline", CLASSES)
def test_beats_popularity(baseline, planted_data, recall_over_popularity):
    assert recall_over_popularity(baseline.fit_to(planted_data)) > 2


@pytest.mark.parametrize("baseline", CLASSES)
def test_saved_and_loaded(baseline, tmp_path, planted_data, some_histories):
    model = baseline.fit_to(planted_data)
    model.save_pretrained(tmp_path)
    loaded = baseline.from_pretrained(tmp_path)
    assert all(getattr(loaded, name) == getattr(model, name) for name in baseline.SETTINGS)
    users = np.arange(3)
    np.testing.assert_array_equal(loaded.score(users, some_histories), model.score(users, some_histories))


@pytest.mark.parametrize("baseline", CLASSES)
def test_without_texts_they_say_what_is_missing(baseline, textless_data):
    for call in (baseline.fit_to, baseline.choose):
        with pytest.raises(DataError, match="needs texts of items.*prepare the data with --text-column"):
            call(textless_data)


def test_wrong_settings(planted_data):
    with pytest.raises(ValueError, match="text_weight"):
        EASE(text_weight=-1.0)
    with pytest.raises(ValueError, match="rank of 1 or more"):
        TextSVD(rank=0)
    with pytest.raises(ValueError, match="needs the rows of item texts"):
        EASE(text_weight=2.0).fit(planted_data.histories("train"))
    with pytest.raises(ValueError, match="needs the rows of item texts"):
        TextSVD().fit(planted_data.histories("train"))
    for baseline in CLASSES:
        with pytest.raises(ValueError, match="is not fitted"):
            baseline().score(np.array([0]), [np.array([0])])


def test_a_file_of_another_layout_is_refused(tmp_path, planted_data):
    storage.save(tmp_path, "text-svd", {}, {"vectors": np.zeros((3, 2))})
    with pytest.raises(CLLM4RecError, match="lacks damping; fit and save it again"):
        TextSVD.from_pretrained(tmp_path)
