"""The figure of a measurement that has none of its own: what its table shows, as rows or followed through training."""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr

from analysis import estimates
from analysis.figures.panels import Curve, Curves, Panel, Rows
from ground.estimates import Estimate

_FOLLOWED = 3
"""So many checkpoints of one stage make a curve."""
_MOST = 12
"""Panels of a figure; the table has the rest."""


def panels(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    """A panel of rows for each variable, or of curves for each number that is followed through training.

    Args:
        arms: what one measurement has made of each run, by their names.
    """
    stages = [one["stage"].values.tolist() for one in arms.values() if "checkpoint" in one.dims]
    for stage in dict.fromkeys(itertools.chain(*stages)):
        if all(names.count(stage) >= _FOLLOWED for names in stages):
            return _curves(arms, stage)[:_MOST]
    return _rows(arms)[:_MOST]


def _rows(arms: Mapping[str, xr.Dataset]) -> list[Panel]:
    labels = {str(name): estimates.described(array) for one in arms.values() for name, array in one.data_vars.items()}
    values: dict[str, dict[str, Estimate]] = {name: {} for name in labels}
    columns = estimates.columns(arms, "\n")
    names = _apart(columns)
    for column, dataset in columns.items():
        for variable in dataset.data_vars:
            for number, array in estimates.rows(dataset[[variable]]):
                place = number.removeprefix(labels[str(variable)]).removeprefix(", ")
                words = [place, names[column]]
                values[str(variable)][", ".join(filter(None, words)) or column] = estimates.of(array)
    return [Rows(rows, labels[variable]) for variable, rows in values.items() if rows]


def _apart(columns: Iterable[str]) -> dict[str, str]:
    """By column what sets it apart from the others; nothing where it is alone."""
    parts = {column: column.split("\n") for column in columns}
    shared = set.intersection(*map(set, parts.values()))
    return {column: ", ".join(word for word in words if word not in shared) for column, words in parts.items()}


def _curves(arms: Mapping[str, xr.Dataset], stage: str) -> list[Panel]:
    curves: dict[str, dict[str, Curve]] = {}
    for column, dataset in estimates.columns(arms, followed=True).items():
        part = dataset.isel(checkpoint=np.flatnonzero(dataset["stage"].values == stage))
        steps = [dict(estimates.rows(part.isel(checkpoint=step))) for step in range(part.sizes["checkpoint"])]
        for number in steps[0]:
            values = np.stack([step[number].values for step in steps])
            curves.setdefault(number, {})[column] = Curve(part["update"].values, values, part["unit"].values)
    return [Curves(lines, f"update of {stage}", label) for label, lines in curves.items()]
