"""What all stages of training share: a member's state, its optimiser, its share of a batch, gradient accumulation.

A stage is a function update(state, config, params, shards) → (state, metrics) of ONE member; `population` in this room
makes programs of many members of it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents.learning.hyperparameters import Scalar
from agents.policies import Parameters

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that a member's training carries from one update to the next."""

    parameters: Parameters
    """Nested dict of arrays."""
    moments: Any
    """State of the optimiser."""
    key: jax.Array
    """uint32[2], data of the member's random key."""
    update: jax.Array
    """int32[], updates done."""
    steps: jax.Array
    """int32[], optimiser steps done."""
    mask: Any = None
    """Which parameters are trained: a tree of bool like the parameters; None trains all."""
    reference: Any = None
    """Parameters of the model before the stage, or since the last reset; None where the stage does not ask."""
    versions: Any = None
    """Parameters of the last versions, a ring with the version as axis 0; None where nothing stale is played."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """This device's share of a batch of episodes, inside a program that is mapped over the mesh.

    Draws are made for the whole batch and then cut, so that they do not depend on the number of devices.
    """

    count: int = 1
    """Devices that share a member's episodes."""
    parts: int = 1
    """Equal parts of the batch, in a row, of each of which a device has its share; minibatches."""

    def local(self, x: jax.Array) -> jax.Array:
        """This device's rows of an array with the whole batch on axis 0."""
        if self.count == 1:
            return x
        rows = len(x) // self.count
        parts = x.reshape(self.parts, self.count, rows // self.parts, *x.shape[1:])
        mine = jax.lax.dynamic_index_in_dim(parts, jax.lax.axis_index("episode"), axis=1, keepdims=False)
        return mine.reshape(rows, *x.shape[1:])

    def gather(self, tree: Any) -> Any:
        """The whole batch from the devices' rows."""
        if self.count == 1:
            return tree

        def whole(x):
            parts = x.reshape(self.parts, len(x) // self.parts, *x.shape[1:])
            return jax.lax.all_gather(parts, "episode", axis=1).reshape(len(x) * self.count, *x.shape[1:])

        return jax.tree.map(whole, tree)

    def total(self, tree: Any) -> Any:
        """Sums over the devices that share a member."""
        return tree if self.count == 1 else jax.tree.map(lambda x: jax.lax.psum(x, "episode"), tree)


Update = Callable[[TrainState, Any, Any, Shards], tuple[TrainState, Metrics]]


def optimiser() -> optax.GradientTransformation:
    """Adam without its learning rate, which is data and applied by `descend`."""
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def fresh(parameters: Parameters, seed_key: jax.Array) -> TrainState:
    """The state of a member before its first update of a stage."""
    # Moments stay float32 where parameters are stored in less: squares of small gradients would vanish.
    precise = jax.tree.map(lambda parameter: parameter.astype(jnp.float32), parameters)
    return TrainState(
        parameters=parameters,
        moments=optimiser().init(precise),
        key=jax.random.key_data(seed_key),
        update=jnp.int32(0),
        steps=jnp.int32(0),
    )


def descend(
    state: TrainState, gradient: Parameters, learning_rate: Scalar, max_norm: Scalar, weight_decay: Scalar
) -> tuple[TrainState, jax.Array]:
    """One AdamW step (arXiv 1711.05101) after clipping the gradient's global norm.

    Where the state has a mask, parameters outside it keep their bits. They still count in the norm, so that clipping
    does not depend on the mask.

    Returns:
        The new state and the gradient's norm before clipping.
    """
    norm = optax.tree.norm(gradient)
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    gradient = jax.tree.map(lambda g: g * scale, gradient)
    updates, moments = optimiser().update(gradient, state.moments)

    def move(parameter, update):
        decayed = update + weight_decay * parameter.astype(jnp.float32)
        return (parameter.astype(jnp.float32) - learning_rate * decayed).astype(parameter.dtype)

    parameters = jax.tree.map(move, state.parameters, updates)
    if state.mask is not None:  # the step and not the gradient, through which weight decay would still reach them
        parameters = jax.tree.map(jnp.where, state.mask, parameters, state.parameters)
    return dataclasses.replace(state, parameters=parameters, moments=moments, steps=state.steps + 1), norm


def cosine(step: jax.Array, total: int, final: Scalar, warmup: int = 0) -> jax.Array:
    """Factor of the learning rate: linear warm-up, then a cosine from 1 to `final` at step `total`."""
    now = step.astype(jnp.float32)
    progress = jnp.clip((now - warmup) / max(total - warmup, 1), 0.0, 1.0)
    factor = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return factor * jnp.minimum(1.0, (now + 1) / max(warmup, 1))


def divisor(rows: int, size: int) -> int:
    """`size`, or the largest number that divides both where it does not divide `rows`."""
    return math.gcd(rows, size) if rows % size else size


def microbatches(tree: Any, size: int) -> Any:
    """Cut axis 0 of every array into [batches, size]; `size` is reduced to a divisor of the batch."""
    size = divisor(len(jax.tree.leaves(tree)[0]), size)
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def joined(tree: Any) -> Any:
    """The reverse of `microbatches`: axes 0 and 1 of every array are one."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def accumulate(
    loss: Callable[[Parameters, Any], tuple[jax.Array, Metrics]],
    parameters: Parameters,
    batch: Any,
    microbatch: int,
    shards: Shards,
) -> tuple[Parameters, Metrics]:
    """Gradient and metrics of a loss that is a SUM over episodes, a few episodes at a time.

    Small microbatches keep a forward and backward pass inside a CPU's cache.

    Returns:
        float32 gradient and metrics, summed over the batch and over the devices that share it.
    """

    def add(total, part):
        gradient, metrics = jax.grad(loss, has_aux=True)(precise, part)
        return jax.tree.map(jnp.add, total, (gradient, metrics)), None

    # Those stored in bfloat16 would round the gradient of every microbatch.
    precise = jax.tree.map(lambda parameter: parameter.astype(jnp.float32), parameters)
    parts = microbatches(batch, microbatch)
    _, metrics = jax.eval_shape(loss, parameters, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), (parameters, metrics))
    return shards.total(jax.lax.scan(add, zero, parts)[0])
