"""Stage `rl`: proximal policy optimisation (arXiv 1707.06347) of a token policy on whole episodes.

One update plays a batch of episodes with the current policy, scores them with the training forward, and takes a few
epochs of clipped-surrogate steps. Old log-probabilities come from the training forward and not from the cached
decoding that played, so that the ratio starts at exactly 1. The time limit is part of the task (the policy can count
the turns it has read), so nothing is bootstrapped beyond the last turn.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from agents import learner, objectives, rollout
from agents.hyperparameters import stage_config
from agents.policies import Intervention, Parameters, Policy
from envs import base


@stage_config
class RLConfig:
    """The stage `rl`."""

    updates: int = 24
    """PPO updates."""
    chunk: int = 1
    """Updates of one compiled call; progress, metrics and checkpoints happen between calls."""
    episodes: int = 256
    """Episodes per member and update."""
    epochs: int = 2
    """Passes over the episodes of an update."""
    minibatches: int = 4
    """Optimiser steps of an epoch; must divide the episodes."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; a cosine takes it to `final_learning_rate` times itself."""
    final_learning_rate: float = 0.1
    """Learning rate of the last step, as a fraction of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = 1.0
    """The gradient's global norm is clipped here."""
    discount: float = 1.0
    """Discount per turn, gamma."""
    trace_decay: float = 0.9
    """Decay of the advantage trace, lambda of GAE."""
    clip_low: float = 0.2
    """How far the probability ratio may fall below 1."""
    clip_high: float = 0.2
    """How far the probability ratio may rise above 1."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    reward_scale: float = 0.05
    """Rewards are multiplied by this for the value head; one Gold tile becomes 1."""
    entropy_weight: float = 0.0
    """Weight of the entropy of the four actions."""
    equalized_entropy_weight: float = 0.01
    """Weight of the entropy within each kind of tile (arXiv 2605.30232, appendix J.3)."""
    temperature: float = 1.0
    """Sampling temperature of the actions; the loss sees them at temperature 1, as in arXiv 2605.30232."""
    shuffle_rewards: bool = False
    """Control: every episode is paid with the rewards of another one."""


@struct.dataclass
class Batch:
    """What the loss needs of a batch of episodes."""

    tokens: jax.Array
    """int32[B, S]"""
    actions: jax.Array
    """int32[B, T]"""
    neighbours: jax.Array
    """int8[B, T, 4]"""
    played: jax.Array
    """bool[B, T]"""
    log_probabilities: jax.Array
    """float32[B, T], of the actions under the policy that played."""
    advantages: jax.Array
    """float32[B, T]"""
    targets: jax.Array
    """float32[B, T], of the value head."""


def read(
    policy: Policy,
    parameters: Parameters,
    world: base.World,
    sequence: jax.Array,
    *,
    intervention: Intervention | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Action log-probabilities float32[B, T, 4] and values float32[B, T] before each action of episodes [B, S]."""
    at = world.action_positions() - 1
    outputs = policy.forward(parameters, sequence[:, :-1], intervention=intervention, at=at)
    logits, values = policy.heads(parameters, outputs.hidden)
    return objectives.action_log_probabilities(logits), values


def loss_function(policy: Policy, world: base.World, config: RLConfig, turns: jax.Array):
    """PPO's loss of a microbatch, normalised by the `turns` of its minibatch, and its metrics."""

    def loss(parameters, batch: Batch):
        every, values = read(policy, parameters, world, batch.tokens)
        taken = jnp.take_along_axis(every, batch.actions[..., None], axis=-1)[..., 0]
        log_ratio = taken - batch.log_probabilities

        def mean(x):
            return jnp.sum(x, where=batch.played) / turns

        surrogate = mean(objectives.clipped_surrogate(log_ratio, batch.advantages, config.clip_low, config.clip_high))
        value_loss = mean(0.5 * jnp.square(values - batch.targets))
        entropy = mean(objectives.entropy(every))
        equalized = mean(objectives.equalized_entropy(every, batch.neighbours))
        total = (
            config.value_weight * value_loss
            - surrogate
            - config.entropy_weight * entropy
            - config.equalized_entropy_weight * equalized
        )
        ratio = jnp.exp(log_ratio)
        clipped = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
        return total, {
            "loss": total,
            "surrogate": surrogate,
            "value_loss": value_loss,
            "entropy": entropy,
            "equalized_entropy": equalized,
            "kl": mean(objectives.kl_estimate(log_ratio)),
            "clipped": mean(clipped.astype(jnp.float32)),
            "ratio_error": mean(jnp.abs(ratio - 1)),
        }

    return loss


def collect(
    policy: Policy,
    world: base.World,
    config: RLConfig,
    params: base.WorldParams,
    parameters: Parameters,
    key: jax.Array,
    microbatch: int,
    shards: learner.Shards,
) -> tuple[Batch, learner.Metrics]:
    """Play a batch, score it and estimate advantages; every device gets the whole batch."""
    maze_key, turn_key, shuffle_key = jax.random.split(key, 3)
    episodes, _, _ = rollout.play(
        world,
        params,
        shards.local(jax.random.split(maze_key, config.episodes)),
        turn_key,
        rollout.policy_driver(policy, parameters, world, temperature=config.temperature),
        rollout.gumbel(config.episodes, shards.local),
    )
    parts = learner.microbatches(episodes.tokens, microbatch)
    every, values = jax.lax.map(lambda part: read(policy, parameters, world, part), parts)
    every, values = (x.reshape(-1, *x.shape[2:]) for x in (every, values))
    taken = jnp.take_along_axis(every, episodes.actions[..., None], axis=-1)[..., 0]
    episodes, taken, values = shards.gather((episodes, taken, values))

    rewards = episodes.rewards
    if config.shuffle_rewards:
        rewards = jax.random.permutation(shuffle_key, rewards)
    ended = episodes.terminated | episodes.truncated
    following = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    advantages, targets = jax.vmap(objectives.gae, in_axes=(0, 0, 0, 0, 0, None, None))(
        rewards * config.reward_scale, values, following, ended, ended, config.discount, config.trace_decay
    )
    played = episodes.played
    batch = Batch(
        tokens=episodes.tokens,
        actions=episodes.actions,
        neighbours=episodes.neighbours,
        played=played,
        log_probabilities=taken,
        advantages=objectives.normalise(advantages, played),
        targets=targets,
    )
    unexplained = jnp.var(targets - values, where=played)
    metrics = {
        "return": episodes.returns.mean(),
        "return_deviation": episodes.returns.std(),
        "explained_variance": 1 - unexplained / jnp.maximum(jnp.var(targets, where=played), 1e-8),
    }
    return batch, metrics


def update_function(policy: Policy, world: base.World, microbatch: int) -> learner.Update:
    """The stage's update of one member.

    Metrics are means over the turns of all epochs, but for `return`, of the episodes played, and for
    `first_ratio_error` and `first_kl`, of the first minibatch, which are 0 when scoring and training agree.
    """

    def update(state, config: RLConfig, params, shards):
        size = config.episodes // config.minibatches
        total_steps = config.updates * config.epochs * config.minibatches
        key, collect_key, order_key = jax.random.split(jax.random.wrap_key_data(state.key), 3)
        batch, collected = collect(policy, world, config, params, state.parameters, collect_key, microbatch, shards)

        def minibatch(state, rows):
            turns = batch.played[rows].sum().astype(jnp.float32)
            part = jax.tree.map(lambda x: x[shards.local(rows)], batch)
            loss = loss_function(policy, world, config, turns)
            gradient, metrics = learner.accumulate(loss, state.parameters, part, microbatch, shards)
            factor = learner.cosine(state.steps, total_steps, config.final_learning_rate)
            rate = config.learning_rate * factor
            state, norm = learner.descend(state, gradient, rate, config.max_gradient_norm, config.weight_decay)
            return state, metrics | {"gradient_norm": norm, "learning_rate": rate}

        orders = jax.vmap(lambda key: jax.random.permutation(key, config.episodes))
        order = orders(jax.random.split(order_key, config.epochs))
        state, metrics = jax.lax.scan(minibatch, state, order.reshape(-1, size))
        first = {f"first_{name}": metrics[name][0] for name in ("ratio_error", "kl")}
        metrics = jax.tree.map(jnp.mean, metrics)
        state = dataclasses.replace(state, key=jax.random.key_data(key), update=state.update + 1)
        return state, collected | metrics | first

    return update
