"""The exact optimum for tabled personas: against the world, and against samples.

`test_selection` compares the recursion itself with a list of all episodes, `test_worked_numbers` with arrival times.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import envs
from analysis import selection, tilting
from envs.labyrinth import LabyrinthOptions
from envs.personas import Traits
from tests import tabular

PRIOR = np.full(3, 1 / 3)


def test_a_table_is_the_world_played():
    """States, rewards and probabilities along random walks, in mazes with Mold, exploits and a cost of turns."""
    world, params = envs.make("EmojiLabyrinth-v0", size=3, turns=30, turn_reward=-0.05, mold=0.3, exploits=2)
    traits = Traits(skill=0.7, slip=0.1)
    actions = np.random.default_rng(0).integers(0, 4, (4, 30))

    def turn(state, action):
        forgetful = state.replace(heading=jnp.int32(-1), met=jnp.int8(0))
        chances = [
            world.persona_log_probabilities(x, jnp.zeros(0, jnp.int32), params, traits) for x in (state, forgetful)
        ]
        _, after, reward, _, _ = world.step_env(jax.random.key(0), state, action, params)
        return after, (*chances, reward)

    @jax.jit
    @jax.vmap
    def play(key, actions):
        _, state = world.reset(key, params)
        return state, jax.lax.scan(turn, state, actions)[1]

    states, played = play(jax.random.split(jax.random.key(0), 4), jnp.asarray(actions))
    *chances, rewards = (np.asarray(x) for x in played)
    for memory, expected in zip((True, False), chances, strict=True):
        table = tabular.travellers(world, states, params, traits, memory=memory)
        np.testing.assert_allclose(np.exp(table.log_policies).sum(axis=-1), 1, atol=1e-14)
        for maze in range(4):
            state = table.starts[maze]
            for time, action in enumerate(actions[maze]):
                np.testing.assert_allclose(table.log_policies[maze, :, state], expected[maze, time], atol=1e-5)
                assert table.rewards[maze, state, action] == pytest.approx(rewards[maze, time])
                state = table.following[maze, state, action]
    assert len(np.unique(rewards.round(3))) >= 4
    assert np.abs(np.subtract(*chances)).max() > 0.1
    with pytest.raises(ValueError, match="style_rewards"):
        tabular.travellers(world, states, params.replace(style_rewards=jnp.array([0.0, 1, 0])), traits)


class Played:
    """Episodes of the tilt in every maze: a persona by w*, then its tilted table, turn by turn."""

    def __init__(self, table, scale, episodes, seed=0):
        generator, mazes = np.random.default_rng(seed), len(table.starts)
        steps = [step[0] for step in tabular.backwards(table, scale)][::-1]
        weights = tabular.tilt(table, scale).weights(PRIOR)
        shape = (mazes, episodes)
        speaker = np.stack([generator.choice(3, episodes, p=w) for w in weights])
        maze, state = np.arange(mazes)[:, None], np.broadcast_to(table.starts[:, None], shape)
        tilted, self.personas = np.zeros((*shape, 3)), np.zeros((*shape, 3))
        self.rewards = np.zeros(shape)
        for step in steps:
            chances = np.exp(step[maze, speaker, state])
            action = (generator.random((*shape, 1)) > np.cumsum(chances, axis=-1)[..., :-1]).sum(axis=-1)
            tilted += step[maze, :, state, action]
            self.personas += table.log_policies[maze, :, state, action]
            self.rewards += table.rewards[maze, state, action]
            state = table.following[maze, state, action]
        self.policy = np.logaddexp.reduce(tilted + np.log(weights)[:, None], axis=-1)


REWARDS = {"success": 0.0, "steps": -0.05}


@pytest.fixture(scope="module")
def examples():
    """For both rewards the same 40 mazes of 6×6 cells, and personas without memory or plans."""

    def example(turn_reward):
        world, params = LabyrinthOptions(size=6, turns=24, turn_reward=turn_reward).make()
        begin = jax.jit(jax.vmap(world.reset, in_axes=(0, None)))
        _, states = begin(jax.random.split(jax.random.key(1), 40), params)
        return tabular.travellers(world, states, params, Traits(skill=0.9), memory=False)

    return {name: example(turn_reward) for name, turn_reward in REWARDS.items()}


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0, 40.0])
def test_samples_find_the_exact_numbers(examples, reward, scale):
    """40 mazes, 64 episodes each: S, W, KL and G = 0 within the error of the sample."""
    table = examples[reward]
    played = Played(table, scale, 64)
    given = [jnp.asarray(x, jnp.float32) for x in (played.policy, played.personas, PRIOR)]
    found = jax.tree.map(np.asarray, split(*given, jackknife=True))
    exact = tabular.tilt(table, scale).split(PRIOR)
    # Errors of means over all episodes: of log π − log π_0, and of the influence of an episode on S.
    log_ratio = played.policy - np.logaddexp.reduce(played.personas + np.log(PRIOR), axis=-1)
    posterior = special.softmax(played.personas, axis=-1)
    influence = np.einsum("mni,mi->mn", posterior, np.log(exact.weights / PRIOR))
    errors = [4 * np.sqrt(x.var(axis=1, ddof=1).mean() / x.size) + 1e-6 for x in (log_ratio, influence)]
    assert found.divergence == pytest.approx(exact.divergence, abs=errors[0])
    # What the jackknife leaves of the bias is of the order of 1 / N².
    assert found.selection == pytest.approx(exact.selection, abs=errors[1] + 2e-3)
    assert found.within == pytest.approx(exact.within, abs=sum(errors) + 2e-3)
    assert found.selection + found.within == pytest.approx(log_ratio.mean(), abs=1e-5)
    assert max(errors) < 0.06
    np.testing.assert_allclose(found.mean_weights, exact.mean_weights, atol=0.02)
    assert played.rewards.mean() == pytest.approx(tabular.tilt(table, scale).rewards(PRIOR).mean(), abs=0.03)
    # The policy is the tilt: KL − λ E r + log Z vanishes in every episode.
    log_partition = np.log((PRIOR * np.exp(tabular.tilt(table, scale).log_partitions)).sum(axis=-1))
    np.testing.assert_allclose(log_ratio, scale * played.rewards - log_partition[:, None], atol=1e-9)


split = jax.jit(selection.split, static_argnames="jackknife")


def test_the_base_foretells_the_optimum_from_its_own_episodes(examples):
    """The estimators on episodes of the base alone, 2,000 of each of 40 mazes, against the recursion."""
    table = examples["steps"]
    played = Played(table, 0.0, 2000)
    posterior = np.exp(played.personas + np.log(PRIOR) - played.policy[..., None])
    given = [jnp.asarray(x, jnp.float32) for x in (played.rewards, posterior, PRIOR)]
    assert float(jax.jit(tilting.reward_share)(*given)) == pytest.approx(
        tabular.correlation_ratio(table, PRIOR), abs=0.02
    )
    exact = tabular.tilt(table, 3.0)
    world, _ = envs.make("EmojiLabyrinth-v0")
    sampled = jax.jit(functools.partial(tilting.match, world))(*given[:2], exact.rewards(PRIOR).mean())
    assert float(sampled.scale) == pytest.approx(3, rel=0.05)
    found = jax.tree.map(np.asarray, sampled.split)
    for name in ("divergence", "selection", "within", "choice"):
        assert getattr(found, name) == pytest.approx(getattr(exact.split(PRIOR), name), abs=0.03)
    assert float(sampled.effective.min()) > 20


def test_binary_rewards_end_at_success(examples):
    """KL saturates at E [−log p_0(success)], and every divergence grows with λ."""
    table = examples["success"]
    success = (PRIOR * tabular.tilt(table, 0.0).means).sum(axis=-1)
    tilts = [tabular.tilt(table, scale) for scale in (0.0, 0.1, 1.0, 3.0, 8.0, 20.0, 40.0, 400.0)]
    splits, rewards = [x.split(PRIOR) for x in tilts], [x.rewards(PRIOR).mean() for x in tilts]
    assert splits[-1].divergence == pytest.approx(-np.log(success).mean(), abs=1e-6)
    assert rewards[-1] == pytest.approx(1, abs=1e-9)
    assert splits[0].divergence == pytest.approx(0, abs=1e-12)
    for numbers in ([x.divergence for x in splits], rewards, [x.mean_weights[2] for x in splits]):  # Alice's
        assert np.all(np.diff(numbers) > -1e-9)
    for found in splits[1:]:
        assert found.selection + found.within == pytest.approx(found.divergence, abs=1e-10)
        assert found.choice + found.routing == pytest.approx(found.selection, abs=1e-12)
        assert 0 <= found.selection <= np.log(3)
        assert found.mean_weights.sum() == pytest.approx(1)
