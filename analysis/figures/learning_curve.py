"""The learning curve of a run: what its training batches earn, and what that comes to on held-out mazes."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.figures.panels import Curve, Curves
from ground import numbers
from ground.estimates import Estimate

MEANING = (
    "Lines: training batches, thin the members, thick their mean with its 95 % interval (none below 4 members). "
    "Marker at the end: after RL on held-out mazes. Horizontal lines: on the same held-out mazes."
)
"""How to read it."""


def panel(
    returns: np.ndarray,
    after: np.ndarray,
    baselines: Mapping[str, float],
    *,
    algorithm: str,
    episodes: int,
    points: Sequence[str],
) -> Curves:
    """A curve for each point of the grid.

    Args:
        returns: mean return of an episode of the training batch, reward units, float[U, M], update by update.
        after: mean return after RL on held-out mazes, float[M].
        baselines: returns on held-out mazes, by name.
        algorithm: as figures call it.
        episodes: that each member plays for an update.
        points: of each member, in words; empty where nothing is swept.
    """
    labels = np.array([point or algorithm for point in points])
    updates = np.arange(1, len(returns) + 1)
    end = updates[-1] + 0.04 * max(len(updates) - 1, 1)
    curves: dict[str, Curve] = {}
    for label in dict.fromkeys(labels.tolist()):
        mine = labels == label
        held_out = Estimate.of(after[mine])
        curves[f"{label}, training batches"] = Curve(updates, returns[:, mine], style=label)
        words = numbers.shown(held_out.mean, held_out.low, held_out.high)
        curves[f"{label}, held-out mazes: {words}"] = Curve(np.array([end]), after[None, mine], style=label)
    return Curves(
        curves,
        x=f"{algorithm} update ({episodes:,} episodes per member each)",
        y="return per episode (reward)",
        marks=baselines,
    )
