"""Advantages and loss pieces: pure functions of single-example arrays, composed by the stages.

Shapes: T turns of one episode, A = 4 actions. Everything is float32. A turn that was not played (after an episode
has ended early) has `played` False and takes no part in any sum.
"""

import jax
import jax.numpy as jnp

from agents.hyperparameters import Scalar
from envs import tokens


def gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: Scalar,
    trace_decay: Scalar,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) over one episode or several in a row.

    Args:
        rewards: float32[T].
        values: float32[T], value before each turn.
        next_values: float32[T], value after each turn, of the state it led to and not of a fresh episode's.
        terminated: bool[T], nothing follows: the value after the turn counts as 0.
        truncated: bool[T], the episode was cut: the value after the turn counts, but the trace stops.
        discount: float32[], gamma.
        trace_decay: float32[], lambda.

    Returns:
        Advantages float32[T] and value targets float32[T] = advantages + values.
    """
    alive = 1.0 - terminated.astype(jnp.float32)
    goes_on = alive * (1.0 - truncated.astype(jnp.float32))
    errors = rewards + discount * alive * next_values - values

    def backwards(advantage, turn):
        error, trace = turn
        advantage = error + discount * trace_decay * trace * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.float32(0), (errors, goes_on), reverse=True)
    return advantages, advantages + values


def normalise(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x with mean 0 and standard deviation 1 over the entries where `mask`; 0 elsewhere."""
    centred = jnp.where(mask, x - jnp.mean(x, where=mask), 0.0)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), where=mask) + 1e-8)


def clipped_surrogate(log_ratio: jax.Array, advantage: jax.Array, clip_low: Scalar, clip_high: Scalar):
    """PPO's objective to be maximised (arXiv 1707.06347, eq. 7), elementwise.

    Args:
        log_ratio: log pi(a) - log pi_old(a).
        advantage: of the same shape.
        clip_low, clip_high: how far the ratio may fall below and rise above 1.
    """
    ratio = jnp.exp(log_ratio)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)


def kl_estimate(log_ratio: jax.Array) -> jax.Array:
    """Elementwise unbiased, non-negative estimate of KL(pi_old || pi) from actions of pi_old ("k3")."""
    return jnp.expm1(log_ratio) - log_ratio


def entropy(log_probabilities: jax.Array) -> jax.Array:
    """Entropy in nats of distributions [..., A] given by their log-probabilities."""
    return -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)


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
