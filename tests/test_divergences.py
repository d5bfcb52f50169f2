"""KL per episode: nothing for the same policy, and what log-likelihoods say on the average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import rl, rollout
from analysis.measures.divergence import per_episode
from envs.labyrinth import LabyrinthOptions
from tests import tiny

LABYRINTH = LabyrinthOptions(size=2, turns=3, view="bump", plan_length=2)


@pytest.mark.parametrize("world", [pytest.param({}, marks=pytest.mark.slow), LABYRINTH])
def test_a_divergence_is_the_mean_log_ratio_of_whole_episodes(world):
    config = tiny.changed(world=world, population={"seeds": 2})
    policy, (made, params) = config.make_policy(), config.world.make()
    keys = jax.random.split(jax.random.key(1), 2)
    now = jax.vmap(policy.init)(keys)
    then = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), now)
    found = np.asarray(per_episode(policy, now, then, made, config.world_params(), episodes=128))
    assert found.shape == (2, 128)
    np.testing.assert_array_equal(found[0], 0)
    assert found[1].min() > 0

    one, other = (jax.tree.map(lambda x: x[1], tree) for tree in (now, then))
    played = jax.jit(lambda: rollout.policy_episodes(policy, one, made, params, jax.random.key(3), 4096))()
    plan = played.tokens[:, made.prompt_length : made.prompt_length + made.plan_length]
    logs = [
        jnp.sum(
            rl.read_decisions(policy, x, made, played.tokens).chosen(made.said(plan), played.actions),
            axis=-1,
            where=played.decided,
        )
        for x in (one, other)
    ]
    ratios = np.asarray(logs[0] - logs[1], np.float64)
    error = np.hypot(ratios.std() / 64, found[1].std() / np.sqrt(128))
    assert abs(ratios.mean() - found[1].mean()) < 4 * error
    assert ratios.mean() > 4 * error
