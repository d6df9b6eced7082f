"""EASE: a linear item-item model in closed form (Steck, Embarrassingly Shallow Autoencoders, WWW 2019)."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ..data.item_texts import require_item_texts
from ..data.prepared import Histories, PreparedData
from ..errors import CLLM4RecError
from .base import ArrayBaseline
from .selection import Selection, grid_of, select

RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
TEXT_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)

# fitting holds up to three float64 and three float32 matrices of J x J: 36 bytes a cell, 14 GB at this size
_BYTES_A_CELL = 36
MAX_ITEMS = 20_000


class EASE(ArrayBaseline):
    """min_B ‖X − XB‖² + λ‖B‖² with diag(B) = 0: B = I − P diag(1 / diag P), P = (XᵀX + λI)⁻¹; scores are x_u B.

    With item texts, the rows √w Tᵀ stand below X: P = (XᵀX + w TTᵀ + λI)⁻¹, T [J, V] the row-normalised TF-IDF of
    the items' texts. Solved in float64 by Cholesky, twice as fast as a general inverse; B is kept in float32.

    Args:
        ridge: λ.
        max_items: largest catalog J to accept, since memory grows as 36 J² bytes.
        text_weight: w; 0 does without texts.

    Raises:
        ValueError: if λ is not positive or w negative.
    """

    model_type = "ease"
    GRID = grid_of(ridge=RIDGES)
    SETTINGS = ("ridge", "text_weight")
    ARRAYS = ("weights",)

    weights: np.ndarray | None = None

    def __init__(self, ridge: float = 300.0, max_items: int = MAX_ITEMS, text_weight: float = 0.0):
        if not ridge > 0:
            raise ValueError(f"ridge (λ) must be positive, got {ridge}")
        if not text_weight >= 0:
            raise ValueError(f"text_weight (w) must be 0 or more, got {text_weight}")
        self.ridge, self.max_items, self.text_weight = float(ridge), max_items, float(text_weight)

    def fit(self, histories: Histories, texts: csr_matrix | None = None) -> "EASE":
        """Solve for B.

        Args:
            histories: training histories.
            texts: [J, V] rows of item texts, see `data.item_texts`; needed when `text_weight` is not 0.

        Returns:
            self.

        Raises:
            CLLM4RecError: if the catalog is too large for a J x J matrix.
            ValueError: if texts are needed and not given.
        """
        if self.text_weight and texts is None:
            raise ValueError(f"A text_weight of {self.text_weight:g} needs the rows of item texts; pass texts")
        return self._solve(_gram(histories, self.max_items), _text_gram(texts if self.text_weight else None))

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "EASE":
        """Solve on the training pairs; see `Baseline.fit_to`."""
        model = cls(**settings)
        return model.fit(data.histories("train"), cls._texts(data, model.text_weight))

    @classmethod
    def choose(
        cls, data: PreparedData, seed: int = 0, grid: Iterable[Mapping[str, Any]] | None = None, **settings: Any
    ) -> Selection:
        """Choose on validation, with one Gram matrix for all points; see `Baseline.choose`.

        Raises:
            CLLM4RecError: if the catalog is too large, or nothing can be validated.
            ValueError: if the grid is empty or a setting out of range.
        """
        points = [{**settings, **point} for point in (cls.GRID if grid is None else grid)]
        candidates = [cls(**point) for point in points]
        most_items = min((candidate.max_items for candidate in candidates), default=MAX_ITEMS)
        gram = _gram(data.histories("train"), most_items)
        text_gram = _text_gram(cls._texts(data, max((candidate.text_weight for candidate in candidates), default=0.0)))
        return select(lambda **point: cls(**point)._solve(gram.copy(), text_gram), points, data, cls.__name__)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """The sum of B's rows over the history, [B, J] float32; see `Baseline.score`."""
        self._check_fitted()
        return Histories.from_lists(histories, len(self.weights)).to_csr() @ self.weights  # type: ignore[arg-type]

    @classmethod
    def _texts(cls, data: PreparedData, text_weight: float) -> csr_matrix | None:
        return require_item_texts(data, "EASE with text rows") if text_weight else None

    def _solve(self, gram: np.ndarray, text_gram: np.ndarray | None) -> "EASE":
        """Solve for B, overwriting XᵀX."""
        if text_gram is not None:
            # by rows: no product of the whole matrix's size
            for row, texts in zip(gram, text_gram, strict=True):
                row += self.text_weight * texts
        self.weights = solve_ease(gram, self.ridge)
        return self


class TextEASE(EASE):
    """EASE with text rows, λ and w both chosen on validation."""

    model_type = "ease-text"
    GRID = grid_of(text_weight=TEXT_WEIGHTS, ridge=RIDGES[2:-1])

    def __init__(self, ridge: float = 300.0, max_items: int = MAX_ITEMS, text_weight: float = 10.0):
        super().__init__(ridge, max_items, text_weight)


def solve_ease(gram: np.ndarray, ridge: float) -> np.ndarray:
    """B of a Gram matrix, by Cholesky.

    Args:
        gram: [J, J] float64, XᵀX, or XᵀX + w·TTᵀ for EASE with text rows; overwritten.
        ridge: λ.

    Returns:
        [J, J] float32 with a zero diagonal.

    Raises:
        CLLM4RecError: if the matrix is numerically singular.
    """
    from scipy.linalg.lapack import dpotrf, dpotri

    gram[np.diag_indices_from(gram)] += ridge
    # the transpose of a symmetric C-ordered matrix is the Fortran order that LAPACK can work on in place
    factor, failed = dpotrf(gram.T, lower=True, overwrite_a=True)
    if failed:
        raise CLLM4RecError(f"XᵀX + λI is numerically singular at λ = {ridge:g}; take a larger ridge")
    half, _ = dpotri(factor, lower=True, overwrite_c=True)
    weights = np.tril(half.astype(np.float32))
    weights += np.tril(weights, -1).T
    weights /= -np.diag(half)
    np.fill_diagonal(weights, 0.0)
    return weights


def _gram(histories: Histories, max_items: int) -> np.ndarray:
    """XᵀX, [J, J] float64."""
    if histories.num_items > max_items:
        gigabytes = _BYTES_A_CELL * histories.num_items**2 / 1e9
        raise CLLM4RecError(
            f"EASE inverts an item x item matrix: {histories.num_items} items are more than the bound of {max_items} "
            f"and would take {gigabytes:.0f} GB. Raise max_items if memory allows, or prepare with a higher --k-core"
        )
    interactions = histories.to_csr().astype(np.float64)
    return (interactions.T @ interactions).toarray()


def _text_gram(texts: csr_matrix | None) -> np.ndarray | None:
    """TTᵀ, [J, J] float64."""
    return None if texts is None else (texts @ texts.T).toarray()
