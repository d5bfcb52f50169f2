"""Files and folders: written whole or not at all, read with care, and every failure one clear line.

What is being written lies beside its place under a hidden name, locked while its writer lives. So a kill leaves at
most a hidden leftover, which the next `sweep` deletes.
"""

import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ground.terminal import ConfigError

_MISSHAPEN = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError
)  # fmt: skip
"""What code raises that reads a document which is not as it should be."""
_ELSEWHERE = "another place (train.py: another --run-dir)"
_REMEDIES = {
    errno.ENOENT: f"there is no such folder; make or restore it, or choose {_ELSEWHERE}",
    errno.ENOSPC: "free some space on this disk, then go on",
    errno.EDQUOT: "free some of your quota, then go on",
    errno.EROFS: f"this disk cannot be written; choose {_ELSEWHERE}",
    errno.EACCES: f"change its access rights, or choose {_ELSEWHERE}",
    errno.EPERM: f"change its access rights, or choose {_ELSEWHERE}",
}


class RunError(ValueError):
    """What is wrong with a run directory, in one line with the path and the remedy."""


SEAL = "crc32"
"""Last key of every JSON object that `write_json` writes: a checksum of the rest."""


def write_json(path: Path, value: Mapping[str, Any], finite: bool = True) -> None:
    """Write dicts, lists, text, numbers and arrays as JSON, at once, durably and sealed against damage.

    Args:
        path: of the file.
        value: what to write.
        finite: make null of NaN and infinities, which JSON lacks; else they are kept as Python writes them.
    """
    body = plain(value, path.name, finite)
    text = json.dumps({**body, SEAL: _checksum(body)}, indent=1, allow_nan=not finite)
    write(path, (text + "\n").encode())


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body).encode())


def plain(value: Any, where: str, finite: bool = False) -> Any:
    """`value` as JSON values: tuples and arrays become lists and, with `finite`, what is not finite None."""
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}.{key}", finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", finite) for i, item in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist(), where, finite)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and finite and not math.isfinite(value):
        return None
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise RunError(f"{where} is of type {type(value).__name__}, which JSON lacks; use text, numbers, lists and dicts")


def read_json(path: Path, *, sealed: bool = False) -> dict:
    """Read an object; raises RunError where the file holds anything else or was damaged. Nothing in it is executed.

    With `sealed`, one without a checksum is refused too.
    """
    with reporting(path, "read"):
        data = path.read_bytes()
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON ({one_line(error)}); restore it, or train again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds a {type(value).__name__}, not an object; restore it, or train again")
    if (sealed or SEAL in value) and value.pop(SEAL, None) != _checksum(value):
        raise RunError(f"{path}: has changed since it was written ({SEAL} does not fit); restore it, or train again")
    return value


def holds(path: Path, *keys: Set[str]) -> bool:
    """Whether a file is a JSON object, undamaged, that has all keys of one of these sets."""
    try:
        found = read_json(path).keys()
    except RunError:
        return False
    return any(found >= one for one in keys)


def check_json(file: Path | None, *keys: Set[str]) -> None:
    """Refuse a target of `--json` that cannot be written, or that holds anything but what is written there.

    Args:
        file: the option's value; None where it is not given.
        keys: sets of keys; a document that may be overwritten has all of one of them.

    Raises:
        ConfigError: one line that names the option, its value and the remedy.
    """
    if file is None:
        return
    if not os.path.isdir(file.parent):
        raise ConfigError(f"--json={file}: no such folder, so it cannot write there; make it first")
    if os.path.isdir(file):
        raise ConfigError(f"--json={file}: a folder; name a file in it")
    try:
        if file.exists() and not (file.is_file() and (file.stat().st_size == 0 or holds(file, *keys))):
            raise ConfigError(f"--json={file}: holds something else; name another file, or move it away")
        probe = _hidden(file)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--json={file}: cannot write it ({one_line(error)}); name another file") from None


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half-written, and flush it to the disk."""
    with reporting(path, "write"), replacing(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A hidden file, or folder, to be filled: it is flushed and takes the place of `path`, or where that fails is gone.

    Between an old folder and a new one a kill may leave none.
    """
    partial = _hidden(path)
    partial.mkdir() if folder else partial.touch()
    held = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # what lies where nothing can be locked is never swept
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        for written in (*partial.rglob("*"), partial):
            _flush(written)
        aside = path.rename(_hidden(path)) if folder and path.exists() else None
        try:
            partial.replace(path)
        except OSError:
            if aside:
                aside.rename(path)
            raise
        if aside:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True) if folder else partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(held)
    _flush(path.parent)


def remove(folder: Path) -> None:
    """Delete a folder; a kill leaves it whole or gone."""
    aside = folder.rename(_hidden(folder))
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder, and not what a living process writes."""
    for leftover in folder.glob(".*.partial*"):
        with contextlib.suppress(OSError):
            held = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(held)


def others(folder: Path) -> list[Path]:
    """Its entries, but for what killed processes have left half-written; raises RunError where it cannot be read."""
    return [one for one in entries(folder) if not (one.name.startswith(".") and one.name.endswith(".partial"))]


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries(folder: Path) -> list[Path]:
    """What a folder holds; nothing where it does not exist."""
    with reporting(folder, "list"), contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def one_line(error: BaseException) -> str:
    """The gist of an error as a single line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


@contextlib.contextmanager
def shaped(
    complaint: str, remedy: str, kind: type[Exception] = RunError, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise one error of one line where what is read of a document is missing, or is no such thing.

    Args:
        complaint: what the line begins with: the file, and what is wrong with it.
        remedy: what it ends with.
        kind: of the error; one that is of it already is let through.
        also: further errors that what reads the document raises then.
    """
    try:
        yield
    except kind:
        raise
    except (*_MISSHAPEN, *also) as error:
        raise kind(f"{complaint} ({type(error).__name__}: {one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def reporting(path: Path, doing: str) -> Iterator[None]:
    """Turn errors of the disk into a RunError about `path`."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, f"check the disk, or choose {_ELSEWHERE}")
        raise RunError(f"{path}: cannot {doing} it ({one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold a directory for this process; a second holder gets a RunError. The kernel lets go of it at a kill.

    Where the file system has no locks, a word on standard error has to do.
    """
    with reporting(directory, "lock"):
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{directory}: another process is using this run; wait for it to end, or choose another --run-dir"
            ) from None
        except OSError as error:
            _warn_of_no_lock(directory, one_line(error))
        yield
    finally:
        os.close(descriptor)


@functools.cache
def _warn_of_no_lock(directory: Path, why: str) -> None:
    """Said once per directory."""
    print(
        f"{directory}: cannot be locked on this file system ({why}); see to it that one process alone uses this run",
        file=sys.stderr,
    )
