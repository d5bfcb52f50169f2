"""Estimates over a population: the interquartile mean, bootstrap intervals, comparisons and permutation tests.

Members of a population are few and some of them fail, so the mean of the middle half stands for them all
(Agarwal et al., arXiv 2108.13264, section 4), and resampling the members says how far to trust it.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

_AT_ONCE = 1 << 16
"""Values drawn at a time; half a MiB of them stays in the cache."""

Alternative = Literal["two-sided", "greater", "less"]
"""What a test looks for: any difference, or one that is greater or less than under its null."""


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
    strata: np.ndarray | None = None,
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
        strata: int[M], a label per member, such as its point of a grid; members are then drawn among those of their
            own label (arXiv 2108.13264, section 4). A member alone under its label never varies.

    Returns:
        Lower and upper end, float64, without the axis of the members.

    Raises:
        ValueError: for an interval outside 0 to 1, no resamples, no members, or not one label for each of them.
    """
    _check(interval, resamples)
    members_last = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    labels = _labels(strata, members_last.shape[-1], "bootstrap_interval")
    draws = _draws(np.random.default_rng(seed), labels, resamples)
    return _percentiles(_of_draws(statistic, members_last, draws), interval)


def _of_draws(statistic: Callable[[np.ndarray, int], np.ndarray], values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A statistic of float[..., M] in every draw int[B, M], float[B, ...].

    Means take many draws at a time, as many as the cache holds; a statistic of the caller's own takes one.
    """
    if statistic not in (np.mean, interquartile_mean):
        return np.stack([statistic(values[..., draw], -1) for draw in draws])
    blocks = np.array_split(draws, min(len(draws), -(-len(draws) * values.size // _AT_ONCE)))
    return np.concatenate([np.moveaxis(np.asarray(statistic(values[..., block], -1)), -1, 0) for block in blocks])


def probability_of_improvement(
    first: np.ndarray, second: np.ndarray, strata: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """P(X > Y) for a member X of the first group and Y of the second, ties counted half (arXiv 2108.13264, section 4).

    0.5 says that neither group is better; it is Mann and Whitney's U over the number of pairs.

    Args:
        first: float[..., M].
        second: float[..., N], the same leading axes.
        strata: labels int[M] and int[N]; only members of one label are compared, and labels count equally.

    Returns:
        float64[...]; NaN where a member is NaN.

    Raises:
        ValueError: a group has no members, or the groups differ in their labels.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    one, other = _pair_of_labels(first, second, strata)
    shares = []
    for label in np.unique(one):
        x, y = first[..., one == label][..., :, None], second[..., other == label][..., None, :]
        better = 0.5 * (x > y) + 0.5 * (x >= y)
        shares.append(np.where(np.isnan(x) | np.isnan(y), np.nan, better).mean(axis=(-2, -1)))
    return np.mean(shares, axis=0)


def improvement_interval(
    first: np.ndarray,
    second: np.ndarray,
    strata: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    interval: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of `probability_of_improvement`, both groups drawn anew, each within its strata.

    Returns:
        Lower and upper end, float64[...].

    Raises:
        ValueError: as `bootstrap_interval` and `probability_of_improvement`.
    """
    _check(interval, resamples)
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    one, other = _pair_of_labels(first, second, strata)
    generator = np.random.default_rng(seed)
    pairs = zip(_draws(generator, one, resamples), _draws(generator, other, resamples), strict=True)
    # A member is drawn among those of its own label, so the labels stay where they are.
    estimates = [probability_of_improvement(first[..., x], second[..., y], (one, other)) for x, y in pairs]
    return _percentiles(np.stack(estimates), interval)


def permutation_p_value(
    observed: np.ndarray, null: np.ndarray, axis: int = -1, alternative: Alternative = "two-sided"
) -> np.ndarray:
    """How often the null does as well as what was observed, which itself counts as one of its draws.

    With that correction a p value is never below 1 / (n + 1) and the test keeps its level (Phipson and Smyth,
    arXiv 1603.05766). Two-sided is twice the smaller tail, at most 1, so that a null need be neither symmetric nor
    around 0; it is never below 2 / (n + 1).

    Args:
        observed: the statistic, float[...].
        null: n draws of it under the null along `axis`.
        axis: of the draws.
        alternative: which tail is evidence.

    Returns:
        float64[...]; NaN where the statistic or a draw is NaN.

    Raises:
        ValueError: there are no draws.
    """
    null = np.moveaxis(np.asarray(null, np.float64), axis, -1)
    seen = np.asarray(observed, np.float64)[..., None]
    if null.shape[-1] == 0:
        raise ValueError("permutation_p_value: no draws of the null; give at least 1")
    # Equal statistics summed in another order differ by rounding and are ties all the same.
    slack = 100 * np.finfo(np.float64).eps * np.abs(seen)
    tails = [
        (1 + np.sum(sign * null >= sign * seen - slack, axis=-1)) / (1 + null.shape[-1])
        for sign, side in ((1, "greater"), (-1, "less"))
        if alternative in (side, "two-sided")
    ]
    found = tails[0] if len(tails) == 1 else np.minimum(1.0, 2 * np.minimum(*tails))
    return np.where(np.isnan(seen[..., 0]) | np.isnan(null).any(axis=-1), np.nan, found)


def mean_difference_test(
    first: np.ndarray,
    second: np.ndarray,
    *,
    alternative: Alternative = "two-sided",
    permutations: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Whether two groups differ in their mean, by random permutations of who belongs to which.

    Args:
        first, second: float[M] and float[N].
        alternative: `greater` looks for a first group with the higher mean.
        permutations: how many are drawn; the p value cannot fall below 1 / (permutations + 1).
        seed: of their draw.

    Returns:
        mean(first) − mean(second), and its p value.

    Raises:
        ValueError: a group has no members, or there are no permutations.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    members, pooled = len(first), np.concatenate([first, second])
    if not 0 < members < len(pooled):
        raise ValueError("mean_difference_test: a group has no members; give at least 1")
    if permutations < 1:
        raise ValueError(f"permutations={permutations}: use at least 1")

    def difference(values):
        return values[:members].mean() - values[members:].mean()

    generator = np.random.default_rng(seed)
    null = np.array([difference(generator.permutation(pooled)) for _ in range(permutations)])
    observed = difference(pooled)
    return float(observed), float(permutation_p_value(observed, null, alternative=alternative))


def _check(interval: float, resamples: int) -> None:
    if not 0 < interval < 1:
        raise ValueError(f"interval={interval:g}: use a share between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: use at least 1")


def _labels(strata: np.ndarray | None, members: int, name: str) -> np.ndarray:
    """A label per member; the same for all by default."""
    if members == 0:
        raise ValueError(f"{name}: no members; give at least 1")
    labels = np.zeros(members, int) if strata is None else np.asarray(strata)
    if labels.shape != (members,):
        raise ValueError(f"{name}: strata of shape {list(labels.shape)} for {members} members; give one label each")
    return labels


def _pair_of_labels(
    first: np.ndarray, second: np.ndarray, strata: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    given = strata or (None, None)
    one, other = (
        _labels(labels, group.shape[-1], "probability_of_improvement")
        for labels, group in zip(given, (first, second), strict=True)
    )
    if set(one.tolist()) != set(other.tolist()):
        raise ValueError("probability_of_improvement: the groups differ in their strata; give both the same labels")
    return one, other


def _draws(generator: np.random.Generator, labels: np.ndarray, resamples: int) -> np.ndarray:
    """int[resamples, M], members drawn with replacement among those of their own label."""
    draws = np.empty((resamples, len(labels)), int)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        draws[:, own] = own[generator.integers(0, len(own), (resamples, len(own)))]
    return draws


def _percentiles(estimates: np.ndarray, interval: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the middle `interval` of the estimates, axis 0."""
    tail = (1 - interval) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    return low, high
