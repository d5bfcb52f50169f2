"""The analyses of one member, mapped over a population in one compiled program, on all devices.

Every function takes parameters with the member as axis 0 and gives results with the member as axis 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from agents.learning import learner, pretrain
from agents.policies import Parameters, Policy
from analysis import concepts, directions, extraction, tracking
from envs import base


def mesh(members: int) -> Mesh:
    """A mesh that divides the members over the devices."""
    return learner.population_mesh(members, 1)


@functools.partial(jax.jit, static_argnames=("policy", "world", "permutations"))
def extract(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    tile_maps: jax.Array,
    training: extraction.Approaches,
    held_out: extraction.Approaches,
    written: jax.Array,
    key: jax.Array,
    permutations: int = 200,
) -> concepts.Concepts:
    """`concepts.extract` of every member; `tile_maps` int32[M, 5]."""

    def member(parameters, tile_map):
        return concepts.extract(policy, parameters, world, tile_map, training, held_out, written, key, permutations)

    return learner.over_members(member, mesh(len(tile_maps)))(parameters, tile_maps)


@functools.partial(jax.jit, static_argnames=("policy", "world"))
def extract_means(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    tile_maps: jax.Array,
    episodes: extraction.Approaches,
    written: jax.Array,
) -> jax.Array:
    """`concepts.extract_means` of every member, float32[M, C, L, D]; `tile_maps` int32[M, 5]."""

    def member(parameters, tile_map):
        return concepts.extract_means(policy, parameters, world, tile_map, episodes, written)

    return learner.over_members(member, mesh(len(tile_maps)))(parameters, tile_maps)


@struct.dataclass
class Tracked:
    """What `track` finds, of every member."""

    tracking: dict[str, tracking.Tracking]
    """By the names of `directions.of_member`; arrays [M, K, site, outcome, L]."""
    coordinate: jax.Array
    """float32[M, 2, N, T, L], `concepts.coordinate` of the member's own episodes, per site."""
    landed: jax.Array
    """int32[M, N, T], role of the tile that the chosen move leads to."""
    rewards: jax.Array
    """float32[M, N, T]"""
    moves: jax.Array
    """int32[M, N, T], 0 to 3."""
    tokens: jax.Array
    """int32[M, N, S]"""


@functools.partial(jax.jit, static_argnames=("policy", "world", "episodes"))
def track(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    found: concepts.Concepts,
    before: concepts.Concepts,
    key: jax.Array,
    episodes: int,
) -> Tracked:
    """Goal tracking of every member with every named direction, all on the same mazes.

    Args:
        policy, parameters, world: of the members.
        params: the world's parameters, axis 0 the member.
        found: the concepts whose directions are tried.
        before: those of the model before RL.
        key: of mazes, weather and random directions.
        episodes: of each member.
    """
    play_key, random_key = jax.random.split(key)

    def member(parameters, params, found, before):
        seen = tracking.play(policy, parameters, world, params, play_key, episodes)
        named = directions.of_member(parameters, found.vectors, before.vectors, params.tile_map, random_key)
        few = directions.Stack({name: x for name, x in named.items() if len(x) == 1})
        many = directions.Stack({name: x for name, x in named.items() if len(x) > 1})
        return Tracked(
            tracking=few.split(tracking.track(seen, few.directions, areas=True))
            | many.split(tracking.track(seen, many.directions, areas=False)),
            coordinate=concepts.coordinate(seen.stream, found),
            landed=seen.landed,
            rewards=seen.rewards,
            moves=seen.moves,
            tokens=seen.tokens,
        )

    return learner.over_members(member, mesh(len(params.tile_map)))(parameters, params, found, before)


@functools.partial(
    jax.jit, static_argnames=("policy", "world", "config", "episodes"), compiler_options=learner.OPTIMISED
)
def narrator(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    config: pretrain.PretrainConfig,
    key: jax.Array,
    episodes: int = 1024,
) -> tracking.Narrator:
    """`tracking.narrator` of every member; `params` is shared, since the narrator spoke in pretraining."""

    def member(parameters):
        return tracking.narrator(policy, parameters, world, params, config, key, episodes)

    count = len(jax.tree.leaves(parameters)[0])
    return learner.over_members(member, mesh(count))(parameters)


def stack(*trees: Any) -> Any:
    """Populations one after the other on the member axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate([jnp.asarray(leaf) for leaf in leaves]), *trees)
