"""From measurements to estimates: selections of a labelled array, averaged over members, with their intervals."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from rich import box
from rich.console import Group
from rich.table import Table

from ground import numbers
from ground.estimates import INDEPENDENT, Estimate

MOST_ROWS = 24
"""A variable of more numbers than these is left to figures and files."""
_HEAD = 18
"""Characters of a column's head after which it goes on in the next line."""
_Floor = TypeVar("_Floor", xr.DataArray, float)


def of(array: xr.DataArray, meaning: str | None = None, control: str = "", units: str = "") -> Estimate:
    """The mean of an array over its members, and its interval.

    Args:
        array: float[member], or float[member, x] where x, such as mazes, varies by chance too. Its label `units`
            says which members count as one; `base` where the interval shall speak of other bases too. By default
            what the array names as its attribute `independent`, else exact twins.
        meaning: what it is, with its unit; by default what the array says of itself.
        control: name of the estimate to read beside it.
        units: name of that label.
    """
    array = array.transpose("member", ...)
    units = units or array.attrs.get("independent", "unit")
    labels = np.asarray(array[units].values).ravel() if units in array.coords else None
    estimate = Estimate.of if array.ndim == 1 else Estimate.crossed
    return estimate(array.values, described(array) if meaning is None else meaning, control, labels)


def last_stage(measured: xr.Dataset) -> xr.Dataset:
    """The checkpoints of the last stage that has trained, after that where it set out, whose `update` is 0."""
    stages, trained = measured["stage"].values, measured["update"].values > 0
    stage = stages[trained][-1] if trained.any() else stages[-1]
    steps = np.flatnonzero(stages == stage)
    part = measured.isel(checkpoint=[*range(max(steps[0] - 1, 0), steps[0]), *steps])
    return part.assign_coords(update=part["update"].where(part["stage"] == stage, 0))


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


def columns(arms: Mapping[str, xr.Dataset], joint: str = ", ", followed: bool = False) -> dict[str, xr.Dataset]:
    """What stands side by side: the part of each arm, checkpoint and grid point, by a name joined of theirs.

    Args:
        arms: measurements of one kind; their names are left out where there is but one.
        joint: stands between the parts of a name.
        followed: keep the checkpoints together.
    """
    parts: dict[str, xr.Dataset] = {}
    for arm, dataset in arms.items():
        points = dataset["point"].values
        for point in dict.fromkeys(points.tolist()):
            part = dataset.isel(member=np.flatnonzero(points == point))
            steps = part["checkpoint"].values.tolist() if "checkpoint" in part.dims and not followed else [None]
            for step in steps:
                words = [arm if len(arms) > 1 else "", step or "", point]
                parts[joint.join(filter(None, words)) or "mean"] = part.sel(checkpoint=step) if step else part
    return parts


def floors(of_arms: Mapping[str, _Floor], name: str) -> dict[str, _Floor]:
    """Floors, ceilings or controls of arms that stand side by side, by the names that they are drawn under.

    Args:
        of_arms: each arm's, lines or numbers by its label; at least one.
        name: what they are, such as `random player`.

    Returns:
        One under `name` where those of all arms are the same but for rounding, NaN and NaN too; else each arm's own,
        its label before the name.
    """

    def with_axes(floor: Any) -> list[np.ndarray]:
        return [np.asarray(x) for x in (floor, *(floor[axis] for axis in getattr(floor, "dims", ())))]

    def same(one: np.ndarray, other: np.ndarray) -> bool:
        return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)

    first, *others = map(with_axes, of_arms.values())
    if all(len(other) == len(first) and all(map(same, first, other)) for other in others):
        return {name: next(iter(of_arms.values()))}
    return {f"{label}, {name}": floor for label, floor in of_arms.items()}


def rows(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Each number of a dataset, with its name: an array over members (and no more) for every other coordinate."""
    for words, array in places(dataset):
        yield ", ".join([described(array), *words]), array


def places(dataset: xr.Dataset, along: tuple[str, ...] = ("member",)) -> Iterator[tuple[list[str], xr.DataArray]]:
    """Each number of a dataset, with what stands at its place of every other axis: an array over the axes `along`.

    Variables without members, and those of more than `MOST_ROWS` numbers, are left out; so are those whose attribute
    `table` is 0.
    """
    for array in dataset.data_vars.values():
        if "member" not in array.dims or not array.attrs.get("table", 1):
            continue
        others = [str(dimension) for dimension in array.dims if dimension not in along]
        count = int(np.prod([array.sizes[dimension] for dimension in others], dtype=int))
        if count > MOST_ROWS:
            continue
        for place in np.ndindex(*(array.sizes[dimension] for dimension in others)):
            at = dict(zip(others, place, strict=True))
            yield [_label(array, *item) for item in at.items()], array.isel(at)


def _label(array: xr.DataArray, dimension: str, index: int) -> str:
    """What stands at a place of an axis: words as they are, numbers with the name of the axis."""
    if dimension not in array.coords:
        return f"{dimension} {index}"
    value = array.coords[dimension].values[index]
    return str(value) if isinstance(value, str) else f"{dimension} {numbers.signed(value, 'g')}"


def table(arms: Mapping[str, xr.Dataset], title: str = "", width: int = 80) -> Group:
    """What a person reads at the terminal: every number of every arm, point of the grid and checkpoint.

    What there is more of, numbers or places, stands in rows. Columns beyond the width go into a table below.

    Args:
        arms: measurements of one kind.
        title: above the table.
        width: of the terminal, in characters.
    """
    cells: dict[tuple[tuple[str, str], tuple[str, str]], str] = {}
    for part, dataset in columns(arms).items():
        for name, array in rows(dataset):
            head, estimate = described(array), of(array)
            number = (head, name[len(head) + 2 :])
            cells[number, ("", part)] = numbers.shown(estimate.mean, estimate.low, estimate.high)
    down, across = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True)) if cells else ([], [])
    if len(across) > len(down):
        cells = {(across, down): text for (down, across), text in cells.items()}
        down, across = across, down
    lines = [*_lines(down)]
    heads = {name: _head(name) for name in across}
    needs = {name: 3 + max(map(len, [*heads[name], *(cells.get((row, name), "") for row in down)])) for name in across}
    first = min(
        max((len(words) for words, _ in lines), default=0), width // 2, width - 4 - max(needs.values(), default=0)
    )
    blocks: list[tuple[Table, list[tuple[str, str]]]] = []
    left = 0
    for name in across:
        if not blocks or needs[name] > left:
            blocks.append((Table(box=box.SIMPLE_HEAD), []))
            blocks[-1][0].add_column("", width=first, overflow="fold")
            left = width - first - 4
        left -= needs[name]
        blocks[-1][0].add_column("\n".join(heads[name]), justify="right", no_wrap=True, vertical="bottom")
        blocks[-1][1].append(name)
    for shown, names in blocks:
        for words, row in lines:
            shown.add_row(words, *(cells.get((row, name), "") for name in names if row))
    return Group(*([title] if title else []), *(shown for shown, _ in blocks), _caption(arms))


def _head(name: tuple[str, str]) -> list[str]:
    """A column's name in short lines; that of a swept value may break at its "="."""
    words = ", ".join(filter(None, name)).replace("=", "= ")
    return [line.replace("= ", "=") for line in textwrap.wrap(words, _HEAD, break_long_words=False)]


def _lines(names: Iterable[tuple[str, str]]) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """What stands before each row; what several have in common in a line of its own before them."""
    last = ""
    for head, place in names:
        if head and place and head != last:
            yield head, None
        yield f"  {place}" if head and place else head or place, (head, place)
        last = head


def _bases(dataset: xr.Dataset) -> int:
    """How many bases its members started from."""
    return len(set(zip(*(dataset[name].values.tolist() for name in ("base", "pretraining")), strict=True)))


def _caption(arms: Mapping[str, xr.Dataset]) -> str:
    """Whose numbers they are."""

    def count(name: str, values: Iterable[int]) -> str:
        few, many = min(values), max(values)
        return f"{few if few == many else f'{few} to {many}'} {name}{'s' * (many > 1)}"

    members = count("member", [dataset.sizes["member"] for dataset in arms.values()])
    bases = count("base", [_bases(dataset) for dataset in arms.values()])
    return f"mean over {members} of {bases}; 95 % interval where {INDEPENDENT} or more are independent"
