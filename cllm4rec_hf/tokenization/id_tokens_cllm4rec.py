"""ID tokens by arithmetic: where their ids lie, how they are hidden from a Rust tokenizer and found again.

The Rust tokenizer knows a handful of stand-ins, one for every possible length of an ID token. Each ID token of a text
is replaced by the stand-in of its own length, so that all character positions stay what they are. Wherever a stand-in
comes out, the text at its position tells which ID token it was.
"""

import re
import sys
from typing import Any, NamedTuple

from tokenizers import Encoding

ID_TOKEN_PATTERN = re.compile(r"<(user|item)_(0|[1-9][0-9]*)>")
KINDS = ("user", "item")

# Noncharacters of Unicode, "not recommended for use in open interchange": no text should hold them.
_OPEN, _FILL, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_ID_TOKEN_OR_STAND_IN = re.compile(f"{ID_TOKEN_PATTERN.pattern}|{_OPEN}{_FILL}+{_CLOSE}")
_MARKED_ID_TOKEN = re.compile(f"{_OPEN}((?:user|item)_[0-9]+){_CLOSE}( ?)")
_SHORTEST = len("<user_0>")
_MAX_DIGITS = 18
_CLOSING_PUNCTUATION = frozenset(".,:;!?)]}'’%")


def stand_ins(num_users: int, num_items: int) -> list[str]:
    """One stand-in for each length of an ID token, shortest first."""
    digits = len(str(max(num_users, num_items, 1) - 1))
    return [_stand_in(_SHORTEST + extra) for extra in range(digits)]


def _stand_in(length: int) -> str:
    return f"{_OPEN}{_FILL * (length - 2)}{_CLOSE}"


class IdLayout(NamedTuple):
    """Which ids are whose.

    Args:
        base_length: tokens of the base tokenizer; from here on lie the Rust tokenizer's ids of the stand-ins.
        base_vocab_size: N, the first user's id, not less than `base_length`.
        num_users: I.
        num_items: J.
    """

    base_length: int
    base_vocab_size: int
    num_users: int
    num_items: int

    def number(self, kind: str) -> int:
        """How many tokens of a kind ("user" or "item") there are."""
        return self.num_users if kind == "user" else self.num_items

    def first(self, kind: str) -> int:
        """Id of the first token of a kind."""
        return self.base_vocab_size if kind == "user" else self.base_vocab_size + self.num_users

    def check(self, kind: str, index: int | str, remedy: str = "") -> None:
        """Raise ValueError unless there is a token of this kind and index."""
        number = self.number(kind)
        # int refuses strings of thousands of digits
        if len(str(index)) > _MAX_DIGITS or not 0 <= int(index) < number:
            shown = str(index) if len(str(index)) <= _MAX_DIGITS else f"{str(index)[:_MAX_DIGITS]}…"
            valid = f"<{kind}_0> to <{kind}_{number - 1}>" if number else "none, as this tokenizer has no such tokens"
            raise ValueError(f"<{kind}_{shown}> is out of range; the valid {kind} tokens are {valid}.{remedy}")

    def id_of(self, match: re.Match[str]) -> int:
        """Id of a match of `ID_TOKEN_PATTERN`.

        Raises:
            ValueError: if there is no such user or item.
        """
        self.check(match[1], match[2])
        return self.first(match[1]) + int(match[2])

    def token_of(self, token_id: int) -> str | None:
        """The ID token that has this id; `None` if there is none."""
        for kind in KINDS:
            index = token_id - self.first(kind)
            if 0 <= index < self.number(kind):
                return f"<{kind}_{index}>"
        return None

    def mask(self, text: Any) -> Any:
        """A text with a stand-in for each ID token; lists and tuples of texts likewise, anything else as it is.

        Raises:
            ValueError: if an ID token is out of range, or if the text holds a stand-in.
        """
        if isinstance(text, str):
            return _ID_TOKEN_OR_STAND_IN.sub(self._mask_one, text)
        return type(text)(map(self.mask, text)) if type(text) in (list, tuple) else text

    def _mask_one(self, match: re.Match[str]) -> str:
        if match[1] is None:
            raise ValueError(
                "The text holds the noncharacters U+FDD0, U+FDD1 and U+FDD2 in an order that the tokenizer reserves. "
                "Remove them, or pass split_special_tokens=True to read the text as plain text"
            )
        self.check(match[1], match[2], " If it stands in somebody's text, pass split_special_tokens=True")
        return _stand_in(len(match[0]))


# for the time before the ID tokens exist: all ids are the base tokenizer's
NO_ID_TOKENS = IdLayout(sys.maxsize, sys.maxsize, 0, 0)


class IdEncoding:
    """An encoding of a masked text with the ID tokens back in their places; all else is the Rust encoding's own.

    Args:
        encoding: what the Rust tokenizer made of the masked text or texts.
        texts: the unmasked text, or the two of a pair; lists of words if that is what was encoded.
        layout: which ids are whose.
    """

    def __init__(self, encoding: Encoding, texts: tuple[Any, ...], layout: IdLayout):
        self._encoding, self._texts, self._layout = encoding, texts, layout

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._encoding, self._texts, self._layout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoding, name)

    def __len__(self) -> int:
        return len(self._encoding)

    def __repr__(self) -> str:
        return repr(self._encoding)

    @property
    def ids(self) -> list[int]:
        """Token ids, [T]."""
        ids = self._encoding.ids
        for place, match in self._id_tokens().items():
            ids[place] = self._layout.id_of(match)
        return ids

    @property
    def tokens(self) -> list[str]:
        """Tokens, [T]."""
        tokens = self._encoding.tokens
        for place, match in self._id_tokens().items():
            tokens[place] = match[0]
        return tokens

    @property
    def overflowing(self) -> list["IdEncoding"]:
        """What truncation cut off."""
        return [type(self)(encoding, self._texts, self._layout) for encoding in self._encoding.overflowing]

    def _id_tokens(self) -> dict[int, re.Match[str]]:
        """Places of the stand-ins, with the ID tokens that stand there in the text."""
        base_length = self._layout.base_length
        ids = self._encoding.ids
        places = [place for place, token_id in enumerate(ids) if token_id >= base_length]
        if not places:
            return {}
        offsets, words, sequences = self._encoding.offsets, self._encoding.word_ids, self._encoding.sequence_ids
        found = {}
        for place in places:
            text = self._texts[sequences[place] or 0]
            if not isinstance(text, str):
                text = text[words[place]]
            # the start may include white space that the token has absorbed; the end is exact
            end = offsets[place][1]
            start = end - _SHORTEST - (ids[place] - base_length)
            match = ID_TOKEN_PATTERN.fullmatch(text, start, end) if start >= 0 else None
            if match is None:
                raise RuntimeError(
                    f"Expected an ID token at {start}:{end} of {text!r}; the base tokenizer reports wrong offsets"
                )
            found[place] = match
        return found


def mark(token: str) -> str:
    """An ID token in a form that no decoder changes and no plain text has; any other token as it is."""
    return f"{_OPEN}{token[1:-1]}{_CLOSE}" if ID_TOKEN_PATTERN.fullmatch(token) else token


def unmark(text: str, after: str) -> str:
    """Decoded text with its marked ID tokens spelled out, and a space before each unless at the start or after one.

    Args:
        text: decoded text.
        after: what stands behind an ID token, see `after_id_token`.
    """
    parts: list[str] = []
    position, last = 0, ""
    for match in _MARKED_ID_TOKEN.finditer(text):
        between = text[position : match.start()]
        last = between[-1:] or last
        position = match.end()
        following = text[position : position + 1]
        space = match[2]
        if after == "prepended":
            space = ""
        elif after == "ambiguous" and not following.isspace():
            space = " " if following and following not in _CLOSING_PUNCTUATION else ""
        separator = " " if last and not last.isspace() else ""
        token = f"{separator}<{match[1]}>{space if following != _OPEN else ''}"
        parts += (between, token)
        last = token[-1]
    return "".join((*parts, text[position:]))


def after_id_token(ids: list[int], ids_with_space: list[int], decoded: str) -> str:
    """How a text behind an ID token comes back when it is decoded.

    Args:
        ids: ids of an ID token and a colon.
        ids_with_space: the same with a space between.
        decoded: the former decoded, ID tokens marked.

    Returns:
        "exact": as it was. "prepended": with one space more. "ambiguous": the ids are the same with a space and
        without, as in T5, where every piece of text begins a word; a space will be put except before punctuation.
    """
    if ids == ids_with_space:
        return "ambiguous"
    return "prepended" if decoded.endswith(f"{_CLOSE} :") else "exact"
