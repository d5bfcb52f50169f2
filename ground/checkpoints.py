"""Trees of arrays on disk: written whole or not at all, and checked to the bit when read.

A checkpoint is a folder with the arrays (an orbax tree, flat, named by key path) and `manifest.json`, which lists
every leaf's key path, shape, dtype and CRC-32, and every file's CRC-32.
"""

import errno
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ground import files
from ground.files import RunError, one_line

if TYPE_CHECKING:  # late, for commands that read and write none: it takes as long as JAX
    import orbax.checkpoint as ocp

SCHEMA = 1
"""Version of the checkpoint format; `load` refuses newer ones."""


class CheckpointError(RunError):
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
        CheckpointError: a leaf is no such array, the path is not UTF-8, or the disk refuses; what was at `path` is
            then still there.
    """
    path = absolute(path)
    leaves = _leaves(path, tree)
    try:
        files.sweep(path.parent)
        with files.replacing(path, folder=True) as partial:
            stored = {name: array for name, _, array in leaves if array.size}
            _reserve(partial / "reserve", sum(array.nbytes for array in stored.values()))
            if stored:  # orbax refuses empty trees and empty arrays; the manifest alone describes those
                with _checkpointer() as checkpointer:
                    checkpointer.save(partial / "arrays", stored)
                # Orbax writes there where it stood; a checkpoint that travels need not tell.
                for note in (partial / "arrays").glob("commit_success.txt"):
                    note.write_text("committed\n", encoding="utf-8")
            entries = [
                {"path": name, "keys": keys, "shape": x.shape, "dtype": x.dtype.name, "crc32": _checksum(x)}
                for name, keys, x in leaves
            ]
            manifest = {"schema": SCHEMA, "leaves": entries, "files": _file_checksums(partial)}
            files.write_json(partial / "manifest.json", manifest)
    except Exception as error:  # orbax and tensorstore pass a full disk on as errors of many types
        cause = error.__cause__ if isinstance(error, RunError) and error.__cause__ else error
        raise CheckpointError(
            f"{path}: cannot write this checkpoint ({one_line(cause)}); free some space or use a folder that exists "
            "and can be written"
        ) from error


def load(path: str | Path, like: Any = None) -> Any:
    """Read what `save` wrote.

    Args:
        path: the checkpoint's folder.
        like: the tree expected, of arrays or `jax.ShapeDtypeStruct`s. Without it the checkpoint must be of nested
            dicts; containers without leaves (empty dicts, None) are then left out.

    Returns:
        Numpy arrays, in a tree of the structure of `like`, or in nested dicts.

    Raises:
        DamagedError: the files are not what was saved.
        CheckpointError: there is none, it cannot be read, its path is not UTF-8, or its key paths, shapes or dtypes
            differ from those of `like`.
    """
    path = absolute(path)
    with files.reporting(path, "read"):
        leaves, checksums = _read_manifest(path)
        if like is None:
            if any(leaf["keys"] is None for leaf in leaves):
                raise CheckpointError(f"{path}: not made of nested dicts; pass the structure expected as `like`")
            arrays = _read_arrays(path, leaves, checksums)
            nested = {tuple(leaf["keys"]): arrays[leaf["path"]] for leaf in leaves}
            return nested[()] if () in nested else traverse_util.unflatten_dict(nested)
        expected, structure = jax.tree_util.tree_flatten_with_path(like)
        names = {jax.tree_util.keystr(key): f"{leaf.dtype}{list(leaf.shape)}" for key, leaf in expected}
        _compare(path, {leaf["path"]: f"{leaf['dtype']}{leaf['shape']}" for leaf in leaves}, names)
        arrays = _read_arrays(path, leaves, checksums)
        return structure.unflatten([arrays[name] for name in names])


def absolute(path: str | Path) -> Path:
    """The path from the root; raises CheckpointError where it is not UTF-8, as orbax knows no other."""
    path = Path(path).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path}: its path is not UTF-8, which checkpoints need; rename the folder") from None
    return path


def remove(path: str | Path) -> None:
    """Delete a checkpoint; a kill leaves it whole or gone. Raises RunError where the disk refuses."""
    with files.reporting(Path(path), "delete"):
        files.remove(Path(path))


def _leaves(path: Path, tree: Any) -> list[tuple[str, list | None, np.ndarray]]:
    """Key path, dict keys (None where a container is not a dict) and C-ordered host array of every leaf."""
    leaves = []
    for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(key)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_)):
            raise CheckpointError(
                f"{path}: leaf {name} is of type {dtype or type(leaf).__name__}; store arrays of numbers (of a PRNG "
                "key, its jax.random.key_data)"
            )
        keys = [getattr(entry, "key", None) if type(entry) is jax.tree_util.DictKey else None for entry in key]
        plain = all(type(k) in (str, int) for k in keys)
        leaves.append((name, keys if plain else None, np.asarray(leaf, order="C")))
    return leaves


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


def _file_checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file below `folder`, by its relative path."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): zlib.crc32(file.read_bytes()) for file in found}


def _read_manifest(path: Path) -> tuple[list[dict], dict[str, int]]:
    """The leaves' entries in the order of saving, and the files' checksums."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no checkpoint there; check the name")
    if not (path / "manifest.json").is_file():
        raise _damaged(path, "manifest.json is gone")
    try:
        body = files.read_json(path / "manifest.json", sealed=True)
    except RunError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise _damaged(path, "manifest.json is not as it was written") from error
    if type(body.get("schema")) is not int:
        raise _damaged(path, "manifest.json has no schema")
    if body["schema"] > SCHEMA:
        raise CheckpointError(f"{path}: format {body['schema']} is newer than {SCHEMA}, known here; update emojimaze")
    return body["leaves"], body["files"]


def _read_arrays(path: Path, leaves: list[dict], checksums: dict[str, int]) -> dict[str, np.ndarray]:
    """The leaves as numpy arrays by key path, each checked against the manifest."""
    # Checked before orbax reads them, because from damaged files it prints tracebacks of its own.
    found = _file_checksums(path)
    for name, checksum in checksums.items():
        if found.get(name) != checksum:
            raise _damaged(path, f"{name} is {'not as it was written' if name in found else 'gone'}")
    import orbax.checkpoint as ocp

    stored = {leaf["path"]: ocp.RestoreArgs(restore_type=np.ndarray) for leaf in leaves if 0 not in leaf["shape"]}
    try:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(path / "arrays", restore_args=stored) if stored else {}
    except Exception as error:  # orbax and tensorstore raise errors of many types
        raise CheckpointError(
            f"{path}: cannot be read ({one_line(error)}), though its files are as they were written; free some memory "
            "or run uv sync, then try again"
        ) from error
    for leaf in leaves:
        array = arrays.setdefault(leaf["path"], np.zeros(leaf["shape"], leaf["dtype"]) if 0 in leaf["shape"] else None)
        facts = isinstance(array, np.ndarray) and (list(array.shape), array.dtype.name, _checksum(array))
        if facts != (leaf["shape"], leaf["dtype"], leaf["crc32"]):
            raise _damaged(path, f"leaf {leaf['path']} is not as it was written")
    return arrays


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: damaged checkpoint ({what}); use another one, or train it again")


def _compare(path: Path, there: dict[str, str], expected: dict[str, str]) -> None:
    differences = [
        f"leaf {name or 'at the root'} is {there.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
        for name in {**expected, **there}
        if there.get(name) != expected.get(name)
    ]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise CheckpointError(
            f"{path}: does not fit: {differences[0]}{more}; use the config that this checkpoint was made with"
        )


def _checkpointer() -> "ocp.Checkpointer":
    """An orbax checkpointer that waits for no other process."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"emojimaze-{me}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _reserve(path: Path, size: int) -> None:
    """Refuse at once where the disk has no room for arrays of `size` bytes and what comes with them.

    Orbax writes in threads of its own, and a disk that is full by then makes it print a traceback for every array.
    """
    allocate = getattr(os, "posix_fallocate", None)  # not on macOS
    if allocate is None:
        return
    with path.open("wb") as file:
        try:
            allocate(file.fileno(), 0, size + size // 8 + (128 << 10))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    path.unlink()
