"""Prompts, corpora, collators and batches."""

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from cllm4rec_hf import (
    CLLM4RecTokenizer,
    CollaborativeCollator,
    ContentCollator,
    ContentCorpus,
    DataError,
    Histories,
    InteractionCorpus,
    PreparedData,
    PromptBuilder,
    RecommendationCollator,
)
from cllm4rec_hf.data.collators import history_prompts
from cllm4rec_hf.data.corpora import DocumentKey
from cllm4rec_hf.data.sampling import AlternatingBatchSampler

USERS, ITEMS = 24, 30


@pytest.fixture
def prompts(base_tokenizer):
    return PromptBuilder(CLLM4RecTokenizer.from_backbone(base_tokenizer, USERS, ITEMS))


@pytest.fixture
def framed_prompts(base_tokenizer):
    """A tokenizer that puts a token before and one behind every text, as LLaMA and T5 do."""
    from tokenizers.processors import TemplateProcessing

    backend = base_tokenizer.backend_tokenizer.__class__.from_str(base_tokenizer.backend_tokenizer.to_str())
    end = base_tokenizer.convert_tokens_to_ids("<|end|>")
    start = base_tokenizer.convert_tokens_to_ids("a")
    backend.post_processor = TemplateProcessing(single="a $A <|end|>", special_tokens=[("a", start), ("<|end|>", end)])
    framed = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer = CLLM4RecTokenizer.from_backbone(framed, USERS, ITEMS)
    return {kind: PromptBuilder(tokenizer, kind) for kind in (False, True)}, start, end


def histories(seed=0, longest=12):
    generator = np.random.Generator(np.random.PCG64(seed))
    return Histories.from_lists(
        [generator.permutation(ITEMS)[: generator.integers(1, longest)] for _ in range(USERS)], ITEMS
    )


def feature(corpus, index, reading=0):
    return {"task": corpus.task, "key": DocumentKey(0, index, reading), **corpus[index]}


def real(batch, row):
    """Token ids of a row without padding."""
    return batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()


# ---- prompts


def test_prompts_are_what_the_tokenizer_makes_of_their_text(prompts):
    tokenizer = prompts.tokenizer
    texts = {
        "<user_3> has interacted with": prompts.interaction(3),
        "<user_4> has interacted with <item_2> <item_0> <item_29>, <user_4> will interact with": prompts.recommendation(4, [2, 0, 29]),
        "<user_4> has interacted with, <user_4> will interact with": prompts.recommendation(4, []),
        "The user has interacted with <item_7>, the user will interact with": prompts.recommendation(None, [7]),
        "<user_9> writes the following review for <item_8>:": prompts.content("review", 9, 8),
        "The description of <item_8> is:": prompts.content("item", None, 8),
        "The profile of <user_23> is:": prompts.content("user", 23, None),
    }  # fmt: skip
    for text, ids in texts.items():
        assert ids.tolist() == tokenizer(text)["input_ids"], text
        assert tokenizer.decode(ids) == text


def test_special_tokens_around_prompts(framed_prompts):
    builders, start, end = framed_prompts
    decoder_only, encoder = builders[False], builders[True]
    assert decoder_only.interaction(1)[0] == start and decoder_only.interaction(1)[-1] != end
    for ids in (encoder.interaction(1), encoder.recommendation(1, [2]), encoder.content("item", None, 3)):
        assert ids[0] == start and ids[-1] == end and (ids == end).sum() == 1


def test_main_texts_begin_with_a_word_border_and_hold_no_id_token(prompts):
    tokenizer = prompts.tokenizer
    text = "great strings <item_7> and <|end|> too"
    (ids,) = prompts.main_texts([text], 100)
    assert tokenizer.decode(ids) == f" {text}"
    assert max(ids) < tokenizer.base_vocab_size and tokenizer.eos_token_id not in ids
    assert prompts.main_texts([text], 3) == [ids[:3]]


def test_ids_out_of_range(prompts):
    with pytest.raises(ValueError, match=r"Item index 30 is out of range; the catalog has 30 items \(0 to 29\)"):
        prompts.recommendation(0, [3, 30])
    with pytest.raises(ValueError, match="User index 24 is out of range"):
        prompts.interaction(24)
    with pytest.raises(ValueError, match="Unknown kind of text 'blurb'"):
        prompts.content("blurb", 0, 0)


# ---- collators


def test_interaction_documents_are_reordered_at_each_reading_and_reproducible(prompts):
    corpus = InteractionCorpus(histories(), "collaborative")
    collate = CollaborativeCollator(prompts, 64, seed=1)
    rows = [real(collate([feature(corpus, 5, reading)]), 0) for reading in range(4)]
    head = prompts.interaction(int(corpus.users[5])).tolist()
    for row in rows:
        assert row[: len(head)] == head
        assert sorted(row[len(head) :]) == sorted(prompts.item_ids(corpus[5]["items"]).tolist())
    assert len({tuple(row) for row in rows}) > 1
    # the order is the document's own: neither its batch nor its place in it matters
    together = collate([feature(corpus, 2, 3), feature(corpus, 5, 3)])
    assert real(together, 1) == rows[3]
    assert real(CollaborativeCollator(prompts, 64, seed=2)([feature(corpus, 5, 3)]), 0) != rows[3]


def test_labels_stand_on_the_main_text_without_a_gap(prompts):
    corpus = InteractionCorpus(histories(), "collaborative")
    batch = CollaborativeCollator(prompts, 64)([feature(corpus, index) for index in range(6)])
    for row in range(6):
        labels, ids = batch["labels"][row], batch["input_ids"][row]
        labelled = labels != -100
        assert torch.equal(labels[labelled], ids[labelled]) and (ids[labelled] >= prompts.first_item_id).all()
        first, last = int(labelled.nonzero()[0]), int(labelled.nonzero()[-1])
        assert first == len(prompts.interaction(0)) and labelled[first : last + 1].all()
        assert batch["attention_mask"][row].sum() == last + 1


def test_encoder_decoder_batches(framed_prompts):
    builder = framed_prompts[0][True]
    corpus = InteractionCorpus(histories(), "collaborative")
    batch = CollaborativeCollator(builder, 64)([feature(corpus, index) for index in range(3)])
    for row in range(3):
        assert real(batch, row) == builder.interaction(int(corpus.users[row])).tolist()
        labels = batch["labels"][row]
        assert len(labels[labels != -100]) == len(corpus[row]["items"])


def test_items_of_a_masked_prompt_never_appear_in_it(prompts):
    corpus = InteractionCorpus(histories(longest=15), "recommendation", min_items=2)
    collate = RecommendationCollator(prompts, 64, (0.1, 0.5), 0.3, seed=3)
    shares, anonymous = [], 0
    for reading in range(5):
        batch = collate([feature(corpus, index, reading) for index in range(len(corpus))])
        for row in range(len(corpus)):
            items = set(prompts.item_ids(corpus[row]["items"]).tolist())
            shown = [token for token in real(batch, row) if token >= prompts.first_item_id]
            held_out = [token for token in batch["labels"][row].tolist() if token != -100]
            assert set(shown).isdisjoint(held_out) and set(shown) | set(held_out) == items
            assert len(shown) + len(held_out) == len(items) and shown and held_out
            shares.append(len(held_out) / len(items))
            users = [t for t in real(batch, row) if prompts.first_user_id <= t < prompts.first_item_id]
            assert users in ([prompts.first_user_id + int(corpus.users[row])] * 2, [])
            anonymous += not users
    assert len(set(shares)) > 5
    assert 0.15 < anonymous / len(shares) < 0.45


def test_the_paper_masks_a_fifth(prompts):
    corpus = InteractionCorpus(Histories.from_lists([range(20), range(10), range(2)], ITEMS), "recommendation", 2)
    batch = RecommendationCollator(prompts, 64, (0.2, 0.2))([feature(corpus, index) for index in range(3)])
    assert (batch["labels"] != -100).sum(dim=1).tolist() == [4, 2, 1]


def test_too_long_histories_lose_their_oldest_items_and_never_the_prompt(prompts):
    items = np.arange(ITEMS)
    corpus = {"task": "x", "user": 3, "items": items, "key": DocumentKey(0, 0, 0)}
    limit = prompts.recommendation_overhead + 6
    batch = CollaborativeCollator(prompts, prompts.interaction_overhead + 4)([corpus])
    assert sorted(real(batch, 0)[-4:]) == prompts.item_ids(items[-4:]).tolist()
    batch = RecommendationCollator(prompts, limit, (0.2, 0.2))([corpus])
    ids, labels = real(batch, 0), batch["labels"][0].tolist()
    left = [token for token in prompts.item_ids(items).tolist() if token not in labels]
    assert len(ids) <= limit and sorted(t for t in ids if t >= prompts.first_item_id) == left[-6:]
    (row,) = history_prompts(prompts, [3], [items], limit)
    assert row.tolist() == prompts.recommendation(3, items[-6:]).tolist()
    with pytest.raises(ValueError, match="leaves no room for a single item"):
        history_prompts(prompts, [3], [items], prompts.recommendation_overhead)


def test_id_token_in_a_review_is_an_error_of_the_collator(prompts):
    bad = {
        "kind": "review",
        "user": 1,
        "item": 2,
        "input_ids": [5, prompts.first_item_id],
        "key": DocumentKey(0, 0, 0),
    }
    with pytest.raises(ValueError, match=r"review \(user 1, item 2\) holds the ID token .*split_special_tokens=True"):
        ContentCollator(prompts, 64)([bad])


def test_shares_out_of_range(prompts):
    with pytest.raises(ValueError, match="mask_share must be two ascending shares"):
        RecommendationCollator(prompts, 64, (0.5, 0.2))
    with pytest.raises(ValueError, match="anonymous_share must lie between 0 and 1, got 2"):
        RecommendationCollator(prompts, 64, (0.1, 0.2), 2)


# ---- corpora


def texts(*rows):
    return Dataset.from_dict(
        {name: [row[k] for row in rows] for k, name in enumerate(("kind", "user", "item", "text"))}
    )


def test_content_corpus_cuts_long_texts_and_drops_empty_ones(prompts):
    table = texts(("review", 1, 2, "great strings " * 50), ("item", None, 3, "short"), ("user", 4, None, ""))
    corpus = ContentCorpus(table, prompts, 40)
    batch = ContentCollator(prompts, 40)([{"key": None, **corpus[index]} for index in range(len(corpus))])
    assert len(corpus) == 2 and batch["input_ids"].shape[1] == 40
    assert prompts.tokenizer.decode(real(batch, 1)) == "The description of <item_3> is: short"


def test_corpora_without_documents(prompts):
    with pytest.raises(DataError, match="holds no texts.*--text-column"):
        ContentCorpus(texts(), prompts, 40)
    with pytest.raises(DataError, match="max_text_length 5 leaves no room"):
        ContentCorpus(texts(("item", None, 1, "x")), prompts, 5)
    with pytest.raises(DataError, match="No user has 2 or more training items"):
        InteractionCorpus(Histories.from_lists([[1], [2]], ITEMS), "recommendation", min_items=2)


def test_no_validation_or_test_pair_reaches_any_training_document(prepared, base_tokenizer):
    data = PreparedData.load(prepared)
    tokenizer = CLLM4RecTokenizer.from_backbone(base_tokenizer, data.num_users, data.num_items)
    builder = PromptBuilder(tokenizer)
    train = data.histories("train")
    allowed = {(user, int(item)) for user in range(data.num_users) for item in train[user]}
    first_user, first_item = builder.first_user_id, builder.first_item_id
    batches = []
    for task, collate in (
        ("collaborative", CollaborativeCollator(builder, 64)),
        ("recommendation", RecommendationCollator(builder, 64, (0.1, 0.4), 0.0)),
    ):
        corpus = InteractionCorpus(train, task, min_items=2)
        for reading in range(3):
            batches.append(collate([feature(corpus, index, reading) for index in range(len(corpus))]))
    content = ContentCorpus(data.texts, builder, 64)
    batches.append(ContentCollator(builder, 64)([{"key": None, **content[k]} for k in range(len(content))]))
    seen = set()
    for batch in batches:
        everything = torch.cat([batch["input_ids"], batch["labels"]], dim=1)
        for row in everything.tolist():
            users = {token - first_user for token in row if first_user <= token < first_item}
            items = {token - first_item for token in row if token >= first_item}
            assert len(users) == 1
            seen |= {(user, item) for user in users for item in items}
    assert seen == allowed
    # each review names its item in its text: those of held-out pairs are nowhere
    written = {(row["user"], row["text"].split("number")[1]) for row in data.texts}
    assert written == {(user, str(int(data.items["item_id"][item][1:]))) for user, item in allowed}


# ---- batches


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_an_epoch_is_one_pass_and_steps_alternate(prompts, micro_batches):
    first = InteractionCorpus(histories(), "collaborative")
    second = ContentCorpus(texts(*[("item", None, k, "a word" * (1 + k)) for k in range(17)]), prompts, 60)
    sampler = AlternatingBatchSampler((first, second), 4, micro_batches, seed=2)
    content, read = Counter(), []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and all(0 < len(batch) <= 4 for batch in batches)
        kinds = [{key.corpus for key in batch} for batch in batches]
        per_step = [kinds[k : k + micro_batches] for k in range(0, len(kinds), micro_batches)]
        assert per_step == [[{number % 2}] * micro_batches for number in range(len(per_step))]
        primary = [key for batch in batches for key in batch if key.corpus == 0]
        assert sorted(key.document for key in primary) == list(range(len(first)))
        assert {key.reading for key in primary} == {epoch}
        read.append([key.document for key in primary])
        content.update((key.document, key.reading) for batch in batches for key in batch if key.corpus == 1)
        assert list(sampler) == batches
    assert read[0] != read[1]
    # whole passes over the content, none of whose documents is read twice
    assert max(content.values()) == 1
    passes = Counter(reading for _, reading in content)
    assert all(passes[reading] == len(second) for reading in range(max(passes)))


def test_batches_hold_documents_of_similar_length():
    corpus = InteractionCorpus(Histories.from_lists([range(1 + k % 25) for k in range(200)], ITEMS), "collaborative")
    sampler = AlternatingBatchSampler((corpus,), 10, 1, seed=0)
    padded = sum(len(batch) * max(corpus.lengths[key.document] for key in batch) for batch in sampler)
    assert padded < 1.35 * corpus.lengths.sum()


def test_fewer_documents_than_micro_batches():
    corpus = InteractionCorpus(Histories.from_lists([[1], [2]], ITEMS), "collaborative")
    with pytest.raises(ValueError, match="has 2 documents, fewer than the 3 micro-batches"):
        AlternatingBatchSampler((corpus,), 4, 3)
