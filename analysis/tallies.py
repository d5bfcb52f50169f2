"""Do different seeds, algorithms or stages change the same parameters? Overlaps of masks against three chances.

The chance overlap is what remains when each mask is redrawn with the density it has in a stratum of the parameters:
everything together, each matrix, or parameters of one matrix and a similar magnitude. A finer stratum explains more:
two updates that both avoid large weights overlap by that alone. The expected intersection is the sum over parameters
of the product of the two densities, the mean of a hypergeometric law in each stratum.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.weights import Matrices

STRATUM = 32
"""Fewest parameters of similar magnitude that are matched with each other."""
STRATA = 256
"""Most strata of magnitude in a matrix."""
CHANCES = {
    "independent": "by chance, anywhere",
    "within_matrix": "by chance, in the same matrix",
    "weight_matched": "by chance, in the same matrix at a similar |w|",
}
"""What overlaps are compared with: both masks redrawn over all parameters of the kind, within each matrix, and there
among weights of similar magnitude."""
OVERLAPS = {"o1": "|A ∩ B| / |A|", "o2": "|A ∩ B| / |B|", "jaccard": "|A ∩ B| / |A ∪ B|"}
"""How an intersection is expressed; the first two as in arXiv 2505.11711, section 5."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """Counts of a pair of masks over some parameters; tallies of disjoint sets of parameters add up."""

    size: int
    """Parameters."""
    first: np.ndarray
    """float64[M], parameters in each mask of the first population."""
    second: np.ndarray
    """float64[N], and of the second."""
    seen: np.ndarray
    """float64[M, N], parameters in both."""
    within_matrix: np.ndarray
    """float64[M, N], expected by chance within each matrix."""
    weight_matched: np.ndarray
    """float64[M, N], expected by chance within each stratum of magnitude."""

    def __add__(self, other: "Tally") -> "Tally":
        names = [field.name for field in dataclasses.fields(self)]
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def independent(self) -> np.ndarray:
        """float64[M, N], expected by chance over all parameters."""
        return np.outer(self.first, self.second) / self.size

    def overlaps(self) -> dict[str, dict[str, np.ndarray]]:
        """`seen` and each of `CHANCES` → each of `OVERLAPS` → float64[M, N]; NaN where a mask is empty.

        o1 and o2 by chance are expectations. The Jaccard index by chance is that of the expected intersection; it
        lies below its own expectation by a term of the order of one over the size of the masks.
        """
        return {name: self._express(getattr(self, name)) for name in ("seen", *CHANCES)}

    def _express(self, both: np.ndarray) -> dict[str, np.ndarray]:
        first, second = np.broadcast_arrays(self.first[:, None], self.second[None])
        denominators = (first, second, first + second - both)
        some = (first > 0) & (second > 0)
        return {
            name: np.where(some, both / np.where(some, denominator, 1.0), np.nan)
            for name, denominator in zip(OVERLAPS, denominators, strict=True)
        }


def tally(first: np.ndarray, second: np.ndarray, first_weights: np.ndarray, second_weights: np.ndarray) -> Tally:
    """Compare every mask of one population with every mask of another, in one matrix.

    Args:
        first, second: bool[M, ...] and bool[N, ...].
        first_weights, second_weights: of the same shapes, the weights by whose magnitude masks are matched: those
            that each update started from.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (first, second))
    size = a.shape[1]
    densities = [_density(*pair) for pair in ((a, first_weights), (b, second_weights))]
    return Tally(
        size=size,
        first=a.sum(axis=1),
        second=b.sum(axis=1),
        seen=a @ b.T,
        within_matrix=np.outer(a.sum(axis=1), b.sum(axis=1)) / size,
        weight_matched=densities[0] @ densities[1].T,
    )


def tallies(first: Matrices, second: Matrices, first_weights: Matrices, second_weights: Matrices) -> dict[str, Tally]:
    """`tally` of every matrix."""
    return {name: tally(first[name], second[name], first_weights[name], second_weights[name]) for name in first}


def total(parts: Mapping[str, Tally], names: Sequence[str]) -> Tally:
    """The tally of some matrices together."""
    return functools.reduce(operator.add, [parts[name] for name in names])


def strata(weights: np.ndarray) -> np.ndarray:
    """The stratum of magnitude of each weight of one member's matrix: quantiles of |w| of equal size, int64[n]."""
    flat = np.abs(weights.astype(np.float32)).ravel()
    count = int(np.clip(len(flat) // STRATUM, 1, STRATA))
    rank = np.empty(len(flat), np.int64)
    rank[np.argsort(flat, kind="stable")] = np.arange(len(flat))
    return rank * count // len(flat)


def _density(mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each parameter the share of its stratum that the mask holds, float64[M, n]."""
    rows = []
    for row, weight in zip(mask, weights, strict=True):
        stratum = strata(weight)
        rows.append((np.bincount(stratum, row) / np.bincount(stratum))[stratum])
    return np.stack(rows)


def of_members(pairs: np.ndarray, points: np.ndarray, units: np.ndarray | None = None) -> np.ndarray:
    """What each member stands for in the mean over all pairs of different members of one point of the grid.

    Pairs that share a member are not independent, so their spread says too little of how their mean varies: the
    variance of such a mean is four times that of the members' own means (Hoeffding, Ann. Math. Stat. 19, 1948). These
    are the jackknife's pseudo-values, their own means with the distance from the mean of all so enlarged. Their mean is
    the mean over pairs, and its interval over members is one that holds that.

    Args:
        pairs: float64[..., M, M]; NaN in a pair makes its whole point NaN.
        points: [M], equal for members of one point.
        units: int[M], equal for exact twins, which count as one and are not compared. By default there are none.

    Returns:
        float64[..., M]; a member alone has NaN.
    """
    result = np.full(pairs.shape[:-1], np.nan)
    units = np.arange(len(points)) if units is None else units
    for point in np.unique(points):
        (everyone,) = np.nonzero(points == point)
        _, first, again = np.unique(units[everyone], return_index=True, return_inverse=True)
        group, count = everyone[first], len(first)
        if count < 2:
            continue
        different = ~np.eye(count, dtype=bool)
        own = np.where(different, pairs[..., group[:, None], group], 0.0).sum(axis=-1) / (count - 1)
        mean = own.mean(axis=-1, keepdims=True)
        spread = 2 * (count - 1) / (count - 2) if count > 2 else 0.0
        result[..., everyone] = (mean + spread * (own - mean))[..., again]
    return result
