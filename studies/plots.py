"""What the figures of studies share: an estimate per row, its members, its interval, and the null beside it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis import drawing
from studies.claims import Estimate

Style = tuple[str, str]
"""Colour and marker."""


def rows(
    axes: Axes,
    shown: Sequence[tuple[str, Estimate, Style]],
    scale: float = 1.0,
    digits: str = ".2f",
    nulls: Mapping[str, float] | None = None,
) -> None:
    """Estimates below each other: dots are members, the bar is the 95 % interval, the marker the mean.

    Args:
        axes: with its names set.
        shown: label, estimate, colour and marker, from top to bottom; one that was not made stays an empty row.
        scale: what values are multiplied by, 100 for per cent.
        digits: format of the mean's label.
        nulls: label → value of a vertical line.
    """
    count = len(shown)
    for index, (_, found, (colour, marker)) in enumerate(shown):
        place = count - 1 - index
        if not found.members:
            continue
        values = scale * np.array(found.values, np.float64)
        axes.plot(values, np.full(len(values), place), ".", color=colour, alpha=0.45, markersize=6, markeredgewidth=0)
        if np.isfinite([found.low, found.high]).all():
            ends = [scale * found.low, scale * found.high]
            axes.plot(ends, [place, place], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(scale * found.mean, place, marker, color=colour, markersize=6.5)
        axes.annotate(
            f"{scale * found.mean:{digits}}".replace("-", "−"), (scale * found.mean, place), (0, 7),
            textcoords="offset points", ha="center", fontsize=8.5, color=drawing.INK,
        )  # fmt: skip
    for label, value in (nulls or {}).items():
        axes.axvline(scale * value, color=drawing.INK, linestyle="--", linewidth=1.1, zorder=0)
        axes.text(scale * value, count - 0.35, label, fontsize=8.5, color=drawing.INK, va="bottom", ha="center")
    axes.set_yticks(range(count), [label for label, _, _ in reversed(shown)])
    axes.set_ylim(-0.6, count - 0.4)
    axes.grid(axis="x", color="#e8e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
