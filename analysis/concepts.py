"""Concept vectors: directions of the residual stream that stand for stepping onto a Path, Gold or Mold tile.

All functions but the last two take the activations of one member and are mapped over members by the caller. Axis
names: N episodes, C = 3 classes in the order Path, Gold, Mold, L layers, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from analysis import extraction
from envs import tokens
from ground.precise import product

NULL = -0.5
"""Cosine of two of three centred class means that have nothing to do with each other: a triangle's corners.

In D dimensions of equal noise it is the correlation of D pairs, of standard deviation 0.75 / √D. Noise or signal in
few dimensions gives any value: the cosine is −1 where the stream knows Gold alone and Path and Mold are one."""

PATH_NULL = 0.5
"""The same with Path as the reference of both."""

BINS = 50
"""Bins of the histogram overlap (arXiv 2605.30232, appendix C)."""


def class_means(activations: jax.Array, classes: jax.Array) -> jax.Array:
    """Mean activation of each class, minus the grand mean of the episodes; float32[C, L, D].

    Args:
        activations: float32[N, L, D].
        classes: int32[N].
    """
    centred = activations - activations.mean(axis=0)[None]  # first, so that float32 keeps small differences
    member = jax.nn.one_hot(classes, len(extraction.CLASSES), axis=0, dtype=jnp.float32)
    return product("cn,nld->cld", member, centred) / member.sum(axis=1)[:, None, None]


def vectors(means: jax.Array) -> jax.Array:
    """Concept vectors (arXiv 2605.30232, eq. 1): a class's mean minus the mean of the other two; float32[C, L, D].

    Classes are of equal size, so that the other two count alike. The three vectors add up to zero.
    """
    others = (means.sum(axis=0)[None] - means) / (len(means) - 1)
    return means - others


def path_vectors(means: jax.Array) -> jax.Array:
    """Gold and Mold with Path as the reference (appendix C.8); float32[2, L, D]."""
    return means[tokens.GOLD :] - means[tokens.PATH][None]


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """Cosine along the last axis; 0 where a vector is 0."""
    product = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return jnp.sum(first * second, axis=-1) / jnp.maximum(product, 1e-30)


def opposition(means: jax.Array) -> jax.Array:
    """cos(v_Gold, v_Mold) by Eq. 1 and with Path as the reference; float32[2, L]. Their nulls are −0.5 and +0.5."""
    by_rest, by_path = vectors(means), path_vectors(means)
    return jnp.stack([cosine(by_rest[tokens.GOLD], by_rest[tokens.MOLD]), cosine(by_path[0], by_path[1])])


def permuted_opposition(
    activations: jax.Array, classes: jax.Array, key: jax.Array, draws: int, strata: jax.Array | None = None
) -> jax.Array:
    """`opposition` after the labels were dealt out at random; float32[draws, 2, L].

    Args:
        activations, classes: as in `class_means`.
        key: of the deals.
        draws: how many.
        strata: int32[N]; labels are dealt anew within each stratum, so that what the extraction set balances stays
            balanced: otherwise the few moves, which differ much, would be all that the null sees.
    """
    group = jnp.zeros(len(classes), jnp.int32) if strata is None else strata
    ordered = classes[jnp.argsort(group, stable=True)]

    def draw(key):
        place = jnp.lexsort((jax.random.uniform(key, (len(classes),)), group))
        dealt = jnp.zeros_like(classes).at[place].set(ordered)
        return opposition(class_means(activations, dealt))

    return jax.lax.map(draw, jax.random.split(key, draws))


def auroc(scores: jax.Array, positive: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Chance that a positive's score is above a negative's, ties counting half; NaN without both.

    Args:
        scores: float32[N].
        positive: bool[N].
        counted: bool[N], which entries take part; all by default.
    """
    counted = jnp.ones(scores.shape, bool) if counted is None else counted
    is_positive, is_negative = positive & counted, ~positive & counted
    order = jnp.sort(jnp.where(is_negative, scores, jnp.inf))
    below = jnp.searchsorted(order, scores, side="left").astype(jnp.float32)
    tied = jnp.searchsorted(order, scores, side="right").astype(jnp.float32) - below
    wins = jnp.mean(below + tied / 2, where=is_positive)
    return wins / is_negative.sum().astype(jnp.float32)


def cohens_d(scores: jax.Array, positive: jax.Array, counted: jax.Array | None = None) -> jax.Array:
    """Difference of the means of positives and negatives over their pooled standard deviation; NaN without both."""
    counted = jnp.ones(scores.shape, bool) if counted is None else counted
    groups = (positive & counted, ~positive & counted)
    numbers = [group.sum().astype(jnp.float32) for group in groups]
    means = [jnp.mean(scores, where=group) for group in groups]
    squares = [jnp.sum(jnp.square(scores - mean), where=group) for group, mean in zip(groups, means, strict=True)]
    pooled = jnp.sqrt((squares[0] + squares[1]) / (numbers[0] + numbers[1] - 2))
    return (means[0] - means[1]) / jnp.maximum(pooled, 1e-30)


def overlap(scores: jax.Array, positive: jax.Array) -> jax.Array:
    """Shared area of the histograms of positives and negatives, 0 to 1, in `BINS` equal bins over their range."""
    low, high = scores.min(), scores.max()
    place = jnp.floor((scores - low) / jnp.maximum(high - low, 1e-30) * BINS).astype(jnp.int32)
    bins = jax.nn.one_hot(jnp.clip(place, 0, BINS - 1), BINS, dtype=jnp.float32)
    shares = [product("nb,n->b", bins, group.astype(jnp.float32)) for group in (positive, ~positive)]
    return jnp.minimum(*(share / share.sum() for share in shares)).sum()


def rule_layer(auroc: jax.Array, d: jax.Array, overlap: jax.Array) -> jax.Array:
    """Index of the layer that the paper's rule chooses, int32[...]; each argument is float32[..., L].

    floor(mean(argmax AUROC, argmax |d|, argmin overlap)), on held-out episodes (appendix C).
    """
    best = (jnp.argmax(auroc, axis=-1), jnp.argmax(jnp.abs(d), axis=-1), jnp.argmin(overlap, axis=-1))
    return (best[0] + best[1] + best[2]) // 3


@struct.dataclass
class Concepts:
    """What the extraction finds in one member; with a leading axis M, in a population."""

    centre: jax.Array
    """float32[L, D], grand mean of the activations."""
    means: jax.Array
    """float32[C, L, D], class means minus the grand mean."""
    vectors: jax.Array
    """float32[C, L, D]"""
    opposition: jax.Array
    """float32[2, L], cos(v_Gold, v_Mold) by Eq. 1 and with Path as the reference."""
    permuted: jax.Array
    """float32[draws, 2, L], the same with permuted labels."""
    auroc: jax.Array
    """float32[C, L], class against the rest on held-out episodes, by the cosine to the class's vector."""
    d: jax.Array
    """float32[C, L], Cohen's d of the same."""
    overlap: jax.Array
    """float32[C, L], histogram overlap of the same."""
    layer: jax.Array
    """int32[C], index of the layer that the rule chooses."""

    @property
    def axis_layer(self) -> jax.Array:
        """int32[...], the layer for what concerns Gold and Mold alike: half-way between the rule's two."""
        return (self.layer[..., tokens.GOLD] + self.layer[..., tokens.MOLD]) // 2


def measure(
    activations: jax.Array,
    classes: jax.Array,
    held_out: jax.Array,
    held_out_classes: jax.Array,
    key: jax.Array,
    permutations: int = 200,
    strata: jax.Array | None = None,
) -> Concepts:
    """Vectors from one set of activations float32[N, L, D], and how well they tell the classes of another apart."""
    means = class_means(activations, classes)
    found = vectors(means)
    scores = cosine(held_out[None], found[:, None])  # [C, N, L]

    def separate(score, own):
        of_layer = jax.vmap(lambda x: (auroc(x, own), cohens_d(x, own), overlap(x, own)), in_axes=1)
        return of_layer(score)

    own = held_out_classes[None] == jnp.arange(len(found))[:, None]
    area, d, shared = jax.vmap(separate)(scores, own)
    return Concepts(
        centre=activations.mean(axis=0),
        means=means,
        vectors=found,
        opposition=opposition(means),
        permuted=permuted_opposition(activations, classes, key, permutations, strata),
        auroc=area,
        d=d,
        overlap=shared,
        layer=rule_layer(area, d, shared),
    )


def coordinate(activations: jax.Array, found: Concepts) -> jax.Array:
    """Where activations [..., L, D] stand between Mold and Gold: −1 at Mold's class mean, +1 at Gold's; [..., L].

    Path stands at 0 when it lies half-way, as it does where Mold's and Gold's means are opposite and equally long.
    """
    gold, mold = found.means[tokens.GOLD], found.means[tokens.MOLD]
    axis = gold - mold
    from_middle = activations - jnp.broadcast_to(found.centre + (gold + mold) / 2, activations.shape)
    unit = 2 * axis / jnp.maximum(jnp.square(axis).sum(axis=-1, keepdims=True), 1e-30)
    return product("...ld,ld->...l", from_middle, unit)


def at(values: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Values [M, ..., L] at each member's layer, indices int[M], or [M, C, L] at each class's, int[M, C]; [M, ...]."""
    index = layers.reshape(*layers.shape, *(1 for _ in range(values.ndim - layers.ndim)))
    return np.take_along_axis(values, index, axis=-1)[..., 0]


def agreement(axes: np.ndarray, tile_maps: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Mean cosine of each member's axis with those of members that know the same emoji, and others; float64[M, 2].

    An axis that is an emoji's own turns with the tile map: over all orders of three emoji its mean cosine with the
    others is −1/5.

    Args:
        axes: float[M, D].
        tile_maps: int[M, 5].
        units: int[M], equal for exact twins, which are not compared. NaN where there is nobody to compare with.
    """
    axes = axes.astype(np.float64)
    axes /= np.maximum(np.linalg.norm(axes, axis=-1, keepdims=True), 1e-30)
    same = (tile_maps[:, None] == tile_maps[None]).all(axis=-1)
    others = units[:, None] != units[None]
    kinds = np.stack([same & others, ~same & others])
    count = kinds.sum(axis=-1)
    return np.where(count > 0, (kinds * np.matmul(axes, axes.T)).sum(axis=-1) / np.maximum(count, 1), np.nan).T
