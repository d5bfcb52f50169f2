"""The processes of a job that trains together, on one machine or many, through `jax.distributed`.

Process 0 alone reads and writes files and talks to the user. The others meet it wherever its work may fail or must be
known: `meet` is the same tiny collective everywhere, so that a process that fails can always tell those who wait.
"""

import contextlib
import functools
import importlib.util
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils

from ground.terminal import ConfigError

CONNECT_SECONDS = 300
"""How long a process waits for the others to be started."""
HEARTBEAT_SECONDS = 100
"""After this long without a sign of life a process counts as lost. A killed one is noticed at once."""
LOST = 3
"""Exit status of a process that lost another one."""
_LOSS = re.compile(r"gloo|nccl|coordination|connection (closed|reset)|heartbeat|unavailable|deadline_exceeded", re.I)
_JOINED = "the other processes of this job were found"


class Ended(Exception):
    """Another process of the job ended it and has said why."""

    def __init__(self, exit_status: int):
        super().__init__(f"another process ended the job with status {exit_status}")
        self.exit_status = exit_status


def join(command: str) -> None:
    """Join the other processes of this job, where there are any. Call it before anything starts a JAX backend.

    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` in the environment say it by hand. Otherwise
    JAX finds Slurm, Open MPI, Kubernetes (with the package `kubernetes`) and TPU pods.

    Args:
        command: what lines of error begin with.

    Raises:
        ConfigError: the job cannot be joined, in one line.
    """
    job = detect(os.environ)
    if job is None:
        return
    where, arguments = job
    _supervise(f"{command}: {where}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which `signals.catch` handles
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # JAX, gRPC and the clusters' own clients raise errors of many types
        raise ConfigError(f"{where}: cannot join the job ({' '.join(str(error).split())[:200]})") from error
    os.write(2, _JOINED.encode())


def detect(environment: Any) -> tuple[str, dict[str, Any]] | None:
    """The job that this process is one of several of.

    Args:
        environment: mapping of the environment's variables.

    Returns:
        What to call this process, and arguments of `jax.distributed.initialize`; None where it is alone.

    Raises:
        ConfigError: variables are missing or wrong, in one line.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if environment.get(name)]
    if given and given != ["JAX_COORDINATOR_ADDRESS"]:  # which alone may tell what is found below where to meet
        if len(given) < len(names):
            missing = ", ".join(name for name in names if name not in given)
            raise ConfigError(f"{', '.join(given)} without {missing}; set all three, or none")
        address, number, index = (environment[name] for name in names)
        if not (number.isdecimal() and index.isdecimal() and int(index) < int(number)):
            raise ConfigError(
                f"JAX_PROCESS_ID={index}, JAX_NUM_PROCESSES={number}: use 0 up to one less than the number"
            )
        if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"JAX_COORDINATOR_ADDRESS={address}: give the host and port of process 0, as host:port")
        if int(number) == 1:
            return None
        arguments = {"coordinator_address": address, "num_processes": int(number), "process_id": int(index)}
        return f"process {index} of {number} at {address}", arguments | {"cluster_detection_method": "deactivate"}
    if "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return f"Slurm task {environment.get('SLURM_PROCID')} of {environment['SLURM_STEP_NUM_TASKS']}", {}
    if "OMPI_MCA_orte_hnp_uri" in environment and environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return f"MPI rank {environment.get('OMPI_COMM_WORLD_RANK')} of {environment['OMPI_COMM_WORLD_SIZE']}", {}
    if "," in environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", "")):
        return f"TPU worker {environment.get('TPU_WORKER_ID')}", {}
    if importlib.util.find_spec("libtpu") and any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0")):
        return "TPU worker", {}
    if "JOB_COMPLETION_INDEX" in environment and importlib.util.find_spec("kubernetes"):
        return f"Kubernetes pod {environment['JOB_COMPLETION_INDEX']}", {}
    if given:
        raise ConfigError(f"{given[0]} without JAX_NUM_PROCESSES, JAX_PROCESS_ID; set all three, or none")
    return None


def _supervise(who: str) -> None:
    """Fork: the child returns and works; this process waits for it, and says what it could not say itself.

    JAX's runtime ends a process that cannot join the others, or has lost one, by SIGABRT, which Python cannot catch.
    What native libraries print goes to a file, and to the terminal only where it is the sole trace of an accident.
    """
    log, (alive, mine) = tempfile.TemporaryFile(), os.pipe()  # noqa: SIM115 (stays open)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(mine)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        for number, name in ((1, "stdout"), (2, "stderr")):
            own = getattr(sys, name)
            kept = open(os.dup(number), "w", buffering=1, encoding=own.encoding, errors=own.errors)  # noqa: SIM115
            setattr(sys, name, kept)
            os.dup2(log.fileno(), number)
        return
    os.close(alive)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: _hand_down(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log.seek(0)
    said = log.read().decode(errors="replace")
    torn = status == -signal.SIGABRT and ("distributed service" in said or "coordination" in said)
    message = None
    if torn and _JOINED not in said:
        wanted = "start them all, and let them reach the address of process 0"
        message, status = f"found no other process of this job within {CONNECT_SECONDS} s; {wanted}", 2
    elif torn or status == LOST:
        message, status = "another process of this job is gone; go on with --resume", LOST
    elif status < 0:
        if status not in (-signal.SIGINT, -signal.SIGTERM):
            message = f"ended by {signal.Signals(-status).name}; go on with --resume"
            sys.stderr.write(said[-2000:])
        status = 128 - status
    if message:
        print(f"{who}: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # returns when the parent is gone, which nobody could hand signals down from
    os._exit(LOST)


def _hand_down(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


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
    return len(set(meet(zlib.crc32(text.encode(errors="surrogateescape")) >> 1)[:, 0].tolist())) == 1


def by_first(work: Callable[[], Any]) -> Any:
    """Do something on process 0 alone.

    Args:
        work: gives None, or nested dicts (of text) and lists of arrays, numbers and text.

    Returns:
        What it gave, on every process.
    """
    if count() == 1:
        return work()
    data = serialization.msgpack_serialize({"": work()}) if first() else b""
    size = int(meet(*divmod(len(data), 2**20))[0] @ np.array([2**20, 1]))
    data = multihost_utils.broadcast_one_to_all(np.frombuffer(data if first() else bytes(size), np.uint8))
    return serialization.msgpack_restore(data.tobytes())[""]


def on_first(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that process 0 alone carries out, for all, by `by_first`; every process calls it."""

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        return by_first(functools.partial(method, *arguments, **options))

    return call


def fail(error: Exception) -> NoReturn:
    """End this process by an error that nobody expected: the loss of another process, or a bug, with its traceback.

    It does not wait for the others at the end, as JAX would; they find it gone.
    """
    if isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and _LOSS.search(str(error)):
        os._exit(LOST)
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def _exchange(numbers: Sequence[int]) -> np.ndarray:
    """int32[processes, 3], every process's numbers."""
    mine = np.zeros(3, np.int32)
    mine[: len(numbers)] = numbers
    return mine[None] if count() == 1 else multihost_utils.process_allgather(mine)
