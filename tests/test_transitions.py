"""Levels and bends along training, planted and found again."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from analysis import transitions

STRONG = 6.0
"""Gain of BIC."""


def along(values):
    """float[checkpoint, member] of checkpoints in rows."""
    values = np.asarray(values, float)
    return xr.DataArray(values.reshape(len(values), -1), dims=("checkpoint", "member"))


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.floats(0.05, 0.95))
def test_a_level_is_read_off_the_line_between_checkpoints(steps, share):
    x = np.concatenate([[0.0], np.cumsum(steps)])
    level = x[-2] + share * (x[-1] - x[-2])
    told = transitions.at(along(3 * x + 1), along(x), level)
    np.testing.assert_allclose(told.values, [3 * level + 1], rtol=1e-6)


def test_the_first_time_counts_and_who_never_comes_there_has_no_number():
    x = along([[0.0, 0.0], [0.4, 0.1], [0.2, 0.2], [0.6, 0.3]])
    y = along([[0.0, 0.0], [4.0, 1.0], [9.0, 2.0], [9.0, 3.0]])
    told = transitions.at(y, x, 0.35)
    np.testing.assert_allclose(told.values, [3.5, np.nan])
    np.testing.assert_allclose(transitions.at(y, x, along([[0.2, 0.3]]).isel(checkpoint=0)).values, [2.0, 3.0])


def test_arms_are_compared_where_both_have_come():
    steps = np.array([0.0, 1.0, 2.0, 4.0])
    one = along(np.stack([3 * steps, 3 * steps], axis=1)), along(np.stack([steps, steps / 8], axis=1))
    other = along(np.stack([steps, 5 * steps], axis=1)), along(np.stack([steps / 2, steps], axis=1))
    # The first member of `other` comes to 2 only, at its end; the second of `one` to a half.
    np.testing.assert_allclose(transitions.less(one, other).values, [3 * 2 - 4, 3 * 4 - 5 * 0.5])
    np.testing.assert_allclose(transitions.less(other, one).values, [4 - 3 * 2, 5 * 0.5 - 3 * 4])
    # With a further axis, such as mazes, each place of it is read by itself; there may be none.
    wide = [(values.expand_dims(maze=2, axis=2) * xr.DataArray([1, 10], dims="maze"), x) for values, x in (one, other)]
    expected = np.outer([3 * 2 - 4, 3 * 4 - 5 * 0.5], [1, 10])
    np.testing.assert_allclose(transitions.less(*wide).transpose("member", "maze").values, expected)
    assert transitions.less(*((values.isel(maze=[]), x) for values, x in wide)).sizes == {"member": 2, "maze": 0}


@pytest.mark.parametrize(("turn", "first", "then"), [(1.0, 0.9, 0.1), (0.5, 0.7, 0.0), (2.0, 1.0, 0.4)])
def test_a_planted_transition_is_found(turn, first, then):
    x = np.linspace(0, 3, 25)
    y = first * np.minimum(x, turn) + then * np.maximum(x - turn, 0)
    noise = np.random.default_rng(0).normal(0, 1e-3, (25, 2))
    told = transitions.marginal(along(y[:, None] + noise), along(np.stack([x, x], axis=1)))
    np.testing.assert_allclose(told.values, turn, atol=0.13)  # a step of the grid
    where, gain = transitions.bend(along(y[:, None] + noise), along(np.stack([x, x], axis=1)))
    np.testing.assert_allclose(where.values, turn, atol=0.07)
    assert (gain.values > STRONG).all()


def test_no_transition_where_there_is_none():
    x = np.linspace(0, 3, 12)
    assert transitions.marginal(along(0.8 * x), along(x)).item() == 3.0  # at least so much
    assert transitions.marginal(along(0.2 * x), along(x)).item() == 0.0
    noise = np.random.default_rng(1).normal(0, 0.02, 12)
    assert transitions.bend(along(0.8 * x + noise), along(x))[1].item() < STRONG


def test_a_curve_through_any_points_proves_nothing():
    """Two checkpoints after the base: a broken line meets them whatever they are; three: so does a cubic."""
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.4, 0.1, 0.5])
    assert np.isnan(transitions.bend(along(y[:3]), along(x[:3]))[1].item())
    assert np.isfinite(transitions.bend(along(y), along(x))[1].item())
    assert np.isnan(transitions.apart([(along(part), along(x)) for part in (y, y[::-1] - y[-1])]).item())


def test_late_selection_does_not_hide_behind_an_early_change():
    """A model that first changes, and then selects, has no KL from which on it selects less than half."""
    x = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    y = np.array([0.0, 0.0, 0.1, 1.0, 2.0])
    assert transitions.marginal(along(y), along(x)).item() == 3.0


def test_what_stays_above_a_floor():
    values, floor, kl = along([0.3, 0.1, 0.4, 0.5]), along([0.2, 0.2, 0.2, 0.2]), along([0.1, 0.2, 0.3, 0.4])
    assert transitions.exceeds(values, floor, kl).item() == 0.3
    assert np.isnan(transitions.exceeds(floor, values, kl).item())


def test_one_curve_and_curves_of_their_own():
    rng, x = np.random.default_rng(2), along(np.linspace(0, 2, 9)[:, None] * np.ones((1, 5)))

    def noisy(values):
        return values + rng.normal(0, 0.01, values.shape)

    same = transitions.apart([(noisy(np.sqrt(x)), x) for _ in range(3)])
    other = transitions.apart([(noisy(factor * np.sqrt(x)), x) for factor in (1.0, 1.2, 0.7)])
    assert (same.values < STRONG).all()
    assert (other.values > 10 * STRONG).all()
