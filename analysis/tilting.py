"""The cheapest policy that earns as much: the tilt π*_λ ∝ π_0 e^{λ r}, its split, and what bought no reward.

Notation of `selection`. The reward-matched tilt splits KL(π ‖ π_0) once more: S* + W* of the
tilt, and G, change that bought no reward. In weak RL the share of selection is what personas explain of the reward's
variance. All estimates are of one policy; divergences are in nats per episode.

The tilt conditions on the maze, so a policy reaches it only where the prompt shows the whole maze; elsewhere it knows
what nobody can, S* + W* is a bound that no policy attains, and G is too large. `tilt` and `match` refuse such worlds.
"""

import jax
import jax.numpy as jnp
from flax import struct

from analysis import selection
from envs import base
from ground.precise import product

LEAST_EFFECTIVE = 20
"""Effective episodes of a maze below which a sample says nothing of the tilt: every number of it is NaN."""

_APART = 1e-5
"""Variance of a combination of posteriors below which personas are alike: float32 has no more."""


def reward_share(
    rewards: jax.Array, posteriors: jax.Array, prior: jax.Array, chances: jax.Array | None = None
) -> jax.Array:
    """η² = Var_i(E_i r) / Var(r), what personas explain of the reward's variance within a maze; float32[].

    From episodes of the base it foretells weak RL before any RL: S / KL of the best policy comes to η² as λ → 0.
    Without `chances` both variances are corrected for the number of episodes: E_i r is known to the spread of its
    own sample, which else counts as a difference between personas.

    Args:
        rewards: float32[M, N], of episodes of π_0.
        posteriors: q(i | τ), float32[M, N, I]; or 1 for the persona that played and 0 for the others.
        prior: w, float32[I], or float32[M, I].
        chances: as in `selection.split`, under π_0.

    Returns:
        NaN if a persona has no episode in a maze, though it has a prior.
    """
    share = selection.equal_unless(rewards, chances)[..., None]
    weight = jnp.broadcast_to(prior, (len(rewards), prior.shape[-1]))
    part = share * posteriors
    part = part / jnp.where(weight[:, None] > 0, jnp.sum(part, axis=1, keepdims=True), 1.0)
    centred = rewards[..., None] - jnp.sum(share * rewards[..., None], axis=1, keepdims=True)
    means = jnp.sum(part * centred, axis=1)
    between = jnp.sum(weight * jnp.square(means - jnp.sum(weight * means, axis=1, keepdims=True)), axis=1)
    total = jnp.sum(share * jnp.square(centred), axis=(1, 2))
    if chances is None:
        # What one episode moves each mean by: the infinitesimal jackknife.
        pull = part * (centred - means[:, None])
        pull = pull - jnp.sum(weight[:, None] * pull, axis=-1, keepdims=True)
        between = between - jnp.sum(weight[:, None] * jnp.square(pull), axis=(1, 2))
        total = total * rewards.shape[1] / (rewards.shape[1] - 1)
    return between.mean() / total.mean()


def reweighted_share(rewards: jax.Array, posteriors: jax.Array, chances: jax.Array | None = None) -> jax.Array:
    """R² = bᵀ G⁺ b / Var r, the share of the reward's variance that the posteriors explain, float32[].

    b_i = E_i r − E r and G_ij = E q_i q_j / (w_i w_j) − 1, under the base and its own weights w. It is how much of the
    best policy of weak RL some mixture of the personas attains, so the share of selection lies between η² and R²;
    they are one where episodes betray their persona.

    Args:
        rewards, posteriors, chances: as in `reward_share`. Without `chances` both variances are corrected for the
            number of episodes, as in a regression.
    """
    share = selection.equal_unless(rewards, chances)[..., None]
    weights = jnp.sum(share * posteriors, axis=1, keepdims=True)
    centred = rewards[..., None] - jnp.sum(share * rewards[..., None], axis=1, keepdims=True)
    total = jnp.sum(share * jnp.square(centred), axis=(1, 2))
    # √w_i (q_i / w_i − 1) spans what the posteriors span, and rare personas do no harm.
    root = jnp.sqrt(jnp.maximum(weights, 1e-12))
    features = posteriors / root - root
    around = product("mni,mnj->mij", share * features, features)
    values, vectors = jnp.linalg.eigh(around)
    along = product("mni,mik->mk", share * centred * features, vectors)
    there = values > _APART
    explained = jnp.sum(jnp.where(there, jnp.square(along) / jnp.where(there, values, 1.0), 0.0), axis=1)
    if chances is None:
        episodes = rewards.shape[1]
        rest = (total - explained) * episodes / (episodes - 1 - jnp.sum(there.astype(jnp.float32), axis=1))
        total = total * episodes / (episodes - 1)
        explained = total - rest
    return explained.mean() / total.mean()


@struct.dataclass
class Tilt:
    """The optimum π*_λ ∝ π_0 e^{λ r} of KL-regularised RL, from episodes of π_0; M mazes.

    Mazes of which a sample has too few effective episodes, or one alone, are NaN but for `scale` and `effective`.
    """

    scale: jax.Array
    """float32[], λ = 1 / β."""
    split: selection.Split
    """KL(π*_λ ‖ π_0) = S* + W*, against the weights that the base has in each maze, E q under π_0."""
    rewards: jax.Array
    """float32[M], E r under π*_λ."""
    log_partitions: jax.Array
    """float32[M], log E e^{λ r} under π_0."""
    effective: jax.Array
    """float32[M], effective number of episodes, 1 / Σ p²."""


def tilt(
    world: base.World,
    rewards: jax.Array,
    posteriors: jax.Array,
    scale: jax.Array | float,
    chances: jax.Array | None = None,
    *,
    every: bool = False,
) -> Tilt:
    """π*_λ and its split; tilting leaves q(i | τ) as it was.

    Of a sample S*, E r and log E e^{λ r} are corrected by the jackknife, and W* with them.

    Args:
        world: where the episodes were played.
        rewards: float32[M, N], of N episodes in each of M mazes.
        posteriors: q(i | τ) from the likelihoods, float32[M, N, I].
        scale: λ, float32[].
        chances: float32[M, N], each row sums to 1: of each episode under π_0, or importance weights of a sample
            that another policy played, such as ½π_0 + ½π. By default each counts 1 / N.
        every: the episodes are all that there are, and no sample; needs `chances`.

    Raises:
        ValueError: no policy can reach the tilt, for the prompt does not show the whole maze; or there are no
            `chances` of all episodes.
    """
    if not world.sees_all:
        raise ValueError(
            f"{type(world).__name__}: its prompt does not show the whole maze, so the tilt knows what no policy can; "
            "use selection.split alone, or a world that `sees_all`"
        )
    if every and chances is None:
        raise ValueError("tilt: give the chances of all episodes")
    share = selection.equal_unless(rewards, chances)
    tilted, log_partition, middle = _tilted(rewards, share, scale)
    scale = jnp.asarray(scale, jnp.float32)
    centred = (rewards - middle)[..., None]
    share, tilted = share[..., None], tilted[..., None]
    own, weights = (jnp.sum(x * posteriors, axis=1) for x in (share, tilted))
    mean, log_partition = jnp.sum(tilted * centred, axis=(1, 2)), log_partition[:, 0]
    selections = selection.relative_entropy(weights, own)

    log_ratio = scale * centred - log_partition[:, None, None]
    gain = jnp.log(jnp.where(weights > 0, weights / jnp.where(own > 0, own, 1.0), 1.0))
    changes = jnp.sum(tilted * posteriors * (log_ratio - gain[:, None]), axis=1)
    effective = 1 / jnp.sum(jnp.square(tilted), axis=(1, 2))
    if not every:
        # With an episode left out: the weights of both, and the mean and the partition of the tilt.
        others = [selection.without(x, posteriors, y) for x, y in ((weights, tilted), (own, share))]
        means = (mean[:, None] - (tilted * centred)[..., 0]) / (1 - tilted[..., 0])
        partitions = log_partition[:, None] + jnp.log1p(-tilted[..., 0]) - jnp.log1p(-share[..., 0])
        plain = scale * mean - log_partition - selections
        selections, mean, log_partition = (
            selection.unbiased(x, y)
            for x, y in (
                (selections, selection.relative_entropy(*others)), (mean, means), (log_partition, partitions)
            )
        )  # fmt: skip
        correction = scale * mean - log_partition - selections - plain
        changes = changes + weights * correction[:, None]
    divergences = scale * mean - log_partition
    rewards, log_partitions = mean + middle[:, 0], log_partition + scale * middle[:, 0]
    numbers = (own, weights, divergences, selections, changes, rewards, log_partitions)
    if not every:
        enough = effective >= LEAST_EFFECTIVE
        numbers = [jnp.where(enough.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan) for x in numbers]
    *parts, rewards, log_partitions = numbers
    return Tilt(scale, selection.Split(*parts), rewards, log_partitions, effective)


def _tilted(rewards: jax.Array, share: jax.Array, scale: jax.Array | float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chances float32[M, N] under the tilt; its log-partition, less λ times the last; its mean reward, float32[M, 1].

    Around its own mean nothing large is subtracted from anything large: at λ = 40 that saves two digits.
    """
    log_share = jnp.log(jnp.where(share > 0, share, 1.0))

    def around(middle):
        """The tilt, with rewards less `middle`, which cancels."""
        log_weight = jnp.where(share > 0, scale * (rewards - middle) + log_share, -jnp.inf)
        log_partition = jax.nn.logsumexp(log_weight, axis=1, keepdims=True)
        return jnp.exp(log_weight - log_partition), log_partition

    middle = jnp.sum(around(jnp.zeros_like(rewards[:, :1]))[0] * rewards, axis=1, keepdims=True)
    return *around(middle), middle


LARGEST_SCALE = 200.0
"""λ at which `match` gives up: by then a success pays e^200 failures, in units of the reward's range."""


def match(
    world: base.World,
    rewards: jax.Array,
    posteriors: jax.Array,
    reward: jax.Array | float,
    chances: jax.Array | None = None,
    *,
    every: bool = False,
) -> Tilt:
    """The tilt, one λ for all mazes, that earns `reward` on average over mazes, by bisection; arguments as in `tilt`.

    λ is negative where the base earns more. Where no tilt earns it, because the sample has no episode that does, λ
    ends at ± `LARGEST_SCALE` over the range of the rewards; compare `Tilt.rewards` with what was asked for.
    """
    bound = LARGEST_SCALE / jnp.maximum(jnp.max(rewards) - jnp.min(rewards), 1e-6)
    share = selection.equal_unless(rewards, chances)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        short = jnp.sum(_tilted(rewards, share, middle)[0] * rewards, axis=1).mean() < reward
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    # A float32 has 24 bits, but around 0 they are finer than the first steps.
    low, high = jax.lax.fori_loop(0, 50, halve, (-bound, bound))
    return tilt(world, rewards, posteriors, (low + high) / 2, chances, every=every)


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
