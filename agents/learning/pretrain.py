"""Stage `pretrain`: a language model of the personas' episodes.

Every update draws fresh episodes: a persona, a badge that names it in half of the cases, a tile map, a maze. The
loss is the cross-entropy of the next token, observations included, so that the model learns the world's language as
well as its speakers.
"""

from agents.learning import demonstrations, imitation, learner
from agents.learning.hyperparameters import stage_config
from agents.learning.imitation import ImitationConfig
from agents.policies import Policy
from envs import base


@stage_config
class PretrainConfig(ImitationConfig):
    """The stage `pretrain`."""

    updates: int = 1500
    chunk: int = 50
    learning_rate: float = 4e-3
    warmup: int = 20
    weight_decay: float = 0.01
    observation_weight: float = 0.1
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
