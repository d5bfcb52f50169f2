"""The transformer policy: decoder-only, RMSNorm, rotary positions, squared ReLU, tied embedding, a value head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agents.policies import base, kernels
from agents.policies.base import PolicyConfig


@dataclasses.dataclass(frozen=True)
class Positions(base.Positions):
    """Positions with their rotary angles."""

    angles: tuple[jax.Array, jax.Array] = dataclasses.field(kw_only=True)
    """Cosines and sines float32[width / heads / 2, length]."""

    def rotate(self, x: jax.Array, tokens: np.ndarray | None = None) -> jax.Array:
        """Rotate the two halves of each head [heads, D, B, C] by their positions; `tokens` tells which they are."""
        cosine, sine = (part if tokens is None else part[:, tokens] for part in self.angles)
        cosine = jnp.stack([cosine, cosine])[None, :, :, None].astype(x.dtype)
        sine = jnp.stack([-sine, sine])[None, :, :, None].astype(x.dtype)
        halves = x.reshape(x.shape[0], 2, -1, *x.shape[2:])
        return (halves * cosine + jnp.flip(halves, axis=1) * sine).reshape(x.shape)


class Attention(nnx.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, config: PolicyConfig, rngs: nnx.Rngs):
        linear = base.linear(config, rngs)
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width, gain=(2 * config.layers) ** -0.5)
        self.heads, self.precision = config.heads, config.precision

    def __call__(self, x: jax.Array, positions: Positions, cache):
        width, batch, _ = x.shape
        kernel, parts = self.qkv.kernel[...], 3
        query = x
        if positions.wanted is not None:
            query = kernels.dense(kernel[:, :width], x[..., positions.wanted], self.precision)
            kernel, parts = kernel[:, width:], 2
        *ahead, key, value = kernels.dense(kernel, x, self.precision).reshape(
            parts, self.heads, width // self.heads, batch, -1
        )
        query = ahead[0] if ahead else query.reshape(self.heads, width // self.heads, batch, -1)
        query = positions.rotate(query, positions.wanted) * (width // self.heads) ** -0.5
        query, key, value = (jnp.moveaxis(part, 2, 0) for part in (query, positions.rotate(key), value))
        if cache is None:
            mixed = kernels.causal_attention(
                positions.static, query, key, value, self.precision, sparing=positions.sparing
            )
        elif isinstance(start := positions.start, int) and len(cache) == 2:
            # Known when compiling, and so are the keys that each may see.
            key = jnp.concatenate([cache[0][..., :start], key], axis=3)
            value = jnp.concatenate([jnp.swapaxes(cache[1][:, :, :start], 2, 3), value], axis=3)
            at = tuple(start + token for token in positions.static)
            mixed = kernels.causal_attention(at, query, key, value, self.precision, sparing=positions.sparing)
            room = [(0, 0), (0, max(cache[0].shape[3] - key.shape[3], 0))]  # a cache that is too short grows
            cache = (
                jnp.pad(key, [(0, 0), (0, 0), *room]),
                jnp.pad(jnp.swapaxes(value, 2, 3), [(0, 0), (0, 0), *room[::-1]]),
            )
        else:
            own, shared = cache[:2], cache[2:]
            begun = shared[0].shape[3] if shared else 0
            starts = ((0, 0, 0, start - begun), (0, 0, start - begun, 0))
            own = tuple(
                jax.lax.dynamic_update_slice(old, part.astype(old.dtype), at)
                for old, part, at in zip(own, (key, jnp.swapaxes(value, 2, 3)), starts, strict=True)
            )
            mixed = kernels.cached_attention(query, own[0], own[1], positions.now - begun, self.precision, shared)
            cache = (*own, *shared)
        return base.dense(self.out, jnp.moveaxis(mixed, 0, 2).reshape(width, batch, -1)), cache


class Block(nnx.Module):
    """Attention and an MLP, each on a normalised view of the residual stream."""

    def __init__(self, config: PolicyConfig, rngs: nnx.Rngs):
        linear = base.linear(config, rngs)
        self.attention_norm = base.norm(config, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = base.norm(config, rngs)
        self.up = linear(config.width, config.hidden)
        self.down = linear(config.hidden, config.width, gain=(2 * config.layers) ** -0.5)

    def __call__(self, x: jax.Array, positions: Positions, cache):
        mixed, cache = self.attention(base.normalise(self.attention_norm, x), positions, cache)
        x = positions.only(x) + mixed
        hidden = base.dense(self.up, base.normalise(self.mlp_norm, x))
        return x + base.dense(self.down, jnp.square(jax.nn.relu(hidden))), cache


@dataclasses.dataclass(frozen=True)
class Transformer(base.Policy):
    """The family `transformer`.

    Its cache holds, for each block, keys [B, heads, width / heads, length] and values [B, heads, length,
    width / heads]. After `fork` there are those of what is shared, too, with the group as axis 0, and B sequences have
    the others.
    """

    def block(self, rngs: nnx.Rngs) -> Block:
        return Block(self.config, rngs)

    def empty_memories(self, batch: int, length: int) -> tuple[tuple[jax.Array, ...], ...]:
        config = self.config
        shapes = ((config.width // config.heads, length), (length, config.width // config.heads))

        def empty() -> tuple[jax.Array, ...]:
            return tuple(jnp.zeros((batch, config.heads, *shape), config.compute_dtype) for shape in shapes)

        return tuple(empty() for _ in range(config.layers))

    def fork(self, cache: base.Cache, times: int, start: int) -> base.Cache:
        def block(key, value):
            batch, heads, width, length = key.shape
            own = ((width, length - start), (length - start, width))
            empty = (jnp.zeros((batch * times, heads, *shape), key.dtype) for shape in own)
            return (*empty, key[..., :start], value[:, :, :start])

        if start == 0:
            return super().fork(cache, times, start)
        return base.Cache(tuple(block(*memory) for memory in cache.layers), base.in_a_row(cache.recent, times))

    def positions(self, start: jax.Array | int, length: int) -> Positions:
        angles = _angles(start + jnp.arange(length), self.config.width // self.config.heads)
        return Positions(start, length, sparing=self.sparing, angles=angles)


def _angles(positions: jax.Array, head_width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32[head_width / 2, S] of the rotary angles (arXiv 2104.09864, base 10,000)."""
    frequencies = 10_000.0 ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = jnp.outer(frequencies, positions.astype(jnp.float32))
    return jnp.cos(angles), jnp.sin(angles)
