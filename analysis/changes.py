"""An update of a population, measured in every way at once: what the command `updates` reports and draws."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis import masks, overlaps, spectra, updates
from analysis.weights import Matrices
from ground import statistics

DENSITY = 0.10
"""Share of the parameters, those that moved farthest, at which members are compared."""
MASKS = {
    "farthest_10_percent": "the 10 % of the parameters that moved farthest, or all that moved if those are fewer",
    "changed_bf16": "parameters that differ in bfloat16",
}
"""Masks whose place and overlap are measured."""

Measures = dict[str, dict[str, np.ndarray]]
"""Kind, or name of a matrix → measure → float64[M]."""


@dataclasses.dataclass(frozen=True)
class Update:
    """An update of a population and what was measured of it."""

    before: Matrices
    """Where it started."""
    masks: Mapping[str, Matrices]
    """As in `MASKS`."""
    curves: Mapping[str, np.ndarray]
    """Kind, or name of a matrix → float64[M, views, scales, tolerances]."""
    fractions: Measures
    """`updates.DEFINITIONS` and `updates.CONCENTRATIONS`, per kind and per matrix."""
    shape: Measures
    """`spectra.MEASURES` and the place of each mask, per matrix of two dimensions; of a kind the mean over matrices."""


def measure(before: Matrices, after: Matrices, seed: int = 0) -> Update:
    """Everything that an update is measured by, except for overlaps.

    Args:
        before, after: from `updates.parts`, of one population.
        seed: of the draw between equally far moves at the border of the mask. Updates that are compared need
            different ones; a common order would make masks overlap that have nothing in common.
    """
    counted, sizes, kinds = updates.curves(before, after), updates.sizes(before), updates.kinds(before)
    farthest = masks.largest(before, after, DENSITY, seed)
    farthest = {name: x & (before[name] != after[name]) for name, x in farthest.items()}
    found = dict(zip(MASKS, (farthest, masks.changed(before, after)), strict=True))
    curves, fractions = {}, {}
    for key, names in (kinds | {name: [name] for name in before}).items():
        curves[key] = updates.fraction(counted, sizes, names)
        fractions[key] = updates.defined(curves[key]) | updates.concentration(before, after, names)
    shape: Measures = {name: spectra.shape(x, after[name]) for name, x in before.items() if x.ndim == 3}
    for name, place in spectra.location(before, found).items():
        shape[name] |= place
    of_kind = {kind: [shape[name] for name in names if name in shape] for kind, names in kinds.items()}
    for kind, matrices in of_kind.items():
        if matrices:
            shape[kind] = {key: _mean_defined([one[key] for one in matrices]) for key in matrices[0]}
    return Update(before, found, curves, fractions, shape)


def compare(
    first: Update, second: Update, members: Sequence[int] | None = None, *, same_member: bool = False
) -> dict[str, Any]:
    """Overlap of the masks of two updates.

    Args:
        first, second: the updates. Every member of the one is compared with every member of the other.
        members: where both are one update, the members whose pairs are meant; none is paired with itself.
        same_member: compare a member of the one only with the same member of the other.

    Returns:
        Mask → kind → `seen` and each chance → way to express it → mean over pairs, `seen` with its interval; `excess`,
        the Jaccard index seen minus that of the finest chance; `pairs`, the Jaccard index of every pair.
    """
    everyone = np.arange(len(next(iter(first.before.values()))))
    rows = everyone if members is None else np.asarray(members)

    def chosen(x: np.ndarray) -> np.ndarray:
        """The pairs that are meant: [members, members], [members, 1] or all."""
        return x[rows[:, None], rows] if members is not None else x[rows, rows][:, None] if same_member else x

    summary, mean = (overlaps.across, np.mean) if members is None else (overlaps.between, overlaps.mean)
    found: dict[str, Any] = {}
    for mask in MASKS:
        parts = overlaps.tallies(first.masks[mask], second.masks[mask], first.before, second.before)
        kinds = updates.kinds(first.before)
        every = [
            {
                how: {name: chosen(x) for name, x in table.items()}
                for how, table in overlaps.total(parts, of).overlaps().items()
            }
            for of in kinds.values()
        ]
        excess = [tables["seen"]["jaccard"] - tables["weight_matched"]["jaccard"] for tables in every]
        flat = [x for tables, more in zip(every, excess, strict=True) for x in (*tables["seen"].values(), more)]
        names = (*overlaps.OVERLAPS, "excess")
        ends = np.stack(summary(np.stack(flat)), axis=-1).reshape(len(kinds), len(names), 3)  # one bootstrap for all
        found[mask] = {}
        for kind, tables, seen in zip(kinds, every, ends, strict=True):
            told = {name: estimate(*values) for name, values in zip(names, seen, strict=True)}
            jaccard = tables["seen"]["jaccard"]
            found[mask][kind] = {
                "excess": told.pop("excess"),
                "seen": told,
                **{
                    chance: {name: float(mean(tables[chance][name])) for name in overlaps.OVERLAPS}
                    for chance in overlaps.CHANCES
                },
                "pairs": jaccard.ravel() if members is None else jaccard[np.triu_indices(len(rows), 1)],
            }
    return found


def estimate(mean: float, low: float, high: float) -> dict[str, float]:
    """A mean with the ends of its interval, as reports hold it."""
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def estimates(found: Mapping[str, Mapping[str, np.ndarray]], members: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The mean over some members, with its bootstrap interval, of every measure of every kind.

    One member has no interval.
    """
    keys = [(kind, name) for kind, measures in found.items() for name in measures]
    values = np.stack([found[kind][name][list(members)] for kind, name in keys])
    low, high = interval(values)
    result: dict[str, dict[str, Any]] = {kind: {} for kind in found}
    for (kind, name), *ends in zip(keys, values.mean(axis=1), low, high, strict=True):
        result[kind][name] = estimate(*ends)
    return result


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean over members, values float64[..., M]; NaN for one member."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan), np.full(values.shape[:-1], np.nan)
    return statistics.bootstrap_interval(values, statistic=np.mean)


def _mean_defined(values: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over matrices of float64[M], leaving out those in which the measure is undefined."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    return np.where(counts > 0, np.where(known, stacked, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)
