"""Labelled arrays on disk: one NetCDF file for a dataset, written whole or not at all, and checked when read."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
import xarray as xr

from ground import files
from ground.files import RunError

_SEAL, _ORDER = "crc32", "order"


def write(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset as NetCDF 3, which any tool reads, sealed against damage.

    Args:
        path: of the file.
        dataset: of integers, floats, truth values and text; NetCDF 3 has integers of 32 bits and floats of 32 or 64.

    Raises:
        RunError: the disk refuses.
        ValueError: an integer has more than 32 bits.
    """
    variables = {name: _plain(array) for name, array in dataset.data_vars.items()}
    coordinates = {name: _plain(array) for name, array in dataset.coords.items()}
    plain = xr.Dataset(variables, coordinates, dataset.attrs)
    plain.attrs[_ORDER] = json.dumps([str(name) for name in variables])
    plain.attrs[_SEAL] = _checksum(plain)
    files.write(path, bytes(plain.to_netcdf(engine="scipy")))


def read(path: Path, remedy: str) -> xr.Dataset:
    """Read what `write` wrote.

    Args:
        path: of the file.
        remedy: what to do where it was damaged.

    Raises:
        RunError: it is not there, or not what was written.
    """
    with files.reporting(path, "read"):
        data = path.read_bytes()
    try:
        dataset = xr.load_dataset(io.BytesIO(data), engine="scipy")
        intact = dataset.attrs.pop(_SEAL) == _checksum(dataset)
        dataset = dataset[json.loads(dataset.attrs.pop(_ORDER))]  # NetCDF 3 has an order of its own
    except Exception as error:  # scipy and xarray raise errors of many types
        raise RunError(f"{path}: not readable ({files.one_line(error)}); {remedy}") from error
    if not intact:
        raise RunError(f"{path}: has changed since it was written; {remedy}")
    return dataset


def _plain(array: xr.DataArray) -> xr.DataArray:
    """Of a type that NetCDF 3 has."""
    kind = array.dtype.kind
    if kind in "iu" and array.dtype != np.int32:
        limits = np.iinfo(np.int32)
        if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
            raise ValueError(f"{array.name}: integers of more than 32 bits; make floats of them")
        return array.astype(np.int32)
    return array.astype(np.float32) if kind == "f" and array.dtype.itemsize < 4 else array


def _checksum(dataset: xr.Dataset) -> str:
    """CRC-32 of attributes, names, dimensions, types and values."""
    about = {"": dataset.attrs, **{str(name): array.attrs for name, array in dataset.variables.items()}}
    about[""] = {key: value for key, value in about[""].items() if key != _SEAL}
    # An attribute that is a number comes back as NumPy's.
    total = zlib.crc32(json.dumps(about, sort_keys=True, default=lambda x: np.asarray(x).tolist()).encode())
    for name in sorted(map(str, dataset.variables)):
        array = dataset[name]
        values = np.asarray(array.values)
        text = values.dtype.kind in "OSU"
        data = "\n".join(map(str, values.ravel())).encode() if text else np.ascontiguousarray(values).tobytes()
        total = zlib.crc32(data, zlib.crc32(f"{name}{array.dims}{'' if text else values.dtype}".encode(), total))
    return f"{total:08x}"
