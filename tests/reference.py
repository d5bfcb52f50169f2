"""EmojiMaze in plain Python and NumPy: what the fast environment must agree with, turn by turn.

Written from arXiv 2605.30232, appendices J, K, L and Q, and from `envs.tokens` alone. Nothing here knows about
JAX, batches or how the mazes are stored. H = W = size.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from envs import tokens

REWARDS = (0.0, 20.0, -10.0, 0.0, 0.0)
TURN_REWARD = -0.1
TURNS = 15
WIND_PROBABILITY = 0.1
CALM = 0
GREEDY_RANK = {tokens.GOLD: 2, tokens.PATH: 1, tokens.MOLD: 0}


class ReferenceMaze:
    """One episode of EmojiMaze.

    Args:
        grid: roles int8[H, W]; copied.
        start: row and column of the agent.
        rewards: what landing on a tile pays, by role, float[5].
        turn_reward: what every turn pays.
        tile_map: the token that stands for each role, int[5].
        melting: whether a tile that reads Path turns into Mold when the agent leaves it.
        narration: whether the feeling slot tells how the last turn went.
        clauses: None, or the order in which the four directions are told (prompt shuffling).
        turns: turns of an episode.
    """

    def __init__(
        self,
        grid: np.ndarray,
        start: Sequence[int],
        *,
        rewards: Sequence[float] = REWARDS,
        turn_reward: float = TURN_REWARD,
        tile_map: Sequence[int] = tokens.TILE_MAP,
        melting: bool = True,
        narration: bool = False,
        clauses: Sequence[int] | None = None,
        turns: int = TURNS,
    ):
        self.grid = np.array(grid, np.int8)
        self.position = (int(start[0]), int(start[1]))
        self.time = 0
        self.rewards = [float(reward) for reward in rewards]
        self.turn_reward = float(turn_reward)
        self.tile_map = [int(token) for token in tile_map]
        self.melting = bool(melting)
        self.narration = bool(narration)
        self.clauses = None if clauses is None else [int(direction) for direction in clauses]
        self.turns = int(turns)
        self._gust = CALM
        self._paid = 0.0

    def neighbours(self) -> list[int]:
        """Roles of the tiles North, East, South and West of the agent; Mold off the grid."""
        cells = [(self.position[0] + row, self.position[1] + column) for row, column in tokens.STEPS]
        return [int(self.grid[cell]) if self._inside(cell) else tokens.MOLD for cell in cells]

    def observe(self) -> list[int]:
        """Feeling, wind and the four tiles: 6 tokens, or 10 with a direction token before each tile."""
        wind = tokens.CALM if self._gust == CALM else tokens.GUSTS[self._gust - 1]
        tiles = [self.tile_map[role] for role in self.neighbours()]
        if self.clauses is None:
            return [self._feeling(), wind, *tiles]
        told = [token for direction in self.clauses for token in (tokens.MOVES[direction], tiles[direction])]
        return [self._feeling(), wind, *told]

    def step(self, action: int, gust: int = CALM) -> tuple[list[int], float, bool]:
        """Play one turn.

        Args:
            action: direction 0 to 3, North, East, South, West.
            gust: 0 when calm; 1 to 4 when the wind blows the agent North, East, South, West after the move.

        Returns:
            the next observation, the reward of the turn, and whether the time limit has been reached.
        """
        self._paid = self._push(action)
        if gust != CALM:
            self._paid += self._push(gust - 1)
        self._gust = int(gust)
        self.time += 1
        return self.observe(), self.turn_reward + self._paid, self.time >= self.turns

    def _push(self, direction: int) -> float:
        """Move one tile and return what the tile landed on pays; off the grid nothing happens."""
        row, column = tokens.STEPS[direction]
        target = (self.position[0] + row, self.position[1] + column)
        if not self._inside(target):
            return 0.0
        if self.melting and self.grid[self.position] == tokens.PATH:
            self.grid[self.position] = tokens.MOLD
        self.position = target
        role = int(self.grid[target])
        if role == tokens.GOLD:
            self.grid[target] = tokens.PATH
        return self.rewards[role]

    def _feeling(self) -> int:
        """The feeling token: silent at the start and without narration."""
        if not self.narration or self.time == 0:
            return tokens.SILENT
        if self._paid == 0:
            return tokens.NEUTRAL
        return tokens.GOOD if self._paid > 0 else tokens.BAD

    def _inside(self, cell: tuple[int, int]) -> bool:
        return 0 <= cell[0] < self.grid.shape[0] and 0 <= cell[1] < self.grid.shape[1]


def nearest_path(grid: np.ndarray) -> tuple[int, int]:
    """The first Path cell that a breadth-first search from the centre meets; it walks through every tile.

    Args:
        grid: roles int8[H, W] with at least one Path cell.
    """
    size = len(grid)
    centre = (size // 2, size // 2)
    queue, seen = deque([centre]), {centre}
    while queue:
        cell = queue.popleft()
        if grid[cell] == tokens.PATH:
            return cell
        for row, column in tokens.STEPS:
            near = (cell[0] + row, cell[1] + column)
            if near not in seen and 0 <= near[0] < size and 0 <= near[1] < size:
                seen.add(near)
                queue.append(near)
    raise ValueError("the grid has no Path cell")


def walk_maze(
    rng: np.random.Generator,
    size: int,
    mold_range: tuple[float, float] = (0.1, 0.5),
    gold_ratio: float = 0.2,
) -> tuple[np.ndarray, tuple[int, int]]:
    """The paper's generator in its own order: a random walk in Mold, then salt and pepper, then Gold.

    Returns:
        roles int8[H, W] and the start cell.
    """
    grid = np.full((size, size), tokens.MOLD, np.int8)
    inner = size - 2
    row, column = (int(index) for index in rng.integers(1, size - 1, 2))
    grid[row, column] = tokens.PATH
    for draw in rng.random(rng.integers(5 * inner, 15 * inner, endpoint=True)):
        cells = [(row + down, column + right) for down, right in tokens.STEPS]
        cells = [cell for cell in cells if 1 <= cell[0] <= inner and 1 <= cell[1] <= inner]
        row, column = cells[int(draw * len(cells))]
        grid[row, column] = tokens.PATH

    mold = np.argwhere(grid[1:-1, 1:-1] == tokens.MOLD) + 1
    least, most = int(mold_range[0] * inner**2) + 1, int(mold_range[1] * inner**2) - 1
    if len(mold) > most:
        target = int(rng.integers(least, most, endpoint=True))
        carved = rng.permutation(mold)[target:]
        grid[tuple(carved.T)] = tokens.PATH

    inside = grid[1:-1, 1:-1]
    count = max(1, int(gold_ratio * np.sum(inside == tokens.MOLD)))
    gold = rng.permutation(np.argwhere(grid == tokens.PATH))[:count]
    grid[tuple(gold.T)] = tokens.GOLD
    return grid, nearest_path(grid)


def choose(rng: np.random.Generator, policy: str, neighbours: Sequence[int]) -> int:
    """The action of a named policy: "random", "north" or "greedy" (Gold > Path > Mold, random ties)."""
    if policy == "north":
        return tokens.NORTH
    if policy == "random":
        return int(rng.integers(4))
    ranks = [GREEDY_RANK[role] for role in neighbours]
    best = [direction for direction, rank in enumerate(ranks) if rank == max(ranks)]
    return best[int(rng.integers(len(best)))]


def play(
    rng: np.random.Generator,
    grid: np.ndarray,
    start: Sequence[int],
    policy: str,
    *,
    wind_probability: float = WIND_PROBABILITY,
    turns: int = TURNS,
    **options,
) -> float:
    """The return of one episode of a named policy (see `choose`).

    Args:
        grid: roles int8[H, W]; left as it is.
        start: row and column.
        options: further arguments of `ReferenceMaze`.
    """
    maze = ReferenceMaze(grid, start, turns=turns, **options)
    total, truncated = 0.0, False
    while not truncated:
        action = choose(rng, policy, maze.neighbours())
        gust = int(rng.integers(1, 5)) if rng.random() < wind_probability else CALM
        _, reward, truncated = maze.step(action, gust)
        total += reward
    return total


def statistics(grids: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers that tell generators apart, one of each for every maze of int8[B, H, W]."""
    size = grids.shape[-1]
    mold, gold = grids == tokens.MOLD, grids == tokens.GOLD
    rows = np.arange(size)[None, :, None]
    like = (mold[:, 1:] == mold[:, :-1]).sum((1, 2)) + (mold[:, :, 1:] == mold[:, :, :-1]).sum((1, 2))
    return {
        "Mold": mold.sum((1, 2)),
        "Path": (grids == tokens.PATH).sum((1, 2)),
        "Gold": gold.sum((1, 2)),
        "like neighbours": like,
        "distance of the start": np.abs(starts - size // 2).sum(1),
        "row of the Mold": (mold * rows).sum((1, 2)) / mold.sum((1, 2)),
        "row of the Gold": (gold * rows).sum((1, 2)) / gold.sum((1, 2)),
        "column of the start": starts[:, 1],
    }
