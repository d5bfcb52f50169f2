"""How much of what RL did to a policy is the choice of a persona, and how much is change within the personas?

Personas π_i with prior w_i, the base π_0 = Σ w_i π_i over whole episodes τ, the
posterior q(i | τ) = w_i π_i(τ) / π_0(τ), and for any policy π the weights w^π_i = E_π q(i | τ). Then exactly

    KL(π ‖ π_0) = S + W,    S = KL(w^π ‖ w),    W = Σ_i w^π_i KL(π q(i | ·) / w^π_i ‖ π_i).

S, selection, is at most −log min w; W, change within personas, has no bound. Personas are weighed maze by maze, so S
is itself a global choice of a persona plus the routing of mazes to personas. `tilting` splits the same KL against the
cheapest policy that earns as much.

All estimates are of one policy; vmap them over members. Divergences are in nats per episode.
`personas.log_posteriors` has the posterior as an episode unfolds, and `tests.tabular` the exact values for tables.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from agents.learning import objectives
from envs import personas

_STEPS = 10_000
"""Of expectation maximisation, at most."""


def relative_entropy(first: Any, second: Any) -> Any:
    """KL(first ‖ second) of distributions float[..., I], of one shape, in nats; float[...].

    Each term is p log(p / q) − p + q, which is never negative and small where p is near q, so the sum keeps its
    digits where λ → 0. Where q is 0, so must p be. NumPy arrays are computed by NumPy in their own dtype, JAX arrays
    by JAX.
    """
    xp = first.__array_namespace__()
    ratio = first / xp.where(second > 0, second, 1)
    log_ratio = xp.log(xp.where(ratio > 0, ratio, 1))
    return (second * (ratio * log_ratio - (ratio - 1))).sum(axis=-1)


@struct.dataclass
class Split:
    """KL(π ‖ π_0) = selection + within, over M mazes; float32 from samples.

    The properties are means over mazes, nats per episode. Arrays may have leading axes, such as members.
    """

    prior: Any
    """float[M, I], w of each maze: the base's own weights."""
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
        """S, float[]: at most −log min w. A lower bound of what re-weighting the personas explains: `reach`."""
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
        """KL(mean weights ‖ mean w), float[]: the selection that is the same in every maze."""
        return relative_entropy(self.mean_weights, self.prior.mean(axis=-2))

    @property
    def routing(self) -> Any:
        """S less the choice, float[]: the selection that differs from maze to maze."""
        return self.selection - self.choice


def split(
    log_policy: jax.Array,
    log_personas: jax.Array,
    prior: jax.Array,
    *,
    chances: jax.Array | None = None,
    divergences: jax.Array | None = None,
    jackknife: bool = False,
) -> Split:
    """Split KL(π ‖ π_0) by episodes that π has played, N in each of M mazes.

    S and W are computed apart, and their sum is the estimate of KL to rounding, whatever the sample. The chance of
    the world is the same for all and may be left out of every log-likelihood.

    Args:
        log_policy: log π(τ), float32[M, N].
        log_personas: log π_i(τ), float32[M, N, I]; -inf for what a persona never does.
        prior: w, float32[I], sums to 1; or float32[M, I], where the base chooses by the maze. A persona that has none
            takes no part.
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
    share = equal_unless(log_policy, chances)[..., None]
    prior = jnp.broadcast_to(prior, (len(log_policy), prior.shape[-1]))
    log_joint = log_personas + jnp.log(prior)[:, None]
    log_base = jax.nn.logsumexp(log_joint, axis=-1, keepdims=True)
    posterior = jnp.exp(log_joint - log_base)
    weights = jnp.sum(share * posterior, axis=1)

    # log π^(i) − log π_i; where q is 0 so is the term.
    log_ratio, there = log_policy[..., None] - log_base, weights > 0
    log_gain = jnp.where(there, jnp.log(jnp.where(there, weights, 1.0)) - jnp.log(prior), 0.0)
    changes = jnp.sum(share * posterior * (log_ratio - log_gain[:, None]), axis=1)
    selections, estimate = relative_entropy(weights, prior), jnp.sum(share * log_ratio, axis=(1, 2))
    correction = jnp.zeros_like(selections)
    if jackknife:
        left_out = relative_entropy(without(weights, posterior, share), prior[:, None])
        corrected = unbiased(selections, left_out)
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
    log_base = acts(log_personas, actions, played, prior)
    return jnp.sum(jnp.where(played, objectives.divergence(log_policy, log_base), 0.0))


def acts(log_personas: jax.Array, actions: jax.Array, played: jax.Array, prior: jax.Array) -> jax.Array:
    """How a mixture of whole episodes acts turn by turn, Σ_i q(i | history) π_i: log-probabilities float32[T, A].

    Arguments as in `stepwise_divergence`.
    """
    taken = jnp.take_along_axis(log_personas, actions[:, None, None], axis=2)[..., 0]
    nothing = jnp.zeros(len(prior), jnp.float32)
    posterior = personas.log_posteriors(prior, nothing, taken, played)[:-1]
    return jax.nn.logsumexp(posterior[..., None] + log_personas, axis=1)


def common(weights: jax.Array, prior: jax.Array) -> jax.Array:
    """The choice, KL(mean weights ‖ mean prior), from a sample of mazes, float32[]; arrays float32[M, I].

    Of few mazes it would be too high, for their means differ from those of all mazes: the jackknife over mazes.
    """

    def others(x):
        return (jnp.sum(x, axis=0, keepdims=True) - x) / (len(x) - 1)

    whole = relative_entropy(*(jnp.mean(x, axis=0, keepdims=True) for x in (weights, prior)))
    return unbiased(whole, relative_entropy(others(weights), others(prior))[None])[0]


def without(mean: jax.Array, values: jax.Array, share: jax.Array) -> jax.Array:
    """A mean of episodes with each of them left out in turn, float32[M, N, I].

    Args:
        mean: Σ share · values, float32[M, I], not negative.
        values: float32[M, N, I].
        share: float32[M, N, 1], sums to 1 over episodes, and no episode has all of it.
    """
    # Rounding can leave −1e-8 where all of a mean was the episode's own.
    return jnp.maximum((mean[:, None] - share * values) / (1 - share), 0.0)


def unbiased(estimate: jax.Array, left_out: jax.Array) -> jax.Array:
    """The jackknife of an estimate float32[M] from the same with each episode left out, float32[M, N]."""
    episodes = left_out.shape[1]
    return episodes * estimate - (episodes - 1) * left_out.mean(axis=1)


def best_mixture(log_personas: jax.Array, chances: jax.Array, *, tolerance: float = 1e-5) -> jax.Array:
    """Weights v of the mixture Σ v_i π_i that is nearest to π, float32[I], by expectation maximisation.

    v_i ← E_π [v_i π_i(τ) / Σ_j v_j π_j(τ)]; the problem is convex. For one mixture of all
    mazes give their episodes as one axis, for a mixture per maze vmap.

    Args:
        log_personas: log π_i(τ) of episodes that π has played, float32[N, I]; each possible for some persona.
        chances: of the episodes under π, float32[N], sums to 1.
        tolerance: nats; it stops where KL(π ‖ mixture) is at most so far above the least, or after `_STEPS`.
    """
    likelihood = jnp.exp(log_personas - jnp.max(log_personas, axis=-1, keepdims=True))
    count = log_personas.shape[-1]

    def gains(weights):
        mixture = jnp.sum(likelihood * weights[None], axis=1, keepdims=True)
        return jnp.sum(chances[:, None] * likelihood / mixture, axis=0)

    def unfinished(carry):
        step, weights = carry
        # The log-likelihood is concave in v, so its tangent plane bounds it.
        return (step < _STEPS) & (jnp.max(gains(weights)) - 1 > tolerance)

    def improve(carry):
        step, weights = carry
        weights = weights * gains(weights)
        return step + 1, weights / weights.sum()

    return jax.lax.while_loop(unfinished, improve, (jnp.int32(0), jnp.full(count, 1 / count, jnp.float32)))[1]


@struct.dataclass
class Reach:
    """How much of KL(π ‖ π_0) re-weighting the base's personas can explain: between selection, `low`, and `high`.

    Selection is counted through the posterior, which episodes betray in part only, so that S of a policy that is
    one of the personas lies below its KL. The other bound is KL(π ‖ π_0) − min_v KL(π ‖ Σ v_i π_i).
    Both are exact for sharp posteriors, and low ≤ high for any policy.
    """

    low: jax.Array
    """float32[], the choice: S of the mean weights."""
    high: jax.Array
    """float32[], with one mixture of the personas for all mazes, and of the base, if that chooses by the maze."""
    routed_low: jax.Array
    """float32[], S."""
    routed_high: jax.Array
    """float32[], with a mixture for each maze."""


def reach(
    log_policy: jax.Array,
    log_personas: jax.Array,
    prior: jax.Array,
    chances: jax.Array | None = None,
    *,
    divergences: jax.Array | None = None,
) -> Reach:
    """The bounds of what selection explains, from episodes that π has played; arguments as in `split`.

    Of a sample they are corrected for its size: S by the jackknife, the choice too, over mazes, and a best mixture by
    ½ / N nats for each free weight, which is what maximum likelihood gains by fitting noise. What a mixture explains is
    E_π log(mixture / π_0); `divergences` take the noise off it that it shares with log(π / π_0).
    """
    mazes, episodes = log_policy.shape
    parts = split(log_policy, log_personas, prior, chances=chances, jackknife=chances is None)
    share = equal_unless(log_policy, chances)
    log_personas = jnp.where(parts.prior[:, None] > 0, log_personas, -jnp.inf)
    log_base = jax.nn.logsumexp(log_personas + jnp.log(parts.prior)[:, None], axis=-1)
    each = jax.vmap(best_mixture)(log_personas, share)
    everybody = log_personas
    if prior.ndim == 2:
        # A base that chooses by the maze is no such mixture, and doing what it does needs no selection.
        everybody = jnp.concatenate([log_personas, log_base[..., None]], axis=-1)
    joint = best_mixture(everybody.reshape(mazes * episodes, -1), share.reshape(-1) / mazes)

    def explained(weights, others, number):
        gain = jax.nn.logsumexp(others + jnp.log(weights), axis=-1) - log_base
        if divergences is not None:
            noise = log_policy - log_base - divergences
            size = jnp.sum(jnp.square(noise))
            gain = gain - noise * jnp.sum(noise * (gain - gain.mean())) / jnp.where(size > 0, size, 1.0)
        fitted = 0.0 if chances is not None else (jnp.sum(weights > 1e-3, axis=-1).mean() - 1) / (2 * number)
        return jnp.sum(share * gain, axis=1).mean() - fitted

    low = common(parts.weights, parts.prior) if chances is None else parts.choice
    high = explained(joint[None, None], everybody, mazes * episodes)
    return Reach(low, high, parts.selection, explained(each[:, None], log_personas, episodes))


def equal_unless(like: jax.Array, chances: jax.Array | None) -> jax.Array:
    """Chances of the episodes, the last axis of `like`, float32; equal where none are given."""
    return jnp.full(like.shape, 1 / like.shape[-1], jnp.float32) if chances is None else chances
