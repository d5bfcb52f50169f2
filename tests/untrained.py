"""Finished runs of policies that were never trained: parameters drawn at random, everything a study may ask for."""

from pathlib import Path

import jax
import numpy as np

from agents import runs
from agents.runs import Run
from agents.runs import config as configs
from agents.runs.config import Config


def write(folder: Path, config: Config, scale: float = 1.0) -> Run:
    """A run with every checkpoint of its stages; members of one base share its parameters before RL.

    Args:
        folder: to make.
        config: of the run.
        scale: parameters are stretched by it.
    """
    run = runs.create(folder, configs.to_dict(config), members=len(config.members))
    make = jax.jit(config.make_policy().init)

    def drawn(seeds):
        trees = [make(jax.random.key(int(seed))) for seed in seeds]
        return jax.tree.map(lambda *leaves: (np.stack(leaves) * np.float32(scale)).astype(leaves[0].dtype), *trees)

    bases, members = config.base_of, np.arange(run.members)
    stages = config.stages if config.rl.updates else config.stages[:-1]
    run.save_parameters("init", drawn(1000 + bases))
    for place, stage in enumerate(config.stages):
        numbers = bases if stage == "pretrain" else members + 100 * (place if stage in stages else place - 1)
        if stage == "rl" and config.rl.updates > 1:
            run.save_parameters("rl-000001", drawn(500 + members))
        run.save_parameters(stage, drawn(numbers))
        updates = getattr(config, stage).updates
        if updates:
            ones = np.ones((updates, run.members), np.float32)
            run.write_metrics(stage, 0, {"loss": ones, "return": ones, "learning_rate": 1e-3 * ones})
    floors = {"random": 0.0, "personas": {"Larry": 0.1, "Bob": 0.2, "Alice": 0.3}, "greedy": 0.4}
    outcomes = floors | {"before_rl": [0.1] * run.members, "after_rl": np.linspace(0.2, 0.4, run.members).tolist()}
    run.write_summary(
        {"schema": 1, "members": run.members, "return": outcomes, "success": outcomes, "seconds": {"total": 1.0}}
    )
    return run
