"""Arms of several worlds beside each other: each has its own floor, and one serves all where they agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analysis import directions, estimates
from analysis.figures.panels import Curves, Rows
from analysis.measure import REGISTRY
from analysis.measures.attention import LONGEST, RELATIONS
from analysis.measures.beliefs import BADGES
from envs import personas

MEMBERS = 2


def dataset(variables: dict[str, tuple[str, float]], **coords: Any) -> xr.Dataset:
    """What a measurement says of a run at its end: each variable has one value everywhere, on axes by their names."""
    sizes = {name: len(values) for name, values in coords.items()} | {"checkpoint": 1, "member": MEMBERS}
    filled = {
        name: (names, np.full([sizes[axis] for axis in names], value))
        for name, (dims, value) in variables.items()
        for names in [["checkpoint", *dims.split()]]
    }
    labels = {"point": ("member", [""] * MEMBERS), "unit": (("checkpoint", "member"), [[*range(MEMBERS)]])}
    return xr.Dataset(filled, {**coords, **labels, "checkpoint": ["rl"], "member": [*range(MEMBERS)]})


def attempts(floor: float) -> xr.Dataset:
    measured = {"pass_at_k": ("member k", 0.9), "cover": ("member tau", 0.9)}
    chance = {"random_pass_at_k": ("k", floor), "random_cover": ("tau", floor)}
    made = dataset(measured | chance, k=[1, 2], tau=[0.5, 1.0])
    return made.assign_coords(distance=("maze", [np.nan]))


def swept(floor: float) -> xr.Dataset:
    made = attempts(floor)
    chance = {name: made[name].expand_dims(member=made["member"]) for name in ("random_pass_at_k", "random_cover")}
    return made.assign(chance)


def attention(floor: float) -> xr.Dataset:
    shares = {"at_choices": ("member head relation", 0.9), "to_kind": ("member head kind", 0.9)}
    best = {"strongest": ("member relation", 0.9), "uniform": ("member relation", floor), "said": ("member key", 0)}
    return dataset(shares | best, head=["one"], relation=list(RELATIONS), kind=["a"], key=[*range(LONGEST + 1)])


def probes(floor: float) -> xr.Dataset:
    axes = {"entry": [0, 1], "labels": ["own", "another's"], "target": ["walls"]}
    made = dataset({"error": ("member entry labels target", 0.9)}, **axes)
    return made.assign(error=made["error"].where(made["labels"] == "own", floor))


def beliefs(floor: float) -> xr.Dataset:
    shares = {name: ("member persona turn believed", x) for name, x in (("implied", 0.9), ("ideal", floor))}
    prior = {"prior": ("believed", floor)}
    rest = {"badge_kl": ("member persona badge", 0.9), "episodes": ("member persona turn", 32)}
    names = list(personas.PERSONAS)
    return dataset(shares | prior | rest, persona=names, believed=names, turn=[1, 2], badge=list(BADGES))


def tracking(floor: float) -> xr.Dataset:
    dims = "site outcome"
    d = {"axis": (f"member {dims}", 0.9), "d": (f"member direction {dims}", 0.9)}
    axes = {"direction": list(directions.NAMES), "site": ["move"], "outcome": ["next_same_move", "rest"]}
    return dataset(d | {"limit": (f"member control {dims}", floor)}, control=["random"], **axes)


CASES: list[tuple[Callable[[float], xr.Dataset], str, str, int]] = [
    (attempts, "attempts", "random player", 0),
    (attempts, "attempts", "random player", 1),
    (swept, "attempts", "random player", 0),
    (attention, "attention", "uniform", -1),
    (probes, "probes", "another episode's", 0),
    (beliefs, "beliefs", "ideal observer", 0),
    (beliefs, "beliefs", "prior", 0),
    (tracking, "tracking", "random, 97.5 %", 0),
]
"""What makes a dataset with a floor, whose it is, what the floor is called, and which panel shows it."""


def drawn(name: str, floor: str, panel: int, arms: dict[str, xr.Dataset]) -> dict[str, float]:
    """The floors of a panel, by the arm that stands before their name."""
    panels = REGISTRY[name].panels
    assert panels is not None
    shown = list(panels(arms))[panel]
    assert isinstance(shown, Rows | Curves)
    lines = {label: float(curve.mean()[1][0]) for label, curve in getattr(shown, "curves", {}).items()}
    found = {label: value for label, value in (lines | dict(shown.marks)).items() if label.endswith(floor)}
    return {label.removesuffix(floor).partition(", ")[0]: value for label, value in found.items()}


@pytest.mark.parametrize(("make", "name", "floor", "panel"), CASES)
def test_every_arm_has_its_own_floor_and_one_serves_all_where_they_agree(make, name, floor, panel):
    easy, hard = make(0.6), make(0.1)
    for arms in ({"easy": easy, "hard": hard}, {"hard": hard, "easy": easy}):
        assert drawn(name, floor, panel, arms) == pytest.approx({"easy": 0.6, "hard": 0.1})
    assert drawn(name, floor, panel, {"easy": easy, "same": make(0.6)}) == pytest.approx({"": 0.6})
    assert drawn(name, floor, panel, {"easy": easy}) == pytest.approx({"": 0.6})


def test_directions_of_one_arm_stand_beside_its_own_limit():
    panels = REGISTRY["tracking"].panels
    assert panels is not None
    last = panels({"easy": tracking(0.6), "hard": tracking(0.1)})[-1]
    assert last.marks == pytest.approx({"random, 97.5 %": 0.1})


def test_floors_are_the_same_but_for_rounding_and_where_they_are_told_alike():
    line = xr.DataArray([0.1, np.nan], {"k": [1, 2]}, ["k"])
    for other in (line, line + 1e-8):
        assert list(estimates.floors({"a": line, "b": other}, "luck")) == ["luck"]
    for other in (line.fillna(0.1), line + 1e-3, line[:1], line.assign_coords(k=[1, 3]), line.mean()):
        assert list(estimates.floors({"a": line, "b": line, "c": other}, "luck")) == ["a, luck", "b, luck", "c, luck"]
    assert list(estimates.floors({"a": np.nan, "b": np.nan}, "luck")) == ["luck"]
    assert list(estimates.floors({"a": np.nan, "b": 0.0}, "luck")) == ["a, luck", "b, luck"]
