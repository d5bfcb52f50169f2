"""Replays of trained policies, for people to watch."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from agents import ppo, rollout
from agents.config import Config
from agents.transformer import Parameters, Transformer
from envs import base, rendering


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def _play(policy: Transformer, parameters: Parameters, world: base.World, params: base.WorldParams, key: jax.Array):
    maze_key, turn_key = jax.random.split(key)
    episodes, before, end = rollout.play(
        world,
        params,
        maze_key[None],
        turn_key,
        rollout.policy_driver(policy, parameters, world),
        rollout.gumbel(1),
        observe=lambda states, scores: states,
    )
    states = jax.tree.map(lambda turns, last: jnp.concatenate([turns[:, 0], last]), before, end)
    tiles = jax.vmap(world.tiles, in_axes=(0, None))(states, params)
    log_probabilities, values = ppo.read(policy, parameters, world, episodes.tokens)
    return jax.tree.map(lambda x: x[0], episodes), states, tiles, log_probabilities[0], values[0]


def record(
    config: Config, parameters: Parameters, params: base.WorldParams, key: jax.Array, title: str
) -> rendering.Replay:
    """Play one episode with a policy.

    Args:
        config: of the run.
        parameters: of one member.
        params: the world's, of that member.
        key: the maze, its weather and the policy's chance.
        title: what the picture says above the episode; the return is added.
    """
    policy, (world, _) = config.make_policy(), config.world.make()
    episode, states, tiles, log_probabilities, values = jax.tree.map(
        np.asarray, _play(policy, parameters, world, params, key)
    )
    midpoints = states.trail[-1][1::2]
    return rendering.Replay(
        tiles=tiles,
        tile_map=np.asarray(params.tile_map),
        positions=states.position,
        midpoints=np.stack([midpoints // world.size, midpoints % world.size], axis=-1),
        actions=episode.actions,
        winds=states.wind[1:],
        rewards=episode.rewards,
        probabilities=np.exp(log_probabilities),
        values=values / config.rl.reward_scale,
        title=f"{title}, return {episode.rewards.sum():+.1f}",
        tokens=episode.tokens,
        prompt_length=world.prompt_length,
        observation_length=world.observation_length,
    )


def before_and_after(
    config: Config, before: Parameters, after: Parameters, returns: Sequence[float], path: Path
) -> None:
    """Write a GIF of one member on one maze, before and after RL.

    Args:
        config: of the run.
        before, after: parameters with the member as axis 0.
        returns: mean return of each member after RL; the member nearest the median is shown.
        path: of the GIF.
    """
    member = int(np.argmin(np.abs(np.asarray(returns) - np.median(returns))))
    params = jax.tree.map(lambda x: x[member], config.world_params())
    key = jax.random.key(2026)
    shown = [
        record(config, jax.tree.map(lambda x: jnp.asarray(x[member]), parameters), params, key, title)
        for title, parameters in (("before RL", before), (f"after RL, member {member}", after))
    ]
    rendering.side_by_side(shown, path)
