"""What a base knows of its personas, against other ways to the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents import policies
from agents.policies import PolicyConfig
from agents.runs import evaluation, fidelity, scripts
from envs import personas, tokens
from envs.personas import Traits

SMALL = PolicyConfig(width=16, layers=1, heads=2, hidden=16)
TRAITS = Traits(slip=0.1)


def made(badge, name="EmojiMaze-v0", **options):
    world, params = envs.make(name, badge=badge, **options)
    policy = policies.make(SMALL, world.vocabulary)
    return policy, jax.jit(policy.init)(jax.random.key(7)), world, params


@pytest.fixture(scope="module")
def maze():
    return made("shown", size=11, turns=4)


def test_a_badge_earns_what_a_population_earns_that_is_told_it(maze):
    policy, parameters, world, params = maze
    heads = jnp.array(tokens.BADGES[1:], jnp.int32)
    worlds = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *jnp.shape(x))), params).replace(head=heads)
    members = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *x.shape)), parameters)
    named = evaluation.policy_outcomes(policy, members, world, worlds, 1024)
    nameless = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *jnp.shape(x))), params)
    told = evaluation.policy_outcomes(policy, members, world, nameless, 1024, speakers=np.arange(3, dtype=np.int32))
    for one, other in zip(told, named, strict=True):
        np.testing.assert_allclose(one.mean(axis=1), other.mean(axis=1), rtol=1e-5)
    assert len(np.unique(told[0].mean(axis=1))) == 3


def test_nats_per_token_of_actions_alone_are_those_per_action(maze):
    policy, parameters, world, params = maze
    played, exact = scripts.script_episodes(world, params, TRAITS, fidelity.EPISODES)
    sample = jax.tree.map(lambda x: x[len(personas.BASELINES) :], (played, exact))
    every = np.asarray(evaluation.badge_divergence(policy, parameters, world, params, *sample))
    per_token = fidelity.nats_per_token(policy, parameters, world, params, TRAITS, *sample)
    np.testing.assert_allclose(per_token, [every[i][i + 1] for i in range(3)], rtol=1e-4)


@pytest.mark.slow
def test_nats_per_token_count_thoughts():
    policy, parameters, world, params = made("spoken", "EmojiRooms-v0", size=5, turns=3, plan_length=4)
    nothing = jax.tree.map(jnp.zeros_like, parameters)  # speaks and acts at random
    played, exact = scripts.script_episodes(world, params, TRAITS, fidelity.EPISODES)
    sample = jax.tree.map(lambda x: x[len(personas.BASELINES) :], (played, exact))
    shown = np.asarray(fidelity.nats_per_token(policy, nothing, world, params, TRAITS, *sample))
    _, first = jax.jit(jax.vmap(world.reset_env, in_axes=(0, None)))(scripts.mazes(fidelity.EPISODES)[0], params)
    chances = jax.jit(jax.vmap(lambda plan, state: world.plan_log_probabilities(plan, state, params, TRAITS)))
    for persona in range(3):
        own = jax.tree.map(lambda x, persona=persona: np.asarray(x[persona + 2]), (played, exact))
        thoughts = np.asarray(chances(world.plan(own[0].tokens), first))[:, persona].sum()
        turns, written = np.asarray(own[0].played), own[0].written[:, 1:]
        thoughts += written.sum() * np.log(len(world.plan_sayings))
        actions = np.where(turns[..., None], np.exp(own[1]) * (own[1] + np.log(4)), 0.0).sum()
        np.testing.assert_allclose(shown[persona], (actions + thoughts) / (turns.sum() + written.sum()), rtol=1e-4)


@pytest.mark.slow
def test_only_a_spoken_badge_leaves_no_misfit(maze):
    prior = jnp.array([0.2, 0.3, 0.5])
    for badge, low, high in (("spoken", -1e-5, 1e-5), ("shown", 1e-3, 10.0)):
        policy, parameters, world, params = made(badge, "EmojiRooms-v0", size=5, turns=3, plan_length=4)
        loud = jax.tree.map(lambda x: 4 * x, parameters)
        assert low < float(fidelity.misfit(policy, loud, world, params, prior)) < high
