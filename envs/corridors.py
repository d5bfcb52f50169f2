"""Corridors of a labyrinth: spanning trees of a grid of cells, loops, and shortest ways, for one maze under `vmap`.

A maze of n × n cells is a graph: cell r·n + c, and an inner wall between any two neighbours, E = 2·n·(n-1) walls in
all, those to the East first, then those to the South, each row by row. A wall that is open joins its two cells.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 16
"""Cells of a side at most: the index of a wall must fit into `_INDEX_BITS`."""

_INDEX_BITS = 9


@functools.cache
def ends(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The two cells of every inner wall, int32[E] each: West or North of it, East or South of it."""
    cells = np.arange(size * size, dtype=np.int32).reshape(size, size)
    first = np.concatenate([cells[:, :-1].ravel(), cells[:-1].ravel()])
    second = np.concatenate([cells[:, 1:].ravel(), cells[1:].ravel()])
    return first, second


def distinct_bits(key: jax.Array, count: int) -> jax.Array:
    """Random numbers uint32[count] of which no two are equal: the low 9 bits are the index, the others random."""
    index = jnp.arange(count, dtype=jnp.uint32)
    return jax.random.bits(key, (count,), jnp.uint32) << _INDEX_BITS | index


def choose(draws: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """The `count` candidates with the smallest draws; all of them if there are fewer.

    The bar is found by bisection, which under `vmap` is many times faster than a sort.

    Args:
        draws: uint32[N], from `distinct_bits`.
        candidates: bool[N].
        count: int32[].

    Returns:
        bool[N].
    """

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(candidates & (draws <= middle), dtype=jnp.int32) >= count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    _, bar = jax.lax.fori_loop(0, 32, halve, (jnp.uint32(0), jnp.uint32(2**32 - 1)))
    return candidates & (draws <= bar) & (count > 0)


def spanning_tree(draws: jax.Array, size: int) -> jax.Array:
    """The minimum spanning tree of the grid whose walls have the weights `draws`, by Borůvka's algorithm.

    Every component opens its lightest wall to another one, all at once, until there is one component; their number
    at least halves each time. With random weights this is the maze of Kruskal's algorithm.

    Args:
        draws: uint32[E] from `distinct_bits`: no two are equal, and the low bits are the wall's index.
        size: n.

    Returns:
        Open walls, bool[E].
    """
    cells = jnp.arange(size * size, dtype=jnp.int32)
    first, second = (jnp.asarray(cells) for cells in ends(size))
    none = jnp.uint32(2**32 - 1)

    def join(carry):
        label, tree = carry
        weight = jnp.where(_sides(label, size)[0] == _sides(label, size)[1], none, draws)
        lightest = jnp.full(cells.size, none).at[label].min(_around(weight, size, none).min(axis=-1))
        wall = (lightest & (2**_INDEX_BITS - 1)).astype(jnp.int32)
        one = label[first.at[wall].get(mode="clip")]
        other = label[second.at[wall].get(mode="clip")]
        parent = jnp.where(lightest == none, cells, jnp.where(one == cells, other, one))
        # Two components that chose the same wall point at each other: one of them becomes the root.
        parent = jnp.where((parent[parent] == cells) & (cells < parent), cells, parent)
        parent = _roots(parent)
        mine, theirs = _sides(lightest[label], size)
        return parent[label], tree | (weight != none) & ((mine == weight) | (theirs == weight))

    start = (cells, jnp.zeros(len(draws), bool))
    return jax.lax.while_loop(lambda carry: jnp.any(carry[0] != carry[0][0]), join, start)[1]


def _sides(values: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Values of the two cells of every wall, [E] each, from values of the cells [N]; slices instead of a gather."""
    grid = values.reshape(size, size)
    first = jnp.concatenate([grid[:, :-1].ravel(), grid[:-1].ravel()])
    return first, jnp.concatenate([grid[:, 1:].ravel(), grid[1:].ravel()])


def _around(values: jax.Array, size: int, edge: jax.Array) -> jax.Array:
    """Values of the walls North, East, South and West of every cell, [N, 4], from values of the walls [E]."""
    east = values[: size * (size - 1)].reshape(size, size - 1)
    south = values[size * (size - 1) :].reshape(size - 1, size)
    sides = (
        jnp.pad(south, ((1, 0), (0, 0)), constant_values=edge),
        jnp.pad(east, ((0, 0), (0, 1)), constant_values=edge),
        jnp.pad(south, ((0, 1), (0, 0)), constant_values=edge),
        jnp.pad(east, ((0, 0), (1, 0)), constant_values=edge),
    )
    return jnp.stack(sides, axis=-1).reshape(size * size, 4)


def _roots(parent: jax.Array) -> jax.Array:
    """The root above each node, int32[N], by pointer jumping."""
    return jax.lax.while_loop(lambda at: jnp.any(at[at] != at), lambda at: at[at], parent)


def carve(key: jax.Array, size: int, loops: jax.Array) -> jax.Array:
    """A perfect maze, then a share `loops` (float32[]) of the walls that are left, rounded, opened; bool[E]."""
    tree_key, loop_key = jax.random.split(key)
    walls = len(ends(size)[0])
    tree = spanning_tree(distinct_bits(tree_key, walls), size)
    count = jnp.round(loops * (walls - (size * size - 1))).astype(jnp.int32)
    return tree | choose(distinct_bits(loop_key, walls), ~tree, count)


def distances(opened: jax.Array, source: jax.Array, size: int) -> jax.Array:
    """Moves from each cell to `source` on a shortest way, int32[n, n].

    Every step each cell learns from its neighbours, until nothing changes: as many steps as the longest way.

    Args:
        opened: bool[E], of a connected maze.
        source: int32[2], row and column of a cell.
        size: n.
    """
    far = jnp.int32(size * size)
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    exits = _around(opened, size, jnp.array(False)).reshape(size, size, 4)
    blocked = jnp.where(exits, 1, 2 * far)
    start = jnp.where((rows == source[0]) & (columns == source[1]), 0, far)

    def relax(carry):
        old, _ = carry
        around = jnp.stack(
            [
                jnp.pad(old[:-1], ((1, 0), (0, 0))),
                jnp.pad(old[:, 1:], ((0, 0), (0, 1))),
                jnp.pad(old[1:], ((0, 1), (0, 0))),
                jnp.pad(old[:, :-1], ((0, 0), (1, 0))),
            ],
            axis=-1,
        )
        new = jnp.minimum(old, jnp.min(around + blocked, axis=-1))
        return new, jnp.any(new != old)

    return jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.array(True)))[0]


def bearing(gap: jax.Array) -> jax.Array:
    """Signs int32[2] of rows and columns to go, int32[2], with 0 for the lesser of the two; both if they are equal."""
    return jnp.where(jnp.abs(gap) >= jnp.abs(gap[::-1]), jnp.sign(gap), 0)
