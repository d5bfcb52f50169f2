"""A figure is a list of panels; a panel is data, and says what it shows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ground.estimates import Estimate


@dataclasses.dataclass(frozen=True)
class Rows:
    """Estimates one below the other: members as dots, mean and interval, one style per name."""

    estimates: Mapping[str, Estimate]
    """By the name of the arm; `style.of(name)` gives colour and marker."""
    label: str
    """What the axis shows, with its unit."""
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Floors, ceilings and nulls: vertical lines by their names."""
    percent: bool = False
    """Show shares as percentages."""
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of `Curves`."""

    x: np.ndarray
    """float[N], or float[N, M] where each member has its own."""
    values: np.ndarray
    """float[N, M], by member: drawn thin, and thick their mean with its interval; float[N]: one line."""
    units: np.ndarray | None = None
    """int[M], equal labels for members that count as one."""


@dataclasses.dataclass(frozen=True)
class Curves:
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
    log_y: bool = False
    points: bool = False
    """Dots of members instead of lines, for scatter plots."""


@dataclasses.dataclass(frozen=True)
class Areas:
    """Shares stacked over x, in the order given."""

    x: np.ndarray
    """float[N]"""
    areas: Mapping[str, np.ndarray]
    """float[N] each, 0 or above."""
    x_label: str
    y_label: str
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Map:
    """A matrix in colours, with its numbers where they fit."""

    values: np.ndarray
    """float[R, C]"""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    label: str
    """What the colours show, with the unit."""
    diverging: bool = False
    """Whether 0 is the middle."""


Panel = Rows | Curves | Areas | Map


def draw(panels: Any, width: float = 5.5, title: str = "", meaning: str = "", plain: bool = False) -> Any:
    """See the next commit."""
    raise NotImplementedError
