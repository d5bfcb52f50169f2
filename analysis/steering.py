"""Steering and ablation: what pushing the residual stream along a direction, or removing it, does to behaviour.

A strength of 1 moves an activation half the distance between the class means of Mold and Gold, whatever the
direction: from the middle to Gold's mean along the axis, and as far along every control.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from agents.learning import objectives, rl, rollout
from agents.policies import Intervention, Parameters, Policy
from analysis import directions
from envs import base, tokens

STRENGTHS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
"""Default strengths."""

EFFECTS = ("enter_gold", "enter_mold", "entropy")
"""What `effects` measures, in this order: the probability of stepping onto Gold where Gold is beside the agent, onto
Mold where Mold is and something else too, and the entropy of the action, nats."""


def effects(
    policy: Policy, parameters: Parameters, world: base.World, seen: rollout.Episodes, intervention: Intervention
) -> jax.Array:
    """Behaviour of one member under one intervention at every position, float32[3] in the order of `EFFECTS`.

    NaN where no view offers such a choice.

    Args:
        policy, parameters, world: of the member.
        seen: its own episodes, in which its choices are asked for again.
        intervention: on its residual stream.
    """
    log_probabilities, _ = rl.read(policy, parameters, world, seen.tokens, intervention=intervention)
    probabilities = jnp.exp(log_probabilities)
    gold, mold = (seen.neighbours == role for role in (tokens.GOLD, tokens.MOLD))
    onto_gold, onto_mold = (jnp.sum(probabilities, axis=-1, where=there) for there in (gold, mold))
    return jnp.stack(
        [
            jnp.mean(onto_gold, where=gold.any(axis=-1)),
            jnp.mean(onto_mold, where=mold.any(axis=-1) & ~mold.all(axis=-1)),
            jnp.mean(objectives.entropy(log_probabilities)),
        ]
    )


def over_pushes(
    ask: Callable[[Intervention], jax.Array],
    tried: jax.Array,
    layers: jax.Array,
    strengths: jax.Array,
    at_once: int = 1,
) -> jax.Array:
    """What `ask` says of every direction × layer × strength, [K, Y, A, …].

    Args:
        ask: what is asked of one member under an intervention, such as `effects`.
        tried: directions float32[K, L, D], at each layer its own; a strength multiplies them.
        layers: indices int32[Y] among the L layers, 0 the output of the first block.
        strengths: float32[A].
        at_once: conditions of one forward pass; bounds the memory.
    """
    shape = (len(tried), len(layers), len(strengths))

    def condition(index):
        direction, layer, strength = jnp.unravel_index(index, shape)
        return ask(push(tried[direction], layers[layer], strengths[strength]))

    flat = jax.lax.map(condition, jnp.arange(shape[0] * shape[1] * shape[2]), batch_size=at_once)
    return flat.reshape(*shape, *flat.shape[1:])


def push(direction: jax.Array, layer: jax.Array, strength: jax.Array) -> Intervention:
    """Add `strength` × a direction float32[L, D] at one layer (index among the L)."""
    at = jnp.arange(len(direction) + 1)[:, None] == layer + 1
    steering = jnp.where(at, (strength * direction[layer])[None], 0.0)
    return Intervention(steering=steering)


def remove(direction: jax.Array) -> Intervention:
    """Project a direction float32[L, D] out of the output of every block."""
    length = jnp.linalg.norm(direction, axis=-1, keepdims=True)
    unit = direction / jnp.maximum(length, 1e-30)
    return Intervention(ablation=jnp.concatenate([jnp.zeros_like(unit[:1]), unit])[:, None])


PLAYED = 16
"""Random directions whose return is played; the others are only asked for their choices."""


def steer(
    policy: Policy,
    world: base.World,
    parameters: Parameters,
    params: base.WorldParams,
    tried: jax.Array,
    layer: jax.Array,
    key: jax.Array,
    strengths: tuple[float, ...] = STRENGTHS,
    episodes: int = 32,
    play_episodes: int = 128,
) -> dict[str, jax.Array]:
    """Steer a member along, and rob it of, every direction.

    Args:
        policy, world, parameters, params: of the member.
        tried: from `named_directions`, float32[K, L, D].
        layer: int32[], index of the layer to steer at.
        key: of mazes, weather and chance; mazes are the same for all that is tried.
        strengths: in units of the directions' length.
        episodes: in which choices are asked for.
        play_episodes: behind each return.

    Returns:
        `effects` float32[K, A, 3], and `returns` float32[P, A], means, of the first P directions, up to `PLAYED` random
        ones; `ablated` float32[K, 3] and `ablated_returns` float32[P], the direction removed at every layer; `plain`
        float32[3] and `plain_return` float32[], without intervention.
    """
    seen_key, play_key = jax.random.split(key)
    levels = jnp.array(strengths, jnp.float32)
    seen = rollout.policy_episodes(policy, parameters, world, params, seen_key, episodes)
    played = tried[: len(directions.NAMES) + PLAYED]

    def play(interventions):
        def under(one):
            return rollout.policy_episodes(policy, parameters, world, params, play_key, play_episodes, one).returns

        return jax.lax.map(lambda one: under(one).mean(), interventions)

    def ask(intervention):
        return effects(policy, parameters, world, seen, intervention)

    each = jax.vmap(jax.vmap(push, in_axes=(None, None, 0)), in_axes=(0, None, None))
    pushed = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each(played, layer, levels))
    nothing = push(tried[0], layer, jnp.float32(0))
    return {
        "effects": over_pushes(ask, tried, layer[None], levels)[:, 0],
        "returns": play(pushed).reshape(-1, len(levels)),
        "ablated": jax.lax.map(lambda x: ask(remove(x)), tried),
        "ablated_returns": play(jax.vmap(remove)(played)),
        "plain": ask(nothing),
        "plain_return": play(jax.tree.map(lambda x: x[None], nothing))[0],
    }


@jax.jit
def named_directions(
    parameters: Parameters, vectors: jax.Array, before: jax.Array, tile_maps: jax.Array, key: jax.Array
) -> jax.Array:
    """`directions.NAMES` and `random` ones of every member, as long as half the way from Mold's to Gold's mean.

    `orthogonal` is left out, which here is hardly another control than `random`.

    Args:
        parameters: of the members; the emoji and value-head controls come from them.
        vectors, before: the members' concept vectors, float32[M, C, L, D], and those of the model before RL.
        tile_maps: int32[M, 5].
        key: of the random directions.

    Returns:
        float32[M, K, L, D].
    """

    def member(parameters, vectors, before, tile_map):
        every = directions.of_member(parameters, vectors, before, tile_map, key)
        tried = jnp.concatenate([every[name] for name in (*directions.NAMES, "random")])
        return directions.with_norm(tried, directions.half_way(vectors)[None])

    return jax.vmap(member)(parameters, vectors, before, tile_maps)
