"""Rooms on floors: a module imports its own room and floors below, and no file outgrows a reader."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    ("ground",),
    ("envs",),
    ("agents.policies",),
    ("agents.learning",),
    ("agents.runs",),
    ("analysis",),
    ("train",),
    ("studies", "benchmarks"),
    ("tests",),
]
"""Rooms from the bottom to the top; two on one floor do not know each other."""

DISK = ("ground.files", "ground.checkpoints", "pathlib", "os", "io", "shutil", "tempfile")
"""Modules by which code reaches files."""

HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def files(room: str) -> list[Path]:
    place = ROOT / room.replace(".", "/")
    return sorted(place.rglob("*.py")) or [place.with_suffix(".py")]


@functools.cache
def imported(path: Path) -> list[str]:
    """Everything that a file imports, anywhere in the file, by its whole name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: say the whole name in place of a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def rooms_imported(path: Path) -> dict[str, str]:
    """Room of ours → what a file imports from it."""
    return {room: name for room in HEIGHT for name in imported(path) if f"{name}.".startswith(f"{room}.")}


@pytest.mark.parametrize("room", HEIGHT)
def test_imports_go_down(room):
    for path in files(room):
        for other, name in rooms_imported(path).items():
            assert other == room or HEIGHT[other] < HEIGHT[room], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ["agents.policies", "agents.learning"])
def test_what_learns_touches_no_disk(room):
    for path in files(room):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        opened = ["open" for function in calls if isinstance(function, ast.Name) and function.id == "open"]
        names = [name for name in imported(path) for disk in DISK if f"{name}.".startswith(f"{disk}.")]
        assert not names + opened, f"{path.relative_to(ROOT)} reaches for files by {names + opened}"


def test_every_file_is_in_a_room_and_has_at_most_500_lines():
    ours = {path for room in HEIGHT for path in files(room)}
    for name in ("ground", "envs", "agents", "analysis", "studies", "benchmarks", "tests"):
        assert ours >= set((ROOT / name).rglob("*.py"))
    long = {path.name: lines for path in ours if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long


def test_an_import_that_goes_up_is_noticed(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("def late():\n    from agents import runs, learning\n    import analysis.measure\n    import jax\n")
    assert rooms_imported(path) == {
        "agents.runs": "agents.runs",
        "agents.learning": "agents.learning",
        "analysis": "analysis.measure",
    }
