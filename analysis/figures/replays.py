"""Replays of trained policies, for people to watch."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning import rl, rollout
from agents.policies import Parameters, Policy
from agents.runs.config import Config, Member
from analysis import accounts
from envs import base, rendering
from envs.replay import Replay
from ground import files, numbers, seeds

CANDIDATES = 32
"""Mazes among which the most typical one is shown."""


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def _play(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    keys: jax.Array,
    personas: tuple[Parameters, jax.Array] | None = None,
):
    def one(key):
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
        log_probabilities, values = rl.read(policy, parameters, world, episodes.tokens)
        beliefs = None
        if personas is not None:
            before, prior = personas
            beliefs = accounts.posteriors(policy, before, world, prior, episodes)[0]
        return jax.tree.map(lambda x: x[0], episodes), states, tiles, log_probabilities[0], values[0], beliefs

    return jax.lax.map(one, keys)


def record(
    config: Config,
    parameters: Parameters,
    params: base.WorldParams,
    keys: jax.Array,
    title: str,
    before: Parameters | None = None,
    member: Member | None = None,
) -> list[Replay]:
    """Play an episode for each key with a policy.

    Args:
        config: of the run.
        parameters: of one member.
        params: the world's, of that member.
        keys: keys [N]; each is a maze, its weather and the policy's chance.
        title: what the picture says above the episode; the return is added.
        before: of the same member's base, by whose personas `beliefs` are; without it, and in worlds without badges,
            there are none.
        member: whose swept values count.
    """
    scale = (member.values if member else {}).get("rl.reward_scale", config.rl.reward_scale)
    policy, (world, _) = config.make_policy(), config.world.make()
    personas = None
    if before is not None and world.badge != "null":
        personas = before, jnp.asarray(config.prior, jnp.float32)
    played = jax.tree.map(np.asarray, _play(policy, parameters, world, params, keys, personas))

    def replay(index):
        episode, states, tiles, log_probabilities, values, beliefs = jax.tree.map(lambda x: x[index], played)
        fields = {
            "tiles": tiles,
            "tile_map": np.asarray(params.tile_map),
            "actions": episode.actions,
            "rewards": episode.rewards,
            "probabilities": np.exp(log_probabilities),
            "values": values / scale,
            "title": f"{title}, return {numbers.signed(float(episode.returns))}",
            "tokens": episode.tokens,
            "prompt_length": world.prompt_length + world.opening_length,
            "observation_length": world.observation_length,
            "beliefs": beliefs,
        }
        return world.replay(states, **fields).until(int(np.sum(episode.played)))

    return [replay(index) for index in range(len(keys))]


def before_and_after(
    config: Config,
    before: Parameters,
    after: Parameters,
    returns_before: Sequence[float],
    returns_after: Sequence[float],
    path: Path,
) -> None:
    """Write a GIF of one member on one maze, before and after RL.

    The member is the one nearest the median after RL; of a few mazes, the one whose two returns are nearest that
    member's means is shown, so that the picture is typical and not picked.

    Args:
        config: of the run.
        before, after: parameters with the member as axis 0.
        returns_before, returns_after: mean return of each member.
        path: of the GIF.
    """
    index = int(np.nanargmin(np.abs(np.asarray(returns_after) - np.nanmedian(returns_after))))
    member, params = config.members[index], jax.tree.map(lambda x: x[index], config.world_params())
    keys = jax.random.split(seeds.held_out("replay"), CANDIDATES)
    sides = [
        record(config, jax.tree.map(lambda x: jnp.asarray(x[index]), parameters), params, keys, title, member=member)
        for title, parameters in (("before RL", before), (f"after RL, member {index}", after))
    ]
    typical = (returns_before[index], returns_after[index])
    distances = [
        sum(abs(replay.returns[-1] - mean) for replay, mean in zip(pair, typical, strict=True))
        for pair in zip(*sides, strict=True)
    ]
    chosen = int(np.argmin(distances))
    drawn = io.BytesIO()
    rendering.side_by_side([side[chosen] for side in sides], drawn)
    files.write(path, drawn.getvalue())
