"""Estimates: that a 95 % interval covers what it should as often as it says, and what counts as evidence."""

import numpy as np
import pytest
import scipy.stats

from ground import statistics
from ground.estimates import INDEPENDENT, Estimate

SAMPLES = 60_000
"""A coverage of .95 is then measured to ±.0018, two standard errors."""

MEMBERS = {
    "normal": (lambda generator, size: generator.normal(size=size), 0.0),
    "successes": (lambda generator, size: generator.binomial(64, 0.9, size=size) / 64, 0.9),
    "rare successes": (lambda generator, size: generator.binomial(24, 0.1, size=size) / 24, 0.1),
    "unlike members": (lambda generator, size: generator.binomial(64, generator.beta(8, 2, size)) / 64, 0.8),
    "skewed": (lambda generator, size: generator.lognormal(0, 0.5, size=size), np.exp(0.125)),
    "exponential": (lambda generator, size: generator.exponential(size=size), 1.0),
    "heavy tails": (lambda generator, size: generator.laplace(size=size), 0.0),
}
"""Draws of members float[...] and their true mean."""


def covered(ends, truth):
    low, high = ends
    return np.mean((low <= truth) & (truth <= high))


# Coverage


@pytest.mark.parametrize("members", [8, 12, 24])
@pytest.mark.parametrize("kind", MEMBERS)
def test_interval_covers_as_often_as_it_says(kind, members):
    draw, truth = MEMBERS[kind]
    values = draw(np.random.default_rng(members), (SAMPLES, members))
    # Two digits, .94 to .96, but for eight members with heavy tails: .965. There plain t has .961.
    assert 0.935 < covered(statistics.mean_of(values).interval(), truth) < (0.97 if kind == "heavy tails" else 0.965)


@pytest.mark.parametrize("bases", [8, 12, 24])
def test_interval_covers_where_members_share_bases(bases):
    generator = np.random.default_rng(bases)
    of_base = generator.normal(size=(SAMPLES // 2, bases, 1)) + generator.normal(size=(SAMPLES // 2, bases, 3))
    members, labels = of_base.reshape(SAMPLES // 2, 3 * bases), np.repeat(np.arange(bases), 3)
    assert 0.935 < covered(statistics.mean_of(members, units=labels).interval(), 0.0) < 0.965
    assert covered(statistics.mean_of(members).interval(), 0.0) < 0.86  # as if a base's members were independent


CROSSED = {  # deviations of members, mazes and cells
    "both": (1.0, 1.0, 1.0),
    "both alike": (0.4, 1.0, 1.0),
    "members": (1.0, 0.0, 1.0),
    "mazes": (0.0, 1.0, 1.0),
    "no noise": (1.0, 1.0, 0.0),
}


@pytest.mark.parametrize(("members", "mazes"), [(8, 16), (8, 64), (12, 48), (24, 32)])
@pytest.mark.parametrize("effects", CROSSED)
def test_crossed_interval_covers_other_members_on_other_mazes(effects, members, mazes):
    generator, samples = np.random.default_rng(members + mazes), 6000
    shapes = (samples, members, 1), (samples, 1, mazes), (samples, members, mazes)
    values = sum(part * generator.normal(size=shape) for part, shape in zip(CROSSED[effects], shapes, strict=True))
    mean = statistics.crossed_mean(values)
    assert 0.935 < covered(mean.interval(), 0.0) < 0.97
    # No estimate of the variance is cut off here, so that it is right on average.
    if effects == "no noise":
        np.testing.assert_allclose((mean.error**2).mean(), 1 / members + 1 / mazes, rtol=0.05)
    if effects == "both" and members == 24:
        for axis in (-1, -2):  # as if the mazes were all there are, or the members
            assert covered(statistics.mean_of(values.mean(axis=axis)).interval(), 0.0) < 0.88


@pytest.mark.parametrize("members", [8, 12, 24])
def test_crossed_interval_covers_successes(members):
    generator, samples = np.random.default_rng(members), 6000
    skill, ease = generator.normal(size=(samples, members, 1)), generator.normal(size=(samples, 1, 48))
    values = (generator.random((samples, members, 48)) < scipy.stats.norm.cdf(0.5 * skill + ease - 0.5)).astype(float)
    truth = scipy.stats.norm.cdf(-0.5 / (1 + 0.25 + 1) ** 0.5)  # the three normal variables are one of this deviation
    assert 0.935 < covered(statistics.crossed_mean(values).interval(), truth) < 0.97


def test_crossed_interval_is_long_where_nothing_but_cells_varies():
    values = np.random.default_rng(1).normal(size=(6000, 8, 64))
    assert 0.96 < covered(statistics.crossed_mean(values).interval(), 0.0) < 0.99


# The interval and its p value


def test_members_without_skew_have_students_t():
    values = np.array([1.0, 2.0, 4.0, 6.0, 7.0])
    estimate = Estimate.of(values, "steps", "untrained")
    expected = scipy.stats.ttest_1samp(values, 3.0)
    interval = expected.confidence_interval()
    np.testing.assert_allclose([estimate.low, estimate.high], [interval.low, interval.high], rtol=1e-12)
    np.testing.assert_allclose(estimate.p_value(3.0), expected.pvalue, rtol=1e-9)
    assert (estimate.meaning, estimate.control, estimate.values) == ("steps", "untrained", tuple(values))
    assert (estimate.mean, estimate.members, estimate.degrees) == (4.0, 5, 4.0)


def test_long_tail_ends_where_halls_transformation_does():
    values = np.random.default_rng(2).exponential(size=9)
    skew, error, q = scipy.stats.skew(values) / 3, scipy.stats.sem(values), scipy.stats.t.ppf(0.975, 8)
    polynomial = [skew**2 / 27, skew / 3, 1.0, skew / 6 + q]  # of t, its value being −q
    (root,) = (x.real for x in np.roots(polynomial) if abs(x.imag) < 1e-9)
    for sign, long, short in ((1, "high", "low"), (-1, "low", "high")):
        estimate = Estimate.of(sign * values)
        np.testing.assert_allclose(getattr(estimate, long), sign * (values.mean() - root * error), rtol=1e-12)
        np.testing.assert_allclose(getattr(estimate, short), sign * (values.mean() - q * error), rtol=1e-12)
    assert -root > 1.2 * q


def test_p_value_agrees_with_the_interval():
    generator = np.random.default_rng(3)
    for values in (generator.exponential(size=8), -generator.lognormal(size=5), generator.normal(size=(12, 9))):
        estimate = Estimate.of(values) if values.ndim == 1 else Estimate.crossed(values)
        np.testing.assert_allclose([estimate.p_value(estimate.low), estimate.p_value(estimate.high)], 0.05, rtol=1e-9)
        assert estimate.p_value(estimate.mean) == 1
        bounds = np.linspace(estimate.low - 9, estimate.high + 9, 50)
        p = np.array([estimate.p_value(bound) for bound in bounds])
        np.testing.assert_array_equal(p < 0.05, (bounds < estimate.low) | (bounds > estimate.high))
        assert np.all(np.diff(p[bounds < estimate.mean]) > 0)
        assert np.all(np.diff(p[bounds > estimate.mean]) < 0)


def test_members_that_agree_leave_no_width():
    estimate = Estimate.of([0.1] * 7)
    assert (estimate.low, estimate.high, estimate.error) == (estimate.mean, estimate.mean, 0.0)
    assert (estimate.p_value(estimate.mean), estimate.p_value(0.2)) == (1.0, 0.0)
    estimate = Estimate.crossed(np.full((5, 6), 0.1))
    np.testing.assert_allclose([estimate.low, estimate.high], 0.1, rtol=1e-12)


# What counts as evidence


def test_below_independence_there_is_a_mean_and_no_interval():
    for estimate in (
        Estimate.of(np.arange(INDEPENDENT - 1)),
        Estimate.of(np.arange(9), units=np.arange(9) // 3),
        Estimate.of([0.0, 1.0, 2.0, np.nan, np.inf]),
        Estimate.crossed(np.ones((INDEPENDENT - 1, 50)) * np.arange(50)),
        Estimate.crossed(np.ones((9, 50)) * np.arange(50), units=np.arange(9) // 3),
    ):
        assert estimate.members == INDEPENDENT - 1
        assert np.isfinite(estimate.mean)
        assert np.isnan([estimate.low, estimate.high, estimate.error, estimate.degrees, estimate.p_value(0.5)]).all()
    few_mazes = Estimate.crossed(np.random.default_rng(4).normal(size=(9, INDEPENDENT - 1)))
    assert np.isnan([few_mazes.low, few_mazes.high, few_mazes.p_value()]).all()
    for nothing in (Estimate.of([]), Estimate.of([np.nan] * 6), Estimate.crossed(np.full((6, 5), np.nan))):
        assert nothing.members == 0
        assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()
    assert np.isfinite(Estimate.of(np.arange(INDEPENDENT)).low)


def numbers(estimate):
    return [getattr(estimate, name) for name in ("mean", "low", "high", "members", "error", "degrees", "skew")]


def test_duplicates_never_count():
    generator = np.random.default_rng(5)
    values, cells, twice = generator.exponential(size=6), generator.exponential(size=(6, 20)), np.arange(12) % 6
    np.testing.assert_allclose(numbers(Estimate.of(values[twice], units=twice)), numbers(Estimate.of(values)))
    doubled = Estimate.crossed(cells[twice], units=twice)
    np.testing.assert_allclose(numbers(doubled), numbers(Estimate.crossed(cells)))
    assert len(doubled.values) == 12
    counted = Estimate.of(values[twice])
    assert counted.high - counted.low < 0.8 * (Estimate.of(values).high - Estimate.of(values).low)


def test_units_count_equally_and_members_that_diverged_not_at_all():
    values, units = np.array([1.0, 3.0, 5.0, 7.0, np.nan, 9.0, np.nan]), np.array([4, 4, 2, 0, 0, 1, 3])
    expected = [2.0, 5.0, 7.0, 9.0]
    np.testing.assert_allclose(numbers(Estimate.of(values, units=units)), numbers(Estimate.of(expected)))
    assert np.isnan(Estimate.of(values, units=units).values[4])
    cells = np.random.default_rng(6).normal(size=(7, 12))
    whole = Estimate.crossed(cells[:6, :11])
    cells[6, 3], cells[:, 11] = np.nan, np.nan  # a member without a maze, and a maze without members
    estimate = Estimate.crossed(cells)
    np.testing.assert_allclose(numbers(estimate), numbers(whole))
    assert np.isnan(estimate.values[6])
    np.testing.assert_allclose(estimate.values[:6], cells[:6, :11].mean(axis=1))


def test_band_is_the_interval_of_each_point():
    values = np.random.default_rng(7).exponential(size=(3, 10, 4))
    values[1, 2, 3] = np.nan
    low, high = statistics.mean_of(values, axis=1, units=np.arange(10) // 2).interval()
    for i, j in np.ndindex(3, 4):
        estimate = Estimate.of(values[i, :, j], units=np.arange(10) // 2)
        np.testing.assert_allclose([low[i, j], high[i, j]], [estimate.low, estimate.high], rtol=1e-12)


def test_estimates_refuse_what_means_nothing():
    for make, values in ((Estimate.of, np.ones(5)), (statistics.mean_of, np.ones(5)), (Estimate.crossed, np.eye(5))):
        with pytest.raises(ValueError, match=r"units of shape \[3\] for 5 members"):
            make(values, units=np.arange(3))


# Many questions


def test_holm_multiplies_by_the_questions_that_are_left():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.02, 0.02, 0.9, 0.6]), [0.08, 0.08, 1.0, 1.0])
    np.testing.assert_allclose(statistics.holm([0.02, np.nan, 0.01]), [0.04, np.nan, 0.03])  # asked, and not answered
    assert statistics.holm([0.03]) == [0.03]
    assert statistics.holm([]).shape == (0,)


def test_holm_errs_once_in_twenty_families():
    p = np.random.default_rng(8).random((4000, 6))
    adjusted = np.array([statistics.holm(family) for family in p])
    assert 0.04 < np.mean(adjusted.min(axis=1) < 0.05) < 0.06
    np.testing.assert_allclose(adjusted.min(axis=1), np.minimum(1, 6 * p.min(axis=1)))
