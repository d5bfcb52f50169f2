"""Demonstrations: episodes that personas play, for the stages that learn by imitation."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from agents.learning import learner, rollout
from agents.learning.hyperparameters import stage_config
from envs import base, personas, tokens
from envs.personas import Traits


@stage_config
class Demonstrations:
    """Who shows what."""

    episodes: int = 64
    """Episodes of one update."""
    persona: Literal["all", "Larry", "Bob", "Alice"] = "all"
    """Whose episodes; `all` draws a persona per episode."""
    badge_probability: float = 0.5
    """Chance that an episode carries its persona's badge; the others carry the null badge."""
    slip: float = personas.SLIP
    """Chance that a persona's action is drawn uniformly instead."""
    plan_following: float = 0.9
    """Chance that a persona heeds what its plan says of the cell it stands on; for worlds with plans."""
    skill: float = 0.3
    """Chance that Alice finds the shortest way where no plan tells her; for the labyrinth. The more of it,
    the less of her a small model can imitate: two blocks come within 0.09 nats per action of 0.3."""
    narration: float = 0.0
    """Chance that an episode is narrated: its feeling slot tells how the last turn went."""
    tile_maps: Literal["fixed", "balanced", "unseen"] = "fixed"
    """`fixed`: the emoji of the RL world. `balanced`: those emoji in every role equally often, drawn afresh per
    episode. `unseen`: other emoji than the RL world's, drawn afresh per episode."""

    @property
    def traits(self) -> Traits:
        """Of the personas."""
        following = jnp.broadcast_to(jnp.asarray(self.plan_following, jnp.float32), 3)
        return Traits(slip=self.slip, following=following, skill=self.skill)


def draw_params(config: Demonstrations, params: base.WorldParams, persona: jax.Array, key: jax.Array):
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
        def all_personas(state, plan):
            return world.persona_log_probabilities(state, plan, params, traits)

        every = jax.vmap(all_personas)(states, plans)
        return jnp.take_along_axis(every, chosen[:, None, None], axis=1)[:, 0]

    def write(states, key):
        def one(key, persona, state):
            return world.write_plan(key, persona, state, params, traits)

        return jax.vmap(one)(keys(key) if keys else jax.random.split(key, len(chosen)), chosen, states)

    return rollout.scripted_driver(log_probabilities, write)


def persona_episodes(
    config: Demonstrations,
    world: base.World,
    params: base.WorldParams,
    key: jax.Array,
    episodes: int,
    shards: learner.Shards,
) -> rollout.Episodes:
    """This device's share of `episodes` fresh demonstrations."""
    persona_key, params_key, maze_key, turn_key = jax.random.split(key, 4)
    drawn = jax.random.randint(persona_key, (episodes,), 0, len(personas.PERSONAS))
    if config.persona != "all":
        drawn = jnp.full_like(drawn, personas.PERSONAS.index(config.persona))
    chosen = shards.local(drawn)
    keys = shards.local(jax.random.split(params_key, episodes))
    worlds = jax.vmap(lambda persona, key: draw_params(config, params, persona, key))(chosen, keys)
    played, _, _ = rollout.play(
        world,
        worlds,
        shards.local(jax.random.split(maze_key, episodes)),
        turn_key,
        persona_driver(world, params, chosen, config.traits, lambda key: shards.local(jax.random.split(key, episodes))),
        rollout.gumbel(episodes, shards.local),
        batched_params=True,
    )
    return played
