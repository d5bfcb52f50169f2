"""The scripts on the evaluation's mazes, which no training ever draws."""

import functools

import jax
import jax.numpy as jnp

from agents.learning import population, rollout
from envs import base, personas, tokens
from envs.personas import SCRIPTS, Traits
from ground import seeds

EPISODES = 4096
"""Default number of evaluation episodes; the standard error of a return is then about 0.6."""


def mazes(episodes: int) -> tuple[jax.Array, jax.Array]:
    """Keys [episodes] of the mazes, and the key of the turns."""
    maze_key, turn_key = jax.random.split(seeds.held_out("evaluation"))
    return jax.random.split(maze_key, episodes), turn_key


def script_driver(world: base.World, params: base.WorldParams, traits: Traits, script: jax.Array) -> rollout.Driver:
    """The script of `SCRIPTS` with index int32[]."""

    def log_probabilities(states, plans):
        def one(state, plan):
            return world.script_log_probabilities(state, plan, params, traits)[script]

        return jax.vmap(one)(states, plans)

    def write(states, key):
        persona = jnp.maximum(script - len(personas.BASELINES), 0)

        def one(key, state):
            return world.write_opening(key, persona, state, params, traits)

        plans = jax.vmap(one)(jax.random.split(key, len(states.time)), states)
        return jnp.where(script < len(personas.BASELINES), tokens.PLAN_END, plans)

    return rollout.scripted_driver(world, log_probabilities, write)


@functools.partial(jax.jit, static_argnames=("world", "episodes"), compiler_options=population.OPTIMISED)
def script_episodes(
    world: base.World, params: base.WorldParams, traits: Traits, episodes: int = EPISODES
) -> tuple[rollout.Episodes, jax.Array]:
    """What every scripted policy plays on so many of the evaluation's mazes, personas with these traits.

    Returns:
        Episodes with axes [scripts, episodes, …] in the order of `SCRIPTS`, and the exact action log-probabilities
        float32[scripts, episodes, T, 4].
    """
    keys, turn_key = mazes(episodes)

    def of_script(index):
        driver = script_driver(world, params, traits, index)
        played, exact, _ = rollout.play(
            world, params, keys, turn_key, driver, rollout.gumbel(episodes), observe=lambda states, scores: scores
        )
        return played, jnp.moveaxis(exact, 0, 1)

    return jax.lax.map(of_script, jnp.arange(len(SCRIPTS)))
