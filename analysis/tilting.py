"""The cheapest policy that earns as much: the tilt π*_λ ∝ π_0 e^{λ r}, its split, and what bought no reward.

Notation of `selection`. The reward-matched tilt splits KL(π ‖ π_0) once more: S* + W* of the
tilt, and G, change that bought no reward. In weak RL the share of selection is what personas explain of the reward's
variance. All estimates are of one policy; divergences are in nats per episode.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from analysis import selection


def correlation_ratio(means: Any, variances: Any, prior: Any) -> Any:
    """η² = Var_i(E_i r) / Var(r), what personas explain of the reward's variance within a maze; float[].

    The share of selection in the best policy of weak RL: σ → η² as λ → 0.

    Args:
        means, variances: of the reward under each persona in each maze, float[M, I].
        prior: w, float[I].
    """
    share = prior[None]
    mean = (share * means).sum(axis=-1, keepdims=True)
    between = (share * (means - mean) ** 2).sum(axis=-1)
    return between.mean() / (between + (share * variances).sum(axis=-1)).mean()


def reward_share(
    rewards: jax.Array, posteriors: jax.Array, prior: jax.Array, chances: jax.Array | None = None
) -> jax.Array:
    """`correlation_ratio` from episodes of the base, float32[]; it foretells weak RL before any RL.

    Without `chances` both variances are corrected for the number of episodes: E_i r is known to the spread of its
    own sample, which else counts as a difference between personas.

    Args:
        rewards: float32[M, N], of episodes of π_0.
        posteriors: q(i | τ), float32[M, N, I]; or 1 for the persona that played and 0 for the others.
        prior: w, float32[I].
        chances: as in `selection.split`, under π_0.

    Returns:
        NaN if a persona has no episode in a maze.
    """
    share = selection.equal_unless(rewards, chances)[..., None]
    weight = prior[None]
    part = share * posteriors / jnp.sum(share * posteriors, axis=1, keepdims=True)
    centred = rewards[..., None] - jnp.sum(share * rewards[..., None], axis=1, keepdims=True)
    means = jnp.sum(part * centred, axis=1)
    between = jnp.sum(weight * jnp.square(means - jnp.sum(weight * means, axis=1, keepdims=True)), axis=1)
    total = jnp.sum(share * jnp.square(centred), axis=(1, 2))
    if chances is None:
        # What one episode moves each mean by: the infinitesimal jackknife.
        pull = part * (centred - means[:, None])
        pull = pull - jnp.sum(weight[None] * pull, axis=-1, keepdims=True)
        between = between - jnp.sum(weight[None] * jnp.square(pull), axis=(1, 2))
        total = total * rewards.shape[1] / (rewards.shape[1] - 1)
    return between.mean() / total.mean()


@struct.dataclass
class Tilt:
    """The optimum π*_λ ∝ π_0 e^{λ r} of KL-regularised RL, from episodes of π_0; M mazes."""

    scale: jax.Array
    """float32[], λ = 1 / β."""
    split: selection.Split
    """KL(π*_λ ‖ π_0) = S* + W*."""
    rewards: jax.Array
    """float32[M], E r under π*_λ."""
    log_partitions: jax.Array
    """float32[M], log E e^{λ r} under π_0."""
    effective: jax.Array
    """float32[M], effective number of episodes, 1 / Σ p²: where it is near 1 the sample does not reach the tilt."""


def tilt(
    rewards: jax.Array,
    posteriors: jax.Array,
    prior: jax.Array,
    scale: jax.Array | float,
    chances: jax.Array | None = None,
) -> Tilt:
    """π*_λ and its split; tilting leaves q(i | τ) as it was.

    Args:
        rewards, posteriors, prior, chances: as in `reward_share`, but q from the likelihoods.
        scale: λ, float32[].
    """
    share = selection.equal_unless(rewards, chances)
    scale = jnp.asarray(scale, jnp.float32)
    log_share = jnp.log(jnp.where(share > 0, share, 1.0))

    def around(middle):
        """The tilt, with rewards less `middle`, which cancels."""
        log_weight = jnp.where(share > 0, scale * (rewards - middle) + log_share, -jnp.inf)
        log_partition = jax.nn.logsumexp(log_weight, axis=1, keepdims=True)
        return jnp.exp(log_weight - log_partition), log_partition

    # Around its own mean nothing large is subtracted from anything large: at λ = 40 that saves two digits.
    middle = jnp.sum(around(jnp.zeros_like(rewards[:, :1]))[0] * rewards, axis=1, keepdims=True)
    tilted, log_partition = around(middle)
    centred = rewards - middle
    log_ratio = scale * centred - log_partition
    mean = jnp.sum(tilted * centred, axis=1)
    divergences = scale * mean - log_partition[:, 0]

    weights = jnp.sum(tilted[..., None] * posteriors, axis=1)
    each = jnp.broadcast_to(prior[None], weights.shape)
    gain = jnp.log(jnp.where(weights > 0, weights, 1.0) / each)
    apart = log_ratio[..., None] - gain[:, None]
    changes = jnp.sum(tilted[..., None] * posteriors * apart, axis=1)
    return Tilt(
        scale,
        selection.Split(prior, weights, divergences, selection.relative_entropy(weights, each), changes),
        mean + middle[:, 0],
        (log_partition + scale * middle)[:, 0],
        1 / jnp.sum(jnp.square(tilted), axis=1),
    )


LARGEST_SCALE = 200.0
"""λ at which `match` gives up: by then a success pays e^200 failures, in units of the reward's range."""


def match(
    rewards: jax.Array,
    posteriors: jax.Array,
    prior: jax.Array,
    reward: jax.Array | float,
    chances: jax.Array | None = None,
) -> Tilt:
    """The tilt, one λ for all mazes, that earns `reward` on average over mazes, by bisection.

    λ is negative where the base earns more. Where no tilt earns it, because the sample has no episode that does, λ
    ends at ± `LARGEST_SCALE` over the range of the rewards; compare `Tilt.rewards` with what was asked for.
    """
    bound = LARGEST_SCALE / jnp.maximum(jnp.max(rewards) - jnp.min(rewards), 1e-6)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        short = tilt(rewards, posteriors, prior, middle, chances).rewards.mean() < reward
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    # A float32 has 24 bits, but around 0 they are finer than the first steps.
    low, high = jax.lax.fori_loop(0, 50, halve, (-bound, bound))
    return tilt(rewards, posteriors, prior, (low + high) / 2, chances)


def gratuitous(found: selection.Split, reward: jax.Array | float, matched: Tilt) -> jax.Array:
    """G = KL(π ‖ π*_λ), float32[]: change that bought no reward.

    KL(π ‖ π_0) = S* + W* + G for the matched tilt. Where the tilt earns E* r ≠ E_π r, G stays KL(π ‖ π*_λ), and the
    sum lacks λ (E_π r − E* r).

    Args:
        found: of the policy.
        reward: E_π r, float32[], over the same mazes.
        matched: from `match`, or any tilt of the same base.
    """
    missing = matched.scale * (reward - matched.rewards.mean())
    return found.divergence - matched.split.divergence - missing
