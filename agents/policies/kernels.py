"""The two operations that decide the transformer's speed, features first, with gradients written down.

Arrays are [features, B, S]: positions lie side by side in memory, so that norms and rotations run over whole vector
registers and every product of the backward pass meets its operands the way round that a CPU multiplies fastest. What
the compiler derives by itself is 1.3 to 1.6 times slower there (`docs/performance.md`), and no faster elsewhere.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64
"""Queries of one block of `causal_attention`."""


@jax.custom_vjp
def dense(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """A linear layer.

    Args:
        kernel: [I, O].
        x: [I, B, S], of the kernel's dtype.

    Returns:
        [O, B, S].
    """
    return jax.lax.dot_general(kernel, x, (((0,), (0,)), ((), ())))


def _dense_forward(kernel, x):
    return dense(kernel, x), (kernel, x)


def _dense_backward(saved, gradient):
    kernel, x = saved
    flat_x, flat_gradient = (array.reshape(len(array), -1) for array in (x, gradient))
    by_kernel = jax.lax.dot_general(flat_x, flat_gradient, (((1,), (1,)), ((), ())))
    return by_kernel, jax.lax.dot_general(kernel, gradient, (((1,), (0,)), ((), ())))


dense.defvjp(_dense_forward, _dense_backward)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _spans(positions: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Blocks of queries: first, last plus one, and how many keys they meet; a short rest joins the block before."""
    starts = [*range(0, max(len(positions) - BLOCK // 2, 1), BLOCK), len(positions)]
    return [(first, last, positions[last - 1] + 1) for first, last in itertools.pairwise(starts)]


def causal_attention(positions: tuple[int, ...], query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of positions of whole sequences, each to itself and those before it.

    Blocks of queries meet only the keys that they may see. Weights are kept unnormalised for the backward pass, and
    the normaliser is applied to what they mix, which is smaller. Products accumulate in float32.

    Args:
        positions: of the queries, increasing.
        query: [B, heads, D, positions], scaled by D^-1/2.
        key: [B, heads, D, S].
        value: [B, heads, D, S].

    Returns:
        [B, heads, D, positions], of the dtype of `value`.
    """
    return _attention(positions, query, key, value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(positions, query, key, value):
    return _attention_forward(positions, query, key, value)[0]


def _attention_forward(positions, query, key, value):
    turned = jnp.swapaxes(query, 2, 3)
    mixed, weights, shares = [], [], []
    for first, last, keys in _spans(positions):
        scores = _einsum("bhqd,bhdk->bhqk", turned[:, :, first:last], key[..., :keys])
        visible = np.arange(keys)[None] <= np.array(positions[first:last])[:, None]
        scores = jnp.where(visible[None, None], scores, -1e30)
        block = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        share = 1 / block.sum(axis=-1)
        block = block.astype(value.dtype)
        mixed.append(_einsum("bhdk,bhqk->bhdq", value[..., :keys], block) * share[:, :, None])
        weights.append(block)
        shares.append(share)
    result = jnp.concatenate(mixed, axis=3).astype(value.dtype)
    return result, (turned, key, value, result, tuple(weights), jnp.concatenate(shares, axis=2))


def _attention_backward(positions, saved, gradient):
    turned, key, value, result, weights, share = saved
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
        by_weight = _einsum("bhqd,bhdk->bhqk", gradient_turned[:, :, first:last], value[..., :keys])
        by_score = (block.astype(jnp.float32) * (by_weight - inner[:, :, first:last])).astype(dtype)
        by_query.append(_einsum("bhdk,bhqk->bhdq", key[..., :keys], by_score))
        to_value = _einsum("bhdq,bhqk->bhdk", gradient[..., first:last], block)
        to_key = _einsum("bhqd,bhqk->bhdk", turned[:, :, first:last], by_score)
        for i, (low, high) in enumerate(pieces[: number + 1]):
            by_value[i] = by_value[i] + to_value[..., low:high]
            by_key[i] = by_key[i] + to_key[..., low:high]

    def whole(parts):
        joined = jnp.concatenate(parts, axis=3)
        unseen = length - joined.shape[3]
        return (jnp.pad(joined, [(0, 0)] * 3 + [(0, unseen)]) if unseen else joined).astype(dtype)

    return jnp.concatenate(by_query, axis=3).astype(dtype), whole(by_key), whole(by_value)


_attention.defvjp(_attention_forward, _attention_backward)


def cached_attention(query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array) -> jax.Array:
    """Attention of a few positions to a cache that already holds them.

    Args:
        query: [B, heads, D, C], scaled by D^-1/2.
        key: [B, heads, D, length], the cache; what lies beyond a query's own position is not seen.
        value: [B, heads, length, D].
        positions: of the queries, int32[C].

    Returns:
        [B, heads, D, C], of the dtype of `value`.
    """
    scores = _einsum("bhqd,bhdk->bhqk", jnp.swapaxes(query, 2, 3), key)
    visible = jnp.arange(key.shape[3])[None] <= positions[:, None]
    scores = jnp.where(visible[None, None], scores, -1e30)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    share = 1 / weights.sum(axis=-1, keepdims=True)
    mixed = _einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value) * share
    return jnp.swapaxes(mixed.astype(value.dtype), 2, 3)
