"""Numbers as people read them: one minus sign, and as many digits as an interval deserves."""

import math


def shown(mean: float, low: float = math.nan, high: float = math.nan, *, percent: bool = False) -> str:
    """A mean with its interval, such as `0.31 [0.28, 0.34]`; without one the mean alone, `–` where there is none.

    Digits follow the interval: its width has two. Without an interval the mean has three.

    Args:
        mean, low, high: NaN where there is none.
        percent: show a share as a percentage, without the sign %.
    """
    if not math.isfinite(mean):
        return "–"
    scale = 100.0 if percent else 1.0
    mean, low, high = mean * scale, low * scale, high * scale
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(mean, digits_after_the_point(abs(mean), 3))
    digits = digits_after_the_point(high - low or abs(mean), 2)
    return f"{number(mean, digits)} [{number(low, digits)}, {number(high, digits)}]"


def told_apart(value: float) -> str:
    """A setting in as few digits as give it back, six where those do: 0.001, but 0.0010000001."""
    short = f"{value:g}"
    return short if float(short) == value or value != value else repr(float(value))


def digits_after_the_point(size: float, significant: int) -> int:
    """How many digits show a number of this size with so many significant ones; none above that many before."""
    if not (math.isfinite(size) and size > 0):
        return 0
    return min(max(significant - 1 - math.floor(math.log10(size)), 0), 8)


def number(value: float, digits: int) -> str:
    """A number with so many digits after the point."""
    return signed(value, f",.{digits}f")


def signed(value: float, form: str = "+.1f") -> str:
    """A number in a format of Python's, with a real minus; no minus zero."""
    text = format(value, form)
    return text.replace("-", "−") if float(text.replace(",", "")) else format(0.0, form)
