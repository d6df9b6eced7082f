"""Small base tokenizers of several families, and twins of ours that get their ID tokens by `add_tokens`."""

import functools
import json
from collections.abc import Callable

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "great strings, they stay in tune for weeks and they sound warm: buy them",
    "the pedal is noisy; the knob broke after a day!",
    "has interacted with, will interact with <a> strange (and rather long) user's item_9 or user_1",
    "writes the following review for the description of is: the profile of is:",
    "naïve café, 12.50 € — déjà vu",
    "The description of <x> is: Great. The profile of <y> is:",
)


def gpt2() -> PreTrainedTokenizerFast:
    """Byte-level BPE; one special token for everything, no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def t5() -> PreTrainedTokenizerFast:
    """Unigram with Metaspace in front of every piece, `</s>` behind a text, extra ids."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", pair="$A </s> $B </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=["<extra_id_0>", "<extra_id_1>"],
    )  # fmt: skip


def _sentencepiece_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    # bytes are ordinary tokens of the model, not special ones
    return Tokenizer.from_str(_with_special(tokenizer.to_str(), special[:3]))


def _with_special(state: str, special: list[str]) -> str:
    content = json.loads(state)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    return json.dumps(content)


def _llama(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    starts = [("<s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=starts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )


def llama() -> PreTrainedTokenizerFast:
    """BPE with byte fallback and Metaspace at the very start, `<s>` in front."""
    tokenizer = _sentencepiece_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return _llama(tokenizer)


def llama_legacy() -> PreTrainedTokenizerFast:
    """The same with the word border put by a normalizer, in front of every piece."""
    tokenizer = _sentencepiece_bpe()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _llama(tokenizer)


def bert() -> PreTrainedTokenizerFast:
    """WordPiece that lowers case, `[CLS]` and `[SEP]` around."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


_FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": gpt2, "t5": t5, "llama": llama, "llama_legacy": llama_legacy, "bert": bert,
}  # fmt: skip
FAMILIES = tuple(_FAMILIES)


@functools.cache
def make(family: str) -> PreTrainedTokenizerFast:
    """The base tokenizer of a family; trained once, so do not change it."""
    return _FAMILIES[family]()


def twin(base: PreTrainedTokenizerFast, num_users: int, num_items: int) -> PreTrainedTokenizerFast:
    """A copy of the base whose ID tokens are real added tokens."""
    other = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        padding_side=base.padding_side,
        model_input_names=base.model_input_names,
        extra_special_tokens=base.extra_special_tokens,
        **base.special_tokens_map,
    )
    if other.pad_token is None:
        other.pad_token = other.eos_token
    names = [*(f"<user_{i}>" for i in range(num_users)), *(f"<item_{j}>" for j in range(num_items))]
    other.add_tokens([AddedToken(name, lstrip=True, normalized=False, special=False) for name in names])
    assert len(other) == len(base) + num_users + num_items
    return other


def random_texts(seed: int, count: int, num_users: int, num_items: int) -> list[str]:
    """Words, punctuation, odd spacing, special tokens, near misses and ID tokens in random order."""
    generator = np.random.Generator(np.random.PCG64(seed))
    words = " ".join(CORPUS).split()
    others = [
        "<user_01>",
        "<item_-1>",
        "<user_",
        "item_3>",
        "<items_1>",
        "<|endoftext|>",
        "</s>",
        "[SEP]",
        "日本",
        "😀",
    ]
    gaps = ["", " ", " ", " ", "  ", "\n", " \t"]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(generator.integers(0, 14)):
            kind = generator.integers(0, 10)
            if kind < 4:
                part = words[generator.integers(len(words))]
            elif kind < 5:
                part = others[generator.integers(len(others))]
            elif kind < 7:
                part = f"<user_{generator.integers(num_users)}>"
            else:
                part = f"<item_{generator.integers(num_items)}>"
            parts += [part, gaps[generator.integers(len(gaps))]]
        texts.append("".join(parts))
    return texts
