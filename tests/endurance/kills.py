"""Signals at many moments of a run, aimed at its file operations: nothing may be lost, not a bit may differ."""

import collections
import random
import re
import signal
import sys
from pathlib import Path
from typing import Any

from tests.endurance import children
from tests.endurance.children import End, Strike

PART = 3
"""A signal comes within this part of the uninterrupted run's file operations: every run gets several, and gets on."""
PATIENCE_SECONDS = 10.0
"""How long a process may take to end after a signal that asks it to."""


def attack(tries: int, folder: Path, seed: int, size: str, numbers: tuple[signal.Signals, ...]) -> dict[str, Any]:
    """Send signals to runs until `tries` have found them at work, and bring each run to its end.

    Args:
        tries: how many signals.
        folder: an empty one to work in.
        seed: of where they strike.
        size: of the run, see `options`.
        numbers: signals to draw from.

    Returns:
        What was done, as plain values.

    Raises:
        AssertionError: something was lost; the message tells what.
    """
    children.prepare(folder / "compiled")
    rng = random.Random(seed)
    whole = folder / "whole"
    uninterrupted = children.run(lambda: life(whole, size), whole, folder)
    children.expect(uninterrupted, 0)
    ahead = len(uninterrupted.operations) // PART
    places, exact, slowest, finished = collections.Counter(), 0, 0.0, 0
    while places.total() < tries or not finished:
        broken, status = folder / f"broken-{finished}", 1
        while status:
            strikes = []
            if places.total() < tries:
                delay = 0.0 if rng.random() < 0.5 else rng.choice((0.001, 0.01, 0.1, 0.5))
                strikes = [Strike(rng.randint(1, ahead), delay, rng.choice(numbers))]
            end = children.run(lambda at=broken: life(at, size), broken, folder, *strikes)
            status = end.status
            if not strikes:
                children.expect(end, 0)
            if status:
                slowest = max(slowest, _as_asked(end, strikes))
                places[place(end.operations[strikes[0].operation - 1][1])] += 1
                exact += not strikes[0].delay
        children.expect(children.run(lambda at=broken: compare(whole, at), broken, folder), 0)
        finished += 1
        print(f"{places.total()} of {tries}, {finished} runs", file=sys.stderr)
    return {
        "tries": places.total(),
        "losses": 0,
        "runs": finished,
        "places": dict(sorted(places.items())),
        "exactly before an operation": exact,
        "slowest_seconds": slowest,
    }


def _as_asked(end: End, strikes: list[Strike]) -> float:
    """Seconds that a process took to end after a signal, as it should end after that one."""
    assert end.struck is not None, f"it ended by itself with status {end.status}:\n{end.errors}"
    number = strikes[0].signal
    if number == signal.SIGKILL:
        children.expect(end, -number)
        return 0.0
    children.expect(end, 128 + number)
    assert len(end.errors.strip().splitlines()) == 1, end.errors
    seconds = end.seconds - end.struck
    assert seconds < PATIENCE_SECONDS, f"{seconds:.1f} s after {number.name} at {end.operations[-1]}"
    return seconds


def place(operation: str) -> str:
    """What kind of file an operation of a child changes."""
    top, _, rest = operation.partition(" ")[2].partition("/")
    if top == "checkpoints":
        return "training state" if rest.startswith("state/") else "parameters"
    return {"metrics": "metrics", "figures": "figures"}.get(top, "config, lock or summary")


def options(size: str) -> list[str]:
    """Options of `train.py` that make a run: "tiny", of 32 chunks, or "smoke". For children alone."""
    from tests import tiny

    return tiny.arguments(tiny.LONGER) if size == "tiny" else ["--scale=smoke"]


def life(path: Path, size: str) -> int:
    """Look at what is there, as a user would, and train from there to the end. For children alone."""
    import train
    from agents import runs

    if not (path / "config.json").exists():
        return train.main([*options(size), "--run-dir", str(path)])
    try:
        run = runs.open(path)
        run.metrics()
        for name in run.checkpoints():
            run.parameters(name)
    except runs.RunError as error:
        print(error, file=sys.stderr)
        return 2
    return train.main(["--resume", str(path)])


def compare(whole: Path, broken: Path) -> int:
    """Whether a run is the same as the uninterrupted one, and leaves nothing that the other does not."""
    from agents import runs
    from tests import equality

    equality.same_training(runs.open(whole), runs.open(broken))
    names = [_names(run) for run in (whole, broken)]
    assert names[0] == names[1], names[0] ^ names[1]
    return 0


def _names(run: Path) -> set[str]:
    """What lies in a run, but for arrays, whose files have random names, and the states that the clock saved."""
    every = [path.relative_to(run) for path in run.rglob("*")]
    states = {path.parts[2] for path in every if path.parts[:2] == ("checkpoints", "state") and len(path.parts) > 2}
    assert 1 <= len(states) <= 2, states
    kept = (path for path in every if "arrays" not in path.parts)
    return {re.sub(r"(checkpoints/state/)[a-z]+-\d+", r"\1N", str(path)) for path in kept}
