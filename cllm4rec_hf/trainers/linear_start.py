"""The linear part of the warm start: an item-item model with text rows in closed form, factorized."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, diags
from tqdm.auto import tqdm

from ..baselines.ease import MAX_ITEMS, solve_ease
from ..baselines.selection import is_main_process
from ..baselines.text_svd import MAX_RANK, factorize, interaction_counts
from ..data.prepared import PreparedData
from ..errors import CLLM4RecError
from ..evaluation.validation_score import ValidationScore

# the closed form inverts a J x J matrix ten to nineteen times while it chooses (5 s each at 6,000 items on one core)
# and holds some 40 bytes of each of its cells, 4 GB at this size; beyond it a sparse SVD takes over
MAX_EASE_ITEMS = 10_000

RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
TEXT_WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0)
# the one that wins most often, where the search begins
TEXT_WEIGHT = 10.0
RANKS = (32, 64, 128, 256, 512)
SINGULAR_POWERS = (0.0, 0.5, 1.0)
# powers of an item's popularity that its part in a history is divided by
DAMPINGS = (0.0, 0.125, 0.25, 0.375)
# a user of n items weighs n^-½ in the Gram matrix: one of 400 items has 160,000 pairs in it, one of 4 has 16
USER_POWER = 0.5


@dataclass
class LinearStart:
    """score of item j after history H: Σ_{i in H} q_i · z_j.

    Args:
        queries: [J, r] float64, q.
        keys: [J, r] float64, z.
        text_weight: weight w of the text rows.
        settings: the other chosen numbers.
        score: sum of the metrics on validation.
    """

    queries: np.ndarray
    keys: np.ndarray
    text_weight: float
    settings: dict[str, float]
    score: float


def fit_ease(
    data: PreparedData, texts: csr_matrix | None, max_rank: int, score: ValidationScore, seed: int = 0
) -> LinearStart:
    """EASE with text rows, users weighted and items damped, cut to a rank by a truncated SVD.

    B = D^-g (I − P diag(P)⁻¹), P = (XᵀWX + w·TTᵀ + λI)⁻¹ (Steck 2019), W = the users' n^-½ over its mean, D the items'
    popularity; B ≈ Q Zᵀ.

    Args:
        data: the prepared data.
        texts: [J, V] rows of the items' texts, or None.
        max_rank: highest rank.
        score: what λ, w, g and the rank are chosen by, in this order.
        seed: seed of the truncated SVD.

    Raises:
        CLLM4RecError: if the catalog is too large for a J x J matrix.
    """
    if data.num_items > MAX_ITEMS:
        raise CLLM4RecError(
            f"warm_start ease inverts an item x item matrix: {data.num_items} items are more than the bound of "
            f"{MAX_ITEMS}; set warm_start to auto or svd"
        )
    from sklearn.utils.extmath import randomized_svd

    interactions = data.histories("train").to_csr().astype(np.float64)
    activity, popularity = (interaction_counts(interactions, axis) for axis in (1, 0))
    weighted = diags((activity / activity.mean()) ** (-USER_POWER / 2)) @ interactions
    gram = (weighted.T @ weighted).toarray()
    text_gram = None if texts is None else (texts @ texts.T).toarray()
    solved: dict[tuple[float, float], float] = {}
    best, weights = -np.inf, np.empty(0)
    bar = tqdm(desc="Warm start", unit="fit", delay=2, disable=not is_main_process())

    def found(point: tuple[float, float]) -> float:
        nonlocal best, weights
        if point not in solved:
            rows = gram + point[0] * text_gram if text_gram is not None else gram.copy()
            matrix = solve_ease(rows, point[1])
            # with the damping that wins most often, so that one search follows the other
            solved[point] = score(score.histories @ (popularity[:, None] ** -0.25 * matrix))
            if solved[point] > best:
                best, weights = solved[point], matrix
            bar.update()
        return solved[point]

    # one after the other and once more finds what all pairs would, nearly always
    text_weight, ridge = TEXT_WEIGHT if texts is not None else 0.0, RIDGES[0]
    for _ in range(2):
        ridge = max(RIDGES, key=lambda ridge: found((text_weight, ridge)))
        if texts is not None:
            text_weight = max(TEXT_WEIGHTS, key=lambda weight: found((weight, ridge)))
    text_weight, ridge = max(solved, key=lambda point: solved[point])
    bar.close()
    damping = max(DAMPINGS, key=lambda power: score(score.histories @ (popularity[:, None] ** -power * weights)))
    weights = popularity[:, None] ** -damping * weights
    largest = min(max(RANKS), max_rank, data.num_items - 1)
    left, singular, right = randomized_svd(weights, largest, n_iter=7, random_state=seed)
    root = np.sqrt(singular)
    candidates = []
    for rank in sorted({min(rank, largest) for rank in RANKS}):
        queries, keys = left[:, :rank] * root[:rank], right[:rank].T * root[:rank]
        settings = {"ridge": ridge, "damping": damping, "rank": rank}
        candidates.append(LinearStart(queries, keys, text_weight, settings, _validated(score, queries, keys)))
    return max(candidates, key=lambda candidate: candidate.score)


def fit_svd(
    data: PreparedData, texts: csr_matrix | None, max_rank: int, score: ValidationScore, seed: int = 0
) -> LinearStart:
    """Truncated SVD of the stacked [D_u^-½ X D_i^-¼; √w Tᵀ]: z = V σ^p, q_i = popularity^-¼ z_i.

    Args:
        data: the prepared data.
        texts: [J, V] rows of the items' texts, or None.
        max_rank: highest rank.
        score: what w, p and the rank are chosen by.
        seed: seed of the truncated SVDs.
    """
    histories = data.histories("train")
    popularity = interaction_counts(histories.to_csr(), axis=0)
    best: LinearStart | None = None
    for weight in (0.0, 1.0, 3.0) if texts is not None else (0.0,):
        singular, right = factorize(histories, texts, weight, min(MAX_RANK, max_rank), seed)
        for power in SINGULAR_POWERS:
            for rank in sorted({min(rank, len(singular)) for rank in RANKS}):
                keys = right[:, :rank] * singular[:rank] ** power
                queries = popularity[:, None] ** -0.25 * keys
                found = _validated(score, queries, keys)
                if best is None or found > best.score:
                    best = LinearStart(queries, keys, weight, {"power": power, "rank": rank}, found)
    assert best is not None
    return best


def _validated(score: ValidationScore, queries: np.ndarray, keys: np.ndarray) -> float:
    return score((score.histories @ queries) @ keys.T)
