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
from ground import statistics

STRATUM = 32
"""Fewest parameters of similar magnitude that are matched with each other."""
STRATA = 256
"""Most strata of magnitude in a matrix."""
CHANCES = {
    "independent": "both masks redrawn over all parameters of the kind",
    "within_matrix": "both masks redrawn within each matrix",
    "weight_matched": f"both redrawn within each matrix among weights of similar magnitude (up to {STRATA} quantiles)",
}
"""What the overlaps are compared with."""
OVERLAPS = {
    "o1": "|A ∩ B| / |A| (arXiv 2505.11711, section 5)",
    "o2": "|A ∩ B| / |B|",
    "jaccard": "|A ∩ B| / |A ∪ B|",
}
"""How an intersection is expressed."""


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


Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Mean over pairs and both ends of its bootstrap interval, float64[...]; NaN for an interval that cannot be had."""


def mean(values: np.ndarray) -> np.ndarray:
    """Mean of float64[..., M, M] over all pairs of different members, both orders; NaN for one member."""
    different = ~np.eye(values.shape[-1], dtype=bool)
    return values[..., different].mean(axis=-1) if different.any() else np.full(values.shape[:-2], np.nan)


def between(values: np.ndarray) -> Estimate:
    """`mean` and its interval.

    Pairs that share a member are not independent, so members are resampled, not pairs; a member drawn twice is not
    paired with itself. Fewer than four members have no interval: their pairs do not show how pairs vary.

    Args:
        values: float64[..., M, M].
    """
    members, estimate = values.shape[-1], mean(values)
    if members < 4:
        return estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)

    def resampled(draw: np.ndarray, axis: int) -> np.ndarray:
        chosen = draw.astype(int)
        different = chosen[:, None] != chosen[None]
        # A draw of one member alone has no pairs and says nothing; the estimate itself stands in.
        return values[..., chosen[:, None], chosen[None]][..., different].mean(axis=-1) if different.any() else estimate

    return estimate, *statistics.bootstrap_interval(np.arange(members), statistic=resampled)


def across(values: np.ndarray) -> Estimate:
    """Mean of float64[..., M, N] over all pairs of a member of each of two populations, and its interval.

    The interval is over the members of the first.
    """
    rows = values.mean(axis=-1)
    estimate = rows.mean(axis=-1)
    if rows.shape[-1] < 2:
        return estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    return estimate, *statistics.bootstrap_interval(rows, statistic=np.mean)
