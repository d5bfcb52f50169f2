"""One measurement in a process of its own, printed as JSON: what needs other devices, or memory from nothing.

uv run -m benchmarks.worker scaling CORES REPEATS
uv run -m benchmarks.worker memory UPDATES
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETTLED = 10
"""Updates after which `memory` begins to watch: compiling and the first checkpoint are behind it."""


def scaling(cores: int, repeats: int) -> dict[str, Any]:
    """PPO at the `laptop` scale with a member for each core, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from ground import devices

    devices.start()
    from agents.runs.config import SCALES
    from benchmarks import measure
    from benchmarks.cases import train

    config = train.members(SCALES["laptop"], cores)
    (result,) = measure.measure([train.stage_case(config, "rl", 1)], repeats)
    return {
        name: getattr(result, name)
        for name in ("compile_seconds", "rates", "peak_memory", "memory_before", "temporary_memory")
    }


def memory(updates: int) -> dict[str, Any]:
    """A whole stage of PPO, two members of the `laptop` policy with few episodes, in a run directory.

    `memory_before` is what the process holds after `SETTLED` updates, `peak_memory` its largest size from then on.
    """
    from ground import devices

    devices.start()
    from agents import runs
    from agents.runs import config as configs
    from agents.runs import stages
    from agents.runs.config import SCALES
    from benchmarks import measure
    from benchmarks.cases import train

    config = train.members(SCALES["laptop"], 2)
    config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, updates=updates, chunk=1, episodes=32))
    with tempfile.TemporaryDirectory() as folder:
        run = runs.create(Path(folder, "run"), configs.to_dict(config), members=2)
        stage, _, state = train.ready(config, "rl", 1)
        settled = []

        def report(done, metrics, timing):
            if done == SETTLED:  # compiling takes more memory than running; forget it
                measure.reset_peak()
                settled.append(measure.resident())

        start = time.perf_counter()
        _, timing = stages.run_stage(run, stage, state, lambda: 0, report)
        seconds = time.perf_counter() - start - timing.compile_seconds
    return {
        "compile_seconds": timing.compile_seconds,
        "rates": [timing.tokens / seconds],
        "peak_memory": measure.peak(),
        "memory_before": settled[0],
    }


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    print(json.dumps({"scaling": scaling, "memory": memory}[what](*map(int, numbers))))
