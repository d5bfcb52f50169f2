"""The tilt, its split, and what personas explain of a reward: every episode of a tiny problem is the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy import special

import envs
from analysis import tilting
from tests import tabular
from tests.enumeration import (
    MAZES,
    PRIOR,
    TURNS,
    divergence,
    draw,
    episodes,
    f32,
    from_mixture,
    mixture,
    oracle,
    parts,
    random_table,
    split,
    split_of,
)

SEEN, UNSEEN = (envs.make(name)[0] for name in ("EmojiLabyrinth-v0", "EmojiMaze-v0"))
tilt, match = (jax.jit(functools.partial(x, SEEN, every=True)) for x in (tilting.tilt, tilting.match))
sampled_tilt = jax.jit(functools.partial(tilting.tilt, SEEN))


@pytest.fixture(scope="module")
def table():
    return random_table()


@pytest.fixture(scope="module")
def every():
    return episodes()


def base_of(every):
    """Rewards, posteriors and chances of every episode of the base."""
    rewards, posterior, base = f32(every.rewards, every.posterior, every.base)
    return rewards, posterior, jnp.exp(base)


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.0, 30.0])
def test_the_tilt_is_that_of_every_episode(every, table, scale):
    log_policy = every.tilted(scale)
    expected, weights, change = oracle(every, log_policy)
    exact, sampled = tabular.tilt(table, scale), tilt(*base_of(every)[:2], scale, base_of(every)[2])
    chances = np.exp(log_policy)
    for found, tolerance in ((exact.split(PRIOR), 1e-11), (sampled.split, 2e-5)):
        assert parts(found) == pytest.approx(expected, abs=tolerance)
        np.testing.assert_allclose(found.weights, weights, atol=tolerance)
        np.testing.assert_allclose(found.changes, change, atol=tolerance)
    for found, tolerance in ((exact.rewards(PRIOR), 1e-11), (sampled.rewards, 1e-5)):
        np.testing.assert_allclose(found, (chances * every.rewards).sum(axis=1), atol=tolerance)
    log_partition = special.logsumexp(every.base + scale * every.rewards, axis=1)
    np.testing.assert_allclose(sampled.log_partitions, log_partition, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sampled.effective, 1 / np.square(chances).sum(axis=1), rtol=1e-3)

    own = special.softmax(every.personas + scale * every.rewards[..., None], axis=1)
    means = (own * every.rewards[..., None]).sum(axis=1)
    np.testing.assert_allclose(exact.means, means, atol=1e-11)
    square = (own * (every.rewards[..., None] - means[:, None]) ** 2).sum(axis=1)
    np.testing.assert_allclose(exact.variances, square, atol=1e-11)
    by_persona = special.logsumexp(every.personas + scale * every.rewards[..., None], axis=1)
    np.testing.assert_allclose(exact.log_partitions, by_persona, atol=1e-11)


def test_tilted_personas_act_as_their_episodes_do(every, table):
    """The turn by turn tables of the tilted personas give each episode its chance under the tilt."""
    steps = np.stack([step[0] for step in tabular.backwards(table, 2.0)])[::-1]
    turn, maze = np.arange(TURNS)[:, None], np.arange(MAZES)[:, None, None]
    log_chance = steps[turn.T[None], maze, :, every.states, every.actions[None]].sum(axis=2)
    expected = special.log_softmax(every.personas + 2.0 * every.rewards[..., None], axis=1)
    np.testing.assert_allclose(log_chance, expected, atol=1e-11)


def test_needed_selection_needed_change_and_drift_add_up(every, table):
    reward = every.earned(every.policy)
    scale = scipy.optimize.brentq(lambda x: every.earned(every.tilted(x)) - reward, -50, 50, xtol=1e-12)
    drift = divergence(every.policy, every.tilted(scale)).mean()
    needed, _, _ = oracle(every, every.tilted(scale))
    assert drift > 0.1

    found, matched = split_of(every, every.policy), match(*base_of(every)[:2], reward, base_of(every)[2])
    wasted = float(tilting.gratuitous(found, reward, matched))
    assert wasted == pytest.approx(drift, abs=1e-5)
    assert parts(matched.split) == pytest.approx(needed, abs=1e-4)
    total = float(matched.split.selection + matched.split.within) + wasted
    assert total == pytest.approx(divergence(every.policy, every.base).mean(), abs=1e-5)

    exact = tabular.match(table, PRIOR, reward)
    assert exact.scale == pytest.approx(scale, abs=1e-9)
    assert float(found.divergence - exact.split(PRIOR).divergence) == pytest.approx(drift, abs=1e-5)
    # G is the divergence from any other tilt too.
    other = tilt(*base_of(every)[:2], 1.5, base_of(every)[2])
    expected = divergence(every.policy, every.tilted(1.5)).mean()
    assert float(tilting.gratuitous(found, reward, other)) == pytest.approx(expected, abs=1e-5)


def test_a_tilt_wastes_nothing_and_an_impossible_reward_is_told(every, table):
    policy = every.tilted(3.0)
    matched = match(*base_of(every)[:2], every.earned(policy), base_of(every)[2])
    assert float(matched.scale) == pytest.approx(3, abs=1e-3)
    assert float(tilting.gratuitous(split_of(every, policy), every.earned(policy), matched)) == pytest.approx(
        0, abs=1e-5
    )
    best = every.rewards.max(axis=1).mean()
    unmet = match(*base_of(every)[:2], best + 1, base_of(every)[2])
    assert float(unmet.rewards.mean()) == pytest.approx(best, abs=1e-3)
    with pytest.raises(ValueError, match="no tilt earns it"):
        tabular.match(table, PRIOR, best + 0.01)
    with pytest.raises(ValueError, match="at least 1 turn"):
        tabular.tilt(tabular.Table(table.following, table.rewards, table.log_policies, table.starts, 0), 1.0)


def test_weak_rl_selects_as_far_as_personas_explain_the_reward(every, table):
    chances = np.exp(every.personas)
    means = (chances * every.rewards[..., None]).sum(axis=1)
    overall = (np.exp(every.base) * every.rewards).sum(axis=1)
    between = (PRIOR * (means - overall[:, None]) ** 2).sum(axis=1).mean()
    expected = between / (np.exp(every.base) * (every.rewards - overall[:, None]) ** 2).sum(axis=1).mean()
    assert tabular.correlation_ratio(table, PRIOR) == pytest.approx(expected, rel=1e-10)
    (rewards, posterior, base), (prior,) = base_of(every), f32(PRIOR)
    assert float(tilting.reward_share(rewards, posterior, prior, base)) == pytest.approx(expected, rel=1e-5)

    splits = [tabular.tilt(table, scale).split(PRIOR) for scale in (1e-1, 1e-2, 1e-3)]
    errors = np.abs(np.array([split.selection / split.divergence for split in splits]) - expected)
    assert errors[2] < 2e-3 * expected
    np.testing.assert_allclose(errors[:2] / errors[1:], 10, rtol=0.1)  # linear in λ
    # The estimator in float32 keeps the limit too.
    assert float(tilt(rewards, posterior, 1e-2, base).split.selection) == pytest.approx(
        float(tabular.tilt(table, 1e-2).split(PRIOR).selection), rel=1e-2
    )


def explained(every, base, base_weights):
    """Share of the reward's variance that the posteriors explain in each maze, by weighted least squares."""
    chances, total, rest = np.exp(base), 0.0, 0.0
    for maze in range(MAZES):
        away = every.rewards[maze] - chances[maze] @ every.rewards[maze]
        root = np.sqrt(chances[maze])
        features = every.posterior[maze] / base_weights[maze] - 1
        fitted = features @ np.linalg.lstsq(root[:, None] * features, root * away, rcond=1e-10)[0]
        total, rest = total + chances[maze] @ away**2, rest + chances[maze] @ (away - fitted) ** 2
    return 1 - rest / total


def test_the_best_mixture_of_weak_rl_is_what_posteriors_explain(every, table):
    """R² against least squares, and as the limit of what a mixture attains of a tilt; η² lies below it."""
    rewards, posterior, chances = base_of(every)
    found = float(jax.jit(tilting.reweighted_share)(rewards, posterior, chances))
    assert found == pytest.approx(explained(every, every.base, np.tile(PRIOR, (MAZES, 1))), rel=1e-4)
    assert tabular.correlation_ratio(table, PRIOR) < 0.9 * found < 0.9
    log_policy = every.tilted(0.05)
    needed = divergence(log_policy, every.base).mean()
    pairs = [*zip(log_policy, every.personas, strict=True)]
    rest = [from_mixture(x, y, mixture(*f32(y, np.exp(x)), tolerance=1e-8))[0] for x, y in pairs]
    assert 1 - np.mean(rest) / needed == pytest.approx(found, abs=0.03)
    alike = jnp.broadcast_to(jnp.asarray(PRIOR, jnp.float32), posterior.shape)
    assert float(tilting.reweighted_share(rewards, alike, chances)) == pytest.approx(0, abs=1e-6)


def test_the_share_of_a_mixture_of_few_episodes_is_corrected(every):
    """Sixteen episodes in each of 6,000 mazes."""
    rewards, posterior, chances = base_of(every)
    drawn = jnp.asarray(np.concatenate([draw(np.random.default_rng(8), x, (2000, 16)) for x in every.base]))
    maze = jnp.repeat(jnp.arange(MAZES), 2000)[:, None]
    given = rewards[maze, drawn], posterior[maze, drawn]
    found, plain = (
        float(tilting.reweighted_share(*given, x)) for x in (None, jnp.full(drawn.shape, 1 / 16, jnp.float32))
    )
    expected = float(tilting.reweighted_share(rewards, posterior, chances))
    assert plain > expected + 0.03
    assert abs(found - expected) < 0.25 * (plain - expected)


@pytest.fixture(scope="module")
def uneven(every):
    """A base whose personas have other weights in every maze, and none of them `PRIOR`; its posterior is the same."""
    weights = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.3, 0.6, 0.1]])
    log_base = special.logsumexp(every.personas, b=weights[:, None], axis=-1)
    return weights, log_base, np.exp(every.personas + np.log(weights)[:, None] - log_base[..., None])


def test_a_base_with_weights_of_its_own_is_split_by_them(every, uneven):
    """S* and W* of a tilt against the definition, neither below 0; and `split` of the same policy says the same."""
    weights, log_base, posterior = uneven
    log_policy = special.log_softmax(log_base + 0.3 * every.rewards, axis=-1)
    chances = np.exp(log_policy)
    tilted_weights = np.einsum("mn,mni->mi", chances, posterior)
    selected = special.rel_entr(tilted_weights, weights).sum(axis=-1).mean()
    own = chances[..., None] * posterior / tilted_weights[:, None]
    change = (tilted_weights * (own * (np.log(own) - every.personas)).sum(axis=1)).sum(axis=-1).mean()
    choice = special.rel_entr(tilted_weights.mean(axis=0), weights.mean(axis=0)).sum()

    found = tilt(*f32(every.rewards, posterior), 0.3, jnp.exp(*f32(log_base))).split
    same = split(*f32(log_policy, every.personas, weights), chances=jnp.exp(*f32(log_policy)))
    for each in (found, same):
        assert float(each.selection) == pytest.approx(selected, abs=1e-5)
        assert float(each.within) == pytest.approx(change, abs=1e-5)
        assert float(each.choice) == pytest.approx(choice, abs=1e-5)
        assert float(each.divergence) == pytest.approx(divergence(log_policy, log_base).mean(), abs=1e-5)
    # By the prior, which is not what the base does, the change within personas came out below 0.
    wrong = divergence(log_policy, log_base).mean() - special.rel_entr(tilted_weights, PRIOR).sum(axis=-1).mean()
    assert wrong < -0.05 < 0 < change, (wrong, change)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_jackknife_of_a_tilt_leaves_out_each_episode(every, uneven, weighed):
    """By leaving out, one after another, episodes of the base, or of half base and half tilt by their weights."""
    _, log_base, posterior = uneven
    half = np.logaddexp(log_base, special.log_softmax(log_base + 0.5 * every.rewards, axis=-1)) - np.log(2)
    generator = np.random.default_rng(6)
    index = np.stack([draw(generator, x, 48) for x in (half if weighed else log_base)])
    chances = np.exp(np.take_along_axis(log_base - half, index, axis=1)) if weighed else np.ones(index.shape)
    rewards, posterior = np.take_along_axis(every.rewards, index, axis=1), posterior[np.arange(MAZES)[:, None], index]

    def parts(kept, **options):
        share = chances[:, kept] / chances[:, kept].sum(axis=1, keepdims=True)
        found = (tilt if options else sampled_tilt)(*f32(rewards[:, kept], posterior[:, kept]), 0.5, *f32(share))
        split = found.split
        return np.stack([split.selections, split.changes.sum(axis=1), found.rewards, found.log_partitions])

    everyone = np.arange(48)
    whole = parts(everyone, every=True)
    without = np.mean([parts(np.delete(everyone, k), every=True) for k in everyone], axis=0)
    corrected = parts(everyone)
    np.testing.assert_allclose(corrected, 48 * whole - 47 * without, atol=3e-4)
    assert np.abs(corrected - whole).max() > 3e-3


def test_a_sampled_tilt_is_right_in_the_mean(every, uneven):
    _, log_base, posterior = uneven
    rewards, posterior, base = f32(every.rewards, posterior, log_base)
    exact = tilt(rewards, posterior, 0.5, jnp.exp(base)).split
    drawn = np.stack([draw(np.random.default_rng(7), x, (3000, 48)) for x in log_base], axis=1)

    @jax.jit
    @jax.vmap
    def estimates(index):
        given = jnp.take_along_axis(rewards, index, axis=1), jnp.take_along_axis(posterior, index[..., None], axis=1)
        split = sampled_tilt(*given, 0.5).split
        return split.selection, split.within

    for found, expected in zip(estimates(jnp.asarray(drawn)), (exact.selection, exact.within), strict=True):
        there = np.asarray(found)[np.isfinite(found)]
        assert len(there) > 0.95 * 3000
        assert abs(there.mean() - float(expected)) < 4 * there.std() / np.sqrt(len(there)) + 1e-3


def test_a_tilt_out_of_reach_is_refused(every):
    """A clairvoyant tilt is an error; one that a sample does not reach has no numbers."""
    rewards, posterior, _ = base_of(every)
    for refuse in (
        lambda: tilting.tilt(UNSEEN, rewards, posterior, 1.0),
        lambda: tilting.match(UNSEEN, rewards, posterior, 0.1),
    ):
        with pytest.raises(ValueError, match="EmojiMaze: its prompt does not show the whole maze"):
            refuse()
    with pytest.raises(ValueError, match="chances"):
        tilting.tilt(SEEN, rewards, posterior, 1.0, every=True)
    sample = jnp.zeros((2, 40)).at[1, :3].set(1.0)
    even = jnp.full((2, 40, 3), 1 / 3)
    found = sampled_tilt(sample, even, 50.0)
    np.testing.assert_allclose(found.effective, [40, 3], rtol=1e-5)
    np.testing.assert_allclose([found.rewards[0], found.split.divergences[0]], 0, atol=1e-6)
    for numbers in (found.rewards, found.split.weights, found.split.selections, found.log_partitions):
        assert np.isnan(np.asarray(numbers)[1]).all()
    assert np.isnan(float(found.split.divergence))


@pytest.mark.parametrize("labelled", [False, True])
def test_the_reward_share_of_few_episodes_is_corrected(every, table, labelled):
    """Four episodes of each persona, known by their labels or by posterior."""
    rewards = base_of(every)[0]
    posterior, prior = jnp.asarray(special.softmax(every.personas, axis=-1), jnp.float32), jnp.full(3, 1 / 3)
    generator = np.random.default_rng(4)
    own = [np.concatenate([draw(generator, x[:, i], (3000, 4)) for i in range(3)], axis=1) for x in every.personas]
    drawn = jnp.asarray(np.stack(own, axis=1))
    names = jnp.broadcast_to(jnp.repeat(jnp.eye(3), 4, axis=0), (MAZES, 12, 3))

    @jax.jit
    @jax.vmap
    def estimates(index):
        known = names if labelled else jnp.take_along_axis(posterior, index[..., None], axis=1)
        given = jnp.take_along_axis(rewards, index, axis=1), known, prior
        return tilting.reward_share(*given), tilting.reward_share(*given, jnp.full((MAZES, 12), 1 / 12))

    found, plain = (np.asarray(x).mean() for x in estimates(drawn))
    expected = tabular.correlation_ratio(table, np.full(3, 1 / 3))
    assert abs(found - expected) < 0.3 * abs(plain - expected)
    assert plain > expected + 0.02
