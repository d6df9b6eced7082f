"""The evaluator against a whole evaluation in plain loops, and what it tells about rankers that misbehave."""

import json
import logging
import math

import numpy as np
import pytest

import cllm4rec_hf.evaluation.evaluator as module
from cllm4rec_hf.errors import CLLM4RecError
from cllm4rec_hf.evaluation.evaluator import Evaluator

from .factory import FixedScores, random_prepared, write_prepared


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return random_prepared(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="module")
def scores(data):
    """Scores with many ties."""
    generator = np.random.Generator(np.random.PCG64(2))
    return generator.integers(0, 15, size=(data.num_users, data.num_items)).astype(np.float32)


def plain_evaluation(data, scores, split, metric, k):
    """Per-user values, from the rows of the table by loops alone."""
    lists = {name: {} for name in ("train", "validation", "test")}
    for row in data.interactions:
        lists[row["split"]].setdefault(row["user"], set()).add(row["item"])
    values = {}
    for user in range(data.num_users):
        relevant = lists[split].get(user, set())
        if not relevant:
            continue
        seen = set(lists["train"].get(user, set()))
        if split == "test":
            seen |= lists["validation"].get(user, set())
        order = sorted((j for j in range(data.num_items) if j not in seen), key=lambda j: (-scores[user, j], j))[:k]
        if metric == "recall":
            values[user] = len(relevant.intersection(order)) / min(k, len(relevant))
        else:
            gain = sum(1 / math.log2(place + 2) for place, j in enumerate(order) if j in relevant)
            values[user] = gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    return values


SETTINGS = [("validation", ("train",)), ("test", ("train",)), ("test", ("train", "validation"))]


@pytest.mark.parametrize(("split", "history_splits"), SETTINGS)
def test_equals_plain_loops(data, scores, split, history_splits):
    # 100 is deeper than the catalog
    names = ("recall@1", "recall@5", "ndcg@3", "ndcg@100")
    evaluator = Evaluator(data, split, names, batch_size=7, history_splits=history_splits)
    result = evaluator.evaluate(FixedScores(scores))
    for name in names:
        metric, k = name.split("@")
        expected = plain_evaluation(data, scores, split, metric, int(k))
        assert result.users.tolist() == list(expected)
        np.testing.assert_allclose(result.per_user[name], list(expected.values()), rtol=1e-12)
        assert result.metrics[name] == pytest.approx(np.mean(list(expected.values())), rel=1e-12)
        low, high = result.intervals[name]
        assert low <= result.metrics[name] <= high
    assert result.num_users == len(result.users) < data.num_users
    assert result.num_users + result.num_skipped == data.num_users


def test_equals_lenskit_on_a_whole_run(data, scores):
    from lenskit.data import ItemList, ItemListCollection
    from lenskit.metrics import NDCG, Recall, RunAnalysis
    from lenskit.metrics.ranking import LogRankWeight

    recommended, held_out = (ItemListCollection(["user"], index=True) for _ in range(2))
    seen, relevant = data.histories("train", "validation"), data.histories("test")
    for user in range(data.num_users):
        if len(relevant[user]):
            order = np.argsort(-scores[user], kind="stable")
            order = order[~np.isin(order, seen[user])]
            recommended.add(ItemList(item_ids=order, ordered=True), user=user)
            held_out.add(ItemList(item_ids=relevant[user]), user=user)
    analysis = RunAnalysis()
    analysis.add_metric(Recall(n=5))
    analysis.add_metric(NDCG(n=10, weight=LogRankWeight(offset=1)))
    oracle = analysis.measure(recommended, held_out).list_metrics().mean()
    result = Evaluator(data, "test", ("recall@5", "ndcg@10")).evaluate(FixedScores(scores), bootstrap=False)
    assert result.metrics["recall@5"] == pytest.approx(oracle["Recall@5"], rel=1e-9)
    assert result.metrics["ndcg@10"] == pytest.approx(oracle["NDCG@10"], rel=1e-9)


@pytest.mark.parametrize(("split", "history_splits"), SETTINGS)
def test_rankers_get_small_batches_and_the_histories_asked_for(data, scores, split, history_splits):
    ranker = FixedScores(scores)
    result = Evaluator(data, split, batch_size=8, history_splits=history_splits).evaluate(ranker, bootstrap=False)
    assert max(len(batch) for batch in ranker.batches) == 8
    assert all(batch.dtype == np.int64 for batch in ranker.batches)
    np.testing.assert_array_equal(np.concatenate(ranker.batches), result.users)
    expected = data.histories(*history_splits)
    for user, history in zip(result.users, ranker.histories, strict=True):
        np.testing.assert_array_equal(history, expected[int(user)])


def test_batch_size_makes_no_difference(data, scores):
    first, second = (Evaluator(data, batch_size=size).evaluate(FixedScores(scores)) for size in (3, 1000))
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize(("split", "known"), [("validation", ("train",)), ("test", ("train", "validation"))])
def test_seen_items_are_never_ranked(data, monkeypatch, split, known):
    seen = data.histories(*known)
    # a ranker that loves what was seen
    scores = seen.to_csr().toarray() * 100
    ranked = []

    def spy(*args):
        ranked.append(top_k(*args))
        return ranked[-1]

    top_k = module.top_k
    monkeypatch.setattr(module, "top_k", spy)
    result = Evaluator(data, split, batch_size=9).evaluate(FixedScores(scores), bootstrap=False)
    rows = np.concatenate([items for items, _ in ranked])
    assert len(rows) == result.num_users
    for user, items in zip(result.users, rows, strict=True):
        unseen = set(range(data.num_items)) - set(seen[int(user)].tolist())
        assert set(items[items >= 0].tolist()) == unseen


def test_perfect_and_hopeless_rankers(data):
    perfect = data.histories("test").to_csr().toarray()
    evaluator = Evaluator(data, metrics=("recall@1", "recall@20", "ndcg@40"))
    best = evaluator.evaluate(FixedScores(perfect))
    assert all(value == pytest.approx(1.0) for value in best.metrics.values())
    worst = Evaluator(data, metrics=("recall@1", "ndcg@2")).evaluate(FixedScores(-perfect), bootstrap=False)
    assert worst.metrics == {"recall@1": 0.0, "ndcg@2": 0.0} and worst.intervals == {}


def test_a_choice_of_users(data, scores):
    evaluator = Evaluator(data, metrics=("recall@5",))
    everyone = evaluator.evaluate(FixedScores(scores), bootstrap=False)
    chosen = np.array([20, 3, 0, 41])  # 3 has nothing to find
    some = evaluator.evaluate(FixedScores(scores), users=chosen, bootstrap=False)
    assert some.users.tolist() == [20, 0, 41] and some.num_skipped == 1
    places = [everyone.users.tolist().index(user) for user in some.users.tolist()]
    np.testing.assert_array_equal(some.per_user["recall@5"], everyone.per_user["recall@5"][places])


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([0, 60], "User 60 is out of range; there are 60 users"),
        ([-1], "User -1 is out of range"),
        ([4, 5, 4], "listed twice"),
        ([0.0, 1.0], "vector of user indices; got float64"),
        ([3], "None of the 1 users has an item in the test split"),
        ([], "None of the 0 users"),
    ],
)
def test_wrong_users(data, scores, users, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(data).evaluate(FixedScores(scores), users=np.array(users))


class Returns:
    def __init__(self, make):
        self.make = make

    def score(self, users, histories):
        return self.make(len(users))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda rows: np.zeros((rows, 39), dtype=np.float32),
            r"Returns.score returned the shape \(4, 39\).*\(4, 40\)",
        ),
        (lambda rows: np.zeros((40, rows), dtype=np.float32), "rows and columns swapped"),
        (lambda rows: np.zeros(40, dtype=np.float32), r"returned the shape \(40,\)"),
        (lambda rows: np.zeros((rows, 40), dtype=np.int64), r"returned int64; expected float32"),
        (lambda rows: [[0.0] * 40] * rows, "returned list; expected a float32 numpy array"),
        (
            lambda rows: np.full((rows, 40), np.nan, dtype=np.float32),
            "for users 0 to 4 cannot be ranked: Row 0 .* NaN",
        ),
    ],
)
def test_rankers_that_misbehave_are_named(data, make, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(data, batch_size=4).evaluate(Returns(make))


def test_half_precision_scores_are_remarked_on_once(data, scores, caplog):
    with caplog.at_level(logging.WARNING):
        Evaluator(data, batch_size=4).evaluate(FixedScores(scores.astype(np.float16)), bootstrap=False)
    assert len([record for record in caplog.records if "float16" in record.message]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "Unknown split 'train' to evaluate on; expected validation or test"),
        ({"metrics": ("recall@20", "hit@3")}, "Unknown metric 'hit@3'"),
        ({"metrics": ()}, "Expected a list of metrics"),
        ({"metrics": "recall@20"}, "Expected a list of metrics"),
        ({"split": "validation", "history_splits": ("train", "validation")}, "the answers leak"),
        ({"history_splits": ("train", "test")}, "the answers leak"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_wrong_settings(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(data, **arguments)


def test_a_split_without_any_item(tmp_path):
    data = write_prepared(tmp_path, [[0, 1], [2]], [[], []], [[], []], num_items=3)
    with pytest.raises(CLLM4RecError, match="None of the 2 users has an item in the validation split"):
        Evaluator(data, split="validation").evaluate(FixedScores(np.zeros((2, 3), dtype=np.float32)))


def test_to_dict_is_json(data, scores):
    result = Evaluator(data, metrics=("recall@20", "ndcg@10")).evaluate(FixedScores(scores))
    read = json.loads(json.dumps(result.to_dict()))
    assert list(read) == ["split", "num_users", "recall@20", "ndcg@10", "intervals"]
    assert read["split"] == "test" and read["num_users"] == result.num_users
    assert read["intervals"] == {name: list(bounds) for name, bounds in result.intervals.items()}
    without = Evaluator(data).evaluate(FixedScores(scores), bootstrap=False)
    assert "intervals" not in without.to_dict()


def test_progress_does_not_change_the_result(data, scores):
    evaluator = Evaluator(data)
    assert (
        evaluator.evaluate(FixedScores(scores), progress=True).to_dict()
        == evaluator.evaluate(FixedScores(scores)).to_dict()
    )
