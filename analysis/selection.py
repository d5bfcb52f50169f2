"""How much of what RL did to a policy is the choice of a persona, and how much is change within the personas?

Notation of METHODS.md section 4: personas π_i with prior w_i, the base π_0 = Σ w_i π_i over whole episodes τ, the
posterior q(i | τ) = w_i π_i(τ) / π_0(τ), and for any policy π the weights w^π_i = E_π q(i | τ). Then exactly

    KL(π ‖ π_0) = S + W,    S = KL(w^π ‖ w),    W = Σ_i w^π_i KL(π q(i | ·) / w^π_i ‖ π_i).

S, selection, is at most −log min w; W, change within personas, has no bound. Personas are weighed maze by maze, so S
is itself a global choice of a persona plus the routing of mazes to personas. The last theorem splits the same KL
against the tilt π*_λ ∝ π_0 e^{λ r}, the cheapest policy that earns as much: what of it bought no reward?

All estimates are of one policy; vmap them over members. Divergences are in nats per episode. `tabular` has the exact
values for scripted personas, and `personas.log_posteriors` the posterior as an episode unfolds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agents import statistics
from envs import personas

PARTS = ("divergence", "selection", "choice", "routing", "within", "share")
"""What `Split` and `intervals` report."""


def relative_entropy(first: Any, second: Any) -> Any:
    """KL(first ‖ second) of distributions float[..., I], of one shape, in nats; float[...].

    Each term is p log(p / q) − p + q, which is never negative and small where p is near q, so the sum keeps its
    digits where λ → 0. NumPy arrays are computed by NumPy in their own dtype, JAX arrays by JAX.
    """
    xp = first.__array_namespace__()
    ratio = first / second
    log_ratio = xp.log(xp.where(ratio > 0, ratio, 1))
    return (second * (ratio * log_ratio - (ratio - 1))).sum(axis=-1)


@struct.dataclass
class Split:
    """KL(π ‖ π_0) = selection + within, over M mazes; float32 from samples, float64 from `tabular`.

    The properties are means over mazes, nats per episode. Arrays may have leading axes, such as members.
    """

    prior: Any
    """float[I], w."""
    weights: Any
    """float[M, I], w^π of each maze."""
    divergences: Any
    """float[M], KL(π ‖ π_0) of each maze."""
    selections: Any
    """float[M], KL(w^π ‖ w) of each maze."""
    changes: Any
    """float[M, I], w^π_i KL(π^(i) ‖ π_i) of each maze: what the change within each persona adds to W."""

    @property
    def divergence(self) -> Any:
        """KL(π ‖ π_0), float[]."""
        return self.divergences.mean(axis=-1)

    @property
    def selection(self) -> Any:
        """S, float[]: at most −log min w."""
        return self.selections.mean(axis=-1)

    @property
    def within(self) -> Any:
        """W, float[]: at least 0, but for sampling."""
        return self.changes.sum(axis=-1).mean(axis=-1)

    @property
    def mean_weights(self) -> Any:
        """w^π over all mazes, float[I]."""
        return self.weights.mean(axis=-2)

    @property
    def choice(self) -> Any:
        """KL(mean weights ‖ w), float[]: the selection that is the same in every maze."""
        return relative_entropy(self.mean_weights, self.prior)

    @property
    def routing(self) -> Any:
        """S less the choice, float[]: the selection that differs from maze to maze."""
        return self.selection - self.choice

    @property
    def share(self) -> Any:
        """σ = S / KL, float[]; NaN where both are 0."""
        xp, divergence = self.divergences.__array_namespace__(), self.divergence
        return self.selection / xp.where(divergence == 0, xp.nan, divergence)


def split(
    log_policy: jax.Array,
    log_personas: jax.Array,
    prior: jax.Array,
    *,
    chances: jax.Array | None = None,
    divergences: jax.Array | None = None,
    jackknife: bool = False,
) -> Split:
    """Split KL(π ‖ π_0) by episodes that π has played, N in each of M mazes (what_rl_changes.md, T1).

    S and W are computed apart, and their sum is the estimate of KL to rounding, whatever the sample. The chance of
    the world is the same for all and may be left out of every log-likelihood.

    Args:
        log_policy: log π(τ), float32[M, N].
        log_personas: log π_i(τ), float32[M, N, I]; -inf for what a persona never does.
        prior: w, float32[I], positive, sums to 1.
        chances: float32[M, N], each row sums to 1: how likely each episode is under π, where all are listed, or an
            importance weight. By default each counts 1 / N.
        divergences: float32[M, N], of each episode an estimate of KL with less noise than log π(τ) − log π_0(τ);
            see `stepwise_divergence`. What it corrects goes to `changes`, in proportion to the weights.
        jackknife: correct S by leaving each episode out in turn. Of few episodes S is too high, by about
            (I − 1) / 2N nats where posteriors are sharp, and W too low by the same.

    Raises:
        ValueError: for a jackknife of given chances or of one episode a maze.
    """
    episodes = log_policy.shape[1]
    if jackknife and (chances is not None or episodes < 2):
        raise ValueError("split: a jackknife needs 2 episodes of each maze at least, and no `chances`")
    share = _chances(log_policy, chances)[..., None]
    log_prior = jnp.log(prior)[None, None]
    log_joint = log_personas + log_prior
    log_base = jax.nn.logsumexp(log_joint, axis=-1, keepdims=True)
    posterior = jnp.exp(log_joint - log_base)
    weights = jnp.sum(share * posterior, axis=1)

    # log π^(i) − log π_i; where q is 0 so is the term.
    log_ratio = log_policy[..., None] - log_base
    log_gain = jnp.log(jnp.where(weights > 0, weights, 1.0))[:, None] - log_prior
    changes = jnp.sum(share * posterior * (log_ratio - log_gain), axis=1)
    each = jnp.broadcast_to(prior[None], weights.shape)
    selections, estimate = relative_entropy(weights, each), jnp.sum(share * log_ratio, axis=(1, 2))
    correction = jnp.zeros_like(selections)
    if jackknife:
        others = (episodes * weights[:, None] - posterior) / (episodes - 1)
        # Rounding can leave −1e-8 where all the weight was the episode's own.
        others = jnp.maximum(others, 0.0)
        left_out = relative_entropy(others, jnp.broadcast_to(prior[None, None], others.shape)).mean(axis=1)
        corrected = episodes * selections - (episodes - 1) * left_out
        correction, selections = selections - corrected, corrected
    if divergences is not None:
        better = jnp.sum(share[..., 0] * divergences, axis=1)
        correction, estimate = correction + better - estimate, better
    return Split(prior, weights, estimate, selections, changes + weights * correction[:, None])


def stepwise_divergence(
    log_policy: jax.Array, log_personas: jax.Array, actions: jax.Array, played: jax.Array, prior: jax.Array
) -> jax.Array:
    """KL(π ‖ π_0) summed over the turns of one episode, each turn's in closed form; float32[].

    Its mean over episodes of π is the KL of whole episodes by the chain rule, with less noise than log π(τ) −
    log π_0(τ) (Rao and Blackwell), for π_0 acts as Σ_i q(i | history) π_i.

    Args:
        log_policy: of every action at every turn, float32[T, A].
        log_personas: of every action at every turn under each persona, float32[T, I, A].
        actions: int32[T], those taken.
        played: bool[T], False after the episode's end.
        prior: w, float32[I]; where there is a plan, the posterior that it leaves.
    """
    taken = jnp.take_along_axis(log_personas, actions[:, None, None], axis=2)[..., 0]
    nothing = jnp.zeros(len(prior), jnp.float32)
    posterior = personas.log_posteriors(prior, nothing, taken, played)[:-1]
    log_base = jax.nn.logsumexp(posterior[..., None] + log_personas, axis=1)
    chance = jnp.exp(log_policy)
    terms = jnp.where(chance > 0, chance * (log_policy - log_base), 0.0)
    return jnp.sum(jnp.where(played[:, None], terms, 0.0))


def intervals(found: Split, **options: Any) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval of each of `PARTS`, mazes drawn anew with all their episodes.

    For a population resample its members instead: `statistics.bootstrap_interval(split.selection)`.

    Args:
        found: of one policy.
        options: `interval`, `resamples`, `seed` and `strata` of `statistics.bootstrap_interval`.
    """
    prior = np.asarray(found.prior, np.float64)
    rows = np.concatenate([np.stack([found.divergences, found.selections]), np.asarray(found.weights).T])

    def statistic(values: np.ndarray, axis: int) -> np.ndarray:
        divergence, selection, *weights = values.mean(axis=axis)
        choice = relative_entropy(np.array(weights), prior)
        return np.array(
            [divergence, selection, choice, selection - choice, divergence - selection, selection / divergence]
        )

    low, high = statistics.bootstrap_interval(rows, statistic=statistic, **options)
    return {name: (float(a), float(b)) for name, a, b in zip(PARTS, low, high, strict=True)}


def correlation_ratio(means: Any, variances: Any, prior: Any) -> Any:
    """η² = Var_i(E_i r) / Var(r), what personas explain of the reward's variance within a maze; float[].

    The share of selection in the best policy of weak RL: σ → η² as λ → 0 (what_rl_changes.md, T2).

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
        chances: as in `split`, under π_0.

    Returns:
        NaN if a persona has no episode in a maze.
    """
    share = _chances(rewards, chances)[..., None]
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
    split: Split
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
    """π*_λ and its split; tilting leaves q(i | τ) as it was (what_rl_changes.md, T2).

    Args:
        rewards, posteriors, prior, chances: as in `reward_share`, but q from the likelihoods.
        scale: λ, float32[].
    """
    share = _chances(rewards, chances)
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
        Split(prior, weights, divergences, relative_entropy(weights, each), changes),
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


def gratuitous(found: Split, reward: jax.Array | float, matched: Tilt) -> jax.Array:
    """G = KL(π ‖ π*_λ), float32[]: change that bought no reward (what_rl_changes.md, T3).

    KL(π ‖ π_0) = S* + W* + G for the matched tilt. Where the tilt earns E* r ≠ E_π r, G stays KL(π ‖ π*_λ), and the
    sum lacks λ (E_π r − E* r).

    Args:
        found: of the policy.
        reward: E_π r, float32[], over the same mazes.
        matched: from `match`, or any tilt of the same base.
    """
    missing = matched.scale * (reward - matched.rewards.mean())
    return found.divergence - matched.split.divergence - missing


@struct.dataclass
class Mixture:
    """The mixture Σ v_i π_i that is nearest to π."""

    weights: jax.Array
    """float32[I], v."""
    residual: jax.Array
    """float32[], KL(π ‖ Σ v_i π_i), at most W; nats per episode."""
    gap: jax.Array
    """float32[], the residual is at most this far above the least."""


def best_mixture(
    log_policy: jax.Array,
    log_personas: jax.Array,
    chances: jax.Array | None = None,
    *,
    tolerance: float = 1e-5,
    steps: int = 10_000,
) -> Mixture:
    """Weights that bring a mixture of the personas nearest to π, by expectation maximisation.

    v_i ← E_π [v_i π_i(τ) / Σ_j v_j π_j(τ)]; the problem is convex (what_rl_changes.md, T1). For one mixture of all
    mazes give their episodes as one axis, for a mixture per maze vmap.

    Args:
        log_policy: log π(τ) of episodes that π has played, float32[N].
        log_personas: log π_i(τ), float32[N, I]; each episode possible for some persona.
        chances: float32[N], sums to 1; by default each episode counts 1 / N.
        tolerance: nats; the gap at which it stops.
        steps: at most.
    """
    share = _chances(log_policy, chances)
    top = jnp.max(log_personas, axis=-1, keepdims=True)
    likelihood = jnp.exp(log_personas - top)
    count = log_personas.shape[-1]

    def gains(weights):
        return jnp.sum(share[:, None] * likelihood / jnp.sum(likelihood * weights[None], axis=1, keepdims=True), axis=0)

    def unfinished(carry):
        step, weights = carry
        return (step < steps) & (jnp.max(gains(weights)) - 1 > tolerance)

    def improve(carry):
        step, weights = carry
        weights = weights * gains(weights)
        return step + 1, weights / weights.sum()

    _, weights = jax.lax.while_loop(unfinished, improve, (jnp.int32(0), jnp.full(count, 1 / count, jnp.float32)))
    log_mixture = jnp.log(jnp.sum(likelihood * weights[None], axis=1)) + top[:, 0]
    residual = jnp.sum(share * (log_policy - log_mixture))
    # The log-likelihood is concave in v, so its tangent plane bounds it.
    return Mixture(weights, residual, jnp.maximum(jnp.max(gains(weights)) - 1, 0.0))


def _chances(like: jax.Array, chances: jax.Array | None) -> jax.Array:
    """Chances of the episodes, the last axis of `like`; equal unless given."""
    return jnp.full(like.shape, 1 / like.shape[-1], jnp.float32) if chances is None else chances
