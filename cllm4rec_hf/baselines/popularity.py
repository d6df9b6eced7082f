"""Popularity: the same ranking for everybody."""

from typing import Any

import numpy as np

from ..data.prepared import Histories, PreparedData
from .base import ArrayBaseline


class Popularity(ArrayBaseline):
    """Ranks items by their number of training interactions."""

    model_type = "popularity"
    ARRAYS = ("counts",)

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

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "Popularity":
        """Count the training interactions; see `Baseline.fit_to`."""
        return cls(**settings).fit(data.histories("train"))

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """The counts for each user, [B, J] float32; see `Baseline.score`."""
        self._check_fitted()
        return np.tile(self.counts, (len(histories), 1))  # type: ignore[arg-type]
