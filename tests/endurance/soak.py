"""Thousands of chunks in one process: memory stays flat, files stay few, nothing is compiled again."""

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np

from tests.endurance import kills

WARM = 200
"""Chunks after which memory must stand still."""
FILES = 100
"""Files that may come after them: parameters are kept after 1, 2, 4, 8, … chunks, some 17 files each."""
PARTS = 20
"""Parts of metrics that may lie side by side."""


def soak(tries: int, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Train for `tries` chunks of rl; arguments and errors as of `kills.attack`.

    Raises:
        AssertionError: memory grows by 1 MiB in 100 chunks or more, a program was compiled again, or files pile up.
    """
    # Not before the other attacks have forked: they must not inherit a JAX backend.
    import jax

    import train
    from agents import runs
    from agents.runs import config as configs
    from agents.runs import stages
    from ground import signals

    command = train.parse([*kills.options(size), f"--seed={seed}"])
    rl = dataclasses.replace(command.config.rl, updates=tries * command.config.rl.chunk)
    config = dataclasses.replace(command.config, rl=rl)
    stage = stages.make_stage(config, "rl")
    run = runs.create(folder / "run", configs.to_dict(config), members=len(config.members))
    start = stages.make_stage(config, "pretrain").initial(None)
    run.save_parameters("pretrain", start.parameters)
    state = stage.initial(run.parameters("pretrain"))
    resident: list[float] = []
    files: list[int] = []
    parts: list[int] = []
    compiled: list[int] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(len(resident)) if "backend_compile" in event else None
    )

    def look(done, metrics, timing):
        gc.collect(0)
        resident.append(_resident_mebibytes())
        parts.append(len(list((run.path / "metrics").iterdir())))
        files.append(sum(1 for path in run.path.rglob("*")) - parts[-1])

    with signals.catch() as caught:
        stages.run_stage(run, stage, state, caught, look)
    chunks = np.arange(len(resident))[WARM:]
    slope = 100 * float(np.polyfit(chunks, resident[WARM:], 1)[0])
    assert slope < 1.0, f"memory grows by {slope:.2f} MiB per 100 chunks"
    assert compiled, "the listener heard nothing"
    assert max(compiled) < WARM, f"a program was compiled after chunk {max(compiled)}"
    assert max(files[WARM:]) <= files[WARM] + FILES, f"from {files[WARM]} files to {max(files)}"
    assert max(parts) <= PARTS, f"{max(parts)} parts of metrics"
    return {
        "tries": len(resident),
        "losses": 0,
        "mebibytes": [resident[WARM], resident[-1]],
        "mebibytes_per_100_chunks": slope,
        "files_beside_metrics": [files[WARM], max(files), files[-1]],
        "last_compilation_before_chunk": max(compiled) + 1,
        "metrics_parts": max(parts),
    }


def _resident_mebibytes() -> float:
    """Memory that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS; run this on Linux")
