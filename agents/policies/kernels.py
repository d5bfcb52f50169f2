"""The operations of a policy whose gradients are written down, for their speed or their precision.

Arrays are mostly [features, B, S]: positions lie side by side in memory, so that norms and rotations run over whole
vector registers and every product of the backward pass meets its operands the way round that a CPU multiplies fastest.
What the compiler derives by itself is 1.3 to 1.6 times slower there (`docs/performance.md`), and no faster elsewhere.

What is summed over episodes and tokens is summed in float32, whatever is multiplied: a weight receives tens of
thousands of summands, and bfloat16 loses small ones against a large sum. `precision` says how float32 numbers are
multiplied; see `PolicyConfig.matrix_precision`.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import PrecisionLike

BLOCK = 64
"""Queries of one block of `causal_attention`."""


def dense(kernel: jax.Array, x: jax.Array, precision: PrecisionLike) -> jax.Array:
    """A linear layer of features first.

    Args:
        kernel: [I, O], as it is stored; multiplied in the dtype of `x`, and so is its gradient, but for its sum.
        x: [I, B, S].
        precision: of products of float32.

    Returns:
        [O, B, S], of the dtype of `x`.
    """
    return _dense(precision, kernel, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(precision, kernel, x):
    return _product(kernel.astype(x.dtype), x, ((0,), (0,)), precision)


def _dense_forward(precision, kernel, x):
    return _dense(precision, kernel, x), (kernel, x)


def _dense_backward(precision, saved, gradient):
    kernel, x = saved
    flat_x, flat_gradient = (array.reshape(len(array), -1) for array in (x, gradient))
    by_kernel = _product(flat_x, flat_gradient, ((1,), (1,)), precision, jnp.float32)
    return by_kernel.astype(kernel.dtype), _product(kernel.astype(x.dtype), gradient, ((1,), (0,)), precision)


_dense.defvjp(_dense_forward, _dense_backward)


def dense_rows(kernel: jax.Array, x: jax.Array, precision: PrecisionLike) -> jax.Array:
    """`dense` of features last: kernel [I, O], x [S, B, I] → [S, B, O]."""
    return _dense_rows(precision, kernel, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense_rows(precision, kernel, x):
    return _product(x, kernel.astype(x.dtype), ((2,), (0,)), precision)


def _dense_rows_forward(precision, kernel, x):
    return _dense_rows(precision, kernel, x), (kernel, x)


def _dense_rows_backward(precision, saved, gradient):
    kernel, x = saved
    flat_gradient, flat_x = (array.reshape(-1, array.shape[-1]) for array in (gradient, x))
    by_kernel = _product(flat_gradient, flat_x, ((0,), (0,)), precision, jnp.float32)
    return by_kernel.T.astype(kernel.dtype), _product(gradient, kernel.astype(x.dtype), ((2,), (1,)), precision)


_dense_rows.defvjp(_dense_rows_forward, _dense_rows_backward)


def _product(a, b, axes, precision, dtype=None):
    return jax.lax.dot_general(a, b, (axes, ((), ())), precision=precision, preferred_element_type=dtype)


def embed(table: jax.Array, tokens: jax.Array, dtype: str, precision: PrecisionLike) -> jax.Array:
    """Rows of a table [V, width], as it is stored, for tokens int32[B, S]: [B, S, width] of the dtype of that name."""
    return _embed(dtype, precision, table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _embed(dtype, precision, table, tokens):
    del precision
    return jnp.take(table.astype(dtype), tokens, axis=0)


def _embed_forward(dtype, precision, table, tokens):
    return _embed(dtype, precision, table, tokens), (table, tokens)


def _embed_backward(dtype, precision, saved, gradient):
    del dtype
    table, tokens = saved
    # A GPU scatters with atomic additions: they wait for one another where a few tokens get all, and have no order.
    total = jax.lax.platform_dependent(
        tokens,
        gradient,
        cpu=functools.partial(rows_scattered, len(table)),
        default=functools.partial(rows_multiplied, len(table), precision=precision),
    )
    return total.astype(table.dtype), None


_embed.defvjp(_embed_forward, _embed_backward)


def rows_scattered(rows: int, tokens: jax.Array, gradient: jax.Array) -> jax.Array:
    """Sum of the gradients [B, S, width] of each of so many rows that tokens int32[B, S] name, float32[rows, width]."""
    zero = jnp.zeros((rows, gradient.shape[-1]), jnp.float32)
    return zero.at[tokens].add(gradient.astype(jnp.float32))


def rows_multiplied(rows: int, tokens: jax.Array, gradient: jax.Array, precision: PrecisionLike) -> jax.Array:
    """The same as one product."""
    chosen = jax.nn.one_hot(tokens.reshape(-1), rows, dtype=gradient.dtype)
    return _product(chosen, gradient.reshape(-1, gradient.shape[-1]), ((0,), (0,)), precision, jnp.float32)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _spans(positions: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Blocks of queries: first, last plus one, and how many keys they meet; a short rest joins the block before."""
    starts = [*range(0, max(len(positions) - BLOCK // 2, 1), BLOCK), len(positions)]
    return [(first, last, positions[last - 1] + 1) for first, last in itertools.pairwise(starts)]


def causal_attention(
    positions: tuple[int, ...],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    precision: PrecisionLike,
    *,
    sparing: bool = False,
) -> jax.Array:
    """Attention of positions of whole sequences, each to itself and those before it.

    Blocks of queries meet only the keys that they may see. Weights are unnormalised, and the normaliser is applied to
    what they mix, which is smaller. Products accumulate in float32.

    Args:
        positions: of the queries, increasing.
        query: [B, heads, D, positions], scaled by D^-1/2.
        key: [B, heads, D, S].
        value: [B, heads, D, S].
        precision: of products of float32.
        sparing: keep no weights [B, heads, positions, S] for the backward pass, which makes them again, block by block.

    Returns:
        [B, heads, D, positions], of the dtype of `value`.
    """
    return _attention(positions, precision, sparing, query, key, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(positions, precision, sparing, query, key, value):
    return _attention_forward(positions, precision, sparing, query, key, value)[0]


def _scores(positions, precision, turned, key, first, last, keys):
    """What the queries of a block give to the keys that they meet, before the softmax: float32[B, heads, Q, keys]."""
    scores = _einsum("bhqd,bhdk->bhqk", turned[:, :, first:last], key[..., :keys], precision=precision)
    visible = np.arange(keys)[None] <= np.array(positions[first:last])[:, None]
    return jnp.where(visible[None, None], scores, -1e30)


def _attention_forward(positions, precision, sparing, query, key, value):
    product = functools.partial(_einsum, precision=precision)
    turned = jnp.swapaxes(query, 2, 3)
    mixed, weights, shares = [], [], []
    for first, last, keys in _spans(positions):
        scores = _scores(positions, precision, turned, key, first, last, keys)
        most = scores.max(axis=-1, keepdims=True)
        block = jnp.exp(scores - most)
        share = 1 / block.sum(axis=-1)
        block = block.astype(value.dtype)
        mixed.append(product("bhdk,bhqk->bhdq", value[..., :keys], block) * share[:, :, None])
        weights.append(most if sparing else block)
        shares.append(share)
    result = jnp.concatenate(mixed, axis=3).astype(value.dtype)
    return result, (turned, key, value, result, tuple(weights), jnp.concatenate(shares, axis=2))


def _attention_backward(positions, precision, sparing, saved, gradient):
    product = functools.partial(_einsum, precision=precision)
    turned, key, value, result, weights, share = saved
    if sparing:  # or the compiler would find them the same as in the forward pass, and keep them after all
        turned, key = jax.lax.optimization_barrier((turned, key))
    dtype, length = value.dtype, key.shape[3]
    gradient = gradient.astype(jnp.float32) * share[:, :, None]
    inner = (gradient * result.astype(jnp.float32)).sum(axis=2)[..., None]
    gradient = gradient.astype(dtype)
    gradient_turned = jnp.swapaxes(gradient, 2, 3)
    spans = _spans(positions)
    pieces = list(itertools.pairwise([0, *(keys for _, _, keys in spans)]))
    by_query: list[jax.Array] = []
    by_key: list[Any] = [0.0] * len(spans)
    by_value: list[Any] = [0.0] * len(spans)
    for number, ((first, last, keys), block) in enumerate(zip(spans, weights, strict=True)):
        if sparing:
            scores = _scores(positions, precision, turned, key, first, last, keys)
            block = jnp.exp(scores - block).astype(dtype)
        by_weight = product("bhqd,bhdk->bhqk", gradient_turned[:, :, first:last], value[..., :keys])
        by_score = (block.astype(jnp.float32) * (by_weight - inner[:, :, first:last])).astype(dtype)
        by_query.append(product("bhdk,bhqk->bhdq", key[..., :keys], by_score))
        to_value = product("bhdq,bhqk->bhdk", gradient[..., first:last], block)
        to_key = product("bhqd,bhqk->bhdk", turned[:, :, first:last], by_score)
        for i, (low, high) in enumerate(pieces[: number + 1]):
            by_value[i] = by_value[i] + to_value[..., low:high]
            by_key[i] = by_key[i] + to_key[..., low:high]

    def whole(parts):
        joined = jnp.concatenate(parts, axis=3)
        unseen = length - joined.shape[3]
        return (jnp.pad(joined, [(0, 0)] * 3 + [(0, unseen)]) if unseen else joined).astype(dtype)

    return jnp.concatenate(by_query, axis=3).astype(dtype), whole(by_key), whole(by_value)


_attention.defvjp(_attention_forward, _attention_backward)


def cached_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    positions: jax.Array,
    precision: PrecisionLike,
    shared: Sequence[jax.Array] = (),
) -> jax.Array:
    """Attention of a few positions to a cache that already holds them.

    Args:
        query: [B, heads, D, C], scaled by D^-1/2.
        key: [B, heads, D, length], the cache; what lies beyond a query's own position is not seen.
        value: [B, heads, length, D].
        positions: of the queries, int32[C].
        precision: of products of float32.
        shared: keys [G, heads, D, P] and values [G, heads, P, D] of what came before the cache, of each of G equal
            groups of sequences in a row; every query sees them. A group's queries meet them in one product.

    Returns:
        [B, heads, D, C], of the dtype of `value`.
    """
    product = functools.partial(_einsum, precision=precision)
    turned = jnp.swapaxes(query, 2, 3)
    scores = product("bhqd,bhdk->bhqk", turned, key)
    visible = jnp.arange(key.shape[3])[None] <= positions[:, None]
    scores = jnp.where(visible[None, None], scores, -1e30)
    highest = scores.max(axis=-1, keepdims=True)
    if not shared:
        weights = jnp.exp(scores - highest)
        share = 1 / weights.sum(axis=-1, keepdims=True)
        mixed = product("bhqk,bhkd->bhqd", weights.astype(value.dtype), value) * share
        return jnp.swapaxes(mixed.astype(value.dtype), 2, 3)
    (batch, heads, count, _), groups = turned.shape, len(shared[0])

    def together(x):  # [B, heads, C, X] → [G, heads, B / G * C, X]
        return jnp.swapaxes(x.reshape(groups, -1, heads, count, x.shape[-1]), 1, 2).reshape(
            groups, heads, -1, x.shape[-1]
        )

    def apart(x):
        return jnp.swapaxes(x.reshape(groups, heads, -1, count, x.shape[-1]), 1, 2).reshape(batch, heads, count, -1)

    before = product("ghqd,ghdk->ghqk", together(turned), shared[0])
    highest = jnp.maximum(highest, apart(before.max(axis=-1, keepdims=True)))
    weights, earlier = jnp.exp(scores - highest), jnp.exp(before - together(highest))
    total = weights.sum(axis=-1, keepdims=True) + apart(earlier.sum(axis=-1, keepdims=True))
    mixed = product("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
    mixed += apart(product("ghqk,ghkd->ghqd", earlier.astype(value.dtype), shared[1]))
    return jnp.swapaxes((mixed / total).astype(value.dtype), 2, 3)
