"""Metrics of training on disk: one Parquet part per chunk, each with a checksum, and old parts merged so that few stay.

A part is named by its stage and first update. Where parts overlap, the one that begins first counts, so that merging
may be killed at any moment: the merged part replaces its first, then the others go.
"""

import itertools
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ground import checkpoints, files
from ground.files import RunError

KEYS = ("stage", "update", "member")
"""The columns that identify a row of metrics."""
SEAL = b"crc32"
"""Key of a checksum in the metadata of a part."""
TOGETHER = 16
"""So many parts of one chunk become one, so many of those become one again, and so on."""


def write(folder: Path, stage: str, first_update: int, columns: Mapping[str, Any], members: int, settled: int) -> None:
    """Write the metrics of one chunk as one part.

    The same chunk written again gives the same bytes. Parts that begin inside this chunk were written by an abandoned
    continuation and are deleted.

    Args:
        folder: of the parts.
        stage: the chunk's stage.
        first_update: number of its first update.
        columns: metrics by name, each [updates, M]; float32 and float64 are kept, narrower floats become float32, all
            else float64.
        members: M.
        settled: updates of this stage that training cannot go back behind any more; parts before may be merged.

    Raises:
        RunError: a metric has another shape, or a file cannot be written.
    """
    path = _path(folder, stage, first_update)
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    updates = next((array.shape[0] for array in arrays.values() if array.ndim), 0)
    for name, array in arrays.items():
        if array.shape != (updates, members) or name in KEYS:
            raise RunError(
                f"{path}: metric {name!r} has shape {list(array.shape)}; give each metric as [updates, members] = "
                f"[{updates}, {members}], under a name other than {', '.join(KEYS)}"
            )
    rows = {
        "stage": pa.repeat(stage, updates * members),
        "update": np.repeat(np.arange(first_update, first_update + updates, dtype=np.int32), members),
        "member": np.tile(np.arange(members, dtype=np.int32), updates),
        **{name: _as_float(array).reshape(-1) for name, array in arrays.items()},
    }
    data = _bytes(pa.table(rows))
    with files.reporting(path, "write"):
        starts = _starts(folder, stage)
        for start in starts:
            if first_update < start < first_update + updates:
                _path(folder, stage, start).unlink()
        files.write(path, data)
        if updates:
            _merge(folder, stage, members, updates, settled)


def read(folder: Path, stage: str, members: int) -> pa.Table:
    """All metrics of a stage as rows sorted by update and member, each of which occurs once.

    A metric that a part lacks is null there.

    Raises:
        RunError: a part is damaged or cannot be read; the message names it.
    """
    while True:
        try:
            return _once([_part(_path(folder, stage, start)) for start in _starts(folder, stage)], members)
        except FileNotFoundError:
            continue  # merged into another by the process that trains


def _merge(folder: Path, stage: str, members: int, chunk: int, settled: int) -> None:
    """Merge what lies wholly within whole blocks of chunks before `settled`."""
    size = chunk * TOGETHER
    while size <= settled:
        for block, group in itertools.groupby(_starts(folder, stage), lambda start, size=size: start // size):
            first, *others = group
            if others and first == block * size and (block + 1) * size <= settled:
                try:
                    parts = [_part(_path(folder, stage, start)) for start in (first, *others)]
                except RunError:
                    continue  # it is for those who read the metrics to say; training goes on
                files.write(_path(folder, stage, first), _bytes(_once(parts, members)))
                for start in others:
                    _path(folder, stage, start).unlink()
        size *= TOGETHER


def _once(parts: list[pa.Table], members: int) -> pa.Table:
    """Rows of all parts, sorted; the first of those that are there twice."""
    columns = (pa.array([], pa.string()), pa.array([], pa.int32()), pa.array([], pa.int32()))
    table = pa.concat_tables([pa.table(dict(zip(KEYS, columns, strict=True))), *parts], promote_options="permissive")
    update, member = (table[key].to_numpy().astype(np.int64) for key in KEYS[1:])
    return table.take(np.unique(update * members + member, return_index=True)[1])


def _part(path: Path) -> pa.Table:
    """One part, checked; raises FileNotFoundError where it is not there (any more)."""
    try:
        with files.reporting(path, "read"):
            data = path.read_bytes()
    except RunError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not path.is_symlink():
            raise error.__cause__ from None
        raise
    try:
        rows = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        if rows.schema.names[:3] != list(KEYS):
            raise pa.ArrowInvalid(f"its columns do not begin with {', '.join(KEYS)}")
        seal = (rows.schema.metadata or {}).get(SEAL)
        if seal and seal != _digest(rows):
            raise pa.ArrowInvalid("it has changed since it was written")
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{path}: damaged metrics ({checkpoints.one_line(error)}); delete this file to read the others"
        ) from error
    return rows.replace_schema_metadata()


def _path(folder: Path, stage: str, first_update: int) -> Path:
    return folder / f"{stage}-{first_update:06d}.parquet"


def _starts(folder: Path, stage: str) -> list[int]:
    """First updates of a stage's parts, in order."""
    found = (re.fullmatch(rf"{stage}-([0-9]{{6,10}})\.parquet", entry.name) for entry in files.entries(folder))
    return sorted(int(match[1]) for match in found if match)


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({SEAL: _digest(table)}), sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _digest(table: pa.Table) -> bytes:
    """Checksum of names, types and values."""
    total = zlib.crc32(str(table.schema.remove_metadata()).encode())
    for column in table.columns:
        values = column.to_numpy()
        total = zlib.crc32("\n".join(values).encode() if values.dtype == object else values.tobytes(), total)
    return b"%08x" % total


def _as_float(array: np.ndarray) -> np.ndarray:
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32 if jnp.issubdtype(array.dtype, np.floating) else np.float64)
