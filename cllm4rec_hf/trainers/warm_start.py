"""Warm start of the item tables, the history term and the item bias; everything that is chosen is so on validation."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from scipy.special import logsumexp
from tqdm.auto import tqdm

from ..baselines.selection import is_main_process
from ..data.item_texts import item_text_matrix
from ..data.prepared import Histories, PreparedData
from ..evaluation.validation_score import CELLS, ValidationScore, first_within_chance
from .linear_start import MAX_EASE_ITEMS, LinearStart, fit_ease, fit_svd
from .multinomial_start import RANKS, MultinomialStart, affordable_draws, fit_multinomial, mean_of

logger = logging.getLogger(__name__)

# powers of a history's length that its sum is divided by: the mean for 1, and in between evidence adds up slowly. The
# first alone where trying them all would take too long
HISTORY_POWERS = (0.75, 1.0)
# of the multinomial part, as far as that leaves half of the backbone's dimensions to the linear part; more changed no
# score
MULTINOMIAL_RANK = 224
# between draws of masks, so that neighbouring seeds of a run share none
_SEED_STEP = 1_000_003
# in larger catalogs, whose models take longer, the linear model starts none where there are texts
_FEW_ITEMS = 5000
# the simplest first: words alone, the rest where it pays
_PREFERENCE = ("texts", "texts and states", "states", "linear model")
_ABOUT = "about"
# users x items that decide between starts: some ten questions, where a fit asks hundreds
_DECIDING_CELLS = 100_000_000
# the linear part's spread over the multinomial part's
LINEAR_SHARES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


@dataclass
class WarmStart:
    """score of item j after history H: |H|^-ν Σ_{i in H} q_i · z_j + b_j.

    Args:
        method: `ease` or `svd`, how the linear part was fitted.
        queries: [J, r] float64, q.
        keys: [J, r] float64, z.
        text_weight: weight w of the text rows in the linear part.
        settings: the other chosen settings.
        score: sum of the metrics on validation.
        bias: [J] float64, b; None for 0.
        power: ν.
        scale: factor on the scores that gives the validation items the highest likelihood.
    """

    method: str
    queries: np.ndarray
    keys: np.ndarray
    text_weight: float
    settings: dict[str, Any] = field(default_factory=dict)
    score: float = 0.0
    bias: np.ndarray | None = None
    power: float = 0.0
    scale: float = 1.0

    def save(self, file: Path) -> None:
        """Write a safetensors file, complete before it takes its name."""
        arrays = {"queries": self.queries, "keys": self.keys, "bias": self.bias}
        about = {name: value for name, value in vars(self).items() if name not in arrays}
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".part")
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None},
            beside,
            {_ABOUT: json.dumps(about)},
        )
        beside.replace(file)

    @classmethod
    def load(cls, file: Path) -> "WarmStart":
        """Read what `save` wrote."""
        with safe_open(file, "numpy") as stored:
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, no mapping
            return cls(**arrays, **json.loads(stored.metadata()[_ABOUT]))

    def scores(self, histories: list[np.ndarray] | csr_matrix) -> np.ndarray:
        """Scores of the whole catalog, [B, J] float64, for histories as lists of items or as rows [B, J]."""
        rows = histories
        if not isinstance(rows, csr_matrix):
            rows = Histories.from_lists(rows, len(self.keys)).to_csr()
        lengths = np.maximum(np.diff(rows.indptr), 1).astype(np.float64)
        scores = (np.asarray(rows @ self.queries) / lengths[:, None] ** self.power) @ self.keys.T
        return scores if self.bias is None else scores + self.bias


def fit_warm_start(
    data: PreparedData,
    max_rank: int,
    method: str = "auto",
    seed: int = 0,
    use_texts: bool = True,
    states: np.ndarray | None = None,
    most_steps: int | None = None,
) -> WarmStart:
    """Fit a linear and multinomial item models on the training pairs, and add them up.

    Item vectors start from the items' TF-IDF, from TF-IDF and, in models of their own that are averaged with these,
    from the language model's states of the texts, or from the linear model. Validation chooses among them, and how
    much of the linear part is added, where the differences are more than chance.

    Args:
        data: the prepared data.
        max_rank: highest rank, the backbone's hidden size.
        method: of the linear part: `ease`, `svd` or `auto` (`ease` for catalogs of up to 10,000 items).
        seed: seed of everything random.
        use_texts: whether the items' texts may have a part in it.
        states: [J, d] a language model's representation of the items' texts, zeros for items without any; or None.
        most_steps: bound on the optimizer steps of a multinomial model, see `fit_multinomial`; 0 does without them.

    Returns:
        The warm start; its score is the one on validation.
    """
    if method == "auto":
        method = "ease" if data.num_items <= MAX_EASE_ITEMS else "svd"
    score, deciding = ValidationScore(data, seed), ValidationScore(data, seed, _DECIDING_CELLS)
    texts = item_text_matrix(data) if use_texts else None
    rank = multinomial_rank(max_rank)
    room = max_rank if most_steps == 0 else max_rank - rank
    linear = (fit_ease if method == "ease" else fit_svd)(data, texts, room, score, seed)
    start = WarmStart(method, linear.queries, linear.keys, linear.text_weight, linear.settings, linear.score)
    fitted: dict[tuple[str, float], list[MultinomialStart]] = {}
    starts = [] if most_steps == 0 else _starts(data, texts, states, linear, seed)
    draws = affordable_draws(data, len(starts) * len(RANKS), most_steps)
    if not draws:
        starts = [(name, initial, power) for name, initial, power in starts if power == HISTORY_POWERS[0]]
        draws = max(1, affordable_draws(data, len(starts) * len(RANKS), most_steps))
    for name, initial, power in tqdm(
        starts, desc="Item vectors", unit="start", delay=2, disable=not is_main_process()
    ):
        widths = sorted({min(width, initial.shape[1]) for width in RANKS})
        fitted[name, power] = [
            fit_multinomial(data, initial[:, :width], power, score, seed + _SEED_STEP * draw, most_steps)
            for width in widths
            for draw in range(draws)
        ]
    for power in HISTORY_POWERS:
        if ("texts", power) in fitted and ("states", power) in fitted:
            # states alone do not compete with words: where validation preferred them to both, it did so by chance
            fitted["texts and states", power] = [*fitted["texts", power], *fitted.pop(("states", power))]
    found = [_mixed(method, name, fitted[name, power], linear, rank, deciding) for name, power in _preferred(fitted)]
    values = np.concatenate([part.per_user(start.scores(part.histories)) for part in deciding.parts()])
    start.score = float(values.mean())
    found.append((start, values))
    start = found[first_within_chance([values for _, values in found])][0]
    start.scale = _best_scale(data, start)
    chosen = ", ".join(f"{name} {value}" for name, value in start.settings.items())
    logger.info(
        "Warm start by %s: text weight %g, %s, scale %.3g; validation score %.4f",
        method, start.text_weight, chosen, start.scale, start.score,
    )  # fmt: skip
    return start


def multinomial_rank(max_rank: int) -> int:
    """Rank of the multinomial part beside a linear part, which has the dimensions left."""
    return min(MULTINOMIAL_RANK, max(1, max_rank // 2))


def _starts(
    data: PreparedData, texts: csr_matrix | None, states: np.ndarray | None, linear: LinearStart, seed: int
) -> list[tuple[str, np.ndarray, float]]:
    """Where item vectors start from, [J, r] with the directions of most weight first, and powers ν."""
    from sklearn.utils.extmath import randomized_svd

    starts = []
    for name, rows in (("texts", texts), ("states", states)):
        if rows is not None:
            left, singular, _ = randomized_svd(rows, min(max(RANKS), *rows.shape), random_state=seed)
            starts.append((name, left * np.sqrt(singular)))
    # what texts do not tell apart, the linear model has to
    few_texts = texts is None or np.count_nonzero(np.diff(texts.indptr)) < data.num_items / 2
    if few_texts or data.num_items <= _FEW_ITEMS:
        order = np.argsort(-np.square(linear.keys).sum(axis=0), kind="stable")
        starts.append(("linear model", linear.keys[:, order[: max(RANKS)]]))
    return [(name, initial, power) for name, initial in starts for power in HISTORY_POWERS]


def _preferred(fitted: dict[tuple[str, float], Any]) -> list[tuple[str, float]]:
    """Names and powers of item vectors, the ones first that are taken where validation does not tell them apart."""
    return sorted(fitted, key=lambda key: (_PREFERENCE.index(key[0]), HISTORY_POWERS.index(key[1])))


def _mixed(
    method: str, name: str, models: list[MultinomialStart], linear: LinearStart, rank: int, score: ValidationScore
) -> tuple[WarmStart, np.ndarray]:
    """The mean of multinomial models and as much of the linear part as pays, and each user's metrics on validation.

    The linear part was chosen on the same validation items among many, so a share pays by chance, too.
    """
    power = models[0].power
    keys, bias = mean_of(models, rank)
    vectors = WarmStart(method, keys, keys, linear.text_weight, bias=bias, power=power)
    added = WarmStart(method, linear.queries, linear.keys, linear.text_weight, power=power)
    ratio, by_part = 0.0, []
    for part in score.parts():
        first, second = (one.scores(part.histories) for one in (vectors, added))
        # of the first users: the shares are of one thing for all
        ratio = ratio or float(first.std() / max(second.std(), 1e-12))
        by_part.append([part.per_user(first + share * ratio * second) for share in LINEAR_SHARES])
    found = [np.concatenate(values) for values in zip(*by_part, strict=True)]
    position = first_within_chance(found)
    share, values = LINEAR_SHARES[position], found[position]
    settings = {"item vectors from": name, "history power": power, "linear share": share}
    start = WarmStart(method, keys, keys, linear.text_weight, settings, float(values.mean()), bias, power)
    if share:
        # as item tokens, both parts are of one size; the queries carry what they weigh
        size = np.linalg.norm(keys, axis=1).mean() / max(np.linalg.norm(linear.keys, axis=1).mean(), 1e-12)
        start.queries = np.concatenate([keys, share * ratio / size * linear.queries], axis=1)
        start.keys = np.concatenate([keys, size * linear.keys], axis=1)
        start.settings = {**linear.settings, **settings}
    return start, values


def apply_warm_start(model: Any, start: WarmStart, seed: int = 0) -> None:
    """Put a warm start into a model: all item tokens, the item bias, the history term's queries, basis and scale.

    The r-dimensional vectors are rotated into the backbone's d dimensions by a random orthonormal basis and scaled so
    that item tokens have the spread of the vocabulary's embeddings.

    Args:
        model: a CLLM4Rec model whose configuration has a history term of the warm start's rank and power, or none.
        start: the warm start.
        seed: seed of the rotation.
    """
    rank, size = start.keys.shape[1], model.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0].T
    words = model.get_input_embeddings().weight
    spread = float(words.detach().float().std())
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
        if head.item_bias is not None and start.bias is not None:
            head.item_bias.copy_(torch.from_numpy(start.scale * start.bias))


def _best_scale(data: PreparedData, start: WarmStart) -> float:
    """γ by the likelihood of the validation items under softmax(γ · score), one-dimensional and smooth."""
    train, validation = data.histories("train"), data.histories("validation")
    # a few copies of users x items scores are held at once
    most_users = min(2000, max(100, CELLS // data.num_items))
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
