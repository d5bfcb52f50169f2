"""What a command needs of its surroundings, seen to before JAX starts: where that fails, it ends in one line.

Only commands call this; whoever imports the code sets JAX up as they like.
"""

import contextlib
import os
import sys
from collections.abc import Callable

from ground import terminal
from ground.terminal import ConfigError


def start(command: str, *, together: bool = False) -> None:
    """Look at the environment and set JAX up. Call it before anything imports JAX.

    There is one CPU device per core, so that members train side by side on a machine without an accelerator;
    `JAX_NUM_CPU_DEVICES`, or XLA's own flag in `XLA_FLAGS`, overrides this.

    Args:
        command: what lines of error begin with. The process ends with status 2 after one.
        together: whether several processes may run the command as one job, see `processes.join`.
    """
    try:
        _start(command, together)
    except ConfigError as error:
        sys.stdout.flush()
        terminal.complain(command, error)
        sys.stderr.flush()
        os._exit(2)  # without the others of a job that could not be joined
    terminal.never_fail(command)


def _start(command: str, together: bool) -> None:
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever the user's notebooks need
    try:
        import fcntl

        import jax
    except ImportError as error:
        remedy = "it needs Linux or macOS; on Windows, use WSL" if error.name == "fcntl" else "see README.md"
        raise ConfigError(f"{error}; {remedy}") from None
    except ValueError as error:  # a JAX_… variable that it cannot read
        raise ConfigError(
            f"JAX cannot start ({error}); correct that variable of the environment, or unset it"
        ) from None
    del fcntl
    devices, flags = os.environ.get("JAX_NUM_CPU_DEVICES"), os.environ.get("XLA_FLAGS", "")
    if devices is None and "xla_force_host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    elif devices is not None and not 0 < int(devices) <= 4096:
        raise ConfigError(f"JAX_NUM_CPU_DEVICES={devices}: use a number from 1 to 4096, or unset it")
    if flags and not _survives(jax.devices):
        raise ConfigError(f"XLA_FLAGS={flags}: XLA has no such flag or value; correct it, or unset it")
    if together:
        from ground import processes

        processes.join(command)
    try:
        jax.devices()
    except Exception as error:  # of many types, an empty AssertionError among them
        named = f"JAX_PLATFORMS={platforms}: " if (platforms := os.environ.get("JAX_PLATFORMS")) else ""
        why = " ".join(str(error).split())[:300] or "no such device"
        remedy = "unset JAX_PLATFORMS, or install what the device needs (uv run --extra cuda, or tpu)"
        raise ConfigError(f"{named}JAX cannot use it here ({why}); {remedy}") from None
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise ConfigError("this job's processes have different numbers of devices; set JAX_NUM_CPU_DEVICES=1 for all")


def _survives(function: Callable[[], object]) -> bool:
    """Whether a function does not end its process, as XLA does where it cannot read its flags."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with contextlib.suppress(Exception):
            function()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
