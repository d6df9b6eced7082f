"""The soft+hard prompts: words and ID tokens, as token ids."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INTERACTION = "<user_0> has interacted with"
REVIEW = "<user_0> writes the following review for <item_0>:"
ITEM_TEXT = "The description of <item_0> is:"
USER_TEXT = "The profile of <user_0> is:"
RECOMMENDATION = "<user_0> has interacted with <item_0>, <user_0> will interact with"

# a history whose user has no token of its own is introduced by the word instead
_ANONYMOUS = "The user"
_ANONYMOUS_AGAIN = " the user"


@dataclass(frozen=True)
class _Slots:
    """A tokenized template and where its ID tokens stand."""

    ids: np.ndarray
    users: np.ndarray
    items: np.ndarray


class PromptBuilder:
    """Builds prompts as token ids; each template's words are tokenized once, ID tokens are filled in by arithmetic.

    Equal to tokenizing the prompt's text: ID tokens are hard borders for the tokenizer. Special tokens that the
    backbone's tokenizer puts in front (a LLaMA's `<s>`) stand in front of the prompt; those it puts behind (a T5's
    `</s>`) close an encoder's prompt and are left out where the main text follows without a gap.

    Args:
        tokenizer: a `CLLM4RecTokenizer`.
        is_encoder_decoder: whether prompts go to an encoder of their own.
    """

    def __init__(self, tokenizer: Any, is_encoder_decoder: bool = False):
        self.tokenizer = tokenizer
        self.is_encoder_decoder = is_encoder_decoder
        self.num_users = tokenizer.num_users
        self.num_items = tokenizer.num_items
        self.first_user_id = tokenizer.base_vocab_size
        self.first_item_id = tokenizer.base_vocab_size + tokenizer.num_users
        self.pad_id = tokenizer.pad_token_id or 0
        prefix, suffix = self._special_tokens()
        self._prefix = prefix
        self._suffix = suffix if is_encoder_decoder else []
        # whether a text's first word gets its word border from the tokenizer itself (Metaspace) or from a space
        self._needs_space = self._encode("a") + self._encode("word") != self._encode("a word")
        self._templates = {
            "review": self._slots(REVIEW),
            "item": self._slots(ITEM_TEXT),
            "user": self._slots(USER_TEXT),
        }
        self._interaction = {True: self._pieces(INTERACTION), False: self._pieces(INTERACTION, anonymous=True)}
        self._recommendation = {
            True: self._pieces(RECOMMENDATION),
            False: self._pieces(RECOMMENDATION, anonymous=True),
        }

    # ---- public

    def content(self, kind: str, user: int | None, item: int | None) -> np.ndarray:
        """Prompt of a content document.

        Args:
            kind: `review`, `item` or `user`.
            user: user index, for reviews and user texts.
            item: item index, for reviews and item texts.

        Returns:
            [T] int64.
        """
        if kind not in self._templates:
            raise ValueError(f"Unknown kind of text {kind!r}; expected one of {', '.join(self._templates)}")
        slots = self._templates[kind]
        ids = slots.ids.copy()
        if len(slots.users):
            ids[slots.users] = self._user_id(user)
        if len(slots.items):
            ids[slots.items] = self.item_ids(np.asarray([item], dtype=np.int64))
        return ids

    def interaction(self, user: int | None) -> np.ndarray:
        """Prompt of an interaction document, `<user_i> has interacted with`, [T] int64."""
        return self._fill_user(np.concatenate(self._interaction[user is not None]), user)

    def recommendation(self, user: int | None, items: Sequence[int] | np.ndarray) -> np.ndarray:
        """Prompt of the recommendation task, [T] int64.

        Args:
            user: user index; None for a history without a user token.
            items: item indices of the history, oldest first; may be empty.
        """
        head, tail = self._recommendation[user is not None]
        return np.concatenate([self._fill_user(head, user), self.item_ids(items), self._fill_user(tail, user)])

    @property
    def recommendation_overhead(self) -> int:
        """Tokens of the longest recommendation prompt without its items."""
        return max(len(head) + len(tail) for head, tail in self._recommendation.values())

    @property
    def interaction_overhead(self) -> int:
        """Tokens of the longest interaction prompt without its items."""
        return max(len(head) + len(tail) for head, tail in self._interaction.values())

    @property
    def content_overhead(self) -> int:
        """Tokens of the longest content prompt."""
        return max(len(slots.ids) for slots in self._templates.values())

    def item_ids(self, items: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token ids of items, [n] int64.

        Raises:
            ValueError: if an item index is out of range.
        """
        items = np.asarray(items, dtype=np.int64)
        if items.size and (items.min() < 0 or items.max() >= self.num_items):
            wrong = items.max() if items.max() >= self.num_items else items.min()
            raise ValueError(
                f"Item index {wrong} is out of range; the catalog has {self.num_items} items "
                f"(0 to {self.num_items - 1})"
            )
        return items + self.first_item_id

    def main_texts(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Tokens of plain texts; what looks like an ID or special token in them stays plain text.

        Args:
            texts: the texts.
            max_length: longer texts are cut at their end.

        Returns:
            Token ids of each text, without special tokens.
        """
        if self._needs_space:
            texts = [f" {text}" for text in texts]
        return self.tokenizer.plain_ids(texts, max_length)

    def fingerprint(self) -> str:
        """Hash of everything that token ids of prompts and texts depend on."""
        parts = [self.tokenizer.fingerprint(), self._needs_space, self.is_encoder_decoder]
        parts += [slots.ids.tolist() for slots in self._templates.values()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    # ---- templates

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        bare = self._encode("word")
        full = self.tokenizer("word")["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []

    def _slots(self, template: str) -> _Slots:
        ids = np.asarray(self._prefix + self._encode(template) + self._suffix, dtype=np.int64)
        is_item = ids >= self.first_item_id
        return _Slots(ids, np.flatnonzero((ids >= self.first_user_id) & ~is_item), np.flatnonzero(is_item))

    def _pieces(self, template: str, anonymous: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What stands before and after the list of items; user slots hold the first user's id."""
        if anonymous:
            first, _, rest = template.partition("<user_0>")
            template = first + _ANONYMOUS + rest.replace(" <user_0>", _ANONYMOUS_AGAIN)
        before, _, after = template.partition(" <item_0>")
        # the piece after an ID token has to be tokenized behind one, as it is in the text
        behind = self._encode(f"<item_0>{after}")[1:] if after else []
        head = np.asarray(self._prefix + self._encode(before), dtype=np.int64)
        return head, np.asarray(behind + self._suffix, dtype=np.int64)

    def _fill_user(self, ids: np.ndarray, user: int | None) -> np.ndarray:
        if user is None:
            return ids
        return np.where(ids >= self.first_user_id, self._user_id(user), ids)

    def _user_id(self, user: int | None) -> int:
        if user is None or not 0 <= user < self.num_users:
            raise ValueError(
                f"User index {user} is out of range; there are {self.num_users} users (0 to {self.num_users - 1})"
            )
        return self.first_user_id + int(user)
