"""Subsets of the parameters."""

import jax.numpy as jnp
import numpy as np
import pytest

from analysis import masks

BF16 = jnp.bfloat16.dtype


def density(mask):
    """Share of the parameters that a mask holds, of each member."""
    return np.concatenate([x.reshape(len(x), -1) for x in mask.values()], axis=1).mean(axis=1)


@pytest.fixture
def pair():
    """Matrices of two members before and after an update, of three shapes."""
    generator = np.random.default_rng(1)
    shapes = {"a": (2, 6, 5), "b": (2, 40), "c": (2, 8, 8)}
    before = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    after = {n: x + generator.normal(size=x.shape).astype(np.float32) * np.float32(3e-3) for n, x in before.items()}
    return before, after


def test_changed_is_a_difference_of_bfloat16_values(pair):
    before, after = pair
    for tolerance in (0.0, masks.TOLERANCE, 0.01):
        found = masks.changed(before, after, tolerance)
        for name in before:
            for index, value in np.ndenumerate(found[name]):
                first, second = (float(BF16.type(x[name][index])) for x in (before, after))
                assert value == (abs(second - first) > np.float32(tolerance))
    shares = density(masks.changed(before, after))
    assert ((shares > 0.1) & (shares < 0.9)).all()  # the example tells the two apart


def test_the_paper_overlooks_small_moves_of_small_weights():
    before = {"a": np.array([[2.0**-12, 1.0]], np.float32)}
    after = {"a": np.array([[2.0**-12 + 2.0**-19, 1.0 + 2.0**-7]], np.float32)}
    np.testing.assert_array_equal(masks.changed(before, after)["a"], [[True, True]])
    np.testing.assert_array_equal(masks.changed(before, after, masks.TOLERANCE)["a"], [[False, True]])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 1.0])
def test_largest_takes_the_farthest_moves_of_all_matrices_together(pair, share):
    before, after = pair
    found = masks.largest(before, after, share)
    np.testing.assert_allclose(density(found), round(share * 134) / 134)
    for member in range(2):
        moves, taken = (
            np.concatenate([x[member].ravel() for x in xs])
            for xs in ([np.abs(after[n] - before[n]) for n in before], found.values())
        )
        if 0 < taken.sum() < len(taken):
            assert moves[taken].min() >= moves[~taken].max()


def test_ties_do_not_change_the_density():
    before = {"a": np.zeros((1, 10), np.float32), "b": np.zeros((1, 10), np.float32)}
    found = masks.largest(before, before, 0.25)
    np.testing.assert_array_equal(found["a"][0], [True] * 5 + [False] * 5)
    assert not found["b"].any()


def test_ties_can_be_drawn_so_that_members_share_no_order():
    before = {"a": np.zeros((2, 5000), np.float32), "b": np.zeros((2, 5000), np.float32)}
    after = {name: x.copy() for name, x in before.items()}
    after["b"][:, :100] = 1.0
    found = masks.largest(before, after, 0.1, seed=0)
    np.testing.assert_array_equal(density(found), 0.1)
    assert found["b"][:, :100].all()  # only ties are drawn
    first, second = (np.concatenate([found["a"][m], found["b"][m, 100:]]) for m in range(2))
    expected, deviation = 900 * 900 / 9900, np.sqrt(900 * 900 / 9900 * (1 - 1 / 11) ** 2)
    assert abs((first & second).sum() - expected) < 5 * deviation
    again = masks.largest(before, after, 0.1, seed=0)
    assert all((found[name] == again[name]).all() for name in found)


def test_controls_have_as_many_parameters_in_every_matrix(pair):
    before, after = pair
    mask = masks.largest(before, after, 0.2)
    drawn, again, other = (masks.random(mask, seed) for seed in (3, 3, 4))
    small = masks.smallest_weights(before, mask)
    for name, x in mask.items():
        counts = x.reshape(2, -1).sum(axis=1)
        for control in (drawn, small):
            np.testing.assert_array_equal(control[name].reshape(2, -1).sum(axis=1), counts)
        np.testing.assert_array_equal(drawn[name], again[name])
        for member in range(2):
            size = np.abs(before[name][member])
            taken = small[name][member]
            if taken.any() and not taken.all():
                assert size[taken].max() <= size[~taken].min()
    assert any((drawn[name] != other[name]).any() for name in mask)


def test_random_masks_are_uniform():
    mask = {"a": np.zeros((1, 8), bool)}
    mask["a"][0, :2] = True
    drawn = np.stack([masks.random(mask, seed)["a"][0] for seed in range(2000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 2000))


def test_a_mask_and_its_complement_share_nothing(pair):
    before, after = pair
    mask = masks.largest(before, after, 0.3)
    other = masks.complement(mask)
    assert not any((mask[name] & other[name]).any() for name in mask)
    np.testing.assert_allclose(density(mask) + density(other), 1.0)


def test_top_is_the_share_with_the_highest_scores():
    scores = np.array([[1.0, 5.0, 5.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    np.testing.assert_array_equal(masks.top(scores, 0.5), [[False, True, True, False], [True, True, False, False]])
    np.testing.assert_array_equal(masks.top(scores, 0.25), [[False, True, False, False], [True, False, False, False]])


def test_updates_are_compared_by_what_moved_farthest_and_by_what_changed(pair):
    before, after = pair
    found = masks.compared(before, after)
    assert list(found) == list(masks.MASKS)
    np.testing.assert_allclose(density(found["farthest_10_percent"]), 13 / 134)
    for name, mask in masks.changed(before, after).items():
        np.testing.assert_array_equal(found["changed_bf16"][name], mask)
    # Nothing that stood still has moved far, be it never so few that moved.
    few = {name: x.copy() for name, x in before.items()}
    few["b"][0, 7] += 1
    mask = masks.compared(before, few)["farthest_10_percent"]
    assert [int(sum(x[member].sum() for x in mask.values())) for member in range(2)] == [1, 0]
    assert mask["b"][0, 7]


def test_equally_far_moves_are_drawn_apart_by_the_seed():
    before = {"a": np.zeros((1, 1000), np.float32)}
    after = {"a": np.ones((1, 1000), np.float32)}
    first, again, other = (masks.compared(before, after, seed)["farthest_10_percent"]["a"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first & other).sum() < 30  # a tenth of a tenth is 10
