"""Evaluation: returns and badge fidelity over fixed mazes that no training ever draws.

Training keys come from `jax.random.key(seed)`; evaluation folds a tag of its own into the key, so that the two
never meet, and every policy meets the same mazes and the same weather.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agents import learner, ppo, rollout
from agents.policies import Parameters, Policy
from envs import base, personas, tokens

EPISODES = 4096
"""Default number of evaluation episodes; the standard error of a return is then about 0.6."""

_TAG = 0x5EED


def _keys(episodes: int) -> tuple[jax.Array, jax.Array]:
    """Keys [episodes] of the mazes, and the key of the turns."""
    maze_key, turn_key = jax.random.split(jax.random.fold_in(jax.random.key(0), _TAG))
    return jax.random.split(maze_key, episodes), turn_key


SCRIPTS: dict[str, personas.Policy] = personas.BASELINES | personas.PERSONAS
"""All scripted policies by name; baselines never slip."""


def _script_log_probabilities(world, params, slip):
    """(states of a batch) → log-probabilities float32[scripts, B, 4] of every script."""
    slips = jnp.array([0.0] * len(personas.BASELINES) + [1.0] * len(personas.PERSONAS), jnp.float32) * slip

    def every(state):
        scores = jnp.stack([script(world, state, params) for script in SCRIPTS.values()])
        return jax.vmap(personas.log_probabilities)(scores, slips)

    return lambda states: jnp.moveaxis(jax.vmap(every)(states), 1, 0)


@functools.partial(jax.jit, static_argnames=("world", "episodes"))
def script_episodes(
    world: base.World, params: base.WorldParams, slip: jax.Array, episodes: int = EPISODES
) -> tuple[rollout.Episodes, jax.Array]:
    """Episodes of every scripted policy on the evaluation's mazes.

    Args:
        world, params: where they play.
        slip: of the personas; baselines do not slip.
        episodes: how many each plays.

    Returns:
        Episodes with axes [scripts, episodes, …] in the order of `SCRIPTS`, and the exact action log-probabilities
        float32[scripts, episodes, T, 4].
    """
    keys, turn_key = _keys(episodes)
    every = _script_log_probabilities(world, params, slip)

    def of_script(index):
        driver = rollout.scripted_driver(lambda states: every(states)[index])
        played, exact, _ = rollout.play(
            world, params, keys, turn_key, driver, rollout.gumbel(episodes), observe=lambda states, scores: scores
        )
        return played, jnp.moveaxis(exact, 0, 1)

    return jax.lax.map(of_script, jnp.arange(len(SCRIPTS)))


@functools.partial(jax.jit, static_argnames=("policy", "world", "mesh", "episodes", "batch"))
def policy_returns(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    mesh: Mesh,
    episodes: int = EPISODES,
    batch: int = 64,
) -> jax.Array:
    """Returns float32[M, episodes] of a population.

    Args:
        policy, parameters: the policies; axis 0 is the member.
        world, params: where they play; axis 0 of every leaf of `params` is the member.
        mesh: from `learner.population_mesh(M, episodes)`.
        episodes: how many; the same mazes for every member.
        batch: episodes that a member plays at the same time.
    """
    keys, turn_key = _keys(episodes)
    shards = learner.Shards(mesh.shape["episode"])

    def member(parameters, params):
        def part(rows):
            driver = rollout.policy_driver(policy, parameters, world)
            noise = rollout.gumbel(episodes, lambda x: x[rows])
            played, _, _ = rollout.play(world, params, keys[rows], turn_key, driver, noise)
            return played.returns

        mine = learner.microbatches(shards.local(jnp.arange(episodes)), batch)
        return shards.gather(jax.lax.map(part, mine).reshape(-1))

    return learner.over_members(member, mesh)(parameters, params)


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def badge_divergence(
    policy: Policy, parameters: Parameters, world: base.World, played: rollout.Episodes, exact: jax.Array
) -> jax.Array:
    """How far a model is from each script, with every badge: mean KL(script || model) per action, in nats.

    Args:
        policy, parameters: of one member.
        world: where the episodes were played.
        played, exact: from `script_episodes`; the scripts' own episodes.

    Returns:
        float32[scripts, personas + 1]; column 0 is the null badge, column 1 + j the badge of persona j.
    """

    def with_badge(arguments):
        sequence, exactly, badge = arguments

        def part(rows):
            log_probabilities, _ = ppo.read(policy, parameters, world, rows[0].at[:, 0].set(badge))
            return jnp.sum(jnp.exp(rows[1]) * (rows[1] - log_probabilities), axis=-1)

        return jnp.mean(jax.lax.map(part, learner.microbatches((sequence, exactly), 64)))

    scripts, badges = exact.shape[0], jnp.array(tokens.BADGES, jnp.int32)
    pairs = jax.tree.map(lambda x: jnp.repeat(x, len(badges), axis=0), (played.tokens, exact))
    return jax.lax.map(with_badge, (*pairs, jnp.tile(badges, scripts))).reshape(scripts, len(badges))
