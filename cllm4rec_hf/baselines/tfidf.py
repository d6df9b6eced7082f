"""TF-IDF neighbours: items whose texts use the words of the history's texts."""

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..data.item_texts import require_item_texts
from ..data.prepared import Histories, PreparedData
from .base import ArrayBaseline


class TfidfNeighbours(ArrayBaseline):
    """score(u, j) = Σ_{i in history} t_i · t_j, the summed cosines of the items' TF-IDF vectors t.

    Args:
        num_words: size V of the vocabulary; set by `fit`.
    """

    model_type = "tfidf-neighbours"
    SETTINGS = ("num_words",)
    ARRAYS = ("values", "columns", "indptr")

    values: np.ndarray | None = None
    columns: np.ndarray
    indptr: np.ndarray

    def __init__(self, num_words: int = 0):
        self.num_words = num_words

    def fit(self, texts: csr_matrix) -> "TfidfNeighbours":
        """Keep the items' vectors.

        Args:
            texts: [J, V] rows of norm 1, see `data.item_texts`.

        Returns:
            self.
        """
        self.num_words = texts.shape[1]
        self.values, self.columns = texts.data.astype(np.float32), texts.indices.astype(np.int32)
        self.indptr = texts.indptr.astype(np.int64)
        return self

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "TfidfNeighbours":
        """Read the items' texts; see `Baseline.fit_to`."""
        return cls(**settings).fit(require_item_texts(data, cls.__name__))

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """The summed cosines, [B, J] float32; see `Baseline.score`."""
        self._check_fitted()
        num_items = len(self.indptr) - 1
        texts = csr_matrix((self.values, self.columns, self.indptr), shape=(num_items, self.num_words))
        profiles = Histories.from_lists(histories, num_items).to_csr() @ texts
        return np.asarray((profiles @ texts.T).toarray(), dtype=np.float32)
