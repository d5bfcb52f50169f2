"""Where the tiles of an EmojiMaze lie before anybody has touched them.

A layout draws a maze from a seed and knows the role of any of its cells. `walk` is the generator of
arXiv 2605.30232, appendix J, and stores the grid. `scatter` has the same shares of Mold and Gold but independent
tiles, each a hash of (maze, cell): it stores no grid, and a fresh maze costs nothing.
"""

import abc
import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import hashing, tokens


class Layout(abc.ABC):
    """A distribution over mazes of one size."""

    def __init__(self, size: int):
        self.size = size

    @abc.abstractmethod
    def generate(
        self, key: jax.Array, seed: jax.Array, mold_range: jax.Array, gold_ratio: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Draw a maze.

        Args:
            key: a JAX key, for layouts that need many draws.
            seed: uint32[2], for layouts that hash.
            mold_range: float32[2], bounds of the share of interior tiles that are Mold.
            gold_ratio: float32[], Gold tiles per Mold tile of the interior.

        Returns:
            What `roles` needs, and the start cell int32[2].
        """

    @abc.abstractmethod
    def roles(self, maze: Any, cells: jax.Array) -> jax.Array:
        """Roles int8[...] of cells int32[..., 2]; cells on or beyond the outer ring are Mold."""

    def _on_ring(self, cells: jax.Array) -> jax.Array:
        return jnp.any((cells <= 0) | (cells >= self.size - 1), axis=-1)


@struct.dataclass(kw_only=True)
class ScatterMaze:
    """What `Scatter` needs to know a maze."""

    seed: jax.Array
    """uint32[2]"""
    mold: jax.Array
    """float32[], share of interior tiles that are Mold."""
    gold: jax.Array
    """float32[], share of interior tiles that are Gold."""


class Scatter(Layout):
    """Independent tiles. The start is the centre cell, which is always Path."""

    def generate(self, key, seed, mold_range, gold_ratio):
        share = hashing.uniform(hashing.bits(seed, jnp.uint32(self.size * self.size)))
        mold = mold_range[0] + share * (mold_range[1] - mold_range[0])
        centre = jnp.full(2, self.size // 2, jnp.int32)
        return ScatterMaze(seed=seed, mold=mold, gold=mold * gold_ratio), centre

    def roles(self, maze, cells):
        u = hashing.uniform(hashing.bits(maze.seed, cells[..., 0] * self.size + cells[..., 1]))
        role = jnp.where(u < maze.mold + maze.gold, jnp.int8(tokens.GOLD), jnp.int8(tokens.PATH))
        role = jnp.where((u < maze.mold) | self._on_ring(cells), jnp.int8(tokens.MOLD), role)
        return jnp.where(jnp.all(cells == self.size // 2, axis=-1), jnp.int8(tokens.PATH), role)


class Walk(Layout):
    """The paper's generator, step by step; the maze is its grid, roles int8[H, W]."""

    def generate(self, key, seed, mold_range, gold_ratio):
        length_key, walk_key, carve_key, target_key, gold_key = jax.random.split(key, 5)
        interior = self.size - 2
        total = interior * interior

        # A random walk carves Path out of Mold: each step uniform over the directions that stay inside.
        length = jax.random.randint(length_key, (), 5 * interior, 15 * interior + 1)
        carved = self._carve(walk_key, length)

        # Too much Mold is thinned to a random target by turning uniformly chosen Mold tiles into Path.
        mold = jnp.int32(total) - carved.sum(dtype=jnp.int32)
        low = jnp.floor(mold_range[0] * total).astype(jnp.int32) + 1
        high = jnp.maximum(jnp.floor(mold_range[1] * total).astype(jnp.int32) - 1, low)
        target = jax.random.randint(target_key, (), low, high + 1)
        flipped = _choose(carve_key, ~carved, jnp.where(mold > high, mold - target, 0))
        path = carved | flipped

        mold = jnp.int32(total) - path.sum(dtype=jnp.int32)
        golds = jnp.maximum(1, jnp.floor(gold_ratio * mold.astype(jnp.float32)).astype(jnp.int32))
        gold = _choose(gold_key, path, jnp.minimum(golds, total - mold - 1))

        inside = jnp.where(gold, tokens.GOLD, jnp.where(path, tokens.PATH, tokens.MOLD)).astype(jnp.int8)
        grid = jnp.pad(inside, 1, constant_values=tokens.MOLD)
        rank = jnp.where(grid == tokens.PATH, jnp.asarray(_breadth_first_ranks(self.size)), self.size**2)
        start = jnp.argmin(rank).astype(jnp.int32)
        return grid, jnp.stack([start // self.size, start % self.size])

    def roles(self, maze, cells):
        role = maze.at[cells[..., 0], cells[..., 1]].get(mode="clip")
        return jnp.where(self._on_ring(cells), jnp.int8(tokens.MOLD), role)

    def _carve(self, key: jax.Array, length: jax.Array) -> jax.Array:
        """Cells that a random walk of `length` steps visits, bool[interior, interior]."""
        interior = self.size - 2
        steps = jnp.array(tokens.STEPS, jnp.int32)
        start_key, step_key = jax.random.split(key)
        start = jax.random.randint(start_key, (2,), 0, interior)
        # 5040 = 7! is divisible by 2, 3 and 4, so that `choice % directions` is exactly uniform.
        choices = jax.random.randint(step_key, (15 * interior,), 0, 5040)

        def step(position, choice):
            targets = position[None] + steps
            inside = jnp.all((targets >= 0) & (targets < interior), axis=-1)
            wanted = choice % jnp.maximum(inside.sum(dtype=jnp.int32), 1)
            direction = jnp.argmax(inside & (jnp.cumsum(inside.astype(jnp.int32)) - 1 == wanted))
            position = jnp.where(inside.any(), targets[direction], position)
            return position, position

        _, way = jax.lax.scan(step, start, choices, unroll=8)
        way = jnp.concatenate([start[None], jnp.where((jnp.arange(len(way)) < length)[:, None], way, start[None])])
        return jnp.zeros((interior, interior), bool).at[way[:, 0], way[:, 1]].set(True)


def _choose(key: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """`count` uniformly chosen cells among `candidates`, bool of the same shape.

    Every cell draws 32 bits; the `count` smallest win, found by bisecting the bar, which is many times faster
    than a sort. Two cells with the same bits at the bar (once in 10^6 mazes) would win together.
    """
    draws = jax.random.bits(key, candidates.shape, jnp.uint32)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(candidates & (draws <= middle), dtype=jnp.int32) >= count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    _, bar = jax.lax.fori_loop(0, 32, halve, (jnp.uint32(0), jnp.uint32(2**32 - 1)))
    return candidates & (draws <= bar) & (count > 0)


def _breadth_first_ranks(size: int) -> np.ndarray:
    """Order in which a breadth-first search from the centre meets each cell of the grid, int32[H, W]."""
    centre = (size // 2, size // 2)
    ranks = np.full((size, size), -1, np.int32)
    ranks[centre] = 0
    queue = collections.deque([centre])
    count = 1
    while queue:
        row, column = queue.popleft()
        for step_row, step_column in tokens.STEPS:
            cell = (row + step_row, column + step_column)
            if 0 <= cell[0] < size and 0 <= cell[1] < size and ranks[cell] < 0:
                ranks[cell] = count
                count += 1
                queue.append(cell)
    return ranks


LAYOUTS: dict[str, type[Layout]] = {"scatter": Scatter, "walk": Walk}
"""Layouts by name."""
