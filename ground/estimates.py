"""What a measurement comes to: one number with its interval, its members and what it means."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from ground import statistics
from ground.statistics import INDEPENDENT as INDEPENDENT


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over a population and how far to trust it."""

    mean: float
    low: float
    """Lower end of the 95 % interval; NaN below `INDEPENDENT` independent units."""
    high: float
    """Its upper end."""
    members: int
    """Independent units behind it."""
    meaning: str = ""
    """What it is, with its unit."""
    values: tuple[float, ...] = ()
    """Of each member, NaN where it has none."""
    control: str = ""
    """Name of the estimate to read beside it; empty where it is a difference to its control already."""
    error: float = np.nan
    """Standard error of the mean."""
    degrees: float = np.nan
    """Degrees of freedom of that error, for Student's t."""
    skew: float = 0.0
    """Skewness of the mean, which moves the end of the interval on that side further out: `statistics.Mean`."""

    @classmethod
    def of(cls, values: ArrayLike, meaning: str = "", control: str = "", units: ArrayLike | None = None) -> "Estimate":
        """Mean over members.

        Args:
            values: float[M]; a member that is not finite does not count.
            meaning: what it is, with its unit.
            control: name of the estimate to read beside it.
            units: int[M], a label per member. Members of one label (exact duplicates, or members that share a base)
                are averaged first and count as one. By default each stands for itself.

        Raises:
            ValueError: there is not one label for each member.
        """
        members = np.asarray(values, np.float64).ravel()
        labels = None if units is None else np.asarray(units)
        return cls._from(statistics.mean_of(members, units=labels), members, meaning, control)

    @classmethod
    def crossed(
        cls, values: ArrayLike, meaning: str = "", control: str = "", units: ArrayLike | None = None
    ) -> "Estimate":
        """Mean over members and mazes, both of which vary: `statistics.crossed_mean`.

        Args:
            values: float[M, N], of member and maze. A maze on which no member is finite does not count, nor does a
                member that is not finite on every other maze.
            meaning: what it is, with its unit.
            control: name of the estimate to read beside it.
            units: int[M], as in `of`.

        Raises:
            ValueError: there is not one label for each member.
        """
        cells = np.asarray(values, np.float64)
        finite = np.isfinite(cells)
        mazes = finite.any(axis=0)
        members = finite[:, mazes].all(axis=1) & mazes.any()
        means = np.full(len(cells), np.nan)
        if members.any():
            means[members] = cells[members][:, mazes].mean(axis=1)
        of_members = cls.of(means, meaning, control, units)
        if not of_members.members:
            return of_members
        labels = None if units is None else np.asarray(units)[members]
        return cls._from(statistics.crossed_mean(cells[members][:, mazes], labels), means, meaning, control)

    @classmethod
    def _from(cls, mean: statistics.Mean, values: np.ndarray, meaning: str, control: str) -> "Estimate":
        low, high = mean.interval()
        return cls(
            float(mean.mean),
            float(low),
            float(high),
            int(mean.units),
            meaning,
            tuple(values.tolist()),
            control,
            float(mean.error),
            float(mean.degrees),
            float(mean.skew),
        )

    def p_value(self, bound: float = 0.0) -> float:
        """Two-sided p of the mean against a bound; NaN below `INDEPENDENT` independent units."""
        numbers = (np.asarray(x, np.float64) for x in (self.mean, self.error, self.degrees, self.skew))
        return float(statistics.Mean(*numbers, units=np.asarray(self.members)).p_value(bound))
