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


def test_numbers_below_the_last_digit_have_powers_of_ten():
    assert numbers.shown(3.2e-10, 3.0e-10, 3.4e-10) == "3.20e−10 [3.00e−10, 3.40e−10]"
    assert numbers.shown(-3.2e-10, -4.12e-9, 0.0) == "−3e−10 [−4.1e−09, 0]"
    assert numbers.shown(3.2e-10, 3.2e-10, 3.2e-10) == "3.2e−10 [3.2e−10, 3.2e−10]"
    assert numbers.shown(4.56e-12) == "4.56e−12"
    assert numbers.shown(4.56e-12, percent=True) == "4.56e−10"
    assert numbers.shown(5e-324, 0.0, 5e-324).startswith("4.9e−324 [0, ")
    for size in (3.2e-9, -3.2e-10):  # a map has as many digits for all of its cells
        assert numbers.number(size, numbers.digits_after_the_point(abs(size), 2)) == f"{size:.1e}".replace("-", "−")
    # Where eight digits show something of one of the numbers, nothing changes.
    assert numbers.shown(0.0, -1e-9, 2e-8) == "0.00000000 [0.00000000, 0.00000002]"
    assert numbers.shown(0.5, 0.5 - 1e-10, 0.5 + 1e-10) == "0.50000000 [0.50000000, 0.50000000]"
    assert numbers.shown(1e-8) == "0.00000001"
    assert numbers.shown(0.0, 0.0, 0.0) == "0 [0, 0]"
