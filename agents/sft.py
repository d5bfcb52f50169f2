"""Stage `sft`: supervised fine-tuning between `pretrain` and `rl`, every member on its own.

It imitates chosen personas, or those episodes of the pretrained model that succeeded (rejection fine-tuning).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from agents import demonstrations, imitation, learner, rollout
from agents.demonstrations import Demonstrations
from agents.hyperparameters import stage_config
from agents.policies import Policy
from envs import base


@stage_config
class SFTConfig(Demonstrations):
    """The stage `sft`."""

    updates: int = 0
    """Optimiser steps; 0 leaves the stage out."""
    chunk: int = 10
    """Updates of one compiled call; progress, metrics and checkpoints happen between calls."""
    persona: Literal["all", "Larry", "Bob", "Alice"] = "Alice"
    """Whose episodes; `all` draws a persona per episode."""
    badge_probability: float = 0.0
    """Chance that an episode carries its persona's badge; the others carry the null badge."""
    source: Literal["personas", "successes"] = "personas"
    """`personas`: demonstrations. `successes`: episodes that the model before this stage plays, of which those count
    that succeed (rejection fine-tuning)."""
    choices: Literal["all", "plan", "actions"] = "all"
    """Which choices are learnt."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; a cosine takes it to a tenth."""
    warmup: int = 10
    """Updates over which the learning rate rises to its peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = 1.0
    """The gradient's global norm is clipped here."""
    observation_weight: float = 0.0
    """Weight of a prompt or observation token in the loss; a choice weighs 1."""


def update_function(policy: Policy, world: base.World, microbatch: int) -> learner.Update:
    """The stage's update of one member; `success` is the share of episodes that succeeded, `return` their mean."""

    def show(state, config: SFTConfig, params, key, shards):
        if config.source == "personas":
            episodes = demonstrations.persona_episodes(config, world, params, key, config.episodes, shards)
        else:
            maze_key, turn_key = jax.random.split(key)
            driver = rollout.policy_driver(policy, state.reference, world)
            keys = shards.local(jax.random.split(maze_key, config.episodes))
            noise = rollout.gumbel(config.episodes, shards.local)
            episodes, _, _ = rollout.play(world, params, keys, turn_key, driver, noise)
        succeeded = rollout.succeeded(world, episodes)
        keep = succeeded if config.source == "successes" else None
        lesson = imitation.Lesson.of(world, episodes, config.choices, keep)
        return lesson, {"return": episodes.returns, "success": succeeded.astype(jnp.float32)}

    return imitation.update_function(policy, show, microbatch)
