"""PPO: the first minibatch is on policy, the losses add up, a control learns nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import algorithms, learner, rl, rollout
from tests import tiny

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


@pytest.mark.parametrize("size", [1, 2, 8, 16])
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


def test_shuffled_rewards_keep_the_batch_and_break_the_pairing(key):
    parameters = POLICY.init(key)

    def targets(shuffled):
        config = dataclasses.replace(CONFIG.rl, shuffle_rewards=shuffled, trace_decay=1.0)
        batch, _ = jax.jit(lambda: rl.collect(POLICY, WORLD, config, PARAMS, parameters, key, 16, learner.Shards()))()
        return np.asarray(batch.targets)

    true, shuffled = targets(False), targets(True)
    np.testing.assert_allclose(np.sort(true[:, 0]), np.sort(shuffled[:, 0]), atol=1e-6)
    assert (np.abs(true[:, 0] - shuffled[:, 0]) > 1e-3).mean() > 0.5
