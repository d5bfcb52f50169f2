"""Where the tiles of an EmojiMaze lie before anybody has touched them.

A layout draws a maze from a seed and knows the role of any of its cells. `walk` is the generator of
arXiv 2605.30232, appendix J, and stores its mazes as bits. `scatter` has the same shares of Mold and Gold but
independent tiles, each a hash of (maze, cell): it stores no grid, and a fresh maze costs nothing.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import hashing, tokens
from envs.boards import Board


class Layout(abc.ABC):
    """A distribution over mazes of one size."""

    largest = 46_340
    """Rows and columns at most: cells are numbered by int32."""

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


@struct.dataclass(kw_only=True)
class WalkMaze:
    """A maze as `Walk` stores it: a bit for each interior cell, 32 to a word.

    Cells are numbered as a breadth-first search from the centre meets them, so that the nearest one is the first bit.
    """

    path: jax.Array
    """uint32[words], the cells that are Path or Gold."""
    gold: jax.Array
    """uint32[words], the cells that are Gold."""


class Walk(Layout):
    """The paper's generator. Sets of cells are bits: a maze is small, and drawing one handles 32 cells at once."""

    largest = 1_024

    def __init__(self, size: int):
        super().__init__(size)
        self._cells, self._numbers = _breadth_first(size)

    def generate(self, key, seed, mold_range, gold_ratio):
        length_key, start_key, target_key, bits_key = jax.random.split(key, 4)
        interior = self.size - 2
        total = interior * interior
        noise = jax.random.bits(bits_key, (6,), jnp.uint32)

        # A random walk carves Path out of Mold: each step uniform over the directions that stay inside.
        length = jax.random.randint(length_key, (), 5 * interior, 15 * interior + 1)
        carved = _pack(self._carve(noise[:2], jax.random.randint(start_key, (2,), 0, interior), length))

        # Too much Mold is thinned to a random target by turning uniformly chosen Mold tiles into Path.
        uncarved = _pack(np.ones(total, bool)) & ~carved
        mold = _count(uncarved)
        low = jnp.floor(mold_range[0] * total).astype(jnp.int32) + 1
        high = jnp.maximum(jnp.floor(mold_range[1] * total).astype(jnp.int32) - 1, low)
        kept = jnp.where(mold > high, jax.random.randint(target_key, (), low, high + 1), mold)
        path = carved | _choose(noise[2:4], uncarved, mold - kept)

        golds = jnp.maximum(1, jnp.floor(gold_ratio * kept.astype(jnp.float32)).astype(jnp.int32))
        gold = _choose(noise[4:], path, jnp.minimum(golds, total - kept - 1))
        start = jnp.asarray(self._cells)[_first(path & ~gold)]
        return WalkMaze(path=path, gold=gold), jnp.stack([start // self.size, start % self.size])

    def roles(self, maze, cells):
        inside = jnp.clip(cells, 0, self.size - 1)
        number = jnp.asarray(self._numbers)[inside[..., 0] * self.size + inside[..., 1]]
        path, gold = (
            ((words[number // 32] >> (number % 32).astype(jnp.uint32)) & 1) == 1 for words in (maze.path, maze.gold)
        )
        role = jnp.where(gold, tokens.GOLD, jnp.where(path, tokens.PATH, tokens.MOLD)).astype(jnp.int8)
        return jnp.where(self._on_ring(cells), jnp.int8(tokens.MOLD), role)

    def _carve(self, seed: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
        """The interior cells that a random walk of `length` steps visits, bool[cells] by number."""
        interior = self.size - 2

        def step(position, time):
            row, column = position >> 16, position & 0xFFFF
            inside = (row > 0, column < interior - 1, row < interior - 1, column > 0)
            count = sum(way.astype(jnp.float32) for way in inside)
            wanted = jnp.floor(hashing.uniform(hashing.bits(seed, time)) * count)
            for way, (down, right) in zip(inside, tokens.STEPS, strict=True):
                taken = way & (wanted == 0) & (time < length)
                position = position + jnp.where(taken, down * 65536 + right, 0)
                wanted = wanted - way.astype(jnp.float32)
            return position, position

        first = start[0] * 65536 + start[1]
        _, way = jax.lax.scan(step, first, jnp.arange(15 * interior))
        way = jnp.concatenate([first[None], way])
        numbers = jnp.asarray(self._numbers)[((way >> 16) + 1) * self.size + (way & 0xFFFF) + 1]
        return jnp.zeros(interior * interior, bool).at[numbers].set(True)


class Given(Layout):
    """One maze, which is given. The start is the one marked, or drawn among the tiles that are Path."""

    def __init__(self, board: Board):
        super().__init__(len(board.roles))
        self._grid = board.roles
        self._starts = np.argwhere(board.roles == tokens.PATH) if board.start is None else np.array([board.start])

    def generate(self, key, seed, mold_range, gold_ratio):
        index = jax.random.randint(key, (), 0, len(self._starts))
        return (), jnp.asarray(self._starts, jnp.int32)[index]

    def roles(self, maze, cells):
        inside = jnp.clip(cells, 0, self.size - 1)  # the ring is Mold, and so is what lies beyond
        return jnp.asarray(self._grid)[inside[..., 0], inside[..., 1]]


def _pack(mask: jax.Array | np.ndarray) -> jax.Array:
    """bool[N] as bits, uint32[ceil(N / 32)]."""
    padded = jnp.pad(jnp.asarray(mask), (0, -len(mask) % 32)).reshape(-1, 32).astype(jnp.uint32)
    return jnp.sum(padded << jnp.arange(32, dtype=jnp.uint32)[None], axis=1, dtype=jnp.uint32)


def _count(words: jax.Array) -> jax.Array:
    """Bits that are set, int32[]."""
    return jax.lax.population_count(words).astype(jnp.int32).sum()


def _first(words: jax.Array) -> jax.Array:
    """Number of the first bit that is set, int32[]; where none is, of some bit of the first word."""
    index = jnp.argmax(words != 0)
    word = words[index]
    return index.astype(jnp.int32) * 32 + jax.lax.population_count((word & (~word + 1)) - 1).astype(jnp.int32) % 32


def _choose(seed: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """`count` uniformly chosen bits among the `candidates` uint32[W] that are set; uint32[W].

    Every candidate has a random number, and the `count` least win. The numbers are looked at bit by bit, from the
    highest: those with a 0 win if there are not too many of them, and are the only ones left if there are. Two equal
    numbers of 64 bits at the bar, once in 10^15 mazes, would both lose.
    """
    index = jnp.arange(len(candidates))

    def undecided(state):
        digit, _, _, missing = state
        return (missing > 0) & (digit < 64)

    def look(state):
        digit, open, chosen, missing = state
        lower = open & hashing.bits(seed, digit * len(candidates) + index)
        found = _count(lower)
        wins = found <= missing
        chosen = jnp.where(wins, chosen | lower, chosen)
        return digit + 1, jnp.where(wins, open & ~lower, lower), chosen, missing - jnp.where(wins, found, 0)

    start = (jnp.int32(0), candidates, jnp.zeros_like(candidates), count)
    return jax.lax.while_loop(undecided, look, start)[2]


def _breadth_first(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the interior cells, in the order in which a breadth-first search from the centre meets them.

    Returns:
        The cells by number, row * size + column, int32[(H - 2) * (W - 2)]; and the numbers by cell, int32[H * W],
        0 on the ring.
    """
    centre = (size // 2, size // 2)
    order, met = [centre], {centre}
    for row, column in order:
        for down, right in tokens.STEPS:
            cell = (row + down, column + right)
            if 0 <= cell[0] < size and 0 <= cell[1] < size and cell not in met:
                met.add(cell)
                order.append(cell)
    inner = [(row, column) for row, column in order if 0 < row < size - 1 and 0 < column < size - 1]
    cells = np.array([row * size + column for row, column in inner], np.int32)
    numbers = np.zeros(size * size, np.int32)
    numbers[cells] = np.arange(len(cells))
    return cells, numbers


LAYOUTS: dict[str, type[Layout]] = {"scatter": Scatter, "walk": Walk}
"""Layouts by name."""
