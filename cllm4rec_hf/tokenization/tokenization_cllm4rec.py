"""A tokenizer in which user and item tokens cost nothing: their ids are computed, not stored.

`<user_i>` has the id N + i and `<item_j>` the id N + I + j. The Rust tokenizer underneath gets a handful of stand-ins,
one for every possible length of an ID token. Each ID token of a text is replaced by the stand-in of its own length, so
that all character positions stay what they are, and the Rust tokenizer does the rest: truncation, overflow, pairs,
padding, offsets. Wherever a stand-in comes out, the text at its position tells which ID token it was.
"""

import importlib.util
import json
import operator
import os
import re
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import AutoConfig, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME, cached_file

ID_TOKEN_PATTERN = re.compile(r"<(user|item)_(0|[1-9][0-9]*)>")

# Noncharacters of Unicode, "not recommended for use in open interchange": no text should hold them.
_OPEN, _FILL, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_ID_TOKEN_OR_STAND_IN = re.compile(f"{ID_TOKEN_PATTERN.pattern}|{_OPEN}{_FILL}+{_CLOSE}")
_DECODED_ID_TOKEN = re.compile(f"{_OPEN}((?:user|item)_[0-9]+){_CLOSE}( ?)")
_CLOSING_PUNCTUATION = frozenset(".,:;!?)]}'’%")
_LENGTH_WITHOUT_DIGITS = len("<user_>")

_PACKAGE_SCHEME = "package://"
_HUB_KEYWORDS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "trust_remote_code",
)  # fmt: skip
_CARRIED_OVER = (
    "chat_control_tokens", "chat_template", "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "model_input_names", "model_max_length",
    "padding_side", "response_template", "truncation_side",
)  # fmt: skip


def _stand_in(length: int) -> str:
    return f"{_OPEN}{_FILL * (length - 2)}{_CLOSE}"


class _IdLayout(NamedTuple):
    """Where ID tokens lie: base tokens, stand-ins (Rust ids from `base_length` on), N, then users, then items."""

    base_length: int
    first_id: int
    num_users: int
    num_items: int

    def count(self, kind: str) -> int:
        return self.num_users if kind == "user" else self.num_items

    def first(self, kind: str) -> int:
        return self.first_id if kind == "user" else self.first_id + self.num_users

    def check(self, kind: str, index: int, remedy: str = "") -> None:
        count = self.count(kind)
        if not 0 <= index < count:
            valid = f"<{kind}_0> to <{kind}_{count - 1}>" if count else f"none: this tokenizer has no {kind}s"
            raise ValueError(f"<{kind}_{index}> is out of range; valid {kind} tokens are {valid}.{remedy}")

    def id_of(self, match: re.Match[str], remedy: str = "") -> int:
        """Id of a matched ID token; a number of thousands of digits, which `int` refuses, is out of range too."""
        kind, digits = match[1], match[2]
        if len(digits) > 18:
            raise ValueError(f"<{kind}_{digits[:18]}…> is out of range; there are {self.count(kind)} {kind}s.{remedy}")
        self.check(kind, int(digits), remedy)
        return self.first(kind) + int(digits)

    def token_of(self, token_id: int) -> str | None:
        for kind in ("user", "item"):
            index = token_id - self.first(kind)
            if 0 <= index < self.count(kind):
                return f"<{kind}_{index}>"
        return None


# while the base class's constructor runs, everything is a token of the base
_NO_IDS_YET = _IdLayout(sys.maxsize, sys.maxsize, 0, 0)


class _IdEncoding:
    """An `Encoding` with the ID tokens in the places of their stand-ins; all else is the Rust encoding's own."""

    def __init__(self, encoding: Encoding, texts: tuple[Any, ...], layout: _IdLayout):
        self._encoding, self._texts, self._layout = encoding, texts, layout

    def __reduce__(self) -> tuple[Any, ...]:
        return _IdEncoding, (self._encoding, self._texts, self._layout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoding, name)

    def __len__(self) -> int:
        return len(self._encoding)

    def __repr__(self) -> str:
        return repr(self._encoding)

    def _id_tokens(self) -> dict[int, re.Match[str]]:
        """Positions of ID tokens, and what they were in the text."""
        found, base_length = {}, self._layout.base_length
        places = [place for place, token_id in enumerate(self._encoding.ids) if token_id >= base_length]
        if not places:
            return {}
        ids, offsets = self._encoding.ids, self._encoding.offsets
        words, sequences = self._encoding.word_ids, self._encoding.sequence_ids
        for place in places:
            text = self._texts[sequences[place] or 0]
            if not isinstance(text, str):
                text = text[words[place]]
            # the start may include white space that the token absorbed, its end is exact
            end = offsets[place][1]
            length = ids[place] - base_length + _LENGTH_WITHOUT_DIGITS + 1
            match = ID_TOKEN_PATTERN.fullmatch(text, end - length, end)
            if match is None:
                raise RuntimeError(
                    f"No ID token in {text!r} at {end - length}:{end}; the base tokenizer moves offsets"
                )
            found[place] = match
        return found

    @property
    def ids(self) -> list[int]:
        ids = self._encoding.ids
        for place, match in self._id_tokens().items():
            ids[place] = self._layout.id_of(match)
        return ids

    @property
    def tokens(self) -> list[str]:
        tokens = self._encoding.tokens
        for place, match in self._id_tokens().items():
            tokens[place] = match[0]
        return tokens

    @property
    def overflowing(self) -> list["_IdEncoding"]:
        return [_IdEncoding(encoding, self._texts, self._layout) for encoding in self._encoding.overflowing]


class CLLM4RecTokenizer(PreTrainedTokenizerFast):
    """Any fast tokenizer plus I user tokens and J item tokens, which take neither memory nor loading time.

    An ID token in a text absorbs the white space to its left; decoding puts a space there. ID tokens are no special
    tokens: `skip_special_tokens` keeps them. With `split_special_tokens=True` (an argument of each call, or of the
    constructor for all calls) a text is read as plain text: nothing in it becomes an ID or a special token. Spellings
    such as `<item_007>` or `<user_-1>` are always plain text. `added_tokens_decoder` and its kin list the base
    tokenizer's added tokens only.

    Args:
        num_users: number of user tokens I.
        num_items: number of item tokens J.
        base_vocab_size: rows N of the backbone's embedding, the first user's id; `None` means the base tokenizer's
            length. It may be larger (T5 has 32,128 rows for 32,100 tokens); ids between are no tokens.
        args: positional arguments of `PreTrainedTokenizerFast`.
        kwargs: keyword arguments of `PreTrainedTokenizerFast`, e.g. `tokenizer_file` or `tokenizer_object`.

    Raises:
        ValueError: if a count is negative, if N is less than the base tokenizer's length, or if the base tokenizer has
            ID tokens of its own.
    """

    _layout = _NO_IDS_YET
    _special_ids: frozenset[int] = frozenset()
    _after_id_token = "exact"

    def __init__(
        self, *args: Any, num_users: int = 0, num_items: int = 0, base_vocab_size: int | None = None, **kwargs: Any
    ):
        num_users, num_items = operator.index(num_users), operator.index(num_items)
        if num_users < 0 or num_items < 0:
            raise ValueError(f"num_users and num_items must not be negative, got {num_users} and {num_items}")
        # the base class stores what it is given, under these names, in tokenizer_config.json
        super().__init__(*args, num_users=num_users, num_items=num_items, base_vocab_size=base_vocab_size, **kwargs)
        backend = self._tokenizer
        for token in ("<user_0>", "<item_0>", _stand_in(_LENGTH_WITHOUT_DIGITS + 1)):
            if backend.token_to_id(token) is not None:
                raise ValueError(
                    f"The base tokenizer already has the token {token!r}; start from one without user and item tokens"
                )
        digits = len(str(max(num_users, num_items, 1) - 1))
        stand_ins = [_stand_in(_LENGTH_WITHOUT_DIGITS + 1 + extra) for extra in range(digits)]
        # special, so that the backend's own flag for split_special_tokens covers them
        backend.add_special_tokens([AddedToken(text, lstrip=True, normalized=False) for text in stand_ins])
        base_length = backend.token_to_id(stand_ins[0])
        first_id = base_length if base_vocab_size is None else operator.index(base_vocab_size)
        if first_id < base_length:
            raise ValueError(
                f"base_vocab_size is {first_id}, but the base tokenizer has {base_length} tokens (special and added "
                "ones included); pass the number of rows of the backbone's embedding, and a tokenizer that fits it"
            )
        if any(backend.model.id_to_token(base_length + extra) is not None for extra in range(digits)):
            raise ValueError(
                f"The base tokenizer has gaps in its ids: {base_length} tokens, yet ids from {base_length} on; "
                "user and item tokens need a vocabulary numbered from 0 without gaps"
            )
        self._layout = _IdLayout(base_length, first_id, num_users, num_items)
        self._note_special_ids()
        self._after_id_token = self._probe_after_id_token()

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Leave tokenizer.json to the constructor; a subclass would otherwise get its vocabulary and merges alone."""
        return kwargs

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike | PreTrainedTokenizerBase,
        num_users: int,
        num_items: int,
        base_vocab_size: int | None = None,
        **kwargs: Any,
    ) -> "CLLM4RecTokenizer":
        """Add user and item tokens to a backbone's tokenizer.

        What the base tokenizer puts around a text (BOS, EOS) is kept. If it has no pad token, its EOS token pads.

        Args:
            backbone: a fast tokenizer (it is not changed), a directory, a Hub id, a GGUF file (a path, or
                `org/repo/file.gguf` on the Hub), or `package://PACKAGE/FILE` for a file in an installed package.
            num_users: number of user tokens I.
            num_items: number of item tokens J.
            base_vocab_size: rows N of the backbone's embedding; `None` takes the vocab_size of the backbone's
                configuration, or the tokenizer's length where there is none (always so for a tokenizer object).
            kwargs: where to find the backbone (`revision`, `cache_dir`, `token`, …), and arguments of the constructor
                (`pad_token`, `padding_side`, `split_special_tokens`, …).

        Returns:
            The tokenizer.

        Raises:
            ValueError: see the class; also if the base has no Rust tokenizer.
            FileNotFoundError: if a GGUF file or a package's file does not exist.
            ModuleNotFoundError: if the package is not installed.
        """
        hub = {name: kwargs.pop(name) for name in _HUB_KEYWORDS if name in kwargs}
        if isinstance(backbone, PreTrainedTokenizerBase):
            base = backbone
        else:
            path, gguf_file = _locate(os.fspath(backbone))
            if gguf_file is not None:
                hub["gguf_file"] = gguf_file
            base = AutoTokenizer.from_pretrained(path, **hub)
            if base_vocab_size is None:
                base_vocab_size = _embedding_rows(path, hub)
        if isinstance(base, cls):
            raise ValueError(
                f"The base tokenizer already has {base.num_users} user and {base.num_items} item tokens; "
                "start from the backbone's own tokenizer"
            )
        if not isinstance(getattr(base, "backend_tokenizer", None), Tokenizer):
            raise ValueError(
                f"{type(base).__name__} has no Rust tokenizer underneath; convert it to a tokenizer.json first"
            )
        settings = {name: getattr(base, name) for name in _CARRIED_OVER if getattr(base, name, None) is not None}
        special = dict(base.special_tokens_map)
        named = {name: special.pop(name) for name in cls.SPECIAL_TOKENS_ATTRIBUTES if name in special}
        if special:
            settings["model_specific_special_tokens"] = special
        if base.extra_special_tokens:
            settings["extra_special_tokens"] = base.extra_special_tokens
        if "pad_token" not in named and "eos_token" in named:
            named["pad_token"] = named["eos_token"]
        return cls(
            tokenizer_object=base.backend_tokenizer,
            num_users=num_users,
            num_items=num_items,
            base_vocab_size=base_vocab_size,
            **{**settings, **named, **kwargs},
        )

    # ---- ids by arithmetic

    @property
    def num_users(self) -> int:
        """Number of user tokens I."""
        return self._layout.num_users

    @property
    def num_items(self) -> int:
        """Number of item tokens J."""
        return self._layout.num_items

    @property
    def base_vocab_size(self) -> int:
        """Rows N of the backbone's embedding, which is the first user's id."""
        return self._layout.first_id

    @property
    def vocab_size(self) -> int:
        """The same N: the size of the vocabulary without user and item tokens."""
        return self._layout.first_id

    def __len__(self) -> int:
        return self._layout.first_id + self._layout.num_users + self._layout.num_items

    def user_token_id(self, user: Any) -> Any:
        """Token ids of users.

        Args:
            user: an index from 0 to I − 1, or a numpy array of such.

        Returns:
            int, or an int64 array of the same shape.

        Raises:
            ValueError: if an index is out of range.
            TypeError: if an index is no integer.
        """
        return self._id_token_ids("user", user)

    def item_token_id(self, item: Any) -> Any:
        """Token ids of items.

        Args:
            item: an index from 0 to J − 1, or a numpy array of such.

        Returns:
            int, or an int64 array of the same shape.

        Raises:
            ValueError: if an index is out of range.
            TypeError: if an index is no integer.
        """
        return self._id_token_ids("item", item)

    def token_to_user(self, token_id: int) -> int | None:
        """Index of the user whose token this is; `None` if it is no user's."""
        index = operator.index(token_id) - self._layout.first("user")
        return index if 0 <= index < self.num_users else None

    def token_to_item(self, token_id: int) -> int | None:
        """Index of the item whose token this is; `None` if it is no item's."""
        index = operator.index(token_id) - self._layout.first("item")
        return index if 0 <= index < self.num_items else None

    def _id_token_ids(self, kind: str, index: Any) -> Any:
        first = self._layout.first(kind)
        if not getattr(index, "ndim", 0):
            index = operator.index(index)
            self._layout.check(kind, index)
            return first + index
        if getattr(getattr(index, "dtype", None), "kind", None) not in ("i", "u"):
            raise TypeError(f"Expected {kind} indices as an int or a numpy array of integers, got {index!r}")
        if index.size:
            self._layout.check(kind, int(index.min()))
            self._layout.check(kind, int(index.max()))
        return index.astype("int64") + first

    # ---- the vocabulary

    def get_vocab(self) -> dict[str, int]:
        """All tokens and their ids, one entry for each user and item: large for large catalogs."""
        vocab = {token: index for token, index in super().get_vocab().items() if index < self._layout.base_length}
        for kind in ("user", "item"):
            first = self._layout.first(kind)
            vocab.update((f"<{kind}_{index}>", first + index) for index in range(self._layout.count(kind)))
        return vocab

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The base tokenizer's added tokens by id; ID tokens are not among them."""
        added = super().added_tokens_decoder
        return {index: token for index, token in added.items() if index < self._layout.base_length}

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Tokens of ids.

        Args:
            ids: an id, or ids one by one.
            skip_special_tokens: leave special tokens out.

        Returns:
            A token, or a list of tokens; `None` stands for an id that is no token's.
        """
        if isinstance(ids, Integral):
            return self._convert_id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._convert_id_to_token(index) for index in map(int, ids) if index not in skipped]

    def _convert_id_to_token(self, index: int) -> str | None:
        if index < self._layout.base_length:
            return super()._convert_id_to_token(index)
        return self._layout.token_of(index)

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        match = ID_TOKEN_PATTERN.fullmatch(token)
        if match is not None and self._layout is not _NO_IDS_YET:
            return self._layout.id_of(match)
        index = super()._convert_token_to_id_with_added_voc(token)
        return self.unk_token_id if index is not None and index >= self._layout.base_length else index

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Name special tokens; all of them must be tokens already, see `add_tokens` of transformers.

        Raises:
            ValueError: if one of them is new: the ids behind the base tokenizer's belong to users and items.
        """
        for value in special_tokens_dict.values():
            self._refuse_new_tokens([value] if isinstance(value, (str, AddedToken)) else value)
        return super().add_special_tokens(dict(special_tokens_dict), replace_extra_special_tokens)

    def _add_tokens(self, new_tokens: list[Any], special_tokens: bool = False) -> int:
        self._refuse_new_tokens(new_tokens)
        if self._layout is not _NO_IDS_YET:
            new_tokens = [token for token in new_tokens if not ID_TOKEN_PATTERN.fullmatch(str(token))]
        count = super()._add_tokens(new_tokens, special_tokens)
        self._note_special_ids()
        return count

    def _refuse_new_tokens(self, tokens: Iterable[Any]) -> None:
        if self._layout is _NO_IDS_YET:
            return
        for token in map(str, tokens):
            if ID_TOKEN_PATTERN.fullmatch(token):
                self.convert_tokens_to_ids(token)
                continue
            index = self._tokenizer.token_to_id(token)
            if index is None or index >= self._layout.base_length:
                raise ValueError(
                    f"Cannot add the token {token!r}: the ids from {self.base_vocab_size} on belong to users and items. "
                    "Add it to the base tokenizer (and a row to the backbone's embedding), then call from_backbone"
                )

    def _note_special_ids(self) -> None:
        self._special_ids = frozenset(index for index, token in self.added_tokens_decoder.items() if token.special)

    def train_new_from_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Train a new base tokenizer, then add user and item tokens to it by from_backbone")

    # ---- text to ids

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        is_split_into_words: bool = False,
        return_tensors: Any = None,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        options = {
            "is_split_into_words": is_split_into_words, "split_special_tokens": split_special_tokens, **kwargs,
        }  # fmt: skip
        # a marked chat is cut up by the base class, which calls this method again with each piece
        as_it_is = split_special_tokens or kwargs.get("sanitize_control_tokens")
        masked, masked_pair = (text, text_pair) if as_it_is else (self._mask(text), self._mask(text_pair))
        if masked == text and masked_pair == text_pair:
            return super()._encode_plus(text, text_pair, return_tensors=return_tensors, **options)
        is_batch = not isinstance(text, str)
        if is_split_into_words and is_batch:
            is_batch = bool(text) and isinstance(text[0], (list, tuple))
        if not is_batch:
            text, masked = [text], [masked]
            text_pair, masked_pair = ([text_pair], [masked_pair]) if text_pair else (None, None)
        encoded = super()._encode_plus(masked, masked_pair, return_tensors=None, **options)
        data, encodings = dict(encoded), []
        owners = data.get("overflow_to_sample_mapping", range(len(text)))
        for row, (encoding, owner) in enumerate(zip(encoded.encodings or [], owners, strict=True)):
            texts = (text[owner],) if text_pair is None else (text[owner], text_pair[owner])
            if text_pair is None and _is_pair(text[owner], is_split_into_words):
                texts = tuple(text[owner])
            restored: Any = _IdEncoding(encoding, texts, self._layout)
            data["input_ids"][row] = restored.ids
            encodings.append(restored)
        if not is_batch and return_tensors is None and not kwargs.get("return_overflowing_tokens"):
            data = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in data.items()}
        return BatchEncoding(data, encodings, tensor_type=return_tensors)

    def _mask(self, text: Any) -> Any:
        """A text, or a nest of texts, with a stand-in for each ID token."""
        if isinstance(text, str):
            return _ID_TOKEN_OR_STAND_IN.sub(self._mask_one, text)
        return type(text)(map(self._mask, text)) if type(text) in (list, tuple) else text

    def _mask_one(self, match: re.Match[str]) -> str:
        if match[1] is None:
            raise ValueError(
                "The text holds the noncharacters U+FDD0, U+FDD1 and U+FDD2 in a sequence that this tokenizer reserves; "
                "remove it, or pass split_special_tokens=True to read the text as plain text"
            )
        self._layout.id_of(match, " If it stands in somebody's text, pass split_special_tokens=True")
        return _stand_in(len(match[0]))

    # ---- ids to text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens, with a space before each ID token that is neither first nor behind white space.

        Args:
            tokens: tokens as `convert_ids_to_tokens` returns them.
        """
        return self._space_id_tokens(self._decode_tokens(tokens), self._after_id_token)

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        if all(index < self._layout.base_length for index in ids):
            return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        skipped = self._special_ids if skip_special_tokens else ()
        tokens = [self._convert_id_to_token(index) for index in ids if index not in skipped]
        text = self._decode_tokens([token for token in tokens if token is not None])
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        # the base class's rule: harmful to the text of BPE tokenizers
        is_bpe = type(self._tokenizer.model).__name__ == "BPE"
        harmful = is_bpe and not self.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        if clean_up_tokenization_spaces and not harmful:
            text = self.clean_up_tokenization(text)
        return self._space_id_tokens(text, self._after_id_token)

    def _decode_tokens(self, tokens: list[str]) -> str:
        """Text in which ID tokens are marked, so that a plain text `<item_7>` is not taken for one."""
        marked = (f"{_OPEN}{t[1:-1]}{_CLOSE}" if ID_TOKEN_PATTERN.fullmatch(t) else t for t in tokens)
        return super().convert_tokens_to_string(list(marked))

    @staticmethod
    def _space_id_tokens(text: str, after: str) -> str:
        parts: list[str] = []
        position = 0
        for match in _DECODED_ID_TOKEN.finditer(text):
            before = text[position : match.start()]
            parts.append(before)
            previous = before or (parts[-2] if len(parts) > 1 else "")
            separator = " " if previous and not previous[-1].isspace() else ""
            following = text[match.end() : match.end() + 1]
            space = match[2]
            if after == "prepended":
                space = ""
            elif after == "ambiguous":
                space = " " if following and following not in _CLOSING_PUNCTUATION and following != _OPEN else ""
            parts.append(f"{separator}<{match[1]}>{space}")
            position = match.end()
        parts.append(text[position:])
        return "".join(parts)

    def _probe_after_id_token(self) -> str:
        """How a text behind an ID token comes back when it is decoded.

        "exact": as it was. "prepended": with one space more. "ambiguous": the ids are the same with a space and
        without (as in T5, where every piece of text begins a word), so a space is put except before punctuation.
        """
        token = next((f"<{kind}_0>" for kind in ("user", "item") if self._layout.count(kind)), None)
        if token is None:
            return "exact"
        encoded = self([f"{token}:", f"{token} :"], add_special_tokens=False, split_special_tokens=False)
        without, with_space = encoded["input_ids"]
        if without == with_space:
            return "ambiguous"
        decoded = self._decode_tokens([token for token in self.convert_ids_to_tokens(without) if token is not None])
        return "prepended" if decoded.endswith(f"{_CLOSE} :") else "exact"

    # ---- files

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        # the base tokenizer as it was: without the stand-ins, and without the last call's truncation and padding
        state = json.loads(self._tokenizer.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < self._layout.base_length]
        state["truncation"] = state["padding"] = None
        path = os.path.join(save_directory, f"{filename_prefix}-" if filename_prefix else "") + "tokenizer.json"
        beside = f"{path}.part"
        Tokenizer.from_str(json.dumps(state)).save(beside)
        os.replace(beside, path)
        return (*file_names, path)


def _is_pair(sample: Any, is_split_into_words: bool) -> bool:
    """Whether a sample of a batch is a pair of texts, or of lists of words."""
    if is_split_into_words:
        return bool(sample) and not isinstance(sample[0], str)
    return not isinstance(sample, str)


def _locate(name_or_path: str) -> tuple[str, str | None]:
    """Directory or Hub id of a backbone, and the GGUF file in it or `None`; see `from_backbone`."""
    path = name_or_path
    if path.startswith(_PACKAGE_SCHEME):
        package, _, file = path.removeprefix(_PACKAGE_SCHEME).partition("/")
        # find_spec imports nothing as long as the name has no dot
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"The backbone {name_or_path!r} lies in the package {package!r}, which is not installed. "
                f"Install it: pip install {package.replace('_', '-')}"
            )
        path = os.path.join(next(iter(spec.submodule_search_locations)), file)
        if ".." in file.split("/") or not os.path.exists(path):
            raise FileNotFoundError(f"The package {package!r} is installed but holds no {file!r} ({name_or_path!r})")
    if not path.endswith(".gguf"):
        return path, None
    directory, file = os.path.split(path)
    if not os.path.isfile(path) and (os.path.isabs(path) or directory.count("/") != 1):
        raise FileNotFoundError(
            f"No GGUF file at {name_or_path!r}; expected a path, or 'org/repo/file.gguf' on the Hub"
        )
    return directory or ".", file


def _embedding_rows(path: str, hub: dict[str, Any]) -> int | None:
    """The backbone's vocab_size; `None` if there is no configuration, an error if there is one out of reach."""
    if "gguf_file" not in hub:
        options = {name: value for name, value in hub.items() if name != "trust_remote_code"}
        if cached_file(path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **options) is None:
            return None
    config = AutoConfig.from_pretrained(path, **hub)
    return getattr(config.get_text_config(), "vocab_size", None)
