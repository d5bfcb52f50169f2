"""The policy: cached decoding is the full forward, nothing sees the future, interventions are data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.policies import Intervention, PolicyConfig
from agents.transformer import Transformer
from envs import tokens

POLICY = Transformer(PolicyConfig(width=32, layers=3, heads=2, hidden=48))
BATCH, LENGTH = 3, 29


@pytest.fixture(scope="module")
def parameters():
    return POLICY.init(jax.random.key(3))


@pytest.fixture(scope="module")
def sequence():
    return jax.random.randint(jax.random.key(4), (BATCH, LENGTH), 0, tokens.SIZE)


@functools.partial(jax.jit, static_argnames="layers")
def predictions(parameters, sequence, steering=None, ablation=None, capture=None, layers=None):
    change = Intervention(steering, ablation)
    outputs = POLICY.forward(parameters, sequence, intervention=change, capture=capture, capture_layers=layers)
    return (*POLICY.heads(parameters, outputs.hidden), outputs.residual)


@jax.jit
def decoded(parameters, cache, chunk, start, steering=None):
    outputs, cache = POLICY.decode(parameters, cache, chunk, start, intervention=Intervention(steering))
    return (*POLICY.heads(parameters, outputs.hidden), cache)


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7, 7, 7, 7, 1], [20, 9], [LENGTH]])
def test_cached_decoding_equals_the_full_forward_at_every_position(parameters, sequence, chunks):
    logits, values, _ = predictions(parameters, sequence)
    cache, start = POLICY.empty_cache(BATCH, LENGTH), 0
    for size in chunks:
        found, value, cache = decoded(parameters, cache, sequence[:, start : start + size], start)
        np.testing.assert_allclose(found, logits[:, start : start + size], atol=2e-5)
        np.testing.assert_allclose(value, values[:, start : start + size], atol=2e-5)
        start += size


def test_asking_for_some_positions_gives_the_same_there(parameters, sequence):
    at = np.array([2, 3, 17, LENGTH - 2])
    steering = jax.random.normal(jax.random.key(5), (BATCH, LENGTH, POLICY.config.layers + 1, POLICY.config.width))
    change = Intervention(steering)
    hidden = jax.jit(lambda p, x, at: POLICY.forward(p, x, intervention=change, at=at).hidden, static_argnames="at")
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(POLICY.forward(p, sequence, at=at).hidden))))
    whole = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(POLICY.forward(p, sequence).hidden[:, at]))))
    every = hidden(parameters, sequence, None)
    np.testing.assert_allclose(hidden(parameters, sequence, tuple(at.tolist())), every[:, at], atol=2e-5)
    for a, b in zip(*(jax.tree.leaves(g(parameters)) for g in (gradient, whole)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_cache_longer_than_the_sequence_changes_nothing(parameters, sequence):
    logits, _, _ = predictions(parameters, sequence)
    outputs, _ = POLICY.decode(parameters, POLICY.empty_cache(BATCH, LENGTH + 13), sequence, 0)
    np.testing.assert_allclose(POLICY.heads(parameters, outputs.hidden)[0], logits, atol=2e-5)


def test_no_position_sees_the_future(parameters, sequence):
    logits, _, _ = predictions(parameters, sequence)
    for position in range(LENGTH):
        changed = sequence.at[:, position].set((sequence[:, position] + 1) % tokens.SIZE)
        found, _, _ = predictions(parameters, changed)
        np.testing.assert_array_equal(found[:, :position], logits[:, :position])
        assert jnp.all(jnp.any(found[:, position] != logits[:, position], axis=-1))


def test_capture_returns_the_stream_at_the_positions_asked_for(parameters, sequence):
    *_, every = predictions(parameters, sequence, capture=tuple(range(LENGTH)))
    *_, some = predictions(parameters, sequence, capture=(5, 2))
    assert every.shape == (BATCH, LENGTH, POLICY.config.layers + 1, POLICY.config.width)
    np.testing.assert_array_equal(some, every[:, jnp.array([5, 2])])
    own = jax.random.randint(jax.random.key(7), (BATCH, 3), 0, LENGTH)
    *_, each = predictions(parameters, sequence, capture=own, layers=(POLICY.config.layers, 0))
    rows = jnp.arange(BATCH)[:, None]
    np.testing.assert_array_equal(each, every[rows, own][:, :, jnp.array([POLICY.config.layers, 0])])
    embedding = parameters["embedding"]["embedding"][sequence] * POLICY.config.width**0.5
    np.testing.assert_allclose(every[:, :, 0], embedding, rtol=1e-6)


def test_steering_adds_to_the_stream_and_reaches_only_later_layers(parameters, sequence):
    config = POLICY.config
    plain = predictions(parameters, sequence, capture=(LENGTH - 1,))
    nothing = predictions(
        parameters, sequence, capture=(LENGTH - 1,), steering=jnp.zeros((config.layers + 1, config.width))
    )
    for one, other in zip(plain, nothing, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for site in range(config.layers + 1):
        vector = jax.random.normal(jax.random.key(site), (config.width,))
        steering = jnp.zeros((config.layers + 1, config.width)).at[site].set(vector)
        *_, stream = predictions(parameters, sequence, capture=(LENGTH - 1,), steering=steering)
        difference = stream[:, 0] - nothing[2][:, 0]
        np.testing.assert_array_equal(difference[:, :site], 0.0)
        np.testing.assert_allclose(difference[:, site], jnp.broadcast_to(vector, (BATCH, config.width)), atol=1e-5)
        assert jnp.abs(difference[:, site + 1 :]).sum() > 0 or site == config.layers


def test_ablation_leaves_no_component_and_nothing_else_changes_at_its_layer(parameters, sequence):
    config = POLICY.config
    *_, plain = predictions(parameters, sequence, capture=tuple(range(LENGTH)))
    directions = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (config.width, 2)))[0].T
    for site in range(config.layers + 1):
        ablation = jnp.zeros((config.layers + 1, 2, config.width)).at[site].set(directions)
        steering = jnp.zeros((config.layers + 1, config.width)).at[site].set(3 * directions[0])
        logits, _, stream = predictions(parameters, sequence, None, ablation, tuple(range(LENGTH)))
        np.testing.assert_allclose(stream[:, :, site] @ directions.T, 0.0, atol=1e-5)
        expected = plain[:, :, site] - plain[:, :, site] @ directions.T @ directions
        np.testing.assert_allclose(stream[:, :, site], expected, atol=1e-5)
        *_, both = predictions(parameters, sequence, steering, ablation, tuple(range(LENGTH)))
        np.testing.assert_allclose((both[:, :, site] @ directions.T)[..., 0], 3.0, atol=1e-5)
        assert jnp.abs(logits - predictions(parameters, sequence)[0]).max() > 1e-3


def test_steering_of_one_position_leaves_earlier_ones_alone(parameters, sequence):
    config = POLICY.config
    steering = jnp.zeros((BATCH, LENGTH, config.layers + 1, config.width)).at[:, 10, 1].set(1.0)
    logits, _, _ = predictions(parameters, sequence, steering=jnp.zeros_like(steering))
    found, _, _ = predictions(parameters, sequence, steering=steering)
    np.testing.assert_array_equal(found[:, :10], logits[:, :10])
    assert jnp.abs(found[:, 10] - logits[:, 10]).min() > 0


def test_steering_while_decoding_equals_steering_the_forward(parameters, sequence):
    config = POLICY.config
    steering = jax.random.normal(jax.random.key(9), (config.layers + 1, config.width))
    logits, _, _ = predictions(parameters, sequence, steering=steering)
    cache = POLICY.empty_cache(BATCH, LENGTH)
    for position in range(LENGTH):
        found, _, cache = decoded(parameters, cache, sequence[:, position : position + 1], position, steering)
        np.testing.assert_allclose(found[:, 0], logits[:, position], atol=5e-5)


def test_members_under_vmap_equal_members_by_themselves(sequence):
    population = jax.vmap(POLICY.init)(jax.random.split(jax.random.key(0), 4))
    together = jax.vmap(lambda parameters: predictions(parameters, sequence)[0])(population)
    for member in range(4):
        alone = predictions(jax.tree.map(lambda x, member=member: x[member], population), sequence)[0]
        np.testing.assert_allclose(together[member], alone, atol=2e-5)


def test_a_fresh_value_head_is_silent_and_predictions_are_float32(parameters, sequence):
    logits, values, _ = predictions(parameters, sequence)
    np.testing.assert_array_equal(values, 0.0)
    assert logits.dtype == values.dtype == jnp.float32


@pytest.mark.parametrize(("compute", "stored"), [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_reduced_precision_stores_what_it_says_and_predicts_in_float32(sequence, compute, stored):
    policy = Transformer(dataclasses.replace(POLICY.config, compute_dtype=compute, parameter_dtype=stored))
    parameters = policy.init(jax.random.key(3))
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters)} == {jnp.dtype(stored)}
    outputs = policy.forward(parameters, sequence)
    logits, values = policy.heads(parameters, outputs.hidden)
    assert outputs.hidden.dtype == jnp.bfloat16
    assert logits.dtype == values.dtype == jnp.float32
    exact, _, _ = predictions(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters), sequence)
    assert 0 < jnp.abs(logits - exact).mean() < 0.05


@pytest.mark.parametrize("change", [{"width": 30}, {"layers": 0}, {"heads": 0}, {"hidden": 0}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError, match=f"policy.{next(iter(change))}="):
        PolicyConfig(**{"width": 32, "heads": 2} | change)
