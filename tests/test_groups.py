"""A prompt that a group shares is read once: the same numbers, in every world and family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents import policies
from agents.learning import learner, rl, rollout
from agents.learning.algorithms import ALGORITHMS
from agents.policies import PolicyConfig
from tests import tiny

WORLDS = {
    "EmojiLabyrinth-v0": {"size": 2, "turns": 4, "view": "compass", "plan_length": 2},
    "EmojiMaze-v0": {"size": 11, "turns": 3},
    "EmojiRooms-v0": {"turns": 3},
}
EPISODES, GROUP = 16, 4
LONG = {False: [], True: [pytest.mark.long]}


def stage(world: str, family: str, lookback: int = 0, **rl_options):
    """World, its parameters, policy, its parameters and config of RL in groups."""
    made, params = envs.make(world, **WORLDS[world])
    shape = PolicyConfig(family=family, width=16, layers=2, heads=2, hidden=16, lookback=lookback)
    policy = policies.make(shape, made.vocabulary)
    switches = ALGORITHMS["grpo"].switches | {"group": GROUP, "episodes": EPISODES, "minibatches": 1} | rl_options
    return made, params, policy, policy.init(jax.random.key(1)), dataclasses.replace(tiny.CONFIG.rl, **switches)


@pytest.mark.parametrize(
    ("world", "family", "lookback"),
    [
        ("EmojiLabyrinth-v0", "transformer", 0),
        *(
            pytest.param(world, family, lookback, marks=[pytest.mark.slow, *LONG[family == "gru"]])
            for world in WORLDS
            for family in ("transformer", "gru")
            for lookback in (0, 2)
            if (world, family, lookback) != ("EmojiLabyrinth-v0", "transformer", 0)
        ),
    ],
)
def test_what_a_group_reads_once_is_as_if_each_had_read_it(world, family, lookback):
    made, params, policy, parameters, config = stage(world, family, lookback)

    @jax.jit
    def collect(parameters):
        key = jax.random.key(2)
        batch, metrics = rl.collect(policy, made, config, params, parameters, key, 8, learner.Shards(), at_once=8)
        return batch, metrics, rl.read_decisions(policy, parameters, made, batch.tokens)

    batch, metrics, reading = collect(parameters)
    prompts = batch.tokens[:, : made.prompt_length].reshape(-1, GROUP, made.prompt_length)
    assert np.array_equal(prompts, np.repeat(prompts[:, :1], GROUP, axis=1))
    assert metrics["played_ratio_error"] < 1e-4
    chosen = reading.chosen(made.said(made.opening(batch.tokens)), batch.actions)
    np.testing.assert_allclose(batch.log_probabilities, chosen, atol=2e-5)

    share = batch.decided.astype(jnp.float32)
    decisions = share.sum()

    @jax.jit
    def gradients(parameters):
        apart, together = (rl.loss_function(policy, made, config, decisions, decisions, size) for size in (1, GROUP))
        return [
            learner.accumulate(loss, parameters, (batch, share), size, learner.Shards())
            for loss, size in ((apart, EPISODES), (together, 8))
        ]

    (expected, told), (gradient, metrics) = gradients(parameters)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5 * largest), gradient, expected)
    for name, value in told.items():
        np.testing.assert_allclose(metrics[name], value, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_play_in_groups_and_until_all_have_ended_is_play():
    made, params, policy, parameters, _ = stage("EmojiLabyrinth-v0", "transformer")
    keys = jnp.repeat(jax.random.split(jax.random.key(3), 2), GROUP)

    @jax.jit
    def play(parameters):
        driver = rollout.policy_driver(policy, parameters, made, temperature=0.5)
        return [
            rollout.play(made, params, keys, jax.random.key(4), driver, rollout.gumbel(len(keys)), **options)[0]
            for options in ({}, {"group": GROUP}, {"group": GROUP, "stops": True})
        ]

    plain, grouped, stopped = play(parameters)
    jax.tree.map(np.testing.assert_array_equal, plain, grouped)
    assert np.array_equal(plain.played, stopped.played)
    for name in ("actions", "rewards", "terminated"):
        before, after = (np.asarray(getattr(x, name))[np.asarray(plain.played)] for x in (plain, stopped))
        np.testing.assert_array_equal(before, after, err_msg=name)
    last = np.asarray(plain.played).any(axis=0).sum()
    assert not np.asarray(stopped.tokens)[:, made.action_positions()[last:]].any() or last == made.turns


@pytest.mark.slow
@pytest.mark.parametrize("family", ["transformer", pytest.param("gru", marks=pytest.mark.long)])
def test_the_first_ratio_is_one_and_groups_stay_together(family, monkeypatch):
    made, params, policy, parameters, config = stage(
        "EmojiLabyrinth-v0", family, epochs=3, minibatches=2, episodes=32, updates=2
    )
    met = []
    loss_function = rl.loss_function

    def spied(*arguments):
        loss = loss_function(*arguments)

        def noted(parameters, part):
            jax.debug.callback(lambda tokens: met.append(tokens), part[0].tokens)
            return loss(parameters, part)

        return noted

    monkeypatch.setattr(rl, "loss_function", spied)
    update = rl.update_function(policy, made, 8, tiny.CONFIG.sft)
    config = dataclasses.replace(config, learning_rate=0.01)
    state = learner.fresh(parameters, jax.random.key(3))
    state = dataclasses.replace(state, reference=parameters)
    program = jax.jit(lambda state: update(state, config, params, learner.Shards()))
    state, metrics = program.lower(state).compile(compiler_options=tiny.AS_USERS)(state)
    jax.effects_barrier()
    assert metrics["first_ratio_error"] == 0
    assert metrics["ratio_error"] > 1e-4
    assert len(met) == 3 * 2 * 2
    prompts = np.stack(met)[:, :, : made.prompt_length].reshape(-1, GROUP, made.prompt_length)
    assert np.array_equal(prompts, np.repeat(prompts[:, :1], GROUP, axis=1))
    firsts = prompts[:, 0].reshape(3, -1, made.prompt_length)  # by epoch
    assert not np.array_equal(firsts[0], firsts[1])
    for epoch in firsts:
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, firsts[0]))
