"""Members whose training has failed: who, and when; they are kept out of every statistic.

A member whose loss, gradient or new parameters are not finite stays as it was before that update (`learner.Chunk`), so
that its parameters stay finite and it meets the same failure in every later update: its loss tells, as NaN.
"""

import numpy as np

from agents.runs import Run
from agents.runs.config import Config

SIGN = "loss"
"""The metric that is finite where an update was made."""


def diverged(run: Run, config: Config) -> dict[int, str]:
    """Members that have diverged, and the update that they could not make, such as "update 12 of rl"."""
    found: dict[int, str] = {}
    for stage in config.stages:
        table = run.metrics(stage)
        if SIGN not in table.column_names:
            continue
        failed = ~np.isfinite(table[SIGN].to_numpy().reshape(-1, run.members))
        for member in np.flatnonzero(failed.any(axis=0)):
            found.setdefault(int(member), f"update {int(np.argmax(failed[:, member])) + 1} of {stage}")
    return found


def name_of(config: Config, member: int) -> str:
    """What messages call a member: its number, its seed, its point of the grid."""
    one = config.members[member]
    return f"member {member} (seed {one.seed}{', ' + one.label if one.label else ''})"
