"""The sum of Recall@20, Recall@40 and NDCG@100 on validation, fast enough to be asked for hundreds of times."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedData
from ..errors import CLLM4RecError

# users x items that are scored at once while something is chosen, but so many users as far as memory allows: the
# standard error over a few is larger than what is chosen among
CELLS = 10_000_000
_LEAST_USERS, _WANTED_USERS, _MOST_CELLS = 100, 1000, 200_000_000


class ValidationScore:
    """What hyper-parameters are chosen by; equals the sum of `Evaluator`'s metrics where all users have a part in it.

    Args:
        data: prepared data.
        seed: seed of the users that have a part in it, where not all have.
        cells: users x items up to which all users have a part in it; beyond, 1,000 have as far as 200 million cells
            allow, and 100 at least.

    Raises:
        CLLM4RecError: if no user has validation items.
    """

    def __init__(self, data: PreparedData, seed: int = 0, cells: int = CELLS):
        train, validation = data.histories("train").to_csr(), data.histories("validation").to_csr()
        users = np.flatnonzero(np.diff(validation.indptr))
        if not len(users):
            raise CLLM4RecError(
                "No user has validation items, so nothing can be chosen; prepare with --k-core 3 or more: users of "
                "fewer than three items have none to hold out"
            )
        most = max(_LEAST_USERS, min(_WANTED_USERS, _MOST_CELLS // data.num_items), cells // data.num_items)
        if len(users) > most:
            generator = np.random.Generator(np.random.PCG64(seed))
            users = np.sort(generator.choice(users, most, replace=False))
        # [n] int64, the users
        self.users = users
        # [n, J] sparse, their training histories
        self.histories = train[users]
        self._seen = torch.from_numpy(self.histories.toarray() > 0)
        self._relevant = torch.from_numpy(validation[users].toarray() > 0)
        self._count = self._relevant.sum(dim=1).float()
        self._depth = min(100, data.num_items)
        discounts = 1 / torch.log2(torch.arange(2, 102, dtype=torch.float32))
        self._discounts = discounts[: self._depth]
        self._ideal = discounts.cumsum(0)[self._count.clamp(max=100).long() - 1]

    def parts(self) -> Iterator["ValidationScore"]:
        """The same of some of the users at a time, in their order, of at most 10 million scores each."""
        step = max(1, CELLS // self._seen.shape[1])
        for first in range(0, len(self.users), step):
            part = copy.copy(self)
            for name in ("users", "histories", "_seen", "_relevant", "_count", "_ideal"):
                setattr(part, name, getattr(self, name)[first : first + step])
            yield part

    def __call__(self, scores: Tensor | np.ndarray) -> float:
        """The sum of the three means.

        Args:
            scores: [n, J] of the users' catalogs, higher is better; not changed.
        """
        return float(self.per_user(scores).mean())

    def per_user(self, scores: Tensor | np.ndarray) -> np.ndarray:
        """The sum of the three metrics of each user, [n] float64.

        Args:
            scores: [n, J] of the users' catalogs, higher is better; not changed.
        """
        scores = torch.as_tensor(scores, dtype=torch.float32).masked_fill(self._seen, -torch.inf)
        best = scores.topk(self._depth, dim=1).indices
        hits = self._relevant.gather(1, best).float()
        total = (hits * self._discounts).sum(dim=1) / self._ideal
        for k in (20, 40):
            total = total + hits[:, :k].sum(dim=1) / self._count.clamp(max=k)
        return total.double().numpy()


def first_within_chance(candidates: Sequence[np.ndarray]) -> int:
    """Index of the first candidate that the best one does not beat by more than a standard error.

    The one-standard-error rule (Breiman, Friedman, Olshen, Stone: Classification and Regression Trees, 1984) by
    paired differences: the best of many on validation owes something to luck, so the order says which is preferred
    without evidence.

    Args:
        candidates: metrics of the same users by candidate, [n] each, the preferred ones first.
    """
    best = max(candidates, key=lambda values: values.mean())
    differences = [best - values for values in candidates]
    # the best one itself has neither difference nor error
    return next(k for k, one in enumerate(differences) if one.mean() <= one.std() / np.sqrt(len(one)))
