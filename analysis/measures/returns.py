"""What policies earn on the held-out mazes, at any checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.runs import Run, evaluation
from analysis.measure import ends, measure
from ground.terminal import ConfigError


@measure(checkpoints=ends)
def returns(run: Run, checkpoint: str, *, episodes: int = 1024) -> xr.Dataset:
    """What each member earns in mazes that no training draws.

    Args:
        episodes: that each member plays, the same mazes for all; a multiple of 64.

    Returns:
        `return` float64[member], mean return of an episode, and in worlds with a goal `success`, the share of episodes
        that reach it.
    """
    if episodes < 64 or episodes % 64:
        raise ConfigError(f"--episodes={episodes}: use a multiple of 64")
    starts = run.config.starts if checkpoint in ("init", "pretrain", run.config.before_rl) else np.arange(run.members)
    first, twin = np.unique(starts[run.kept], return_inverse=True)
    rows = np.array([np.flatnonzero(twin == index)[0] for index in range(len(first))])
    parameters = jax.tree.map(lambda x: jnp.asarray(x[rows]), run.kept_parameters(checkpoint))
    params = jax.tree.map(lambda x: x[rows], run.params)
    earned, succeeded = evaluation.policy_outcomes(run.policy, parameters, run.world, params, episodes)
    means = [np.asarray(x, np.float64).mean(axis=1)[twin] for x in (earned, succeeded)]
    dataset = xr.Dataset({"return": ("member", means[0], {"long_name": "return per episode", "units": "reward"})})
    if run.world.has_goal:
        dataset["success"] = ("member", means[1], {"long_name": "episodes that reach the goal", "units": "share"})
    return dataset
