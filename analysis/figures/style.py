"""One look for every figure: colours that colour-blind readers tell apart, one style for each arm, sizes of text."""

import functools
import itertools
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.textpath import text_to_path

from envs import sprites, tokens

# Okabe and Ito's, without their yellow, which is too pale on white.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
INK, GREY, PALE, GRID = "#1c1c22", "#6a6a72", "#d8d8de", "#e8e8ec"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "D", "^", "X", "s", "v", "P", "h")
SOLID, DASHED, DOTTED, MIXED = (0, ()), (0, (4, 1.6)), (0, (1, 1.3)), (0, (5, 1.4, 1, 1.4))
DASHES = (SOLID, DASHED, MIXED, DOTTED)

SMALL, LABEL, TITLE = 7.0, 7.5, 9.5
"""Points of text: numbers and notes; names of axes; headlines. Journals ask for 7 or more in print."""
PICTURE = 11.0
"""Points of an emoji."""
LINE = 1.25
"""Height of a line of text, as a multiple of its size."""

_LOOK: Any = {
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    **dict.fromkeys(("axes.edgecolor", "text.color", "xtick.color", "ytick.color", "axes.labelcolor"), INK),
    **dict.fromkeys(("font.size", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    "axes.labelsize": LABEL,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold a dollar sign
    "pdf.fonttype": 42,  # journals refuse Type 3
}
ON_WHITE = {"pad": 0.4, "color": "white"}
"""What stands behind words that a line may cross."""


class Style(NamedTuple):
    """How an arm looks in every figure."""

    colour: str
    marker: str
    dash: Any
    """Of its line, as Matplotlib has it."""


def applied() -> Any:
    """A context in which figures are drawn and saved, whatever the reader's own settings are."""
    return matplotlib.style.context(["default", _LOOK])


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


_ARMS: dict[str, Style] = {
    _key(name): Style(colour, marker, dash)
    for names, colour, marker, dash in (
        ("untrained, init", GREY, "x", DOTTED),
        ("random, random player, chance", GREY, "d", DASHED),
        ("base, the base, pretrain, pretrained, before RL, model before RL", INK, "s", DASHED),
        ("mixture, mixture of personas, persona mixture", INK, "d", MIXED),
        ("best badge, best persona", INK, "p", DOTTED),
        ("oracle, shortest way", INK, "*", MIXED),
        ("greedy, greedy one-step, greedy planner", GREY, "*", MIXED),
        ("Larry", VERMILION, "<", DOTTED),
        ("Bob", BLUE, ">", DASHED),
        ("Alice", GREEN, "H", MIXED),
        ("PPO, after RL, RL, model after RL", BLUE, "o", SOLID),
        ("GRPO", SKY, "v", SOLID),
        ("Dr. GRPO", SKY, "h", DASHED),
        ("DAPO", SKY, "p", MIXED),
        ("MS-GRPO", SKY, "8", DOTTED),
        ("Lite PPO", GREY, "P", SOLID),
        ("RLOO", GREEN, "D", DASHED),
        ("REINFORCE", GREEN, "^", SOLID),
        ("PSR", VERMILION, "D", SOLID),
        ("NSR", PURPLE, "X", SOLID),
        ("W-REINFORCE", ORANGE, "*", SOLID),
        ("SFT, SFT on Alice, after SFT", ORANGE, "P", DASHED),
        ("rejection SFT, SFT on own samples", ORANGE, "h", MIXED),
        ("shuffled, shuffled rewards, PPO rewards shuffled", PURPLE, "s", DOTTED),
        # Commas and blanks do not count: "selection, in every maze".
        ("selection in every maze", GREEN, "s", SOLID),
        ("selection by the maze", SKY, "s", DASHED),
        ("change within personas", VERMILION, "s", SOLID),
        ("name given to the same deeds, misfit as the model meets it", GREY, "s", DOTTED),
    )
    for name in names.split(", ")
}
_OTHERS = [Style(c, m, d) for d, m, c in itertools.product(DASHES, MARKERS, COLOURS)]


def known(name: str) -> Style | None:
    """The style of an arm that has one of its own, by its title or its key."""
    return _ARMS.get(_key(name))


def _point(name: str) -> tuple[str, str]:
    """The point of a grid, and what else a name says."""
    parts = name.split(", ")
    return ", ".join(part for part in parts if "=" in part), ", ".join(part for part in parts if "=" not in part)


def of_panels(panels: Sequence[Sequence[str]], rows: Sequence[Sequence[str]] = ()) -> dict[str, Style]:
    """A style for each name of a figure, from those of its panels and of its panels of rows; see `of_all`.

    What is said of an arm, such as `PPO: axis`, looks like the arm, unless a panel has two things to say of it. An arm
    at some setting, such as `PPO, 0.001`, does so where only rows name it, which stand beside their names; points of a
    grid keep their colours.
    """
    drawn = {name for panel in panels for name in panel}
    names = {name: name.partition(": ")[0] for panel in (*panels, *rows) for name in panel}
    twice = {arm for panel in (*panels, *rows) for arm, count in Counter(map(names.get, panel)).items() if count > 1}
    arms = {name: name if arm in twice else arm for name, arm in names.items()}
    arms |= {name: _arm(name, drawn) for name, arm in arms.items() if name == arm and name not in drawn}
    styles = of_all(arms.values())
    return {name: styles[arm] for name, arm in arms.items()}


def _arm(name: str, others: Collection[str]) -> str:
    """The arm of a name that says a setting of it after a comma, if it is known or among others; or the name."""
    if known(name) or "=" in name:
        return name
    parts = name.split(", ")
    shorter = (", ".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return next((arm for arm in shorter if arm in others or known(arm)), name)


def of_all(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name of a figure, no two alike.

    Known arms look the same everywhere, and so do further names where nothing in the figure looks like them. Points of
    a grid, such as `rl.learning_rate=0.001`, go from dark to light in their order, whatever else is said of them.
    """
    names = list(dict.fromkeys(names))
    styles = {name: style for name in names if (style := known(name))}
    split = {name: _point(name) for name in names if "=" in name and name not in styles}
    points, rests = (list(dict.fromkeys(parts)) for parts in zip(*split.values(), strict=True)) if split else ((), ())
    for name, (point, rest) in split.items():
        place, other = points.index(point), rests.index(rest)
        colour = colors.to_hex(colormaps["viridis"](0.85 * place / max(len(points) - 1, 1)))
        styles[name] = Style(colour, MARKERS[(place + other) % len(MARKERS)], DASHES[other % len(DASHES)])
    for name in names:
        if name not in styles:
            taken = list(styles.values())
            hues, start = [style.colour for style in taken], zlib.crc32(_key(name).encode())
            order = range(start, start + len(_OTHERS))
            free = [_OTHERS[place % len(_OTHERS)] for place in order]
            styles[name] = min(free, key=lambda style: (style in taken, hues.count(style.colour)))
    return {name: styles[name] for name in names}


@functools.lru_cache(4096)
def wide(text: str, size: float = SMALL, weight: str = "normal") -> float:
    """Width of text in inches; of the longest of its lines, or of the picture that stands for it."""
    if text in tokens.VOCABULARY:
        return PICTURE / 72
    font = FontProperties(size=size, weight=weight)
    return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


def wrapped(text: str, inches: float, size: float = SMALL, weight: str = "normal") -> str:
    """Text in lines that fit into a width, broken at spaces; longer words after one of `=_/` or anywhere."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in paragraph.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and wide(longer, size, weight) > inches:
                lines.append(word)
            else:
                lines[-1] = longer
            while wide(lines[-1], size, weight) > inches and len(lines[-1]) > 1:
                whole = lines.pop()
                fitting = [n for n in range(1, len(whole)) if wide(whole[:n], size, weight) <= inches] or [1]
                end = max([n for n in fitting if whole[n - 1] in "=_/"] or fitting)
                lines += [whole[:end], whole[end:]]
    return "\n".join(lines)


def tall(text: str, size: float = SMALL) -> float:
    """Height of text in inches."""
    return (text.count("\n") + 1) * size * LINE / 72


def name_ticks(axes: Axes, side: str, names: Iterable[str], inches: float, start: float = 0.0) -> None:
    """Names at `start`, `start` + 1, … of an axis, wrapped to a width; an emoji of the vocabulary becomes its picture.

    Args:
        axes: where.
        side: `x` or `y`.
        names: one for each place.
        inches: how wide a name may be.
        start: the first place.
    """
    axis, names = getattr(axes, f"{side}axis"), list(names)
    pictured = {place: tokens.VOCABULARY.index(name) for place, name in enumerate(names) if name in tokens.VOCABULARY}
    words = ["" if place in pictured else wrapped(name, inches) for place, name in enumerate(names)]
    if pictured and side == "x":
        axis.labelpad = PICTURE
    axis.set_ticks(start + np.arange(len(names)), words)
    for place, token in pictured.items():
        beside = -4 - PICTURE / 2
        at, away = ((start + place, 0), (0, beside)) if side == "x" else ((0, start + place), (beside, 0))
        box = AnnotationBbox(
            OffsetImage(np.asarray(sprites.sprite(token)), zoom=PICTURE / sprites.CELL), at, away,
            xycoords=getattr(axes, f"get_{side}axis_transform")(), boxcoords="offset points",
            frameon=False, pad=0, annotation_clip=False,
        )  # fmt: skip
        axes.add_artist(box)
