"""The bootstrap against scipy's, the normal approximation, and its promise of coverage."""

import tracemalloc

import numpy as np
import pytest

from cllm4rec_hf.evaluation.bootstrap import bootstrap_interval

FEW = np.random.Generator(np.random.PCG64(0)).binomial(4, 0.3, 900) / 4
MANY = np.random.Generator(np.random.PCG64(0)).beta(1, 3, 900)


@pytest.mark.parametrize("values", [FEW, MANY], ids=["few distinct", "all distinct"])
def test_same_seed_same_interval(values):
    first = bootstrap_interval(values, seed=5)
    assert first == bootstrap_interval(values, seed=5)
    assert first != bootstrap_interval(values, seed=6)


@pytest.mark.parametrize("values", [FEW, MANY], ids=["few distinct", "all distinct"])
@pytest.mark.parametrize(("confidence", "deviations"), [(0.95, 1.959964), (0.5, 0.674490)])
def test_close_to_the_normal_approximation(values, confidence, deviations):
    low, high = bootstrap_interval(values, confidence, num_resamples=8000)
    half = deviations * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("values", [FEW[:40], MANY[:40] ** 3], ids=["few distinct", "skewed"])
def test_close_to_scipy(values):
    from scipy.stats import bootstrap

    oracle = bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1))
    expected = oracle.confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose(bootstrap_interval(values, num_resamples=20000), expected, atol=0.03 * width)


def test_covers_the_true_mean_about_as_often_as_promised():
    generator = np.random.Generator(np.random.PCG64(3))
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(generator.binomial(4, 0.3, 300) / 4, num_resamples=300, seed=trial)
        covered += low <= 0.3 <= high
    # 3 standard deviations of the binomial around .95, and a little for the finite sample
    assert 0.91 <= covered / 400 <= 0.98


def test_constant_one_and_no_values():
    assert bootstrap_interval(np.full(10, 0.25)) == (0.25, 0.25)
    assert bootstrap_interval(np.array([0.5])) == (0.5, 0.5)
    assert np.isnan(bootstrap_interval(np.array([]))).all()


def test_memory_does_not_grow_with_the_number_of_resamples():
    values = np.random.Generator(np.random.PCG64(0)).random(100_000)
    tracemalloc.start()
    bootstrap_interval(values, num_resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # at once, 200 resamples would be 160 MB of indices and as much of values
    assert peak < 100e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": np.array([0.1, np.nan])}, "1 NaN"),
        ({"values": np.zeros((2, 2))}, r"shape \(2, 2\)"),
        ({"values": FEW, "confidence": 95}, "between 0 and 1, got 95"),
        ({"values": FEW, "num_resamples": 0}, "1 or more, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)
