"""A language model that is asked about one candidate at a time, as TALLRec does it (Bao et al., 2023)."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.catalog import Catalog
from ..data.item_texts import item_documents
from ..data.prepared import PreparedData
from ..errors import DataError
from ..evaluation.evaluator import Ranker
from ..evaluation.ranking import top_k
from .language_model import LanguageModelBaseline, LanguageModelConfig, cache_name
from .neural import draw_absent
from .selection import grid_of, is_main_process

INSTRUCTION = "The user enjoyed these items, the oldest first:"
QUESTION = "\nWill the user enjoy"
ANSWER = '"? Answer Yes or No.\nAnswer:'


@dataclass(kw_only=True)
class YesNoConfig(LanguageModelConfig):
    """Settings of the scorer.

    Args:
        num_candidates: candidates that are scored for a user; no other item can be recommended.
        negatives: random items that the user lacks, for each positive pair.
        pairs_per_user: positive pairs drawn for each user in an epoch.
        name_length: tokens of an item's name that are read.
        candidates_per_pass: candidates that go through the model at once.
    """

    model_type = "yes-no"

    max_length: int = 256
    num_candidates: int = 100
    negatives: int = 1
    pairs_per_user: int = 1
    name_length: int = 24
    candidates_per_pass: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_candidates", "negatives", "pairs_per_user", "name_length", "candidates_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


class YesNo(LanguageModelBaseline):
    """score(u, j) = logit(Yes) − logit(No) after "The user enjoyed …. Will the user enjoy j? Answer Yes or No."

    Trained by the logistic loss of that difference, on one item of a user's history (Yes) and items that the user
    lacks (No) beside the rest of the history. Items are named by their titles, or by the first words of what training
    may read about them. The whole catalog cannot be asked about, so candidates come from something cheap: `retriever`,
    anything with the `score` of a baseline, or popularity where that is None. It is not saved with the model.

    The history is the beginning of all prompts of a user: its keys and values are computed once, each candidate adds
    its own few tokens.

    Difference from TALLRec: its loss runs over the vocabulary, this one over the two answers.
    """

    config_class = YesNoConfig
    ARRAYS = ("popularity",)
    GRID = grid_of(learning_rate=(3e-4, 1e-3))

    popularity: np.ndarray
    catalog: Catalog
    retriever: Ranker | None = None

    def __init__(self, config: YesNoConfig, tokenizer: Any, language_model: Any):
        super().__init__(config, tokenizer, language_model)
        yes, no = self.tokens(" Yes"), self.tokens(" No")
        same = next(k for k, pair in enumerate(zip(yes, no, strict=False)) if pair[0] != pair[1])
        # what both answers begin with belongs to the question
        self.yes, self.no = yes[same], no[same]
        self._answer = self.tokens(ANSWER) + yes[:same]
        self._instruction, self._question = self.tokens(INSTRUCTION), self.tokens(QUESTION)
        self._open, self._close = self.tokens(' "'), self.tokens('"')
        self._names: list[list[int]] | None = None

    @classmethod
    def read(cls, config: YesNoConfig, data: PreparedData, seed: int) -> dict[str, Any]:
        """The items' names and popularity.

        Raises:
            DataError: if an item has neither a title nor a text.
        """
        titles = data.items["title"]
        documents = item_documents(data)
        names = [title or document for title, document in zip(titles, documents, strict=True)]
        if not any(names):
            raise DataError(
                "YesNo needs texts of items to name them by, and there are none; prepare the data with "
                "--items and --item-title-column, or --text-column (reviews)"
            )
        # more words than any name's tokens would be saved for nothing
        names = [" ".join(name.split()[: config.name_length]) for name in names]
        counts = np.bincount(data.histories("train").items, minlength=data.num_items)
        return {"catalog": Catalog(list(data.items["item_id"]), names), "popularity": counts.astype(np.float32)}

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json, model.safetensors, language_model/, and the items' names as a catalog."""
        self.catalog.save_pretrained(directory)
        super().save_pretrained(directory)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "YesNo":
        """Read what `save_pretrained` wrote; see `LanguageModelBaseline.from_pretrained`."""
        model = super().from_pretrained(directory)
        model.catalog = Catalog.from_pretrained(Path(directory))
        return model

    # ---- training

    def examples(self, data: PreparedData, split: str) -> list[dict[str, Any]]:
        """A row for each positive pair: the history, and the item that it is about (training draws one of its own)."""
        train, held_out = data.histories("train"), data.histories(split)
        rows: list[dict[str, Any]] = []
        for user in range(len(train)):
            history = train[user].tolist()
            if split != "train":
                rows += [{"history": history, "target": item} for item in held_out[user].tolist()]
            elif len(history) > 1:
                rows += [{"history": history, "target": None}] * self.config.pairs_per_user
        return [{**row, "length": len(row["history"])} for row in rows]

    def collate(self, rows: list[dict[str, Any]], generator: np.random.Generator) -> dict[str, Any]:
        """Prompts and answers, 1 for Yes; see `LanguageModelBaseline.collate`."""
        texts, labels = [], []
        for row in rows:
            history, target = np.asarray(row["history"], dtype=np.int64), row["target"]
            owned = history
            if target is None:
                place = int(generator.integers(len(history)))
                target, history = int(history[place]), np.delete(history, place)
            else:
                owned = np.append(history, target)
            # epochs are compared on the same questions
            source = generator if row["target"] is None else np.random.Generator(np.random.PCG64(owned.tolist()))
            absent = draw_absent(owned, self.config.negatives, self.config.num_items, source)
            for item in (target, *absent.tolist()):
                texts.append(self._prefix(history) + self._suffix(item))
                labels.append(float(item == target))
        return {**self.padded(texts), "labels": torch.tensor(labels), **self._last_state_only()}

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """Logistic loss of the differences, mean over the pairs of the whole step."""
        total = F.binary_cross_entropy_with_logits(self._differences(outputs), labels, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    # ---- prediction

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Differences for the candidates, −inf for all other items, [B, J] float32; see `Baseline.score`."""
        candidates = self.candidates(users, histories)
        found = self.score_candidates(histories, candidates)
        scores = np.full((len(histories), self.config.num_items), -np.inf, dtype=np.float32)
        rows, places = np.nonzero(candidates >= 0)
        scores[rows, candidates[rows, places]] = found[rows, places]
        return scores

    def candidates(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """The retriever's best items that are not in the histories, [B, num_candidates] int64; −1 for none.

        Args:
            users: [B] int user indices.
            histories: item indices of each, oldest first.
        """
        if self.retriever is None:
            scores = np.tile(self.popularity, (len(histories), 1))
        else:
            scores = self.retriever.score(users, histories)
        return top_k(scores, histories, min(self.config.num_candidates, scores.shape[1]))[0]

    @torch.inference_mode()
    def score_candidates(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """logit(Yes) − logit(No) of some candidates.

        Args:
            histories: item indices of each of B histories, oldest first.
            candidates: [B, n] int item indices; −1 for none.

        Returns:
            [B, n] float32; −inf where there is no candidate.
        """
        from tqdm.auto import tqdm
        from transformers import DynamicCache

        model: Any = self.language_model
        out = np.full(candidates.shape, -np.inf, dtype=np.float32)
        name, step = cache_name(model), self.config.candidates_per_pass
        bar = tqdm(histories, "Asking about candidates", unit="user", delay=2, disable=not is_main_process())
        for row, history in enumerate(bar):
            prefix = torch.tensor([self._prefix(history)], device=self.device)
            shared = DynamicCache(config=model.config)
            model(input_ids=prefix, logits_to_keep=torch.tensor([-1]), **{name: shared})
            places = np.flatnonzero(candidates[row] >= 0)
            for chosen in np.split(places, range(step, len(places), step)):
                batch = self.padded([self._suffix(item) for item in candidates[row][chosen]])
                # the gap between the history and a short candidate is masked, and positions do not count it
                batch["attention_mask"] = F.pad(batch["attention_mask"], (prefix.shape[1], 0), value=1)
                batch["position_ids"] += prefix.shape[1]
                batch = {key: value.to(self.device) for key, value in batch.items()}
                cache = copy.deepcopy(shared)
                cache.batch_repeat_interleave(len(chosen))
                outputs = model(**batch, **{name: cache}, **self._last_state_only())
                out[row, chosen] = self._differences(outputs).cpu().numpy()
        return out

    def _last_state_only(self) -> dict[str, Any]:
        # by an index: a slice is not contiguous, and torch would copy the head's matrix for each row of it
        return {"output_hidden_states": True, "logits_to_keep": torch.tensor([-1])}

    def _differences(self, outputs: Any) -> Tensor:
        """logit(Yes) − logit(No) at the last position, [B] float32: logits in bfloat16 would tie."""
        head = self.language_model.get_output_embeddings()
        direction = head.weight[self.yes].float() - head.weight[self.no].float()
        difference = outputs.hidden_states[-1][:, -1].float() @ direction
        if getattr(head, "bias", None) is not None:
            difference = difference + head.bias[self.yes].float() - head.bias[self.no].float()
        return difference

    def _prefix(self, history: np.ndarray) -> list[int]:
        """What the prompts of a history share; the oldest items are left out where the candidate would not fit."""
        ids = [*self.start, *self._instruction]
        room = self.config.max_length - len(ids) - len(self._question) - len(self._open) - len(self._answer)
        room -= self.config.name_length
        pieces: list[list[int]] = []
        for item in history[::-1]:
            piece = [*self._open, *self._name(item), *self._close]
            room -= len(piece)
            if room < 0:
                break
            pieces.append(piece)
        for piece in reversed(pieces):
            ids += piece
        return [*ids, *self._question]

    def _suffix(self, item: int) -> list[int]:
        return [*self._open, *self._name(item), *self._answer]

    def _name(self, item: int) -> list[int]:
        if self._names is None:
            # "unknown" stands for an item without title and text
            self._names = [self.tokens(name or "unknown")[: self.config.name_length] for name in self.catalog.titles]
        return self._names[item]
