"""Directions to compare concept vectors with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from analysis import directions
from envs import tokens

LAYERS, WIDTH = 3, 64
OF_MEMBER = jax.jit(directions.of_member)
TILE_MAP = jnp.array([*tokens.UNSEEN_TILES[:3], *tokens.TILE_MAP[3:]], jnp.int32)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def removed(x, span):
    """`without` by the orthonormal basis of SciPy, in double precision."""
    basis = linalg.orth(np.asarray(span, np.float64).T, rcond=1e-5)
    return np.asarray(x, np.float64) - np.asarray(x, np.float64) @ basis @ basis.T


@pytest.fixture(scope="module")
def named():
    """Parameters, vectors after and before, and the directions of a member."""
    embedding = normal(0, tokens.SIZE, WIDTH)
    parameters = {
        "embedding": {"embedding": embedding},
        "norm": {"scale": normal(1, WIDTH)},
        "value": {"kernel": normal(2, WIDTH, 1)},
    }
    after, before = normal(3, 3, LAYERS, WIDTH), normal(4, 3, LAYERS, WIDTH)
    found = OF_MEMBER(parameters, after, before, TILE_MAP, jax.random.key(0))
    return parameters, np.asarray(after), np.asarray(before), jax.tree.map(np.asarray, found)


def test_named_directions_are_differences_of_the_vectors(named):
    _, after, before, found = named
    np.testing.assert_allclose(found["axis"][0], after[tokens.GOLD] - after[tokens.MOLD], rtol=1e-6)
    np.testing.assert_allclose(found["axis before"][0], before[tokens.GOLD] - before[tokens.MOLD], rtol=1e-6)
    for name, wanted in (("path", after[0]), ("gold", after[1]), ("mold", after[2])):
        np.testing.assert_array_equal(found[name][0], wanted)
    for name, wanted in (("gold before", before[1]), ("mold before", before[2])):
        np.testing.assert_array_equal(found[name][0], wanted)
    counts = {name: len(value) for name, value in found.items()}
    assert {name for name, count in counts.items() if count > 1} == {"random", "orthogonal"}
    assert counts["random"] == counts["orthogonal"] == directions.RANDOM >= 100


def test_the_axis_loses_what_the_emoji_and_the_value_head_explain(named):
    parameters, _, _, found = named
    emoji = np.asarray(parameters["embedding"]["embedding"])[np.asarray(TILE_MAP)[:3]]
    value = np.asarray(parameters["value"]["kernel"])[:, 0] * np.asarray(parameters["norm"]["scale"])
    for name, span in (("axis without emoji", emoji), ("axis without value head", value[None])):
        np.testing.assert_allclose(found[name][0], removed(found["axis"][0], span), atol=1e-4)
        np.testing.assert_allclose(found[name][0] @ span.T, 0, atol=2e-4)
        assert np.abs(found["axis"][0] @ span.T).max() > 1


def test_an_untrained_value_head_takes_nothing_away(named):
    parameters, after, before, found = named
    untrained = parameters | {"value": {"kernel": jnp.zeros((WIDTH, 1))}}
    same = OF_MEMBER(untrained, jnp.asarray(after), jnp.asarray(before), TILE_MAP, jax.random.key(0))
    np.testing.assert_array_equal(same["axis without value head"], found["axis"])


def test_controls_have_the_norm_of_the_axis_and_no_more_of_it_than_they_should(named):
    *_, found = named
    norm = np.linalg.norm(found["axis"], axis=-1)
    for name in ("random", "orthogonal"):
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=-1), norm.repeat(directions.RANDOM, 0), rtol=1e-5)
    cosines = {name: np.sum(found[name] * found["axis"], axis=-1) / norm**2 for name in ("random", "orthogonal")}
    np.testing.assert_allclose(cosines["orthogonal"], 0, atol=1e-6)
    # A random direction's cosine in D dimensions: its square is Beta(1/2, (D − 1)/2).
    beta = stats.beta(0.5, (WIDTH - 1) / 2)
    assert stats.kstest(cosines["random"].ravel() ** 2, beta.cdf).pvalue > 1e-3
    flat = found["random"].reshape(-1, WIDTH) / np.linalg.norm(found["random"].reshape(-1, WIDTH), axis=-1)[:, None]
    pairs = (flat @ flat.T)[np.triu_indices(len(flat), 1)]
    np.testing.assert_allclose(pairs.std(), WIDTH**-0.5, rtol=0.02)
    assert np.abs(found["random"] - found["orthogonal"]).min(axis=-1).max() > 0.01  # draws of their own


def test_the_key_alone_decides_the_random_directions():
    like = normal(5, LAYERS, WIDTH)
    first, same, other = (directions.random(jax.random.key(seed), 4, like) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(np.asarray(first - other)).max(axis=-1).min() > 0.1


@pytest.mark.parametrize("width", [8, 512])
def test_without_removes_the_span_and_nothing_else(width):
    independent = normal(6, 3, width)
    spans = {
        "full rank": independent,
        "dependent": jnp.stack([independent[0], independent[1], 0.3 * independent[0] - 2 * independent[1]]),
        "twice the same": jnp.concatenate([independent[:1], independent[:1]]),
        "with a zero": independent.at[1].set(0.0),
        "tiny": independent * jnp.float32(1e-12),
        "nothing": jnp.zeros((2, width)),
    }
    x = normal(7, 5, 2, width)
    for name, span in spans.items():
        wanted = removed(x, span if name != "tiny" else independent) if name != "nothing" else np.asarray(x)
        found = directions.without(x, span)
        np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(directions.without(found, span), found, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(directions.without(independent, independent), 0, atol=1e-5)


def test_stretching_keeps_directions_and_zeros():
    x = normal(8, 4, 2, WIDTH).at[1, 0].set(0.0)
    norm = jnp.array([[3.0, 0.5]]).repeat(4, axis=0)
    found = np.asarray(directions.with_norm(x, norm))
    wanted = np.array([[3.0, 0.5]] * 4)
    wanted[1, 0] = 0
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), wanted, rtol=1e-5)
    np.testing.assert_allclose(np.cross(found[..., :3], np.asarray(x)[..., :3]), 0, atol=1e-5)
