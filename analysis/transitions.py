"""Where along training something happens: numbers of checkpoints, read at a level of another, and the places of bends.

Arrays are of one arm, float[checkpoint, member] in the order of training. Members are not pooled: each gives a number
of its own, so that intervals speak of members and bases. NaN is said where a member never comes there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr


def at(values: xr.DataArray, along: xr.DataArray, level: xr.DataArray | float) -> xr.DataArray:
    """`values` of each member when `along` first came to `level`, straight between checkpoints; [member, …].

    Args:
        values: float[checkpoint, member, …].
        along: float[checkpoint, member].
        level: what `along` must come to, one for all or float[member].
    """
    x, values = _arrays(along)[0], values.transpose("checkpoint", "member", ...)
    y = np.moveaxis(values.values.astype(float), 1, 0)
    there = np.full(y[:, 0].shape, np.nan)
    for member, stop in enumerate(np.broadcast_to(np.asarray(level, float), len(y))):
        place, value = x[:, member], y[member]
        reached = np.flatnonzero(place >= stop)
        if not len(reached):
            continue
        after = int(reached[0])
        before = max(after - 1, 0)
        share = 1.0 if after == before else (stop - place[before]) / (place[after] - place[before])
        there[member] = value[after] if share == 1.0 else (1 - share) * value[before] + share * value[after]
    return values.isel(checkpoint=0, drop=True).copy(data=there)


def less(one: tuple[xr.DataArray, xr.DataArray], other: tuple[xr.DataArray, xr.DataArray]) -> xr.DataArray:
    """What one arm has more of than another where each first came as far as both do; [member, …].

    Args:
        one, other: (`values`, `along`) of `at`, of the same members.
    """
    ways = [along.max("checkpoint") for _, along in (one, other)]
    level = xr.where(ways[0] < ways[1], ways[0], ways[1])
    return at(*one, level) - at(*other, level)


def marginal(part: xr.DataArray, whole: xr.DataArray, share: float = 0.5) -> xr.DataArray:
    """Where of what `whole` still gains less than `share` goes into `part`: that value of `whole`, [member].

    The slope is that of the least concave line above the points from (0, 0) on, so that noise of one checkpoint is no
    transition. A member whose slope is never as low has its last value: at least so much.
    """
    from scipy import optimize  # a third of a second, which commands that judge nothing do without

    def one(y, x):
        x, y = _from_origin(x, y)
        if len(x) == 1:
            return 0.0
        steps = np.maximum(np.diff(x), 1e-12)
        slopes = optimize.isotonic_regression(np.diff(y) / steps, weights=steps, increasing=False).x
        return x[np.argmax(np.append(slopes, -np.inf) < share)]

    return part.isel(checkpoint=0, drop=True).copy(data=_each(part, whole, one))


def exceeds(values: xr.DataArray, bounds: xr.DataArray, along: xr.DataArray) -> xr.DataArray:
    """`along` at the first checkpoint from which on `values` stay above `bounds`, [member]; NaN where they do not.

    The three are float[checkpoint, member], the checkpoints matched.
    """
    above, x = _arrays(values > bounds, along)
    stays = np.cumprod(above[::-1], axis=0)[::-1].astype(bool)
    reached = np.where(stays.any(axis=0), np.take_along_axis(x, stays.argmax(axis=0)[None], axis=0)[0], np.nan)
    return along.isel(checkpoint=0, drop=True).copy(data=reached)


def bend(part: xr.DataArray, whole: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Segmented regression of `part` on `whole` through the origin: where the line breaks, and what BIC gains by it.

    Returns:
        The break, in units of `whole`, and BIC of one line less BIC of two, float[member] each: 6 are strong evidence
        (Kass and Raftery, J. Am. Stat. Assoc. 90, 1995), NaN where there are too few checkpoints to tell.
    """

    def fitted(y, x):
        straight = _error(x[:, None], y)
        breaks = [(_error(np.stack([x, np.maximum(x - place, 0)], axis=1), y), float(place)) for place in x[1:-1]]
        error, where = min(breaks, default=(straight, np.nan))
        return where, _bic(straight, 1, len(x)) - _bic(error, 3, len(x))

    member = part.isel(checkpoint=0, drop=True)
    where, gain = _each(part, whole, lambda y, x: fitted(*_sorted(x, y))).T
    return member.copy(data=where), member.copy(data=gain)


def apart(arms: Sequence[tuple[xr.DataArray, xr.DataArray]], degree: int = 3) -> xr.DataArray:
    """Whether `part` is one curve of `whole` for all arms: BIC of one curve less BIC of one for each arm, float[base].

    Curves are polynomials in √whole through the origin. From 6 on the arms have curves of their own, as in `bend`; NaN
    where an arm has too few checkpoints to tell.

    Args:
        arms: (part, whole) of each, float[checkpoint, member], whose members are the same bases.
        degree: of the polynomials.
    """

    def columns(x):
        return np.stack([np.sqrt(np.maximum(x, 0)) ** power for power in range(1, degree + 1)], axis=1)

    gains = []
    for member in range(arms[0][0].sizes["member"]):
        points = [tuple(a.isel(member=member).values.astype(float) for a in arm) for arm in arms]
        every = [np.concatenate(side) for side in zip(*points, strict=True)]
        one = _bic(_error(columns(every[1]), every[0]), degree, len(every[0]))
        errors = sum(_error(columns(x), y) for y, x in points)
        gains.append(one - _bic(errors, degree * len(points), len(every[0])))
    return arms[0][0].isel(checkpoint=0, drop=True).copy(data=np.array(gains))


def _arrays(*arrays: xr.DataArray) -> list[np.ndarray]:
    """Their values, float[checkpoint, member]."""
    return [array.transpose("checkpoint", "member").values.astype(float) for array in arrays]


def _each(values: xr.DataArray, along: xr.DataArray, one: Callable[[np.ndarray, np.ndarray], Any]) -> np.ndarray:
    """`one(values, along)` of every member, float[M, ...]."""
    y, x = _arrays(values, along)
    return np.array([one(y[:, member], x[:, member]) for member in range(x.shape[1])], float)


def _sorted(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x, kind="stable")
    return y[order], x[order]


def _from_origin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points in order of x, those above 0, after (0, 0)."""
    y, x = _sorted(x, y)
    kept = x > 0
    return np.concatenate([[0.0], x[kept]]), np.concatenate([[0.0], y[kept]])


def _error(columns: np.ndarray, y: np.ndarray) -> float:
    """Sum of squared residuals of a least-squares fit; NaN where it goes through any points."""
    if np.count_nonzero(columns.any(axis=1)) <= columns.shape[1]:
        return np.nan
    return float(np.square(y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]).sum())


def _bic(error: float, parameters: int, points: int) -> float:
    return points * np.log(max(error, 1e-12) / points) + parameters * np.log(points)
