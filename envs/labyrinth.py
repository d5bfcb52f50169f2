"""EmojiLabyrinth-v0: the planning world, a perfect maze plus loops that the prompt shows whole.

A labyrinth of n × n cells is a board of (2n+1) × (2n+1) tiles: cells at odd rows and columns, walls or openings
between them, a ring of walls around. A move crosses one cell, two tiles; whoever walks into a wall stays where it
is, and the next observation says so. The episode ends at the goal or after its last turn. Every labyrinth is
connected by construction.

Roles: PATH is free, WALL and the ring block, GOAL ends the episode, MOLD is a cell that punishes (rewards[MOLD])
and GOLD is a wall that pays whoever walks into it, again and again: an exploit that no persona ever wants. What the
personas do here is told in `envs.travellers`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import base, boards, corridors, personas, tokens, travellers
from envs.personas import Traits

VIEWS = {"bump": 2, "walls": 6, "compass": 8, "signpost": 7}
"""Tokens of an observation: the feeling and what the last move met; the four ways too; and to them where the goal lies,
or the first step of a shortest way."""


@struct.dataclass(kw_only=True)
class LabyrinthState(base.WorldState):
    """One episode of an EmojiLabyrinth; single-example shapes, n cells a side. Positions are tiles of the board."""

    board: jax.Array
    """int8[2n+1, 2n+1], roles."""
    distances: jax.Array
    """int32[n, n], moves from each cell to the goal on a shortest way."""
    start: jax.Array
    """int32[2], where the agent began."""
    goal: jax.Array
    """int32[2]"""
    heading: jax.Array
    """int32[], direction of the last move that was no bump; -1 before the first."""
    met: jax.Array
    """int8[], role that the last move met: WALL or GOLD after a bump, else that of the cell now stood on."""
    payoff: jax.Array
    """float32[], what the last turn paid besides the turn's own reward."""
    bumps: jax.Array
    """int32[], moves into walls so far."""
    careless: jax.Array
    """bool[], whether the agent has met Mold, or turned back where it need not."""


@struct.dataclass(kw_only=True)
class LabyrinthParams(base.WorldParams):
    """Everything of an EmojiLabyrinth that is data. By default only the goal pays, and there is neither Mold nor Gold.

    The reward variants of the persona studies: R1 is the default; R2 a negative `turn_reward`; R3 `exploits=1`;
    R4 `rewards[GOAL]=0` and one entry of `style_rewards`.
    """

    loops: jax.Array
    """float32[], share of the walls left by a perfect maze that are opened, which makes loops."""
    distance_range: jax.Array
    """int32[2], bounds of the shortest way from start to goal; where a labyrinth offers none, its longest is taken."""
    mold: jax.Array
    """float32[], share of the cells, start and goal left out, that are Mold."""
    exploits: jax.Array
    """int32[], walls that are Gold."""
    style_rewards: jax.Array
    """float32[3], paid at the goal on top for having come like Larry, Bob or Alice; see `EmojiLabyrinth.style`."""


@dataclasses.dataclass(frozen=True)
class LabyrinthOptions(base.Options):
    """Options of an EmojiLabyrinth."""

    name: str = "EmojiLabyrinth-v0"
    turns: int = 20
    size: int = 7
    """Cells of a side, n."""
    view: Literal["bump", "walls", "compass", "signpost"] = "walls"
    """What a turn tells: what the last move met; the four ways too; where the goal lies too; or the four ways and the
    first step of a shortest way, which Alice heeds with her skill and the others ignore."""
    plan_length: int = 0
    """Tokens of the plan that is written before the first move; 0 for none."""
    distance_range: tuple[int, int] = (1, corridors.LARGEST**2)
    """Bounds of the shortest way from start to goal; a labyrinth that offers none takes what comes nearest."""
    board: str = ""
    """A labyrinth for all episodes: rows of # wall, . path, S start, G goal, $ Gold, M Mold, or of emoji, with / or new
    lines between them; @FILE reads it. It brings its size; start and goal are drawn where they are not marked."""
    loops: float = 0.1
    """Share of the walls left by a perfect maze that are opened."""
    mold: float = 0.0
    """Share of the cells that are Mold."""
    exploits: int = 0
    """Walls that pay `gold_reward` whenever somebody walks into them."""
    goal_reward: float = 1.0
    """Reward at the goal."""
    gold_reward: float = 1.0
    """Reward for walking into a wall of Gold."""
    mold_reward: float = -1.0
    """Reward for landing on Mold."""
    style: personas.Style = "none"
    """Whose way of coming to the goal earns `style_reward` on top."""
    style_reward: float = 0.0
    """What that way earns."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "board", boards.tidy(self.board))
        if self.board and self.size == type(self).size:
            object.__setattr__(self, "size", len(self.board.split("/")) // 2)

    def world(self) -> "EmojiLabyrinth":
        return EmojiLabyrinth(self.size, self.turns, self.view, self.plan_length, self.board)

    def params(self) -> LabyrinthParams:
        common = self.common() | {"tile_map": jnp.array(tokens.EXPLOITED_TILE_MAP, jnp.int32)}
        return LabyrinthParams(
            rewards=jnp.array([0.0, self.gold_reward, self.mold_reward, 0.0, self.goal_reward], jnp.float32),
            loops=jnp.float32(self.loops),
            distance_range=jnp.array(self.distance_range, jnp.int32),
            mold=jnp.float32(self.mold),
            exploits=jnp.int32(self.exploits),
            style_rewards=self.style_rewards(self.style, self.style_reward),
            **common,
        )


class EmojiLabyrinth(base.World):
    """The world `EmojiLabyrinth-v0`.

    The prompt is the badge, then the board without its ring row by row, (2n-1)² tokens, the agent's cell as 🤖. An
    observation is [feeling, what the last move met]; with view `walls` also what a move North, East, South and West
    would meet; with `compass` also where the goal lies as the crow flies (`bearing`), a clock's hand that points North
    or South and one that points East or West, 🍃 for the lesser distance; with `signpost` instead the step that
    `signpost` says, 🍃 at the goal. Arguments are as `LabyrinthOptions` has them; a board is that of every episode.

    Raises:
        ValueError: for an unknown view, no turns, a size or a length out of range, a board that is no labyrinth.
    """

    Options = LabyrinthOptions
    has_goal = True
    sees_all = True
    planner = "shortest way"

    def __init__(
        self,
        size: int = LabyrinthOptions.size,
        turns: int = LabyrinthOptions.turns,
        view: str = LabyrinthOptions.view,
        plan_length: int = LabyrinthOptions.plan_length,
        board: str = LabyrinthOptions.board,
    ):
        super().__init__()
        self.board = boards.tidy(board)
        self._given = boards.labyrinth(self.board) if self.board else None
        if self._given:
            size = boards.agree(size, len(self._given.roles) // 2, LabyrinthOptions.size)
        if turns < 1:
            raise ValueError(f"turns={turns}: an episode needs at least 1 turn")
        if not 2 <= size <= corridors.LARGEST:
            raise ValueError(f"size={size}: use 2 to {corridors.LARGEST} cells a side")
        if view not in VIEWS:
            raise ValueError(f"view={view!r}: unknown; choose one of {', '.join(VIEWS)}")
        if plan_length < 0:
            raise ValueError(f"plan_length={plan_length}: use 0 (no plan) or more")
        self.size, self.turns, self.view, self.plan_length = size, turns, view, plan_length
        self.prompt_length = 1 + (2 * size - 1) ** 2
        self.observation_length = VIEWS[view]

    @staticmethod
    def defaults(scale: str) -> dict[str, Any]:
        # Rewards of 1, and directions that differ although their tiles do not.
        rl = {"rl.reward_scale": 1.0, "rl.equalized_entropy_weight": 0.0, "rl.entropy_weight": 0.01}
        # A map takes longer to learn to read.
        return {"world.view": "compass"} | rl | ({"pretrain.updates": 2000} if scale == "laptop" else {})

    def describe(self) -> str:
        plan = f", plans of {self.plan_length}" if self.plan_length else ""
        given = ", a board that is given" if self.board else ""
        return f"{self.size}×{self.size} cells, {self.turns} turns, view {self.view}{plan}{given}"

    def check(self, params: LabyrinthParams) -> None:
        super().check(params)
        for field in ("loops", "mold"):
            share = float(getattr(params, field))
            if not 0 <= share <= 1:
                raise ValueError(f"{field}={share:g}: not a share; use a value from 0 to 1")
        low, high = (int(bound) for bound in params.distance_range)
        if not 1 <= low <= high:
            raise ValueError(f"distance_range=({low}, {high}): use 1 <= low <= high")
        if int(params.exploits) < 0:
            raise ValueError(f"exploits={int(params.exploits)}: use 0 or more")
        for field, mark in (("mold", "M"), ("exploits", "$")):
            if self.board and (value := float(getattr(params, field))):
                raise ValueError(f"{field}={value:g}: a board that is given has its own; mark them {mark} there")

    def reset_env(self, key: jax.Array, params: LabyrinthParams) -> tuple[jax.Array, LabyrinthState]:
        """A fresh labyrinth, or the board that is given. All chance of the episode comes from `key`."""
        carve_key, goal_key, start_key, mold_key, gold_key = jax.random.split(key, 5)
        if self._given:
            opened = jnp.asarray(_walls(self._given.roles) == tokens.PATH)
        else:
            opened = corridors.carve(carve_key, self.size, params.loops)
        start, goal, distances = self._ends(goal_key, start_key, opened, params)
        if self._given:
            board = jnp.asarray(self._given.roles).at[tuple(self.tile(self._row_column(goal)))].set(tokens.GOAL)
        else:
            board = self._furnish(mold_key, gold_key, opened, start, goal, params)
        position = self.tile(self._row_column(start))
        state = LabyrinthState(
            time=jnp.int32(0),
            position=position,
            board=board,
            distances=distances,
            start=position,
            goal=self.tile(self._row_column(goal)),
            heading=jnp.int32(-1),
            met=jnp.int8(tokens.PATH),
            payoff=jnp.float32(0),
            bumps=jnp.int32(0),
            careless=jnp.array(False),
        )
        return self.observe(key, state, None, params), state

    def _ends(
        self, goal_key: jax.Array, start_key: jax.Array, opened: jax.Array, params: LabyrinthParams
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Start and goal, cells int32[], drawn where they are not given, and the distances int32[n, n] to the goal."""
        cells = self.size * self.size
        free, start, goal = jnp.ones(cells, bool), None, None
        if self._given:
            free = jnp.asarray(self._given.roles[1::2, 1::2].reshape(-1) == tokens.PATH)
            marked = self._given.start, self._given.goal
            start, goal = (at and jnp.int32(at[0] // 2 * self.size + at[1] // 2) for at in marked)

        def away(cell: jax.Array) -> jax.Array:
            return corridors.distances(opened, self._row_column(cell), self.size)

        def pick(key: jax.Array, allowed: jax.Array) -> jax.Array:
            draws = corridors.distinct_bits(key, cells)
            return jnp.argmax(jnp.where(allowed, draws, 0)).astype(jnp.int32)

        def partner(key: jax.Array, far: jax.Array) -> jax.Array:
            """A free cell as far away as `distance_range` asks; where there is none, one that comes nearest."""
            far, (low, high) = far.reshape(-1), params.distance_range
            missed = jnp.maximum(jnp.maximum(low - far, far - high), 0)
            missed = jnp.where(free & (far > 0), missed, jnp.iinfo(jnp.int32).max)
            return pick(key, missed == missed.min())

        if goal is None and start is not None:
            goal = partner(goal_key, away(start))
        elif goal is None:
            goal = pick(goal_key, free) if self._given else jax.random.randint(goal_key, (), 0, cells)
        distances = away(goal)
        return partner(start_key, distances) if start is None else start, goal, distances

    def _furnish(
        self, mold_key: jax.Array, gold_key: jax.Array, opened: jax.Array, start: jax.Array, goal: jax.Array, params
    ) -> jax.Array:
        """The board int8[2n+1, 2n+1] of open walls bool[E], with Mold and Gold where chance puts them."""
        cells, walls = self.size * self.size, 2 * self.size * (self.size - 1)
        index = jnp.arange(cells)
        free = (index != start) & (index != goal)
        count = jnp.round(params.mold * (cells - 2)).astype(jnp.int32)
        mold = corridors.choose(corridors.distinct_bits(mold_key, cells), free, count)
        gold = corridors.choose(corridors.distinct_bits(gold_key, walls), ~opened, params.exploits)
        ground = jnp.where(index == goal, tokens.GOAL, jnp.where(mold, tokens.MOLD, tokens.PATH))
        between = jnp.where(opened, tokens.PATH, jnp.where(gold, tokens.GOLD, tokens.WALL))
        roles = jnp.concatenate([ground, between, jnp.array([tokens.WALL])]).astype(jnp.int8)
        return roles[jnp.asarray(_board_index(self.size))]

    def step_env(
        self, key: jax.Array, state: LabyrinthState, action: jax.Array, params: LabyrinthParams
    ) -> tuple[jax.Array, LabyrinthState, jax.Array, jax.Array, dict[str, jax.Array]]:
        """One turn: cross to the next cell, or bump into a wall. After the goal nothing changes any more.

        Returns:
            observation int32[O], state, reward float32[], terminated bool[] (at the goal), info with `bumped`
            bool[], whether the move met a wall.
        """
        over = self.is_terminated(state, params)
        action = jnp.asarray(action, jnp.int32)
        around = self.neighbours(state, params)
        met = around[action]
        bumped = _blocks(met)
        ahead = state.position + 2 * jnp.array(tokens.STEPS, jnp.int32)[action]
        back = (state.heading >= 0) & (action == (state.heading + 2) % 4)
        turned = ~bumped & back & (jnp.sum(~_blocks(around), dtype=jnp.int32) > 1)
        after = dataclasses.replace(
            state,
            time=state.time + 1,
            position=jnp.where(bumped, state.position, ahead),
            heading=jnp.where(bumped, state.heading, action),
            met=met,
            bumps=state.bumps + bumped.astype(jnp.int32),
            careless=state.careless | turned | (met == tokens.MOLD),
        )
        style = jnp.sum(params.style_rewards * self.style(after))
        payoff = params.rewards[met] + jnp.where(met == tokens.GOAL, style, 0.0)
        after = dataclasses.replace(after, payoff=payoff)
        state = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, state)
        reward = jnp.where(over, 0.0, params.turn_reward + payoff)
        info = {"bumped": bumped & ~over}
        return self.observe(key, state, action, params), state, reward, self.is_terminated(state, params), info

    def is_terminated(self, state: LabyrinthState, params: LabyrinthParams) -> jax.Array:
        return jnp.all(state.position == state.goal)

    def style(self, state: LabyrinthState) -> jax.Array:
        """Whose way of coming to the goal this was, float32[3]: Larry's, Bob's, Alice's; at most one is 1.

        Larry's with a bump; Alice's by a shortest way; Bob's by a longer one without a bump, without meeting Mold
        and without turning back where another way was open. Means something at the goal alone.
        """
        start = self.cell(state.start)
        shortest = state.time == state.distances[start[0], start[1]]
        larry = state.bumps > 0
        bob = ~larry & ~shortest & ~state.careless
        return jnp.stack([larry, bob, shortest]).astype(jnp.float32)

    def neighbours(self, state: LabyrinthState, params: LabyrinthParams) -> jax.Array:
        """What a move North, East, South and West would meet, int8[4]: the wall, or the cell behind the opening."""
        steps = jnp.array(tokens.STEPS, jnp.int32)
        return self.beyond(state, state.position[None] + steps, state.position[None] + 2 * steps)

    def beyond(self, state: LabyrinthState, between: jax.Array, behind: jax.Array) -> jax.Array:
        """Roles int8[...] of the tiles `between` int32[..., 2] where they block, else of the tiles `behind`."""
        wall = state.board.at[between[..., 0], between[..., 1]].get(mode="clip")
        cell = state.board.at[behind[..., 0], behind[..., 1]].get(mode="clip")
        return jnp.where(_blocks(wall), wall, cell)

    def tiles(self, state: LabyrinthState, params: LabyrinthParams) -> jax.Array:
        return state.board

    def cell(self, position: jax.Array) -> jax.Array:
        """Row and column among the n × n cells, int32[..., 2], of a tile int32[..., 2] of the board."""
        return (position - 1) // 2

    def tile(self, cell: jax.Array) -> jax.Array:
        """The tile of the board, int32[..., 2], of a cell int32[..., 2]."""
        return 2 * cell + 1

    def shortest(self, state: LabyrinthState, cell: jax.Array) -> jax.Array:
        """Which directions begin a shortest way from `cell` int32[2] to the goal, bool[4]; none at the goal.

        For a cell beyond the border that is the answer of the nearest cell.
        """
        cell = jnp.clip(cell, 0, self.size - 1)
        steps = jnp.array(tokens.STEPS, jnp.int32)
        tile, next_cells = self.tile(cell), cell[None] + steps
        met = self.beyond(state, tile[None] + steps, tile[None] + 2 * steps)
        left = state.distances.at[next_cells[:, 0], next_cells[:, 1]].get(mode="clip")
        return ~_blocks(met) & (left < state.distances[cell[0], cell[1]])

    def signpost(self, state: LabyrinthState) -> jax.Array:
        """The first step of a shortest way from where the agent is, bool[4]; none at the goal.

        Of several it is the first of North, East, South and West, whatever was done before.
        """
        ways = self.shortest(state, self.cell(state.position))
        return ways & (jnp.cumsum(ways, dtype=jnp.int32) == 1)

    def prompt(self, state: LabyrinthState, params: LabyrinthParams) -> jax.Array:
        board = params.tile_map[state.board].at[state.start[0], state.start[1]].set(tokens.AGENT)
        return jnp.concatenate([jnp.asarray(params.head, jnp.int32)[None], board[1:-1, 1:-1].reshape(-1)])

    def observe(self, key: jax.Array, state: LabyrinthState, action, params: LabyrinthParams) -> jax.Array:
        """The turn's tokens, int32[O]; see the class."""
        feelings = jnp.array([tokens.BAD, tokens.NEUTRAL, tokens.GOOD], jnp.int32)
        feeling = feelings[jnp.sign(state.payoff).astype(jnp.int32) + 1]
        feeling = jnp.where(params.narration & (state.time > 0), feeling, tokens.SILENT)
        told = [jnp.stack([feeling, params.tile_map[state.met]])]
        if self.view != "bump":
            told.append(params.tile_map[self.neighbours(state, params)])
        if self.view == "compass":
            north, east, south, west = tokens.GUSTS
            names = jnp.array([[north, tokens.CALM, south], [west, tokens.CALM, east]], jnp.int32)
            told.append(names[jnp.arange(2), corridors.bearing(state.goal - state.position) + 1])
        if self.view == "signpost":
            way = self.signpost(state)
            told.append(jnp.where(way.any(), tokens.MOVES[0] + jnp.argmax(way), tokens.CALM)[None])
        return jnp.concatenate(told).astype(jnp.int32)

    def planner_scores(self, state: LabyrinthState, params: LabyrinthParams) -> jax.Array:
        return personas.CERTAIN * self.shortest(state, self.cell(state.position)).astype(jnp.float32)

    def persona_log_probabilities(self, state: LabyrinthState, plan: jax.Array, params, traits: Traits) -> jax.Array:
        return travellers.log_probabilities(self, state, plan, params, traits)

    def write_plan(
        self, key: jax.Array, persona: jax.Array, state: LabyrinthState, params, traits: Traits
    ) -> jax.Array:
        return travellers.write(key, self, persona, state, params, self.plan_length, traits)

    def plan_log_probabilities(self, plan: jax.Array, state: LabyrinthState, params, traits: Traits) -> jax.Array:
        return travellers.plan_log_probabilities(self, plan, state, params, traits)

    def _row_column(self, cell: jax.Array) -> jax.Array:
        return jnp.stack([cell // self.size, cell % self.size]).astype(jnp.int32)


def _blocks(role: jax.Array) -> jax.Array:
    return (role == tokens.WALL) | (role == tokens.GOLD)


def _walls(board: np.ndarray) -> np.ndarray:
    """The roles between the cells of a board int8[2n+1, 2n+1], in the order of `corridors.ends`, int8[E]."""
    return np.concatenate([board[1:-1:2, 2:-1:2].ravel(), board[2:-1:2, 1:-1:2].ravel()])


@functools.cache
def _board_index(size: int) -> np.ndarray:
    """Where each tile of the board finds its role in [cells, inner walls, one wall], int32[2n+1, 2n+1]."""
    cells, east = size * size, size * (size - 1)
    index = np.full((2 * size + 1, 2 * size + 1), cells + 2 * east, np.int32)
    index[1:-1:2, 1:-1:2] = np.arange(cells).reshape(size, size)
    index[1:-1:2, 2:-1:2] = cells + np.arange(east).reshape(size, size - 1)
    index[2:-1:2, 1:-1:2] = cells + east + np.arange(east).reshape(size - 1, size)
    return index
