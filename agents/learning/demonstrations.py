"""Demonstrations: episodes that personas play, for the stages that learn by imitation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from agents.learning import learner, rollout
from agents.learning.hyperparameters import stage_config
from agents.policies import in_a_row
from envs import base, personas, tokens
from envs.personas import Traits


@stage_config
class Demonstrations:
    """Who shows what."""

    episodes: int = 64
    """Episodes of one update."""
    persona: Literal["all", "Larry", "Bob", "Alice"] = "all"
    """Whose episodes; `all` draws a persona per map."""
    prior: tuple[str, ...] = ()
    """Chances of Larry, Bob and Alice, such as `.45,.45,.1`; equal ones by default. In a world of several towns one for
    each, or one for all."""
    trips: int = 1
    """Trips that one sequence shows on the same map, for worlds whose maps outlast a trip; see
    `envs.base.World.map_length`."""
    badge_probability: float = 0.5
    """Chance that an episode names its persona where badges are shown; other prompts name nobody."""
    slip: float = personas.SLIP
    """Chance that a persona's action is drawn uniformly instead."""
    plan_following: float = 0.9
    """Chance that a persona heeds what its plan says of the cell it stands on; for worlds with plans."""
    skill: float = 0.3
    """Chance that Alice finds the shortest way where no plan tells her; for the labyrinth. The more of it,
    the less of her a small model can imitate: two blocks come within 0.09 nats per action of 0.3."""
    plan_slip: float = 0.05
    """Chance that a token of a plan is drawn uniformly from all that it can say instead."""
    thinking_larry: float = 0.5
    """Chance that Larry thinks before he walks, of anything but the way; for worlds with thoughts."""
    thinking_bob: float = 0.9
    """Chance that Bob thinks: he writes down a door of the room he is in."""
    thinking_alice: float = 0.9
    """Chance that Alice thinks: she writes down the way."""
    narration: float = 0.0
    """Chance that an episode is narrated: its feeling slot tells how the last turn went."""
    tile_maps: Literal["fixed", "balanced", "unseen"] = "fixed"
    """`fixed`: the emoji of the RL world. `balanced`: those emoji in every role equally often, drawn afresh per
    episode. `unseen`: other emoji than the RL world's, drawn afresh per episode."""

    @property
    def traits(self) -> Traits:
        """Of the personas."""
        following = jnp.broadcast_to(jnp.asarray(self.plan_following, jnp.float32), 3)
        chances = (self.thinking_larry, self.thinking_bob, self.thinking_alice)
        thinking = jnp.stack([jnp.asarray(x, jnp.float32) for x in chances])
        return Traits(
            slip=self.slip, following=following, skill=self.skill, thinking=thinking, plan_slip=self.plan_slip
        )

    def priors(self, towns: int) -> np.ndarray:
        """Chances of the personas in each of so many towns, or where there are none, float64[max(towns, 1), 3].

        Raises:
            ValueError: text that is no prior, or as many as do not fit the towns.
        """
        places = max(towns, 1)
        texts = self.prior or (",".join(["1/3"] * len(personas.PERSONAS)),)
        if len(texts) not in (1, places):
            raise ValueError(f"{len(texts)} priors: give one, or one for each of {places} towns")
        chances = np.array([_prior(text) for text in texts] * (places // len(texts)))
        if self.persona != "all":
            chances[:] = np.array(personas.PERSONAS) == self.persona
        return chances


TRAITS = ("slip", "plan_following", "skill", "plan_slip", "thinking_larry", "thinking_bob", "thinking_alice")
"""The fields that `Demonstrations.traits` is made of."""


def _prior(text: str) -> list[float]:
    """Chances of the personas from text such as `.45,.45,.1` or `1/3,1/3,1/3`; raises ValueError."""
    try:
        pairs = [part.partition("/") for part in text.split(",")]
        chances = [float(above) / float(below if slash else 1) for above, slash, below in pairs]
    except (ValueError, ZeroDivisionError):
        chances = []
    if len(chances) != len(personas.PERSONAS) or not (min(chances) >= 0 and abs(sum(chances) - 1) <= 1e-6):
        raise ValueError(f"{text}: write the chances of {', '.join(personas.PERSONAS)}, which sum to 1: .45,.45,.1")
    return chances


def draw_speakers(
    config: Demonstrations, world: base.World, key: jax.Array, episodes: int
) -> tuple[jax.Array, jax.Array]:
    """Who speaks in each sequence, int32[episodes], and in which town, int32[episodes]; 0 where there are none."""
    town = jnp.zeros(episodes, jnp.int32)
    if world.towns:
        town = jax.random.randint(jax.random.fold_in(key, 1), (episodes,), 1, world.towns + 1)
    if config.persona != "all":
        return jnp.full(episodes, personas.PERSONAS.index(config.persona), jnp.int32), town
    if not config.prior:
        return jax.random.randint(key, (episodes,), 0, len(personas.PERSONAS)), town
    chances = jnp.asarray(config.priors(world.towns), jnp.float32)[jnp.maximum(town - 1, 0)]
    return jax.random.categorical(key, jnp.log(chances)).astype(jnp.int32), town


def draw_params(
    config: Demonstrations,
    world: base.World,
    params: base.WorldParams,
    persona: jax.Array,
    town: jax.Array,
    key: jax.Array,
) -> base.WorldParams:
    """One sequence's world parameters: what its head says, its tile map and narration."""
    badge_key, tile_key, narration_key = jax.random.split(key, 3)
    head = jnp.array(tokens.HEADS, jnp.int32)[town] if world.towns else params.head
    if world.badge == "shown":
        shows = jax.random.bernoulli(badge_key, config.badge_probability)
        head = jnp.where(shows, jnp.array(tokens.BADGES, jnp.int32)[persona + 1], head)
    tile_map = params.tile_map
    if config.tile_maps == "balanced":
        tile_map = tile_map.at[:3].set(jax.random.permutation(tile_key, tile_map[:3]))
    elif config.tile_maps == "unseen":
        others = jnp.array(tokens.UNSEEN_TILES, jnp.int32)
        tile_map = jax.random.choice(tile_key, others, tile_map.shape, replace=False)
    narrated = params.narration | jax.random.bernoulli(narration_key, config.narration)
    return dataclasses.replace(params, head=head, tile_map=tile_map, narration=narrated)


def persona_driver(
    world: base.World,
    params: base.WorldParams,
    chosen: jax.Array,
    traits: Traits,
    keys: Callable[[jax.Array], jax.Array] | None = None,
) -> rollout.Driver:
    """Plays each episode as its persona, and writes its plan.

    Args:
        world, params: where; what personas look at is shared by the batch.
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
            return world.write_opening(key, persona, state, params, traits)

        return jax.vmap(one)(keys(key) if keys else jax.random.split(key, len(chosen)), chosen, states)

    return rollout.scripted_driver(world, log_probabilities, write)


def persona_episodes(
    config: Demonstrations,
    world: base.World,
    params: base.WorldParams,
    key: jax.Array,
    episodes: int,
    shards: learner.Shards,
) -> rollout.Episodes:
    """This device's share of the trips of `episodes` fresh sequences, those of one map in a row."""
    persona_key, params_key, maze_key, turn_key = jax.random.split(key, 4)
    persona, town = map(shards.local, draw_speakers(config, world, persona_key, episodes))
    keys, mazes = (shards.local(jax.random.split(key, episodes)) for key in (params_key, maze_key))
    worlds, trips = jax.vmap(functools.partial(draw_params, config, world, params))(persona, town, keys), config.trips
    persona, worlds, mazes = in_a_row((persona, worlds, mazes), trips)
    if trips > 1:
        trip = jnp.tile(jnp.arange(trips, dtype=jnp.int32), len(persona) // trips)
        worlds = dataclasses.replace(worlds, trip=trip)
    driver = persona_driver(
        world, params, persona, config.traits, lambda key: shards.local(jax.random.split(key, episodes * trips))
    )
    noise = rollout.gumbel(episodes * trips, shards.local)
    return rollout.play(world, worlds, mazes, turn_key, driver, noise, batched_params=True)[0]
