"""Numbers for people: estimates in words, why a criterion was decided, and intervals as small pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.figures import learning_curve
from studies import claims
from studies.report.markup import Markup, join, tag

_WIDTH, _HEIGHT, _MARGIN = 320.0, 34.0, 12.0


def signed(value: float | None) -> str:
    """A number with its sign and three digits; a dash for none."""
    if value is None:
        return "–"
    return "0" if value == 0 else learning_curve.signed(value, "+.3g")


def words(name: str) -> str:
    """An estimate's name as words."""
    return name.replace("_", " ")


def interval(estimate: Mapping[str, Any] | None) -> str:
    """The 95 % interval, such as +0.1 to +0.3; a dash for none."""
    if estimate is None or estimate["interval"] is None:
        return "–"
    return " to ".join(signed(end) for end in estimate["interval"])


def sentence(name: str, estimate: Mapping[str, Any] | None) -> Markup:
    """An estimate, what it is and its interval, in a line."""
    if estimate is None or estimate["mean"] is None:
        return tag("span", f"{words(name)}: not measured")
    ends = "no interval" if estimate["interval"] is None else f"95 % interval {interval(estimate)}"
    return join(
        (
            tag("strong", signed(estimate["mean"]), class_="figure-number"),
            tag("span", f" {estimate['meaning']} ", class_="name"),
            tag("span", f"({ends})", class_="muted"),
        )
    )


def reason(criterion: Mapping[str, Any], estimate: Mapping[str, Any] | None) -> str:
    """Why a criterion was decided as it was."""
    side, bound = criterion["side"], signed(criterion["bound"])
    if estimate is None:
        return "This was not measured at this scale, so it decides nothing."
    if estimate["members"] < claims.MEMBERS:
        counted = f"{estimate['members']} member{'' if estimate['members'] == 1 else 's'}"
        return f"Measured over {counted}; fewer than {claims.MEMBERS} decide nothing."
    if estimate["interval"] is None:
        return "There is no interval, so it decides nothing."
    low, high = estimate["interval"]
    if criterion["verdict"] == "inconclusive":
        return f"The interval {interval(estimate)} holds the bound {bound}."
    where = "above" if low > criterion["bound"] else "below" if high < criterion["bound"] else "around"
    predicted = "as predicted" if where == side else f"where {side} was predicted"
    return f"The interval {interval(estimate)} lies wholly {where} {bound}, {predicted}."


def plot(criterion: Mapping[str, Any], estimate: Mapping[str, Any] | None) -> Markup | None:
    """The interval beside its bound, members as dots, the predicted side shaded; what it shows is said beside it."""
    if estimate is None or estimate["mean"] is None:
        return None
    mean, bound = estimate["mean"], criterion["bound"]
    members = [value for value in estimate["values"] if value is not None]
    ends = estimate["interval"] or []
    shown = np.array([mean, bound, *members, *ends], np.float64)
    low, high = float(shown.min()), float(shown.max())
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(_MARGIN + (value - low) / span * (_WIDTH - 2 * _MARGIN), 1)

    middle = _HEIGHT / 2
    left, right = (x(bound), _WIDTH) if criterion["side"] == "above" else (0.0, x(bound))
    parts = [
        tag("rect", x=left, y=0, width=round(right - left, 1), height=_HEIGHT, class_="predicted"),
        tag("line", x1=x(bound), x2=x(bound), y1=0, y2=_HEIGHT, class_="bound"),
        *(tag("circle", cx=x(value), cy=middle, r=3, class_="member") for value in members),
    ]
    if ends:
        parts.append(tag("line", x1=x(ends[0]), x2=x(ends[1]), y1=middle, y2=middle, class_="interval"))
    at = x(mean)
    diamond = f"{at},{middle - 6} {at + 6},{middle} {at},{middle + 6} {at - 6},{middle}"
    parts.append(tag("polygon", points=diamond, class_="mean"))
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", class_="interval-plot", aria_hidden="true")
