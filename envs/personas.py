"""The personas: scripted demonstrators with exact probabilities of every action, plan and whole episode.

Larry is impulsive, Bob careful, Alice clever; what that means, each world says in a script of its own (see
`base.World.persona_log_probabilities`). A persona sees roles, not emoji: the model has to learn the language. Each
slips now and then, so that every action keeps some probability and log-likelihood ratios stay finite. `random` and
`greedy`, the planner of a world, are baselines: they never slip and write no plans.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

PERSONAS = ("Larry", "Bob", "Alice")
"""Their names; `tokens.BADGES[1 + i]` is the badge of the i-th."""

LARRY, BOB, ALICE = range(3)

Style = Literal["none", "Larry", "Bob", "Alice"]
"""Whose way is rewarded."""

BASELINES = ("random", "greedy")
"""Scripts to compare with."""

SCRIPTS = (*BASELINES, *PERSONAS)
"""Names of all scripts of a world, in the order of `base.World.script_log_probabilities`."""

SLIP = 0.05
"""Chance that a persona's action is drawn uniformly from the four directions instead."""

CERTAIN = 100.0
"""A score so far above 0 that its action is taken."""


@struct.dataclass(kw_only=True)
class Traits:
    """What can be adjusted about the personas; all of it is data. The defaults suit 7 × 7 cells and 20 turns.

    Worlds without plans and ways to find have only the `slip`.
    """

    slip: jax.Array | float = SLIP
    """float32[], chance that an action is drawn uniformly instead."""
    following: jax.Array | tuple[float, ...] = (0.9, 0.9, 0.9)
    """float32[3], ρ: chance that Larry, Bob and Alice heed what the plan says of the cell they stand on."""
    steadiness: jax.Array | float = 0.9
    """float32[], chance that Bob keeps his right hand on the wall; otherwise any way but back."""
    skill: jax.Array | float = 0.5
    """float32[], chance that Alice finds the shortest way where she does without the plan; otherwise any but back."""
    thinking: jax.Array | tuple[float, ...] = (0.5, 0.9, 0.9)
    """float32[3], chance that Larry, Bob and Alice think before they walk, in worlds where they need not."""
    plan_slip: jax.Array | float = 0.05
    """float32[], chance that a token of a plan is drawn uniformly from all that it can say instead."""


TEMPTATION = 1e-3
"""How likely a slip into something that pays and that nobody wants is, for a slip elsewhere. Not 0, so that likelihoods
stay finite."""


def uniform(choices: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Uniform over `choices` bool[..., N], or, where there is none, as `otherwise` float32[..., N] says."""
    count = choices.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.where(count > 0, choices.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32), otherwise)


def slipping(wanted: jax.Array, paying: jax.Array, slip: float | jax.Array) -> jax.Array:
    """Log-probabilities float32[I, 4] of actions that are `wanted` with 1 - slip, and else drawn from all four.

    Args:
        wanted: probabilities float32[I, 4] before slipping.
        paying: bool[4], what nobody wants; see `TEMPTATION`.
        slip: chance.
    """
    weight = jnp.where(paying, TEMPTATION, 1.0)
    return jnp.log((1 - slip) * wanted + (slip * weight / weight.sum())[None])


def log_probabilities(scores: jax.Array, slip: float | jax.Array) -> jax.Array:
    """Log-probabilities float32[..., 4]: the scores' softmax with 1 - slip, any direction with slip."""
    return jnp.log((1 - slip) * jax.nn.softmax(scores, axis=-1) + slip / 4)


def log_posteriors(prior: jax.Array, plans: jax.Array, turns: jax.Array, played: jax.Array) -> jax.Array:
    """log q(i | τ), how likely each persona is to be the speaker, as the episode unfolds.

    Exact, because q(i | τ) = w_i π_i(τ) / Σ_j w_j π_j(τ) and log π_i(τ) is the sum of what the plan and each action
    have contributed: the chance of the world is the same for all and cancels.

    Args:
        prior: w float32[I], sums to 1.
        plans: log-probability of the plan under each persona, float32[..., I].
        turns: log-probability of each turn's action under each persona, float32[..., T, I].
        played: bool[..., T], False after the episode's end.

    Returns:
        float32[..., T + 1, I]: knowing the plan alone, then also the first t turns; the last is q(i | τ).
    """
    steps = jnp.where(played[..., None], turns, 0.0)
    evidence = jnp.concatenate([plans[..., None, :], steps], axis=-2)
    joint = jnp.cumsum(evidence, axis=-2) + jnp.log(jnp.expand_dims(prior, range(plans.ndim)))
    return jax.nn.log_softmax(joint, axis=-1)
