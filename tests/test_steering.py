"""Steering: one compiled grid equals interventions made by hand, one at a time, and its memory is bounded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import rl, rollout
from agents.policies import Intervention
from agents.runs.config import Config
from analysis import concepts, directions, steering, tracking
from analysis.measure import mapped
from envs import tokens
from tests import tiny

pytestmark = pytest.mark.slow  # minutes of compiling on two cores

POLICY = tiny.changed(policy={"layers": 2}).make_policy()
WORLD, PARAMS = tiny.CONFIG.world.make()
WIDTH = POLICY.config.width
EFFECTS = jax.jit(lambda p, seen, change: steering.effects(POLICY, p, WORLD, seen, change))
FORWARD = jax.jit(lambda p, x, change: POLICY.forward(p, x, intervention=change, capture=(3, 9)).residual)


@pytest.fixture(scope="module")
def parameters():
    return jax.tree.map(lambda x: 2 * x, jax.jit(POLICY.init)(jax.random.key(1)))


@pytest.fixture(scope="module")
def seen(parameters):
    play = jax.jit(lambda p, key: rollout.policy_episodes(POLICY, p, WORLD, PARAMS, key, 16))
    return play(parameters, jax.random.key(2))


def test_effects_are_what_a_loop_over_the_choices_says(parameters, seen):
    found = EFFECTS(parameters, seen, Intervention())
    read = jax.jit(lambda p, x: rl.read(POLICY, p, WORLD, x)[0])
    logits = np.asarray(read(parameters, seen.tokens), np.float64)
    gold, mold, entropy = [], [], []
    for probabilities, around in zip(np.exp(logits).reshape(-1, 4), seen.neighbours.reshape(-1, 4), strict=True):
        is_gold, is_mold = np.asarray(around) == tokens.GOLD, np.asarray(around) == tokens.MOLD
        if is_gold.any():
            gold.append(probabilities[is_gold].sum())
        if is_mold.any() and not is_mold.all():
            mold.append(probabilities[is_mold].sum())
        entropy.append(-(probabilities * np.log(probabilities)).sum())
    np.testing.assert_allclose(found, [np.mean(gold), np.mean(mold), np.mean(entropy)], rtol=1e-5)
    nowhere = dataclasses.replace(seen, neighbours=jnp.full_like(seen.neighbours, tokens.PATH))
    np.testing.assert_allclose(EFFECTS(parameters, nowhere, Intervention()), [np.nan, np.nan, found[2]])


def test_the_neighbours_of_an_episode_are_what_its_tokens_show(seen):
    sequence = np.asarray(seen.tokens)
    view = np.stack([sequence[:, at - 4 : at] for at in WORLD.action_positions()], axis=1)
    np.testing.assert_array_equal(view, np.asarray(PARAMS.tile_map)[np.asarray(seen.neighbours)])


def test_the_grid_equals_steering_by_hand(parameters, seen):
    tried = jax.random.normal(jax.random.key(3), (3, 2, WIDTH))
    strengths = (-2.0, 0.0, 3.0)

    @functools.partial(jax.jit, static_argnames="at_once")
    def run(at_once):
        ask = functools.partial(steering.effects, POLICY, parameters, WORLD, seen)
        return steering.over_pushes(ask, tried, jnp.arange(2), jnp.array(strengths), at_once)

    found = run(at_once=1)
    np.testing.assert_allclose(run(at_once=4), found, atol=1e-5)
    for k, layer, a in np.ndindex(3, 2, 3):
        by_hand = np.zeros((3, WIDTH), np.float32)
        by_hand[layer + 1] = strengths[a] * np.asarray(tried)[k, layer]
        expected = EFFECTS(parameters, seen, Intervention(steering=jnp.asarray(by_hand)))
        np.testing.assert_allclose(found[k, layer, a], expected, atol=1e-5)
    plain = EFFECTS(parameters, seen, Intervention())
    np.testing.assert_allclose(found[:, :, 1], jnp.broadcast_to(plain, (3, 2, 3)), atol=1e-6)
    assert np.abs(found[:, :, 2] - found[:, :, 1]).max() > 1e-2


def test_pushing_along_what_says_a_move_makes_the_policy_say_it(parameters, seen):
    # After the last block, a planted direction: it raises the logit of one move and leaves the other three alone.
    readout = np.asarray(tracking.unembedding(parameters))[list(tokens.MOVES)]
    planted = 1e4 * np.linalg.pinv(readout).T
    read = jax.jit(lambda p, x, push: rl.read(POLICY, p, WORLD, x, intervention=push)[0])
    for move in range(4):
        direction = jnp.zeros((2, WIDTH)).at[1].set(planted[move])
        push = steering.push(direction, jnp.int32(1), jnp.float32(1))
        log_probabilities = read(parameters, seen.tokens, push)
        assert jnp.all(jnp.argmax(log_probabilities, axis=-1) == move)


def test_a_removed_direction_is_gone_after_every_block(parameters, seen):
    direction = jax.random.normal(jax.random.key(4), (2, WIDTH))
    change = steering.remove(direction)
    stream = FORWARD(parameters, seen.tokens, change)
    untouched = FORWARD(parameters, seen.tokens, Intervention())
    assert stream is not None
    assert untouched is not None
    unit = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    np.testing.assert_allclose(jnp.einsum("bcld,ld->bcl", stream[:, :, 1:], unit), 0.0, atol=2e-5)
    np.testing.assert_array_equal(stream[:, :, 0], untouched[:, :, 0])


@pytest.mark.long
def test_a_population_is_steered_like_its_members():
    members = 2
    population = jax.jit(jax.vmap(POLICY.init))(jax.random.split(jax.random.key(6), members))
    params = jax.tree.map(lambda x: jnp.stack([x] * members), PARAMS)
    means = jax.random.normal(jax.random.key(7), (members, 3, 2, WIDTH))
    vectors = jax.vmap(concepts.vectors)(means)
    tried = steering.named_directions(population, vectors, vectors, params.tile_map, jax.random.key(8))
    assert tried.shape[1] == len(directions.NAMES) + directions.RANDOM
    half = np.linalg.norm(means[:, tokens.GOLD] - means[:, tokens.MOLD], axis=-1) / 2
    lengths = np.linalg.norm(tried, axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(half[:, None], lengths.shape), rtol=1e-4)
    few = tried[:, [0, -3, -2, -1]]
    layer, levels = jnp.array([0, 1]), (-1.0, 0.0, 2.0)
    key, options = jax.random.key(9), (("strengths", levels), ("episodes", 8), ("play_episodes", 32))
    everybody = (population, params, few, layer)
    together = mapped(steering.steer, POLICY, WORLD, options, everybody, (key,))
    for member in range(members):
        one = slice(member, member + 1)
        own = jax.tree.map(lambda x, one=one: x[one], everybody)
        alone = mapped(steering.steer, POLICY, WORLD, options, own, (key,))
        jax.tree.map(lambda x, y, one=one: np.testing.assert_allclose(x[one], y, atol=1e-4), together, alone)

    @jax.jit
    def play(parameters):
        maze_key, turn_key = jax.random.split(jax.random.split(key)[1])
        driver = rollout.policy_driver(POLICY, parameters, WORLD)
        keys = jax.random.split(maze_key, 32)
        return rollout.play(WORLD, PARAMS, keys, turn_key, driver, rollout.gumbel(32))[0].returns.mean()

    # Returns without a push are the policy's own.
    own = [play(jax.tree.map(lambda x, member=member: x[member], population)) for member in range(members)]
    np.testing.assert_allclose(together["plain_return"], own, rtol=1e-5)
    np.testing.assert_allclose(
        together["returns"][:, :, 1], np.repeat(together["plain_return"][:, None], 4, 1), rtol=1e-5
    )


def test_a_thousand_directions_by_five_strengths_fit_in_64_mib():
    config = Config()  # the laptop scale
    policy, (world, params) = config.make_policy(), config.world.make()
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    seen = jax.eval_shape(lambda p: rollout.policy_episodes(policy, p, world, params, jax.random.key(0), 32), shapes)
    arguments = (shapes, seen, jax.ShapeDtypeStruct((1000, 2, 64), jnp.float32))

    def run(parameters, seen, tried):
        ask = functools.partial(steering.effects, policy, parameters, world, seen)
        return steering.over_pushes(ask, tried, jnp.arange(1), jnp.linspace(-4, 4, 5))

    memory = jax.jit(run).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 64 * 2**20
