"""What all stages of training share: state, optimiser, gradient accumulation, populations, compiled chunks.

A stage is a function update(state, config, params, shards) → (state, metrics) of ONE member. `Chunk` turns it into
a compiled program that runs many updates of a whole population: members are the leading axis of every array, mapped
in blocks on each device and laid out over a mesh with the axes (member, episode).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agents.learning.hyperparameters import Scalar
from agents.policies import Parameters

Metrics = dict[str, jax.Array]

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""XLA's defaults, for programs that run long even where most optimisation is switched off to compile quickly."""


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
        mine = jax.lax.dynamic_index_in_dim(parts, self._index(), axis=1, keepdims=False)
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

    def _index(self) -> jax.Array:
        return jax.lax.axis_index("episode")


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


def population_mesh(members: int, episodes: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh (member, episode) over the devices: members first, the rest splits each member's episodes.

    Devices that would leave members or `episodes` unequally divided are not used.
    """
    devices = jax.devices() if devices is None else devices
    across = math.gcd(members, len(devices))
    split = math.gcd(episodes, len(devices) // across)
    return Mesh(np.asarray(devices[: across * split]).reshape(across, split), ("member", "episode"))


def place(tree: Any, mesh: Mesh) -> Any:
    """Arrays with the member as axis 0, the same on every process, laid out over the mesh.

    A process without a device in the mesh gets them back as they are.
    """
    sharding = NamedSharding(mesh, PartitionSpec("member"))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    if not mesh.local_devices:
        return tree
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__), tree)


@functools.partial(jax.jit, static_argnames="mesh")
def _replicate(x: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def on_host(tree: Any) -> Any:
    """Numpy arrays of what `place` or a program laid out over a mesh; every process of the mesh takes part."""

    def whole(x):
        spread = isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated
        return np.asarray(_replicate(x, x.sharding.mesh) if spread else x)  # pyright: ignore[reportAttributeAccessIssue]

    return jax.tree.map(whole, tree)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is made of CPU devices."""
    return mesh.devices.flat[0].platform == "cpu"


def over_members(function: Callable[..., Any], mesh: Mesh, at_once: int = 0) -> Callable[..., Any]:
    """A function of one member, mapped over members (axis 0 of every argument) and laid out over the mesh.

    Args:
        function: of one member's arrays; it may use the collectives of `Shards`.
        mesh: from `population_mesh`.
        at_once: members that a device computes at the same time; 0 chooses 1 on a CPU, where smaller working sets
            are faster, and all elsewhere. On a CPU each has operations of its own, of a single member's shapes, so
            that the bits do not depend on it; elsewhere they are one vmapped program.
    """

    def one(_, arguments):
        return None, function(*arguments)

    def members(*arguments):
        count = len(jax.tree.leaves(arguments)[0])
        if on_cpu(mesh):
            return jax.lax.scan(one, None, arguments, unroll=min(at_once or 1, count))[1]
        if at_once == 0 or at_once >= count:
            return jax.vmap(function)(*arguments)
        batch_size = None if at_once == 1 else at_once
        return jax.lax.map(lambda member: function(*member), arguments, batch_size=batch_size)

    spec = PartitionSpec("member")
    return jax.shard_map(members, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def made_or_kept(before: TrainState, after: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The state after an update if its loss, gradient norm and parameters are finite, else that before and a NaN loss.

    A member that has diverged stays as it was before, and the same key makes it fail again.
    """
    found = (metrics["loss"], metrics["gradient_norm"], after.parameters)
    made = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)]))
    state = jax.tree.map(lambda new, old: jnp.where(made, new, old), after, before)
    return state, metrics | {"loss": jnp.where(made, metrics["loss"], jnp.nan)}


class Chunk:
    """A compiled program that runs many updates of every member and donates the state it is given.

    A member whose loss, gradient or new parameters are not finite is frozen, and its loss becomes NaN; the others
    go on. See `agents.runs.health`.

    Args:
        update: the stage, for one member.
        mesh: from `population_mesh`.
        updates: updates of one call.
        at_once: as in `over_members`.
    """

    def __init__(self, update: Update, mesh: Mesh, updates: int, at_once: int = 0):
        shards = Shards(mesh.shape["episode"])

        def member(state, config, params):
            def step(before, _):
                return made_or_kept(before, *update(before, config, params, shards))

            return jax.lax.scan(step, state, length=updates)

        self.program: Any = jax.jit(over_members(member, mesh, at_once), donate_argnums=0)
        self.mesh = mesh
        self.takes_part = bool(mesh.local_devices)
        """Whether this process has a device in the mesh; one without must not call the program."""

    def place(self, tree: Any) -> Any:
        """Arrays with the member as axis 0, the same on every process, laid out over the mesh."""
        return place(tree, self.mesh)

    def compile(self, state: TrainState, config: Any, params: Any) -> None:
        """Compile for these shapes ahead of the first call, so that compiling can be timed by itself."""
        self.program = self.program.lower(state, config, params).compile()

    def __call__(self, state: TrainState, config: Any, params: Any) -> tuple[TrainState, Metrics]:
        """Run the chunk.

        Args:
            state: of all members, as `place` laid it out; donated.
            config: the stage's config with float fields float32[M].
            params: the world's parameters, each with the member as axis 0.

        Returns:
            The new state, and metrics [M, updates].
        """
        return self.program(state, config, params)
