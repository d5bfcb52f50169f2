"""Directions of the residual stream to compare concept vectors with, each at every layer: float32[..., L, D]."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from agents.policies import Parameters
from analysis import concepts, tracking
from envs import tokens
from ground.precise import product

NAMES = (
    *("axis", "gold", "mold", "path", "axis before", "gold before", "mold before"),
    *("axis without emoji", "axis without value head"),
)
"""What `of_member` finds one direction for."""
CONTROLS = ("random", "orthogonal")
"""What it draws `RANDOM` directions for."""
RANDOM = 128
"""Random directions of a control; the smallest permutation p is then 1/129."""


def random(key: jax.Array, count: int, like: jax.Array) -> jax.Array:
    """Isotropic random directions with the norm of `like` float32[L, D] at each layer; float32[count, L, D]."""
    drawn = jax.random.normal(key, (count, *like.shape), jnp.float32)
    return with_norm(drawn, jnp.linalg.norm(like, axis=-1)[None])


def matched(key: jax.Array, count: int, stream: jax.Array) -> jax.Array:
    """Random directions with the covariance of a stream float32[N, L, D] at each layer; float32[count, L, D].

    A stream has few dimensions, so that most isotropic directions do little to it.
    """
    weights = jax.random.normal(key, (count, len(stream)), jnp.float32)
    return product("kn,nld->kld", weights, stream - stream.mean(axis=0, keepdims=True)) / len(stream) ** 0.5


def with_norm(directions: jax.Array, norm: jax.Array) -> jax.Array:
    """Directions [..., D] stretched to norms [...]; zeros stay zeros."""
    own = jnp.linalg.norm(directions, axis=-1)
    return directions * (norm / jnp.maximum(own, 1e-30))[..., None]


def without(directions: jax.Array, span: jax.Array) -> jax.Array:
    """Directions [..., D] with their components in the span of vectors [K, D] removed."""
    _, sizes, basis = jnp.linalg.svd(span.astype(jnp.float32), full_matrices=False)
    rounding = max(span.shape) * jnp.finfo(jnp.float32).eps  # of a rank-deficient span's zeros
    basis = jnp.where((sizes > rounding * sizes.max())[:, None], basis, 0.0)
    return directions - product("...d,kd,ke->...e", directions, basis, basis)


def reward_axis(vectors: jax.Array) -> jax.Array:
    """From Mold to Gold: v_Gold − v_Mold, float32[..., L, D], of vectors float32[..., C, L, D]."""
    return vectors[..., tokens.GOLD, :, :] - vectors[..., tokens.MOLD, :, :]


def half_way(vectors: jax.Array) -> jax.Array:
    """Half the distance between the class means of Mold and Gold, float32[..., L], of vectors float32[..., C, L, D]."""
    return jnp.linalg.norm(reward_axis(vectors), axis=-1) / 3  # v_Gold − v_Mold is 3/2 of the difference of the means


def of_member(
    parameters: Parameters, vectors: jax.Array, before: jax.Array, tile_map: jax.Array, key: jax.Array
) -> Mapping[str, jax.Array]:
    """All named directions of one member; every value is float32[K, L, D].

    Args:
        parameters: of the member.
        vectors: concept vectors of the member, float32[C, L, D].
        before: concept vectors of the member before RL.
        tile_map: int32[5], the emoji that the member knows.
        key: of the random directions.

    Returns:
        `gold`, `mold`, `path`: the concept vectors. `axis`: from Mold to Gold. `gold before`, `mold before`,
        `axis before`: those of the model before RL. `axis without emoji`: the axis with the span of the three tiles'
        embeddings removed. `axis without value head`: with the value head's readout removed. `random`: `RANDOM`
        directions with the axis' norm. `orthogonal`: as many, orthogonal to the axis.
    """
    axis, axis_before = reward_axis(vectors), reward_axis(before)
    emoji = parameters["embedding"]["embedding"].astype(jnp.float32)[tile_map[:3]]
    value = tracking.value_readout(parameters)[None]
    random_key, orthogonal_key = jax.random.split(key)
    orthogonal = random(orthogonal_key, RANDOM, axis)
    along = concepts.cosine(orthogonal, axis[None])[..., None] * axis[None]
    return {
        "axis": axis[None],
        "gold": vectors[tokens.GOLD][None],
        "mold": vectors[tokens.MOLD][None],
        "path": vectors[tokens.PATH][None],
        "axis before": axis_before[None],
        "gold before": before[tokens.GOLD][None],
        "mold before": before[tokens.MOLD][None],
        "axis without emoji": without(axis, emoji)[None],
        "axis without value head": without(axis, value)[None],
        "random": random(random_key, RANDOM, axis),
        "orthogonal": with_norm(orthogonal - along, jnp.linalg.norm(axis, axis=-1)[None]),
    }
