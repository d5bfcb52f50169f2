"""Metrics of training on disk: Parquet parts, each with a checksum, that grow until another is begun.

A part is named by its stage and first update. Where parts overlap, the one that begins last counts. A chunk goes into
the newest part that begins before it, which is written anew as a whole: so parts are few, and a kill at any moment
leaves the part as it was. Older versions wrote a part for every chunk and merged them.
"""

import contextlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ground import files
from ground.files import RunError

KEYS = ("stage", "update", "member")
"""The columns that identify a row of metrics."""
SEED = "seed"
"""The column that `Run.metrics` puts beside them, with one for each swept field."""
SEAL = b"crc32"
"""Key of a checksum in the metadata of a part."""
FULL = 1 << 18
"""Bytes after which a part grows no more: writing it again takes some milliseconds then."""


def write(folder: Path, stage: str, first_update: int, columns: Mapping[str, Any], members: int) -> None:
    """Write the metrics of one chunk; the same chunk written again gives the same bytes.

    Args:
        folder: of the parts.
        stage: the chunk's stage.
        first_update: number of its first update.
        columns: metrics by name, each [updates, M]; float32 and float64 are kept, narrower floats become float32, all
            else float64.
        members: M.

    Raises:
        RunError: a metric has another shape, or a file cannot be written.
    """
    path = _path(folder, stage, first_update)
    table = rows(stage, first_update, columns, members, path)
    updates = len(table) // members
    starts = _starts(folder, stage)
    with files.reporting(folder, "write"):
        for start in starts:
            if first_update < start < first_update + updates:  # of an abandoned continuation in other chunks
                _path(folder, stage, start).unlink()
    before = [start for start in starts if start <= first_update]
    if before:
        newest = _path(folder, stage, before[-1])
        with contextlib.suppress(RunError, OSError):  # it is for those who read the metrics to say; training goes on
            if before[-1] == first_update or newest.stat().st_size < FULL:
                table, path = once([table, _part(newest)], members), newest
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({SEAL: _digest(table)}), sink, write_page_checksum=True)
    files.write(path, sink.getvalue().to_pybytes())


def rows(stage: str, first_update: int, columns: Mapping[str, Any], members: int, where: Any) -> pa.Table:
    """The metrics of one chunk as rows by update and member; arguments and errors as those of `write`.

    Args:
        where: what messages call the place that they go to.
    """
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    updates = next((array.shape[0] for array in arrays.values() if array.ndim), 0)
    for name, array in arrays.items():
        if array.shape != (updates, members) or name in (*KEYS, SEED):
            raise RunError(
                f"{where}: metric {name!r} has shape {list(array.shape)}; give each metric as [updates, members] = "
                f"[{updates}, {members}], under a name other than {', '.join((*KEYS, SEED))}"
            )
    told = {
        "stage": pa.repeat(stage, updates * members),
        "update": np.repeat(np.arange(first_update, first_update + updates, dtype=np.int32), members),
        "member": np.tile(np.arange(members, dtype=np.int32), updates),
        **{name: _as_float(array).reshape(-1) for name, array in arrays.items()},
    }
    return pa.table(told)


def read(folder: Path, stage: str, members: int) -> pa.Table:
    """All metrics of a stage as rows sorted by update and member, each of which occurs once.

    A metric that a part lacks is null there.

    Raises:
        RunError: a part is damaged or cannot be read; the message names it.
    """
    return once([_part(_path(folder, stage, start)) for start in reversed(_starts(folder, stage))], members)


def once(parts: list[pa.Table], members: int) -> pa.Table:
    """Rows of all parts, sorted by update and member; the first of those that are there twice."""
    columns = (pa.array([], pa.string()), pa.array([], pa.int32()), pa.array([], pa.int32()))
    table = pa.concat_tables([pa.table(dict(zip(KEYS, columns, strict=True))), *parts], promote_options="permissive")
    update, member = (table[key].to_numpy().astype(np.int64) for key in KEYS[1:])
    return table.take(np.unique(update * members + member, return_index=True)[1])


def _part(path: Path) -> pa.Table:
    """One part, checked."""
    with files.reporting(path, "read"):
        data = path.read_bytes()
    try:
        rows = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        if rows.schema.names[:3] != list(KEYS):
            raise pa.ArrowInvalid(f"its columns do not begin with {', '.join(KEYS)}")
        seal = (rows.schema.metadata or {}).get(SEAL)
        if seal and seal != _digest(rows):
            raise pa.ArrowInvalid("it has changed since it was written")
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{path}: damaged metrics ({files.one_line(error)}); delete this file to read the others"
        ) from error
    return rows.replace_schema_metadata()


def _path(folder: Path, stage: str, first_update: int) -> Path:
    return folder / f"{stage}-{first_update:06d}.parquet"


def _starts(folder: Path, stage: str) -> list[int]:
    """First updates of a stage's parts, in order."""
    names = (re.fullmatch(rf"{stage}-([0-9]{{6,10}})\.parquet", entry.name) for entry in files.entries(folder))
    return sorted(int(match[1]) for match in names if match)


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
