"""A tokenizer in which user and item tokens take no memory and no loading time: their ids are computed, not stored."""

import hashlib
import json
import operator
import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers import __version__ as tokenizers_version
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

from .base_tokenizer_cllm4rec import HUB_KEYWORDS, load_base, settings_of
from .id_tokens_cllm4rec import (
    ID_TOKEN_PATTERN,
    KINDS,
    NO_ID_TOKENS,
    IdEncoding,
    IdLayout,
    after_id_token,
    mark,
    stand_ins,
    unmark,
)

__all__ = ["ID_TOKEN_PATTERN", "CLLM4RecTokenizer"]


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

    # saving copies this module and its siblings beside the checkpoint, for loading without the package
    _auto_class = "AutoTokenizer"
    _tokenizer: Any
    _layout: IdLayout = NO_ID_TOKENS
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
        hidden = stand_ins(num_users, num_items)
        for token in ("<user_0>", "<item_0>", hidden[0]):
            if backend.token_to_id(token) is not None:
                raise ValueError(
                    f"The base tokenizer already has the token {token!r}; start from one without user and item tokens"
                )
        largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        # special, so that the backend's own flag for split_special_tokens covers them
        backend.add_special_tokens([AddedToken(text, lstrip=True, normalized=False) for text in hidden])
        base_length = backend.token_to_id(hidden[0])
        if largest >= base_length:
            raise ValueError(
                f"The base tokenizer has gaps in its ids: {base_length} tokens, but ids up to {largest}; "
                "user and item tokens need a vocabulary numbered from 0 without gaps"
            )
        first_id = base_length if base_vocab_size is None else operator.index(base_vocab_size)
        if first_id < base_length:
            raise ValueError(
                f"base_vocab_size is {first_id}, but the base tokenizer has {base_length} tokens (special and added "
                "ones included); pass the number of rows of the backbone's embedding, and a tokenizer that fits it"
            )
        self._layout = IdLayout(base_length, first_id, num_users, num_items)
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
        hub = {name: kwargs.pop(name) for name in HUB_KEYWORDS if name in kwargs}
        if isinstance(backbone, PreTrainedTokenizerBase):
            base = backbone
        else:
            base, rows = load_base(os.fspath(backbone), hub, with_rows=base_vocab_size is None)
            base_vocab_size = rows if base_vocab_size is None else base_vocab_size
        if isinstance(base, cls):
            raise ValueError(
                f"The base tokenizer already has {base.num_users} user and {base.num_items} item tokens; "
                "start from the backbone's own tokenizer"
            )
        sizes = {"num_users": num_users, "num_items": num_items, "base_vocab_size": base_vocab_size}
        return cls(**{**settings_of(base), **kwargs, **sizes})

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
        return self._layout.base_vocab_size

    @property
    def vocab_size(self) -> int:
        """The same N: the size of the vocabulary without user and item tokens."""
        return self._layout.base_vocab_size

    def __len__(self) -> int:
        return self.base_vocab_size + self.num_users + self.num_items

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
        for kind in KINDS:
            first = self._layout.first(kind)
            vocab.update((f"<{kind}_{index}>", first + index) for index in range(self._layout.number(kind)))
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
        if match is not None and self._layout is not NO_ID_TOKENS:
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
        if self._layout is not NO_ID_TOKENS:
            new_tokens = [token for token in new_tokens if not ID_TOKEN_PATTERN.fullmatch(str(token))]
        count = super()._add_tokens(new_tokens, special_tokens)
        self._note_special_ids()
        return count

    def _refuse_new_tokens(self, tokens: Iterable[Any]) -> None:
        if self._layout is NO_ID_TOKENS:
            return
        for token in map(str, tokens):
            if ID_TOKEN_PATTERN.fullmatch(token):
                self.convert_tokens_to_ids(token)
                continue
            index = self._tokenizer.token_to_id(token)
            if index is None or index >= self._layout.base_length:
                raise ValueError(
                    f"Cannot add the token {token!r}: the ids from {self.base_vocab_size} on belong to users and "
                    "items. Add it to the base tokenizer, and a row to the backbone's embedding, before from_backbone"
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

    def _encode_plus(  # type: ignore[override]
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
        options = dict(kwargs, is_split_into_words=is_split_into_words, split_special_tokens=split_special_tokens)
        masked, masked_pair = text, text_pair
        # a marked chat is cut up by the base class, which calls this method again with each piece
        if not split_special_tokens and not kwargs.get("sanitize_control_tokens"):
            masked, masked_pair = self._layout.mask(text), self._layout.mask(text_pair)
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
            restored: Any = IdEncoding(encoding, texts, self._layout)
            data["input_ids"][row] = restored.ids
            encodings.append(restored)
        if not is_batch and return_tensors is None and not kwargs.get("return_overflowing_tokens"):
            data = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in data.items()}
        return BatchEncoding(data, encodings, tensor_type=return_tensors)

    def plain_ids(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Token ids of many plain texts: what a call with `split_special_tokens=True` gives, in less time.

        Args:
            texts: the texts; nothing in them becomes an ID or a special token.
            max_length: longer texts are cut.

        Returns:
            Token ids of each text, without special tokens.
        """
        self.set_truncation_and_padding(
            PaddingStrategy.DO_NOT_PAD, TruncationStrategy.LONGEST_FIRST, max_length, 0, None, None
        )
        self._tokenizer.encode_special_tokens = True
        # without offsets, which nobody asks for here
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    # ---- ids to text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens, with a space before each ID token that is neither first nor behind white space.

        Args:
            tokens: tokens as `convert_ids_to_tokens` returns them.
        """
        return unmark(self._decode_tokens(tokens), self._after_id_token)

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
        return unmark(text, self._after_id_token)

    def _decode_tokens(self, tokens: list[str]) -> str:
        """Text in which ID tokens are marked, so that a plain text `<item_7>` is not taken for one."""
        return super().convert_tokens_to_string([mark(token) for token in tokens])

    def _probe_after_id_token(self) -> str:
        token = next((f"<{kind}_0>" for kind in KINDS if self._layout.number(kind)), None)
        if token is None:
            return "exact"
        encoded = self([f"{token}:", f"{token} :"], add_special_tokens=False, split_special_tokens=False)
        ids, ids_with_space = encoded["input_ids"]
        return after_id_token(ids, ids_with_space, self._decode_tokens(self.convert_ids_to_tokens(ids)))

    # ---- files

    def fingerprint(self) -> str:
        """Hash of what the token ids of a text depend on: the base tokenizer, its settings, the numbers of tokens."""
        parts = [self._base_state(), self._layout.base_vocab_size, self.num_users, self.num_items]
        parts += [self.truncation_side, tokenizers_version]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _base_state(self) -> dict[str, Any]:
        """The base tokenizer as it was: without the stand-ins, and without the last call's truncation and padding."""
        state: dict[str, Any] = json.loads(self._tokenizer.to_str())
        state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < self._layout.base_length]
        state["truncation"] = state["padding"] = None
        return state

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        path = os.path.join(save_directory, f"{filename_prefix}-" if filename_prefix else "") + "tokenizer.json"
        beside = f"{path}.part"
        Tokenizer.from_str(json.dumps(self._base_state())).save(beside)
        os.replace(beside, path)
        return (*file_names, path)


def _is_pair(sample: Any, is_split_into_words: bool) -> bool:
    """Whether a sample of a batch is a pair of texts, or of lists of words."""
    if is_split_into_words:
        return bool(sample) and not isinstance(sample[0], str)
    return not isinstance(sample, str)
