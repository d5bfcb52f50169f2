"""Subsets of the parameters: those that training changed, and those to compare them with.

A mask is a `weights.Matrices` of bool, members on axis 0.
"""

import jax.numpy as jnp
import numpy as np

from analysis.weights import Matrices

TOLERANCE = 1e-5
"""Two bfloat16 values at most this far apart count as equal in arXiv 2505.11711, section 2."""
DENSITY = 0.10
"""Share of the parameters, those that moved farthest, at which updates are compared."""
MASKS = {"farthest_10_percent": "farthest 10 %", "changed_bf16": "changed in bfloat16"}
"""Masks whose place and overlap are measured."""


def compared(before: Matrices, after: Matrices, seed: int = 0) -> dict[str, Matrices]:
    """Each of `MASKS`: the parameters that moved farthest (all that moved, if those are fewer), and that changed.

    Args:
        before, after: of one population.
        seed: of the draw between equally far moves at the border. Updates that are compared need different ones; a
            common order would make masks overlap that have nothing in common.
    """
    farthest = largest(before, after, DENSITY, seed)
    moved = {name: x & (before[name] != after[name]) for name, x in farthest.items()}
    return dict(zip(MASKS, (moved, changed(before, after)), strict=True))


def changed(before: Matrices, after: Matrices, tolerance: float = 0.0) -> Matrices:
    """Parameters whose bfloat16 values differ by more than `tolerance`; 0 asks for any difference at all."""

    def differs(first, second):
        first, second = (x.astype(jnp.bfloat16.dtype).astype(np.float32) for x in (first, second))
        return np.abs(second - first) > tolerance

    return {name: differs(before[name], after[name]) for name in before}


def largest(before: Matrices, after: Matrices, density: float, seed: int | None = None) -> Matrices:
    """The share `density` of a member's parameters that moved farthest, over all of its matrices together.

    Equal moves at the border are cut so that the density is exact: in the order of the parameters, or with a `seed` at
    random, for each member by itself. Members whose overlap is asked for must not share an order.
    """
    moves = np.concatenate([np.abs(_flat(after[name]) - _flat(before[name])) for name in before], axis=1)
    parts = np.split(top(moves, density, seed), np.cumsum([x[0].size for x in before.values()])[:-1], axis=1)
    return {name: part.reshape(x.shape) for (name, x), part in zip(before.items(), parts, strict=True)}


def smallest_weights(before: Matrices, like: Matrices) -> Matrices:
    """In each matrix as many parameters as `like` has there: those of the smallest magnitude."""
    return {name: _top_counts(-np.abs(_flat(x)), _counts(like[name])).reshape(x.shape) for name, x in before.items()}


def random(like: Matrices, seed: int) -> Matrices:
    """In each matrix as many parameters as `like` has there, drawn uniformly."""
    generator = np.random.default_rng(seed)
    return {
        name: _top_counts(generator.random((len(x), x[0].size)), _counts(x)).reshape(x.shape)
        for name, x in like.items()
    }


def complement(mask: Matrices) -> Matrices:
    """All other parameters."""
    return {name: ~x for name, x in mask.items()}


def share_inside(mask: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|mask ∩ reference| / |mask| of bool[M, ...], float64[M]; NaN for an empty mask.

    Chance gives the density of `reference`.
    """
    counts = _counts(mask)
    return np.where(counts > 0, _counts(mask & reference) / np.maximum(counts, 1), np.nan)


def top(scores: np.ndarray, share: float, seed: int | None = None) -> np.ndarray:
    """bool[M, n], the share of the highest scores of each row of float[M, n]; ties go to the first, or are drawn."""
    counts = np.full(len(scores), round(share * scores.shape[1]))
    if seed is None:
        return _top_counts(scores, counts)
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(scores.shape[1]), (len(scores), 1)), axis=1)
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, orders, _top_counts(np.take_along_axis(scores, orders, axis=1), counts), axis=1)
    return mask


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32)


def _counts(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(len(mask), -1).sum(axis=1)


def _top_counts(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool[M, n], the `counts[m]` highest scores of each row; ties go to the first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, np.arange(scores.shape[1])[None] < counts[:, None], axis=1)
    return mask
