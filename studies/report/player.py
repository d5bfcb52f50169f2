"""The frame of the maze replay; `assets/player.js` fills it from a recording."""

import dataclasses
from collections.abc import Sequence

from studies.report import parts
from studies.report.markup import Markup, join, tag

SCRIPTS = ("vocabulary.js", "board.js", "player.js")
"""What a page with a replay runs."""

_KEYS = "Keys, while the replay has the focus: left and right arrow a turn, Home and End first and last, space plays."
_SPEEDS = {"0.5": "half", "1": "normal", "2": "double", "4": "fourfold"}
_BUTTONS = (
    ("first", "First turn", ("M5 3v10", "M13 3 7 8l6 5z")),
    ("back", "One turn back", ("M11 3 5 8l6 5z",)),
    ("play", "Play", ("M5 2.5 13 8l-8 5.5z",)),
    ("step", "One turn on", ("M5 3l6 5-6 5z",)),
    ("last", "Last turn", ("M11 3v10", "M3 3l6 5-6 5z")),
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A recording in the site."""

    key: str
    """What its script enters it under."""
    label: str
    """Name of the arm."""
    path: str
    """Of the script, in the site."""


def player(arms: Sequence[Arm], notes: Sequence[str]) -> Markup:
    """The controls, two boards and the line that says what happens."""
    told = [tag("p", note, class_="missing") for note in notes]
    if not arms:
        return join(told or [tag("p", "There is nothing to replay.", class_="missing")])
    options = (tag("option", arm.label, value=arm.key, data_script=parts.link(arm.path)) for arm in arms)
    choices = tag(
        "div",
        _choice("arm", "Arm", *options),
        _choice("member", "Member"),
        _choice("episode", "Maze"),
        _choice("speed", "Speed", *(tag("option", word, value=x, selected=x == "1") for x, word in _SPEEDS.items())),
        class_="choices",
    )
    buttons = tag(
        "div",
        *(
            tag("button", _icon(lines), type="button", data_action=name, aria_label=label, title=label, disabled=True)
            for name, label, lines in _BUTTONS
        ),
        tag("label", tag("span", "Turn", class_="label"), _slider(), class_="slider"),
        class_="buttons",
    )
    return join(
        (
            tag(
                "p",
                "The same maze and the same weather, before RL and after. The mazes are the same few for every member, "
                "and were not picked; the member shown first is the one nearest the median after RL. A projection is "
                "on the axis of that checkpoint, and its zero is the mean over these episodes: compare turns with each "
                "other, not the level before RL with the level after.",
                class_="muted",
            ),
            *told,
            tag("noscript", tag("p", "The replay needs JavaScript, from this folder alone.", class_="missing")),
            tag(
                "div",
                choices,
                buttons,
                tag("p", "Loading the episodes …", class_="turn", aria_live="polite", data_part="turn"),
                tag("div", _side(), _side(), class_="sides"),
                tag("p", _KEYS, class_="muted keys"),
                class_="player",
                data_part="player",
                role="group",
                tabindex="0",
                aria_label=f"Maze replay. {_KEYS}",
            ),
        )
    )


def _choice(name: str, label: str, *options: Markup) -> Markup:
    identity = f"replay-{name}"
    field = tag("select", *options, id=identity, data_choice=name, disabled=name != "speed" or None)
    return tag("div", tag("label", label, for_=identity, class_="label"), field)


def _slider() -> Markup:
    return tag("input", type="range", min="0", max="1", value="0", step="1", data_choice="turn", disabled=True)


def _icon(lines: Sequence[str]) -> Markup:
    return tag("svg", *(tag("path", d=line) for line in lines), viewBox="0 0 16 16", aria_hidden="true", class_="icon")


def _side() -> Markup:
    """One checkpoint: its board, what it is about to do, and how it has fared."""
    return tag(
        "section",
        tag("h3", "", data_part="name"),
        tag("p", "", class_="muted", data_part="mean"),
        tag("div", tag("table", data_part="board"), class_="board-frame"),
        tag("div", class_="reads", data_part="reads"),
        tag("ol", class_="chances", data_part="chances", aria_label="Probability of each move"),
        tag("dl", class_="fortune", data_part="fortune"),
        tag("div", data_part="charts", class_="charts"),
        class_="side",
        data_part="side",
    )
