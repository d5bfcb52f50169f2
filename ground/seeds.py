"""Where chance comes from: a tree of keys with one branch for every purpose, so that no two ever draw the same.

Training takes the branches 0 to 3 of each seed, everything that measures a branch of its own; `tests/test_seeds.py`
holds that nothing else makes keys. Every key names its generator, so that no setting of JAX's default changes a draw.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

GENERATOR = "threefry2x32"
TRAINED = {"pretrain": 0, "rl": 1, "init": 2, "sft": 3}
"""Branches from which training draws; "init" draws the parameters."""
HELD = {
    "evaluation": 0x5EED,
    "inference": 0x1DE4,
    "pass-at-k": 0x9A55,
    "divergence": 0xD1FF,
    "concepts": 0xC04CE,
    "steering": 0x57EE,
    "recruitment": 0x4EC4,
    "thoughts": 0x7406,
    "ledger": 0x1ED6E4,
    "tokens": 0x70CE,
    "inside": 0x1451DE,
    "replay": 0x4E91,
    "report": 0x4E90,
}
"""Branches from which no training draws."""
assert len({*TRAINED.values(), *HELD.values()}) == len(TRAINED) + len(HELD)


def key(seed: int | jax.Array) -> jax.Array:
    """The root of a tree of keys: of a seed of 32 bits, key[]."""
    return jax.random.key(seed, impl=GENERATOR)


def stored(data: jax.Array) -> jax.Array:
    """The key whose `jax.random.key_data` this is, key[] of uint32[2]."""
    return jax.random.wrap_key_data(data, impl=GENERATOR)


def training(seeds: Sequence[int], purpose: str, salt: int) -> jax.Array:
    """A key for each seed, key[len(seeds)]; other purposes (of `TRAINED`) and other salts give unrelated keys."""
    return jax.vmap(lambda seed: branch(key(seed), purpose, salt))(jnp.array(seeds, jnp.int32))


def branch(root: jax.Array, purpose: str, salt: int) -> jax.Array:
    """The key, key[], that training has for a purpose where its seed has the key `root`, as `training` says."""
    return jax.random.fold_in(jax.random.fold_in(root, TRAINED[purpose]), salt)


def held_out(purpose: str, seed: int = 0) -> jax.Array:
    """The key of something that measures (of `HELD`); whatever the seed, no training has it."""
    return jax.random.fold_in(key(seed), HELD[purpose])
