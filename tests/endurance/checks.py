"""What it costs to look for members that have failed, as a share of the update that is looked at."""

import time
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 0.01
"""Share of an update that the checks may take."""


def cost(tries: int, folder: Path, seed: int, size: str) -> dict[str, Any]:
    """Time an update of RL, and by themselves the checks and the choice between the old and the new state.

    By themselves they read and write the state once more than within the update, so this is an upper bound.

    Args:
        tries: repetitions of each; medians count.
        folder: not used.
        seed: of the run.
        size: the scale.

    Raises:
        AssertionError: the checks take more than `LIMIT` of the update.
    """
    del folder
    import jax

    import train
    from agents.learning import population
    from agents.runs import stages

    config = train.parse([f"--scale={size}", f"--seed={seed}", "--population.seeds=1", "--rl.chunk=1"]).config
    start = stages.make_stage(config, "pretrain").initial(None)
    stage = stages.make_stage(config, "rl")
    program, arguments = stage.program, stage.program.place(stage.arguments)
    state = program.place(stage.initial(jax.device_get(start.parameters)))
    program.compile(state, *arguments)
    choose = jax.jit(population.unless_diverged)
    updates, checks = [], []
    for _ in range(tries + 1):
        before = jax.tree.map(lambda x: x.copy(), state)
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(program(state, *arguments))
        updates.append(time.perf_counter() - begun)
        last = {name: value[:, -1] for name, value in metrics.items()}
        begun = time.perf_counter()
        jax.block_until_ready(choose(before, state, last))
        checks.append(time.perf_counter() - begun)
    share = float(np.median(checks[1:]) / np.median(updates[1:]))
    assert share < LIMIT, f"the checks take {share:.1%} of an update"
    return {"tries": tries, "losses": 0, "share of an update": share, "update_seconds": float(np.median(updates[1:]))}
