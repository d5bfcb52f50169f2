"""Learning by imitation: the next token of episodes that somebody has played.

The loss that `pretrain`, `sft` and the mixture of RL with demonstrations share. What is read of a plan after its end,
or of an episode after its own, does not count.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from agents.learning import learner, objectives, rollout
from agents.learning.demonstrations import Demonstrations
from agents.learning.hyperparameters import Scalar, stage_config
from agents.policies import Parameters, Policy
from envs import base
from ground import seeds

Choices = Literal["all", "plan", "actions"]


@stage_config
class ImitationConfig(Demonstrations):
    """A stage that imitates."""

    updates: int = 0
    """Optimiser steps."""
    chunk: int = 10
    """Updates of one compiled call; progress, metrics and checkpoints happen between calls."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; a cosine takes it to a tenth."""
    warmup: int = 10
    """Updates over which the learning rate rises to its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = 1.0
    """The gradient's global norm is clipped here."""
    observation_weight: float = 0.0
    """Weight of a prompt or observation token in the loss; a token of a plan or an action weighs 1."""


@struct.dataclass
class Lesson:
    """Episodes to imitate, this device's share."""

    tokens: jax.Array
    """int32[B, S]"""
    chosen: jax.Array
    """bool[B, S], the choices to learn."""
    told: jax.Array
    """bool[B, S], what the world said while the episode lasted."""

    @classmethod
    def of(
        cls, world: base.World, episodes: rollout.Episodes, choices: Choices = "all", keep: jax.Array | None = None
    ) -> "Lesson":
        """All tokens of episodes, or the choices of one kind, or of the episodes that `keep`, bool[B], names."""
        chosen, told = rollout.spoken(world, episodes)
        position = jnp.arange(chosen.shape[1])
        ends = world.prompt_length + world.plan_length
        if choices != "all":
            chosen &= (position < ends)[None] if choices == "plan" else (position >= ends)[None]
        if keep is not None:
            chosen, told = chosen & keep[:, None], told & keep[:, None]
        return cls(episodes.tokens, chosen, told)


def gradient(
    policy: Policy,
    parameters: Parameters,
    lesson: Lesson,
    observation_weight: Scalar,
    microbatch: int,
    shards: learner.Shards,
    *,
    focus: bool = False,
) -> tuple[Parameters, learner.Metrics]:
    """Gradient of the mean cross-entropy in nats of the next token, and its metrics; the same on every device.

    Args:
        policy, parameters: of one member.
        lesson: what to imitate.
        observation_weight: weight of what the world said; a choice weighs 1.
        microbatch: episodes of one forward and backward pass.
        shards: this device's share.
        focus: weigh each choice by p (1 - p), p its probability: what the model neither knows nor finds absurd
            (CHORD-phi, arXiv 2508.11408).
    """
    chosen, told = lesson.chosen[:, 1:], lesson.told[:, 1:]
    # A batch may hold nothing to learn, when nobody has succeeded.
    choices, others = (jnp.maximum(shards.total(mask.sum(dtype=jnp.float32)), 1.0) for mask in (chosen, told))
    normaliser = choices + others * observation_weight

    def loss(parameters, part):
        sequence, chosen, told = part
        hidden = policy.forward(parameters, sequence[:, :-1]).hidden
        logits, _ = policy.heads(parameters, hidden)
        nats = objectives.next_token_loss(logits, sequence[:, 1:])
        choice, other = jnp.sum(nats, where=chosen), jnp.sum(nats, where=told)
        weighed = choice
        if focus:
            probability = jax.lax.stop_gradient(jnp.exp(-nats))
            weighed = jnp.sum(nats * probability * (1 - probability), where=chosen)
        total = (weighed + observation_weight * other) / normaliser
        return total, {"loss": total, "action_loss": choice / choices, "observation_loss": other / others}

    return learner.accumulate(loss, parameters, (lesson.tokens, chosen, told), microbatch, shards)


Show = Callable[[learner.TrainState, Any, Any, jax.Array, learner.Shards], tuple[Lesson, dict[str, jax.Array]]]
"""(state, config, world parameters, key, shards) → this device's episodes, and what to record of each, float32[B]."""


def update_function(policy: Policy, show: Show, microbatch: int) -> learner.Update:
    """The update of a stage that imitates what `show` shows; its metrics are means over tokens, in nats."""

    def update(state, config, params, shards):
        key, show_key = jax.random.split(seeds.stored(state.key))
        lesson, seen = show(state, config, params, show_key, shards)
        found, metrics = gradient(policy, state.parameters, lesson, config.observation_weight, microbatch, shards)
        factor = learner.cosine(state.steps, config.updates, jnp.float32(0.1), config.warmup)
        rate = config.learning_rate * factor
        state, norm = learner.descend(state, found, rate, config.max_gradient_norm, config.weight_decay)
        metrics |= {name: shards.total(x.sum()) / config.episodes for name, x in seen.items()}
        metrics |= {"gradient_norm": norm, "learning_rate": rate}
        return dataclasses.replace(state, key=jax.random.key_data(key), update=state.update + 1), metrics

    return update
