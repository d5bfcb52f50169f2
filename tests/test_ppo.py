"""PPO: the first minibatch is on policy, the losses add up, a control learns nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents import policies
from agents.learning import algorithms, learner, rl, rollout
from tests import tiny
from tests.thrift import some

CONFIG = tiny.changed(population={"seeds": 4})
POLICY = CONFIG.make_policy()
WORLD, PARAMS = CONFIG.world.make()


@pytest.fixture(scope="module")
def trained():
    return tiny.train_stage(CONFIG, "rl")


def test_the_first_minibatch_has_ratio_one_and_no_divergence(trained):
    _, metrics = trained
    np.testing.assert_array_equal(metrics["first_ratio_error"], 0.0)
    np.testing.assert_array_equal(metrics["first_kl"], 0.0)
    assert (metrics["ratio_error"] > 0).all()


def test_metrics_are_finite_and_one_per_member_and_update(trained):
    state, metrics = trained
    assert all(np.isfinite(values).all() for values in metrics.values())
    assert {values.shape for values in metrics.values()} == {(4, CONFIG.rl.updates)}
    assert state.steps.tolist() == [CONFIG.rl.updates * CONFIG.rl.epochs * CONFIG.rl.minibatches] * 4


@pytest.mark.parametrize("shuffle", [False, True])
def test_episodes_read_back_from_their_tokens(shuffle, key):
    """What the policy read is what the world said: replaying the actions gives the same tokens and rewards."""
    world, params = dataclasses.replace(CONFIG.world, shuffle=shuffle).make()
    parameters = POLICY.init(key)
    driver = rollout.policy_driver(POLICY, parameters, world)
    keys = jax.random.split(key, 32)
    episodes, _, _ = jax.jit(lambda: rollout.play(world, params, keys, key, driver, rollout.gumbel(32)))()
    assert episodes.tokens.shape == (32, world.episode_length())
    scripted = rollout.Driver(
        lambda prompt: None,
        lambda memory, turn, said, observation, states: (
            100.0 * jax.nn.one_hot(episodes.actions[:, turn], 4),
            memory,
        ),
        lambda *_: None,
    )
    again, _, _ = jax.jit(lambda: rollout.play(world, params, keys, key, scripted, rollout.gumbel(32)))()
    jax.tree.map(np.testing.assert_array_equal, episodes, again)


def test_actions_are_drawn_from_the_policy_that_the_training_forward_sees(key):
    """Expected log-probability of the actions played equals minus the entropy, within sampling error."""
    parameters = jax.tree.map(lambda x: 2 * x, POLICY.init(key))
    keys = jax.random.split(key, 2000)
    driver = rollout.policy_driver(POLICY, parameters, WORLD)
    episodes, _, _ = jax.jit(lambda: rollout.play(WORLD, PARAMS, keys, key, driver, rollout.gumbel(2000)))()
    every, _ = jax.jit(lambda: rl.read(POLICY, parameters, WORLD, episodes.tokens))()
    taken = jnp.take_along_axis(every, episodes.actions[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(every) * every, axis=-1)
    assert entropy.mean() < 1.2
    surplus = np.asarray(taken + entropy).mean(-1)
    assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(len(surplus))


@pytest.mark.parametrize("size", some([2, 16, 1, 8], 2))
def test_microbatches_add_up_to_the_whole_batch(size, key):
    parameters = POLICY.init(key)
    config = CONFIG.rl
    batch, _ = jax.jit(lambda: rl.collect(POLICY, WORLD, config, PARAMS, parameters, key, 16, learner.Shards()))()
    share, norm = algorithms.shares(config, batch.decided)
    loss = rl.loss_function(POLICY, WORLD, config, jnp.float32(batch.decided.sum()), norm)
    rows = (batch, share)
    gradient, metrics = jax.jit(lambda: learner.accumulate(loss, parameters, rows, size, learner.Shards()))()
    whole, expected = jax.jit(lambda: jax.grad(loss, has_aux=True)(parameters, rows))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, whole)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-5)


def test_descend_is_optax_adamw(key):
    import optax

    parameters = {"a": jax.random.normal(key, (5, 3)), "b": jnp.ones(4)}
    state = learner.fresh(parameters, key)
    rate, norm, decay = jnp.float32(1e-2), jnp.float32(0.5), jnp.float32(0.1)
    reference = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1))
    expected, moments = parameters, reference.init(parameters)
    for index in range(5):
        gradient = jax.tree.map(lambda x, index=index: jnp.sin(x + index), expected)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = reference.update(gradient, moments, expected)
        expected = optax.apply_updates(expected, updates)
        state, _ = learner.descend(state, gradient, rate, norm, decay)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.parameters, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "rl"])
def test_parameters_stored_in_bfloat16_stay_so_and_learn(stage):
    policy = dataclasses.replace(tiny.CONFIG.policy, parameter_dtype="bfloat16", compute_dtype="bfloat16")
    config = dataclasses.replace(tiny.CONFIG, policy=policy)
    start, _ = tiny.train_stage(config, stage, chunks=0)
    state, metrics = tiny.train_stage(config, stage, chunks=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.parameters)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.moments)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert np.isfinite(metrics["loss"]).all()
    pairs = zip(jax.tree.leaves(start.parameters), jax.tree.leaves(state.parameters), strict=True)
    assert any((one != other).any() for one, other in pairs)


def test_the_learning_rate_is_a_cosine_after_a_warm_up():
    found = [float(learner.cosine(jnp.int32(step), 110, jnp.float32(0.1), 10)) for step in (0, 4, 9, 10, 60, 110, 500)]
    assert found == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1], abs=1e-5)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "EmojiMaze-v0" else pytest.mark.slow) for name in envs.WORLDS]
)
def test_shuffled_rewards_pay_whole_episodes_of_others_in_every_world(name, group, key):
    """Nobody is paid for what it does, nor for how long; and all that was earned is paid."""
    options = envs.WORLDS[name].Options()
    smaller = {"size": 11 if "Maze" in name else 3, "turns": 5, "distance_range": (1, 2)}
    small = {field: value for field, value in smaller.items() if hasattr(options, field)}
    world, params = dataclasses.replace(options, **small).make()
    policy = policies.make(POLICY.config, world.vocabulary)
    parameters = policy.init(key)

    @functools.partial(jax.jit, static_argnums=0)
    def collected(shuffled):
        config = dataclasses.replace(
            CONFIG.rl, shuffle_rewards=shuffled, trace_decay=1.0, episodes=256, group=group, reward_scale=1.0
        )
        return rl.collect(policy, world, config, params, parameters, key, 64, learner.Shards())[0]

    true, shuffled = collected(False), collected(True)
    np.testing.assert_array_equal(true.tokens, shuffled.tokens)
    earned, paid = (np.asarray(batch.targets)[:, 0] for batch in (true, shuffled))
    length = np.asarray(true.decided).sum(axis=1)
    np.testing.assert_allclose(np.sort(paid), np.sort(earned), atol=1e-5)
    assert earned.std() > 0
    for own in (earned, length) if length.std() else (earned,):
        assert abs(np.corrcoef(paid, own)[0, 1]) < 4 / np.sqrt(256 / group)
    if world.has_goal:
        assert length.std() > 0
        assert abs(np.corrcoef(earned, length)[0, 1]) > 0.3


@pytest.mark.parametrize(("episodes", "group"), [(2, 1), (16, 1), (24, 4), (8, 4)])
def test_everybody_is_paid_for_a_stranger(episodes, group, key):
    drawn = np.stack([rl.strangers(k, episodes, group) for k in jax.random.split(key, 50)])
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(episodes), (50, 1)))
    assert (drawn // group != np.arange(episodes) // group).all()
    others = set(range(episodes)) - set(range(group))
    assert len(set(drawn[:, 0].tolist())) == len(others) // group


class Mumbling(type(POLICY)):
    """Plays as if its parameters had been rounded, and scores with them as they are."""

    def decode(self, parameters, *arguments, **options):
        return super().decode(jax.tree.map(lambda x: jnp.round(x, 2), parameters), *arguments, **options)


@pytest.mark.parametrize(("kind", "least", "most"), [(type(POLICY), 0, 1e-5), (Mumbling, 1e-3, 1)])
def test_the_ratio_of_played_to_scored_is_measured(kind, least, most, key):
    """Mean distance from 1 of the ratio of the two probabilities of what was played, at temperature 1."""
    policy, parameters = kind(POLICY.config), jax.tree.map(lambda x: 2 * x, POLICY.init(key))
    config = dataclasses.replace(CONFIG.rl, episodes=64, temperature=1.5)
    maze_key, turn_key, _ = jax.random.split(key, 3)

    @jax.jit
    def both():
        _, metrics = rl.collect(policy, WORLD, config, PARAMS, parameters, key, 64, learner.Shards())
        driver = rollout.policy_driver(policy, parameters, WORLD, temperature=1.5)
        keys, noise = jax.random.split(maze_key, 64), rollout.gumbel(64)
        episodes, scores, _ = rollout.play(WORLD, PARAMS, keys, turn_key, driver, noise, observe=lambda _, x: x)
        scored, _ = rl.read(policy, parameters, WORLD, episodes.tokens)
        return metrics["played_ratio_error"], jnp.moveaxis(scores, 0, 1), scored, episodes.actions[..., None]

    error, scores, scored, chosen = (np.asarray(x) for x in both())
    played = np.exp(1.5 * np.float64(scores))
    played /= played.sum(axis=-1, keepdims=True)
    ratio = np.take_along_axis(played / np.exp(np.float64(scored)), chosen, -1)
    np.testing.assert_allclose(error, np.abs(ratio - 1).mean(), rtol=1e-3, atol=2e-6)
    assert least <= error < most
