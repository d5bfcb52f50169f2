"""What every world shares: an environment that speaks tokens, its options, its scripts and its replay.

An episode is a fixed-length token sequence: prompt `[P]` · opening `[K]` · T × (observation `[O]` · action `[1]`).
Observation and prompt tokens are given by the world; the tokens of the opening and the actions are sampled by the
policy. The opening is what it says before its first move: its badge, in a world where that is spoken, then a plan, if
the world has one. Nothing outside `envs` needs to know more about a world than what `World` and `Options` declare.
"""

import abc
import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from envs import boards, personas, tokens
from envs.personas import Traits
from envs.replay import Replay

Badge = Literal["shown", "spoken", "null"]
"""How an episode tells who speaks; see `Options.badge`."""

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
    head: jax.Array
    """int32[], the token at the head of the prompt: a badge, or one of `tokens.HEADS`."""
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
    badge: Badge = "shown"
    """`shown`: in pretraining the head of some prompts names the speaker. `spoken`: the model says who it is, as the
    first token it chooses, and is then the mixture of its own personas exactly. `null`: nothing ever tells."""
    towns: int = 0
    """Anonymous towns that pretraining draws its episodes from, each with a prior of personas; see `pretrain.prior`."""
    town: int = 0
    """The town at the head of the prompt in RL and in evaluation, from 1 on; 0 for none."""

    unseen: ClassVar[tuple[str, ...]] = ("town",)
    """Fields that no demonstration depends on, so that runs which differ in them alone start from the same bases."""

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
        if not 0 <= self.towns < len(tokens.HEADS):
            raise ValueError(f"towns={self.towns}: use 0 (none) to {len(tokens.HEADS) - 1}")
        if not 0 <= self.town <= self.towns:
            raise ValueError(f"town={self.town}: use 0 (none) to towns={self.towns}")
        world = self.world().speaking(self.badge, self.towns)
        if world.episode_length() > LONGEST:
            raise ValueError(
                f"turns={world.turns}: an episode of {world.episode_length():,} tokens, prompt and plan included; "
                f"use fewer: {LONGEST:,} at most"
            )
        params = self.params()
        world.check(params)
        return world, params

    def style_rewards(self, style: personas.Style, reward: float) -> jax.Array:
        """What coming like each persona earns, float32[3]: `reward` in one style."""
        return jnp.array([reward * (name == style) for name in personas.PERSONAS], jnp.float32)

    def common(self) -> dict[str, jax.Array]:
        """Parameters that all worlds have and most leave alone; `rewards` are missing."""
        return {
            "max_steps_in_episode": jnp.int32(self.turns),
            "turn_reward": jnp.float32(self.turn_reward),
            "tile_map": jnp.array(tokens.TILE_MAP, jnp.int32),
            "head": jnp.int32(tokens.HEADS[self.town]),
            "narration": jnp.array(False),
        }


class World(environment.Environment, abc.ABC):
    """A gymnax environment (1.x contract) whose observations are token sequences of one length.

    Subclasses are immutable and compare by the arguments of their constructor, each of which is an attribute and an
    option of the same name, and by `speaking`, so that equal worlds share compiled programs.
    """

    Options: ClassVar[type[Options]]
    """The world's options."""
    turns: int
    """Turns of an episode, T."""
    prompt_length: int
    """Prompt tokens, P."""
    plan_length: int = 0
    """Plan tokens."""
    plan_sayings: tuple[int, ...] = (*tokens.MOVES, tokens.PLAN_END)
    """Tokens that a plan can say, the end last; after the end only ends follow."""
    badge: Badge = "shown"
    """How an episode tells who speaks; see `speaking`."""
    towns: int = 0
    """Anonymous towns that may stand at the head of a prompt; see `speaking`."""
    named_rooms: bool = False
    """Whether it names rooms, with tokens that other worlds do without."""
    map_length: int = 0
    """Prompt tokens, the first ones, that trips on one map share; 0 where an episode is always a map of its own."""
    has_feelings: bool = True
    """Whether a narrator can be heard; see `WorldParams.narration`."""
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
        options, defaults = boards.in_words(options), cls.Options()
        known = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
        names = {field.name for field in dataclasses.fields(defaults.params())}

        def an_option(name: str, value: Any) -> bool:
            """A pair of bounds is one even if it is a parameter too, for what it bounds may hang on other options."""
            pair = isinstance(value, tuple) and [*map(type, value)] == [int, int]
            return name in known and (name not in names or (pair and isinstance(known[name], tuple)))

        chosen = {name: value for name, value in options.items() if an_option(name, value)}
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
        """The keyword arguments that make this world again, but for what `speaking` changes."""
        return {name: getattr(self, name) for name in _arguments(type(self))}

    def speaking(self, badge: Badge, towns: int = 0) -> "World":
        """The same world with its badge shown, spoken or never told, and with so many anonymous towns."""
        if badge not in typing.get_args(Badge):
            raise ValueError(f"badge={badge!r}: unknown; choose one of {', '.join(typing.get_args(Badge))}")
        world = copy.copy(self)
        world.badge, world.towns = badge, towns
        return world

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
            value = np.asarray(getattr(params, field.name))  # in NumPy nothing has to be compiled
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(f"{field.name}={value}: use finite numbers")
        for name in ("tile_map", "head"):
            value = np.asarray(getattr(params, name))
            if not np.all((value >= 0) & (value < self.vocabulary)):
                raise ValueError(f"{name}={value}: use token ids from 0 to {self.vocabulary - 1}")

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
            plan: tokens int32[plan_length] that the episode has; the persona that acts need not have written them.
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
        """A plan of one persona (index int32[]) before the first move, tokens int32[plan_length]."""
        return jnp.zeros(0, jnp.int32)

    def plan_log_probabilities(
        self, plan: jax.Array, state: WorldState, params: WorldParams, traits: Traits
    ) -> jax.Array:
        """Exact log-probability of a plan int32[plan_length], before the first move, under each persona; float32[3]."""
        return jnp.zeros(len(personas.PERSONAS), jnp.float32)

    # The opening, and the places of an episode's tokens.

    @property
    def spoken(self) -> int:
        """Tokens of the opening that name the speaker: 1 in a world with a spoken badge, else 0."""
        return int(self.badge == "spoken")

    @property
    def opening_length(self) -> int:
        """Tokens that are said before the first move, K: a spoken badge, then the plan."""
        return self.spoken + self.plan_length

    @property
    def sayings(self) -> np.ndarray:
        """Tokens that an opening can say, int[C]; the last is the end of a plan."""
        plan = self.plan_sayings if self.plan_length else (tokens.PLAN_END,)
        return np.array([*(tokens.BADGES[1:] if self.spoken else ()), *plan], np.int32)

    @property
    def sayable(self) -> np.ndarray:
        """Which of `sayings` each token of an opening may be, bool[K, C]."""
        names = np.isin(self.sayings, tokens.BADGES)
        slots = np.arange(self.opening_length)
        return np.where((slots < self.spoken)[:, None], names[None], ~names[None])

    def said(self, opening: jax.Array) -> jax.Array:
        """The place in `sayings` of the tokens of openings int32[..., K]; of an unknown one that of the end."""
        matches = opening[..., None] == jnp.expand_dims(self.sayings, range(opening.ndim))
        place = jnp.argmax(matches, axis=-1)
        return jnp.where(matches.any(axis=-1), place, len(self.sayings) - 1).astype(jnp.int32)

    def saying_log_probabilities(self, logits: jax.Array, sayable: jax.Array | None = None) -> jax.Array:
        """Log-probabilities float32[..., C] of what can be said, from logits of the vocabulary float32[..., V].

        What may not be said in a place has one of about -1e9, which is as good as none and spoils no sum.

        Args:
            logits: of whole openings, [..., K, V], unless `sayable` tells what else.
            sayable: bool[..., C], what may be said there; `self.sayable` by default.
        """
        allowed = jnp.asarray(self.sayable) if sayable is None else sayable
        allowed = jnp.expand_dims(allowed, range(logits.ndim - allowed.ndim))
        return jax.nn.log_softmax(jnp.where(allowed, logits[..., self.sayings], -1e9), axis=-1)

    def open_slots(self, opening: jax.Array) -> jax.Array:
        """Where openings int32[..., K] had a choice: the badge, and all of a plan up to its first end; bool[..., K]."""
        ended = (opening == tokens.PLAN_END).astype(jnp.int32)
        return jnp.cumsum(ended, axis=-1) - ended == 0

    def write_opening(
        self, key: jax.Array, persona: jax.Array, state: WorldState, params: WorldParams, traits: Traits
    ) -> jax.Array:
        """What a persona says before the first move, tokens int32[K]: its name, where that is spoken, and its plan."""
        plan = self.write_plan(key, persona, state, params, traits)
        return jnp.concatenate([jnp.array(tokens.BADGES, jnp.int32)[persona + 1][None], plan]) if self.spoken else plan

    def replay(self, states: WorldState, **fields: Any) -> Replay:
        """An episode for people to look at, on the tiles or on a picture that the world draws of itself.

        Args:
            states: before each turn and at the end, leaves [T + 1, …], NumPy.
            **fields: of `Replay`, all but `positions` and what a world without wind leaves at rest.
        """
        return Replay.calm(positions=np.asarray(states.position), sees_all=self.sees_all, **fields)

    def episode_length(self, trips: int = 1) -> int:
        """Tokens of one episode, S = P + K + T·(O + 1); of several trips through one map, which is told once."""
        one = self.prompt_length + self.opening_length + self.turns * (self.observation_length + 1)
        return one + (trips - 1) * (one - self.map_length)

    def action_positions(self) -> np.ndarray:
        """Indices of the action tokens in an episode, int[T]."""
        turn = self.observation_length + 1
        return self.prompt_length + self.opening_length + turn * np.arange(1, self.turns + 1) - 1

    def opening(self, sequence: jax.Array) -> jax.Array:
        """The openings int32[..., K] of episodes int32[..., S]."""
        return sequence[..., self.prompt_length : self.prompt_length + self.opening_length]

    def plan(self, sequence: jax.Array) -> jax.Array:
        """The plans int32[..., plan_length] of episodes int32[..., S]."""
        return self.opening(sequence)[..., self.spoken :]

    @property
    def badge_position(self) -> int:
        """Index of the token that can name the speaker: the head of the prompt, or the first token said."""
        return self.prompt_length if self.spoken else 0

    @property
    def vocabulary(self) -> int:
        """Tokens that it needs: those of the vocabulary below this one."""
        return tokens.SIZE if self.named_rooms or self.towns else tokens.FIRST

    def decision_positions(self) -> np.ndarray:
        """Indices of all tokens that the policy chooses, int[K + T]: the opening's, then the actions."""
        return np.concatenate([self.prompt_length + np.arange(self.opening_length), self.action_positions()])

    @property
    def num_actions(self) -> int:
        """Four: North, East, South, West."""
        return len(tokens.DIRECTIONS)

    def action_space(self, params: WorldParams | None = None) -> spaces.Discrete:
        """Actions 0 to 3: North, East, South, West."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: WorldParams | None = None) -> spaces.Box:
        """Token ids, int32[O]."""
        return spaces.Box(0, self.vocabulary - 1, (self.observation_length,), jnp.int32)

    def is_terminated(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Whether the episode has ended by itself; its time limit is a truncation."""
        return jnp.zeros((), bool)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, World) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple:
        return (type(self), self.badge, self.towns, *sorted(self.options().items()))


@functools.cache
def _arguments(world: type[World]) -> tuple[str, ...]:
    """Names of the constructor's arguments."""
    return tuple(inspect.signature(world).parameters)
