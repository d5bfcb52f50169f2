"""Figures of training: the learning curve of a population beside its baselines."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ground import files, statistics

# Okabe and Ito's colours, which stay apart for colour-blind readers; dashes tell the baselines apart without colour.
_CURVE, _INK, _GREY = "#0072b2", "#1c1c22", "#6a6a72"
_COLOURS = ("#d55e00", "#cc79a7", "#009e73", "#e69f00", "#56b4e9", "#1c1c22")
_DASHES = ((0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 3)), (0, (4, 1, 1, 1, 1, 1)))

_WIDTH, _HEIGHT = 8.4, 5.0
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.1, 0.76, 0.12, 0.80
_LINE = 13.0 / (72 * _HEIGHT)


def learning_curve(
    path_stem: str | pathlib.Path,
    updates: np.ndarray,
    returns: np.ndarray,
    baselines: dict[str, float],
    *,
    title: str,
    config_hash: str,
    interval: float = 0.95,
    episodes_per_update: int | None = None,
    update_name: str = "PPO update",
) -> None:
    """Write `path_stem`.png, .pdf and .csv: the returns of every member, and what they come to together.

    Baselines far from the curves stand in a strip of their own beyond a break of the axis, so that they cannot
    press the curves flat.

    Args:
        path_stem: path of the files, without an ending.
        updates: when the returns were measured, int[U], rising.
        returns: mean return of an episode, reward units, float[U, M].
        baselines: returns to compare with, by name.
        title: the headline.
        config_hash: of the run's configuration, for the footer.
        interval: share that the bootstrap band covers.
        episodes_per_update: episodes that one member plays for an update, for the axis above.
        update_name: what an update is called.

    Raises:
        ValueError: if the shapes do not fit together or there is nothing to draw.
    """
    updates, returns = np.asarray(updates), np.asarray(returns, np.float64)
    if returns.ndim != 2 or returns.size == 0 or updates.shape != returns.shape[:1]:
        raise ValueError(f"returns: shape {returns.shape} for updates of shape {updates.shape}; use [U, M] for [U]")
    middle = statistics.interquartile_mean(returns)
    low, high = statistics.bootstrap_interval(returns, interval=interval)

    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    FigureCanvasAgg(figure)
    main, panels = _panels(figure, returns, [value for value in baselines.values() if np.isfinite(value)])
    labels = []
    everything = [*baselines.values(), *returns.ravel()]
    form = "+.1f" if np.nanmax(np.abs(everything)) > 3 else "+.2f"  # three digits where returns are shares
    for index, (name, value) in enumerate(baselines.items()):
        colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
        for axes in panels:
            axes.axhline(value, color=colour, linestyle=dashes, linewidth=1.5, zorder=1)
        labels.append((value, f"{name}  {signed(value, form)}", colour, 1))
    members = returns.shape[1]
    marker = "o" if len(updates) == 1 else None
    main.plot(updates, returns, color=_CURVE, linewidth=0.6, alpha=min(0.5, 0.15 + 2 / members), zorder=2)
    main.fill_between(updates, low, high, color=_CURVE, alpha=0.35, linewidth=0, zorder=3)
    main.plot(updates, middle, color=_CURVE, linewidth=1.8, marker=marker, zorder=4)
    end = f"last update  {signed(middle[-1], form)}"
    if members == 1:
        labels.append((float(middle[-1]), end, _CURVE, 1))
        meaning = "one member"
    else:
        labels.append((float(middle[-1]), f"{end}\n{signed(low[-1], form)} to {signed(high[-1], form)}", _CURVE, 2))
        meaning = f"thin: {members} members    thick: interquartile mean    band: its {interval:.0%} bootstrap interval"

    _name_axes(figure, main, panels, updates, update_name, episodes_per_update)
    _place_labels(figure, panels, [label for label in labels if np.isfinite(label[0])])
    figure.text(
        0.015, 0.955, title, fontsize=min(13, 1100 / max(len(title), 1)), fontweight="bold", color=_INK, va="center"
    )
    figure.text(0.015, 0.905, meaning, fontsize=8.5, color=_GREY, va="center")
    figure.text(0.985, 0.015, f"config {config_hash}", fontsize=6.5, color=_GREY, ha="right")

    stem = pathlib.Path(path_stem)
    save(figure, stem)
    columns = {"update": updates}
    if episodes_per_update is not None:
        columns["episodes_per_member"] = updates * episodes_per_update
    columns |= {"interquartile_mean": middle, "low": low, "high": high}
    columns |= {f"member_{member}": returns[:, member] for member in range(returns.shape[1])}
    columns |= {f"baseline_{name}": np.full(len(updates), value) for name, value in baselines.items()}
    _write_table(stem.with_name(stem.name + ".csv"), columns)


def save(figure: Figure, stem: pathlib.Path) -> list[pathlib.Path]:
    """Write `stem`.png and `stem`.pdf, and return their paths; the same figure gives the same bytes."""
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".pdf")]
    settings: tuple[dict[str, Any], ...] = ({"dpi": 160}, {"metadata": {"CreationDate": None}})
    for path, options in zip(paths, settings, strict=True):
        drawn = io.BytesIO()
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(drawn, format=path.suffix[1:], **options)
        files.write(path, drawn.getvalue())
    return paths


def signed(value: float, form: str = "+.1f") -> str:
    """A number as people write it, with a real minus."""
    return format(value, form).replace("-", "−")


def _panels(figure: Figure, returns: np.ndarray, baselines: Sequence[float]) -> tuple[Axes, list[Axes]]:
    """The main axes; and all axes from top to bottom, with a strip above or below for baselines that lie far away."""
    finite = returns[np.isfinite(returns)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    # As far as the curves reach themselves, or as most baselines lie from them, is not far away.
    distances = [abs(value - (low + high) / 2) for value in baselines]
    reach = max((high - low) / 2, 1.25 * float(np.median(distances or [0.0])), 0.5)
    near = [low, high, *(value for value in baselines if low - reach <= value <= high + reach)]
    above = [value for value in baselines if value > high + reach]
    below = [value for value in baselines if value < low - reach]
    pad = 0.06 * (max(near) - min(near)) or 0.5
    bottom, top = min(near) - pad, max(near) + pad

    limits = [(bottom, top)]
    if above:
        edge = max(top, min(above) - _strip_pad(above))
        limits.insert(0, (edge, max(above) + _strip_pad(above)))
    if below:
        edge = min(bottom, max(below) + _strip_pad(below))
        limits.append((min(below) - _strip_pad(below), edge))
    heights = [1.0 if limit == (bottom, top) else 0.3 for limit in limits]
    grid = figure.add_gridspec(
        len(limits), left=_LEFT, right=_RIGHT, bottom=_BOTTOM, top=_TOP, hspace=0.07, height_ratios=heights
    )
    panels = [figure.add_subplot(grid[index], ylim=limit) for index, limit in enumerate(limits)]
    for axes, height in zip(panels, heights, strict=True):
        axes.yaxis.set_major_locator(MaxNLocator(8 if height == 1.0 else 2))
    return panels[1 if above else 0], panels


def _strip_pad(values: Sequence[float]) -> float:
    return 0.4 * (max(values) - min(values)) or 5.0


def _name_axes(
    figure: Figure, main: Axes, panels: Sequence[Axes], updates: np.ndarray, update_name: str, episodes: int | None
) -> None:
    """Ticks, names and units; marks where the axis is broken."""
    first, last = float(updates[0]), float(updates[-1])
    pad = 0.0 if last > first else 0.5
    for index, axes in enumerate(panels):
        axes.set_xlim(first - pad, last + pad)
        axes.grid(axis="y", color="#e8e8ec", linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9, colors=_INK)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, "g")))
        axes.spines["right"].set_visible(False)
        for side, neighbour in (("top", index - 1), ("bottom", index + 1)):
            if 0 <= neighbour < len(panels):
                axes.spines[side].set_visible(False)
                edge = 1.0 if side == "top" else 0.0
                mark = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "color": _INK, "clip_on": False}
                axes.plot([0], [edge], transform=axes.transAxes, linestyle="none", **mark)
        if index < len(panels) - 1:
            axes.tick_params(bottom=False, labelbottom=False)
    counts = FuncFormatter(lambda value, _: f"{value:,.0f}")
    panels[-1].xaxis.set_major_locator(MaxNLocator(7, integer=True) if last > first else FixedLocator([first]))
    panels[-1].xaxis.set_major_formatter(counts)
    panels[-1].set_xlabel(update_name, fontsize=10, color=_INK)
    place = main.get_position()
    main.set_ylabel("return per episode (reward)", fontsize=10, color=_INK)
    main.yaxis.set_label_coords(0.022, (place.y0 + place.y1) / 2, transform=figure.transFigure)
    if episodes is None:
        panels[0].spines["top"].set_visible(False)
        return
    above = panels[0].secondary_xaxis(
        "top", functions=(lambda x: np.multiply(x, episodes), lambda x: np.divide(x, episodes))
    )
    above.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    above.xaxis.set_major_formatter(counts)
    above.tick_params(labelsize=8, colors=_GREY)
    above.set_xlabel("episodes per member", fontsize=8.5, color=_GREY)


def _place_labels(figure: Figure, panels: Sequence[Axes], labels: Sequence[tuple[float, str, str, int]]) -> None:
    """Labels (return, words, colour, lines of text) right of the axes, each as near its line as the others let it."""
    heights = np.array([lines * _LINE for *_, lines in labels])
    wanted = np.array([_height(panels, value) for value, *_ in labels])
    places = spread(wanted, heights, 0.02, _TOP + 0.1)
    for (_, words, colour, _), start, place in zip(labels, wanted, places, strict=True):
        line = Line2D([_RIGHT, _RIGHT + 0.012, _RIGHT + 0.03], [start, start, place], color=colour, linewidth=1.0)
        figure.add_artist(line)
        weight = "bold" if colour == _CURVE else "normal"
        figure.text(
            _RIGHT + 0.036, place, words, fontsize=9, color=_INK, va="center", fontweight=weight, linespacing=1.1
        )


def _height(panels: Sequence[Axes], value: float) -> float:
    """Where a return stands, as a share of the figure's height."""
    for axes in panels:
        low, high = axes.get_ylim()
        if low <= value <= high:
            place = axes.get_position()
            return place.y0 + place.height * (value - low) / (high - low)
    return _BOTTOM


def spread(wanted: np.ndarray, heights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Centres for labels that never overlap and move as little as that allows, in the least-squares sense.

    Args:
        wanted: where each centre would best be, float[N].
        heights: of the labels, float[N].
        low: where the lowest label may begin.
        high: where the highest may end; ignored if all of them together need more room.

    Returns:
        float[N], in the order of `wanted`.
    """
    order = np.argsort(wanted, kind="stable")
    sizes = heights[order]
    stacked = np.cumsum(sizes) - sizes / 2
    # With the stack taken off, labels may touch but not change places: an isotonic regression, by pooling.
    pools: list[tuple[float, int]] = []
    for target in wanted[order] - stacked:
        mean, count = float(target), 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    bases = np.concatenate([np.full(count, mean) for mean, count in pools]) if pools else np.zeros(0)
    places = np.empty(len(wanted))
    places[order] = np.clip(bases, low, max(high - float(sizes.sum()), low)) + stacked
    return places


def _write_table(path: pathlib.Path, columns: dict[str, np.ndarray]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{value:.7g}" if isinstance(value, np.floating) else value for value in row])
    files.write(path, text.getvalue().encode())
