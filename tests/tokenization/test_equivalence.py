"""Computed ID tokens against ID tokens added one by one with `add_tokens`."""

import numpy as np
import pytest
import torch

from cllm4rec_hf.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

from .bases import FAMILIES, make, random_texts, twin

USERS, ITEMS = 13, 120


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Ours and the twin of one family."""
    base = make(request.param)
    ours = CLLM4RecTokenizer.from_backbone(base, num_users=USERS, num_items=ITEMS)
    return ours, twin(base, USERS, ITEMS)


@pytest.fixture(scope="module")
def texts():
    return random_texts(seed=5, count=200, num_users=USERS, num_items=ITEMS)


def same(ours, theirs, texts, *others, **options):
    """Encode by both; every value is equal. Returns ours."""
    mine, expected = ours(texts, *others, **options), theirs(texts, *others, **options)
    assert set(mine) == set(expected)
    for name in expected:
        left, right = mine[name], expected[name]
        assert (left.tolist() if hasattr(left, "tolist") else left) == (
            right.tolist() if hasattr(right, "tolist") else right
        ), name
    assert type(mine["input_ids"]) is type(expected["input_ids"])
    return mine


EVERYTHING = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_length": True,
}


def test_there_are_id_tokens_to_compare(pair, texts):
    ours, _ = pair
    found = [index for ids in ours(texts)["input_ids"] for index in ids if index >= ours.base_vocab_size]
    assert len(found) > 300 and len(set(found)) > 0.9 * (USERS + ITEMS)


def test_batches(pair, texts):
    same(*pair, texts, **EVERYTHING)
    same(*pair, texts, add_special_tokens=False, **EVERYTHING)


def test_single_texts(pair, texts):
    for text in texts[:60]:
        same(*pair, text, **EVERYTHING)
        assert pair[0].encode(text) == pair[1].encode(text)
        same(*pair, text, return_tensors="np")
        assert pair[0].tokenize(text) == [token.strip() for token in pair[1].tokenize(text)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [1, 5, 12])
def test_truncation(pair, texts, side, length):
    ours, theirs = pair
    length += ours.num_special_tokens_to_add()
    ours.truncation_side = theirs.truncation_side = side
    same(ours, theirs, texts, truncation=True, max_length=length, **EVERYTHING)
    ours.truncation_side = theirs.truncation_side = "right"


@pytest.mark.parametrize("is_batch", [True, False])
def test_stride_and_overflow(pair, texts, is_batch):
    options = {"truncation": True, "max_length": 9, "stride": 3, "return_overflowing_tokens": True, **EVERYTHING}
    if is_batch:
        mine = same(*pair, texts, **options)
        assert len(mine["input_ids"]) > len(texts)
        return
    for text in texts[:30]:
        same(*pair, text, **options)


def test_pairs(pair, texts):
    first, second = texts[:100], texts[100:]
    same(*pair, first, second, **EVERYTHING)
    same(*pair, first, second, truncation="longest_first", max_length=16, padding=True, **EVERYTHING)
    same(*pair, first, second, truncation="only_second", max_length=200, padding="max_length")
    same(*pair, list(zip(first, second, strict=True)), **EVERYTHING)
    for a, b in zip(first[:20], second[:20], strict=True):
        same(*pair, a, b, **EVERYTHING)
    same(*pair, "<user_1> and", "")


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_tensors(pair, texts, side):
    for kind, array in (("np", np.ndarray), ("pt", torch.Tensor)):
        options = {"padding": True, "padding_side": side, "pad_to_multiple_of": 8, "return_tensors": kind}
        assert isinstance(same(*pair, texts, **options)["input_ids"], array)
    same(*pair, texts, padding="max_length", max_length=30, truncation=True, return_tensors="pt")


def test_words(pair, texts):
    split = [text.split() or ["strings"] for text in texts]
    same(*pair, split, is_split_into_words=True, **EVERYTHING)
    same(*pair, split[0], is_split_into_words=True, **EVERYTHING)
    same(*pair, split[:50], split[50:100], is_split_into_words=True, truncation=True, max_length=14, **EVERYTHING)
    same(*pair, split[1], split[2], is_split_into_words=True)
    encoded = pair[0](["for", "<item_7>", "<item_11>tune"], is_split_into_words=True, add_special_tokens=False)
    places = {encoded.input_ids.index(pair[0].item_token_id(j)): word for j, word in ((7, 1), (11, 2))}
    assert all(encoded.word_ids()[place] == word for place, word in places.items())


def test_plain_text_mode(pair, texts):
    ours, theirs = pair
    without_ids = make_plain(texts)
    same(ours, theirs, without_ids, split_special_tokens=True, **EVERYTHING)
    same(ours, theirs, without_ids, **EVERYTHING)


def make_plain(texts):
    """Texts whose near misses and special tokens remain, but no ID token."""
    return [text.replace("<user_", "<usr_").replace("<item_", "<itm_") for text in texts]


def test_encodings(pair):
    """Rows of the result as objects: characters to tokens and back, overflow, no trace of the stand-ins."""
    ours, theirs = pair
    text = "great  <item_12>, the <user_3><item_119> strings"
    mine, expected = ours(text), theirs(text)
    for place in range(len(text)):
        assert mine.char_to_token(place) == expected.char_to_token(place)
    assert mine.word_ids() == expected.word_ids() and mine.sequence_ids() == expected.sequence_ids()
    assert [token.strip() for token in mine.tokens()] == [token.strip() for token in expected.tokens()]
    assert mine[0].ids == expected[0].ids and len(mine[0]) == len(expected[0])
    cut, expected_cut = (each(text, truncation=True, max_length=6)[0] for each in pair)
    assert [row.ids for row in cut.overflowing] == [row.ids for row in expected_cut.overflowing]


def test_text_target(pair):
    mine, expected = (each("for <user_1>", text_target="<item_2> <item_3>") for each in pair)
    assert mine["labels"] == expected["labels"] and mine["input_ids"] == expected["input_ids"]


def test_decoded_tokens(pair, texts):
    """Decoding is the twin's but for spaces next to ID tokens."""

    def squeeze(text):
        return "".join(text.split())

    ours, theirs = pair
    ids = theirs(texts)["input_ids"]
    for skip in (False, True):
        mine, expected = (each.batch_decode(ids, skip_special_tokens=skip) for each in pair)
        assert [squeeze(text) for text in mine] == [squeeze(text) for text in expected]
    assert [ours.convert_ids_to_tokens(row) for row in ids] == [theirs.convert_ids_to_tokens(row) for row in ids]
    assert ours.get_vocab() == theirs.get_vocab()
    tokens = ours.convert_ids_to_tokens(ids[0])
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == ids[0]
