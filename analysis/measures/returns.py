"""What policies earn on the held-out mazes, at any checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from agents.runs import Run, evaluation
from analysis.measure import ends, measure, once, variable
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
    first, again = once(run, checkpoint)
    parameters, params = jax.tree.map(lambda x: jnp.asarray(x[first]), (run.kept_parameters(checkpoint), run.params))
    earned, succeeded = evaluation.policy_outcomes(run.policy, parameters, run.world, params, episodes)
    means = [np.asarray(x, np.float64).mean(axis=1)[again] for x in (earned, succeeded)]
    dataset = xr.Dataset({"return": variable("member", means[0], "return per episode", "reward")})
    if run.world.has_goal:
        dataset["success"] = variable("member", means[1], "episodes that reach the goal", "share")
    return dataset
