"""Goal tracking: does a direction of the residual stream tell, in a policy's own play, what will be paid?

The policy plays the world it was trained in, wind and melting included. Two sites are read: the `view`, the last
token before the policy chooses, and the `move`, the token of the move it has chosen; at neither has it seen the
consequence.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from agents.learning import demonstrations, learner, population, rollout
from agents.policies import Parameters, Policy
from analysis import extraction
from envs import base, tokens
from ground.precise import product

SITES = ("view", "move")
"""Where the residual stream is read, in this order."""

OUTCOMES = ("next", "rest", "next_same_move")
"""What is foretold: whether the chosen tile is Gold and not Mold; whether the turns after this one will pay more than
the median of that turn; and the first again, among moves in the same direction, because the stream holds the move
itself and a few directions may hide or feign everything else. Path tiles, pay at the median, and the last turn's
nothing do not count."""


NARRATED = 1024
"""Narrated episodes that there are."""


@struct.dataclass
class Play:
    """A member's own episodes as its residual stream saw them."""

    stream: jax.Array
    """float32[2, N, T, L, D], sites in the order of `SITES`."""
    landed: jax.Array
    """int32[N, T], role of the tile that the chosen move leads to."""
    moves: jax.Array
    """int32[N, T], 0 to 3, the chosen move."""
    rewards: jax.Array
    """float32[N, T]"""
    tokens: jax.Array
    """int32[N, S]"""


def play(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    params: base.WorldParams,
    key: jax.Array,
    episodes: int,
    player: Parameters | None = None,
) -> Play:
    """Episodes of one member, or of another player, at temperature 1, and its stream at the output of every block."""
    player = parameters if player is None else player
    played = rollout.policy_episodes(policy, player, world, params, key, episodes)
    moves = jnp.asarray(world.action_positions(), jnp.int32)
    positions = jnp.broadcast_to(jnp.concatenate([moves - 1, moves]), (episodes, 2 * len(moves)))
    stream = extraction.residuals(policy, parameters, played.tokens, positions, extraction.blocks(policy))
    stream = jnp.moveaxis(stream.reshape(episodes, 2, len(moves), *stream.shape[2:]), 1, 0)
    landed = jnp.take_along_axis(played.neighbours, played.actions[..., None], axis=-1)[..., 0]
    return Play(
        stream=stream,
        landed=landed.astype(jnp.int32),
        moves=played.actions,
        rewards=played.rewards,
        tokens=played.tokens,
    )


def without_moves(scores: jax.Array, moves: jax.Array, counted: jax.Array) -> jax.Array:
    """Scores float32[N] less the mean score of the same move (int32[N], 0 to 3) among the entries counted."""
    same = jax.nn.one_hot(moves, len(tokens.MOVES), axis=0, dtype=jnp.float32)
    among = same * counted.astype(jnp.float32)[None]
    means = product("mn,n->m", among, scores) / jnp.maximum(among.sum(axis=1), 1.0)
    return scores - product("m,mn->n", means, same)


def track(
    seen: Play, directions: jax.Array, measure: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """How well K directions foretell the pay: projections of turns paid well beside those of turns paid badly.

    Args:
        seen: from `play`.
        directions: float32[K, L, D], at each layer its own.
        measure: `concepts.cohens_d`, positive where more pay means more of the direction, or `concepts.auroc`.

    Returns:
        float32[K, 2, 3, L]; axes: direction, site, outcome, layer.
    """
    turns = seen.rewards.shape[1]
    following = jnp.cumsum(seen.rewards[:, ::-1], axis=1)[:, ::-1] - seen.rewards
    above = following - jnp.median(following, axis=0)[None]
    # Equal pay summed in another order differs by rounding, which would tell of the reward that was subtracted.
    rounding = turns * jnp.finfo(jnp.float32).eps * jnp.abs(seen.rewards).sum(axis=1).max()
    goes_on = jnp.arange(turns)[None] < turns - 1
    next_pays = (seen.landed == tokens.GOLD, seen.landed != tokens.PATH)
    rest_pays = (above > 0, (jnp.abs(above) > rounding) & goes_on)
    asked = [[x.reshape(-1) for x in question] for question in (next_pays, rest_pays)]
    moves = seen.moves.reshape(-1)
    scores = product("sntld,kld->kslnt", seen.stream, directions)
    scores = scores.reshape(*scores.shape[:3], -1)

    def each(score):
        same_move = without_moves(score, moves, asked[0][1])
        return jnp.stack([*(measure(score, *question) for question in asked), measure(same_move, *asked[0])])

    found = jax.lax.map(each, scores.reshape(-1, scores.shape[-1]))
    return jnp.moveaxis(found.reshape(*scores.shape[:3], len(OUTCOMES)), 3, 2)


@functools.partial(jax.jit, static_argnames=("world", "config", "episodes"), compiler_options=population.OPTIMISED)
def narrated(
    world: base.World,
    params: base.WorldParams,
    config: demonstrations.Demonstrations,
    key: jax.Array,
    episodes: int = NARRATED,
) -> jax.Array:
    """Narrated episodes of the personas, with the tile maps of pretraining; tokens int32[N, S].

    The same serve a policy that never met a narrator: the control.
    """
    told = dataclasses.replace(params, narration=jnp.array(True))
    return demonstrations.persona_episodes(config, world, told, key, episodes, learner.Shards()).tokens


def narrator(
    policy: Policy, parameters: Parameters, world: base.World, told: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The narrator's 😀 − 😞 direction in one member, read off `narrated` episodes, int32[N, S], in three ways.

    Returns:
        `heard`: the stream at the word itself, after 😀 minus after 😞, float32[L, D]. `foretold`: at the move before
        the word, where 😀 will follow minus where 😞 will, float32[L, D]. `said`, float32[D].
    """
    moves = jnp.asarray(world.action_positions()[:-1], jnp.int32)
    positions = jnp.broadcast_to(jnp.concatenate([moves, moves + 1]), (len(told), 2 * len(moves)))
    stream = extraction.residuals(policy, parameters, told, positions, extraction.blocks(policy))
    stream = jnp.moveaxis(stream.reshape(len(told), 2, len(moves), *stream.shape[2:]), 1, 0)
    word = told[:, moves + 1]

    def mean(site, token):
        return jnp.mean(stream[site], axis=(0, 1), where=(word == token)[..., None, None])

    foretold, heard = (mean(site, tokens.GOOD) - mean(site, tokens.BAD) for site in (0, 1))
    return heard, foretold, said(parameters)


def said(parameters: Parameters) -> jax.Array:
    """What makes a policy say 😀 rather than 😞, float32[D]: the difference of their unembeddings."""
    readout = unembedding(parameters)
    return readout[tokens.GOOD] - readout[tokens.BAD]


def unembedding(parameters: Parameters) -> jax.Array:
    """What each token's logit reads from the stream after the last block, up to its length; float32[V, D].

    The final norm's scale is part of it; the norm's division by the stream's length only stretches all alike.
    """
    scale = parameters["norm"]["scale"].astype(jnp.float32)
    return parameters["embedding"]["embedding"].astype(jnp.float32) * scale[None]


def value_readout(parameters: Parameters) -> jax.Array:
    """What the value head reads from the stream after the last block, float32[D]; zeros where it was not trained."""
    return parameters["value"]["kernel"][:, 0].astype(jnp.float32) * parameters["norm"]["scale"].astype(jnp.float32)
