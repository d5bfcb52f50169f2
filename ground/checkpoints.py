"""Trees of arrays on disk: written whole or not at all, and checked to the bit when read.

A checkpoint is a folder with the arrays (an orbax tree, flat, named by key path) and `manifest.json`, which lists
every leaf's key path, shape, dtype and CRC-32, and every file's CRC-32. It is built in a hidden sibling folder,
flushed to the disk and then renamed, so a kill leaves at most a hidden leftover, which the next `save` beside it
removes.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

SCHEMA = 1
"""Version of the checkpoint format; `load` refuses newer ones."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or fitted to what is expected, in one line with its remedy."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are not what `save` wrote: truncated, altered or partly gone."""


def save(path: str | Path, tree: Any) -> None:
    """Write a tree of arrays as the folder `path`, replacing a checkpoint already there.

    Args:
        path: the folder to make; its parent must exist.
        tree: any pytree of jax or numpy arrays of any shape and numeric or boolean dtype (typed PRNG keys: pass
            `jax.random.key_data`). Each array must be wholly held by this process; of several processes, one saves.

    Raises:
        CheckpointError: a leaf is no such array, or the disk refuses; what was at `path` is then still there.
    """
    path = Path(path).absolute()
    leaves = _leaves(path, tree)
    try:
        delete_abandoned(path.parent.glob(".*.partial-*"))
        with _partial_folder(path) as partial:
            arrays = {key: array for key, _, array in leaves if array.size}
            _reserve(partial, sum(array.nbytes for array in arrays.values()))
            if arrays:  # orbax refuses empty trees and empty arrays; the manifest alone describes those
                with _checkpointer() as checkpointer:
                    checkpointer.save(partial / "arrays", arrays)
            (partial / "manifest.json").write_text(_manifest_text(leaves, _file_checksums(partial)), encoding="utf-8")
            for folder, _, files in os.walk(partial):
                for name in files:
                    flush(Path(folder, name))
                flush(Path(folder))
            _publish(partial, path)
            flush(path.parent)
    except Exception as error:  # orbax and tensorstore pass a full disk on as errors of many types
        raise CheckpointError(
            f"{path}: cannot write this checkpoint ({one_line(error)}); free some space or use a folder that exists "
            "and can be written"
        ) from error


def load(path: str | Path, like: Any = None) -> Any:
    """Read what `save` wrote.

    Args:
        path: the checkpoint's folder.
        like: the tree expected, of arrays or `jax.ShapeDtypeStruct`s. Without it the checkpoint must be of nested
            dicts; containers without leaves (empty dicts, None) are then left out.

    Returns:
        With `like`, a tree of its structure: numpy arrays where `like` has them, jax arrays elsewhere, on the
        sharding that `like` names (64-bit leaves stay numpy while jax has 64 bits switched off). Without, nested
        dicts of numpy arrays.

    Raises:
        DamagedError: the files are not what was saved.
        CheckpointError: there is none, or its key paths, shapes or dtypes differ from those of `like`.
    """
    path = Path(path).absolute()
    manifest, files = _read_manifest(path)
    if like is None:
        if any(leaf["keys"] is None for leaf in manifest):
            raise CheckpointError(f"{path}: not made of nested dicts; pass the structure expected as `like`")
        arrays = _read_arrays(path, manifest, files)
        return _nested([(leaf["keys"], arrays[leaf["path"]]) for leaf in manifest])
    expected, structure = jax.tree_util.tree_flatten_with_path(like)
    _compare(path, manifest, {jax.tree_util.keystr(key): _describe(leaf) for key, leaf in expected})
    arrays = _read_arrays(path, manifest, files)
    return structure.unflatten(_place(arrays[jax.tree_util.keystr(key)], leaf) for key, leaf in expected)


def remove(path: str | Path) -> None:
    """Delete a checkpoint; a kill leaves it whole or gone. Raises CheckpointError where the disk refuses."""
    path = Path(path).absolute()
    try:
        os.rename(path, aside := _partial_name(path))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot delete this checkpoint ({one_line(error)}); delete it by hand"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def one_line(error: BaseException) -> str:
    """The gist of an error as a single line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _leaves(path: Path, tree: Any) -> list[tuple[str, list | None, np.ndarray]]:
    """Key path, dict keys (None where a container is not a dict) and C-ordered host array of every leaf."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(key) for key, _ in flat]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path}: two leaves share a key path; rename one of the tree's keys")
    for name, (_, leaf) in zip(names, flat, strict=True):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)) or not _storable(leaf.dtype):
            raise CheckpointError(
                f"{path}: leaf {name} is {_describe(leaf)}; store arrays of numbers (of a PRNG key, its "
                "jax.random.key_data)"
            )
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise CheckpointError(f"{path}: leaf {name} is spread over several processes; gather it before saving")
    arrays = [np.asarray(leaf, order="C") for leaf in jax.device_get([leaf for _, leaf in flat])]
    return [
        (name, _dict_keys(key), array.astype(array.dtype.newbyteorder("="), copy=False))
        for name, (key, _), array in zip(names, flat, arrays, strict=True)
    ]


def _storable(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_))


def _dict_keys(key: tuple) -> list | None:
    keys = [entry.key if isinstance(entry, jax.tree_util.DictKey) else None for entry in key]
    return keys if all(type(k) in (str, int) for k in keys) else None


def _describe(leaf: Any) -> str:
    """A leaf as `float32[2, 3]`, or its type where it is no array."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return f"of type {type(leaf).__name__}"


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _file_checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file below `folder`, by its relative path."""
    checksums = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        checksum = 0
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
        checksums[file.relative_to(folder).as_posix()] = checksum
    return checksums


def _manifest_text(leaves: list[tuple[str, list | None, np.ndarray]], files: dict[str, int]) -> str:
    body = {
        "schema": SCHEMA,
        "leaves": [
            {
                "path": name,
                "keys": keys,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "crc32": _checksum(array),
            }
            for name, keys, array in leaves
        ],
        "files": files,
    }
    return json.dumps({**body, "crc32": zlib.crc32(json.dumps(body).encode())}, indent=1) + "\n"


def _read_manifest(path: Path) -> tuple[list[dict], dict[str, int]]:
    """The leaves' entries in the order of saving, and the files' checksums."""
    try:
        text = (path / "manifest.json").read_bytes()
    except FileNotFoundError:
        if path.is_dir():
            raise _damaged(path, "manifest.json is gone") from None
        raise CheckpointError(f"{path}: no checkpoint there; check the name") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        body = json.loads(text)
        checksum = body.pop("crc32")
        intact = checksum == zlib.crc32(json.dumps(body).encode()) and isinstance(body["schema"], int)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        intact, body = False, {}
    if not intact:
        raise _damaged(path, "manifest.json is not as it was written")
    if body["schema"] > SCHEMA:
        raise CheckpointError(f"{path}: format {body['schema']} is newer than {SCHEMA}, known here; update emojimaze")
    return body["leaves"], body["files"]


def _read_arrays(path: Path, manifest: list[dict], files: dict[str, int]) -> dict[str, np.ndarray]:
    """The leaves as numpy arrays by key path, each checked against the manifest."""
    try:
        found = _file_checksums(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    # Checked before orbax reads them, because from damaged files it prints tracebacks of its own.
    for name, checksum in files.items():
        if found.get(name) != checksum:
            raise _damaged(path, f"{name} is {'not as it was written' if name in found else 'gone'}")
    stored = {leaf["path"]: ocp.RestoreArgs(restore_type=np.ndarray) for leaf in manifest if 0 not in leaf["shape"]}
    try:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(path / "arrays", restore_args=stored) if stored else {}
    except Exception as error:  # orbax and tensorstore raise errors of many types
        raise _damaged(path, one_line(error)) from error
    result = {}
    for leaf in manifest:
        array = arrays.get(leaf["path"]) if leaf["path"] in stored else np.zeros(leaf["shape"], leaf["dtype"])
        facts = isinstance(array, np.ndarray) and (list(array.shape), array.dtype.name, _checksum(array))
        if facts != (leaf["shape"], leaf["dtype"], leaf["crc32"]):
            raise _damaged(path, f"leaf {leaf['path']} is not as it was written")
        result[leaf["path"]] = array
    return result


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: damaged checkpoint ({what}); use another one, or train it again")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot read this checkpoint ({one_line(error)}); check its access rights")


def _compare(path: Path, manifest: list[dict], expected: dict[str, str]) -> None:
    found = {leaf["path"]: f"{leaf['dtype']}{leaf['shape']}" for leaf in manifest}
    differences = [
        f"leaf {name or 'at the root'} is {found.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise CheckpointError(
            f"{path}: does not fit: {differences[0]}{more}; use the config that this checkpoint was made with"
        )


def _nested(leaves: list[tuple[list, np.ndarray]]) -> Any:
    tree = {}
    for keys, array in leaves:
        if not keys:
            return array
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = array
    return tree


def _place(array: np.ndarray, like: Any) -> np.ndarray | jax.Array:
    if isinstance(like, (np.ndarray, np.generic)) or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    return jax.device_put(array, getattr(like, "sharding", None))


def _checkpointer() -> ocp.Checkpointer:
    """An orbax checkpointer that waits for no other process."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"emojimaze-{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


@contextlib.contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """A new hidden folder beside `path`, held while this process lives, deleted if still there."""
    folder = _partial_name(path)
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    try:
        hold(lock)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def hold(descriptor: int) -> None:
    """Say, until it is closed, that an open file or folder is being written, so that `delete_abandoned` spares it."""
    with contextlib.suppress(OSError):  # some network file systems cannot lock; what lies there is then never deleted
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def delete_abandoned(leftovers: Iterable[Path]) -> None:
    """Delete half-written files and folders that no living process holds."""
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(lock)


def _reserve(folder: Path, size: int) -> None:
    """Refuse at once where the disk has no room for arrays of `size` bytes and what comes with them.

    Orbax writes in threads of its own, and a disk that is full by then makes it print a traceback for every array.
    """
    allocate = getattr(os, "posix_fallocate", None)  # not on macOS
    if allocate is None:
        return
    path = folder / "reserve"
    with path.open("wb") as file:
        try:
            allocate(file.fileno(), 0, size + size // 8 + (128 << 10))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    path.unlink()


def _publish(partial: Path, path: Path) -> None:
    """Rename the finished folder to `path`; a checkpoint already there is set aside first, then deleted."""
    aside = None
    if path.exists():
        os.rename(path, aside := _partial_name(path))
    try:
        os.rename(partial, path)
    except OSError:
        if aside is not None:
            os.rename(aside, path)
        raise
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
