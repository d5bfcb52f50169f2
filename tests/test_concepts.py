"""Concept vectors: planted directions found again, and every measure beside its textbook."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agents.policies import PolicyConfig
from agents.policies.transformer import Transformer
from analysis import concepts, extraction
from analysis.measure import mapped
from analysis.measures.concepts import extract
from envs import maze, tokens

LAYERS, WIDTH = 4, 24
MEASURE = jax.jit(concepts.measure, static_argnames="permutations")
SEPARATION = jax.jit(lambda x, own, counted: (concepts.auroc(x, own, counted), concepts.cohens_d(x, own, counted)))


def balanced(episodes, seed=0):
    """Class of each of N episodes, in a random order."""
    return np.random.default_rng(seed).permutation(np.arange(episodes, dtype=np.int32) % 3)


def cosine(x, y):
    return np.sum(x * y, axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))


def planted(seed, classes, noise, coefficients=(0.0, 1.0, -1.0), layers=range(LAYERS), at=0):
    """Activations float32[N, L, D] that carry their class along one direction in some layers, and the direction."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(at).normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    x = noise * rng.normal(size=(len(classes), LAYERS, WIDTH)) + np.linspace(1, 2, WIDTH) / np.sqrt(WIDTH)
    for layer in layers:
        x[:, layer] += np.array(coefficients)[classes][:, None] * direction
    return jnp.asarray(x, jnp.float32), direction


def test_vectors_are_a_class_minus_the_others_pooled():
    classes, rng = balanced(60), np.random.default_rng(1)
    x = rng.normal(size=(60, LAYERS, WIDTH)) * 10 + 1000  # an offset that a careless float32 would not survive
    x = x.astype(np.float32)
    means = concepts.class_means(jnp.asarray(x), jnp.asarray(classes))
    found, by_path = concepts.vectors(means), concepts.path_vectors(means)
    assert found.dtype == jnp.float32
    for c in range(3):
        own, others = x[classes == c].astype(np.float64), x[classes != c].astype(np.float64)
        np.testing.assert_allclose(found[c], own.mean(axis=0) - others.mean(axis=0), atol=2e-4)
        np.testing.assert_allclose(means[c], own.mean(axis=0) - x.astype(np.float64).mean(axis=0), atol=2e-4)
    np.testing.assert_allclose(found.sum(axis=0), 0, atol=1e-5)
    path, gold, mold = (x[classes == c].astype(np.float64).mean(axis=0) for c in range(3))
    np.testing.assert_allclose(by_path, [gold - path, mold - path], atol=2e-4)
    rest, reference = concepts.opposition(means)
    np.testing.assert_allclose(rest, cosine(found[1], found[2]), atol=1e-5)
    np.testing.assert_allclose(reference, cosine(gold - path, mold - path), atol=1e-4)


def test_a_planted_direction_is_recovered():
    classes = balanced(90)
    x, direction = planted(2, classes, noise=0.0)
    found = concepts.vectors(concepts.class_means(x, jnp.asarray(classes)))
    for role, sign in ((tokens.GOLD, 1), (tokens.MOLD, -1)):
        np.testing.assert_allclose(found[role], np.broadcast_to(1.5 * sign * direction, (LAYERS, WIDTH)), atol=1e-5)
    np.testing.assert_allclose(found[tokens.PATH], 0, atol=1e-5)
    noisy, _ = planted(3, classes, noise=0.3)
    axis = concepts.vectors(concepts.class_means(noisy, jnp.asarray(classes)))
    assert (cosine(np.asarray(axis[1] - axis[2]), direction[None]) > 0.95).all()


@pytest.mark.parametrize("layer", [1, 3])
def test_the_rule_finds_the_layer_that_knows_the_classes(layer):
    classes, others = balanced(120), balanced(90, seed=1)
    x, _ = planted(4, classes, 0.3, layers=[layer])
    y, _ = planted(5, others, 0.3, layers=[layer])
    found = MEASURE(x, jnp.asarray(classes), y, jnp.asarray(others), jax.random.key(0), 20)
    assert found.layer.dtype == jnp.int32
    for role in (tokens.GOLD, tokens.MOLD):  # Path lies between, which no single direction tells apart
        assert found.layer[role] == layer
        assert found.auroc[role, layer] > 0.9
        assert abs(found.auroc[role, layer - 1] - 0.5) < 0.15
    assert found.opposition[0, layer] < -0.8
    # Coordinates: the classes' means at −1 and +1 exactly, everything linear between, and Path in the middle here.
    gold, mold = (found.means[c] + found.centre for c in (tokens.GOLD, tokens.MOLD))
    for share in (0.0, 0.25, 1.0):
        at = concepts.coordinate(share * gold + (1 - share) * mold, found)
        np.testing.assert_allclose(at, 2 * share - 1, atol=1e-5)
    assert abs(concepts.coordinate(found.means[tokens.PATH] + found.centre, found)[layer]) < 0.15
    everyone = concepts.coordinate(x, found)
    assert everyone.shape == (120, LAYERS)
    np.testing.assert_allclose(everyone[classes == tokens.GOLD].mean(axis=0), 1, atol=1e-4)
    turned = found.replace(means=found.means.at[:].add(jnp.float32(3)), centre=found.centre - 3)
    np.testing.assert_allclose(concepts.coordinate(x, turned), everyone, atol=1e-3)


def test_measures_are_taken_on_the_held_out_episodes():
    classes, others = balanced(120), balanced(90, seed=1)
    x, _ = planted(6, classes, 0.4)
    y, _ = planted(7, others, 0.4)
    found = MEASURE(x, jnp.asarray(classes), y, jnp.asarray(others), jax.random.key(0), 20)
    for c in range(3):
        for layer in range(LAYERS):
            scores = cosine(np.asarray(y)[:, layer].astype(np.float64), np.asarray(found.vectors)[c, layer][None])
            own, rest = scores[others == c], scores[others != c]
            area = stats.mannwhitneyu(own, rest).statistic / (len(own) * len(rest))
            np.testing.assert_allclose(found.auroc[c, layer], area, atol=1e-6)
            np.testing.assert_allclose(found.d[c, layer], textbook_d(own, rest), rtol=1e-3)
            np.testing.assert_allclose(found.overlap[c, layer], textbook_overlap(own, rest), atol=1e-6)
    best = (found.auroc.argmax(-1), np.abs(found.d).argmax(-1), found.overlap.argmin(-1))
    np.testing.assert_array_equal(found.layer, np.floor(np.mean(best, axis=0)))
    gold, mold = (int(found.layer[role]) for role in (tokens.GOLD, tokens.MOLD))
    assert int(found.axis_layer) == math.floor((gold + mold) / 2)
    np.testing.assert_allclose(found.centre, x.mean(axis=0), atol=1e-5)
    assert found.permuted.shape == (20, 2, LAYERS)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_unrelated_classes_are_not_at_right_angles(width):
    # Two centred means of three are a sample of `width` pairs with correlation −1/2: Fisher's law of its cosine.
    draws = 4000
    means = jnp.asarray(np.random.default_rng(width).normal(size=(3, draws, width)), jnp.float32)
    by_rest, by_path = np.asarray(concepts.opposition(means))
    for found, null in ((by_rest, concepts.NULL), (by_path, concepts.PATH_NULL)):
        expected = null * (1 - (1 - null**2) / (2 * width))
        np.testing.assert_allclose(found.mean(), expected, atol=4 * found.std() / draws**0.5)
        np.testing.assert_allclose(found.std(), 0.75 / width**0.5, rtol=0.06)
        z = np.sqrt(width - 1) * (np.arctanh(found) - np.arctanh(null))
        assert stats.kstest(z - z.mean(), stats.norm(0, 1).cdf).pvalue > 1e-3
    np.testing.assert_allclose(by_rest.std(), {16: 0.19, 64: 0.09, 256: 0.044}[width], atol=0.006)


def test_permuted_labels_give_the_null_of_the_data():
    classes = jnp.asarray(balanced(90))
    permuted = jax.jit(concepts.permuted_opposition, static_argnames="draws")
    # Noise of many dimensions with a strong effect that the permutation must destroy.
    x, _ = planted(8, np.asarray(classes), 1.0, coefficients=(0, 0.5, -0.5))
    null = np.asarray(permuted(x, classes, jax.random.key(1), 400))
    assert null.shape == (400, 2, LAYERS)
    np.testing.assert_allclose(null.mean(axis=(0, 2)), [-0.5, 0.5], atol=0.03)
    np.testing.assert_allclose(null.std(axis=0), 0.75 / WIDTH**0.5, rtol=0.25)
    # One dimension: the cosine is a sign, negative as often as two normals of correlation −1/2 differ in theirs.
    line = x.at[:, :, 1:].set(0.0)
    signs = np.asarray(permuted(line, classes, jax.random.key(2), 400))
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-5)
    np.testing.assert_allclose((signs < 0).mean(axis=(0, 2)), [2 / 3, 1 / 3], atol=0.05)


def test_labels_are_dealt_within_strata():
    # Three strata, each with labels of its own in numbers of its own; one has a single class.
    rng = np.random.default_rng(10)
    strata = rng.permutation(np.repeat([4, 9, 2], [30, 24, 12])).astype(np.int32)
    classes = np.zeros(66, np.int32)
    for stratum, numbers in ((4, [10, 5, 15]), (9, [2, 20, 2]), (2, [0, 0, 12])):
        classes[strata == stratum] = rng.permutation(np.repeat([0, 1, 2], numbers))
    dealt = []

    def spy(activations, labels):
        jax.debug.callback(lambda x: dealt.append(np.asarray(x)), labels)
        return jnp.ones((3, 1, 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concepts, "class_means", spy)
        concepts.permuted_opposition(
            jnp.zeros((66, 1, 2)), jnp.asarray(classes), jax.random.key(4), 300, jnp.asarray(strata)
        )
        jax.effects_barrier()
    dealt = np.array(dealt)
    assert dealt.shape == (300, 66)
    for stratum in (4, 9, 2):
        inside = dealt[:, strata == stratum]
        numbers = np.bincount(classes[strata == stratum], minlength=3)
        np.testing.assert_array_equal([np.bincount(labels, minlength=3) for labels in inside], [numbers] * 300)
        # Every episode gets every label as often as its stratum has it.
        shares = np.stack([(inside == c).mean(axis=0) for c in range(3)], axis=-1)
        expected = numbers / numbers.sum()
        error = np.sqrt(expected * (1 - expected) / 300)
        assert (np.abs(shares - expected) <= 4.5 * error).all()


def test_strata_keep_what_the_labels_share_with_them_out_of_the_null():
    # A move that is as long as a class mean: dealt across moves it is most of what the null sees, within them nothing.
    moves = np.arange(120, dtype=np.int32) // 3 % 4
    classes = np.arange(120, dtype=np.int32) % 3
    x = np.random.default_rng(11).normal(size=(120, 1, 64)) + 0.0
    x[:, 0, :4] += 100 * np.eye(4)[moves]
    arguments = (jnp.asarray(x, jnp.float32), jnp.asarray(classes), jax.random.key(5), 300)
    across, within = (concepts.permuted_opposition(*arguments, strata) for strata in (None, jnp.asarray(moves)))
    np.testing.assert_allclose(within[:, 0].std(), 0.75 / 8, rtol=0.2)
    assert across[:, 0].std() > 3 * within[:, 0].std()


def test_a_stream_that_knows_gold_alone_looks_opposite_too():
    gold = jnp.asarray(np.random.default_rng(9).normal(size=(1, WIDTH)), jnp.float32)
    by_rest, by_path = concepts.opposition(jnp.zeros((3, 1, WIDTH)).at[tokens.GOLD].set(gold))
    np.testing.assert_allclose(by_rest, -1, rtol=1e-5)
    assert by_path == 0  # which is why Path is a reference too


def textbook_d(own, rest):
    pooled = ((len(own) - 1) * own.var(ddof=1) + (len(rest) - 1) * rest.var(ddof=1)) / (len(own) + len(rest) - 2)
    return (own.mean() - rest.mean()) / np.sqrt(pooled)


def textbook_overlap(own, rest):
    ends = (min(own.min(), rest.min()), max(own.max(), rest.max()))
    shares = [np.histogram(x, bins=50, range=ends)[0] / len(x) for x in (own, rest)]
    return np.minimum(*shares).sum()


@pytest.mark.parametrize("levels", [3, 10, 10_000_000])
@pytest.mark.parametrize("seed", range(3))
def test_separations_equal_the_textbook_with_ties_and_masks(levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, 200).astype(np.float32) / np.float32(7)
    positive, counted = rng.random(200) < 0.3, rng.random(200) < 0.8
    scores += np.where(positive, np.float32(levels / 10), np.float32(0)).astype(np.float32)
    for mask in (counted, np.ones(200, bool)):
        own, rest = (scores[group & mask].astype(np.float64) for group in (positive, ~positive))
        area, d = SEPARATION(jnp.asarray(scores), jnp.asarray(positive), jnp.asarray(mask))
        np.testing.assert_allclose(area, stats.mannwhitneyu(own, rest).statistic / own.size / rest.size, rtol=1e-6)
        np.testing.assert_allclose(d, textbook_d(own, rest), rtol=1e-5)
    both = SEPARATION(jnp.asarray(scores), jnp.asarray(positive), jnp.ones(200, bool))
    default = (f(jnp.asarray(scores), jnp.asarray(positive)) for f in (concepts.auroc, concepts.cohens_d))
    np.testing.assert_allclose(both, list(default), rtol=1e-6)
    # What does not count may be anything, and a change of unit changes nothing.
    wild = jnp.asarray(np.where(counted, scores * 8, np.float32(1e6)).astype(np.float32))
    there = SEPARATION(wild, jnp.asarray(positive), jnp.asarray(counted))
    here = SEPARATION(jnp.asarray(scores), jnp.asarray(positive), jnp.asarray(counted))
    np.testing.assert_allclose(there, here, rtol=1e-5)


def test_separations_are_not_a_number_without_both_groups():
    scores, some = jnp.arange(200.0), jnp.arange(200) < 50
    for positive, counted in ((some, some), (some, ~some), (~some, ~some), (some, some & ~some)):
        assert np.isnan(SEPARATION(scores, positive, counted)).all()
    for positive in (some, ~some):
        assert (SEPARATION(scores, positive, scores > -1)[0] == 1) == bool(positive[-1])


def test_overlap_is_the_shared_area_of_two_histograms():
    overlap = jax.jit(concepts.overlap)
    rng = np.random.default_rng(3)
    for shift in (0.0, 1.0, 30.0):
        positive = rng.random(300) < 0.4
        scores = (rng.normal(size=300) + shift * positive).astype(np.float32)
        wanted = textbook_overlap(scores[positive], scores[~positive])
        np.testing.assert_allclose(overlap(jnp.asarray(scores), jnp.asarray(positive)), wanted, atol=1e-6)
    assert wanted == 0
    positive = jnp.arange(300) < 100
    np.testing.assert_allclose(overlap(jnp.full(300, 2.5), positive), 1)
    np.testing.assert_allclose(overlap(jnp.arange(300.0) % 100, positive), 1, atol=1e-6)
    assert np.isnan(overlap(jnp.arange(300.0), jnp.zeros(300, bool)))


def test_the_rule_takes_the_floor_of_the_mean_of_three_layers():
    def rows(*best):
        return jnp.asarray([[float(layer == at) for layer in range(6)] for at in best], jnp.float32)

    found = concepts.rule_layer(rows(3, 5, 0), -rows(2, 5, 1), 1 - rows(0, 4, 0))
    assert found.tolist() == [1, 4, 0]
    ties = jnp.array([0.0, 1.0, 1.0, 0.0])
    assert concepts.rule_layer(ties, -ties, -ties) == 1  # the first of equals


def test_cosine_of_nothing_is_nothing():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    np.testing.assert_allclose(concepts.cosine(x, x * jnp.float32(1e-6)), 1, rtol=1e-5)
    np.testing.assert_array_equal(concepts.cosine(x, jnp.zeros((5, 8))), 0)


POLICY = Transformer(PolicyConfig(width=16, layers=1, heads=2, hidden=16))
WORLD = maze.EmojiMaze(size=11, turns=4)
MAPS = jnp.array([tokens.TILE_MAP, (*np.roll(tokens.TILE_MAP[:3], 1), *tokens.TILE_MAP[3:])], jnp.int32)


@pytest.fixture(scope="module")
def population():
    """Two members that know each other's emoji: the second's embedding rows are the first's, as the maps say."""
    first = jax.jit(POLICY.init)(jax.random.key(3))
    rows = first["embedding"]["embedding"]
    second = first | {"embedding": {"embedding": rows.at[MAPS[1]].set(rows[MAPS[0]])}}
    params = dataclasses.replace(WORLD.default_params, tile_map=MAPS[0])
    sets = [extraction.approaches(WORLD, params, jax.random.key(seed), 48, batch=12) for seed in (1, 2)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    return both, extraction.Sets(sets[0], sets[1], MAPS[0])


@pytest.mark.slow
def test_emoji_are_only_names(population):
    parameters, sets = population

    def look(parameters, maps):
        params = jax.tree.map(lambda x: jnp.stack([x] * len(maps)), WORLD.default_params).replace(tile_map=maps)
        given = (sets, sets.training.tokens, jax.random.key(0))
        return mapped(extract, POLICY, WORLD, (("permutations", 5),), (parameters, params), given)

    found, place, _, lens = look(parameters, MAPS)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), (found, place))
    assert np.linalg.norm(found.vectors, axis=-1).min() > 1e-3
    # With the other's emoji a member sees another world.
    wrong = look(parameters, MAPS[::-1])
    assert np.abs(np.asarray(wrong[0].vectors - found.vectors)).max() > 1e-2
    # A population's are those of its members by themselves.
    alone = look(jax.tree.map(lambda x: x[1:], parameters), MAPS[:1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1:], y, rtol=1e-3, atol=1e-5), wrong, alone)

    member = jax.tree.map(lambda x: x[0], found)
    expected = concepts.coordinate(member.means[tokens.PATH] + member.centre, member)
    np.testing.assert_allclose(place[0], expected, rtol=1e-4)
    scaled = parameters["embedding"]["embedding"][0] * parameters["norm"]["scale"][0][None]
    axis = np.asarray(found.vectors[0, tokens.GOLD] - found.vectors[0, tokens.MOLD])[-1]
    np.testing.assert_allclose(lens[0], np.asarray(scaled) @ axis, rtol=1e-4, atol=1e-5)


def test_values_are_picked_at_each_members_layer_or_each_classs():
    values = np.random.default_rng(12).normal(size=(4, 3, 5))
    layers, own = np.array([0, 4, 2, 2]), np.random.default_rng(13).integers(0, 5, (4, 3))
    for m, c in np.ndindex(4, 3):
        assert concepts.at(values, layers)[m, c] == values[m, c, layers[m]]
        assert concepts.at(values, own)[m, c] == values[m, c, own[m, c]]
    np.testing.assert_array_equal(concepts.at(values[:, 0], layers), values[np.arange(4), 0, layers])


def test_agreement_between_members_is_minus_a_fifth_for_what_is_an_emojis_own():
    # A direction of each emoji, and an axis that is Gold's emoji minus Mold's: over all orders of three emoji.
    emoji = np.eye(3)
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    axes = emoji[orders[:, tokens.GOLD]] - emoji[orders[:, tokens.MOLD]]
    means = concepts.agreement(axes, orders, np.arange(6))
    np.testing.assert_allclose(means[:, 1], -1 / 5)
    assert np.isnan(means[:, 0]).all()
    # Each order twice: as twins, who are not compared, and as members of their own, who agree.
    twice = np.concatenate([axes, axes]), np.concatenate([orders, orders])
    for units, same in ((np.tile(np.arange(6), 2), np.nan), (np.arange(12), 1.0)):
        means = concepts.agreement(*twice, units)
        np.testing.assert_allclose(means, np.tile([same, -1 / 5], (12, 1)))
