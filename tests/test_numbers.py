"""Numbers as people read them."""

import pytest

from ground import numbers


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (-1.25, "+.1f", "−1.2"),
        (1.25, "g", "1.25"),
        (-0.04, "+.1f", "+0.0"),
        (-0.0, ",g", "0"),
        (-1234.5, ",g", "−1,234.5"),
        (float("-inf"), "+.1f", "−inf"),
    ],
)
def test_signs_are_real_and_zero_has_no_minus(value, form, expected):
    assert numbers.signed(value, form) == expected


def test_digits_follow_the_interval():
    assert numbers.shown(0.3123, 0.2789, 0.3391) == "0.312 [0.279, 0.339]"
    assert numbers.shown(-0.0004, -0.01, 0.2) == "0.00 [−0.01, 0.20]"
    assert numbers.shown(0.5, percent=True) == "50.0"
    assert numbers.shown(float("nan")) == "–"


@pytest.mark.parametrize(
    ("value", "words"), [(0.001, "0.001"), (3e-05, "3e-05"), (0.0010000001, "0.0010000001"), (1e6 + 1, "1000001.0")]
)
def test_settings_that_differ_are_written_differently(value, words):
    assert numbers.told_apart(value) == words
    assert float(words) == value
