"""The kernels and their written-down gradients against what JAX derives from the textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.policies import kernels
from ground.precise import product

BATCH, HEADS, WIDTH = 2, 3, 4
HIGHEST = jax.lax.Precision.HIGHEST


def attention(positions, query, key, value):
    return kernels.causal_attention(positions, query, key, value, HIGHEST)


def sparing(positions, query, key, value):
    return kernels.causal_attention(positions, query, key, value, HIGHEST, sparing=True)


def dense(kernel, x):
    return kernels.dense(kernel, x, HIGHEST)


def textbook(positions, query, key, value):
    scores = product("bhdq,bhdk->bhqk", query, key)
    visible = jnp.arange(key.shape[3])[None] <= jnp.array(positions)[:, None]
    weights = jax.nn.softmax(jnp.where(visible[None, None], scores, -jnp.inf), axis=-1)
    return product("bhdk,bhqk->bhdq", value, weights)


@pytest.mark.parametrize(
    ("length", "positions"),
    [
        (1, (0,)),
        (29, tuple(range(29))),
        (105, tuple(range(105))),
        (200, tuple(range(200))),
        (105, tuple(range(6, 105, 7))),
        (150, tuple(range(0, 140, 1))),  # the last keys are seen by nobody
    ],
)
def test_attention_and_its_gradients_are_the_textbooks(key, length, positions):
    query, *rest = (
        jax.random.normal(part, (BATCH, HEADS, WIDTH, count))
        for part, count in zip(jax.random.split(key, 4), (len(positions), length, length, len(positions)), strict=True)
    )
    operands, weight = (query, *rest[:2]), rest[2]

    def run(function):
        program = jax.jit(jax.value_and_grad(lambda *xs: jnp.sum(function(positions, *xs) * weight), argnums=(0, 1, 2)))
        return program(*operands)

    expected = run(textbook)
    for function in (attention, sparing):
        for a, b in zip(jax.tree.leaves(run(function)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("function", [attention, sparing])
def test_sparing_attention_keeps_no_weights_for_its_backward_pass(key, function):
    length, heads = 256, 4
    query, value, slope = (jax.random.normal(part, (2, heads, WIDTH, length)) for part in jax.random.split(key, 3))
    positions = tuple(range(length))

    def kept(query, key, value):
        return jax.vjp(lambda *xs: function(positions, *xs), query, key, value)[1]

    saved = jax.eval_shape(kept, query, value, slope)
    largest = max(leaf.size for leaf in jax.tree.leaves(saved))
    assert (largest >= 2 * heads * 64 * length) == (function is attention)


def test_what_groups_share_is_attended_to_as_if_each_had_its_own(key):
    groups, size, before, own, positions = 2, 3, 5, 6, (2, 3)
    shapes = [(groups * size, own), (groups * size, own), (groups, before), (groups, before), (groups * size, 2)]
    parts = zip(jax.random.split(key, 5), shapes, strict=True)
    keys, values, *shared, query = (3 * jax.random.normal(part, (b, HEADS, WIDTH, n)) for part, (b, n) in parts)
    turned = lambda x: jnp.swapaxes(x, 2, 3)  # noqa: E731
    mixed = kernels.cached_attention(
        query, keys, turned(values), jnp.array(positions), HIGHEST, (shared[0], turned(shared[1]))
    )
    whole = (
        jnp.concatenate([jnp.repeat(x, size, axis=0), y], axis=3) for x, y in zip(shared, (keys, values), strict=True)
    )
    np.testing.assert_allclose(mixed, textbook([before + p for p in positions], query, *whole), atol=2e-5)


def test_attention_survives_scores_that_overflow_an_exponential(key):
    operands = [200 * jax.random.normal(part, (1, 1, WIDTH, 20)) for part in jax.random.split(key, 3)]
    gradient = jax.grad(lambda *xs: attention(tuple(range(20)), *xs).sum(), argnums=(0, 1, 2))(*operands)
    assert all(bool(jnp.isfinite(part).all()) for part in gradient)


@pytest.mark.parametrize(
    ("layer", "shapes", "formula"),
    [
        (kernels.dense, ((5, 7), (5, 2, 11), (7, 2, 11)), "io,ibs->obs"),
        (kernels.dense_rows, ((5, 7), (11, 2, 5), (11, 2, 7)), "io,sbi->sbo"),
    ],
)
def test_a_dense_layer_and_its_gradients(layer, shapes, formula, key):
    kernel, x, weight = (
        jax.random.normal(part, shape) for part, shape in zip(jax.random.split(key, 3), shapes, strict=True)
    )
    found = jax.grad(lambda *xs: jnp.sum(layer(*xs, HIGHEST) * weight), argnums=(0, 1))(kernel, x)
    expected = jax.grad(lambda *xs: jnp.sum(product(formula, *xs) * weight), argnums=(0, 1))(kernel, x)
    np.testing.assert_allclose(layer(kernel, x, HIGHEST), product(formula, kernel, x), atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_members_of_a_population_are_mapped(key):
    kernel = jax.random.normal(key, (3, 5, 7))
    x = jax.random.normal(jax.random.fold_in(key, 1), (3, 5, 2, 11))
    loss = lambda k, x: jnp.sum(jnp.square(dense(k, x)))  # noqa: E731
    together = jax.vmap(jax.grad(loss))(kernel, x)
    for member in range(3):
        np.testing.assert_allclose(together[member], jax.grad(loss)(kernel[member], x[member]), rtol=1e-4, atol=1e-4)
