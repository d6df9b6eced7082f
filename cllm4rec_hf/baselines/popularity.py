"""Popularity: the same ranking for everybody."""

import os

import numpy as np

from ..data.prepared import Histories
from . import storage


class Popularity:
    """Ranks items by their number of training interactions."""

    counts: np.ndarray | None = None

    def fit(self, histories: Histories) -> "Popularity":
        """Count the interactions of each item.

        Args:
            histories: training histories.

        Returns:
            self.
        """
        self.counts = np.bincount(histories.items, minlength=histories.num_items).astype(np.float32)
        return self

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of all items.

        Args:
            users: [B] int user indices; they make no difference.
            histories: item indices of each; they make no difference.

        Returns:
            [B, J] float32, the counts for each user.

        Raises:
            ValueError: if nothing was fitted.
        """
        return np.tile(self._fitted(), (len(histories), 1))

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json and model.safetensors."""
        storage.save(directory, "popularity", {}, {"counts": self._fitted()})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "Popularity":
        """Read what `save_pretrained` wrote.

        Raises:
            CLLM4RecError: if no such model lies there.
        """
        model = cls()
        model.counts = storage.load(directory, "popularity")[1]["counts"]
        return model

    def _fitted(self) -> np.ndarray:
        if self.counts is None:
            raise ValueError("Popularity is not fitted; call fit(histories) first")
        return self.counts
