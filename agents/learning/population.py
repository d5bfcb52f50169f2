"""Populations: programs of many members, mapped in blocks on each device and laid out over a mesh (member, episode).

Members are the leading axis of every array. `Chunk` turns the update of one member into a compiled program that runs
many updates of all.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agents.learning.learner import Metrics, Shards, TrainState, Update

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""XLA's defaults, for programs that run long even where most optimisation is switched off to compile quickly."""


def mesh(members: int, episodes: int, devices: Sequence[Any] | None = None) -> Mesh:
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
        mesh: from `mesh`.
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


def unless_diverged(before: TrainState, after: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The state after an update if its loss, gradient norm and parameters are finite, else that before and a NaN loss.

    A member that has diverged stays as it was before, and the same key makes it fail again.
    """
    decisive = (metrics["loss"], metrics["gradient_norm"], after.parameters)
    finite = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(decisive)]))
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return state, metrics | {"loss": jnp.where(finite, metrics["loss"], jnp.nan)}


class Chunk:
    """A compiled program that runs many updates of every member and donates the state it is given.

    A member whose loss, gradient or new parameters are not finite is frozen, and its loss becomes NaN; the others
    go on. See `agents.runs.health`.

    Args:
        update: the stage, for one member.
        mesh: from `mesh`.
        updates: updates of one call.
        at_once: as in `over_members`.
    """

    def __init__(self, update: Update, mesh: Mesh, updates: int, at_once: int = 0):
        shards = Shards(mesh.shape["episode"])

        def member(state, config, params):
            def step(before, _):
                return unless_diverged(before, *update(before, config, params, shards))

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
