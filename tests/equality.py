"""Whether two runs are the same run."""

import jax
import numpy as np

from agents import runs
from agents.runs import stages

TIMING = {"seconds", "tokens_per_second"}
"""What may differ in summaries of the same run."""


def last_state(run: runs.Run) -> runs.State:
    """The newest training state, which must be one of rl."""
    stage = stages.make_stage(run.config, "rl")
    state = run.load_state(lambda name: jax.eval_shape(lambda: stage.initial(None)))
    assert state is not None
    return state


def same_training(one: runs.Run, other: runs.Run) -> None:
    """Parameters of every checkpoint, the whole last state, metrics and returns are equal to the bit."""
    assert one.checkpoints() == other.checkpoints()
    for name in one.checkpoints():
        jax.tree.map(np.testing.assert_array_equal, one.parameters(name), other.parameters(name))
    states = [last_state(run) for run in (one, other)]
    assert states[0].update == states[1].update == one.config.rl.updates
    jax.tree.map(np.testing.assert_array_equal, states[0].tree, states[1].tree)
    assert one.metrics().equals(other.metrics())
    summaries = [{k: v for k, v in run.summary().items() if k not in TIMING} for run in (one, other)]
    assert summaries[0] == summaries[1]
