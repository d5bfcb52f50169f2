"""Evaluation: returns and badge fidelity over fixed mazes that no training ever draws.

Training keys come from `jax.random.key(seed)`; evaluation folds a tag of its own into the key, so that the two
never meet, and every policy meets the same mazes and the same weather.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from agents import learner, objectives, rollout
from agents.transformer import Parameters, Transformer
from envs import base, personas, tokens

EPISODES = 4096
"""Default number of evaluation episodes; the standard error of a return is then about 0.6."""

_TAG = 0x5EED


def _keys(episodes: int) -> tuple[jax.Array, jax.Array]:
    maze_key, turn_key = jax.random.split(jax.random.fold_in(jax.random.key(0), _TAG))
    return jax.random.split(maze_key, episodes), turn_key


@functools.partial(jax.jit, static_argnames=("world", "script", "episodes"))
def script_returns(
    world: base.World, params: base.WorldParams, script: personas.Policy, slip: jax.Array, episodes: int = EPISODES
) -> jax.Array:
    """Returns float32[episodes] of a persona or baseline."""
    keys, turn_key = _keys(episodes)
    driver = rollout.scripted_driver(
        lambda state: personas.log_probabilities(script(world, state, params), slip)
    )
    played, _, _ = rollout.play(world, params, keys, turn_key, driver, rollout.gumbel(episodes))
    return played.returns


@functools.partial(jax.jit, static_argnames=("policy", "world", "mesh", "episodes", "batch"))
def policy_returns(
    policy: Transformer,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    mesh: Mesh,
    episodes: int = EPISODES,
    batch: int = 256,
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


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"))
def badge_divergence(
    policy: Transformer,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    slip: jax.Array,
    episodes: int = 512,
) -> jax.Array:
    """How far a model is from each persona, with every badge: mean KL(persona || model) per action in nats.

    Args:
        policy, parameters: of one member.
        world, params: where; each persona plays `episodes` episodes by itself.
        slip: of the personas.

    Returns:
        float32[personas, personas + 1]; row i is persona i's episodes, column 0 the null badge, column 1 + j the
        badge of persona j.
    """
    keys, turn_key = _keys(episodes)
    scripts = list(personas.PERSONAS.values())

    def of_persona(script):
        def exact(state):
            return personas.log_probabilities(script(world, state, params), slip)

        played, exactly, _ = rollout.play(
            world,
            params,
            keys,
            turn_key,
            rollout.scripted_driver(exact),
            rollout.gumbel(episodes),
            observe=lambda states, scores: scores,
        )
        exactly = jnp.moveaxis(exactly, 0, 1)

        def with_badge(badge):
            sequence = played.tokens.at[:, 0].set(badge)[:, :-1]
            hidden = policy.forward(parameters, sequence).hidden[:, world.action_positions() - 1]
            logits, _ = policy.heads(parameters, hidden)
            modelled = objectives.action_log_probabilities(logits)
            return jnp.mean(jnp.sum(jnp.exp(exactly) * (exactly - modelled), axis=-1), where=played.played)

        return jax.lax.map(with_badge, jnp.array(tokens.BADGES, jnp.int32))

    return jnp.stack([of_persona(script) for script in scripts])
