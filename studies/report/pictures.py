"""The small figure of a criterion: bases as dots, their mean and interval, and where the prediction puts it."""

import dataclasses
import math
from typing import Any

from ground import numbers

WIDTH, MARGIN = 320.0, 12.0
"""Of the picture, in its own units."""


@dataclasses.dataclass(frozen=True)
class IntervalPlot:
    """Places along the axis, in units of the picture."""

    bar: float
    """Where the criterion's bar stands."""
    predicted: tuple[float, float]
    """Left edge and width of the side that was predicted."""
    bases: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    ticks: tuple[tuple[float, str], ...]
    words: str
    """For those who do not see it."""


def interval_plot(estimate: dict[str, Any] | None, criterion: dict[str, Any]) -> IntervalPlot | None:
    """What to draw of an estimate as `verdict.json` holds it; None where nothing was measured."""
    if estimate is None or estimate["mean"] is None or not math.isfinite(estimate["mean"]):
        return None
    bases = [float(value) for value in estimate["values"] if value is not None and math.isfinite(value)]
    shown = [*bases, float(estimate["mean"]), float(criterion["bar"]), *(estimate["interval"] or ())]
    low, high = min(shown), max(shown)
    room = (high - low or abs(high) or 1.0) * 0.08
    low, high = low - room, high + room

    def place(value: float) -> float:
        return round(MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN), 1)

    bar, above = place(criterion["bar"]), criterion["side"] == ">"
    ends = [place(float(end)) for end in estimate["interval"] or ()]
    return IntervalPlot(
        bar,
        (bar, round(WIDTH - bar, 1)) if above else (0.0, bar),
        tuple(map(place, bases)),
        place(float(estimate["mean"])),
        (ends[0], ends[1]) if ends else None,
        tuple((place(value), text) for value, text in _ticks(low, high)),
        f"{len(bases)} bases as dots, their mean and interval; predicted is what lies "
        f"{'above' if above else 'below'} {numbers.signed(criterion['bar'], 'g')}",
    )


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Some four round numbers, with as many digits as they need."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, numbers.signed(index * step, f",.{digits}f")) for index in range(first, last + 1)]
