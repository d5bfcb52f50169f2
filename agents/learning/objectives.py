"""Advantages and loss pieces: pure functions of single-example arrays, composed by the stages.

Shapes: T turns of one episode, A = 4 actions. Everything is float32. A turn that was not played (after an episode
has ended early) has `played` False and takes no part in any sum.
"""

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning.hyperparameters import Scalar
from envs import tokens


def gae(
    rewards: jax.Array,
    values: jax.Array,
    written: jax.Array,
    played: jax.Array,
    discount: Scalar,
    trace_decay: Scalar,
    taught: jax.Array | np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over the decisions of one whole episode.

    A token of a plan pays nothing and takes no time: nothing is discounted, but the trace decays. What was not
    chosen, after the end of the plan or of the episode, is passed over. Nothing follows the last turn played.

    Args:
        rewards: float32[T].
        values: float32[K + T], value before each decision.
        written: bool[K], where there was a choice.
        played: bool[T].
        discount: float32[], gamma.
        trace_decay: float32[], lambda.
        taught: bool[K + T], the decisions that learn; all by default. Nobody learns the value before another one, so it
            is not built upon: what follows counts as it came, and the trace does not decay there.

    Returns:
        Advantages float32[K + T], 0 where nothing was chosen, and value targets float32[K + T].
    """
    slots = len(written)
    pays = jnp.concatenate([jnp.zeros(slots, jnp.float32), rewards])
    discounts = jnp.concatenate([jnp.ones(slots, jnp.float32), jnp.broadcast_to(discount, rewards.shape)])

    def backwards(carry, decision):
        advantage, following = carry
        reward, value, chosen, discount = decision
        new = reward + discount * following - value + discount * trace_decay * advantage
        carry = (jnp.where(chosen, new, advantage), jnp.where(chosen, value, following))
        return carry, jnp.where(chosen, new, 0.0)

    def past_others(carry, decision):
        reward, value, chosen, discount, learns = decision
        (advantage, following), new = backwards(carry, (reward, value, chosen, discount))
        came, passed = new + value, chosen & ~learns  # the return from here on
        return (jnp.where(passed, 0.0, advantage), jnp.where(passed, came, following)), new

    chosen = jnp.concatenate([written, played])
    start, decisions = (jnp.float32(0), jnp.float32(0)), (pays, values, chosen, discounts)
    step, over = (backwards, decisions) if taught is None else (past_others, (*decisions, taught))
    _, advantages = jax.lax.scan(step, start, over, reverse=True)
    return advantages, advantages + values


def rewards_to_go(rewards: jax.Array, played: jax.Array, discount: Scalar) -> jax.Array:
    """Discounted sum of the rewards from each turn on, float32[T], of rewards float32[T]."""

    def backwards(total, turn):
        total = turn + discount * total
        return total, total

    return jax.lax.scan(backwards, jnp.float32(0), jnp.where(played, rewards, 0.0), reverse=True)[1]


def pay_later(rewards: jax.Array, played: jax.Array, discount: Scalar) -> jax.Array:
    """Rewards float32[T] as somebody gets them who plays only the turns `played`, bool[T].

    What comes after the last turn played is paid there, discounted. So from each turn on all gets the same return,
    whoever plays it and for however long.
    """
    last = jnp.arange(len(rewards)) == played.sum() - 1
    rest = rewards_to_go(rewards, jnp.ones_like(played), discount)
    return jnp.where(last, rest, jnp.where(played, rewards, 0.0))


def rounding(rewards: jax.Array, summands: int = 0) -> jax.Array:
    """How far two sums over the last axis of float32[..., T] can differ though they are equal, float32[...].

    The error of a sum of n is at most n - 1 roundings of what is added up, without signs; the rewards themselves are
    rounded as well. `summands` is how many more such sums are averaged.
    """
    unit = jnp.finfo(jnp.float32).eps / 2
    return 2 * unit * (rewards.shape[-1] + summands) * jnp.abs(rewards).sum(axis=-1)


def group_advantage(returns: jax.Array, group: int, kind: str, resolution: jax.Array) -> jax.Array:
    """Advantage of each episode against the others of its group, float32[B]; a group is `group` rows in a row.

    Args:
        returns: float32[B].
        group: G, episodes that share a maze and a start.
        kind: `mean`, R minus the group's mean (Dr. GRPO, arXiv 2503.20783); `z`, that over the group's standard
            deviation plus 1e-4 (GRPO, arXiv 2402.03300, as in TRL); `others`, R minus the mean of the other ones
            (RLOO, arXiv 2402.14740).
        resolution: float32[B], up to where returns are equal but for rounding, which a deviation would blow up.
    """
    grouped, least = (x.reshape(-1, group) for x in (returns, resolution))
    centred = grouped - grouped.mean(axis=1, keepdims=True)
    centred = jnp.where(jnp.abs(centred) <= least.max(axis=1, keepdims=True), 0.0, centred)
    if kind == "z":
        centred = centred / (deviation(centred)[:, None] + 1e-4)
    elif kind == "others":
        centred = centred * (group / max(group - 1, 1))
    return centred.reshape(-1)


def deviation(x: jax.Array) -> jax.Array:
    """Standard deviation of samples over the last axis, float32[...], by n − 1; 0 of a single one."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return jnp.sqrt(jnp.sum(jnp.square(centred), axis=-1) / max(x.shape[-1] - 1, 1))


def mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the entries where `mask`, float32[]; 0 where there are none."""
    return jnp.sum(x, where=mask) / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Variance over the entries where `mask`, float32[]; 0 where there are none."""
    return mean(jnp.square(x - mean(x, mask)), mask)


def normalise(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x with mean 0 and standard deviation 1 over the entries where `mask`; 0 elsewhere."""
    return rescale(jnp.where(mask, x - mean(x, mask), 0.0), mask)


def rescale(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x over its standard deviation about 0 over the entries where `mask`; 0 elsewhere."""
    return jnp.where(mask, x, 0.0) * jax.lax.rsqrt(mean(jnp.square(x), mask) + 1e-8)


def clipped_surrogate(
    log_ratio: jax.Array, advantage: jax.Array, clip_low: Scalar, clip_high: Scalar, clip_dual: Scalar = 0.0
):
    """PPO's objective to be maximised (arXiv 1707.06347, eq. 7), elementwise.

    Args:
        log_ratio: log pi(a) - log pi_old(a).
        advantage: of the same shape.
        clip_low, clip_high: how far the ratio may fall below and rise above 1.
        clip_dual: where the advantage is negative, the objective is at least `clip_dual` times it (dual clip, arXiv
            1912.09729, eq. 5); 0 for no such bound.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)
    bounded = (advantage < 0) & (jnp.asarray(clip_dual, jnp.float32) > 0)
    return jnp.where(bounded, jnp.maximum(clipped, clip_dual * advantage), clipped)


def kl_estimate(log_ratio: jax.Array) -> jax.Array:
    """Elementwise unbiased, non-negative estimate of KL(pi_old || pi) from actions of pi_old ("k3")."""
    return jnp.expm1(log_ratio) - log_ratio


def entropy(log_probabilities: jax.Array) -> jax.Array:
    """Entropy in nats of distributions [..., A] given by their log-probabilities."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


def divergence(log_probabilities: jax.Array, others: jax.Array) -> jax.Array:
    """KL(p ‖ q) in nats of distributions [..., A] given by their log-probabilities; what p never says adds nothing."""
    chances = jnp.exp(log_probabilities)
    return jnp.sum(jnp.where(chances > 0, chances * (log_probabilities - others), 0.0), axis=-1)


def equalized_entropy(log_probabilities: jax.Array, neighbours: jax.Array) -> jax.Array:
    """Entropy within each kind of tile (arXiv 2605.30232, appendix J.3), in nats.

    For every role that at least two of the four neighbours share, the entropy of the policy restricted to those
    directions; summed over roles. It keeps directions equal without fighting the preference for a tile.

    Args:
        log_probabilities: float32[..., A].
        neighbours: roles int8[..., A] of the tiles that the actions lead to.
    """
    roles = range(len(tokens.ROLES))
    same = jnp.stack([neighbours == role for role in roles], axis=-2)
    logits = jnp.where(same, log_probabilities[..., None, :], -1e30)
    within = jax.nn.log_softmax(logits, axis=-1)
    terms = jnp.where(same, jnp.exp(within) * within, 0.0)
    return jnp.sum(jnp.where(same.sum(-1) >= 2, -terms.sum(-1), 0.0), axis=-1)


def action_log_probabilities(logits: jax.Array) -> jax.Array:
    """Log-probabilities float32[..., A] of the four actions: the vocabulary's logits restricted to moves."""
    first = tokens.MOVES[0]
    return jax.nn.log_softmax(logits[..., first : first + len(tokens.MOVES)], axis=-1)


def next_token_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats of target tokens int32[...] under logits float32[..., V], elementwise."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
