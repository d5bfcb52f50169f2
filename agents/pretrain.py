"""Stage `pretrain`: a language model of the personas' episodes.

Every update draws fresh episodes: a persona, a badge that names it in half of the cases, a tile map, a maze. The
loss is the cross-entropy of the next token, observations included, so that the model learns the world's language as
well as its speakers.
"""

from agents import demonstrations, imitation, learner
from agents.demonstrations import Demonstrations
from agents.hyperparameters import stage_config
from agents.policies import Policy
from envs import base


@stage_config
class PretrainConfig(Demonstrations):
    """The stage `pretrain`."""

    updates: int = 1500
    """Optimiser steps."""
    chunk: int = 50
    """Updates of one compiled call; progress, metrics and checkpoints happen between calls."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW; a cosine takes it to a tenth."""
    warmup: int = 20
    """Updates over which the learning rate rises to its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    max_gradient_norm: float = 1.0
    """The gradient's global norm is clipped here."""
    observation_weight: float = 0.1
    """Weight of a prompt or observation token in the loss; a token of a plan or an action weighs 1."""
    shared: bool = True
    """Whether the whole population starts from one pretrained base; otherwise every member has its own."""
    seed: int = 0
    """Seed of the shared base."""


def update_function(policy: Policy, world: base.World, microbatch: int) -> learner.Update:
    """The stage's update of one member; its metrics are means over tokens, in nats.

    What is read of a plan after its end, or of an episode after its own, does not count.
    """

    def show(state, config: PretrainConfig, params, key, shards):
        episodes = demonstrations.persona_episodes(config, world, params, key, config.episodes, shards)
        return imitation.Lesson.of(world, episodes), {"return": episodes.returns}

    return imitation.update_function(policy, show, microbatch)
