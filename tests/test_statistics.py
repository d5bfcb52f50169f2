"""The estimates over a population, against SciPy's."""

import numpy as np
import pytest
import scipy.stats

from ground import statistics


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


# Strata


def test_one_stratum_is_none():
    values = np.random.default_rng(5).normal(size=(2, 9))
    plain, one = (statistics.bootstrap_interval(values, resamples=99, strata=x) for x in (None, np.full(9, 7)))
    np.testing.assert_array_equal(plain, one)


def test_strata_are_resampled_apart():
    # Between strata members differ by a thousand, within them hardly: only a draw across strata could move the mean.
    strata = np.array([0, 1, 0, 1, 1, 0])
    values = 1000.0 * strata + np.random.default_rng(6).normal(size=6)
    low, high = statistics.bootstrap_interval(values, statistic=np.mean, strata=strata)
    assert 495 < low < values.mean() < high < 505
    low, high = statistics.bootstrap_interval(values, statistic=np.mean)
    assert high - low > 300
    alone = statistics.bootstrap_interval(values, statistic=np.mean, strata=np.arange(6))
    np.testing.assert_array_equal(alone, [values.mean()] * 2)  # nobody to be exchanged with


def test_stratified_interval_covers_as_often_as_it_says():
    generator, strata = np.random.default_rng(7), np.repeat([0, 1, 2], 20)
    trials, hits, wide = 300, 0, 0
    for seed in range(trials):
        values = 10.0 * strata + generator.normal(size=60)
        low, high = statistics.bootstrap_interval(
            values, statistic=np.mean, strata=strata, interval=0.9, resamples=200, seed=seed
        )
        hits += low < 10 < high
        wide += high - low > 2 * 1.645 / 60**0.5 * 1.5
    # Percentiles of 20 members are sqrt(19/20) too narrow: 0.89 is expected; 4 standard deviations of the binomial.
    assert abs(hits / trials - 0.89) < 4 * (0.89 * 0.11 / trials) ** 0.5
    assert wide == 0


@pytest.mark.parametrize("strata", [np.zeros(2, int), np.zeros((3, 1), int)])
def test_strata_name_each_member(strata):
    with pytest.raises(ValueError, match="strata of shape"):
        statistics.bootstrap_interval(np.ones((2, 3)), strata=strata)


# Probability of improvement


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (40, 30)])
def test_improvement_is_mann_whitney(sizes):
    generator = np.random.default_rng(sum(sizes))
    first, second = (generator.integers(0, 6, size=n).astype(float) for n in sizes)  # many ties
    expected = scipy.stats.mannwhitneyu(first, second).statistic / (sizes[0] * sizes[1])
    found = statistics.probability_of_improvement(first, second)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(statistics.probability_of_improvement(second, first), 1 - expected, rtol=1e-12)


def test_improvement_averages_over_strata():
    first, second = np.array([3.0, 1.0, 10.0, 12.0]), np.array([2.0, 20.0, 11.0, 11.0, 0.0])
    one, other = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1, 1])
    # Label 0: 3 and 1 against 2. Label 1: 10 beats 0 alone, 12 beats 11, 11 and 0.
    expected = ((1 + 0) / 2 + (1 + 3) / 8) / 2
    assert statistics.probability_of_improvement(first, second, (one, other)) == expected
    stacked = statistics.probability_of_improvement(np.stack([first, -first]), np.stack([second, -second]))
    np.testing.assert_allclose(stacked.sum(), 1.0)
    assert statistics.probability_of_improvement(np.array([np.inf, 1.0]), np.array([np.inf])) == 0.25
    assert np.isnan(statistics.probability_of_improvement(np.array([np.nan, 1.0]), second))


def test_improvement_interval_draws_both_groups_within_strata():
    first, second = np.array([0.0, 1.0, 10.0, 11.0]), np.array([0.5, 10.5])
    strata = np.array([0, 0, 1, 1]), np.array([0, 1])
    low, high = statistics.improvement_interval(first, second, strata)
    assert (low, high) == (0.0, 1.0)  # of the two in each stratum, sometimes only the worse is drawn
    low, high = statistics.improvement_interval(np.array([1.0, 2.0]), np.array([-1.0, 0.0, 0.5]))
    assert (low, high) == (1.0, 1.0)
    low, high = statistics.improvement_interval(np.array([1.0]), np.array([0.0, 2.0]))
    assert (low, high) == (0.0, 1.0)  # the second group varies too


def test_improvement_interval_covers_as_often_as_it_says():
    generator, trials, shift = np.random.default_rng(8), 250, 1.0
    truth = scipy.stats.norm.cdf(shift / 2**0.5)
    hits = 0
    for seed in range(trials):
        first, second = generator.normal(shift, size=25), generator.normal(size=25)
        low, high = statistics.improvement_interval(first, second, interval=0.9, resamples=150, seed=seed)
        hits += low < truth < high
    # 150 resamples and 25 members cost about a hundredth each; 4 standard deviations of the binomial.
    assert abs(hits / trials - 0.88) < 4 * (0.88 * 0.12 / trials) ** 0.5


def test_improvement_refuses_groups_that_cannot_be_compared():
    with pytest.raises(ValueError, match="no members"):
        statistics.probability_of_improvement(np.ones(0), np.ones(2))
    with pytest.raises(ValueError, match="differ in their strata"):
        statistics.improvement_interval(np.ones(2), np.ones(2), (np.array([0, 1]), np.array([0, 2])))


# Permutation tests


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_p_value_counts_the_observed_among_its_null(alternative):
    null, observed = np.array([[-3.0, -1.0, 0.0, 2.0]]), np.array([1.5])
    expected = {"greater": 2 / 5, "less": 4 / 5, "two-sided": 4 / 5}[alternative]
    np.testing.assert_allclose(
        statistics.permutation_p_value(observed, null, alternative=alternative), [expected], rtol=1e-12
    )
    floor = (2 if alternative == "two-sided" else 1) / 5
    extreme = -9.0 if alternative == "less" else 9.0
    assert statistics.permutation_p_value(extreme, null[0], alternative=alternative) == floor
    assert np.isnan(statistics.permutation_p_value(np.nan, null[0], alternative=alternative))


def test_p_value_takes_ties_and_a_null_that_is_not_centred():
    assert statistics.permutation_p_value(0.1 + 0.2, np.array([0.3, 0.3]), alternative="greater") == 1.0
    null = np.random.default_rng(9).normal(-0.5, 0.1, size=(999, 2))
    far, typical = statistics.permutation_p_value(np.array([0.0, -0.5]), null, axis=0)
    assert far == 0.002
    assert typical > 0.8


def test_permutation_tests_refuse_what_means_nothing():
    with pytest.raises(ValueError, match="no draws"):
        statistics.permutation_p_value(1.0, np.ones(0))
