"""What every world shares: an environment that speaks tokens.

An episode is a fixed-length token sequence: prompt `[P]` · plan `[K]` · T × (observation `[O]` · action `[1]`).
Observation and prompt tokens are given by the world, plan and action tokens are sampled by the policy. Nothing
outside `envs` needs to know more about a world than what `World` declares.
"""

import abc
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from envs import tokens


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


class World(environment.Environment, abc.ABC):
    """A gymnax environment (1.x contract) whose observations are token sequences of one length.

    Subclasses are immutable and compare by their options, so that equal worlds share compiled programs.
    """

    turns: int
    """Turns of an episode, T."""
    size: int
    """Rows and columns of the grid."""
    prompt_length: int
    """Prompt tokens, P."""
    plan_length: int = 0
    """Plan tokens, K; see `envs.plans`."""
    observation_length: int
    """Observation tokens of a turn, O."""
    has_goal: bool = False
    """Whether an episode ends by itself at a goal, and only there."""

    @property
    @abc.abstractmethod
    def default_params(self) -> WorldParams:
        """The parameters that the world's source describes."""

    @abc.abstractmethod
    def prompt(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Prompt tokens of the episode, int32[P]."""

    @abc.abstractmethod
    def tiles(self, state: WorldState, params: WorldParams) -> jax.Array:
        """The maze as it stands, roles int8[H, W]."""

    @abc.abstractmethod
    def neighbours(self, state: WorldState, params: WorldParams) -> jax.Array:
        """Roles of the tiles North, East, South and West of the agent, int8[4]."""

    @abc.abstractmethod
    def check(self, params: WorldParams) -> None:
        """Refuse parameter values that mean nothing.

        Raises:
            ValueError: one line that names the parameter, its value and the remedy.
        """

    @classmethod
    def make(cls, options: dict[str, object]) -> tuple["World", WorldParams]:
        """A world and its parameters from keyword options, static options and parameters alike.

        Raises:
            ValueError: for an unknown option or a value out of range.
        """
        static = {
            name: parameter.default
            for name, parameter in inspect.signature(cls.__init__).parameters.items()
            if name != "self"
        }
        for name, default in static.items():
            if type(options.get(name, default)) is not type(default):
                raise ValueError(f"{name}={options[name]!r}: use a value of type {type(default).__name__}")
        world = cls(**{name: value for name, value in options.items() if name in static})
        params = world.default_params
        changes = {}
        for name, value in options.items():
            if name in static:
                continue
            if not hasattr(params, name):
                known = [*static, *(field.name for field in dataclasses.fields(params))]
                raise ValueError(f"{name}={value!r}: unknown option; choose among {', '.join(sorted(known))}")
            default = getattr(params, name)
            try:
                if isinstance(value, (int, float)) and abs(value) > np.finfo(np.float32).max:
                    raise ValueError("too large")
                changes[name] = jnp.broadcast_to(jnp.asarray(value, default.dtype), default.shape)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}={value!r}: not a {default.dtype} array of shape {default.shape}") from error
        params = dataclasses.replace(params, **changes)
        world.check(params)
        return world, params

    @abc.abstractmethod
    def options(self) -> dict[str, object]:
        """The keyword arguments that make this world again."""

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
