"""Commands run in processes that are forked with the libraries loaded, and struck at a chosen file operation.

A forked child saves the seconds that imports take, so that hundreds can be run. Nothing here, and nothing that it
imports, may start a JAX backend, which would not survive the fork; importing `envs` does, so the children do that.
"""

import dataclasses
import importlib
import os
import select
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, Signals

_LIBRARIES = (
    "jax", "flax.nnx", "optax", "orbax.checkpoint", "pandas", "scipy.stats", "seaborn", "matplotlib.pyplot",
    "pyarrow.parquet", "PIL.Image", "rich.progress", "tyro",
)  # fmt: skip
_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""Audit events of Python that change files or precede a change."""


def prepare(compiled: Path) -> None:
    """Import what the children need, once, and let them share compiled programs, made as quickly as in the tests."""
    from tests import conftest

    del conftest  # it has set JAX's flags
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
    for name in _LIBRARIES:
        importlib.import_module(name)


@dataclasses.dataclass(frozen=True)
class Strike:
    """A signal sent at a moment of a child's life."""

    operation: int
    """The file operation in the run directory, counted from 1, that it comes with."""
    delay: float = 0.0
    """Seconds after that; at 0 it comes before the operation is done."""
    signal: Signals = SIGKILL


@dataclasses.dataclass(frozen=True)
class End:
    """How a child has ended."""

    status: int
    """Exit status; minus the number of the signal that killed it."""
    errors: str
    """Its standard error."""
    operations: list[tuple[float, str]]
    """Its file operations in the run directory: seconds since its birth, and what was done to what."""
    struck: float | None
    """When the signal was sent, in seconds since its birth; None where the child ended before."""
    seconds: float
    """How long it lived."""


def run(function: Callable[[], int], directory: Path, folder: Path, *strikes: Strike, limit: float = 300) -> End:
    """Run a function in a forked child.

    Args:
        function: gives the exit status.
        directory: file operations in here are counted and told.
        folder: for the child's output.
        strikes: signals to send, in their order.
        limit: seconds after which the child counts as hung, and is killed.

    Raises:
        TimeoutError: the child did not end in time.
    """
    told, tell = os.pipe()
    go, wait = os.pipe()
    errors = folder / "errors.txt"
    born = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(told)
        os.close(wait)
        _live(function, directory, errors, tell, go, {strike.operation for strike in strikes if not strike.delay})
    os.close(tell)
    os.close(go)
    operations, struck, left = [], None, list(strikes)
    buffer = b""
    strike, due = Strike(0), 0.0
    while True:
        now = time.monotonic()
        if now - born > limit:
            os.kill(child, SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"a child did not end within {limit:g} s: {errors.read_text()[-2000:]}")
        if due and now >= due:
            os.kill(child, strike.signal)
            struck, due = now - born, 0.0
            if strike.signal != SIGKILL:
                os.write(wait, b"x")  # go on, where it waits
        patience = min(1.0, due - now) if due else 1.0
        if not select.select([told], [], [], patience)[0]:
            continue
        data = os.read(told, 65536)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            operations.append((time.monotonic() - born, line.decode()))
            if left and len(operations) == left[0].operation:
                strike = left.pop(0)
                due = time.monotonic() + strike.delay
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for descriptor in (told, wait):
        os.close(descriptor)
    return End(status, errors.read_text(), operations, struck, time.monotonic() - born)


def _live(function, directory: Path, errors: Path, tell: int, go: int, stop_at: set[int]) -> None:
    """The child: never returns."""
    status, count, inside = 1, 0, f"{directory}{os.sep}"

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in _OPERATIONS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if not path.startswith(inside) or (event == "open" and not _writes(arguments)):
            return
        count += 1
        os.write(tell, f"{event} {path.removeprefix(inside)}\n".encode())
        if count in stop_at:
            os.read(go, 1)

    try:
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.addaudithook(watch)
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _writes(arguments: tuple) -> bool:
    """Whether an `open` event may change something: by its mode or flags, or as it flushes a folder."""
    _, mode, flags = arguments
    changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & changes)


def expect(end: End, status: int) -> None:
    """Stop unless a child has ended with this status."""
    assert end.status == status, f"status {end.status} instead of {status} after {end.operations[-3:]}:\n{end.errors}"
