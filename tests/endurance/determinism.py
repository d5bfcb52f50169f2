"""The same run again, interrupted, with other numbers of members at once and on other numbers of devices: what differs.

The same command on the same machine must give the same bits, with any number of members at a time. Another number of
devices is another program: sums are rounded in another order, and training carries that on.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

OPTIONS = ("--population.seeds=4",)
"""Four members, so that they can be spread over four devices, beside the options of the size."""
AT_ONCE = ((2, 2), (2, 1), (3, 1), (4, 1))
"""Members at once, and on how many devices: half of a device's, or all, or so that one is left."""
DEVICES = 2
"""Simulated devices of the run that others are compared with."""
BASE_TOLERANCE = 1e-3
"""Largest difference of a parameter of the base, over the root mean square of that tensor, between programs."""


def compare(tries: int, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Train the same run in other ways; arguments as of `kills.attack`, where `tries` is how often it is repeated.

    Raises:
        AssertionError: the same command gave other bits, or another number of devices left the tolerance.
    """
    cache = folder / "compiled"
    options = [f"--scale={size}", f"--seed={seed}", *OPTIONS]
    first = folder / "first"
    _train(first, options, DEVICES, cache)
    for index in range(tries):
        again = folder / f"again-{index}"
        # Every second repetition is interrupted on its way and resumed.
        _train(again, options, DEVICES, cache, interrupted=bool(index % 2))
        assert _bits(again) == _bits(first), f"repetition {index} has other bits"
    trained, ways = {DEVICES: first}, {}
    for devices in (1, 4):
        name = f"{devices} device{'s' * (devices > 1)}"
        trained[devices] = folder / name.replace(" ", "-")
        _train(trained[devices], options, devices, cache)
        ways[name] = _differences(first, trained[devices])
        assert ways[name]["base"] < BASE_TOLERANCE, f"{name}: the base differs by {ways[name]['base']:.1e}"
    for at_once, devices in AT_ONCE:
        path = folder / f"at-once-{at_once}-on-{devices}"
        _train(path, [*options, f"--population.at-once={at_once}"], devices, cache)
        assert _bits(path) == _bits(trained[devices]), f"{at_once} members at once have other bits"
    return {
        "tries": tries + len(AT_ONCE) + len(ways),
        "losses": 0,
        "same bits": tries,
        "at once": sorted({at_once for at_once, _ in AT_ONCE}),
        "ways": ways,
    }


def _train(path: Path, options: list[str], devices: int, cache: Path, *, interrupted: bool = False) -> None:
    """Run `train.py` to its end, once through SIGTERM and `--resume` if interrupted."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    train = [sys.executable, "train.py"]
    command = [*train, *options, f"--run-dir={path}"]
    if interrupted:
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while not list(path.glob("metrics/rl-*")):
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 128 + signal.SIGTERM, process.returncode
        command = [*train, f"--resume={path}"]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def _bits(path: Path) -> dict[str, bytes]:
    """Everything that a run has learned and measured, but for times and places."""
    from agents import runs
    from tests.equality import TIMING

    run = runs.open(path)
    table = run.metrics()
    found = {name: np.ascontiguousarray(table[name].to_numpy()).tobytes() for name in table.column_names[1:]}
    for name in run.checkpoints():
        found |= {f"{name} {key}": leaf.tobytes() for key, leaf in _leaves(run, name).items()}
    # The hash of the config tells how many members were trained at once.
    summary = {key: value for key, value in run.summary().items() if key not in (*TIMING, "config_hash")}
    return found | {"summary": repr(summary).encode()}


def _leaves(run, name: str) -> dict[str, np.ndarray]:
    import jax

    return {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(run.parameters(name))}


def _differences(one: Path, other: Path) -> dict[str, float]:
    """Largest difference of a parameter over the root mean square of its tensor, and of a member's mean return."""
    from agents import runs

    pair = [runs.open(path) for path in (one, other)]

    def apart(name: str) -> float:
        mine, theirs = (_leaves(run, name) for run in pair)
        return max(float(np.abs(mine[k] - theirs[k]).max() / np.sqrt(np.square(mine[k]).mean() + 1e-12)) for k in mine)

    before, after = ([np.array(run.summary()["return"][key]) for run in pair] for key in ("before_rl", "after_rl"))
    return {
        "base": apart("pretrain"),
        "after RL": apart("rl"),
        "return before": float(np.abs(before[0] - before[1]).max()),
        "return after": float(np.abs(after[0] - after[1]).max()),
        "return after, mean": float(abs(after[0].mean() - after[1].mean())),
    }
