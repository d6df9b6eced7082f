"""ALS of the library implicit, under this package's interface (Hu, Koren, Volinsky, ICDM 2008)."""

from typing import Any

import numpy as np

from ..data.prepared import Histories, PreparedData
from .base import ArrayBaseline
from .selection import grid_of


class ImplicitALS(ArrayBaseline):
    """Weighted matrix factorization, c = α at a user's items and 1 elsewhere.

    The library learns the item factors Y; a user's factors are solved from the history,
    x = (YᵀY + Σ_{i in history} (α − 1) y_i y_iᵀ + λI)⁻¹ Σ_{i in history} α y_i, and score(u, j) = x · y_j.

    Args:
        factors: dimensions.
        regularization: λ.
        alpha: α.
        iterations: alternations.
    """

    model_type = "implicit-als"
    GRID = grid_of(
        factors=(16, 64, 256), regularization=(3.0, 10.0, 30.0, 100.0, 300.0), alpha=(1.0, 3.0, 10.0, 30.0, 100.0)
    )
    SETTINGS = ("factors", "regularization", "alpha", "iterations")
    ARRAYS = ("item_factors",)

    item_factors: np.ndarray | None = None

    def __init__(self, factors: int = 64, regularization: float = 10.0, alpha: float = 1.0, iterations: int = 15):
        self.factors, self.regularization, self.alpha, self.iterations = factors, regularization, alpha, iterations

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "ImplicitALS":
        """Factorize the training pairs; see `Baseline.fit_to`.

        Raises:
            ModuleNotFoundError: if the library is not installed.
        """
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "ImplicitALS needs the library implicit: pip install 'cllm4rec-hf[baselines]'"
            ) from error
        model = cls(**settings)
        # one thread: sums in another order would give other factors
        library = AlternatingLeastSquares(
            factors=model.factors,
            regularization=model.regularization,
            alpha=model.alpha,
            iterations=model.iterations,
            num_threads=1,
            random_state=seed,
        )
        library.fit(data.histories("train").to_csr(), show_progress=False)
        model.item_factors = np.asarray(library.item_factors, dtype=np.float32)
        return model

    def user_factors(self, histories: list[np.ndarray]) -> np.ndarray:
        """x of each history, [B, factors] float64."""
        self._check_fitted()
        items = self.item_factors.astype(np.float64)  # type: ignore[union-attr]
        gram = items.T @ items + self.regularization * np.eye(items.shape[1])
        systems = np.stack([gram + (self.alpha - 1) * items[history].T @ items[history] for history in histories])
        rows = self.alpha * (Histories.from_lists(histories, len(items)).to_csr() @ items)
        return np.linalg.solve(systems, rows[..., None])[..., 0]

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Products of factors, [B, J] float32; see `Baseline.score`."""
        factors = self.user_factors(histories).astype(np.float32)
        return factors @ self.item_factors.T  # type: ignore[union-attr]
