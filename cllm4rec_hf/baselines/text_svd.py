"""Text-augmented SVD: latent factors of the interactions stacked on the items' words."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags, vstack

from ..data.item_texts import require_item_texts
from ..data.prepared import Histories, PreparedData
from .base import ArrayBaseline
from .selection import Selection, grid_of, select

# one factorization at this rank serves all lower ones
MAX_RANK = 256


class TextSVD(ArrayBaseline):
    """Truncated SVD U Σ Vᵀ of the stacked [D_u^-½ X D_i^-¼; √w Tᵀ]; score(u, j) = Σ_{i in history} c_i z_i · z_j.

    z = V Σ^p cut to rank r, c_i = popularity^-¼; the interaction rows are scaled to Frobenius norm √J, that of the
    text rows T.

    Args:
        rank: r.
        power: p.
        text_weight: w; 0 does without texts.

    Raises:
        ValueError: if a setting is out of range.
    """

    model_type = "text-svd"
    GRID = grid_of(text_weight=(0.1, 0.3, 1.0, 3.0, 10.0), power=(0.5, 1.0), rank=(32, 64, 128, 256))
    SETTINGS = ("rank", "power", "text_weight")
    ARRAYS = ("vectors", "damping")

    vectors: np.ndarray | None = None
    damping: np.ndarray

    def __init__(self, rank: int = 128, power: float = 1.0, text_weight: float = 1.0):
        if rank < 1 or not power >= 0 or not text_weight >= 0:
            raise ValueError(
                f"Expected a rank of 1 or more, a power and a text_weight of 0 or more; got {rank}, {power} and "
                f"{text_weight}"
            )
        self.rank, self.power, self.text_weight = rank, float(power), float(text_weight)

    def fit(self, histories: Histories, texts: csr_matrix | None = None, seed: int = 0) -> "TextSVD":
        """Factorize.

        Args:
            histories: training histories.
            texts: [J, V] rows of item texts, see `data.item_texts`; needed when `text_weight` is not 0.
            seed: seed of the randomized SVD.

        Returns:
            self.

        Raises:
            ValueError: if texts are needed and not given.
        """
        if self.text_weight and texts is None:
            raise ValueError(f"A text_weight of {self.text_weight:g} needs the rows of item texts; pass texts")
        return self._cut(factorize(histories, texts, self.text_weight, max(self.rank, MAX_RANK), seed), histories)

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "TextSVD":
        """Factorize the training pairs and item texts; see `Baseline.fit_to`."""
        model = cls(**settings)
        texts = require_item_texts(data, cls.__name__) if model.text_weight else None
        return model.fit(data.histories("train"), texts, seed)

    @classmethod
    def choose(
        cls, data: PreparedData, seed: int = 0, grid: Iterable[Mapping[str, Any]] | None = None, **settings: Any
    ) -> Selection:
        """Choose on validation, with one factorization for each text weight; see `Baseline.choose`."""
        points = [{**settings, **point} for point in (cls.GRID if grid is None else grid)]
        candidates = [cls(**point) for point in points]
        texts = require_item_texts(data, cls.__name__) if any(model.text_weight for model in candidates) else None
        histories = data.histories("train")
        rank = max((model.rank for model in candidates), default=MAX_RANK)
        factors: dict[float, tuple[np.ndarray, np.ndarray]] = {}

        def factory(**point: Any) -> TextSVD:
            model = cls(**point)
            if model.text_weight not in factors:
                factors[model.text_weight] = factorize(histories, texts, model.text_weight, max(rank, MAX_RANK), seed)
            return model._cut(factors[model.text_weight], histories)

        return select(factory, points, data, cls.__name__)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Products with the damped sum over the history, [B, J] float32; see `Baseline.score`."""
        self._check_fitted()
        vectors: np.ndarray = self.vectors  # type: ignore[assignment]
        rows = Histories.from_lists(histories, len(vectors)).to_csr()
        return np.asarray(rows @ (self.damping[:, None] * vectors)) @ vectors.T

    def _cut(self, factors: tuple[np.ndarray, np.ndarray], histories: Histories) -> "TextSVD":
        singular, right = (part[..., : self.rank] for part in factors)
        self.vectors = (right * singular**self.power).astype(np.float32)
        self.damping = (interaction_counts(histories.to_csr(), axis=0) ** -0.25).astype(np.float32)
        return self


def factorize(
    histories: Histories, texts: csr_matrix | None, text_weight: float, rank: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right singular vectors of the stacked matrix.

    Args:
        histories: training histories.
        texts: [J, V] rows of item texts, or None.
        text_weight: w.
        rank: how many; fewer where the matrix has a smaller side.
        seed: seed of the randomized SVD.

    Returns:
        [r] float64 and [J, r] float64.
    """
    from sklearn.utils.extmath import randomized_svd

    interactions = histories.to_csr().astype(np.float64)
    activity, popularity = (interaction_counts(interactions, axis) for axis in (1, 0))
    scaled = diags(activity**-0.5) @ interactions @ diags(popularity**-0.25)
    scaled *= np.sqrt(histories.num_items) / max(np.sqrt(scaled.power(2).sum()), 1e-12)
    stacked = scaled if texts is None or not text_weight else vstack([scaled, np.sqrt(text_weight) * texts.T])
    rank = min(rank, *stacked.shape)
    _, singular, right = randomized_svd(stacked.tocsr(), rank, n_iter=4, random_state=seed)
    return singular, right.T


def interaction_counts(interactions: csr_matrix, axis: int) -> np.ndarray:
    """Interactions of each item (axis 0) or user (axis 1), at least 1, float64."""
    return np.maximum(np.asarray(interactions.sum(axis=axis), dtype=np.float64).ravel(), 1.0)
