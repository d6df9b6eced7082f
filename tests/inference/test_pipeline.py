"""pipeline("recommendation"): inputs, parameters, batches, and what a saved one holds."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import cllm4rec_hf
from cllm4rec_hf import Catalog, CLLM4RecError, CLLM4RecModel, Histories, Recommender, Request, UnknownIdError
from tests.trainers.parts import ITEMS, USERS, make_parts

REQUESTS = [
    {"user": "u1", "history": ["i1", "i2", "i3"]},
    {"user": "u2", "history": ["i7"]},
    {"user": "somebody new", "history": ["i4", "i5", "i6", "i0", "i9"]},
    {"history": ["i2", "i3"]},
    {"user": "u5", "history": []},
]


def catalog(histories=None):
    titles = [f"Title {k}" if k else None for k in range(ITEMS)]
    return Catalog([f"i{k}" for k in range(ITEMS)], titles, [f"u{k}" for k in range(USERS)], histories)


@pytest.fixture(params=["llama", "t5"])
def checkpoint(base_tokenizer, tmp_path, request):
    parts = make_parts(base_tokenizer, request.param)
    parts.model.save_pretrained(tmp_path / "checkpoint")
    parts.tokenizer.save_pretrained(tmp_path / "checkpoint")
    catalog().save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def recommend(checkpoint):
    return pipeline("recommendation", model=checkpoint)


def approx(found):
    return [[(e["item"], e["title"], pytest.approx(e["score"], abs=1e-4)) for e in row] for row in found]


def plain(found):
    return [[(e["item"], e["title"], e["score"]) for e in row] for row in found]


def test_the_pipeline_answers_as_the_recommender_does(recommend, checkpoint):
    recommender = Recommender.from_pretrained(checkpoint)
    expected = list(recommender.recommend([Request.of(request) for request in REQUESTS], 4))
    assert plain(recommend(REQUESTS, top_k=4)) == approx(expected)
    assert plain([recommend(REQUESTS[0], top_k=4)]) == approx(expected[:1])
    assert plain([recommend(Request("u1", ("i1", "i2", "i3")), top_k=4)]) == approx(expected[:1])


def test_every_kind_of_input(recommend):
    expected = approx(recommend(REQUESTS[:3]))
    columns = Dataset.from_list(REQUESTS[:3])
    column = Dataset.from_dict({"request": REQUESTS[:3], "other": [1, 2, 3]})
    assert plain(recommend(tuple(REQUESTS[:3]))) == expected
    assert plain(recommend(column["request"])) == expected
    for lazy in ((r for r in REQUESTS[:3]), columns, KeyDataset(column, "request"), iter(REQUESTS[:3])):
        found = recommend(lazy)
        assert not isinstance(found, list)
        assert plain(found) == expected
    assert recommend([]) == [] and list(recommend(request for request in [])) == []


def test_a_generator_is_consumed_as_it_is_asked_for(recommend):
    asked = []

    def requests():
        for k in range(50):
            asked.append(k)
            yield REQUESTS[k % 3]

    found = recommend(requests(), batch_size=4)
    next(iter(found))
    assert 1 <= len(asked) <= 9


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batch_size_is_honoured_and_changes_nothing(recommend, batch_size, monkeypatch):
    expected = approx(recommend(REQUESTS))
    sizes, forward = [], recommend.model.forward

    def counted(input_ids, *args, **kwargs):
        sizes.append(len(input_ids))
        return forward(input_ids, *args, **kwargs)

    monkeypatch.setattr(recommend.model, "forward", counted)
    assert plain(recommend(REQUESTS, batch_size=batch_size)) == expected
    assert sum(sizes) == len(REQUESTS) and max(sizes) == min(batch_size, len(REQUESTS))


def test_what_may_be_recommended(recommend):
    request = REQUESTS[0]
    every = [entry["item"] for entry in recommend(request, top_k=100, exclude_seen=False)]
    assert len(every) == ITEMS
    unseen = [item for item in every if item not in request["history"]]
    assert [entry["item"] for entry in recommend(request, top_k=100)] == unseen
    assert [entry["item"] for entry in recommend(request, top_k=2)] == unseen[:2]
    without = recommend(request, exclude=unseen[:2], top_k=2)
    assert [entry["item"] for entry in without] == unseen[2:4]
    among = recommend(request, restrict_to=[unseen[4], unseen[1], "i1"])
    assert [entry["item"] for entry in among] == [unseen[1], unseen[4]]
    # log p is that of the whole catalog, whatever is left out
    scores = {entry["item"]: entry["score"] for entry in recommend(request, top_k=100, exclude_seen=False)}
    assert among[0]["score"] == pytest.approx(scores[unseen[1]])
    assert sum(torch.tensor(list(scores.values())).exp().tolist()) == pytest.approx(1, abs=1e-5)


def test_unknown_ids(recommend):
    odd = {"user": "u1", "history": ["i1", "gone", "i2"]}
    with pytest.raises(UnknownIdError, match="1 item id is not in the catalog: 'gone'"):
        recommend(odd)
    known = {"user": "u1", "history": ["i1", "i2"]}
    assert plain([recommend(odd, unknown="skip")]) == approx([recommend(known)])
    with pytest.raises(UnknownIdError, match="'gone'"):
        recommend(known, exclude=["gone"])
    assert plain([recommend(known, exclude=["gone"], unknown="skip")]) == approx([recommend(known)])


def test_defaults_of_the_pipeline_itself(checkpoint):
    recommend = pipeline("recommendation", model=checkpoint, top_k=3, unknown="skip", exclude=["gone", "i4"])
    found = recommend({"user": "u1", "history": ["gone", "i1"]})
    assert len(found) == 3 and "i4" not in [entry["item"] for entry in found]
    assert len(recommend({"user": "u1", "history": ["i1"]}, top_k=5)) == 5


@pytest.mark.parametrize(
    "request_, message",
    [
        ("i1", "Expected a request of the form .* got 'i1'"),
        (["i1"], "got 'i1'"),
        (7, "got 7"),
        ({"user": "u1", "items": ["i1"]}, "got the key 'items'"),
        ({"user": "u1", "history": "i1"}, "got the history 'i1'"),
        ({}, "neither a user nor a history"),
        ({"user": "u1"}, "no history, and this checkpoint stores none"),
    ],
)
def test_requests_of_another_form(recommend, request_, message):
    with pytest.raises(CLLM4RecError, match=message):
        recommend(request_)


def test_arguments_of_another_form(recommend):
    with pytest.raises(TypeError, match="no argument 'topk'; expected top_k"):
        recommend(REQUESTS[0], topk=3)
    with pytest.raises(ValueError, match="top_k must be 1 or more, got 0"):
        recommend(REQUESTS[0], top_k=0)
    with pytest.raises(CLLM4RecError, match="exclude takes a list of item ids, got the string 'i1'"):
        recommend(REQUESTS[0], exclude="i1")


def test_stored_histories_only_where_asked(checkpoint, tmp_path):
    assert Catalog.from_pretrained(checkpoint).histories is None
    histories = Histories.from_lists([[k, (k + 1) % ITEMS] for k in range(USERS)], ITEMS)
    catalog(histories).save_pretrained(checkpoint)
    recommend = pipeline("recommendation", model=checkpoint)
    assert recommend({"user": "u3"}) == recommend({"user": "u3", "history": ["i3", "i4"]})
    with pytest.raises(CLLM4RecError, match="knows no such user"):
        recommend({"user": "somebody new"})
    # a catalog without histories leaves none behind
    catalog().save_pretrained(checkpoint)
    assert Catalog.from_pretrained(checkpoint).histories is None


def test_saving_needs_no_trust_in_installed_code(recommend, tmp_path):
    recommend.save_pretrained(tmp_path / "again")
    assert "custom_pipelines" not in (tmp_path / "again" / "config.json").read_text()
    again = pipeline("recommendation", model=str(tmp_path / "again"))
    assert plain(again(REQUESTS)) == approx(recommend(REQUESTS))


def test_live_objects(checkpoint):
    model = cllm4rec_hf.CLLM4RecForContent.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = approx(pipeline("recommendation", model=checkpoint)(REQUESTS))
    # any class with a head will do, and the catalog is the checkpoint's that the model came from
    assert plain(pipeline("recommendation", model=model, tokenizer=tokenizer)(REQUESTS)) == expected
    other = Catalog([f"x{k}" for k in range(ITEMS)])
    recommend = pipeline("recommendation", model=model, tokenizer=tokenizer, catalog=other)
    assert recommend({"history": ["x1"]})[0]["item"].startswith("x")


def test_parts_that_do_not_belong_together(checkpoint, base_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with pytest.raises(CLLM4RecError, match="CLLM4RecModel has no head that ranks items"):
        pipeline("recommendation", model=CLLM4RecModel.from_pretrained(checkpoint), tokenizer=tokenizer)
    model = cllm4rec_hf.CLLM4RecForRecommendation.from_pretrained(checkpoint)
    with pytest.raises(CLLM4RecError, match=f"{ITEMS} items in the model, {ITEMS} in the tokenizer, 3 in the catalog"):
        pipeline("recommendation", model=model, tokenizer=tokenizer, catalog=Catalog(["a", "b", "c"]))
    with pytest.raises(CLLM4RecError, match="has no user and item tokens"):
        pipeline("recommendation", model=model, tokenizer=base_tokenizer)
    model.name_or_path = ""
    with pytest.raises(CLLM4RecError, match="came from no checkpoint; pass its catalog"):
        pipeline("recommendation", model=model, tokenizer=tokenizer)
