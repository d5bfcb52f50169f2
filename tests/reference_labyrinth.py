"""EmojiLabyrinth in plain Python, NumPy and networkx: what the fast environment must agree with, turn by turn.

Nothing here knows about JAX or how labyrinths are stored. A labyrinth is its board of (2n+1) × (2n+1) roles.
"""

from collections.abc import Sequence

import networkx as nx
import numpy as np

from envs import tokens


def graph(board: np.ndarray) -> nx.Graph:
    """Cells (row, column) 0..n-1 as nodes, and an edge where no wall is between them."""
    size = len(board) // 2
    found = nx.Graph()
    for row in range(size):
        for column in range(size):
            found.add_node((row, column))
            if board[2 * row + 1, 2 * column + 2] == tokens.PATH:
                found.add_edge((row, column), (row, column + 1))
            if board[2 * row + 2, 2 * column + 1] == tokens.PATH:
                found.add_edge((row, column), (row + 1, column))
    return found


def distances(board: np.ndarray, cell: Sequence[int]) -> np.ndarray:
    """Moves from each cell to `cell`, int[n, n]; -1 where there is no way."""
    size = len(board) // 2
    lengths = nx.single_source_shortest_path_length(graph(board), tuple(int(at) for at in cell))
    return np.array([[lengths.get((row, column), -1) for column in range(size)] for row in range(size)])


def board_of(drawing: str) -> np.ndarray:
    """A board from lines of characters: # wall, . path, M Mold, G Gold, X goal, S start (a path)."""
    roles = {"#": tokens.WALL, ".": tokens.PATH, "S": tokens.PATH, "M": tokens.MOLD, "G": tokens.GOLD, "X": tokens.GOAL}
    return np.array([[roles[character] for character in line] for line in drawing.split()], np.int8)


class ReferenceLabyrinth:
    """One episode; every argument as in the world's parameters."""

    def __init__(self, board, start, *, rewards, turn_reward, style_rewards, tile_map, head, narration, turns, view):
        self.board = np.array(board)
        self.start = self.position = (int(start[0]), int(start[1]))
        self.rewards, self.turn_reward, self.style_rewards = rewards, float(turn_reward), style_rewards
        self.tile_map, self.head, self.narration = [int(token) for token in tile_map], int(head), bool(narration)
        self.turns, self.view = turns, view
        (self.goal,) = (tuple(int(at) for at in cell) for cell in np.argwhere(self.board == tokens.GOAL))
        self.actions: list[int] = []
        self.last_move: int | None = None
        self.last_met = tokens.PATH
        self.paid = 0.0
        self.bumps = 0
        self.tidy = True

    @property
    def over(self) -> bool:
        return self.position == self.goal

    def meets(self, direction: int) -> int:
        row, column = tokens.STEPS[direction]
        wall = int(self.board[self.position[0] + row, self.position[1] + column])
        if wall in (tokens.WALL, tokens.GOLD):
            return wall
        return int(self.board[self.position[0] + 2 * row, self.position[1] + 2 * column])

    def neighbours(self) -> list[int]:
        return [self.meets(direction) for direction in range(4)]

    def prompt(self) -> list[int]:
        words = [self.head]
        for row in range(1, len(self.board) - 1):
            for column in range(1, len(self.board) - 1):
                here = (row, column) == self.start
                words.append(tokens.AGENT if here else self.tile_map[self.board[row, column]])
        return words

    def observe(self) -> list[int]:
        feeling = tokens.SILENT
        if self.narration and self.actions:
            feeling = tokens.NEUTRAL if self.paid == 0 else tokens.GOOD if self.paid > 0 else tokens.BAD
        words = [feeling, self.tile_map[self.last_met]]
        if self.view != "bump":
            words += [self.tile_map[role] for role in self.neighbours()]
        if self.view == "compass":
            north, east, south, west = tokens.GUSTS
            down, right = self.goal[0] - self.position[0], self.goal[1] - self.position[1]
            farther_down, farther_right = abs(down) >= abs(right), abs(right) >= abs(down)
            words.append((south if down > 0 else north) if down and farther_down else tokens.CALM)
            words.append((east if right > 0 else west) if right and farther_right else tokens.CALM)
        if self.view == "signpost":
            words.append(self.signpost())
        return words

    def signpost(self) -> int:
        """The first direction, North first and clockwise, after which the way to the goal is shorter."""
        far = distances(self.board, [at // 2 for at in self.goal])
        row, column = (at // 2 for at in self.position)
        for direction, (down, right) in enumerate(tokens.STEPS):
            blocked = self.meets(direction) in (tokens.WALL, tokens.GOLD)
            if not blocked and far[row + down, column + right] == far[row, column] - 1:
                return tokens.MOVES[direction]
        return tokens.CALM

    def step(self, action: int) -> tuple[list[int], float]:
        if self.over:
            return self.observe(), 0.0
        ways = [direction for direction in range(4) if self.meets(direction) not in (tokens.WALL, tokens.GOLD)]
        met = self.meets(action)
        self.actions.append(int(action))
        self.last_met = met
        if action not in ways:
            self.bumps += 1
        else:
            if self.last_move is not None and action == (self.last_move + 2) % 4 and len(ways) > 1:
                self.tidy = False
            row, column = tokens.STEPS[action]
            self.position = (self.position[0] + 2 * row, self.position[1] + 2 * column)
            self.last_move = int(action)
        if met == tokens.MOLD:
            self.tidy = False
        self.paid = float(self.rewards[met])
        if met == tokens.GOAL:
            self.paid += sum(float(reward) for reward, has in zip(self.style_rewards, self.style(), strict=True) if has)
        return self.observe(), self.turn_reward + self.paid

    def style(self) -> tuple[bool, bool, bool]:
        fewest = distances(self.board, [at // 2 for at in self.goal])[self.start[0] // 2, self.start[1] // 2]
        alice = len(self.actions) == fewest
        larry = self.bumps > 0
        return larry, self.tidy and not larry and not alice, alice
