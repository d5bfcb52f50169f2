"""Members whose training has failed: who, and when; they are kept out of every statistic.

A member whose loss or gradient is no finite number is frozen where it was before that update (`learner.Chunk`), so
that its parameters stay finite and it meets the same failure in every later update: its metrics tell.
"""

import numpy as np

from agents.config import Config
from agents.runs import Run

SIGNS = ("loss", "gradient_norm")
"""Metrics that must be finite."""


def healthy(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Which values of metrics, all of one shape, are of an update that was made; bool of that shape."""
    return np.all([np.isfinite(metrics[name]) for name in SIGNS], axis=0)


def diverged(run: Run, config: Config) -> dict[int, str]:
    """Members that have diverged, and the update that they could not make, such as "update 12 of rl"."""
    found: dict[int, str] = {}
    for stage in config.stages:
        table = run.metrics(stage)
        if any(name not in table.column_names for name in SIGNS):
            continue
        values = {name: table[name].to_numpy().reshape(-1, run.members) for name in SIGNS}
        failed = ~healthy(values)
        for member in np.flatnonzero(failed.any(axis=0)):
            found.setdefault(int(member), f"update {int(np.argmax(failed[:, member])) + 1} of {stage}")
    return found


def name_of(config: Config, member: int) -> str:
    """What messages call a member: its number, its seed, its point of the grid."""
    one = config.members[member]
    return f"member {member} (seed {one.seed}{', ' + one.label if one.label else ''})"
