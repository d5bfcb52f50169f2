"""TMaze-v0, the example of docs/extending.md: a corridor, a fork at its end, and a cue to be remembered until there.

The prompt is the badge and the cue, ⏫ or ⏬: where the goal will be. A turn tells only what the last move met, so that
who has forgotten the cue must guess. The other arm is Mold, and a dead end.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs import base, tokens
from envs.personas import CERTAIN, Traits, log_probabilities


@struct.dataclass(kw_only=True)
class TMazeState(base.WorldState):
    """One episode of a TMaze."""

    cue: jax.Array
    """int32[], the arm with the goal: NORTH or SOUTH."""
    met: jax.Array
    """int8[], role that the last move met."""


@dataclasses.dataclass(frozen=True)
class TMazeOptions(base.Options):
    """Options of a TMaze."""

    name: str = "TMaze-v0"
    turns: int = 8
    length: int = 4
    """Tiles of the corridor, the fork included."""
    goal_reward: float = 1.0
    """Reward in the arm that the cue names."""
    mold_reward: float = -1.0
    """Reward in the other arm."""

    def world(self) -> "TMaze":
        return TMaze(self.length, self.turns)

    def params(self) -> base.WorldParams:
        rewards = jnp.array([0.0, 0.0, self.mold_reward, 0.0, self.goal_reward], jnp.float32)
        return base.WorldParams(rewards=rewards, **self.common())


class TMaze(base.World):
    """The world `TMaze-v0`; arguments as `TMazeOptions` has them.

    Raises:
        ValueError: for fewer turns than the way to an arm takes.
    """

    Options = TMazeOptions
    has_goal = True

    def __init__(self, length: int = TMazeOptions.length, turns: int = TMazeOptions.turns):
        super().__init__()
        if not 2 <= length <= turns:
            raise ValueError(f"length={length}: use 2 to turns={turns}")
        self.length, self.turns = length, turns
        self.prompt_length, self.observation_length = 2, 1

    @staticmethod
    def defaults(scale: str) -> dict[str, object]:
        return {"rl.reward_scale": 1.0}

    def reset_env(self, key: jax.Array, params: base.WorldParams) -> tuple[jax.Array, TMazeState]:
        cue = jnp.where(jax.random.bernoulli(key), tokens.NORTH, tokens.SOUTH)
        start = {"time": jnp.int32(0), "position": jnp.array([1, 0], jnp.int32), "met": jnp.int8(tokens.PATH)}
        state = TMazeState(cue=cue.astype(jnp.int32), **start)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        over, met = self.is_terminated(state, params), self.neighbours(state, params)[action]
        ahead = state.position + jnp.array(tokens.STEPS, jnp.int32)[action]
        position = jnp.where(met == tokens.WALL, state.position, ahead)
        after = dataclasses.replace(state, time=state.time + 1, position=position, met=met)
        state = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, state)
        reward = jnp.where(over, 0.0, params.turn_reward + params.rewards[met])
        return self.observe(key, state, action, params), state, reward, self.is_terminated(state, params), {}

    def is_terminated(self, state: TMazeState, params: base.WorldParams) -> jax.Array:
        return state.position[0] == state.cue  # the rows are 0, 1 and 2; North is 0 and South 2

    def prompt(self, state: TMazeState, params: base.WorldParams) -> jax.Array:
        return jnp.stack([params.head, tokens.MOVES[0] + state.cue])

    def observe(self, key, state: TMazeState, action, params: base.WorldParams) -> jax.Array:
        return params.tile_map[state.met][None]

    def tiles(self, state: TMazeState, params: base.WorldParams) -> jax.Array:
        board = jnp.full((3, self.length), tokens.WALL, jnp.int8).at[1].set(tokens.PATH)
        return board.at[state.cue, -1].set(tokens.GOAL).at[2 - state.cue, -1].set(tokens.MOLD)

    def neighbours(self, state: TMazeState, params: base.WorldParams) -> jax.Array:
        ringed = jnp.pad(self.tiles(state, params), 1, constant_values=tokens.WALL)
        around = state.position[None] + 1 + jnp.array(tokens.STEPS, jnp.int32)
        return ringed[around[:, 0], around[:, 1]]

    def persona_log_probabilities(self, state: TMazeState, plan, params: base.WorldParams, traits: Traits) -> jax.Array:
        """Larry runs into anything, Bob walks on and guesses at the fork, Alice remembers."""
        action, fork = jnp.arange(4), state.position[1] == self.length - 1
        bob = jnp.where(fork, (action == tokens.NORTH) | (action == tokens.SOUTH), action == tokens.EAST)
        alice = action == jnp.where(fork, state.cue, tokens.EAST)
        wanted = jnp.stack([jnp.ones(4, bool), bob, alice])
        return log_probabilities(CERTAIN * wanted.astype(jnp.float32), traits.slip)
