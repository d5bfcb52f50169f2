"""The estimates over a population, against SciPy's."""

import numpy as np
import pytest
import scipy.stats

from agents import statistics


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7, 8, 33])
def test_interquartile_mean_is_the_trimmed_mean(members):
    values = np.random.default_rng(members).normal(size=(5, members, 3))
    expected = scipy.stats.trim_mean(values, 0.25, axis=1)
    np.testing.assert_allclose(statistics.interquartile_mean(values, axis=1), expected, rtol=1e-12)


def test_interquartile_mean_ignores_outliers():
    assert statistics.interquartile_mean(np.array([-1e9, 1.0, 3.0, 1e9])) == 2.0


@pytest.mark.parametrize("interval", [0.5, 0.95])
def test_bootstrap_interval_is_the_percentile_bootstrap(interval):
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(4, 20))
    low, high = statistics.bootstrap_interval(values, interval=interval, resamples=500, seed=7)
    expected = scipy.stats.bootstrap(
        (values,),
        lambda sample, axis: scipy.stats.trim_mean(sample, 0.25, axis=axis),
        axis=-1,
        n_resamples=500,
        confidence_level=interval,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    np.testing.assert_allclose(low, expected.low, rtol=1e-12)
    np.testing.assert_allclose(high, expected.high, rtol=1e-12)


def test_bootstrap_interval_takes_any_axis_and_statistic():
    values = np.random.default_rng(2).normal(size=(12, 3))
    low, high = statistics.bootstrap_interval(values, 0, statistic=np.mean, resamples=200)
    assert low.shape == high.shape == (3,)
    assert np.all((low < values.mean(axis=0)) & (values.mean(axis=0) < high))


def test_bootstrap_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(3).normal(size=(200, 40))
    low, high = statistics.bootstrap_interval(draws, interval=0.9, resamples=300)
    assert 0.8 < np.mean((low < 0) & (high > 0)) < 0.97


def test_bootstrap_interval_repeats_itself_and_one_member_has_none():
    values = np.random.default_rng(4).normal(size=(3, 8))
    first, again = (statistics.bootstrap_interval(values, resamples=50, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    low, high = statistics.bootstrap_interval(values[:, :1], resamples=50)
    np.testing.assert_array_equal(low, values[:, 0])
    np.testing.assert_array_equal(high, values[:, 0])


@pytest.mark.parametrize("options", [{"interval": 1.0}, {"interval": 0.0}, {"resamples": 0}])
def test_bootstrap_interval_refuses_what_means_nothing(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        statistics.bootstrap_interval(np.ones((2, 3)), **options)


def test_statistics_need_a_member():
    with pytest.raises(ValueError, match="no members"):
        statistics.interquartile_mean(np.ones((2, 0)))
    with pytest.raises(ValueError, match="no members"):
        statistics.bootstrap_interval(np.ones((2, 0)))
