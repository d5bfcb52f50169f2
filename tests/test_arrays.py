"""Labelled arrays on disk: what is read is what was written, or an error of one line."""

import numpy as np
import pytest
import xarray as xr

from ground import arrays
from ground.files import RunError


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    return xr.Dataset(
        {
            "z": (("member", "side"), generator.normal(size=(3, 2)), {"long_name": "σ, in words", "table": 0}),
            "half": ("member", np.array([0.5, np.nan, -np.inf], np.float16)),
            "count": ("member", np.array([1, -2, 2**31 - 1], np.int64)),
            "byte": ("member", np.array([0, 7, 255], np.uint8)),
            "true": ("member", np.array([True, False, True])),
            "nothing": ((), np.float32(3)),
        },
        {"member": [0, 2, 3], "side": ["left", "🎯"], "point": ("member", ["", "a=1", "a=1"])},
        {"note": "κ = 1", "share": 0.25, "count": np.int64(3)},
    )


def test_values_types_names_and_their_order_come_back(dataset, tmp_path):
    arrays.write(tmp_path / "a.nc", dataset)
    back = arrays.read(tmp_path / "a.nc", "measure again")
    xr.testing.assert_equal(back, dataset)
    assert list(back.data_vars) == list(dataset.data_vars)
    wanted = {
        "z": "float64",
        "half": "float32",
        "count": "int32",
        "byte": "int32",
        "true": "bool",
        "nothing": "float32",
    }
    assert {name: str(back[name].dtype) for name in wanted} == wanted
    assert back["z"].attrs == dataset["z"].attrs
    assert back.attrs == dataset.attrs
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as plain:  # no tool of ours
        np.testing.assert_array_equal(plain["z"], dataset["z"])


def test_integers_that_do_not_fit_are_refused(tmp_path):
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match="x: integers of more than 32 bits"):
            arrays.write(tmp_path / "a.nc", xr.Dataset({"x": ("member", [value])}))
    assert not list(tmp_path.iterdir())


def test_damage_is_refused_in_one_line(dataset, tmp_path):
    path = tmp_path / "a.nc"
    arrays.write(path, dataset)
    whole, generator = path.read_bytes(), np.random.default_rng(1)
    harmless = 0
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refused(path)
    for place in generator.choice(len(whole), 120, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            xr.testing.assert_identical(arrays.read(path, "measure again"), dataset)
        except RunError:
            refused(path)
        else:
            harmless += 1  # a byte between two arrays, where nothing is kept
    assert harmless < 20
    path.unlink()
    with pytest.raises(RunError, match=r"a\.nc: cannot read it"):
        arrays.read(path, "measure again")


def refused(path):
    with pytest.raises(RunError) as error:
        arrays.read(path, "measure again")
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith("; measure again")
    assert "\n" not in text
