"""Recommendations with external ids."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cllm4rec_hf import Catalog, CLLM4RecError, DataError, ModelRanker, PreparedData, Recommender, UnknownIdError
from cllm4rec_hf.inference.batch import HistoriesFile, describe, recommend_to_file, requests_from
from cllm4rec_hf.inference.ranker import length_batches
from cllm4rec_hf.inference.requests import Request
from tests.trainers.parts import ITEMS, USERS, make_parts


@pytest.fixture
def recommender(base_tokenizer):
    parts = make_parts(base_tokenizer)
    catalog = Catalog(
        [f"i{k}" for k in range(ITEMS)],
        [f"Title {k}" if k else None for k in range(ITEMS)],
        [f"u{k}" for k in range(USERS)],
    )
    return Recommender(parts.model.eval(), parts.tokenizer, catalog, batch_size=3)


def by_hand(recommender, user, history, k, keep_seen=False):
    """Items and log p from one unbatched forward pass."""
    prompts = recommender.ranker.prompts
    ids = torch.from_numpy(prompts.recommendation(user, history)).unsqueeze(0)
    with torch.no_grad():
        log_p = recommender.model(ids, task="recommendation").logits[0].log_softmax(-1)
    ranked = [j for j in log_p.argsort(descending=True).tolist() if keep_seen or j not in history][:k]
    return [f"i{j}" for j in ranked], [float(log_p[j]) for j in ranked]


def test_recommendations_equal_a_plain_forward_pass(recommender):
    requests = [Request(f"u{k}", tuple(f"i{j}" for j in range(1 + k))) for k in range(7)]
    requests.append(Request("somebody new", ("i3", "i4")))
    requests.append(Request(None, ()))
    for request, found in zip(requests, recommender.recommend(requests, top_k=4), strict=True):
        known = request.user in recommender.catalog.user_ids
        history = [int(item[1:]) for item in request.history]
        items, scores = by_hand(recommender, int(request.user[1:]) if known else None, history, 4)
        assert [entry["item"] for entry in found] == items
        assert [entry["score"] for entry in found] == pytest.approx(scores, abs=1e-4)
        assert [entry["title"] for entry in found] == [f"Title {i[1:]}" if i != "i0" else None for i in items]


def test_seen_items_unknown_items_and_small_catalogs(recommender):
    everything = Request("u1", tuple(f"i{k}" for k in range(ITEMS)))
    assert list(recommender.recommend([everything], 5)) == [[]]
    (found,) = recommender.recommend([everything], 5, exclude_seen=False)
    assert len(found) == 5
    (found,) = recommender.recommend([Request("u1", ("i1",))], 100)
    assert len(found) == ITEMS - 1 and "i1" not in [entry["item"] for entry in found]
    odd = Request("u1", ("i1", "gone"))
    with pytest.raises(UnknownIdError, match="'gone'"):
        list(recommender.recommend([odd], 3))
    assert list(recommender.recommend([odd], 3, "skip")) == list(recommender.recommend([Request("u1", ("i1",))], 3))
    with pytest.raises(ValueError, match="top_k must be 1 or more, got 0"):
        list(recommender.recommend([odd], 0))


def test_requests_stream(recommender):
    asked = []

    def requests():
        for k in range(100):
            asked.append(k)
            yield Request("u0", ("i1",))

    answers = recommender.recommend(requests(), 2)
    next(answers)
    assert len(asked) == recommender.batch_size


def test_ranker_leaves_the_model_as_it_was(recommender):
    recommender.model.train()
    recommender.ranker.score([0, None, -1], [np.array([1]), np.array([2]), np.array([2])])
    assert recommender.model.training


def test_scores_do_not_depend_on_the_batch(recommender):
    histories = [np.arange(k) for k in (1, 9, 3, 5)]
    together = recommender.ranker.score([0, 1, 2, 3], histories)
    small = ModelRanker(recommender.model, recommender.ranker.prompts, tokens_per_batch=1)
    np.testing.assert_allclose(together, small.score([0, 1, 2, 3], histories), atol=1e-4)


def test_length_batches_cover_everything_within_the_bound():
    lengths = [5, 100, 7, 7, 30, 1, 64]
    batches = length_batches(lengths, 64)
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files(recommender, suffix, tmp_path):
    requests = [Request("u1", ("i1",)), Request("u2", ("i2", "i3"))]
    path = tmp_path / f"recs.{suffix}"
    assert recommend_to_file(recommender, requests, str(path), top_k=3) == 2
    rows = pq.read_table(path).to_pylist() if suffix == "parquet" else list(csv.DictReader(path.open()))
    assert [(row["user"], int(row["rank"])) for row in rows] == [(u, r) for u in ("u1", "u2") for r in (1, 2, 3)]
    expected = [entry for found in recommender.recommend(requests, 3) for entry in found]
    assert [row["item"] for row in rows] == [entry["item"] for entry in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)


def test_a_failure_leaves_no_half_file(recommender, tmp_path):
    requests = [Request("u1", ("i1",))] * 4 + [Request("u1", ("gone",))]
    for name in ("recs.parquet", "recs.csv"):
        with pytest.raises(UnknownIdError):
            recommend_to_file(recommender, requests, str(tmp_path / name))
    assert not list(tmp_path.iterdir())
    with pytest.raises(CLLM4RecError, match=r"expected a file named .parquet or .csv"):
        recommend_to_file(recommender, [], str(tmp_path / "recs.xml"))
    with pytest.raises(CLLM4RecError, match="does not exist; make it first"):
        recommend_to_file(recommender, [], str(tmp_path / "no" / "recs.csv"))


def test_histories_from_json_lines(tmp_path):
    path = tmp_path / "histories.jsonl"
    path.write_text('{"user": "a", "history": ["x", 7]}\n\n{"history": []}\n')
    assert list(HistoriesFile(path)) == [Request("a", ("x", "7")), Request(None, ())]
    for line, message in (
        ("{", "line 2: .* not JSON"),
        ('{"history": "x"}', "line 2: expected"),
        ("[1]", "line 2: expected"),
    ):
        path.write_text('{"history": []}\n' + line + "\n")
        with pytest.raises(DataError, match=message):
            list(HistoriesFile(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(HistoriesFile(tmp_path / "gone.jsonl"))


def test_requests_from_prepared_data(prepared, tmp_path, recommender):
    with pytest.raises(DataError, match="trained on other items"):
        requests_from(recommender.catalog, str(prepared), None, None)
    recommender.catalog = Catalog.from_prepared(PreparedData.load(prepared))
    everyone = requests_from(recommender.catalog, str(prepared), None, None)
    assert len(everyone) == 24 and all(len(request.history) == 7 for request in everyone)
    (tmp_path / "ids.txt").write_text("u03\n\nu01\n")
    for users in (str(tmp_path / "ids.txt"), "u03, u01"):
        found = requests_from(recommender.catalog, str(prepared), users, None)
        assert list(found) == [everyone[3], everyone[1]]
    with pytest.raises(UnknownIdError, match="'nobody'"):
        requests_from(recommender.catalog, str(prepared), "nobody", None)
    assert list(requests_from(recommender.catalog, str(prepared), "nobody,u01", None, "skip")) == [everyone[1]]
    (tmp_path / "h.jsonl").write_text(json.dumps({"history": ["i1"]}))
    with pytest.raises(CLLM4RecError, match="exactly one of --data"):
        requests_from(recommender.catalog, str(prepared), None, str(tmp_path / "h.jsonl"))
    with pytest.raises(CLLM4RecError, match="--users chooses users of --data"):
        requests_from(recommender.catalog, None, "u01", str(tmp_path / "h.jsonl"))


def test_description_of_a_user(recommender):
    request = Request("u1", tuple(f"i{k}" for k in range(9, -1, -1)))
    lines = list(describe(recommender.catalog, request, [{"item": "i0", "title": None, "score": -1.234}], shown=2))
    assert lines == ["\nUser u1 has interacted with 8 earlier ones, then Title 1; i0", "    1. i0  (-1.23)"]
