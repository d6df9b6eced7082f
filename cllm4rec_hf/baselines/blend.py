"""A blend of two models: the text-aware one without training that validates best, and Mult-VAE."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.prepared import PreparedData
from . import storage
from .base import Baseline
from .ease import MAX_ITEMS
from .selection import Selection, grid_of, select

logger = logging.getLogger(__name__)

MEMBERS_FOLDER = "members"
_EASE, _SVD, _NEIGHBOURS, _VAE = "ease-text", "text-svd", "tfidf-neighbours", "mult-vae"


class Blend(Baseline):
    """score = (1 − w) z(first) + w z(second), z: scores less their mean over the catalog, in standard deviations.

    Args:
        members: two fitted competitors.
        weight: w, from 0 to 1.

    Raises:
        ValueError: if there are not two members, or w is out of range.
    """

    model_type = "blend"
    GRID = grid_of(weight=tuple(k / 10 for k in range(11)))
    PARTS = (_EASE, _SVD, _NEIGHBOURS, _VAE)

    def __init__(self, members: tuple[Any, Any], weight: float = 0.5):
        if len(members) != 2 or not 0 <= weight <= 1:
            raise ValueError(f"Expected two members and a weight from 0 to 1; got {len(members)} and {weight}")
        self.members, self.weight = tuple(members), float(weight)

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "Blend":
        """Fit the members, EASE with text rows and Mult-VAE, with their default settings; see `Baseline.fit_to`."""
        from .registry import baseline_class

        members = tuple(baseline_class(name).fit_to(data, seed) for name in (_EASE, _VAE))
        return cls(members, **settings)

    @classmethod
    def choose(
        cls,
        data: PreparedData,
        seed: int = 0,
        grid: Iterable[Mapping[str, Any]] | None = None,
        members: tuple[Any, Any] | None = None,
        **settings: Any,
    ) -> Selection:
        """Choose the members and their settings, then the weight, on validation; see `Baseline.choose`.

        The first member is EASE with text rows, this blended with TF-IDF neighbours, or SVD with text rows, which is
        alone where the catalog is too large for EASE.

        Args:
            data: prepared data.
            seed: seed of the members.
            grid: weights to try, `GRID` by default.
            members: two fitted models, where they have been chosen already.
            settings: further settings.

        Returns:
            The best blend; where members were chosen here, its settings name them and tell theirs.
        """
        from .registry import baseline_class

        if members is None:
            chosen = [(_SVD, baseline_class(_SVD).choose(data, seed))]
            if data.num_items <= MAX_ITEMS:
                ease = baseline_class(_EASE).choose(data, seed)
                neighbours = baseline_class(_NEIGHBOURS).fit_to(data, seed)
                # a blend itself: words add to EASE with text rows what its inverse smooths away
                with_words = cls.choose(data, seed, grid, (ease.model, neighbours))
                with_words = replace(with_words, settings={**ease.settings, **with_words.settings})
                chosen += [(_EASE, ease), (f"{_EASE} and {_NEIGHBOURS}", with_words)]
            else:
                logger.warning(
                    "EASE is left out of the blend: %d items are more than its %d", data.num_items, MAX_ITEMS
                )
            name, first = max(chosen, key=lambda named: named[1].score)
            second = baseline_class(_VAE).choose(data, seed)
            blended = cls.choose(data, seed, grid, (first.model, second.model), **settings)
            told = {name: first.settings, _VAE: second.settings}
            fits = sum(selection.fits for _, selection in chosen) + second.fits
            return replace(blended, settings={**blended.settings, **told}, further_fits=fits)
        points = [{**settings, **point} for point in (cls.GRID if grid is None else grid)]
        return select(lambda **point: cls(members, **point), points, data, cls.__name__)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """The weighted standardised scores, [B, J] float32; see `Baseline.score`."""
        first, second = (standardised(member.score(users, histories)) for member in self.members)
        return ((1 - self.weight) * first + self.weight * second).astype(np.float32)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json with the weight, and each member into a folder of its own."""
        for position, member in enumerate(self.members):
            member.save_pretrained(Path(directory) / MEMBERS_FOLDER / str(position))
        storage.save(directory, self.model_type, {"weight": self.weight}, {})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "Blend":
        """Read what `save_pretrained` wrote.

        Raises:
            CLLM4RecError: if no such model lies there.
        """
        from .registry import load_baseline

        settings, _ = storage.load(directory, cls.model_type)
        first, second = (load_baseline(Path(directory) / MEMBERS_FOLDER / str(position)) for position in range(2))
        return cls((first, second), **settings)


def standardised(scores: np.ndarray) -> np.ndarray:
    """Each row less its mean, divided by its standard deviation (rows of equal scores become 0)."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    return centred / np.maximum(scores.std(axis=1, keepdims=True), 1e-12)
