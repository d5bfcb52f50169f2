"""A full disk and damaged files: one clear line, nothing good deleted, and the run goes on after it."""

import collections
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.endurance import children, kills
from tests.endurance.children import Strike

KINDS = ("bit", "half", "empty", "gone", "folder")
"""A bit turned over, the second half lost, all of it lost, the file gone, a folder in its place."""
ROOM = 4 << 20
"""Bytes that suffice for a run of the tests."""


def fill(tries: int, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Train on disks too small for the run, make room, and go on; arguments and errors as of `kills.attack`."""
    children.prepare(folder / "compiled")
    rng, whole = random.Random(seed), folder / "whole"
    children.expect(children.run(lambda: kills.life(whole, size), whole, folder), 0)
    places = collections.Counter()
    while places.total() < tries:
        disk = folder / "disk"
        disk.mkdir(exist_ok=True)
        capacity = 4096 * rng.randint(1, ROOM // 4096 // 4)
        _mount(disk, capacity)
        try:
            run = disk / "run"
            end = children.run(lambda at=run: kills.life(at, size), run, folder)
            if end.status == 0:
                continue
            children.expect(end, 2)
            _one_line(end.errors, str(run), "free some space")
            places[kills.place(end.operations[-1][1]) if end.operations else "run directory"] += 1
            _mount(disk, ROOM, "remount,")
            children.expect(children.run(lambda at=run: kills.life(at, size), run, folder), 0)
            children.expect(children.run(lambda at=run: kills.compare(whole, at), run, folder), 0)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return {"tries": places.total(), "losses": 0, "places": dict(sorted(places.items()))}


def _mount(disk: Path, capacity: int, how: str = "") -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={capacity}", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"endurance full-disk: cannot mount a small disk ({done.stderr.strip()}); run it as root")


def damage(tries: int, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Damage one file of a run that was killed on its way, then go on with it; arguments and errors as above.

    What must come of it is either the uninterrupted run's end to the bit, with a word where an older training state
    was used; or one line that names the run and a remedy, after which the run with the file restored goes on to that
    end.
    """
    children.prepare(folder / "compiled")
    rng, whole = random.Random(seed), folder / "whole"
    children.expect(children.run(lambda: kills.life(whole, size), whole, folder), 0)
    made, broken = [*_killed(folder, rng, size), whole], folder / "broken"
    outcomes, places = collections.Counter(), collections.Counter()
    for number in range(tries):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(made[number % len(made)], broken)
        # Each kind of file as often, since arrays are many.
        files = collections.defaultdict(list)
        for path in sorted(path for path in broken.rglob("*") if path.is_file() and path.name != ".lock"):
            files[kills.place(f"open {path.relative_to(broken)}")].append(path)
        place = rng.choice(sorted(files))
        path, kind = rng.choice(files[place]), rng.choice(KINDS)
        good = path.read_bytes()
        _spoil(path, kind, rng)
        what = f"{kind}: {path.relative_to(broken)}"
        end = children.run(lambda: kills.life(broken, size), broken, folder)
        if end.status == 2:
            _one_line(end.errors, str(broken), what=what)
            if path.is_dir():
                path.rmdir()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(good)
            again = children.run(lambda: kills.life(broken, size), broken, folder)
            assert again.status == 0, f"{what}: the run is lost after a refusal:\n{again.errors}"
        else:
            assert end.status == 0, f"{what}: status {end.status}:\n{end.errors}"
        same = children.run(lambda: kills.compare(whole, broken), broken, folder)
        assert same.status == 0, f"{what}, status {end.status}: the end differs:\n{same.errors}"
        outcomes["refused in one line" if end.status else "the same end"] += 1
        places[place] += 1
    return {"tries": tries, "losses": 0, "outcomes": dict(outcomes), "places": dict(sorted(places.items()))}


def _killed(folder: Path, rng: random.Random, size: str) -> list[Path]:
    """Runs that were killed in pretraining, in rl, and at their end."""
    made = []
    for name, wanted in (("a", "metrics/.pretrain-"), ("b", "metrics/.rl-"), ("c", "figures/.")):
        path = folder / f"killed-{name}"
        trial = children.run(lambda at=path: kills.life(at, size), path, folder)
        children.expect(trial, 0)
        hits = [index for index, (_, told) in enumerate(trial.operations, 1) if f" {wanted}" in told]
        shutil.rmtree(path)
        # Not at the first: there shall be a training state.
        strike = Strike(rng.choice(hits[len(hits) // 2 :]), 0.0, signal.SIGKILL)
        end = children.run(lambda at=path: kills.life(at, size), path, folder, strike)
        children.expect(end, -signal.SIGKILL)
        made.append(path)
    return made


def _spoil(path: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "bit" and data:
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        path.write_bytes(data[: len(data) // 2] if kind == "half" else b"")


def _one_line(errors: str, *words: str, what: str = "") -> None:
    assert len(errors.strip().splitlines()) == 1, f"{what}: {errors}"
    assert all(word in errors for word in words), f"{what}: {errors}"
