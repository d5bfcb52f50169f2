"""Floors, ceilings and nulls beside what is measured: where an axis ends, and labels that never cover each other."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from analysis.figures import style
from ground import numbers

_GAP = 0.03
"""Between a line and its words, inches."""
_DASHES = (style.DASHED, style.DOTTED, style.MIXED, (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)))


class Mark(NamedTuple):
    """A line across a panel."""

    value: float
    words: str
    """Its name, and its value if that does not name it."""
    colour: str
    dash: object


def of(values: Mapping[str, float], percent: bool) -> list[Mark]:
    """Marks by their names, those without a number left out; a known arm has its own colour."""
    scale = 100.0 if percent else 1.0
    finite = {name: value for name, value in values.items() if np.isfinite(value)}
    shown = {name: _short(numbers.shown(value, percent=percent)) for name, value in finite.items()}
    return [
        Mark(
            scale * value,
            name if shown[name] in name.split() else f"{name} {shown[name]}",
            known.colour if (known := style.known(name)) else style.INK,
            known.dash if known else _DASHES[index % len(_DASHES)],
        )
        for index, (name, value) in enumerate(finite.items())
    ]


def _short(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number and "e" not in number else number


def fit(
    axes: Axes,
    side: str,
    data: np.ndarray,
    marks: Iterable[Mark] = (),
    log: bool = False,
    pad: float = 0.06,
    least: float = 0.4,
    flat: float = 0.0,
) -> None:
    """End an axis (`x` or `y`) where the data do, or as far out as marks reach without pressing the data flat.

    Args:
        axes: where.
        side: `x` or `y`.
        data: float[N].
        marks: the nearest ones are reached.
        log: whether the axis is logarithmic, and has no marks.
        pad: room beyond either end, as a share of the axis.
        least: share of the axis that the data keep.
        flat: share of the data's size below which differences are none; the axis is at least so long.
    """
    data = data[np.isfinite(data) & ((data > 0) | (not log))]
    near = (np.log10 if log else np.asarray)(data if len(data) else np.ones(1))
    low, high = float(near.min()), float(near.max())
    span = high - low
    for value in sorted((mark.value for mark in marks), key=lambda value: max(low - value, value - high)):
        wider = min(low, value), max(high, value)
        if span >= least * (wider[1] - wider[0]) or not span:
            low, high = wider
    short = flat * max(abs(low), abs(high)) - (high - low)
    low, high = low - max(short, 0) / 2, high + max(short, 0) / 2
    room = pad * (high - low) if high > low else 0.5 if log else 0.1 * abs(low) or 0.5
    ends = np.array([low - room, high + room])
    getattr(axes, f"set_{side}lim")(10**ends if log else ends)


def place(axes: Axes, side: str, value: float) -> float:
    """Where a value stands on a linear axis, as a share of its length; beyond 0 or 1 where the axis does not reach."""
    low, high = getattr(axes, f"get_{side}lim")()
    return float((value - low) / (high - low))


def draw(axes: Axes, side: str, marks: Iterable[Mark]) -> None:
    """The lines of the marks that the axis reaches."""
    line = axes.axvline if side == "x" else axes.axhline
    for mark in marks:
        if 0 <= place(axes, side, mark.value) <= 1:
            line(mark.value, color=mark.colour, linestyle=mark.dash, linewidth=1.0, zorder=1)


def beside(axes: Axes, marks: list[Mark], width: float, height: float) -> None:
    """Name horizontal lines right of the axes, each as near its line as the others let it.

    Args:
        axes: with their limits set.
        marks: their words are wrapped.
        width: of the labels, inches.
        height: of the axes, inches.
    """
    if not marks:
        return
    wanted = np.array([place(axes, "y", mark.value) for mark in marks])
    words = [
        style.wrapped(("↑ " if at > 1 else "↓ " if at < 0 else "") + mark.words, width)
        for mark, at in zip(marks, wanted, strict=True)
    ]
    sizes = np.array([style.tall(text) for text in words])
    for mark, text, start, end in zip(
        marks, words, height * np.clip(wanted, 0, 1), spread(height * np.clip(wanted, 0, 1), sizes, 0, height),
        strict=True,
    ):  # fmt: skip
        axes.annotate(
            text, (1, start / height), (11, 72 * (end - start)), xycoords="axes fraction", textcoords="offset points",
            va="center", linespacing=1.1, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": mark.colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def above(axes: Axes, marks: list[Mark], width: float) -> None:
    """Name vertical lines above the axes, `width` inches wide, like flags on their poles, each on lines of its own."""
    level = 0.03
    for mark in sorted(marks, key=lambda mark: -mark.value):
        share = place(axes, "x", mark.value)
        words = ("← " if share < 0 else "") + mark.words + (" →" if share > 1 else "")
        text, at = style.wrapped(words, width - 2 * _GAP), width * float(np.clip(share, 0, 1))
        size, top = style.wide(text), level + style.tall(text)
        inside = [start for start in (at + _GAP, at - _GAP - size) if 0 <= start <= width - size]
        start = [*inside, float(np.clip(at - size / 2, 0, max(width - size, 0)))][0]
        pole = {"arrowstyle": "-", "color": mark.colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        reached = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        axes.annotate("", (at / width, 1), (0, 72 * (top if inside else level)), arrowprops=pole, zorder=1, **reached)
        axes.annotate(
            text, (at / width, 1), (72 * (start - at), 72 * level), va="bottom", linespacing=1.1, bbox=style.ON_WHITE,
            **reached,
        )  # fmt: skip
        level = top


def spread(wanted: np.ndarray, heights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Centres for labels that never overlap and move as little as that allows, in the least-squares sense.

    Args:
        wanted: where each centre would best be, float[N], N above 0.
        heights: of the labels, float[N].
        low: where the lowest label may begin.
        high: where the highest may end; ignored if all of them together need more room.

    Returns:
        float[N], in the order of `wanted`.
    """
    from scipy import optimize  # a third of a second, which commands that draw nothing do without

    order = np.argsort(wanted, kind="stable")
    sizes = heights[order]
    stacked = np.cumsum(sizes) - sizes / 2
    # With the stack taken off, labels may touch but not change places.
    bases = optimize.isotonic_regression(wanted[order] - stacked).x
    places = np.empty(len(wanted))
    places[order] = np.clip(bases, low, max(high - float(sizes.sum()), low)) + stacked
    return places
