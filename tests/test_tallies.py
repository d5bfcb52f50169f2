"""Overlaps of masks against chance."""

import itertools

import numpy as np
import pytest
import scipy.stats

from analysis import tallies
from ground import statistics

SHAPES = {"a": (20, 16), "b": (64,), "c": (8, 50)}


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def drawn(generator, members, densities=(0.1, 0.5, 0.3)):
    return {
        name: generator.random((members, *shape)) < density
        for (name, shape), density in zip(SHAPES.items(), densities, strict=True)
    }


def weights(generator, members):
    return {name: generator.normal(size=(members, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


def test_overlaps_are_those_of_sets(generator):
    first, second = drawn(generator, 3), drawn(generator, 2)
    parts = tallies.tallies(first, second, weights(generator, 3), weights(generator, 2))
    found = tallies.total(parts, list(SHAPES)).overlaps()["seen"]
    for i, j in itertools.product(range(3), range(2)):
        one, other = (
            {(name, *index) for name, x in masks.items() for index in np.argwhere(x[member]).tolist()}
            for masks, member in ((first, i), (second, j))
        )
        both = len(one & other)
        expected = {"o1": both / len(one), "o2": both / len(other), "jaccard": both / len(one | other)}
        assert {name: x[i, j] for name, x in found.items()} == pytest.approx(expected)


def test_a_planted_overlap_is_found_exactly():
    first, second = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
    first[0, :40], second[0, 30:50] = True, True
    tally = tallies.tally(first, second, np.ones((1, 100)), np.ones((1, 100)))
    found = {name: {key: x.item() for key, x in table.items()} for name, table in tally.overlaps().items()}
    assert found["seen"] == {"o1": 10 / 40, "o2": 10 / 20, "jaccard": 10 / 50}
    # E[o1] = |B| / n and E[o2] = |A| / n (arXiv 2505.11711, section 5); Jaccard pq / (p + q − pq).
    assert found["independent"] == pytest.approx({"o1": 0.2, "o2": 0.4, "jaccard": 0.08 / 0.52})


def test_the_coarse_chances_are_means_of_hypergeometric_laws(generator):
    first, second = drawn(generator, 2), drawn(generator, 2)
    parts = tallies.tallies(first, second, weights(generator, 2), weights(generator, 2))
    total = tallies.total(parts, list(SHAPES))
    counts = [{name: int(x[0].sum()) for name, x in masks.items()} for masks in (first, second)]
    sizes = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    within = sum(scipy.stats.hypergeom(sizes[n], counts[0][n], counts[1][n]).mean() for n in SHAPES)
    anywhere = scipy.stats.hypergeom(sum(sizes.values()), *(sum(c.values()) for c in counts)).mean()
    assert total.within_matrix[0, 0] == pytest.approx(within)
    assert total.independent[0, 0] == pytest.approx(anywhere)
    assert within > anywhere  # densities differ between the matrices


def test_chances_are_what_redrawn_masks_show(generator):
    base = [weights(generator, 1), weights(generator, 1)]
    # Masks that prefer small weights, each of its own base.
    masks = [{name: np.abs(x) < 0.4 + 0.4 * generator.random(x.shape) for name, x in w.items()} for w in base]
    total = tallies.total(tallies.tallies(*masks, *base), list(SHAPES))
    expected = total.overlaps()

    def redraw(mask, name, side, how):
        flat = mask[name].ravel()
        groups = tallies.strata(base[side][name][0]) if how == "weight_matched" else np.zeros(flat.size, int)
        new = np.empty_like(flat)
        for group in np.unique(groups):
            new[groups == group] = generator.permutation(flat[groups == group])
        return new

    for how in ("within_matrix", "weight_matched"):
        seen = {name: [] for name in tallies.OVERLAPS}
        for _ in range(400):
            one, other = (np.concatenate([redraw(masks[s], name, s, how) for name in SHAPES]) for s in (0, 1))
            both = (one & other).sum()
            seen["o1"].append(both / one.sum())
            seen["o2"].append(both / other.sum())
            seen["jaccard"].append(both / (one | other).sum())
        for name, values in seen.items():
            error = 5 * np.std(values) / np.sqrt(len(values))
            assert np.mean(values) == pytest.approx(expected[how][name].item(), abs=error + 1e-3), (how, name)


def test_a_preference_for_small_weights_is_explained_by_the_matched_chance_alone(generator):
    base = generator.normal(size=(1, 200, 200)).astype(np.float32)
    shared = np.broadcast_to(base, (2, 200, 200))
    # Two members that choose independently, both among small weights.
    masks = generator.random((2, 200, 200)) < np.where(np.abs(shared) < 0.5, 0.5, 0.02)
    found = {name: x["jaccard"][0, 1] for name, x in tallies.tally(masks, masks, shared, shared).overlaps().items()}
    assert found["seen"] > 1.5 * found["within_matrix"]
    assert found["seen"] == pytest.approx(found["weight_matched"], rel=0.05)
    # The same masks on unrelated bases: the magnitudes no longer explain what they share.
    other = generator.normal(size=(2, 200, 200)).astype(np.float32)
    unrelated = tallies.tally(masks, masks, other, other).overlaps()["weight_matched"]["jaccard"][0, 1]
    assert unrelated == pytest.approx(found["within_matrix"], rel=0.05)


def test_of_an_empty_mask_there_is_no_overlap():
    masks = np.zeros((2, 50), bool)
    masks[1, :5] = True
    found = tallies.tally(masks, masks, np.ones((2, 50)), np.ones((2, 50))).overlaps()
    for table in found.values():
        for values in table.values():
            assert np.isnan([values[0, 0], values[0, 1], values[1, 0]]).all()
            assert np.isfinite(values[1, 1])


def test_strata_are_quantiles_of_the_magnitude(generator):
    x = generator.normal(size=(40, 50))
    found = tallies.strata(x)
    assert np.ptp(np.bincount(found)) <= 1
    assert len(np.bincount(found)) == 2000 // 32 == 62
    order = np.abs(x).ravel()
    edges = [(order[found == s].min(), order[found == s].max()) for s in range(62)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(edges))
    assert tallies.strata(generator.normal(size=10_000)).max() == 255
    assert tallies.strata(np.ones(10)).tolist() == [0] * 10  # too few to be told apart


def test_a_members_part_in_the_mean_over_pairs_is_the_jackknifes_pseudo_value(generator):
    values = generator.random((2, 5, 5))
    values = values + np.swapaxes(values, 1, 2)
    values[:, range(5), range(5)] = np.nan  # nobody is compared with themselves

    def mean(members):
        return np.mean([values[:, i, j] for i, j in itertools.combinations(members, 2)], axis=0)

    whole, found = mean(range(5)), tallies.of_members(values, np.zeros(5))
    for member in range(5):
        without = mean([other for other in range(5) if other != member])
        np.testing.assert_allclose(found[:, member], 5 * whole - 4 * without)
    np.testing.assert_allclose(found.mean(axis=1), whole)


def test_twins_are_not_compared(generator):
    values = generator.random((2, 5, 5))
    values = values + np.swapaxes(values, 1, 2)
    again = [0, 0, 1, 2, 3, 4, 1]
    found = tallies.of_members(values[:, again][:, :, again], np.zeros(7), np.array([9, 9, 4, 5, 6, 7, 4]))
    np.testing.assert_allclose(found, tallies.of_members(values, np.zeros(5))[:, again])
    assert np.isnan(tallies.of_members(values, np.zeros(5), np.zeros(5))).all()


def test_members_are_compared_at_their_point_of_the_grid_alone(generator):
    values = np.array([[9.0, 1.0, 2.0, 7.0], [1.0, 9.0, 3.0, 7.0], [2.0, 3.0, 9.0, 7.0], [7.0, 7.0, 7.0, 9.0]])
    found = tallies.of_members(values, np.array(["a", "a", "a", "b"]))
    assert found[:3].mean() == pytest.approx(2.0)
    assert np.isnan(found[3])
    assert tallies.of_members(values[:2, :2], np.array(["", ""])).tolist() == [1.0, 1.0]


def test_the_interval_over_members_holds_the_mean_over_pairs(generator):
    # What two members share depends on both: the pairs of a member rise and fall together.
    draws, members = 4000, 12
    features = generator.normal(size=(draws, members))
    pairs = 0.5 + features[:, :, None] + features[:, None] + generator.normal(size=(draws, members, members))
    pairs = (pairs + np.swapaxes(pairs, 1, 2)) / 2
    values = tallies.of_members(pairs, np.zeros(members))
    plain = (pairs.sum(axis=2) - np.diagonal(pairs, axis1=1, axis2=2)) / (members - 1)
    covered = []
    for x in (values, plain):
        low, high = statistics.mean_of(x).interval()
        covered.append(np.mean((low < 0.5) & (high > 0.5)))
    assert 0.94 < covered[0] < 0.985
    assert covered[1] < 0.8  # the spread of the members' own means says too little
