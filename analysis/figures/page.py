"""Panels on a page: as wide as a column of print, as high as they need, and files of them."""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend

from analysis.figures import style
from ground import files

if TYPE_CHECKING:
    from analysis.figures.panels import Panel

COLUMNS = ("panel", "name", "x", "member", "value", "mean", "low", "high")
"""Of the CSV beside a figure. A row with a member is that member's value; one with a mean is the mean over members with
its 95 % interval, empty where there are too few; one with a value alone is a mark, a share of areas or a cell of a map,
whose column is `x`. Shares stay shares where the panel shows them as percentages.

`member` is a place within what `name` shows, and not the member's number in its run: from 0 through those that are
shown, in the order of their numbers; of joined runs run by run; of bases in the order of their seeds. So with member 1
of 5 diverged, 0 to 3 are members 0, 2, 3 and 4, and each point of a grid begins at 0."""

_NARROWEST = 2.7
"""Panels stand side by side where each has so many inches."""
_EDGE = 0.05
"""Of the page, inches."""


class Page(Figure):
    """A figure that notebooks show without being asked."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=150)
        return drawn.getvalue()


@style.applied()
def draw(
    panels: "Sequence[Panel]",
    width: float = 5.5,
    title: str = "",
    meaning: str = "",
    footer: str = "",
    plain: bool = False,
) -> Figure:
    """A figure of panels; no text in it is smaller than 7 points, covers another or leaves the page.

    Args:
        panels: from left to right, then down.
        width: inches; 3.25 and 5.5 are the usual columns of journals.
        title: the headline.
        meaning: how to read it.
        footer: where the numbers come from.
        plain: without headline, meaning and footer; `save` writes them into a file of their own.

    Raises:
        ValueError: there is no panel, or the width leaves no room for one.
    """
    if not panels or not width >= 2:
        raise ValueError(f"draw: {len(panels)} panels on {width:g} inches; use at least 1 on at least 2")
    if plain:
        title = meaning = footer = ""
    count = math.ceil(len(panels) / max(1, int(width / _NARROWEST)))
    beside = math.ceil(len(panels) / count)
    lines = [panels[start : start + beside] for start in range(0, len(panels), beside)]
    styles = style.of_panels(
        [panel.names for panel in panels if not panel.side], [panel.names for panel in panels if panel.side]
    )
    heights = np.array([max(panel.height(width / len(line)) for panel in line) for line in lines])

    rows = heights + 2.0  # room for names, until it is known how much they need
    engine = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, hspace=0)
    figure = Page((width, 2.0 + rows.sum()), layout=engine)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(lines), 1)
    drawn: list[list[Axes]] = []
    for index, line in enumerate(lines):
        cells = grid[index].subgridspec(1, len(line))
        drawn.append([figure.add_subplot(cell) for cell in cells])
        for before, panel, axes in zip((None, *line), line, drawn[-1], strict=False):
            panel.draw(axes, styles, width / len(line), heights[index])
            if before and panel.side and panel.side == before.side:
                axes.tick_params(labelleft=False)
                for picture in list(axes.artists):
                    picture.remove()

    head = [(style.wrapped(title, width - 2 * _EDGE, style.TITLE, "bold"), style.TITLE, "bold", style.INK)]
    head += [(style.wrapped(meaning, width - 2 * _EDGE), style.SMALL, "normal", style.GREY)]
    head = [part for part in head if part[0]]
    foot = style.wrapped(footer, width - 2 * _EDGE)
    legend = _legend(figure, panels, styles, width)
    above = sum(style.tall(words, size) for words, size, *_ in head) + _EDGE * (1 + bool(head))
    under = style.tall(foot) * bool(foot) + _EDGE
    key = legend.get_window_extent().height / figure.dpi + _EDGE if legend else 0.0

    def arrange() -> np.ndarray:
        """Lay out; how high the axes of each line have become."""
        height = above + rows.sum() + key + under
        grid.set_height_ratios(rows)
        figure.set_figheight(height)
        engine.set(rect=(_EDGE / 2 / width, (key + under) / height, 1 - _EDGE / width, rows.sum() / height))
        engine.execute(figure)
        return height * np.array([line[0].get_position().height for line in drawn])

    arrange()
    for panel, axes in zip(panels, itertools.chain(*drawn), strict=True):
        panel.finish(axes, axes.get_position().width * width)
    rows += heights - arrange()
    arrange()
    height = figure.get_figheight()
    figure.set_layout_engine("none")

    top = height - _EDGE
    for words, size, weight, colour in head:
        place = {"x": _EDGE / width, "y": top / height, "va": "top", "linespacing": 1.1}
        figure.text(s=words, size=size, weight=weight, color=colour, **place)
        top -= style.tall(words, size)
    if foot:
        place = {"x": 1 - _EDGE / width, "y": _EDGE / 2 / height, "ha": "right", "va": "bottom", "linespacing": 1.1}
        figure.text(s=foot, color=style.GREY, **place)
    if legend:
        legend.set_bbox_to_anchor((0.5, under / height), figure.transFigure)
    return figure


def _legend(
    figure: Figure, panels: "Sequence[Panel]", styles: Mapping[str, style.Style], width: float
) -> Legend | None:
    """Everything that has no label of its own, in as many columns as fit."""
    handles = {name: handle for panel in panels for name, handle in panel.legend(styles).items()}
    if not handles:
        return None
    sign = 0.45  # of a handle and the room around it, inches
    names = [style.wrapped(name, width - sign - 4 * _EDGE) for name in handles]
    columns = max(1, min(len(names), int((width - 2 * _EDGE) / (max(map(style.wide, names)) + sign))))
    legend = figure.legend(
        list(handles.values()), names, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.0),
        borderpad=0.1, borderaxespad=0.0, handlelength=2.4, columnspacing=1.2, handletextpad=0.6, labelspacing=0.25,
    )  # fmt: skip
    legend.set_in_layout(False)
    return legend


@style.applied()
def save(
    figure: Figure,
    stem: Path,
    panels: "Sequence[Panel]" = (),
    title: str = "",
    meaning: str = "",
    footer: str = "",
    plain: bool = False,
) -> list[Path]:
    """Write a figure as `stem`.png and `stem`.pdf, and its data as `stem`.csv; the same figure gives the same bytes.

    Args:
        figure: what `draw` has made.
        stem: of the paths, without an ending.
        panels: what it was made of; without them there is no CSV.
        title, meaning, footer: stand in the files' metadata, and for a plain figure in `stem`.txt, as its caption.
        plain: as it was drawn.

    Returns:
        The paths.
    """
    words = {"Title": title, "Subject": " ".join(filter(None, (meaning, footer)))}
    words = {name: " ".join(text.split()) for name, text in words.items() if text}
    settings: dict[str, dict[str, Any]] = {
        ".png": {
            "dpi": 200,
            "metadata": {"Description" if name == "Subject" else name: x for name, x in words.items()},
        },
        ".pdf": {"metadata": words | {"CreationDate": None}},
    }
    paths = []

    def write(ending: str, data: bytes) -> None:
        paths.append(stem.with_name(stem.name + ending))
        files.write(paths[-1], data)

    for ending, options in settings.items():
        data = io.BytesIO()
        figure.savefig(data, format=ending[1:], **options)
        write(ending, data.getvalue())
    if panels:
        write(".csv", _csv(panels))
    if plain:
        write(".txt", "\n\n".join(filter(None, (title, meaning, footer, ""))).encode())
    return paths


def _csv(panels: "Sequence[Panel]") -> bytes:
    """The data of panels, one number a row; `COLUMNS` says what they mean."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for panel in panels:
        for row in panel.table():
            numbers = ("" if x is None or x != x else f"{x:.7g}" if isinstance(x, float) else x for x in row)
            writer.writerow([panel.words, *numbers])
    return text.getvalue().encode()
