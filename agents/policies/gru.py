"""The GRU policy: what it remembers of the tokens read is one vector per block (arXiv 1406.1078v1, section 2.3).

A block reads a normalised view of the residual stream, advances its recurrent state token by token, and adds a
projection of the state to the stream. The state is kept in float32, for rounding would add up over an episode.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from agents.policies import base, kernels
from agents.policies.base import PolicyConfig, Positions

SPAN = 128
"""Tokens that the slowest units remember at first, about an episode."""

UNROLLED = 8
"""A chunk of so many tokens is compiled token after token, which plays twice as fast; a longer sequence is a loop."""


class Block(nnx.Module):
    """A gated recurrent unit on a normalised view of the residual stream.

    The reset gate acts on the product with the recurrent matrix, as in version 1 of the paper and in cuDNN, so that a
    token costs one product. The recurrent matrices are block-diagonal (as in arXiv 2301.04104): `heads` groups of K
    units, each with a matrix [K, 3 K] of reset gate, update gate and candidate. They stand side by side in
    `recurrent` [K, 3 hidden], and `given` [width, 3 hidden] has the same columns.
    """

    def __init__(self, config: PolicyConfig, rngs: nnx.Rngs):
        linear = base.linear(config, rngs)
        self.heads, self.precision = config.heads, config.precision
        self.given_norm = base.norm(config, rngs)
        self.given = linear(config.width, 3 * config.hidden, bias=self._bias)
        self.recurrent = linear(config.hidden // config.heads, 3 * config.hidden)
        self.out = linear(config.hidden, config.width, gain=config.layers**-0.5)

    def __call__(self, x: jax.Array, positions: Positions, cache):
        _, batch, length = x.shape
        assert self.given.bias is not None
        bias = self.given.bias[...].astype(jnp.float32)[None, None]
        # Rows of features, token by token: the loop slices them, and nothing as wide as three gates is ever turned.
        rows = jnp.transpose(base.normalise(self.given_norm, x), (2, 1, 0))
        given = kernels.dense_rows(self.given.kernel[...], rows, self.precision).astype(jnp.float32) + bias
        given = given.astype(x.dtype).reshape(length, batch, self.heads, -1)
        kernel = self.recurrent.kernel[...].astype(jnp.float32)  # which its gradient is summed in, token by token
        kernel = jnp.moveaxis(kernel.reshape(len(kernel), self.heads, -1), 1, 0)
        state = jnp.zeros((self.heads, batch, kernel.shape[1]), jnp.float32)
        if cache is not None:  # what a cache holds before the first token means nothing
            before = jnp.moveaxis(cache[0].reshape(batch, self.heads, -1), 1, 0)
            state = jnp.where(positions.start == 0, state, before)

        def step(state, given):
            after = advance(kernel.astype(x.dtype), state, jnp.moveaxis(given, 1, 0), self.precision)
            return after, jnp.moveaxis(after, 0, 1).reshape(batch, -1).astype(x.dtype)

        last, states = jax.lax.scan(step, state, given, unroll=length if length <= UNROLLED else 1)
        states = states if positions.wanted is None else states[positions.wanted]
        moved = kernels.dense_rows(self.out.kernel[...], states, self.precision)
        x = positions.only(x) + jnp.transpose(moved, (2, 1, 0))
        return x, None if cache is None else (jnp.moveaxis(last, 0, 1).reshape(batch, -1),)

    def _bias(self, key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        """Zero but for the update gate's: units forget at rates spread evenly, on a log scale, from 1/2 to 1 / `SPAN`.

        After the chrono initialisation of arXiv 1804.11188, section 2, which spreads the spans themselves evenly and
        so has few quick units.
        """
        groups = jnp.zeros((self.heads, 3, shape[0] // (3 * self.heads)), jnp.float32)
        slow = jax.random.uniform(key, groups[:, 1].shape, jnp.float32, 0.0, math.log(SPAN - 1))
        return groups.at[:, 1].set(slow).reshape(shape).astype(dtype)


def advance(kernel: jax.Array, state: jax.Array, given: jax.Array, precision: jax.lax.PrecisionLike) -> jax.Array:
    """One token of a gated recurrent unit in groups.

    Args:
        kernel: recurrent matrices [groups, K, 3 K]: of the reset gate, the update gate and the candidate.
        state: float32[groups, B, K].
        given: [groups, B, 3 K], what the token brings to the same three, bias included; of the kernel's dtype.
        precision: of products of float32.

    Returns:
        The state after the token, float32[groups, B, K].
    """
    past = jax.lax.dot_general(state.astype(kernel.dtype), kernel, (((2,), (1,)), ((0,), (0,))), precision, jnp.float32)
    (reset, update, new), (past_reset, past_update, past_new) = (
        jnp.split(part.astype(jnp.float32), 3, axis=-1) for part in (given, past)
    )
    keep = jax.nn.sigmoid(update + past_update)
    candidate = jnp.tanh(new + jax.nn.sigmoid(reset + past_reset) * past_new)
    return candidate + keep * (state - candidate)


@dataclasses.dataclass(frozen=True)
class GRU(base.Policy):
    """The family `gru`. Its cache holds, for each block, the state float32[B, hidden] after the tokens read so far.

    So a sequence is read on from where its cache stands, or from its first token; nowhere else.
    """

    def block(self, rngs: nnx.Rngs) -> Block:
        return Block(self.config, rngs)

    def empty_memories(self, batch: int, length: int) -> tuple[tuple[jax.Array, ...], ...]:
        """Those for `batch` sequences; their `length` makes no difference."""
        del length
        shape = (batch, self.config.hidden)
        return tuple((jnp.zeros(shape, jnp.float32),) for _ in range(self.config.layers))
