"""Warm start of the item tables and the history term from a factorized linear item-item model with text rows."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, diags, vstack
from scipy.special import logsumexp
from tqdm.auto import tqdm

from ..baselines.ease import solve_ease
from ..data.item_texts import item_text_matrix
from ..data.prepared import Histories, PreparedData
from ..evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)

# the closed form inverts a J x J matrix some thirty times while it chooses (1.8 s each at this size); beyond it a
# sparse SVD takes over
MAX_EASE_ITEMS = 5000

RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
TEXT_WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0)
RANKS = (32, 64, 128, 256, 512)
SINGULAR_POWERS = (0.0, 0.5, 1.0)

_CELLS = 20_000_000


@dataclass
class WarmStart:
    """A linear recommender of low rank: score of item j after history H is Σ_{i in H} q_i · z_j.

    Args:
        method: `ease` or `svd`.
        queries: [J, r] float64, q.
        keys: [J, r] float64, z.
        text_weight: weight w of the text rows.
        settings: the other chosen numbers.
        score: sum of the metrics on validation.
        scale: factor γ on the scores that gives the validation items the highest likelihood.
    """

    method: str
    queries: np.ndarray
    keys: np.ndarray
    text_weight: float
    settings: dict[str, float]
    score: float
    scale: float = 1.0

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of the whole catalog, [B, J] float64."""
        rows = Histories.from_lists(histories, len(self.keys)).to_csr()
        return np.asarray(rows @ self.queries) @ self.keys.T


class _LinearRanker:
    """Ranks by history · left · right, without ever forming the item-item matrix unless it is `left`."""

    def __init__(self, left: np.ndarray, right: np.ndarray | None = None):
        self.left, self.right = left, right

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        scores = Histories.from_lists(histories, len(self.left)).to_csr() @ self.left
        return (scores if self.right is None else scores @ self.right).astype(np.float32)


def fit_warm_start(data: PreparedData, max_rank: int, method: str = "auto", seed: int = 0) -> WarmStart:
    """Fit the linear model on the training pairs; everything that is chosen is chosen on validation.

    `ease`: EASE with text rows, B = I − P diag(P)⁻¹, P = (XᵀX + w·TTᵀ + λI)⁻¹ (Steck 2019), cut to rank r by a
    truncated SVD, B ≈ Q Zᵀ. `svd`: truncated SVD of the stacked [D_u^-½ X D_i^-¼; √w Tᵀ], z = V σ^p, q_i = c_i z_i,
    c_i = popularity^-¼.

    Args:
        data: the prepared data.
        max_rank: highest rank, the backbone's hidden size.
        method: `ease`, `svd` or `auto` (`ease` for catalogs of up to 5,000 items).
        seed: seed of the truncated SVDs.

    Returns:
        The warm start that ranks best on validation.
    """
    if method == "auto":
        method = "ease" if data.num_items <= MAX_EASE_ITEMS else "svd"
    evaluator = Evaluator(data, split="validation")
    texts = item_text_matrix(data)
    fit = _fit_ease if method == "ease" else _fit_svd
    start = fit(data, texts, min(max_rank, data.num_items - 1), evaluator, seed)
    start.scale = _best_scale(data, start)
    chosen = ", ".join(f"{name} {value:g}" for name, value in start.settings.items())
    logger.info(
        "Warm start by %s: text weight %g, %s, scale %.3g; validation score %.4f",
        method,
        start.text_weight,
        chosen,
        start.scale,
        start.score,
    )
    return start


def apply_warm_start(model: Any, start: WarmStart, seed: int = 0) -> None:
    """Put a warm start into a model: all item tokens, the history term's queries, basis and scale.

    The r-dimensional vectors are rotated into the backbone's d dimensions by a random orthonormal basis and scaled so
    that item tokens have the spread of the vocabulary's embeddings.

    Args:
        model: a CLLM4Rec model whose configuration has a history term of rank r, or none.
        start: the warm start.
        seed: seed of the rotation.
    """
    rank, size = start.keys.shape[1], model.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0].T
    words = model.get_input_embeddings().weight
    spread = float(words.float().std())
    keys = torch.from_numpy(start.keys) @ basis
    factor = spread / float(keys.std())
    with torch.no_grad():
        for table in (model.collaborative_item_embeddings, model.content_item_embeddings):
            table.weight.copy_(keys * factor)
        head = model.item_head
        if head.history_queries is not None:
            # queries of unit size on average learn at the same pace whatever the catalog; γ carries the magnitude
            queries = torch.from_numpy(start.queries)
            size_of_queries = float(queries.std())
            head.history_queries.weight.copy_(queries / size_of_queries)
            head.history_basis.copy_(basis)
            head.log_history_scale.fill_(np.log(start.scale * size_of_queries / factor))


def _fit_ease(
    data: PreparedData, texts: csr_matrix | None, max_rank: int, evaluator: Evaluator, seed: int
) -> WarmStart:
    from sklearn.utils.extmath import randomized_svd

    interactions = data.histories("train").to_csr().astype(np.float64)
    gram = (interactions.T @ interactions).toarray()
    text_gram = None if texts is None else (texts @ texts.T).toarray()
    candidates_of_text = TEXT_WEIGHTS if text_gram is not None else (0.0,)
    grid = [(weight, ridge) for weight in candidates_of_text for ridge in RIDGES]
    best_score, text_weight, best_ridge, best_weights = -np.inf, 0.0, RIDGES[0], np.empty(0)
    for weight, ridge in tqdm(grid, desc="Warm start", unit="fit", delay=2):
        weights = solve_ease(gram + weight * text_gram if text_gram is not None else gram.copy(), ridge)
        score = _score(evaluator, _LinearRanker(weights))
        if score > best_score:
            best_score, text_weight, best_ridge, best_weights = score, weight, ridge, weights
    largest = min(max(RANKS), max_rank)
    left, singular, right = randomized_svd(best_weights.astype(np.float64), largest, n_iter=7, random_state=seed)
    root = np.sqrt(singular)
    candidates = []
    for rank in sorted({min(rank, largest) for rank in RANKS}):
        queries, keys = left[:, :rank] * root[:rank], right[:rank].T * root[:rank]
        score = _score(evaluator, _LinearRanker(queries, keys.T))
        candidates.append(WarmStart("ease", queries, keys, text_weight, {"ridge": best_ridge, "rank": rank}, score))
    return max(candidates, key=lambda candidate: candidate.score)


def _fit_svd(
    data: PreparedData, texts: csr_matrix | None, max_rank: int, evaluator: Evaluator, seed: int
) -> WarmStart:
    from sklearn.utils.extmath import randomized_svd

    interactions = data.histories("train").to_csr().astype(np.float64)
    activity = np.maximum(np.asarray(interactions.sum(axis=1)).ravel(), 1)
    popularity = np.maximum(np.asarray(interactions.sum(axis=0)).ravel(), 1)
    normalised = diags(activity**-0.5) @ interactions @ diags(popularity**-0.25)
    normalised *= np.sqrt(data.num_items) / max(np.sqrt(normalised.power(2).sum()), 1e-12)
    damping = popularity[:, None] ** -0.25
    candidates = []
    for weight in (0.0, 1.0, 3.0) if texts is not None else (0.0,):
        stacked = normalised if texts is None else vstack([normalised, np.sqrt(weight) * texts.T])
        largest = min(256, max_rank, min(stacked.shape) - 1)
        _, singular, right = randomized_svd(stacked.tocsr(), largest, n_iter=4, random_state=seed)
        for power in SINGULAR_POWERS:
            for rank in sorted({min(rank, largest) for rank in RANKS}):
                keys = right[:rank].T * singular[:rank] ** power
                queries = damping * keys
                score = _score(evaluator, _LinearRanker(queries, keys.T))
                candidates.append(WarmStart("svd", queries, keys, weight, {"power": power, "rank": rank}, score))
    return max(candidates, key=lambda candidate: candidate.score)


def _score(evaluator: Evaluator, ranker: _LinearRanker) -> float:
    return sum(evaluator.evaluate(ranker, bootstrap=False).metrics.values())


def _best_scale(data: PreparedData, start: WarmStart) -> float:
    """γ by the likelihood of the validation items under softmax(γ · score), one-dimensional and smooth."""
    train, validation = data.histories("train"), data.histories("validation")
    # a few copies of users x items scores are held at once
    most_users = min(2000, max(50, _CELLS // data.num_items))
    users = [u for u in range(data.num_users) if len(validation[u]) and len(train[u])][:most_users]
    if not users:
        return 1.0
    scores = start.scores([train[u] for u in users])

    def loss(log_scale: float) -> float:
        scaled = np.exp(log_scale) * scores
        normalizer = logsumexp(scaled, axis=1)
        return float(sum((normalizer[row] - scaled[row, validation[u]]).sum() for row, u in enumerate(users)))

    spread = max(float(scores.std()), 1e-12)
    bounds = (np.log(1e-2 / spread), np.log(1e2 / spread))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
