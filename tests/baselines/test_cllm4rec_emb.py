"""CLLM4Rec-Emb: the token embeddings of a checkpoint in a two-tower model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cllm4rec_hf import Catalog, CLLM4RecEmb, CLLM4RecError, DataError
from cllm4rec_hf.baselines.registry import load_baseline
from tests.baselines.planted import NUM_GROUPS, NUM_USERS, planted

SETTINGS = {"learning_rate": 1e-2, "max_epochs": 15, "patience": 15}


@pytest.fixture(scope="module")
def checkpoint(planted_data, tmp_path_factory):
    """What is read of a checkpoint: tables that know which taste a user and an item has, among much noise."""
    directory = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(0)

    def table(rows):
        taste = F.one_hot(torch.arange(rows) % NUM_GROUPS, NUM_GROUPS).float()
        # users and items in directions of their own, so that only learned projections bring them together
        rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
        noise = 0.2 * torch.randn(rows, 32 - NUM_GROUPS, generator=generator)
        return (torch.cat([taste, noise], dim=1) @ rotation * 0.02).contiguous()

    tables = {"user": table(NUM_USERS), "item": table(planted_data.num_items)}
    save_file({f"collaborative_{k}_embeddings.weight": v for k, v in tables.items()}, directory / "model.safetensors")
    Catalog.from_prepared(planted_data).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def fitted(planted_data, checkpoint):
    return CLLM4RecEmb.fit_to(planted_data, checkpoint=checkpoint, **SETTINGS)


def test_projections_find_what_the_embeddings_know(fitted, recall_over_popularity, planted_data, checkpoint):
    trained, by_chance = recall_over_popularity(fitted), []
    for seed in range(8):
        torch.manual_seed(seed)
        by_chance.append(recall_over_popularity(CLLM4RecEmb.create(planted_data, checkpoint=checkpoint).eval()))
    assert trained > 3 and np.mean(by_chance) < 1.5, (trained, by_chance)


def test_scores_are_scaled_cosines_of_projected_embeddings_in_128_dimensions(fitted):
    assert fitted.user_projection.weight.shape == fitted.item_projection.weight.shape == (128, 32)
    with torch.no_grad():
        user = fitted.user_projection(fitted.user_tokens[7])
        item = fitted.item_projection(fitted.item_tokens[4])
        expected = float(fitted.log_scale.exp() * torch.cosine_similarity(user, item, dim=0))
    scores = fitted.score(np.array([7]), [np.array([1])])
    assert scores[0, 4] == pytest.approx(expected, abs=1e-5)


def test_the_loss_is_that_of_the_training_items(fitted):
    histories = [np.array([1, 4]), np.array([2])]
    log_p = np.log(np.exp(scores := fitted.score(np.array([7, 3]), histories)) / np.exp(scores).sum(axis=1)[:, None])
    expected = -(log_p[0, 1] + log_p[0, 4] + log_p[1, 2]) / 2
    loss = fitted.loss(torch.tensor([7, 3]), histories, 0.0, np.random.Generator(np.random.PCG64(0)))
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)


def test_the_embeddings_stay_as_they_are(fitted, planted_data, checkpoint):
    fresh = CLLM4RecEmb.create(planted_data, checkpoint=checkpoint)
    for name in ("user_tokens", "item_tokens"):
        assert torch.equal(getattr(fitted, name), getattr(fresh, name))
        assert float(getattr(fresh, name).square().mean()) == pytest.approx(1, abs=1e-4)
    assert not torch.equal(fitted.user_projection.weight, fresh.user_projection.weight)


def test_it_is_saved_without_the_checkpoints_place_and_loaded(fitted, tmp_path, checkpoint):
    fitted.save_pretrained(tmp_path)
    asked = (np.array([3, 8]), [np.array([1]), np.array([], dtype=np.int64)])
    loaded = load_baseline(tmp_path)
    np.testing.assert_array_equal(loaded.score(*asked), fitted.score(*asked))
    assert str(checkpoint) not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "cllm4rec-emb"


def test_settings_are_chosen_on_validation(planted_data, checkpoint):
    short = {"checkpoint": checkpoint, "max_epochs": 2, "patience": 2}
    selection = CLLM4RecEmb.choose(planted_data, **short)
    assert len(selection.table) == len(CLLM4RecEmb.GRID)
    assert selection.score == max(row["score"] for row in selection.table)


def test_checkpoints_that_cannot_be_used(planted_data, checkpoint, tmp_path):
    with pytest.raises(CLLM4RecError, match="name its directory or Hub id by checkpoint="):
        CLLM4RecEmb.fit_to(planted_data)
    other = planted(tmp_path / "other", seed=5)
    (checkpoint / "training.yaml").write_text("data_fingerprint: another\n")
    with pytest.raises(DataError, match="was trained on data prepared by other rules"):
        CLLM4RecEmb.fit_to(other, checkpoint=checkpoint)
    (checkpoint / "training.yaml").unlink()
    Catalog.from_prepared(planted_data).save_pretrained(tmp_path / "empty")
    with pytest.raises(CLLM4RecError, match="holds no token embeddings"):
        CLLM4RecEmb.fit_to(planted_data, checkpoint=tmp_path / "empty")
