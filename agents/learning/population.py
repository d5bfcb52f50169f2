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
from ground import environment

OPTIMISED = {environment.LEVEL: 2, "xla_llvm_disable_expensive_passes": False}
"""For programs that run long even where most optimisation is switched off to compile quickly."""


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
        at_once: members that a device computes at the same time; 0 means 1 on a CPU, where smaller working sets
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


def in_turn(function: Callable[..., Any], *members: Any, at_once: int = 0) -> Any:
    """A compiled function of members, called on a CPU for as many at a time as there are devices, else for all.

    So one program serves populations of any size.

    Args:
        function: of trees of arrays, of which axis 0 is the member, as is that of all that it returns.
        *members: the trees.
        at_once: members of a call, where it is not for the devices to say.

    Returns:
        NumPy arrays of all members.
    """
    count = len(jax.tree.leaves(members)[0])
    every = mesh(count, 1)
    at_once = at_once or (every.size if on_cpu(every) else count)
    if at_once >= count:
        return on_host(function(*members))
    # In NumPy, so that nothing is compiled to take members out.
    arrays = jax.tree.map(np.asarray, members)
    parts = [
        on_host(function(*jax.tree.map(lambda x, first=first: x[first : first + at_once], arrays)))
        for first in range(0, count, at_once)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def memory(mesh: Mesh) -> int | None:
    """Bytes that programs may fill of one device of the mesh; None where it does not tell, as CPUs do not.

    A tenth is left for what is not part of the program.
    """
    statistics = mesh.local_devices[0].memory_stats() if mesh.local_devices else None
    limit = (statistics or {}).get("bytes_limit", 0)
    return int(0.9 * limit) or None


def footprint(program: Any) -> int:
    """Bytes of one device that a compiled program takes while it runs, by the compiler's own count."""
    plan = program.memory_analysis()
    took = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return took - plan.alias_size_in_bytes


def fewer(count: int, at_once: int, took: int | None, limit: int | None) -> int:
    """How many members to try at once after so many have turned out too many.

    Args:
        count: members of one device; the answer divides them, so that no last block is a program of its own.
        at_once: how many did not fit.
        took, limit: bytes that they would have taken, and that there are; None where nothing is known of them.
    """
    most = at_once // 2 if took is None or limit is None else min(at_once - 1, at_once * limit // took)
    return max(size for size in range(1, max(most, 1) + 1) if count % size == 0)


def unless_diverged(before: TrainState, after: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
    """The state after an update if its loss, gradient norm and parameters are finite, else that before and a NaN loss.

    A member that has diverged stays as it was before, and the same key makes it fail again.
    """
    decisive = (metrics["loss"], metrics["gradient_norm"], after.parameters)
    finite = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(decisive)]))
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    return state, metrics | {"loss": jnp.where(finite, metrics["loss"], jnp.nan)}


def repeated(update: Update, updates: int, shards: Shards) -> Callable[..., tuple[TrainState, Metrics]]:
    """Many updates of one member: (state, config, params) → state, metrics [updates]. It stands still once diverged."""

    def member(state, config, params):
        def step(before, _):
            return unless_diverged(before, *update(before, config, params, shards))

        return jax.lax.scan(step, state, length=updates)

    return member


@functools.lru_cache(maxsize=64)
def program(update: Update, mesh: Mesh, updates: int, at_once: int) -> Any:
    """The program of a `Chunk`; equal ones are one, so that a process traces and compiles it once for all its runs."""
    member = repeated(update, updates, Shards(mesh.shape["episode"]))
    return jax.jit(over_members(member, mesh, at_once), donate_argnums=0)


class Chunk:
    """A compiled program that runs many updates of every member and donates the state it is given.

    A member whose loss, gradient or new parameters are not finite is frozen, and its loss becomes NaN; the others
    go on.

    Args:
        update: members that a device computes at once, 0 for all, and into how many a pass is divided → the stage,
            for one of them.
        mesh: from `mesh`.
        updates: updates of one call.
        at_once: as in `over_members`; but where 0 would mean more members than fit into a device's memory,
            `compile` makes it fewer, and where not even one fits, its passes smaller.
        large: bytes of a member's largest array, if known: no more members are tried at once than fill half of a
            device's memory with it. Each attempt is a compilation.
    """

    def __init__(
        self, update: Callable[[int, int], Update], mesh: Mesh, updates: int, at_once: int = 0, large: int = 0
    ):
        self._update, self._updates, self._large = update, updates, large
        self._chooses = at_once == 0 and not on_cpu(mesh)
        self.mesh = mesh
        self.at_once = at_once
        """Members that a device computes at the same time, or 0, as in `over_members`."""
        self.portions = 1
        """Into how many a pass is divided."""
        self.program: Any = self._make()
        self.choice = ""
        """What `compile` has chosen, in words; empty where there was nothing to choose."""
        self.takes_part = bool(mesh.local_devices)
        """Whether this process has a device in the mesh; one without must not call the program."""

    def _make(self) -> Any:
        return program(self._update(self.at_once, self.portions), self.mesh, self._updates, self.at_once)

    def place(self, tree: Any) -> Any:
        """Arrays with the member as axis 0, the same on every process, laid out over the mesh."""
        return place(tree, self.mesh)

    def compile(self, state: TrainState, config: Any, params: Any, limit: int | None = None) -> None:
        """Compile for these shapes ahead of the first call, so that compiling can be timed by itself.

        On an accelerator, and where nobody has said how many members to compute at once, those are as many as fit: all,
        or fewer until the compiler's own count says so. Where one does not fit, its passes are halved while that makes
        another program.

        Args:
            state, config, params: as of a call; or their shapes, with shardings.
            limit: bytes of a device that the program may take; those of `memory` by default.
        """
        if not self._chooses:
            self.program = self.program.lower(state, config, params).compile()
            return
        count = len(jax.tree.leaves(state)[0]) // self.mesh.shape["member"]
        limit = memory(self.mesh) if limit is None else limit
        if limit and 2 * self._large * count > limit:
            self.at_once = fewer(count, count, 2 * self._large * count, limit)
            self.program = self._make()
        while True:
            full = compiled = took = None
            try:
                compiled = self.program.lower(state, config, params).compile()
                took = footprint(compiled)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                full = error
            if took is not None and (limit is None or took <= limit):
                break
            tried = self.program
            if self.at_once == 1:
                self.portions *= 2
            else:
                self.at_once = fewer(count, self.at_once or count, took, limit)
            self.program = self._make()
            if self.program is tried:  # as small as it gets
                self.portions //= 2
                if full:
                    raise full
                break
        assert took is not None
        self.program = compiled
        there = f" of {limit / 2**30:.1f}" if limit else ""
        self.choice = f"{self.at_once or count} of {count} members at a time, {took / 2**30:.1f}{there} GiB"

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
