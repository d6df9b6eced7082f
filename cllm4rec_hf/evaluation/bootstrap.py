"""Bootstrap intervals of a mean over users."""

import numpy as np

# numbers drawn at once: 32 MB of int64
_CELLS = 4_000_000

# a multinomial count costs some eight times as much as a drawn index
_MULTINOMIAL_COST = 8


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    A resample of n values is drawn either index by index or, where few values are distinct, as the multinomial counts
    of the distinct ones. Both are exact draws from the same distribution; the second does not grow with n. A million
    users with a few hundred distinct values take a fraction of a second, memory stays bounded for any n.

    Args:
        values: [n] float, one a user.
        confidence: share of resampled means inside the interval, between 0 and 1.
        num_resamples: number of resamples.
        seed: seed; the same values and seed give the same interval.

    Returns:
        Lower and upper bound; both NaN without values.

    Raises:
        ValueError: if the values are not a vector without NaN, or a setting is out of its range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        raise ValueError(f"Expected a vector without NaN; got shape {values.shape}, {np.isnan(values).sum()} NaN")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be 1 or more, got {num_resamples}")
    if not len(values):
        return float("nan"), float("nan")
    means = _resampled_means(values, num_resamples, np.random.Generator(np.random.PCG64(seed)))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    distinct, counts = np.unique(values, return_counts=True)
    total = len(values)
    if len(distinct) == 1:
        return values[:1]
    by_counts = _MULTINOMIAL_COST * len(distinct) <= total
    rows = max(1, _CELLS // (len(distinct) if by_counts else total))
    parts = []
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        if by_counts:
            parts.append(generator.multinomial(total, counts / total, size=size) @ distinct / total)
        else:
            parts.append(values[generator.integers(0, total, size=(size, total))].mean(axis=1))
    return np.concatenate(parts)
