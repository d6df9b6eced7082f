"""Samples of the catalog that stand for all of it in an item softmax."""

import numpy as np
import torch


class ItemSampler:
    """Draws items with replacement, one half of them by popularity and one half uniformly.

    Popular items hold most of a softmax's mass, so they make the estimate exact where it matters; the uniform half
    bounds the weight of all others. The draw depends on the seed and the step alone: micro-batches and processes that
    share a step share it.

    Args:
        popularity: [J] counts of each item in the training interactions.
        size: items to draw, S.
        seed: seed of everything random.

    Raises:
        ValueError: if there are no items or the size is not positive.
    """

    def __init__(self, popularity: np.ndarray, size: int, seed: int = 0):
        if size < 1 or not len(popularity):
            raise ValueError(
                f"Expected a catalog and a size of 1 or more, got {len(popularity)} items and size {size}"
            )
        counts = np.asarray(popularity, dtype=np.float64)
        share = counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / len(counts))
        self.probability = 0.5 * share + 0.5 / len(counts)
        self._upper = np.cumsum(self.probability)
        self.size, self.seed = size, seed

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The sample of a step.

        Args:
            step: number of the optimizer step.

        Returns:
            Item indices [S] int64, ascending, with repetitions; and log(S · q) of each [S] float32, the logarithm of
            how often the sample is expected to hold the item.
        """
        generator = np.random.Generator(np.random.PCG64([self.seed, step]))
        points = np.sort(generator.random(self.size)) * self._upper[-1]
        items = np.searchsorted(self._upper, points, side="right").clip(max=len(self._upper) - 1)
        log_expected = np.log(self.size * self.probability[items])
        return torch.from_numpy(items), torch.from_numpy(log_expected.astype(np.float32))
