"""The figure of inference: turn by turn who the model acts like, beside the ideal observer, and badges as a map."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import drawing
from envs import personas, tokens

COLOURS = {"Larry": drawing.VERMILION, "Bob": drawing.BLUE, "Alice": drawing.GREEN}

FEW = 20
"""Episodes; where fewer are left the lines end."""

_WIDTH, _HEIGHT = 12.6, 4.6
_LEFT, _PANEL, _GAP = 0.62, 2.72, 0.2
_BOTTOM, _TALL = 0.95, 2.55
_DASHES, _DOTS = (0, (4, 2)), (0, (1, 1.5))


def draw(
    stem: Path,
    checkpoint: str,
    found: Mapping[str, Any],
    against: str | None,
    other: Mapping[str, Any] | None,
    title: str,
    meaning: str,
    footer: str,
) -> list[Path]:
    """Write `stem`.png and .pdf.

    Args:
        stem: path without an ending.
        checkpoint: its name.
        found: what the command's document says of it.
        against, other: name of a second checkpoint, and what the document says of it; None for none.
        title, meaning: the headline and the line under it.
        footer: small print.

    Returns:
        The paths.
    """
    figure = drawing.figure(_WIDTH, _HEIGHT, title, meaning)
    ended = np.nanmin(found["episodes"]) < np.nanmax(found["episodes"])
    strip = 0.34 if ended else 0.0
    for index, name in enumerate(personas.PERSONAS):
        left = _LEFT + (_PANEL + _GAP) * index
        axes = _axes(figure, left, _BOTTOM + strip, _PANEL, _TALL - strip)
        drawing.plain(axes, "" if ended else "turn", "" if index else "belief in each persona")
        axes.set_title(f"{name} plays", fontsize=10, color=COLOURS[name], loc="left", fontweight="bold", pad=6)
        _beliefs(axes, index, found, other)
        axes.tick_params(labelleft=not index, labelbottom=not ended)
        if ended:
            _episodes(_axes(figure, left, _BOTTOM, _PANEL, strip - 0.08), found["episodes"][index], not index)
    side = _LEFT + 3 * (_PANEL + _GAP) + 0.62
    _badges(_axes(figure, side, _BOTTOM + 0.2, _WIDTH - side - 0.2, _TALL - 0.55), found["badge_kl"]["mean"])
    figure.legend(
        handles=_handles(checkpoint, against), loc="lower left", bbox_to_anchor=(0.04, 0.1 / _HEIGHT), ncols=6,
        frameon=False, fontsize=8.5, columnspacing=1.8,
    )  # fmt: skip
    return drawing.save(figure, stem, footer)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes by their place in inches."""
    return figure.add_axes((left / _WIDTH, bottom / _HEIGHT, width / _WIDTH, height / _HEIGHT))


def _beliefs(axes: Axes, true: int, found: Mapping[str, Any], other: Mapping[str, Any] | None) -> None:
    turns = np.arange(1, found["implied"]["mean"].shape[1] + 1)
    enough = found["episodes"][true] >= min(FEW, found["episodes"][true].max())

    def curve(of: Mapping[str, Any], which: str, end: str, candidate: int) -> np.ndarray:
        return np.where(enough, of[which][end][true, :, candidate], np.nan)

    axes.axhline(1 / len(COLOURS), color=drawing.GREY, linewidth=0.8, linestyle=":", zorder=1)
    for candidate, colour in enumerate(COLOURS.values()):
        own = candidate == true
        low, high = (curve(found, "implied", end, candidate) for end in ("low", "high"))
        axes.fill_between(turns, low, high, color=colour, alpha=0.22, linewidth=0, zorder=2)
        axes.plot(turns, curve(found, "implied", "mean", candidate), color=colour, linewidth=2.6 if own else 1.2,
                  zorder=5 if own else 4)  # fmt: skip
        if own:
            low, high = (curve(found, "ideal", end, candidate) for end in ("low", "high"))
            axes.fill_between(turns, low, high, color=drawing.GREY, alpha=0.16, linewidth=0, zorder=1)
        axes.plot(turns, curve(found, "ideal", "mean", candidate), color=colour, linewidth=1.5 if own else 0.9,
                  linestyle=_DASHES, zorder=3)  # fmt: skip
        if other is not None and own:
            axes.plot(turns, curve(other, "implied", "mean", candidate), color=drawing.INK, linewidth=1.4,
                      linestyle=_DOTS, zorder=6)  # fmt: skip
    _turns(axes, len(turns))
    axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", color="#e8e8ec", linewidth=0.6)
    axes.set_axisbelow(True)


def _episodes(axes: Axes, episodes: np.ndarray, first: bool) -> None:
    """How many episodes have come to each turn."""
    turns = np.arange(1, len(episodes) + 1)
    axes.bar(turns, episodes, width=0.8, color=drawing.PALE)
    drawing.plain(axes, "turn; bars: episodes that come so far", "")
    _turns(axes, len(turns))
    axes.set_yticks([0, int(episodes.max())])
    axes.tick_params(axis="y", labelsize=6.5, labelleft=first)


def _turns(axes: Axes, count: int) -> None:
    """The x axis from turn 1, which a round number would leave out, to the last."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, count) if count <= 8 * step)
    axes.set_xlim(0.6, count + 0.4)
    axes.set_xticks([1, *range(every, count + 1, every)] if every > 1 else range(1, count + 1))


def _badges(axes: Axes, divergence: np.ndarray) -> None:
    """KL from each persona to the model with each badge; darker is nearer."""
    shown = np.log10(np.maximum(divergence, 1e-3))
    axes.imshow(shown, cmap="Blues_r", vmin=-3, vmax=0.6, aspect="auto")
    for (row, column), value in np.ndenumerate(divergence):
        colour = "white" if shown[row, column] < -1.2 else drawing.INK
        weight = "bold" if column == row + 1 else "normal"
        axes.text(column, row, f"{value:.3f}" if value < 1 else f"{value:.2f}", ha="center", va="center",
                  fontsize=8, color=colour, fontweight=weight)  # fmt: skip
    drawing.plain(axes, "", "")
    axes.set_title("KL(persona ‖ model with badge)\nnats per action", fontsize=9.5, color=drawing.INK, loc="left")
    axes.set_yticks(range(len(divergence)), list(personas.PERSONAS), fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    drawing.emoji_ticks(axes, tokens.BADGES, 13)
    axes.set_xlabel("badge shown; the first is none", fontsize=9.5, labelpad=20)


def _handles(checkpoint: str, against: str | None) -> list[Line2D]:
    """What the legend explains."""
    handles = [
        Line2D([], [], color=colour, linewidth=2, label=f"{checkpoint} acts like {name}")
        for name, colour in COLOURS.items()
    ]
    handles.append(Line2D([], [], color=drawing.GREY, linewidth=1.4, linestyle=_DASHES, label="ideal observer"))
    handles.append(Line2D([], [], color=drawing.GREY, linewidth=0.8, linestyle=":", label="chance, 1/3"))
    if against is not None:
        label = f"{against} acts like who plays"
        handles.append(Line2D([], [], color=drawing.INK, linewidth=1.4, linestyle=_DOTS, label=label))
    return handles
