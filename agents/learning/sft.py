"""Stage `sft`: supervised fine-tuning between `pretrain` and `rl`, every member on its own.

It imitates chosen personas, or those episodes of the pretrained model that succeeded (rejection fine-tuning).
"""

from typing import Literal

import jax.numpy as jnp

from agents.learning import demonstrations, imitation, learner, rollout
from agents.learning.hyperparameters import stage_config
from agents.learning.imitation import ImitationConfig
from agents.policies import Policy
from envs import base


@stage_config
class SFTConfig(ImitationConfig):
    """The stage `sft`."""

    updates: int = 0
    """Optimiser steps; 0 leaves the stage out."""
    persona: Literal["all", "Larry", "Bob", "Alice"] = "Alice"
    """Whose episodes; `all` draws a persona per episode."""
    badge_probability: float = 0.0
    """Chance that an episode carries its persona's badge; the others carry the null badge."""
    source: Literal["personas", "successes"] = "personas"
    """`personas`: demonstrations. `successes`: episodes that the model before this stage plays, of which those count
    that succeed (rejection fine-tuning)."""
    choices: Literal["all", "plan", "actions"] = "all"
    """Which choices are learnt."""


def update_function(policy: Policy, world: base.World, microbatch: int) -> learner.Update:
    """The stage's update of one member; `success` is the share of episodes that succeeded, `return` their mean."""

    def show(state, config: SFTConfig, params, key, shards):
        if config.source == "personas":
            episodes = demonstrations.persona_episodes(config, world, params, key, config.episodes, shards)
        else:
            episodes = rollout.policy_episodes(
                policy, state.reference, world, params, key, config.episodes, local=shards.local
            )
        succeeded = rollout.succeeded(world, episodes)
        keep = succeeded if config.source == "successes" else None
        lesson = imitation.Lesson.of(world, episodes, config.choices, keep)
        return lesson, {"return": episodes.returns, "success": succeeded.astype(jnp.float32)}

    return imitation.update_function(policy, show, microbatch)
