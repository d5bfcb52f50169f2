"""A figure is a list of panels; a panel is data, says what it shows, and knows how it is drawn."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.figures import marks, style
from analysis.figures.page import draw as draw
from analysis.figures.page import save as save
from analysis.figures.style import Style
from ground import numbers, statistics
from ground.estimates import Estimate

_NAMES = 0.36
"""Most that names left of the axes take of a column."""
_BESIDE = 0.8
"""Width of the labels right of the axes, inches."""
_FEW = 6
"""Lines of a panel whose members are drawn."""


class Row(NamedTuple):
    """A row of the table beside a figure; None where there is nothing."""

    name: str
    x: Any = None
    member: int | None = None
    value: Any = None
    mean: Any = None
    low: Any = None
    high: Any = None


class Panel(abc.ABC):
    """One pair of axes. Sizes are inches."""

    @property
    def names(self) -> tuple[str, ...]:
        """Who needs a style."""
        return ()

    @property
    def side(self) -> tuple[str, ...]:
        """Names left of its axes; a neighbour with the same ones goes without."""
        return ()

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """What it shows."""

    def legend(self, styles: Mapping[str, Style]) -> dict[str, Any]:
        """What the legend shows, by name."""
        return {}

    @abc.abstractmethod
    def height(self, width: float) -> float:
        """How high its axes should be in a column of this width."""

    @abc.abstractmethod
    def draw(self, axes: Axes, styles: Mapping[str, Style], width: float, height: float) -> None:
        """Draw it in a column of this width, on axes of this height."""

    def finish(self, axes: Axes, width: float) -> None:
        """Draw what depends on how wide the axes have become."""
        axes.set_xlabel(style.wrapped(axes.get_xlabel(), 1.1 * width, style.LABEL))

    @abc.abstractmethod
    def table(self) -> Iterator[Row]:
        """Its data, a row for each number."""


@dataclasses.dataclass(frozen=True)
class Rows(Panel):
    """Estimates one below the other: mean and interval, members as dots below them, one style per name."""

    estimates: Mapping[str, Estimate]
    """By the name of the arm, which has a colour and a marker."""
    label: str
    """What the axis shows, with its unit."""
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Floors, ceilings and nulls: vertical lines by their names."""
    percent: bool = False
    """Show shares as percentages."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.estimates)

    @property
    def words(self) -> str:
        return self.label

    @property
    def side(self) -> tuple[str, ...]:
        return self.names

    def height(self, width: float) -> float:
        lines = [style.wrapped(name, _NAMES * width).count("\n") + 1 for name in self.names]
        return max([0.27, *(0.1 + 0.13 * count for count in lines)]) * max(len(lines), 1) + 0.08

    def draw(self, axes: Axes, styles: Mapping[str, Style], width: float, height: float) -> None:
        scale = 100.0 if self.percent else 1.0
        data = [scale * np.array([e.mean, e.low, e.high, *e.values], float) for e in self.estimates.values()]
        lines = marks.of(self.marks, self.percent)
        values = np.concatenate(data) if data else np.zeros(0)
        marks.fit(axes, "x", values, lines, pad=0.12, least=0.15, flat=0.01 if self.percent else 0.0)
        marks.draw(axes, "x", lines)
        for place, name in enumerate(self.estimates):
            colour, marker, _ = styles[name]
            mean, low, high, *values = data[place]
            if not np.isfinite(mean):
                grey = {"color": style.GREY, "va": "center", "bbox": style.ON_WHITE}
                axes.text(0.03, place, "no number", transform=axes.get_yaxis_transform(), **grey)
                continue
            if len(values) > 1:
                below = np.full(len(values), place + 0.24)
                axes.plot(values, below, ".", color=colour, alpha=0.55, markersize=3.5, markeredgewidth=0)
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
            axes.plot(mean, place, marker, color=colour, markersize=4.5, zorder=3)
        axes.set(ylim=(len(data) - 0.45, -0.65), xlabel=self.label)
        axes.grid(axis="x")
        style.name_ticks(axes, "y", self.names, _NAMES * width)

    def finish(self, axes: Axes, width: float) -> None:
        super().finish(axes, width)
        _number(axes, "x", width)
        marks.above(axes, marks.of(self.marks, self.percent), width)
        for row, estimate in enumerate(self.estimates.values()):
            if np.isfinite(estimate.mean):
                ends = estimate.low, estimate.high
                text = numbers.shown(estimate.mean, *ends, percent=self.percent).partition(" [")[0]
                value = estimate.mean * (100.0 if self.percent else 1.0)
                at, half = width * marks.place(axes, "x", value), style.wide(text) / 2
                inside = max(0, half - at) - max(0, at + half - width)
                axes.annotate(
                    text, (value, row), (72 * inside, 3.5), textcoords="offset points", ha="center", va="bottom",
                    bbox=style.ON_WHITE, zorder=2,
                )  # fmt: skip

    def table(self) -> Iterator[Row]:
        for name, estimate in self.estimates.items():
            for member, value in enumerate(estimate.values):
                yield Row(name, member=member, value=value)
            yield Row(name, mean=estimate.mean, low=estimate.low, high=estimate.high)
        yield from (Row(name, value=value) for name, value in self.marks.items())


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of `Curves`; a single point is a marker with its interval."""

    x: np.ndarray
    """float[N], or float[N, M] where each member has its own."""
    values: np.ndarray
    """float[N, M], by member: drawn thin, and thick their mean with its interval; float[N]: one line."""
    units: np.ndarray | None = None
    """int[M], or int[N, M] where it changes along x: equal labels for members that count as one."""
    style: str = ""
    """The name whose style it shares; by default it has its own."""

    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """x and values of each member, float[N, M] each."""
        values = np.asarray(self.values, float)
        values = values.reshape(len(values), -1)
        x = np.asarray(self.x, float)
        return np.broadcast_to(x if x.ndim == 2 else x[:, None], values.shape), values

    def mean(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, and the mean over members with its interval, float[N] each; no interval where there are too few."""
        x, values = self.members()
        if self.units is None or self.units.ndim == 1:
            means = [statistics.mean_of(values, units=self.units)]
        else:
            means = [statistics.mean_of(row[None], units=own) for row, own in zip(values, self.units, strict=True)]
        mean, low, high = np.concatenate([np.stack([part.mean, *part.interval()]) for part in means], axis=1)
        return x.mean(axis=1), mean, low, high


@dataclasses.dataclass(frozen=True)
class Curves(Panel):
    """Lines over x with intervals, one style per name."""

    curves: Mapping[str, Curve]
    x: str
    """What the horizontal axis shows, with its unit."""
    y: str
    """What the vertical axis shows, with its unit."""
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Floors, ceilings and nulls: horizontal lines by their names."""
    percent: bool = False
    log_x: bool = False
    points: bool = False
    """Dots of members instead of lines, for scatter plots."""

    @property
    def crowded(self) -> bool:
        """Whether so many lines are here that members would hide them; those are in the table alone."""
        return len(self.curves) > _FEW and not self.points

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(curve.style or name for name, curve in self.curves.items())

    def legend(self, styles: Mapping[str, Style]) -> dict[str, Any]:
        def handle(name: str, curve: Curve) -> Line2D:
            colour, marker, dash = styles[curve.style or name]
            line = None if self.points or len(curve.x) == 1 else dash
            return Line2D([], [], color=colour, marker=marker, linestyle=line or "none", linewidth=1.5, markersize=4)

        return {name: handle(name, curve) for name, curve in self.curves.items()}

    @property
    def words(self) -> str:
        return self.y

    def height(self, width: float) -> float:
        words = [style.wrapped(f"↑ {mark.words}", _BESIDE) for mark in marks.of(self.marks, self.percent)]
        return max(float(np.clip(0.6 * width, 1.4, 2.6)), sum(map(style.tall, words)))

    def draw(self, axes: Axes, styles: Mapping[str, Style], width: float, height: float) -> None:
        scale, everything, across = 100.0 if self.percent else 1.0, [np.zeros(0)], [np.zeros(0)]
        count = sum(curve.members()[1].shape[1] for curve in self.curves.values())
        axes.set_xscale("log" if self.log_x else "linear")
        for name, curve in self.curves.items():
            colour, marker, dash = styles[curve.style or name]
            each, values = curve.members()
            values = scale * values
            if not self.crowded:
                everything.append(values.ravel())
                across.append(each.ravel())
            if self.points:
                axes.plot(each, values, marker, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0)
                continue
            x, *means = curve.mean()
            mean, low, high = (scale * part for part in means)
            everything += [mean, low, high]
            across.append(x)
            if len(x) == 1:
                axes.plot(x[[0, 0]], [low[0], high[0]], color=colour, linewidth=2.2, alpha=0.55, zorder=5)
                axes.plot(x, mean, marker, color=colour, markersize=5, zorder=6)
                continue
            if values.shape[1] > 1 and not self.crowded:
                axes.plot(each, values, color=colour, linewidth=0.5, alpha=min(0.45, 0.12 + 2 / count), zorder=2)
            axes.fill_between(x, low, high, color=colour, alpha=0.1 if self.crowded else 0.25, linewidth=0, zorder=3)
            often = max(1, len(x) // 6)
            axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.5, marker=marker, markersize=3.5,
                      markevery=often, zorder=4)  # fmt: skip
        lines = marks.of(self.marks, self.percent)
        marks.fit(axes, "x", np.concatenate(across), log=self.log_x, pad=0.03)
        marks.fit(axes, "y", np.concatenate(everything), lines, flat=0.01 if self.percent else 0.0)
        marks.draw(axes, "y", lines)
        marks.beside(axes, lines, _BESIDE, height)
        axes.grid(axis="both" if self.points else "y")
        _number(axes, "y", height)
        axes.set(xlabel=self.x, ylabel=style.wrapped(self.y, height, style.LABEL))

    def finish(self, axes: Axes, width: float) -> None:
        super().finish(axes, width)
        whole = all(np.all(np.mod(curve.x, 1) == 0) for curve in self.curves.values() if len(curve.x) > 1)
        _number(axes, "x", width, self.log_x, whole)

    def table(self) -> Iterator[Row]:
        for name, curve in self.curves.items():
            x, values = curve.members()
            for step, part in enumerate(zip(*curve.mean(), strict=True)):
                for member in range(values.shape[1]):
                    yield Row(name, x[step, member], member, values[step, member])
                yield Row(name, part[0], None, None, *part[1:])
        yield from (Row(name, value=value) for name, value in self.marks.items())


@dataclasses.dataclass(frozen=True)
class Areas(Panel):
    """Shares stacked over x, in the order given."""

    x: np.ndarray
    """float[N]"""
    areas: Mapping[str, np.ndarray]
    """float[N] each, 0 or above."""
    x_label: str
    y_label: str
    lines: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """What the whole is compared with, float[N] each: dashed, over the areas."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.areas, *self.lines)

    def legend(self, styles: Mapping[str, Style]) -> dict[str, Any]:
        patches = {name: Patch(color=styles[name].colour, alpha=0.8, linewidth=0) for name in self.areas}
        return patches | {name: Line2D([], [], **self._dashed(styles[name])) for name in self.lines}

    def _dashed(self, chosen: Style) -> dict[str, Any]:
        return {"color": style.INK, "linestyle": "--", "linewidth": 1.2, "marker": chosen.marker, "markersize": 3}

    @property
    def words(self) -> str:
        return self.y_label

    def height(self, width: float) -> float:
        return float(np.clip(0.6 * width, 1.4, 2.6))

    def draw(self, axes: Axes, styles: Mapping[str, Style], width: float, height: float) -> None:
        axes.stackplot(
            self.x, *self.areas.values(), colors=[styles[name].colour for name in self.areas], alpha=0.8,
            edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        for name, values in self.lines.items():
            axes.plot(self.x, values, **self._dashed(styles[name]))
        marks.fit(axes, "x", np.asarray(self.x, float), pad=0.0)
        axes.set_ylim(0, None)
        _number(axes, "y", height)
        axes.set(xlabel=self.x_label, ylabel=style.wrapped(self.y_label, height, style.LABEL))

    def finish(self, axes: Axes, width: float) -> None:
        super().finish(axes, width)
        _number(axes, "x", width, whole=bool(np.all(np.mod(self.x, 1) == 0)))

    def table(self) -> Iterator[Row]:
        for name, values in {**self.areas, **self.lines}.items():
            for x, value in zip(self.x, values, strict=True):
                yield Row(name, x, value=value)


@dataclasses.dataclass(frozen=True)
class Map(Panel):
    """A matrix in colours, with its numbers where they fit."""

    values: np.ndarray
    """float[R, C]"""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    label: str
    """What the colours show, with the unit."""
    diverging: bool = False
    """Whether 0 is the middle."""
    percent: bool = False
    """Show shares as percentages."""

    @property
    def shown(self) -> np.ndarray:
        """Its numbers as they are drawn."""
        return (100.0 if self.percent else 1.0) * np.asarray(self.values, float)

    @property
    def words(self) -> str:
        return self.label

    @property
    def side(self) -> tuple[str, ...]:
        return self.rows

    def height(self, width: float) -> float:
        lines = [style.wrapped(name, _NAMES * width) for name in self.rows]
        return max([0.2, *(style.tall(name) + 0.04 for name in lines)]) * max(len(lines), 1)

    def draw(self, axes: Axes, styles: Mapping[str, Style], width: float, height: float) -> None:
        values = self.shown
        finite = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
        low, high = float(finite.min()), float(finite.max())
        reach = max(-low, high) or 1.0
        norm = TwoSlopeNorm(0, -reach, reach) if self.diverging else Normalize(low, high if high > low else low + 1)
        colours = colormaps["RdBu_r" if self.diverging else "viridis"].with_extremes(bad=style.PALE)
        drawn = axes.pcolormesh(
            np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="white", linewidth=0.5
        )
        axes.set(xlim=(0, len(self.columns)), ylim=(len(self.rows), 0), xlabel=self.label)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        style.name_ticks(axes, "y", self.rows, _NAMES * width, start=0.5)
        bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02, fraction=0.08, aspect=12)
        bar.outline.set_visible(False)
        _number(bar.ax, "y", height)

    def finish(self, axes: Axes, width: float) -> None:
        super().finish(axes, width)
        cell = width / max(len(self.columns), 1)
        names = {name: style.wrapped(name, cell - 0.05) for name in self.columns}
        turned = any(text.count("\n") > name.count("\n") + name.count(" ") for name, text in names.items())
        style.name_ticks(axes, "x", self.columns, 1.0 if turned else cell - 0.05, start=0.5)
        axes.tick_params(axis="x", labelrotation=90 if turned else 0)
        values = self.shown
        digits = numbers.digits_after_the_point(float(np.nanmax(np.abs(values), initial=0)), 2)
        words = [[numbers.number(x, digits) if np.isfinite(x) else "–" for x in row] for row in values.tolist()]
        if max((style.wide(word) for row in words for word in row), default=0) > cell - 0.04:
            return
        (mesh,) = axes.collections
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = mesh.to_rgba(value)
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else style.INK
            axes.text(column + 0.5, row + 0.5, words[row][column], color=ink, ha="center", va="center_baseline")

    def table(self) -> Iterator[Row]:
        for (row, column), value in np.ndenumerate(np.asarray(self.values, float)):
            yield Row(self.rows[row], self.columns[column], value=value)


def _number(axes: Axes, side: str, inches: float, log: bool = False, whole: bool = False) -> None:
    """As many ticks as have room."""
    axis, room = getattr(axes, f"{side}axis"), max(2, int(inches / (0.42 if side == "x" else 0.3)))
    locator = MaxNLocator(min(room, 7), integer=whole, steps=[1, 2, 2.5, 5, 10])
    if log:
        low, high = getattr(axes, f"get_{side}lim")()
        decades = np.log10(high / low)
        # One tick alone says nothing of a scale.
        each = (1, 2, 5) if decades * 3 <= room else (1, 3) if decades < 2 or decades * 2 <= room else (1,)
        locator = LogLocator(subs=each, numticks=room)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: numbers.signed(value, ",g")))
