"""Files of a run: written whole or not at all, read with care, and every failure one clear line."""

import contextlib
import errno
import fcntl
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ground import checkpoints

_REMEDIES = {
    errno.ENOENT: "the folder is gone; restore it, or start again with another --run-dir",
    errno.ENOSPC: "free some space on this disk, then --resume the run",
    errno.EDQUOT: "free some of your quota, then --resume the run",
    errno.EROFS: "choose a --run-dir on a disk that can be written",
    errno.EACCES: "change its access rights, or choose another --run-dir",
    errno.EPERM: "change its access rights, or choose another --run-dir",
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


def read_json(path: Path) -> dict:
    """Read an object; raises RunError where the file holds anything else or was damaged. Nothing in it is executed."""
    with reporting(path, "read"):
        data = path.read_bytes()
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path}: not readable as JSON ({checkpoints.one_line(error)}); restore it, or train again"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds a {type(value).__name__}, not an object; restore it, or train again")
    if SEAL in value and value.pop(SEAL) != _checksum(value):
        raise RunError(f"{path}: has changed since it was written ({SEAL} does not fit); restore it, or train again")
    return value


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half-written, and flush it to the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with reporting(path, "write"):
        try:
            with partial.open("wb") as file:
                checkpoints.hold(file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        checkpoints.flush(path.parent)


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written."""
    with reporting(folder, "sweep"):
        checkpoints.delete_abandoned(folder.glob(".*.partial"))


def entries(folder: Path) -> list[Path]:
    """What a folder holds; nothing where it does not exist."""
    with reporting(folder, "list"), contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


@contextlib.contextmanager
def reporting(path: Path, doing: str) -> Iterator[None]:
    """Turn errors of the disk and of checkpoints into a RunError about `path`."""
    try:
        yield
    except checkpoints.CheckpointError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk, or choose another --run-dir")
        raise RunError(f"{path}: cannot {doing} it ({checkpoints.one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold a directory for this process; a second holder gets a RunError. The kernel lets go of it at a kill."""
    with reporting(directory, "lock"):
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with reporting(directory, "lock"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{directory}: another process is using this run; wait for it to end, or choose another --run-dir"
                ) from None
        yield
    finally:
        os.close(descriptor)
