"""KL per episode: nothing for the same policy, and what log-likelihoods say on the average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.learning import rl, rollout
from analysis.measures.divergence import by_channel
from envs.labyrinth import LabyrinthOptions
from tests import tiny

LABYRINTH = LabyrinthOptions(size=2, turns=3, view="bump", plan_length=2)


@pytest.mark.slow
@pytest.mark.parametrize("world", [{}, LABYRINTH])
def test_a_divergence_is_the_mean_log_ratio_of_whole_episodes(world):
    config = tiny.changed(world=world, population={"seeds": 2})
    policy, (made, params) = config.make_policy(), config.world.make()
    keys = jax.random.split(jax.random.key(1), 2)
    now = jax.vmap(policy.init)(keys)
    then = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), now)
    nats, entropies, decisions = map(
        np.asarray, by_channel(policy, now, then, made, config.world_params(), episodes=128)
    )
    assert nats.shape == entropies.shape == decisions.shape == (2, 128, 3)
    np.testing.assert_array_equal(nats[0], 0)
    assert nats[1].sum(axis=-1).min() > 0

    one, other = (jax.tree.map(lambda x: x[1], tree) for tree in (now, then))
    played = jax.jit(lambda: rollout.policy_episodes(policy, one, made, params, jax.random.key(3), 4096))()
    plan = played.tokens[:, made.prompt_length : made.prompt_length + made.plan_length]
    chosen = [
        np.where(
            played.decided,
            rl.read_decisions(policy, x, made, played.tokens).chosen(made.said(plan), played.actions),
            0.0,
        ).astype(np.float64)
        for x in (one, other)
    ]
    channels = (slice(0, 0), slice(0, made.plan_length), slice(made.plan_length, None))
    for place, channel in enumerate(channels):
        ratios, surprise = (x[:, channel].sum(axis=1) for x in (chosen[0] - chosen[1], -chosen[0]))
        for sampled, told in (
            (ratios, nats),
            (surprise, entropies),
            (played.decided[:, channel].sum(axis=1), decisions),
        ):
            mine = told[1, :, place]
            error = np.hypot(np.std(sampled) / 64, mine.std() / np.sqrt(128))
            assert abs(np.mean(sampled) - mine.mean()) <= 4 * error
        assert (ratios.mean() > 4 * ratios.std() / 64) == (channel.stop != 0)
