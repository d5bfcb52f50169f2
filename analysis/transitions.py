"""Where along training something happens: numbers of checkpoints, read at a level of another, and the places of bends.

Arrays are of one arm, float[checkpoint, member] in the order of training. Members are not pooled: each gives a number
of its own, so that intervals speak of members and bases. NaN is said where a member never comes there.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

LEAST_GAIN = 6.0
"""Difference of BIC from which a break or curves of their own count as shown (Kass and Raftery 1995: strong)."""


def at(values: xr.DataArray, along: xr.DataArray, level: xr.DataArray | float) -> xr.DataArray:
    """`values` of each member when `along` first came to `level`, straight between checkpoints; [member, …].

    Args:
        values: float[checkpoint, member, …].
        along: float[checkpoint, member].
        level: what `along` must come to, one for all or float[member].
    """
    x, values = _arrays(along)[0], values.transpose("checkpoint", "member", ...)
    y = values.values.astype(float)
    return values.isel(checkpoint=0, drop=True).copy(data=first_reached(x, y, level))


def less(one: tuple[xr.DataArray, xr.DataArray], other: tuple[xr.DataArray, xr.DataArray]) -> xr.DataArray:
    """What one arm has more of than another where each first came as far as both do; [member, …].

    Args:
        one, other: (`values`, `along`) of `at`, of the same members.
    """
    ways = [along.max("checkpoint") for _, along in (one, other)]
    level = xr.where(ways[0] < ways[1], ways[0], ways[1])
    return at(*one, level) - at(*other, level)


def first_reached(x: np.ndarray, values: np.ndarray, at: ArrayLike) -> np.ndarray:
    """What each member had when it first came to `at`, straight between checkpoints; float64[M, …].

    Args:
        x: how far it was at each checkpoint, float[C, M].
        values: what it had there, float[C, M, …].
        at: how far, one for all or float[M]; a member that has never come there has NaN.
    """
    there = np.full(values.shape[1:], np.nan)
    stops = np.broadcast_to(np.asarray(at, float), x.shape[1:])
    for member, (place, value, stop) in enumerate(zip(x.T, np.moveaxis(values, 1, 0), stops, strict=True)):
        reached = np.flatnonzero(place >= stop)
        if not len(reached):
            continue
        after = int(reached[0])
        before = max(after - 1, 0)
        share = 1.0 if after == before else (stop - place[before]) / (place[after] - place[before])
        there[member] = value[after] if share == 1.0 else (1 - share) * value[before] + share * value[after]
    return there


def marginal(part: xr.DataArray, whole: xr.DataArray, share: float = 0.5) -> xr.DataArray:
    """Where of what `whole` still gains less than `share` goes into `part`: that value of `whole`, [member].

    The slope is that of the least concave line above the points from (0, 0) on, so that noise of one checkpoint is no
    transition. A member whose slope is never as low has its last value: at least so much.
    """

    def one(y, x):
        x, y = _from_origin(x, y)
        hull = [0]
        for place in range(1, len(x)):
            while len(hull) > 1 and _slope(x, y, hull[-2], place) >= _slope(x, y, hull[-2], hull[-1]):
                hull.pop()
            hull.append(place)
        for first, second in itertools.pairwise(hull):
            if _slope(x, y, first, second) < share:
                return x[first]
        return x[-1]

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
        The break, in units of `whole`, and BIC of one line less BIC of two, float[member] each.
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

    Curves are polynomials in √whole through the origin. Above `LEAST_GAIN` the arms have curves of their own.

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


def _slope(x: np.ndarray, y: np.ndarray, first: int, second: int) -> float:
    return (y[second] - y[first]) / max(x[second] - x[first], 1e-12)


def _error(columns: np.ndarray, y: np.ndarray) -> float:
    """Sum of squared residuals of a least-squares fit."""
    return float(np.square(y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]).sum())


def _bic(error: float, parameters: int, points: int) -> float:
    return points * np.log(max(error, 1e-12) / points) + parameters * np.log(points)
