"""JAX_DISABLE_JIT=1: what is looked at step by step gives what the compiled programs give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents.learning import rollout
from envs.personas import Traits
from ground import seeds
from tests import tiny


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EmojiMaze-v0", pytest.param("EmojiLabyrinth-v0", marks=pytest.mark.long)])
def test_episodes_are_played_and_shown_without_a_compiler(name):
    world, params = envs.make(name, size=5, turns=2)
    policy = tiny.CONFIG.make_policy()
    parameters = jax.jit(policy.init)(seeds.key(1))

    def played():
        own = rollout.policy_episodes(policy, parameters, world, params, seeds.key(2), 2)
        shown = policy.forward(parameters, own.tokens[:, :-1]).hidden
        _, state = world.reset_env(seeds.key(3), params)
        return own.actions, own.returns, shown, world.write_plan(seeds.key(4), jnp.int32(0), state, params, Traits())

    compiled = jax.jit(played)()
    with jax.disable_jit():
        for one, other in zip(compiled, played(), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=1e-5)
