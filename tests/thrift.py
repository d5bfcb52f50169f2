"""What the fast tests leave to the slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], first: int = 1) -> list[Any]:
    """Cases of a parameter, of which only the first are fast.

    Args:
        cases: values of the parameter, or tuples of values of several.
        first: so many are fast; the others have the mark `slow`.
    """
    every = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] * (place >= first)) for place, case in enumerate(every)]
