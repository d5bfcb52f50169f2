"""The processes of a job that trains together, on one machine or many, through `jax.distributed`.

Process 0 alone reads and writes files and talks to the user. The others meet it wherever its work may fail or must be
known: `meet` is the same tiny collective everywhere, so that a process that fails can always tell those who wait.
"""

import functools
import importlib.util
import os
import re
import sys
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ground import supervision

CONNECT_SECONDS = 300
"""How long a process waits for the others to be started."""
HEARTBEAT_SECONDS = 100
"""After this long without a sign of life a process counts as lost. A killed one is noticed at once."""


_EVERYWHERE = PartitionSpec()
_LOSS = re.compile(r"gloo|nccl|coordination|connection (closed|reset)|heartbeat|unavailable|deadline_exceeded", re.I)


class Ended(Exception):
    """Another process of the job ended it and has said why."""

    def __init__(self, exit_status: int):
        super().__init__(f"another process ended the job with status {exit_status}")
        self.exit_status = exit_status


def start(command: str) -> None:
    """Join the other processes of this job, where there are any. Call it before anything starts a JAX backend.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` in the environment say it by hand. Otherwise
    JAX finds Slurm, Open MPI, Kubernetes (with the package `kubernetes`) and TPU pods.

    Args:
        command: what its lines of error begin with. A job that cannot be joined ends the process with status 2.
    """
    try:
        found = detect(os.environ)
    except ValueError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)
    if found is None:
        return
    where, arguments = found
    unreachable = (
        f"found no other process of this job ({where}) within {CONNECT_SECONDS} s; start them all, and let them reach "
        "the address of process 0"
    )
    supervision.supervise(f"{command}: {where}", unreachable)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which `interrupts.catch` handles
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # JAX, gRPC and the clusters' own clients raise errors of many types
        print(f"{command}: {where}: cannot join the job ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)
    supervision.joined()


def detect(environment: Any) -> tuple[str, dict[str, Any]] | None:
    """The job that this process is one of several of.

    Args:
        environment: mapping of the environment's variables.

    Returns:
        What to call this process, and arguments of `jax.distributed.initialize`; None where it is alone.

    Raises:
        ValueError: variables are missing or wrong, in one line.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if environment.get(name)]
    if given and given != names[:1]:
        if len(given) < len(names):
            missing = ", ".join(name for name in names if name not in given)
            raise ValueError(f"{', '.join(given)} without {missing}; set all three, or none")
        address, count, index = (environment[name] for name in names)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ValueError(f"JAX_PROCESS_ID={index}, JAX_NUM_PROCESSES={count}: use 0 up to one less than the number")
        if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
            raise ValueError(f"JAX_COORDINATOR_ADDRESS={address}: give the host and port of process 0, as host:port")
        if int(count) == 1:
            return None
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        return f"process {index} of {count} at {address}", arguments | {"cluster_detection_method": "deactivate"}
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return f"Slurm task {environment.get('SLURM_PROCID')} of {environment['SLURM_STEP_NUM_TASKS']}", {}
    if "OMPI_MCA_orte_hnp_uri" in environment and int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return f"MPI rank {environment.get('OMPI_COMM_WORLD_RANK')} of {environment['OMPI_COMM_WORLD_SIZE']}", {}
    if "," in environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", "")):
        return f"TPU worker {environment.get('TPU_WORKER_ID')}", {}
    if importlib.util.find_spec("libtpu") and any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0")):
        return "TPU worker", {}
    if "JOB_COMPLETION_INDEX" in environment and importlib.util.find_spec("kubernetes"):
        return f"Kubernetes pod {environment['JOB_COMPLETION_INDEX']}", {}
    if given:
        raise ValueError(f"{given[0]} without JAX_NUM_PROCESSES, JAX_PROCESS_ID; set all three, or none")
    return None


def count() -> int:
    """Processes of this job."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that reads, writes and speaks."""
    return count() == 1 or jax.process_index() == 0


def meet(*values: int) -> np.ndarray:
    """Wait for every process and learn its numbers.

    Args:
        values: up to two int32; those left out are 0.

    Returns:
        int32[processes, 2].

    Raises:
        Ended: a process failed instead of coming here.
    """
    numbers = _exchange([0, *values])
    failed = numbers[:, 0].max()
    if failed:
        raise Ended(int(failed))
    return numbers[:, 1:]


def leave(status: int) -> bool:
    """Tell the others that this process ends the job; they wait in `meet`, or fail too.

    Args:
        status: exit status, above 0.

    Returns:
        Whether this process shall say why: of those that fail, the first does.
    """
    failed = np.flatnonzero(_exchange([status])[:, 0])
    return count() == 1 or int(failed[0]) == jax.process_index()


def same(text: str) -> bool:
    """Whether every process has the same text."""
    return len(set(meet(zlib.crc32(text.encode()) >> 1)[:, 0].tolist())) == 1


def fail(error: Exception) -> NoReturn:
    """End this process by an error that nobody expected: the loss of another process, or a bug, with its traceback.

    It does not wait for the others at the end, as JAX would; they find it gone.
    """
    if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and _LOSS.search(str(error)):
        supervision.lost()
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def from_first(data: bytes | None) -> bytes:
    """What process 0 has, on every process.

    Args:
        data: the bytes on process 0; ignored elsewhere.
    """
    if count() == 1:
        return data or b""
    data = (data or b"") if first() else b""
    size = int(meet(len(data) // 2**20, len(data) % 2**20)[0] @ np.array([2**20, 1]))
    if size == 0:
        return b""
    mine = np.zeros(size, np.uint8)
    mine[: len(data)] = np.frombuffer(data, np.uint8)
    mesh = _mesh()
    return np.asarray(_sum(_rows(mine, mesh), mesh)).tobytes()


def _exchange(numbers: Sequence[int]) -> np.ndarray:
    """int32[processes, 3], every process's numbers."""
    mine = np.zeros(3, np.int32)
    mine[: len(numbers)] = numbers
    if count() == 1:
        return mine[None]
    mesh = _mesh()
    return np.asarray(_gather(_rows(mine, mesh), mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _gather(rows: jax.Array, mesh: Mesh) -> jax.Array:
    gather = functools.partial(jax.lax.all_gather, axis_name="process", tiled=True)
    return jax.shard_map(gather, mesh=mesh, in_specs=PartitionSpec("process"), out_specs=_EVERYWHERE, check_vma=False)(
        rows
    )


@functools.partial(jax.jit, static_argnames="mesh")
def _sum(rows: jax.Array, mesh: Mesh) -> jax.Array:
    total = functools.partial(jax.lax.psum, axis_name="process")
    return jax.shard_map(total, mesh=mesh, in_specs=PartitionSpec("process"), out_specs=_EVERYWHERE)(rows)[0]


def _mesh() -> Mesh:
    """A device of every process."""
    devices = {device.process_index: device for device in reversed(jax.devices())}
    return Mesh(np.array([devices[index] for index in range(count())]), ("process",))


def _rows(mine: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's array as a row of a global one."""
    own = jax.device_put(mine[None], mesh.local_devices[0])
    sharding = NamedSharding(mesh, PartitionSpec("process"))
    return jax.make_array_from_single_device_arrays((count(), *mine.shape), sharding, [own])
