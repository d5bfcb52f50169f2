"""From measurements to estimates: selections of a labelled array, averaged over members, with their intervals."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from rich.table import Table

from ground import numbers
from ground.estimates import Estimate

MOST_ROWS = 24
"""A variable of more numbers than these is left to figures and files."""


def of(array: xr.DataArray, meaning: str = "", control: str = "", units: str = "unit") -> Estimate:
    """The mean of an array over its members, and its interval.

    Args:
        array: float[member], or float[member, x] where x, such as mazes, varies by chance too. Its label `units`
            says which members count as one: by default exact twins, `base` where the interval shall speak of other
            bases too.
        meaning: what it is, with its unit; by default what the array says of itself.
        control: name of the estimate to read beside it.
        units: name of that label.
    """
    array = array.transpose("member", ...)
    labels = np.asarray(array[units].values).ravel() if units in array.coords else None
    estimate = Estimate.of if array.ndim == 1 else Estimate.crossed
    return estimate(array.values, meaning or described(array), control, labels)


def by_base(array: xr.DataArray) -> xr.DataArray:
    """An array with one value for each base, the mean of the members that started from it, on the axis `member`.

    The axis is labelled with the seeds of the bases, so that arms that share them pair by themselves in sums and
    differences, whatever their sizes and sweeps.
    """
    bases = array["base"].values
    names = np.unique(bases)
    parts = [array.isel(member=np.flatnonzero(bases == base)).mean("member", keep_attrs=True) for base in names]
    joined = xr.concat(parts, "member", coords="minimal", compat="override", join="exact")
    return joined.assign_coords(member=names, base=("member", names))


def described(array: xr.DataArray) -> str:
    """What an array says that it is, with its unit."""
    name, unit = array.attrs.get("long_name", str(array.name or "")), array.attrs.get("units", "")
    return f"{name} ({unit})" if unit else name


def rows(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Each number of a dataset, with its name: an array over members (and no more) for every other coordinate.

    Variables without members, and those of more than `MOST_ROWS` numbers, are left out; so are those whose attribute
    `table` is 0.
    """
    for name, array in dataset.data_vars.items():
        if "member" not in array.dims or not array.attrs.get("table", 1):
            continue
        others = [dimension for dimension in array.dims if dimension != "member"]
        count = int(np.prod([array.sizes[dimension] for dimension in others], dtype=int))
        if count > MOST_ROWS:
            continue
        for place in np.ndindex(*(array.sizes[dimension] for dimension in others)):
            at = dict(zip(others, place, strict=True))
            labels = [str(array[d].values[i]) if d in array.coords else f"{d} {i}" for d, i in at.items()]
            yield ", ".join([array.attrs.get("long_name", str(name)), *labels]), array.isel(at)


def columns(arms: Mapping[str, xr.Dataset], joint: str = ", ", followed: bool = False) -> dict[str, xr.Dataset]:
    """What stands side by side: the part of each arm, checkpoint and grid point, by a name joined of theirs.

    Where they are followed through training, the checkpoints of an arm and point stay together.
    """
    parts: dict[str, xr.Dataset] = {}
    for arm, dataset in arms.items():
        for point in dict.fromkeys(dataset["point"].values.tolist()):
            part = dataset.isel(member=np.flatnonzero(dataset["point"].values == point))
            steps = part["checkpoint"].values.tolist() if "checkpoint" in part.dims and not followed else [None]
            for step in steps:
                words = [arm if len(arms) > 1 else "", step or "", point]
                parts[joint.join(filter(None, words)) or "mean"] = part.sel(checkpoint=step) if step else part
    return parts


def table(arms: Mapping[str, xr.Dataset], title: str = "") -> Table:
    """What a person reads at the terminal: a row for each number, a column for each arm, checkpoint and grid point."""
    shown = Table(title=title, title_justify="left", caption=_caption(arms), caption_justify="left")
    shown.add_column("")
    cells: dict[str, dict[str, Any]] = {}
    parts = columns(arms, "\n")
    for column, dataset in parts.items():
        shown.add_column(column, justify="right")
        for row, array in rows(dataset):
            estimate = of(array)
            cells.setdefault(row, {})[column] = numbers.shown(estimate.mean, estimate.low, estimate.high)
    for row, values in cells.items():
        shown.add_row(row, *(values.get(column, "") for column in parts))
    return shown


def _caption(arms: Mapping[str, xr.Dataset]) -> str:
    dataset = next(iter(arms.values()))
    members, bases = dataset.sizes["member"], len(np.unique(dataset["base"].values))
    return f"mean and 95 % interval over {members} member{'s' * (members > 1)} of {bases} base{'s' * (bases > 1)}"
