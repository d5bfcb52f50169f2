"""SIGKILL at many moments of a run, aimed at its file operations: nothing may be lost, not a bit may differ."""

import collections
import dataclasses
import random
import re
import time
from pathlib import Path

from tests.endurance import children
from tests.endurance.children import End, Strike

AHEAD = 40
"""A kill comes within so many file operations of the process's start, so that runs are killed many times each."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What many kills did."""

    kills: int
    runs: int
    """Runs that were killed and came to their end, each the same to the bit as the uninterrupted one."""
    places: dict[str, int]
    """Kills by the kind of file that was being changed."""
    before: int
    """Kills that came exactly before a file operation; the others came some time after one."""
    seconds: float


def attack(kills: int, folder: Path, seed: int = 0) -> Outcome:
    """Kill runs until `kills` kills are counted, and bring each run to its end.

    Args:
        kills: how many.
        folder: an empty one to work in.
        seed: of where they strike.

    Raises:
        AssertionError: something was lost; the message tells what.
    """
    children.cache(folder / "compiled")
    children.load()
    rng, begun = random.Random(seed), time.monotonic()
    whole = folder / "whole"
    _expect(_child(lambda: _life(whole), whole, folder), 0)
    counted, before, finished = collections.Counter(), 0, 0
    while counted.total() < kills or finished == 0:
        broken = folder / f"broken-{finished}"
        while True:
            strikes, exact = [], rng.random() < 0.5
            if counted.total() < kills:
                strikes = [Strike(rng.randint(1, AHEAD), 0.0 if exact else rng.choice((0.001, 0.01, 0.1, 0.5)))]
            end = _child(lambda at=broken: _life(at), broken, folder, *strikes)
            if end.status == 0:
                break
            _expect(end, -9)
            counted[_place(end)] += 1
            before += exact
        _expect(_child(lambda at=broken: _compare(whole, at), broken, folder), 0)
        finished += 1
    return Outcome(counted.total(), finished, dict(sorted(counted.items())), before, time.monotonic() - begun)


def _child(function, directory: Path, folder: Path, *strikes: Strike) -> End:
    return children.run(function, directory, folder, *strikes)


def _expect(end: End, status: int) -> None:
    assert end.status == status, f"status {end.status} after {end.operations[-3:]}:\n{end.errors}"


def _place(end: End) -> str:
    """What kind of file a run was changing when it was killed."""
    path = end.operations[-1][1].partition(" ")[2]
    top, _, rest = path.partition("/")
    if top == "checkpoints":
        return "training state" if rest.startswith("state/") else "parameters"
    return {"metrics": "metrics", "figures": "figures"}.get(top, "config, lock or summary")


def _life(path: Path) -> int:
    """Look at what is there, as a user would, and train from there to the end."""
    import train
    from agents import runs
    from tests import tiny

    if not (path / "config.json").exists():
        return train.main([*tiny.arguments(tiny.LONGER), "--run-dir", str(path)])
    run = runs.open(path)
    run.metrics()
    for name in run.checkpoints():
        run.parameters(name)
    return train.main(["--resume", str(path)])


def _compare(whole: Path, broken: Path) -> int:
    """Whether a run is the same as the uninterrupted one, and nothing but a run."""
    from agents import runs
    from tests import equality

    equality.same_training(runs.open(whole), runs.open(broken))
    names = [_names(run) for run in (whole, broken)]
    assert names[0] == names[1], names[0] ^ names[1]
    return 0


def _names(run: Path) -> set[str]:
    """What lies in a run, but for arrays, whose files have random names, and numbers of training states."""
    every = (path.relative_to(run) for path in run.rglob("*"))
    return {re.sub(r"(state/rl)-\d+", r"\1", str(path)) for path in every if "arrays" not in path.parts}
