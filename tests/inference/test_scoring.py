"""The best items from blocks of scores, against a sort of whole rows."""

import numpy as np
import pytest
import torch

from cllm4rec_hf import Catalog, Histories, Recommender, Request
from cllm4rec_hf.inference.scoring import best_items, catalog_scores
from tests.trainers.parts import ITEMS, USERS, make_parts


def sorted_rows(scores, seen, k, allowed):
    """All eligible items, best first, lower index first among equals, and log p over the whole row."""
    items = np.full((len(scores), min(k, scores.shape[1])), -1)
    values = np.full(items.shape, -np.inf)
    log_p = torch.from_numpy(scores).double().log_softmax(1).numpy()
    for row, row_scores in enumerate(scores.tolist()):
        left = [
            j
            for j in range(len(row_scores))
            if j not in seen[row] and (allowed is None or allowed[j]) and row_scores[j] > -np.inf
        ]
        best = sorted(left, key=lambda j: (-row_scores[j], j))[:k]
        items[row, : len(best)], values[row, : len(best)] = best, log_p[row, best]
    return items, values


@pytest.mark.parametrize("seed", range(40))
def test_equals_a_full_sort_however_it_is_cut(seed):
    generator = np.random.Generator(np.random.PCG64(seed))
    rows, num_items = int(generator.integers(1, 12)), int(generator.integers(1, 400))
    # few levels make ties, many hardly any; a rising row has its best item in the last block
    levels = int(generator.choice([1, 3, 50, 10**6]))
    scores = (generator.integers(-levels, levels + 1, (rows, num_items)) / levels).astype(np.float32)
    if generator.random() < 0.3:
        scores = np.sort(scores, axis=1)
    if generator.random() < 0.2:
        scores[:, generator.random(num_items) < 0.3] = -np.inf
        scores[:, 0] = 0
    seen = [generator.permutation(num_items)[: generator.integers(0, num_items + 1)] for _ in range(rows)]
    allowed = None if generator.random() < 0.4 else generator.random(num_items) < generator.choice([0.02, 0.5, 0.9])
    k = int(generator.choice([1, 5, 20, 500]))
    items, values = sorted_rows(scores, [set(s.tolist()) for s in seen], k, allowed)
    table = torch.from_numpy(scores)
    for cells in (1, 7, 64, 300, 1000, 10**6):
        largest = 0

        def block(rows, columns):
            nonlocal largest
            part = table[rows, columns].clone()
            largest = max(largest, part.numel())
            return part

        found, log_p = best_items(block, num_items, seen, k, allowed, cells)
        np.testing.assert_array_equal(found, items)
        np.testing.assert_allclose(log_p, values, atol=2e-5)
        assert largest <= cells


def test_the_scores_of_a_model_do_not_depend_on_the_blocks():
    generator = torch.Generator().manual_seed(0)

    class Model:
        class item_head:
            item_bias = torch.randint(-3, 4, (3_000,), generator=generator).float()

        # small integers: products are exact, so that equal scores are equal in every block
        collaborative_item_embeddings = torch.nn.Embedding(3_000, 16)

    Model.collaborative_item_embeddings.weight.data = torch.randint(-2, 3, (3_000, 16), generator=generator).float()
    queries = torch.randint(-2, 3, (1_100, 16), generator=generator).float()
    whole = queries @ Model.collaborative_item_embeddings.weight.data.T + Model.item_head.item_bias
    seen = [np.arange(row % 7) for row in range(1_100)]
    for row, items in enumerate(seen):
        whole[row, items] = -torch.inf
    order = np.argsort(-whole.numpy(), axis=1, kind="stable")[:, :30]
    assert (np.diff(np.take_along_axis(whole.numpy(), order, axis=1)) == 0).any()
    for cells in (10_000, 1 << 20):
        found, _ = best_items(catalog_scores(Model, queries), 3_000, seen, 30, None, cells)
        np.testing.assert_array_equal(found, order)


def test_no_rows_and_wrong_arguments():
    scores = torch.zeros(1, 5)
    items, values = best_items(lambda r, c: scores[r, c].clone(), 5, [], 3)
    assert items.shape == values.shape == (0, 3)
    with pytest.raises(ValueError, match="score_cells must be 1 or more, got 0"):
        best_items(lambda r, c: scores[r, c].clone(), 5, [np.array([1])], 3, None, 0)
    with pytest.raises(ValueError, match="Seen item 5 lies outside the catalog of 5 items"):
        best_items(lambda r, c: scores[r, c].clone(), 5, [np.array([5])], 3)
    for wrong in (torch.nan, torch.inf):
        scores[0, 2] = wrong
        with pytest.raises(FloatingPointError, match="hold NaN or infinity"):
            best_items(lambda r, c: scores[r, c].clone(), 5, [np.array([1])], 3)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_answers_do_not_depend_on_windows_or_cells(base_tokenizer, family):
    parts = make_parts(base_tokenizer, family)
    catalog = Catalog([f"i{k}" for k in range(ITEMS)], None, [f"u{k}" for k in range(USERS)])
    generator = np.random.Generator(np.random.PCG64(0))
    requests = [
        Request(f"u{generator.integers(0, USERS + 2)}", tuple(f"i{j}" for j in generator.permutation(ITEMS)[:n]))
        for n in generator.integers(0, ITEMS, 25)
    ]
    more = {"exclude": ["i3"], "restrict_to": [f"i{k}" for k in range(8)]}
    for options in ({}, {"exclude_seen": False}, more):
        whole = list(Recommender(parts.model, parts.tokenizer, catalog).recommend(requests, 4, **options))
        assert {len(found) for found in whole} <= set(range(5))
        for batch_size, cells in ((1, 1), (3, 8), (7, 25), (25, 1000)):
            recommender = Recommender(parts.model, parts.tokenizer, catalog, batch_size, cells)
            found = list(recommender.recommend(requests, 4, **options))
            assert [[e["item"] for e in row] for row in found] == [[e["item"] for e in row] for row in whole]
            for row, other in zip(found, whole, strict=True):
                assert [e["score"] for e in row] == pytest.approx([e["score"] for e in other], abs=2e-4)


def test_the_vocabulary_head_is_not_computed(base_tokenizer, monkeypatch):
    parts = make_parts(base_tokenizer)
    catalog = Catalog([f"i{k}" for k in range(ITEMS)])

    def refuse(*args, **kwargs):
        raise AssertionError("the vocabulary's logits are of no use here")

    monkeypatch.setattr(parts.model.get_output_embeddings(), "forward", refuse)
    recommender = Recommender(parts.model, parts.tokenizer, catalog)
    assert len(next(recommender.recommend([Request(None, ("i1",))], 2))) == 2


def test_users_of_prepared_data_go_by_index(prepared, base_tokenizer, tmp_path):
    from cllm4rec_hf import CLLM4RecForRecommendation, CLLM4RecTokenizer, PreparedData
    from cllm4rec_hf.inference.windows import PreparedRequests, windows
    from tests.conftest import make_backbone

    data = PreparedData.load(prepared)
    catalog = Catalog.from_prepared(data)
    # a model that knows other users than the data, in another order
    others = Catalog(catalog.item_ids, catalog.titles, ["somebody", *reversed(catalog.user_ids[:9])])
    size = len(base_tokenizer) + 6
    model = CLLM4RecForRecommendation.from_backbone(make_backbone("llama", size), 10, len(catalog))
    tokenizer = CLLM4RecTokenizer.from_backbone(base_tokenizer, 10, len(catalog), base_vocab_size=size)
    for own in (catalog, others):
        requests = PreparedRequests(data, own)
        spelled_out = list(requests)
        assert len(spelled_out) == data.num_users and spelled_out[2:4] == requests[2:4]
        for window, other in zip(windows(requests, 5, own), windows(spelled_out, 5, own), strict=True):
            assert window.names == other.names
            np.testing.assert_array_equal(window.users, other.users)
            for history, same in zip(window.histories, other.histories, strict=True):
                np.testing.assert_array_equal(history, same)
    assert (window.users[-1], next(windows(requests, 5, others)).users[0]) == (-1, 9)
    whole = [window.names for window in windows(requests, 5, others)]
    for part in range(2):
        assert [window.names for window in windows(requests, 5, others, "raise", part, 2)] == whole[part::2]
    recommender = Recommender(model, tokenizer, others, batch_size=5)
    assert list(recommender.recommend(requests, 3)) == list(recommender.recommend(spelled_out, 3))
    some = PreparedRequests(data, others, ["u03", "nobody", "u01"], "skip")
    assert list(some) == [spelled_out[3], spelled_out[1]] and some.window(1, 9).users.tolist() == [8]


def test_parts_are_every_so_manyth_window():
    from cllm4rec_hf.inference.windows import windows

    catalog = Catalog(["i0"])
    requests = [Request(f"u{k}", ("i0",)) for k in range(11)]
    whole = [window.names for window in windows(iter(requests), 3, catalog)]
    assert [len(names) for names in whole] == [3, 3, 3, 2]
    for part in range(3):
        assert [w.names for w in windows(iter(requests), 3, catalog, "raise", part, 3)] == whole[part::3]
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        next(windows(requests, 0, catalog))


def test_best_items_agree_with_the_evaluators_ranking(base_tokenizer):
    from cllm4rec_hf import ModelRanker
    from cllm4rec_hf.evaluation.ranking import top_k

    parts = make_parts(base_tokenizer)
    histories = Histories.from_lists([list(range(n)) for n in range(USERS)], ITEMS)
    lists = [histories[user] for user in range(USERS)]
    ranker = ModelRanker(parts.model, parts.prompts, score_cells=12)
    expected, _ = top_k(ranker.score(np.arange(USERS), lists), lists, 5)
    items, log_p = ranker.best(np.arange(USERS), lists, lists, 5)
    np.testing.assert_array_equal(items, expected)
    assert (log_p[items >= 0] < 0).all()
