"""Figures of steering: curves over the cloud of random directions, and what is left when a direction is removed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis import drawing, steering
from analysis.drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, VERMILION
from ground import statistics

LINES = {
    "axis": ("axis, Mold to Gold", BLUE, "o"),
    "gold": ("v_Gold", ORANGE, "D"),
    "mold": ("v_Mold", PURPLE, "v"),
    "path": ("v_Path", GREY, "s"),
    "axis before": ("axis before RL", INK, "^"),
    "axis without value head": ("axis without value head", GREEN, "P"),
    "axis without emoji": ("axis without emoji", SKY, "X"),
}
"""Directions that the figures show: label, colour, marker."""

_EFFECTS = {
    "enter_gold": "P(enter Gold | Gold beside)",
    "enter_mold": "P(enter Mold | Mold beside)",
    "entropy": "entropy of the action (nats)",
    "return": "return per episode (reward)",
}


def draw(stem: Path, results: Mapping[str, steering.Steered], strengths: Sequence[float], footer: str) -> list[Path]:
    """All figures, PNG and PDF, at `stem` and a suffix; returns their paths."""
    paths = drawing.save(_curves(results, strengths), stem.with_name(f"{stem.name}_curves"), footer)
    return paths + drawing.save(_ablation(results), stem.with_name(f"{stem.name}_ablation"), footer)


def values(steered: steering.Steered, effect: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Name → an effect by strength [M, K, A], and with the direction removed [M, K]."""
    of_return = effect == "return"
    parts = (steered.returns, steered.ablated_returns) if of_return else (steered.effects, steered.ablated)
    at = ... if of_return else (..., steering.EFFECTS.index(effect))
    pushed, removed = ({name: np.asarray(x)[at] for name, x in part.items()} for part in parts)
    return pushed, removed


def _curves(results: Mapping[str, steering.Steered], strengths: Sequence[float]) -> Figure:
    height = 2.45 * len(results) + 1.25
    figure = drawing.figure(
        12.4, height, "Steering: what pushing along a direction does to behaviour",
        "lines: mean of members, bars: 95 % interval    pale lines: random directions of the same length    "
        "strength 1 is half the distance between the class means of Mold and Gold",
    )  # fmt: skip
    grid = figure.add_gridspec(
        len(results), len(_EFFECTS), left=0.075, right=0.835, bottom=0.62 / height, top=1 - 1.0 / height, hspace=0.22,
        wspace=0.34,
    )  # fmt: skip
    order = np.argsort(strengths)
    at = np.asarray(strengths)[order]
    for row, (setting, steered) in enumerate(results.items()):
        for column, (effect, title) in enumerate(_EFFECTS.items()):
            axes = figure.add_subplot(grid[row, column])
            pushed, _ = values(steered, effect)
            for curve in pushed["random"].mean(axis=0)[:, order]:
                axes.plot(at, curve, color=PALE, linewidth=0.6, zorder=1)
            for name, (label, colour, marker) in LINES.items():
                curves = pushed[name][:, 0][:, order]
                axes.plot(at, curves.mean(axis=0), color=colour, marker=marker, markersize=4, linewidth=1.4, zorder=3,
                          label=label)  # fmt: skip
                if len(curves) > 1 and name == "axis":
                    low, high = statistics.bootstrap_interval(curves, axis=0, statistic=np.mean)
                    axes.vlines(at, low, high, color=colour, linewidth=2.2, zorder=4)
            last = row == len(results) - 1
            drawing.plain(axes, "strength" if last else "", "", title if not row else "")
            axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
            if not last:
                axes.tick_params(labelbottom=False)
            if not column:
                axes.set_ylabel(setting, fontsize=10, fontweight="bold", color=INK)
    handles = figure.axes[0].get_legend_handles_labels()
    line = figure.axes[0].plot([], [], color=PALE, linewidth=2)[0]
    figure.legend(
        [*handles[0], line], [*handles[1], "random"], fontsize=8.5, frameon=False, loc="upper left",
        bbox_to_anchor=(0.842, 1 - 0.95 / height),
    )  # fmt: skip
    return figure


def _ablation(results: Mapping[str, steering.Steered]) -> Figure:
    figure = drawing.figure(
        12.4, 4.9, "Ablation: behaviour with a direction removed from every block",
        "dots: mean of members, lines: 95 % interval    ticks: random directions removed, mean of members    "
        "dashed: nothing removed",
    )  # fmt: skip
    rows = [*LINES, "random"]
    for column, (effect, title) in enumerate(_EFFECTS.items()):
        axes = figure.add_axes((0.165 + 0.208 * column, 0.13, 0.19, 0.65))
        for index, (setting, steered) in enumerate(results.items()):
            colour = (BLUE, VERMILION, INK)[index % 3]
            _, removed = values(steered, effect)
            plain = steered.plain_return if effect == "return" else steered.plain[:, steering.EFFECTS.index(effect)]
            axes.axvline(float(plain.mean()), color=colour, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
            for place, name in enumerate(reversed(rows)):
                y = place + 0.22 - 0.22 * index
                if name == "random":
                    drawn = removed[name].mean(axis=0)
                    axes.plot(drawn, np.full(len(drawn), y), "|", color=colour, alpha=0.4, markersize=6)
                    continue
                members = removed[name][:, 0]
                if len(members) > 1:
                    low, high = statistics.bootstrap_interval(members, statistic=np.mean)
                    axes.plot([low, high], [y, y], color=colour, linewidth=2)
                axes.plot(members.mean(), y, "o", color=colour, markersize=5, label=setting if not place else None)
            axes.plot([], [], "o", color=colour, label=setting)
        drawing.plain(axes, title)
        labels = [LINES[name][0] if name in LINES else "random directions" for name in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels if not column else [])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        for line in range(len(rows) - 1):
            axes.axhline(line + 0.5, color=PALE, linewidth=0.5, zorder=0)
    figure.axes[0].legend(
        fontsize=8.5, frameon=False, loc="lower left", bbox_to_anchor=(-0.85, 1.01), ncols=len(results), columnspacing=1
    )
    return figure
