"""P values against counting by hand."""

import numpy as np
import pytest

from ground import statistics


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
