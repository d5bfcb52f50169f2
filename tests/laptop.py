"""The `laptop` scale in a process of its own, optimised as users have it.

python -m tests.laptop run DIRECTORY        leaves the run in DIRECTORY/run
python -m tests.laptop control DIRECTORY    leaves in DIRECTORY/control.json the mean return of each member after
                                            RL of the same base on the rewards of other episodes
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ground import environment

if __name__ == "__main__":
    environment.start("laptop")

import train
from agents import runs
from agents.runs import evaluation
from agents.runs.config import SCALES
from tests import tiny


def control_of(directory: Path) -> None:
    """The control of the run in a directory."""
    config, run = SCALES["laptop"], runs.open(directory / "run")
    control = dataclasses.replace(config, rl=dataclasses.replace(config.rl, shuffle_rewards=True))
    state, _ = tiny.train_stage(control, "rl", run.parameters("pretrain"))
    world, _ = control.world.make()
    parameters = jax.tree.map(jnp.asarray, state.parameters)
    policy, worlds = control.make_policy(), control.world_params()
    returns, _ = evaluation.policy_outcomes(policy, parameters, world, worlds, 4096)
    means = np.asarray(returns).mean(axis=1)
    (directory / "control.json").write_text(json.dumps(means.tolist()), encoding="utf-8")


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "run":
        train.train(SCALES["laptop"], where / "run")
    else:
        control_of(where)
