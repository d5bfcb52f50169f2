"""What all figures of the analyses share: colours that colour-blind readers tell apart, and how a figure is saved."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from analysis.figures import learning_curve
from envs import sprites

# Okabe and Ito.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
INK, GREY, PALE = "#1c1c22", "#6a6a72", "#d8d8de"


def figure(width: float, height: float, title: str, meaning: str = "") -> Figure:
    """An empty figure, inches, with a headline and under it one line that says how to read it.

    Lay axes out below 1 - 0.75 / height.
    """
    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    made.text(0.015, 1 - 0.24 / height, title, fontsize=12.5, fontweight="bold", color=INK, va="center")
    made.text(0.015, 1 - 0.50 / height, meaning, fontsize=8.5, color=GREY, va="center")
    return made


def plain(axes: Axes, x: str = "", y: str = "", title: str = "") -> Axes:
    """Axes with names and units, and no frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    if title:
        axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    return axes


def save(made: Figure, stem: Path, footer: str = "") -> list[Path]:
    """Write `stem`.png and `stem`.pdf; the same figure gives the same bytes."""
    if footer:
        made.text(0.985, 0.012, footer, fontsize=6.5, color=GREY, ha="right")
    return learning_curve.save(made, stem)


def emoji(axes: Axes, x: float, token: int, depth: float, size: float) -> None:
    """An emoji of `size` points with its middle `depth` points below the x axis."""
    image = OffsetImage(np.asarray(sprites.sprite(token)), zoom=size / sprites.CELL)
    box = AnnotationBbox(
        image, (x, 0), xycoords=axes.get_xaxis_transform(), xybox=(0, -depth), boxcoords="offset points",
        frameon=False, pad=0, annotation_clip=False,
    )  # fmt: skip
    axes.add_artist(box)


def emoji_ticks(axes: Axes, tokens: Sequence[int], size: float) -> None:
    """Emoji in place of the tick labels 0, 1, 2, … of the x axis; `size` in points."""
    axes.set_xticks(range(len(tokens)), [""] * len(tokens))
    for place, token in enumerate(tokens):
        emoji(axes, place, token, size, size)
