"""ID tokens in texts: what is one, what is not, and back to text."""

import numpy as np
import pytest
import torch

from cllm4rec_hf.tokenization.tokenization_cllm4rec import ID_TOKEN_PATTERN, CLLM4RecTokenizer

from .bases import FAMILIES, make

USERS, ITEMS = 50, 1000

CANONICAL = (
    "<user_1> has interacted with <item_2> <item_3>",
    "<user_5> writes the following review for <item_9>: Great strings.",
    "The description of <item_4> is:",
    "The profile of <user_7> is: Great (and rather long)",
    "<user_1> has interacted with <item_2> <item_3>, <user_1> will interact with",
    "<item_0>",
    "for <item_999>!",
)
# what a text can hold that must not be read as a token of its own
STAND_IN = "\ufdd0" + "\ufdd1" * 6 + "\ufdd2"


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return CLLM4RecTokenizer.from_backbone(make(request.param), num_users=USERS, num_items=ITEMS)


@pytest.fixture(scope="module")
def byte_level():
    return CLLM4RecTokenizer.from_backbone(make("gpt2"), num_users=USERS, num_items=ITEMS)


def id_tokens(tokenizer, ids):
    return [index for index in ids if index >= tokenizer.base_vocab_size]


def test_ids_are_arithmetic(tokenizer):
    text = "<user_49> and <item_0>,<item_999> then<user_0>"
    first = len(tokenizer) - USERS - ITEMS
    assert first == tokenizer.base_vocab_size == tokenizer.vocab_size
    assert id_tokens(tokenizer, tokenizer(text)["input_ids"]) == [first + 49, first + 50, first + 50 + 999, first]


def test_white_space_to_the_left_is_absorbed(tokenizer):
    text = "<user_1> has interacted with <item_2> <item_3>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = tokenizer.base_vocab_size
    assert ids[0] == first + 1 and ids[-2:] == [first + USERS + 2, first + USERS + 3]
    assert not id_tokens(tokenizer, ids[1:-2])
    spaced = tokenizer(text.replace(" <", " \n <"), add_special_tokens=False)["input_ids"]
    assert spaced == ids


@pytest.mark.parametrize("text", CANONICAL)
def test_decoding_gives_the_text_back(tokenizer, text):
    if tokenizer.cls_token:
        # WordPiece loses case, and the spaces around punctuation that is next to words
        text = text.lower().replace(" is:", " is,").replace("(", "").replace(")", "")
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.batch_decode(torch.tensor([ids, ids]), skip_special_tokens=True) == [text, text]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(plain)) == text


def test_decoded_special_tokens(byte_level):
    ids = byte_level("<|endoftext|><item_3> great")["input_ids"]
    assert byte_level.decode(ids) == "<|endoftext|> <item_3> great"
    assert byte_level.decode(ids, skip_special_tokens=True) == "<item_3> great"
    assert byte_level.decode(byte_level.item_token_id(3)) == "<item_3>"
    assert byte_level.decode([]) == ""
    assert byte_level(byte_level.decode(ids))["input_ids"] == ids


def test_white_space_around_id_tokens_is_kept(byte_level):
    for text in ("with\n\n<item_3>\n\n<item_4>  x", "a <item_1>.<user_2> b"):
        ids = byte_level(text)["input_ids"]
        assert byte_level(byte_level.decode(ids))["input_ids"] == ids
    user, item, space = byte_level.user_token_id(2), byte_level.item_token_id(3), byte_level(" ")["input_ids"]
    assert byte_level.decode([user, *space, item]) == "<user_2> <item_3>"
    assert byte_level.decode([user, item, *space, *space]) == "<user_2> <item_3>  "


def test_decoding_plain_text_that_looks_like_an_id_token(byte_level):
    text = "like<item_3> really"
    ids = byte_level(text, split_special_tokens=True)["input_ids"]
    assert not id_tokens(byte_level, ids)
    assert byte_level.decode([byte_level.item_token_id(9), *ids]) == f"<item_9>{text}"


def test_split_special_tokens_reads_plain_text(tokenizer):
    end = tokenizer.sep_token or tokenizer.eos_token
    texts = [f"great <item_7> {end} {STAND_IN} <user_3>", "<item_99999>", STAND_IN]
    expected = make_reference(tokenizer)(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    options = {"add_special_tokens": False, "split_special_tokens": True}
    assert tokenizer(texts, **options)["input_ids"] == expected
    assert [tokenizer(text, **options)["input_ids"] for text in texts] == expected
    assert not any(id_tokens(tokenizer, ids) for ids in expected)
    assert tokenizer.encode(texts[0], **options) == expected[0]
    assert tokenizer.tokenize(texts[1], split_special_tokens=True) != ["<item_99999>"]
    pair = tokenizer(texts[0], texts[2], split_special_tokens=True)["input_ids"]
    assert not id_tokens(tokenizer, pair)


def make_reference(tokenizer):
    """The base tokenizer, without ID tokens."""
    family = next(family for family in FAMILIES if len(make(family)) == tokenizer.base_vocab_size)
    return make(family)


def test_special_tokens_are_split(byte_level):
    (end,) = byte_level("<|endoftext|>")["input_ids"]
    assert end not in byte_level("so <|endoftext|> there", split_special_tokens=True)["input_ids"]


def test_split_special_tokens_holds_for_one_call(tokenizer):
    text = f"great <item_7>{tokenizer.sep_token or tokenizer.eos_token}"
    before = tokenizer(text)["input_ids"]
    tokenizer(text, split_special_tokens=True)
    assert tokenizer(text)["input_ids"] == before
    assert id_tokens(tokenizer, before) == [tokenizer.item_token_id(7)]


def test_split_special_tokens_for_all_calls(tmp_path):
    tokenizer = CLLM4RecTokenizer.from_backbone(make("gpt2"), num_users=2, num_items=9, split_special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, CLLM4RecTokenizer.from_pretrained(tmp_path)):
        assert not id_tokens(each, each("great <item_7>")["input_ids"])
        assert not id_tokens(each, each.encode(f"great <item_77>{STAND_IN}"))
        allowed = each("great <item_7>", split_special_tokens=False)["input_ids"]
        assert id_tokens(each, allowed) == [each.item_token_id(7)]
        assert each.decode(allowed) == "great <item_7>"


@pytest.mark.parametrize("text", ["<item_1000>", "<user_50>", "a<item_99999>b", f"<item_{'9' * 5000}>"])
def test_out_of_range(tokenizer, text):
    for texts in (text, ["fine <item_1>", text], [("fine", text)]):
        with pytest.raises(ValueError, match="out of range") as error:
            tokenizer(texts)
        assert "split_special_tokens=True" in str(error.value) and len(str(error.value)) < 250
    match = ID_TOKEN_PATTERN.search(text)
    assert match[1] in str(error.value) and f"<{match[1]}_0> to <{match[1]}_" in str(error.value)
    with pytest.raises(ValueError, match="out of range"):
        tokenizer.convert_tokens_to_ids(match[0])
    with pytest.raises(ValueError, match="out of range"):
        tokenizer(text.split(), is_split_into_words=True)


@pytest.mark.parametrize("text", ["<item_007>", "<user_-1>", "<user_1 >", "<Item_1>", "<item_>", "<item_١>", "item_3"])
def test_other_spellings_are_plain_text(tokenizer, text):
    base = make_reference(tokenizer)
    assert tokenizer(f"for {text} x")["input_ids"] == base(f"for {text} x")["input_ids"]


def test_the_reserved_characters(byte_level):
    with pytest.raises(ValueError, match=r"U\+FDD0.*split_special_tokens"):
        byte_level(f"<item_1> {STAND_IN}")
    for text in ("\ufdd0", "<item_1>\ufdd1\ufdd2", "\ufdd0<item_1>"):
        ids = byte_level(text)["input_ids"]
        assert len(id_tokens(byte_level, ids)) == text.count("item") and byte_level(text)["input_ids"] == ids
        assert byte_level.decode(ids).replace(" ", "") == text


def test_no_user_tokens_at_all():
    tokenizer = CLLM4RecTokenizer.from_backbone(make("gpt2"), num_users=0, num_items=0)
    assert len(tokenizer) == len(make("gpt2"))
    with pytest.raises(ValueError, match="no such tokens"):
        tokenizer("<user_0>")
    assert tokenizer.decode(tokenizer("great strings")["input_ids"]) == "great strings"


def test_user_and_item_token_ids(byte_level):
    first = byte_level.base_vocab_size
    assert byte_level.user_token_id(3) == first + 3
    assert byte_level.item_token_id(np.int32(4)) == first + USERS + 4
    assert type(byte_level.item_token_id(np.int32(4))) is int
    array = byte_level.item_token_id(np.array([[0, 999]], dtype=np.uint16))
    assert array.dtype == np.int64 and array.tolist() == [[first + USERS, first + USERS + 999]]
    assert byte_level.user_token_id(np.array([], dtype=np.int64)).tolist() == []
    assert byte_level.convert_tokens_to_ids(["<user_3>", "<item_4>"]) == [first + 3, first + USERS + 4]
    for wrong in (-1, 50, np.int64(50), np.array([3, 50]), np.array([-1, 3])):
        with pytest.raises(ValueError, match="<user_0> to <user_49>"):
            byte_level.user_token_id(wrong)
    for wrong in (1.5, "1", [1, 2], np.array([1.0]), None):
        with pytest.raises(TypeError):
            byte_level.item_token_id(wrong)


def test_token_to_user_and_item(byte_level):
    for user in (0, USERS - 1):
        assert byte_level.token_to_user(byte_level.user_token_id(user)) == user
        assert byte_level.token_to_item(byte_level.user_token_id(user)) is None
    for item in (0, ITEMS - 1):
        assert byte_level.token_to_item(np.int64(byte_level.item_token_id(item))) == item
        assert byte_level.token_to_user(byte_level.item_token_id(item)) is None
    for other in (0, byte_level.base_vocab_size - 1, len(byte_level), -1):
        assert byte_level.token_to_user(other) is None and byte_level.token_to_item(other) is None


@pytest.mark.parametrize("max_length", [4, 100])
def test_plain_ids_are_those_of_a_call(tokenizer, max_length):
    texts = [*CANONICAL, "", "plain words", f"{STAND_IN} and {tokenizer.eos_token} {tokenizer.pad_token} in a text"]
    tokenizer(["padded", "to the longest of two"], padding=True, truncation=True, max_length=3)
    expected = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=max_length
    )
    tokenizer(["padded", "to the longest of two"], padding=True, truncation=True, max_length=3)
    assert tokenizer.plain_ids(texts, max_length) == expected["input_ids"]
    # and the next call is not affected
    assert id_tokens(tokenizer, tokenizer("<user_1> " + "word " * 120)["input_ids"]) == [tokenizer.user_token_id(1)]
