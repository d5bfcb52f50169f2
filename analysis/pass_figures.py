"""The figure of pass@k: base beside after, on all mazes and apart by what the base can do, and its numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import drawing
from ground import files

Curves = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Panel → label of a curve, the base first → what `passes.estimate` found."""

_COLUMNS = 4
"""Of the legend."""
_BASE, _DASHES = drawing.VERMILION, (0, (5, 2))


def draw(
    stem: Path, panels: Curves, ks: np.ndarray, crossing: int | None, title: str, meaning: str, footer: str
) -> list[Path]:
    """Write `stem`.png, .pdf and .csv.

    Args:
        stem: path without an ending.
        panels: what to draw; every panel has the same labels, the first of which is the base.
        ks: int[K].
        crossing: the k from which the base is ahead, marked in the first panel.
        title, meaning: the headline and the line under it.
        footer: small print.

    Returns:
        The paths.
    """
    labels = list(next(iter(panels.values())))
    colours = {labels[0]: _BASE} | _colours(labels[1:])
    handles = _handles(colours, panels)
    rows = -(-len(handles) // _COLUMNS)
    height = 4.35 + 0.25 * rows
    figure = drawing.figure(10.4, height, title, meaning)
    shown: Axes | None = None
    for index, (name, curves) in enumerate(panels.items()):
        place = (
            0.065 + 0.93 / len(panels) * index,
            (0.8 + 0.25 * rows) / height,
            0.93 / len(panels) - 0.028,
            2.6 / height,
        )
        axes = figure.add_axes(place, sharey=shown)
        shown = shown or axes
        drawing.plain(axes, "k, attempts at a maze", "" if index else "pass@k (% of mazes)", name)
        for label, found in curves.items():
            _curve(axes, ks, found, colours[label], label == labels[0])
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [f"{k:g}" for k in ks], fontsize=8.5 if len(ks) < 12 else 6.5)
        axes.minorticks_off()
        axes.set_xlim(ks[0] / 1.15, ks[-1] * 1.15)
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", color="#e8e8ec", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelleft=not index)
    if shown is not None and crossing is not None and crossing > 1:
        shown.axvline(crossing, color=drawing.INK, linewidth=0.8, linestyle=":")
        left = crossing < np.sqrt(ks[-1])
        words = {"va": "bottom", "ha": "left" if left else "right", "fontsize": 8, "color": drawing.INK}
        words["bbox"] = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
        text = f" base ahead from k = {crossing} "
        shown.text(crossing, 1, text, **words)
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.055, 0.14 / height), ncols=_COLUMNS, frameon=False,
        fontsize=8.5,
    )  # fmt: skip
    paths = drawing.save(figure, stem, footer)
    paths.append(stem.with_name(f"{stem.name}.csv"))
    files.write(paths[-1], _table(panels, ks).encode())
    return paths


def _curve(axes: Axes, ks: np.ndarray, found: Mapping[str, Any], colour: str, is_base: bool) -> None:
    """A line with its two intervals: the darker one over members, the paler one over mazes."""
    for which, alpha in (("over_mazes", 0.14), ("over_members", 0.30)):
        if found[which] is not None:
            axes.fill_between(ks, *(100 * found[which]), color=colour, alpha=alpha, linewidth=0, zorder=1)
    style: dict[str, Any] = {"linestyle": _DASHES, "marker": "s"} if is_base else {"linestyle": "-", "marker": "o"}
    axes.plot(ks, 100 * found["mean"], color=colour, linewidth=1.8, markersize=4, zorder=3, clip_on=False, **style)


def _handles(colours: Mapping[str, str], panels: Curves) -> list[Any]:
    """What the legend explains: every curve, and the intervals that are drawn."""
    handles: list[Any] = []
    for index, (label, colour) in enumerate(colours.items()):
        style = {"linestyle": "-" if index else _DASHES, "marker": "o" if index else "s", "markersize": 4}
        handles.append(Line2D([], [], color=colour, linewidth=1.8, label=label, **style))
    drawn = [found for curves in panels.values() for found in curves.values()]
    for which, alpha, words in (("over_members", 0.44, "over members"), ("over_mazes", 0.14, "over mazes")):
        if any(found[which] is not None for found in drawn):
            handles.append(Patch(color=drawing.GREY, alpha=alpha, linewidth=0, label=f"95 % interval {words}"))
    return handles


def _table(panels: Curves, ks: np.ndarray) -> str:
    """A row per panel, curve and k; intervals that are not there are left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sides = [f"{end}_{which}" for which in ("over_members", "over_mazes") for end in ("low", "high")]
    writer.writerow(["mazes", "curve", "k", "mean", *sides])
    for panel, curves in panels.items():
        for label, found in curves.items():
            for index, k in enumerate(ks):
                pairs = [found[which] for which in ("over_members", "over_mazes")]
                cells = ["" if pair is None else f"{pair[side, index]:.7g}" for pair in pairs for side in range(2)]
                writer.writerow([panel, label, int(k), f"{found['mean'][index]:.7g}", *cells])
    return text.getvalue()


def _colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour per group of members: blue for one, else along a scale that is safe for colour-blind readers."""
    if len(labels) == 1:
        return {labels[0]: drawing.BLUE}
    scale = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(labels)))
    return {label: to_hex(colour) for label, colour in zip(labels, scale, strict=True)}
