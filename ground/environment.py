"""What a command needs of its surroundings, seen to before JAX starts: where that fails, it ends in one line.

Only commands call this; whoever imports the code sets JAX up as they like. A command calls `prepare` before it imports
anything that imports JAX, and `start` when it knows its options, before it computes.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

from ground import terminal
from ground.terminal import ConfigError

LEVEL = "xla_backend_optimization_level"
"""XLA's own flag. On a CPU policies play and learn as fast at level 2 as at 3, its default, and to the same bits, while
their programs compile in half to three quarters of the time: random numbers are what level 3 works longest at."""
TRITON = "xla_gpu_enable_triton_gemm"
"""XLA's own flag. Without it an H200 compiles an update in a fifth of the time, since XLA tries no tilings of products,
takes 1.08 (`paper`) to 1.3 times as long over it: a gain up to some two thousand million tokens, see
docs/performance.md."""


def prepare(command: str, help_text: str | None = None) -> None:
    """See to it that JAX can be imported. Nothing that takes long has been imported yet.

    Args:
        command: what lines of error begin with. The process ends with status 2 after one.
        help_text: printed where nothing but `--help` is asked for; the process ends.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `signals.catch`: the end, without a traceback
    with _one_line(command):
        if help_text:
            terminal.explain(help_text, sys.argv[1:])
        os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever the user's notebooks need
        _import_jax()


def start(command: str, *, together: bool = False, keep_programs: bool = True) -> None:
    """Look at the environment and set JAX up. Call it when the command line has been read: a device may take seconds.

    There is one CPU device per core, so that members train side by side on a machine without an accelerator;
    `JAX_NUM_CPU_DEVICES`, or XLA's own flag in `XLA_FLAGS`, overrides this.

    Args:
        command: what lines of error begin with. The process ends with status 2 after one.
        together: whether several processes may run the command as one job, see `processes.join`.
        keep_programs: whether what was compiled is found again, see `programs.keep`, and compiled quickly, see `LEVEL`.
    """
    prepare(command)
    with _one_line(command):
        _start(command, together, quickly=keep_programs)
        if keep_programs:
            from ground import programs

            programs.keep()
    terminal.never_fail(command)


@contextlib.contextmanager
def _one_line(command: str) -> Iterator[None]:
    """End this process by a ConfigError in one line."""
    try:
        yield
    except ConfigError as error:
        sys.stdout.flush()
        terminal.complain(command, error)
        sys.stderr.flush()
        os._exit(2)  # without the others of a job that could not be joined


def _import_jax() -> None:
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
    del fcntl, jax


def _start(command: str, together: bool, quickly: bool) -> None:
    import jax

    devices, flags = os.environ.get("JAX_NUM_CPU_DEVICES"), os.environ.get("XLA_FLAGS", "")
    forced = re.findall(r"--xla_force_host_platform_device_count=(\S+)", flags)
    if devices is None and not forced:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    for variable, number in (("JAX_NUM_CPU_DEVICES", devices), ("XLA_FLAGS", forced[-1] if forced else None)):
        if number and number.lstrip("-").isdecimal() and not 0 < int(number) <= 4096:
            raise ConfigError(f"{variable}={os.environ[variable]}: use a number of devices from 1 to 4096, or unset it")
    if devices is not None and forced and forced[-1] != devices:
        raise ConfigError(f"JAX_NUM_CPU_DEVICES={devices} and XLA_FLAGS={flags}: two numbers of devices; unset one")
    if flags and not _survives(jax.devices):
        raise ConfigError(f"XLA_FLAGS={flags}: XLA has no such flag or value; correct it, or unset it")
    if quickly and (quick := _quick(flags)):
        os.environ["XLA_FLAGS"] = quick
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


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn a lack of memory, the device's or Python's, into a ConfigError."""
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = " ".join(str(error).split())[:200] or "MemoryError"
        remedy = "use fewer members at once, episodes or samples, or a smaller policy"
        raise ConfigError(f"out of memory ({why}); {remedy}") from error


def _quick(flags: str) -> str:
    """Flags of XLA by which programs compile quickly, where that is not decided already."""
    found = _plugins()
    if any("cuda" in plugin or plugin == "gpu" for plugin in found):
        name, value = TRITON, "false"
    elif found:
        return flags
    else:
        name, value = LEVEL, "2"
    return flags if name in flags else f"{flags} --{name}={value}".strip()


def _plugins() -> set[str]:
    """What may give JAX another device than the CPU, by name."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return set(platforms.split(",")) - {"cpu"}
    found = {plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins")}
    return found | ({"tpu"} if importlib.util.find_spec("libtpu") is not None else set())


def _survives(function: Callable[[], object]) -> bool:
    """Whether a function does not end its process, as XLA does where it cannot read its flags."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with contextlib.suppress(Exception):
            function()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
