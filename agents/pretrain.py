"""Stage `pretrain`: a language model of the personas' episodes.

Every update draws fresh episodes: a persona, a badge that names it in half of the cases, a tile map, a maze. The
loss is the cross-entropy of the next token, observations included, so that the model learns the world's language as
well as its speakers.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from agents import learner, objectives, rollout
from agents.hyperparameters import stage_config
from agents.policies import Policy
from envs import base, personas, tokens
from envs.travellers import Traits


@stage_config
class PretrainConfig:
    """The stage `pretrain`."""

    updates: int = 1500
    """Optimiser steps."""
    chunk: int = 50
    """Updates of one compiled call; progress, metrics and checkpoints happen between calls."""
    episodes: int = 64
    """Episodes of one update."""
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
    badge_probability: float = 0.5
    """Chance that an episode carries its persona's badge; the others carry the null badge."""
    slip: float = personas.SLIP
    """Chance that a persona's action is drawn uniformly instead."""
    plan_following: float = 0.9
    """Chance that a persona heeds what its plan says of the cell it stands on; for worlds with plans."""
    skill: float = 0.5
    """Chance that Alice finds the shortest way where no plan tells her; for the labyrinth."""
    narration: float = 0.0
    """Chance that an episode is narrated: its feeling slot tells how the last turn went."""
    tile_maps: Literal["fixed", "balanced", "unseen"] = "fixed"
    """`fixed`: the emoji of the RL world. `balanced`: those emoji in every role equally often, drawn afresh per
    episode. `unseen`: other emoji than the RL world's, drawn afresh per episode."""
    shared: bool = True
    """Whether the whole population starts from one pretrained base; otherwise every member has its own."""
    seed: int = 0
    """Seed of the shared base."""

    @property
    def traits(self) -> Traits:
        """Of the personas."""
        following = jnp.broadcast_to(jnp.asarray(self.plan_following, jnp.float32), 3)
        return Traits(slip=self.slip, following=following, skill=self.skill)


def draw_params(config: PretrainConfig, params: base.WorldParams, persona: jax.Array, key: jax.Array):
    """One episode's world parameters: its badge, tile map and narration."""
    badge_key, tile_key, narration_key = jax.random.split(key, 3)
    shows = jax.random.bernoulli(badge_key, config.badge_probability)
    badge = jnp.where(shows, jnp.array(tokens.BADGES, jnp.int32)[persona + 1], tokens.NULL_BADGE)
    tile_map = params.tile_map
    if config.tile_maps == "balanced":
        tile_map = tile_map.at[:3].set(jax.random.permutation(tile_key, tile_map[:3]))
    elif config.tile_maps == "unseen":
        others = jnp.array(tokens.UNSEEN_TILES, jnp.int32)
        tile_map = jax.random.choice(tile_key, others, tile_map.shape, replace=False)
    narrated = params.narration | jax.random.bernoulli(narration_key, config.narration)
    return dataclasses.replace(params, badge=badge, tile_map=tile_map, narration=narrated)


def persona_driver(
    world: base.World,
    params: base.WorldParams,
    chosen: jax.Array,
    traits: Traits,
    keys: Callable[[jax.Array], jax.Array] | None = None,
) -> rollout.Driver:
    """Plays each episode as its persona, and writes its plan.

    Args:
        world: the world.
        params: its parameters; what personas look at is shared by the batch.
        chosen: persona of each of this device's episodes, int32[B].
        traits: of the personas.
        keys: a key → a key for each of this device's episodes; split by default.
    """

    def log_probabilities(states, plans):

        def each(state, plan):
            return personas.action_log_probabilities(world, state, plan, params, traits)

        every = jax.vmap(each)(states, plans)
        return jnp.take_along_axis(every, chosen[:, None, None], axis=1)[:, 0]

    def write(states, key):
        def one(key, persona, state):
            return personas.write_plan(key, world, persona, state, params, world.plan_length, traits)

        return jax.vmap(one)(keys(key) if keys else jax.random.split(key, len(chosen)), chosen, states)

    return rollout.scripted_driver(log_probabilities, write)


def persona_episodes(
    config: PretrainConfig,
    world: base.World,
    params: base.WorldParams,
    key: jax.Array,
    episodes: int,
    shards: learner.Shards,
) -> rollout.Episodes:
    """This device's share of `episodes` fresh demonstrations."""
    persona_key, params_key, maze_key, turn_key = jax.random.split(key, 4)
    chosen = shards.local(jax.random.randint(persona_key, (episodes,), 0, len(personas.PERSONAS)))
    keys = shards.local(jax.random.split(params_key, episodes))
    drawn = jax.vmap(lambda persona, key: draw_params(config, params, persona, key))(chosen, keys)
    played, _, _ = rollout.play(
        world,
        drawn,
        shards.local(jax.random.split(maze_key, episodes)),
        turn_key,
        persona_driver(world, params, chosen, config.traits, lambda key: shards.local(jax.random.split(key, episodes))),
        rollout.gumbel(episodes, shards.local),
        batched_params=True,
    )
    return played


def update_function(policy: Policy, world: base.World, microbatch: int) -> learner.Update:
    """The stage's update of one member; its metrics are means over tokens, in nats.

    What is read of a plan after its end, or of an episode after its own, does not count.
    """

    def update(state, config: PretrainConfig, params, shards):
        key, episode_key = jax.random.split(jax.random.wrap_key_data(state.key))
        episodes = persona_episodes(config, world, params, episode_key, config.episodes, shards)
        chosen, told = (mask[:, 1:] for mask in rollout.spoken(world, episodes))
        actions, others = (shards.total(mask.sum(dtype=jnp.float32)) for mask in (chosen, told))
        normaliser = actions + others * config.observation_weight

        def loss(parameters, part):
            sequence, chosen, told = part
            hidden = policy.forward(parameters, sequence[:, :-1]).hidden
            logits, _ = policy.heads(parameters, hidden)
            nats = objectives.next_token_loss(logits, sequence[:, 1:])
            action, other = jnp.sum(nats, where=chosen), jnp.sum(nats, where=told)
            total = (action + config.observation_weight * other) / normaliser
            return total, {"loss": total, "action_loss": action / actions, "observation_loss": other / others}

        batch = (episodes.tokens, chosen, told)
        gradient, metrics = learner.accumulate(loss, state.parameters, batch, microbatch, shards)
        factor = learner.cosine(state.steps, config.updates, jnp.float32(0.1), config.warmup)
        rate = config.learning_rate * factor
        state, norm = learner.descend(state, gradient, rate, config.max_gradient_norm, config.weight_decay)
        metrics |= {
            "return": shards.total(episodes.returns.sum()) / config.episodes,
            "gradient_norm": norm,
            "learning_rate": rate,
        }
        return dataclasses.replace(state, key=jax.random.key_data(key), update=state.update + 1), metrics

    return update
