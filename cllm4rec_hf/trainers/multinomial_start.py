"""The multinomial part of the warm start: item vectors that predict the masked items of a history from its rest."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from ..baselines.text_svd import interaction_counts
from ..data.prepared import PreparedData
from ..evaluation.validation_score import ValidationScore

logger = logging.getLogger(__name__)

# models of several ranks err differently, and their mean wins
RANKS = (32, 64, 128)
# so do models that saw other masks, as far as they are cheap
MOST_DRAWS = 3

_MASKED = 0.5
_BATCH = 100
_LEARNING_RATE, _SCALE_RATE = 1e-3, 1e-2
# looks at validation: every so many steps, or four times an epoch where that is less often
_STEPS_BETWEEN, _PATIENCE = 20, 15
_MOST_STEPS, _MOST_EPOCHS = 1500, 60
# users x items whose logits one model may compute: some minutes on two cores
_MOST_CELLS = 30_000_000_000
# all models together may compute so much of that; most stop far before
_AT_ONCE = 3


@dataclass
class MultinomialStart:
    """score of item j after history H: |H|^-ν Σ_{i in H} z_i · z_j + b_j.

    Args:
        vectors: [J, r] float32, z.
        bias: [J] float32, b.
        power: ν.
        score: sum of the metrics on validation.
        steps: optimizer steps that led to it.
    """

    vectors: Tensor
    bias: Tensor
    power: float
    score: float
    steps: int

    def scores(self, histories: csr_matrix) -> Tensor:
        """Scores of the catalog, [B, J] float32, for histories [B, J]."""
        lengths = np.maximum(np.diff(histories.indptr), 1).astype(np.float32)
        sums = torch.from_numpy(np.asarray(histories @ self.vectors.numpy(), dtype=np.float32))
        return (sums / torch.from_numpy(lengths[:, None] ** self.power)) @ self.vectors.T + self.bias


def fit_multinomial(
    data: PreparedData,
    initial: np.ndarray,
    power: float,
    score: ValidationScore,
    seed: int = 0,
    most_steps: int | None = None,
) -> MultinomialStart:
    """Minimize −Σ_{j masked} log softmax_j(γ |H|^-ν Σ_{i in H} z_i · z_j + b_j), H the unmasked items of a user.

    It is the recommendation stage's loss for the history term alone: each item of a user is masked with probability ½,
    anew each time. By Adam, stopped by validation. Where z starts from the items' texts and few steps are made, items
    that few users have stay near those with similar texts.

    Args:
        data: the prepared data.
        initial: [J, r] where z starts, on any scale.
        power: ν.
        score: what stops it.
        seed: seed of masks and order.
        most_steps: bound on optimizer steps; by default 1,500 or 60 epochs, or fewer for large catalogs.

    Returns:
        The best state that was looked at; γ is part of its vectors.
    """
    train = data.histories("train").to_csr()
    users = np.flatnonzero(np.diff(train.indptr) > 1)
    popularity = interaction_counts(train, axis=0)
    generator = torch.Generator().manual_seed(seed)
    start = torch.from_numpy(initial).float()
    vectors = nn.Parameter(start / start.norm(dim=1).mean().clamp(min=1e-12))
    bias = nn.Parameter(torch.from_numpy(np.log(popularity / popularity.sum())).float())
    log_scale = nn.Parameter(torch.zeros(()))
    groups: list[dict[str, Any]] = [{"params": [vectors, bias]}, {"params": [log_scale], "lr": _SCALE_RATE}]
    optimizer = torch.optim.Adam(groups, lr=_LEARNING_RATE)
    steps_an_epoch = _steps_an_epoch(len(users))
    if most_steps is None:
        most_steps = min(_wanted_steps(len(users)), _affordable_steps(data.num_items))
    between = min(max(1, most_steps), max(_STEPS_BETWEEN, min(steps_an_epoch // 4, most_steps // 10)))
    best = MultinomialStart(vectors.detach().clone(), bias.detach().clone(), power, -np.inf, 0)
    step = waited = 0
    while step < most_steps and waited < _PATIENCE and len(users):
        order = users[torch.randperm(len(users), generator=generator).numpy()]
        for first in range(0, len(order), _BATCH):
            loss = _loss(train[order[first : first + _BATCH]], vectors, bias, log_scale, power, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % between == 0:
                with torch.no_grad():
                    state = MultinomialStart(vectors * (log_scale / 2).exp(), bias.clone(), power, -np.inf, step)
                    state.score = score(state.scores(score.histories))
                waited += 1
                if state.score > best.score:
                    best, waited = state, 0
            if step == most_steps or waited == _PATIENCE:
                break
    logger.debug("Item vectors of rank %d, ν %g: %d steps, %.4f", initial.shape[1], power, best.steps, best.score)
    return best


def affordable_draws(data: PreparedData, models: int, most_steps: int | None = None) -> int:
    """How many models that differ by their masks alone are affordable in place of one, 0 to 3.

    Args:
        data: the prepared data.
        models: models that differ by more.
        most_steps: bound on the optimizer steps of each.
    """
    users = int((np.diff(data.histories("train").indptr) > 1).sum())
    steps = _wanted_steps(users) if most_steps is None else most_steps
    return min(MOST_DRAWS, _AT_ONCE * _affordable_steps(data.num_items) // max(1, models * steps))


def _steps_an_epoch(num_users: int) -> int:
    return max(1, -(-num_users // _BATCH))


def _wanted_steps(num_users: int) -> int:
    return max(_MOST_STEPS, _MOST_EPOCHS * _steps_an_epoch(num_users))


def _affordable_steps(num_items: int) -> int:
    return max(_STEPS_BETWEEN, _MOST_CELLS // (_BATCH * num_items))


def mean_of(models: list[MultinomialStart], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and bias that score as the mean of models does, cut to a rank by a truncated SVD.

    The mean of the models' z zᵀ is positive semi-definite, so its best approximation of a rank has such vectors, too.

    Args:
        models: models of one power ν.
        rank: highest rank.

    Returns:
        z, [J, r] float64, the directions of most weight first, and b, [J] float64.
    """
    vectors = torch.cat([model.vectors.double() for model in models], dim=1).numpy() / np.sqrt(len(models))
    bias = np.mean([model.bias.double().numpy() for model in models], axis=0)
    left, singular, _ = np.linalg.svd(vectors, full_matrices=False)
    return left[:, :rank] * singular[:rank], bias


def _loss(
    histories: csr_matrix, vectors: Tensor, bias: Tensor, log_scale: Tensor, power: float, generator: torch.Generator
) -> Tensor:
    """Mean over users of the masked items' negative log-likelihood."""
    rows = torch.from_numpy(np.repeat(np.arange(histories.shape[0]), np.diff(histories.indptr)))
    items = torch.from_numpy(histories.indices.astype(np.int64))
    masked = torch.rand(len(items), generator=generator) < _MASKED
    kept_rows, kept = rows[~masked], items[~masked]
    lengths = torch.zeros(histories.shape[0]).index_add_(0, kept_rows, torch.ones(len(kept)))
    sums = torch.zeros(histories.shape[0], vectors.shape[1]).index_add(0, kept_rows, vectors[kept])
    context = sums / lengths.clamp(min=1)[:, None] ** power * log_scale.exp()
    logits = context @ vectors.T + bias
    return -logits.log_softmax(dim=1)[rows[masked], items[masked]].sum() / histories.shape[0]
