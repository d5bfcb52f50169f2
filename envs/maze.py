"""EmojiMaze-v0: the semantically neutral maze of arXiv 2605.30232, appendices J and K.

Mold, Path and Gold tiles on a square grid whose outer ring is Mold. The agent sees its four neighbours, moves one
tile a turn for a fixed number of turns, and is paid for the tile it lands on. Wind sometimes pushes it one tile
further; tiles melt behind it. The authors' text also gives the agent's coordinates; they are left out here,
because with melting they carry nothing that the view does not.

The personas see the roles beside them. Larry takes what glitters, else walks at random. Bob keeps off Mold and does not
care for Gold. Alice remembers the last turn and looks two tiles ahead.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import base, boards, hashing, personas, tokens
from envs.layouts import LAYOUTS, Given, Layout
from envs.personas import CERTAIN, Traits
from envs.replay import Replay

ALICE_TEMPERATURE = 0.5
"""Differences in expected reward below this leave Alice undecided; a Gold tile is worth 20."""

ALICE_MEMORY = 1
"""Turns that Alice looks back."""


@struct.dataclass(kw_only=True)
class MazeState(base.WorldState):
    """One episode of an EmojiMaze; single-example shapes."""

    ground: jax.Array
    """int8[], role of the tile under the agent as it reads now."""
    trail: jax.Array
    """int32[2T+1], cells stood on: the start, then for each turn the cell after the move and the cell after the
    wind; -1 where the episode has not come to. A cell is row * size + column."""
    stood: jax.Array
    """uint32[N], the cells of the trail as bits: see `EmojiMaze._bit`."""
    wind: jax.Array
    """int32[], how the last turn's wind blew: 0 calm, 1..4 to North, East, South, West."""
    payoff: jax.Array
    """float32[], what the tiles of the last turn paid."""
    clauses: jax.Array
    """int32[4], order in which the observation names the directions."""
    weather: jax.Array
    """uint32[2], seed of the episode's wind."""
    layout: Any
    """What the layout needs to know the tiles that nobody has touched: see `envs.layouts`."""


@struct.dataclass(kw_only=True)
class MazeParams(base.WorldParams):
    """Everything of an EmojiMaze that is data."""

    wind_probability: jax.Array
    """float32[], chance of a gust after each move."""
    gold_ratio: jax.Array
    """float32[], Gold tiles per Mold tile of the interior."""
    mold_range: jax.Array
    """float32[2], bounds of the share of interior tiles that are Mold."""
    melting: jax.Array
    """bool[], whether a tile turns into Mold when the agent leaves it."""


@dataclasses.dataclass(frozen=True)
class MazeOptions(base.Options):
    """Options of an EmojiMaze; the defaults are those of arXiv 2605.30232, appendix J."""

    name: str = "EmojiMaze-v0"
    turns: int = 15
    turn_reward: float = -0.1
    size: int = 100
    """Rows and columns of the grid, ring included."""
    layout: Literal["scatter", "walk"] = "scatter"
    """`scatter`: independent tiles that cost nothing to reset. `walk`: the generator of arXiv 2605.30232."""
    board: str = ""
    """A grid for all episodes instead: rows of . Path, $ Gold, M Mold, S start, or of emoji, with / or new lines
    between them; @FILE reads it. It brings its size and a ring of Mold; the start is drawn where none is marked."""
    shuffle: bool = False
    """Prompt shuffling: each tile follows the token of its direction, in an order drawn per episode."""
    wind_probability: float = 0.1
    """Chance of a gust after each move."""
    gold_ratio: float = 0.2
    """Gold tiles per Mold tile."""
    gold_reward: float = 20.0
    """Reward for landing on Gold."""
    mold_reward: float = -10.0
    """Reward for landing on Mold."""
    melting: bool = True
    """Whether a tile turns into Mold when the agent leaves it."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "board", boards.tidy(self.board))
        if self.board and self.size == type(self).size:
            object.__setattr__(self, "size", len(self.board.split("/")))

    def world(self) -> "EmojiMaze":
        return EmojiMaze(self.size, self.turns, self.layout, self.shuffle, self.board)

    def params(self) -> MazeParams:
        return MazeParams(
            rewards=jnp.array([0.0, self.gold_reward, self.mold_reward, 0.0, 0.0], jnp.float32),
            wind_probability=jnp.float32(self.wind_probability),
            gold_ratio=jnp.float32(self.gold_ratio),
            mold_range=jnp.array([0.1, 0.5], jnp.float32),
            melting=jnp.array(self.melting),
            **self.common(),
        )


class EmojiMaze(base.World):
    """The world `EmojiMaze-v0`; arguments as `MazeOptions` has them.

    On a board that is given the border may be within reach; who would leave the grid stays where it is. What Alice
    expects of tiles that she has not seen is told by `mold_range` and `gold_ratio` there, too.

    Raises:
        ValueError: for an unknown layout, no turns, a grid too large, or so small that the border is within reach, a
            board that is no such grid.
    """

    Options = MazeOptions

    def __init__(
        self,
        size: int = MazeOptions.size,
        turns: int = MazeOptions.turns,
        layout: str = MazeOptions.layout,
        shuffle: bool = MazeOptions.shuffle,
        board: str = MazeOptions.board,
    ):
        super().__init__()
        self.board = boards.tidy(board)
        given = boards.maze(self.board) if self.board else None
        if given:
            size = boards.agree(size, len(given.roles), MazeOptions.size)
        if turns < 1:
            raise ValueError(f"turns={turns}: an episode needs at least 1 turn")
        if not given and (size - 1) // 2 < max(turns, 2):
            raise ValueError(
                f"size={size}: too small for turns={turns}: the agent could walk off the grid; "
                f"use size={2 * max(turns, 2) + 1} or more, or fewer turns"
            )
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: unknown; choose one of {', '.join(LAYOUTS)}")
        if size > LAYOUTS[layout].largest:
            raise ValueError(f"size={size}: use at most {LAYOUTS[layout].largest} with the layout {layout}")
        self.size, self.turns, self.layout, self.shuffle = size, turns, layout, shuffle
        self.prompt_length = 1
        self.observation_length = 10 if shuffle else 6
        self._layout: Layout = Given(given) if given else LAYOUTS[layout](size)
        self._side = 1 << (2 * turns + 1).bit_length()
        self._words = -(-self._side // 32)  # of a row

    def describe(self) -> str:
        return f"{self.size}×{self.size} {'given' if self.board else self.layout}, {self.turns} turns"

    def check(self, params: MazeParams) -> None:
        super().check(params)
        wind = float(params.wind_probability)
        if not 0 <= wind <= 1:
            raise ValueError(f"wind_probability={wind:g}: not a probability; use a value from 0 to 1")
        low, high = (float(bound) for bound in params.mold_range)
        if not 0 < low <= high < 1:
            raise ValueError(f"mold_range=({low:g}, {high:g}): use 0 < low <= high < 1")
        gold = float(params.gold_ratio)
        if not 0 <= gold or high * (1 + gold) > 1:
            raise ValueError(f"gold_ratio={gold:g}: use a value from 0 to {1 / high - 1:g}, or Path tiles run out")

    def reset_env(self, key: jax.Array, params: MazeParams) -> tuple[jax.Array, MazeState]:
        """A fresh maze. All of its chance comes from `key`; see `step_env` for the wind."""
        seed_key, layout_key = jax.random.split(key)
        seeds = jax.random.bits(seed_key, (6,), jnp.uint32)
        layout, start = self._layout.generate(layout_key, seeds[:2], params.mold_range, params.gold_ratio)
        clauses = jnp.argsort(hashing.bits(seeds[4:], jnp.arange(4))) if self.shuffle else jnp.arange(4)
        state = MazeState(
            time=jnp.int32(0),
            position=start,
            ground=jnp.int8(tokens.PATH),
            trail=jnp.full(2 * self.turns + 1, -1, jnp.int32).at[0].set(self._cell(start)),
            stood=self._mark(jnp.zeros(self._side * self._words, jnp.uint32), start),
            wind=jnp.int32(0),
            payoff=jnp.float32(0),
            clauses=clauses.astype(jnp.int32),
            weather=seeds[2:4],
            layout=layout,
        )
        return self.observe(key, state, None, params), state

    def step_env(
        self, key: jax.Array, state: MazeState, action: jax.Array, params: MazeParams
    ) -> tuple[jax.Array, MazeState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One turn: move, be paid for the tile, perhaps be blown one tile further and be paid for that too.

        The wind is a hash of (weather of the episode, turn, key): a batch may share one key per turn and its
        episodes still have winds of their own. A move off the grid, which only wind can bring within reach,
        leaves the agent where it is.

        Returns:
            observation int32[O], state, reward float32[], terminated bool[] (always False: the episode ends by
            its time limit), info with `wind` int32[] as in `MazeState.wind`.
        """
        gust_bits = hashing.bits(state.weather ^ hashing.key_word(key), state.time)
        blows = hashing.uniform(gust_bits) < params.wind_probability
        gust = (hashing.mix(gust_bits + jnp.uint32(1)) & 3).astype(jnp.int32)

        state = dataclasses.replace(state, payoff=jnp.float32(0))
        state = self._push(state, 2 * state.time + 1, jnp.asarray(action, jnp.int32), jnp.array(True), params)
        state = self._push(state, 2 * state.time + 2, gust, blows, params)
        state = dataclasses.replace(state, time=state.time + 1, wind=jnp.where(blows, gust + 1, 0))
        obs = self.observe(key, state, action, params)
        return obs, state, params.turn_reward + state.payoff, jnp.zeros((), bool), {"wind": state.wind}

    def _push(
        self, state: MazeState, slot: jax.Array, direction: jax.Array, moves: jax.Array, params: MazeParams
    ) -> MazeState:
        """The agent pushed one tile, if `moves` and if there is one; the cell goes to `slot` of the trail."""
        target = state.position + jnp.array(tokens.STEPS, jnp.int32)[direction]
        moves = moves & jnp.all((target >= 0) & (target < self.size))
        role = self._roles_within_reach(state, target, params)
        position = jnp.where(moves, target, state.position)
        return dataclasses.replace(
            state,
            position=position,
            ground=jnp.where(moves, jnp.where(role == tokens.GOLD, jnp.int8(tokens.PATH), role), state.ground),
            trail=jnp.where(jnp.arange(state.trail.size) == slot, self._cell(position), state.trail),
            stood=self._mark(state.stood, position),
            payoff=state.payoff + jnp.where(moves, params.rewards[role], jnp.float32(0)),
        )

    def roles(self, state: MazeState, cells: jax.Array, params: MazeParams) -> jax.Array:
        """Roles int8[...] of cells int32[..., 2] as they stand; the agent's own cell reads as if it had left."""
        return self._roles(state, cells, jnp.isin(self._cell(cells), state.trail, method="compare_all"), params)

    def _roles_within_reach(self, state: MazeState, cells: jax.Array, params: MazeParams) -> jax.Array:
        """`roles` of cells that the agent is beside: the same for a fraction of the work."""
        word, bit = self._bit(cells)
        stood = state.stood.at[word].get(mode="promise_in_bounds")
        return self._roles(state, cells, (stood & bit) != 0, params)

    def _roles(self, state: MazeState, cells: jax.Array, visited: jax.Array, params: MazeParams) -> jax.Array:
        untouched = self._layout.roles(state.layout, cells)
        consumed = jnp.where(untouched == tokens.GOLD, jnp.int8(tokens.PATH), untouched)
        return jnp.where(visited, jnp.where(params.melting, jnp.int8(tokens.MOLD), consumed), untouched)

    def neighbours(self, state: MazeState, params: MazeParams) -> jax.Array:
        cells = state.position[None] + jnp.array(tokens.STEPS, jnp.int32)
        return self._roles_within_reach(state, cells, params)

    def tiles(self, state: MazeState, params: MazeParams) -> jax.Array:
        cells = jnp.stack(jnp.meshgrid(*2 * [jnp.arange(self.size)], indexing="ij"), axis=-1)
        return self.roles(state, cells, params).at[tuple(state.position)].set(state.ground)

    def seen(self, state: MazeState, cells: jax.Array, memory: int) -> jax.Array:
        """Whether the agent has seen each of cells int32[..., 2] now or in the last `memory` turns; bool[...].

        It has seen the cells that it stood on, and those beside the cells where it ended a turn.
        """
        slot = jnp.arange(state.trail.size)
        recent = (state.trail >= 0) & (slot >= 2 * (state.time - memory))
        trail = jnp.stack([state.trail // self.size, state.trail % self.size], axis=-1)
        distance = jnp.abs(cells.reshape(-1, 1, 2) - trail[None]).sum(-1)
        close = (distance == 0) | (distance == 1) & (slot % 2 == 0)[None]
        return jnp.any(recent[None] & close, axis=-1).reshape(cells.shape[:-1])

    def prompt(self, state: MazeState, params: MazeParams) -> jax.Array:
        return jnp.asarray(params.head, jnp.int32)[None]

    def observe(self, key: jax.Array, state: MazeState, action, params: MazeParams) -> jax.Array:
        """The turn's tokens, int32[O]: feeling, wind, then the tiles North, East, South, West.

        With prompt shuffling each tile follows the token of its direction, in the episode's order.
        """
        feelings = jnp.array([tokens.BAD, tokens.NEUTRAL, tokens.GOOD], jnp.int32)
        feeling = feelings[jnp.sign(state.payoff).astype(jnp.int32) + 1]
        feeling = jnp.where(params.narration & (state.time > 0), feeling, tokens.SILENT)
        wind = jnp.array([tokens.CALM, *tokens.GUSTS], jnp.int32)[state.wind]
        tiles = params.tile_map[self.neighbours(state, params)]
        if self.shuffle:
            names = jnp.array(tokens.MOVES, jnp.int32)
            tiles = jnp.stack([names, tiles], axis=-1)[state.clauses].reshape(-1)
        return jnp.concatenate([jnp.stack([feeling, wind]), tiles]).astype(jnp.int32)

    def larry(self, state: MazeState, params: MazeParams) -> jax.Array:
        """Scores float32[4] of the impulsive persona: Gold if one is beside him, else anywhere."""
        return jnp.where(self.neighbours(state, params) == tokens.GOLD, CERTAIN, 0.0)

    def bob(self, state: MazeState, params: MazeParams) -> jax.Array:
        """Scores float32[4] of the careful persona: anywhere but Mold."""
        return jnp.where(self.neighbours(state, params) != tokens.MOLD, CERTAIN, 0.0)

    def alice(self, state: MazeState, params: MazeParams) -> jax.Array:
        """Scores float32[4] of the clever persona: what the next tile pays, plus the best expected of the one after.

        For the tile after next she uses what she sees now and saw a turn ago; any other tile may be Gold or Mold with
        the shares of the average maze. The tile she stands on is worth what it will be by then: Mold.
        """
        steps = jnp.array(tokens.STEPS, jnp.int32)
        near = state.position[None] + steps
        far = near[:, None] + steps[None]
        seen = self.seen(state, far, ALICE_MEMORY)
        known = self.roles(state, far, params)
        back = jnp.all(far == state.position[None, None], axis=-1)

        mold = params.mold_range.mean()
        gold = mold * params.gold_ratio
        is_gold = jnp.where(back, 0.0, jnp.where(seen, (known == tokens.GOLD).astype(jnp.float32), gold))
        is_mold = jnp.where(back, 1.0, jnp.where(seen, (known == tokens.MOLD).astype(jnp.float32), mold))
        some_gold = 1 - jnp.prod(1 - is_gold, axis=-1)
        all_mold = jnp.prod(is_mold, axis=-1)

        def pays(role: int) -> jax.Array:
            return params.rewards[role] - params.rewards[tokens.PATH]

        later = some_gold * pays(tokens.GOLD) + all_mold * pays(tokens.MOLD)
        return (params.rewards[self.neighbours(state, params)] + later) / ALICE_TEMPERATURE

    def persona_log_probabilities(
        self, state: MazeState, plan: jax.Array, params: MazeParams, traits: Traits
    ) -> jax.Array:
        scores = jnp.stack([persona(state, params) for persona in (self.larry, self.bob, self.alice)])
        return personas.log_probabilities(scores, traits.slip)

    def replay(self, states: MazeState, **fields: Any) -> Replay:
        midpoints = np.stack(np.divmod(states.trail[-1][1::2], self.size), axis=-1)
        positions, winds = np.asarray(states.position), np.asarray(states.wind)[1:]
        return Replay(positions=positions, midpoints=midpoints, winds=winds, **fields)

    def _bit(self, cells: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Word int32[...] and bit uint32[...] of cells on a board of `_side`², which repeats in both directions.

        Two cells share a bit only if they are `_side` or more apart. An episode moves the agent by 2T cells at most, so
        that no cell beside it shares one with another cell that it has stood on.
        """
        row, column = cells[..., 0] & (self._side - 1), cells[..., 1] & (self._side - 1)
        return row * self._words + (column >> 5), jnp.uint32(1) << (column & 31).astype(jnp.uint32)

    def _mark(self, stood: jax.Array, cell: jax.Array) -> jax.Array:
        word, bit = self._bit(cell)
        return jnp.where(jnp.arange(stood.size) == word, stood | bit, stood)

    def _cell(self, positions: jax.Array) -> jax.Array:
        return positions[..., 0] * self.size + positions[..., 1]
