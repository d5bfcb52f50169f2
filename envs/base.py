"""What every world shares: an environment that speaks tokens, its options, its scripts and its replay.

An episode is a fixed-length token sequence: prompt `[P]` · plan `[K]` · T × (observation `[O]` · action `[1]`).
Observation and prompt tokens are given by the world, plan and action tokens are sampled by the policy. Nothing
outside `envs` needs to know more about a world than what `World` and `Options` declare.
"""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from envs import personas, tokens
from envs.personas import Traits
from envs.replay import Replay

LONGEST = 2**16
"""Tokens of an episode at most."""

_LARGEST = float(np.finfo(np.float32).max)


@struct.dataclass(kw_only=True)
class WorldState(environment.EnvState):
    """State that every world has; single-example shapes."""

    time: jax.Array
    """int32[], turns played."""
    position: jax.Array
    """int32[2], row and column of the agent."""


@struct.dataclass(kw_only=True)
class WorldParams(environment.EnvParams):
    """Parameters that every world has. All of them are data: they can be traced, vmapped and swept."""

    max_steps_in_episode: jax.Array | int = 1
    """int32[], turns of an episode; gymnax truncates there."""
    rewards: jax.Array
    """float32[5], reward for landing on a tile, by role."""
    turn_reward: jax.Array
    """float32[], reward that every turn pays."""
    tile_map: jax.Array
    """int32[5], the token that stands for each role."""
    badge: jax.Array
    """int32[], the badge token at the head of the prompt."""
    narration: jax.Array
    """bool[], whether the feeling slot tells how the last turn went; silent otherwise."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user chooses of a world: its section of a run's config, and `--world.…` of `train.py`.

    Every world has a subclass with fields of its own and its own defaults, and with the fields that its constructor
    takes. A float field is data, and can be swept; a sign or a range is for `World.check` to refuse.
    """

    name: str = ""
    """Registered name of the world; a wrong one lists them. It decides which options there are, and their defaults."""
    turns: int = 1
    """Turns of an episode."""
    turn_reward: float = 0.0
    """Reward of every turn."""

    def __post_init__(self):
        if self.name != type(self).name:
            raise ValueError(f"name={self.name!r}: these are the options of {type(self).name}")

    def world(self) -> "World":
        """The world with these options; raises ValueError as its constructor does."""
        raise NotImplementedError

    def params(self) -> WorldParams:
        """Its parameters with these options."""
        raise NotImplementedError

    def make(self) -> tuple["World", WorldParams]:
        """The world and its parameters.

        Raises:
            ValueError: one line that names the option, its value and the remedy.
        """
        for field in dataclasses.fields(self):
            chosen = getattr(self, field.name)
            for value in chosen if isinstance(chosen, tuple) else (chosen,):
                if isinstance(value, float) and not abs(value) <= _LARGEST:
                    raise ValueError(f"{field.name}={value:g}: use a finite number of 32 bits")
                if isinstance(value, int) and not -(2**31) <= value < 2**31:
                    raise ValueError(f"{field.name}={value}: use a 32-bit integer")
        world = self.world()
        if world.episode_length() > LONGEST:
            raise ValueError(
                f"turns={world.turns}: an episode of {world.episode_length():,} tokens, prompt and plan included; "
                f"use fewer: {LONGEST:,} at most"
            )
        params = self.params()
        world.check(params)
        return world, params

    def common(self) -> dict[str, jax.Array]:
        """Parameters that all worlds have and most leave alone; `rewards` are missing."""
        return {
            "max_steps_in_episode": jnp.int32(self.turns),
            "turn_reward": jnp.float32(self.turn_reward),
            "tile_map": jnp.array(tokens.TILE_MAP, jnp.int32),
            "badge": jnp.int32(tokens.NULL_BADGE),
            "narration": jnp.array(False),
        }


class World(environment.Environment, abc.ABC):
    """A gymnax environment (1.x contract) whose observations are token sequences of one length.

    Subclasses are immutable and compare by the arguments of their constructor, each of which is an attribute and an
    option of the same name, so that equal worlds share compiled programs.
    """

    Options: ClassVar[type[Options]]
    """The world's options."""
    turns: int
    """Turns of an episode, T."""
    prompt_length: int
    """Prompt tokens, P."""
    plan_length: int = 0
    """Plan tokens, K; see `envs.plans`."""
    observation_length: int
    """Observation tokens of a turn, O."""
    board: str = ""
    """The maze of all episodes, if one is given; see `envs.boards`."""
    has_goal: bool = False
    """Whether an episode ends by itself at a goal, and only there."""
    sees_all: bool = False
    """Whether the prompt shows the whole maze."""
    planner: str = "greedy one-step"
    """What `planner_scores` does, for legends."""

    @classmethod
    def make(cls, options: Mapping[str, Any]) -> tuple["World", WorldParams]:
        """A world and its parameters from keyword arguments, options and parameters alike; see `envs.make`.

        Raises:
            ValueError: for an unknown option or a value out of range.
        """
        defaults = cls.Options()
        known = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
        names = {field.name for field in dataclasses.fields(defaults.params())}
        chosen = {name: value for name, value in options.items() if name in known and name not in names}
        for name, value in options.items():
            if name not in names and name not in known:
                every = ", ".join(sorted({*known, *names}))
                raise ValueError(f"{name}={value!r}: unknown option; choose among {every}")
            kind = type(known.get(name))
            if name in chosen and type(value) is not kind and (kind, type(value)) != (float, int):
                raise ValueError(f"{name}={value!r}: use a value of type {kind.__name__}")
        world, params = cls.Options(**chosen).make()
        changes = {}
        for name in (name for name in options if name not in chosen):
            value, default = options[name], getattr(params, name)
            try:
                if isinstance(value, (int, float)) and abs(value) > _LARGEST:
                    raise ValueError("too large")
                array = jnp.asarray(value, default.dtype)
                if jnp.issubdtype(array.dtype, jnp.integer) and not np.array_equal(array, np.asarray(value)):
                    raise ValueError("no whole number")
                changes[name] = jnp.broadcast_to(array, default.shape)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"{name}={value!r}: not a {default.dtype} array of shape {default.shape}") from error
        params = dataclasses.replace(params, **changes)
        world.check(params)
        return world, params

    def options(self) -> dict[str, Any]:
        """The keyword arguments that make this world again."""
        return {name: getattr(self, name) for name in _arguments(type(self))}

    @staticmethod
    def defaults(scale: str) -> dict[str, Any]:
        """What a run in this world starts from where that differs: dotted field of its config → value.

        Args:
            scale: `smoke`, `laptop` or `paper`.
        """
        return {}

    @property
    def name(self) -> str:
        """Registered name."""
        return self.Options.name

    @property
    def default_params(self) -> WorldParams:
        """The parameters by default."""
        return self.Options(**self.options()).params()

    def describe(self) -> str:
        """A few words on its size for the person at the terminal."""
        return f"{self.turns} turns"

    def check(self, params: WorldParams) -> None:
        """Refuse parameter values that mean nothing; a world adds its own.

        Raises:
            ValueError: one line that names the parameter, its value and the remedy.
        """
        steps = int(params.max_steps_in_episode)
        if not 1 <= steps <= self.turns:
            raise ValueError(f"max_steps_in_episode={steps}: use 1 to {self.turns}, or a world of more turns")
        for field in dataclasses.fields(params):
            value = jnp.asarray(getattr(params, field.name))
            if jnp.issubdtype(value.dtype, jnp.floating) and not bool(jnp.isfinite(value).all()):
                raise ValueError(f"{field.name}={value}: use finite numbers")
        for name in ("tile_map", "badge"):
            value = getattr(params, name)
            if not bool(jnp.all((value >= 0) & (value < tokens.SIZE))):
                raise ValueError(f"{name}={value}: use token ids from 0 to {tokens.SIZE - 1}")

    # What a policy meets, besides gymnax' reset_env, step_env and observe.

    @abc.abstractmethod
    def prompt(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Prompt tokens of the episode, int32[P]."""

    @abc.abstractmethod
    def tiles(self, state: WorldState, params: WorldParams) -> jax.Array:
        """The maze as it stands, roles int8[H, W]."""

    @abc.abstractmethod
    def neighbours(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Roles of the tiles North, East, South and West of the agent, int8[4]."""

    # The scripts: what the personas, the planner and a random player do in one state.

    @abc.abstractmethod
    def persona_log_probabilities(
        self, state: WorldState, plan: jax.Array, params: WorldParams, traits: Traits
    ) -> jax.Array:
        """Exact action log-probabilities of Larry, Bob and Alice in one state, float32[3, 4].

        Args:
            state, params: where the episode stands.
            plan: tokens int32[K] that the episode has; the persona that acts need not have written them.
            traits: of the personas.
        """

    def planner_scores(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Scores of the planner's actions, float32[4], drawn from their softmax: by default the tile that pays best."""
        paid = params.rewards[self.neighbours(state, params)]
        return jnp.where(paid == paid.max(), personas.CERTAIN, 0.0)

    def script_log_probabilities(
        self, state: WorldState, plan: jax.Array, params: WorldParams, traits: Traits
    ) -> jax.Array:
        """Action log-probabilities of all of `personas.SCRIPTS`, float32[5, 4]; arguments as for the personas."""
        random = jnp.full(self.num_actions, -jnp.log(float(self.num_actions)), jnp.float32)
        greedy = jax.nn.log_softmax(self.planner_scores(state, params))
        baselines = jnp.stack([random, greedy])
        return jnp.concatenate([baselines, self.persona_log_probabilities(state, plan, params, traits)])

    def write_plan(
        self, key: jax.Array, persona: jax.Array, state: WorldState, params: WorldParams, traits: Traits
    ) -> jax.Array:
        """A plan of one persona (index int32[]) before the first move, tokens int32[K]; see `envs.plans`."""
        return jnp.zeros(0, jnp.int32)

    def plan_log_probabilities(
        self, plan: jax.Array, state: WorldState, params: WorldParams, traits: Traits
    ) -> jax.Array:
        """Exact log-probability of a plan int32[K], before the first move, under each persona; float32[3]."""
        return jnp.zeros(len(personas.PERSONAS), jnp.float32)

    def replay(self, states: WorldState, **fields: Any) -> Replay:
        """An episode for people to look at.

        Args:
            states: before each turn and at the end, leaves [T + 1, …], NumPy.
            **fields: of `Replay`, all but `positions` and what a world without wind leaves at rest.
        """
        return Replay.calm(positions=np.asarray(states.position), sees_all=self.sees_all, **fields)

    def episode_length(self) -> int:
        """Tokens of one episode, S = P + K + T·(O + 1)."""
        return self.prompt_length + self.plan_length + self.turns * (self.observation_length + 1)

    def action_positions(self) -> np.ndarray:
        """Indices of the action tokens in an episode, int[T]."""
        turn = self.observation_length + 1
        return self.prompt_length + self.plan_length + turn * np.arange(1, self.turns + 1) - 1

    def plan(self, sequence: jax.Array) -> jax.Array:
        """The plan tokens int32[..., K] of episodes int32[..., S]."""
        return sequence[..., self.prompt_length : self.prompt_length + self.plan_length]

    def decision_positions(self) -> np.ndarray:
        """Indices of all tokens that the policy chooses, int[K + T]: the plan's, then the actions."""
        return np.concatenate([self.prompt_length + np.arange(self.plan_length), self.action_positions()])

    @property
    def num_actions(self) -> int:
        """Four: North, East, South, West."""
        return len(tokens.DIRECTIONS)

    def action_space(self, params: WorldParams | None = None) -> spaces.Discrete:
        """Actions 0 to 3: North, East, South, West."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: WorldParams | None = None) -> spaces.Box:
        """Token ids, int32[O]."""
        return spaces.Box(0, tokens.SIZE - 1, (self.observation_length,), jnp.int32)

    def is_terminated(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Whether the episode has ended by itself; its time limit is a truncation."""
        return jnp.zeros((), bool)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, World) and type(self) is type(other) and self.options() == other.options()

    def __hash__(self) -> int:
        return hash((type(self), *sorted(self.options().items())))


@functools.cache
def _arguments(world: type[World]) -> tuple[str, ...]:
    """Names of the constructor's arguments."""
    return tuple(inspect.signature(world).parameters)
