"""Learning by imitation: stages `pretrain` and `sft`, and the loss that they and RL mixed with demonstrations share.

The loss is the cross-entropy of the next token of episodes that somebody has played. What is read of a plan after its
end, or of an episode after its own, does not count.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from agents.learning import demonstrations, learner, objectives, rollout
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


@stage_config
class PretrainConfig(ImitationConfig):
    """The stage `pretrain`: a language model of the personas, observations included.

    Every update draws fresh episodes: a persona, a badge that names it in half of the cases, a tile map, a maze. So the
    model learns the world's language as well as its speakers.
    """

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


@stage_config
class SFTConfig(ImitationConfig):
    """The stage `sft`: supervised fine-tuning between `pretrain` and `rl`, every member on its own.

    It imitates chosen personas, or those episodes of the pretrained model that succeeded (rejection fine-tuning).
    """

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
        ends = world.prompt_length + world.opening_length
        if choices != "all":
            chosen &= (position < ends)[None] if choices == "plan" else (position >= ends)[None]
        if keep is not None:
            chosen, told = chosen & keep[:, None], told & keep[:, None]
        return cls(episodes.tokens, chosen, told)

    def joined(self, trips: int, head: int) -> "Lesson":
        """Every so many episodes in a row as one sequence, which has the `head` first tokens that they share once."""

        def join(x):
            of_map = x.reshape(-1, trips, x.shape[1])
            return jnp.concatenate([of_map[:, 0, :head], of_map[:, :, head:].reshape(len(of_map), -1)], axis=1)

        return jax.tree.map(join, self)


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


@functools.lru_cache(maxsize=64)
def update_function(policy: Policy, world: base.World, microbatch: int) -> learner.Update:
    """The update of one member in a stage that imitates.

    Its metrics are means over tokens, in nats; `return` and, of `sft`, `success` over the episodes shown.

    Raises:
        ValueError: the world has words that the policy does not know.
    """
    rollout.check_words(policy, world)

    def update(state, config: PretrainConfig | SFTConfig, params, shards):
        key, show_key = jax.random.split(seeds.stored(state.key))
        tuning = isinstance(config, SFTConfig)
        selected = tuning and config.source == "successes"
        if selected:
            shown = rollout.policy_episodes(
                policy, state.reference, world, params, show_key, config.episodes, local=shards.local
            )
        else:
            shown = demonstrations.persona_episodes(config, world, params, show_key, config.episodes, shards)
        succeeded = rollout.succeeded(world, shown)
        lesson = Lesson.of(world, shown, config.choices if tuning else "all", succeeded if selected else None)
        if config.trips > 1 and not selected:
            lesson = lesson.joined(config.trips, world.map_length)
        slope, metrics = gradient(policy, state.parameters, lesson, config.observation_weight, microbatch, shards)
        factor = learner.cosine(state.steps, config.updates, jnp.float32(0.1), config.warmup)
        rate = config.learning_rate * factor
        state, norm = learner.descend(state, slope, rate, config.max_gradient_norm, config.weight_decay)
        outcomes = {"return": shown.returns} | ({"success": succeeded.astype(jnp.float32)} if tuning else {})
        metrics |= {name: shards.total(x.sum()) / shards.total(jnp.float32(len(x))) for name, x in outcomes.items()}
        metrics |= {"gradient_norm": norm, "learning_rate": rate}
        return dataclasses.replace(state, key=jax.random.key_data(key), update=state.update + 1), metrics

    return update
