"""EASE: a linear item-item model in closed form (Steck, Embarrassingly Shallow Autoencoders, WWW 2019)."""

import logging
import os
from collections.abc import Sequence

import numpy as np

from ..data.prepared import Histories, PreparedData
from ..errors import CLLM4RecError
from ..evaluation.evaluator import Evaluator
from . import storage

logger = logging.getLogger(__name__)

GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)

# fitting holds two float64 and up to two float32 matrices of J x J: 24 bytes a cell, 10 GB at this size
MAX_ITEMS = 20_000


class EASE:
    """min_B ‖X − XB‖² + λ‖B‖² with diag(B) = 0: B = I − P diag(1 / diag P), P = (XᵀX + λI)⁻¹; scores are x_u B.

    Solved in float64 by Cholesky, twice as fast as a general inverse; B is kept in float32.

    Args:
        ridge: λ.
        max_items: largest catalog J to accept, since memory grows as 24 J² bytes.

    Raises:
        ValueError: if λ is not positive.
    """

    weights: np.ndarray | None = None

    def __init__(self, ridge: float = 300.0, max_items: int = MAX_ITEMS):
        if not ridge > 0:
            raise ValueError(f"ridge (λ) must be positive, got {ridge}")
        self.ridge, self.max_items = float(ridge), max_items

    def fit(self, histories: Histories) -> "EASE":
        """Solve for B.

        Args:
            histories: training histories.

        Returns:
            self.

        Raises:
            CLLM4RecError: if the catalog is too large for a J x J matrix.
        """
        return self._solve(_gram(histories, self.max_items))

    @classmethod
    def fit_validated(cls, data: PreparedData, grid: Sequence[float] = GRID, max_items: int = MAX_ITEMS) -> "EASE":
        """Fit on the training pairs with the λ whose Recall@20 + Recall@40 + NDCG@100 on validation is the highest.

        Args:
            data: prepared data.
            grid: values of λ to try.
            max_items: largest catalog to accept.

        Returns:
            The fitted model; its `ridge` is the chosen λ (the first of equals).

        Raises:
            CLLM4RecError: if the catalog is too large, or nothing can be validated.
            ValueError: if the grid is empty or a λ is not positive.
        """
        candidates = [cls(ridge, max_items) for ridge in grid]
        if not candidates:
            raise ValueError("The grid of λ is empty; give at least one value")
        gram = _gram(data.histories("train"), max_items)
        evaluator = Evaluator(data, split="validation")
        best, best_score = candidates[0], -np.inf
        for candidate in candidates:
            candidate._solve(gram.copy())
            score = sum(evaluator.evaluate(candidate, bootstrap=False).metrics.values())
            logger.debug("EASE with λ = %g: sum of the metrics on validation %.4f", candidate.ridge, score)
            if score > best_score:
                # matrices of a large catalog are not to pile up
                best.weights, best, best_score = None, candidate, score
            else:
                candidate.weights = None
        logger.info("EASE: λ = %g chosen on validation, sum of the metrics %.4f", best.ridge, best_score)
        if len(candidates) > 2 and best.ridge in (min(grid), max(grid)):
            logger.warning("EASE: the chosen λ = %g is at the end of the grid; a wider grid may do better", best.ridge)
        return best

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of all items.

        Args:
            users: [B] int user indices; they make no difference beside the histories.
            histories: item indices of each.

        Returns:
            [B, J] float32, the sum of B's rows over the history.

        Raises:
            ValueError: if nothing was fitted.
        """
        weights = self._fitted()
        return Histories.from_lists(histories, len(weights)).to_csr() @ weights

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json and model.safetensors."""
        storage.save(directory, "ease", {"ridge": self.ridge}, {"weights": self._fitted()})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "EASE":
        """Read what `save_pretrained` wrote.

        Raises:
            CLLM4RecError: if no such model lies there.
        """
        config, arrays = storage.load(directory, "ease")
        model = cls(**config)
        model.weights = arrays["weights"]
        return model

    def _solve(self, gram: np.ndarray) -> "EASE":
        """Solve for B, overwriting XᵀX."""
        self.weights = solve_ease(gram, self.ridge)
        return self

    def _fitted(self) -> np.ndarray:
        if self.weights is None:
            raise ValueError("EASE is not fitted; call fit(histories) or EASE.fit_validated(data) first")
        return self.weights


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
    weights = np.tril(half).astype(np.float32)
    weights += np.tril(weights, -1).T
    weights /= -np.diag(half)
    np.fill_diagonal(weights, 0.0)
    return weights


def _gram(histories: Histories, max_items: int) -> np.ndarray:
    """XᵀX, [J, J] float64."""
    if histories.num_items > max_items:
        gigabytes = 24 * histories.num_items**2 / 1e9
        raise CLLM4RecError(
            f"EASE inverts an item x item matrix: {histories.num_items} items are more than the bound of {max_items} "
            f"and would take {gigabytes:.0f} GB. Raise max_items if memory allows, or prepare with a higher --k-core"
        )
    interactions = histories.to_csr().astype(np.float64)
    return (interactions.T @ interactions).toarray()
