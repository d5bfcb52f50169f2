"""Counter-based randomness: a number that is a function of seeds and counters, at a few integer operations.

A maze whose tiles are hashes of (episode, cell) needs no stored grid and no work at reset, and a gust that is a
hash of (episode, turn) needs no key per environment and step. `jax.random` stays in charge of the seeds.
"""

import jax
import jax.numpy as jnp


def mix(x: jax.Array) -> jax.Array:
    """Scramble uint32 bits: a bijection of 32-bit integers with low bias (constants: C. Wellons, lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def bits(seed: jax.Array, counter: jax.Array) -> jax.Array:
    """Random bits for each counter, uint32 of the counter's shape; `seed` is uint32[2]."""
    return mix(mix(counter.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + seed[0]) ^ seed[1])


def uniform(random_bits: jax.Array) -> jax.Array:
    """float32 in [0, 1) from the upper 24 of 32 random bits."""
    return (random_bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def key_word(key: jax.Array) -> jax.Array:
    """One uint32 out of a JAX key, typed or raw."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return mix(data[0].astype(jnp.uint32)) ^ data[-1].astype(jnp.uint32)
