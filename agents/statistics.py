"""Estimates over a population: the interquartile mean and its bootstrap interval.

Members of a population are few and some of them fail, so the mean of the middle half stands for them all
(Agarwal et al., arXiv 2108.13264, section 4), and resampling the members says how far to trust it.
"""

from collections.abc import Callable

import numpy as np


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of what is left when the lowest and the highest quarter, each rounded down, are cut off.

    Args:
        values: float[..., M, ...].
        axis: the axis of the members.

    Returns:
        float64, without that axis; NaN where a member is NaN.

    Raises:
        ValueError: if there is no member.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, np.float64), axis, -1), axis=-1)
    members = ordered.shape[-1]
    if members == 0:
        raise ValueError("interquartile_mean: no members; give at least 1")
    cut = members // 4
    # A sort puts NaN last, where the cut would hide a member that has diverged.
    return np.where(np.isnan(ordered[..., -1]), np.nan, ordered[..., cut : members - cut].mean(axis=-1))


def bootstrap_interval(
    values: np.ndarray,
    axis: int = -1,
    *,
    statistic: Callable[[np.ndarray, int], np.ndarray] = interquartile_mean,
    interval: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic, members drawn whole and with replacement.

    Every resample takes the same members everywhere along the other axes, so a band over updates belongs to one
    set of imagined populations.

    Args:
        values: float[..., M, ...].
        axis: the axis of the members.
        statistic: values float[..., M] and axis -1 → float[...].
        interval: share of the bootstrap distribution that the interval covers.
        resamples: imagined populations.
        seed: of their draw; the same seed gives the same interval.

    Returns:
        Lower and upper end, float64, without the axis of the members.

    Raises:
        ValueError: for an interval outside 0 to 1, no resamples or no members.
    """
    if not 0 < interval < 1:
        raise ValueError(f"interval={interval:g}: use a share between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: use at least 1")
    members_last = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    members = members_last.shape[-1]
    if members == 0:
        raise ValueError("bootstrap_interval: no members; give at least 1")
    draws = np.random.default_rng(seed).integers(0, members, (resamples, members))
    # One resample at a time: all of them at once would take gigabytes for a long curve of a large population.
    estimates = np.stack([statistic(members_last[..., draw], -1) for draw in draws])
    tail = (1 - interval) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    return low, high
