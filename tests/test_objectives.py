"""Advantages and losses against loops, hand-worked examples and rlax."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.learning import objectives
from envs import tokens


def gae_by_loop(rewards, values, written, played, discount, decay):
    """Over the decisions alone: those that were not made are left out first."""
    slots = len(written)
    kept = np.flatnonzero(np.concatenate([written, played]))
    advantages = np.zeros(slots + len(played))
    following, carried = 0.0, 0.0
    for index in reversed(kept):
        plan = index < slots
        reward, gamma = (0.0, 1.0) if plan else (rewards[index - slots], discount)
        carried = reward + gamma * following - values[index] + gamma * decay * carried
        following = values[index]
        advantages[index] = carried
    return advantages


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0, 5]), st.integers(0, 12))
def test_gae_equals_a_loop(seed, slots, turns):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=12).astype(np.float32), rng.normal(size=12 + slots).astype(np.float32)
    written, played = np.arange(slots) < rng.integers(0, slots + 1), np.arange(12) < turns
    discount, decay = np.float32(rng.uniform(0.5, 1)), np.float32(rng.uniform(0, 1))
    found, targets = jax.jit(objectives.gae)(rewards, values, written, played, discount, decay)
    expected = gae_by_loop(rewards, values, written, played, discount, decay)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(targets, expected + values, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(0, 12))
def test_gae_builds_upon_no_value_that_nobody_learns(seed, turns):
    """As if what an untaught decision is paid were paid for the one before it, and it were not there."""
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=12).astype(np.float32), rng.normal(size=17).astype(np.float32)
    written, played = np.arange(5) < rng.integers(0, 6), np.arange(12) < turns
    taught = rng.random(17) < 0.4
    decay, one = np.float32(rng.uniform(0, 1)), np.float32(1)
    found, _ = jax.jit(objectives.gae)(rewards, values, written, played, one, decay, taught)
    chosen, paid = np.concatenate([written, played]), np.concatenate([np.zeros(5), rewards])
    learns = np.flatnonzero(chosen & taught)
    between = np.array([paid[i:j][chosen[i:j]].sum() for i, j in itertools.pairwise([*learns, 17])], np.float32)
    expected = gae_by_loop(between, values[learns], np.zeros(0, bool), np.ones(len(learns), bool), one, decay)
    np.testing.assert_allclose(np.asarray(found)[learns], expected, atol=1e-5)


def test_a_lone_decision_is_credited_with_all_that_follows_it():
    rewards, values, first = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 7.0, -9.0, 3.0]), np.arange(4) == 0
    one, three = np.ones(1, bool), np.ones(3, bool)
    found, targets = objectives.gae(rewards, values, one, three, jnp.float32(0.5), jnp.float32(0.9), first)
    assert found[0] == 1 + 0.5 * 2 + 0.25 * 4 - 0.5
    assert targets[0] == 3


def test_gae_equals_rlax():
    rng = np.random.default_rng(5)
    rewards, values = rng.normal(size=10).astype(np.float32), rng.normal(size=11).astype(np.float32)
    terminated = np.arange(10) == 9
    found, _ = objectives.gae(
        rewards, values[:-1], np.zeros(0, bool), np.ones(10, bool), jnp.float32(0.97), jnp.float32(0.9)
    )
    discounts = jnp.float32(0.97) * (1 - terminated.astype(np.float32))
    expected = rlax.truncated_generalized_advantage_estimation(rewards, discounts, 0.9, values)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_group_advantages_by_hand():
    returns = jnp.array([1.0, 0.0, 0.0, 3.0, 5.0, 5.0, 5.0, 5.0])
    mean = [0, -1, -1, 2, 0, 0, 0, 0]
    exact = jnp.zeros(8)
    np.testing.assert_allclose(objectives.group_advantage(returns, 4, "mean", exact), mean, atol=1e-6)
    z = np.array(mean) / (2**0.5 + 1e-4)  # the sample's deviation: (0 + 1 + 1 + 4) / 3
    np.testing.assert_allclose(objectives.group_advantage(returns, 4, "z", exact), z, atol=1e-5)
    others = [1 - 3 / 3, 0 - 4 / 3, 0 - 4 / 3, 3 - 1 / 3, 0, 0, 0, 0]
    np.testing.assert_allclose(objectives.group_advantage(returns, 4, "others", exact), others, atol=1e-6)
    coarse = jnp.full(8, 1.5)  # what differs by less from the mean does not differ
    np.testing.assert_allclose(objectives.group_advantage(returns, 4, "mean", coarse), [0, 0, 0, 2, 0, 0, 0, 0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40))
def test_sums_of_the_same_rewards_differ_by_no_more_than_the_rounding(seed, turns):
    rng = np.random.default_rng(seed)
    rewards = (rng.normal(size=turns) * 10.0 ** rng.integers(-3, 6, turns)).astype(np.float32)
    forwards, backwards, bound = rewards.sum(), np.float32(0), float(objectives.rounding(jnp.array(rewards)))
    for reward in np.sort(rewards):
        backwards = np.float32(backwards + reward)
    assert abs(float(forwards) - float(backwards)) <= bound < 1e-5 * np.abs(rewards).sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 12))
def test_rewards_of_another_are_worth_the_same_however_long_one_plays(seed, turns):
    """From every turn on: so no choice, nor the choice to end, changes what it is paid."""
    rng = np.random.default_rng(seed)
    rewards, discount = rng.normal(size=12).astype(np.float32), np.float32(rng.uniform(0.5, 1))
    played = np.arange(12) < turns
    paid = np.asarray(objectives.pay_later(jnp.array(rewards), jnp.array(played), discount), np.float64)
    np.testing.assert_array_equal(paid[turns:], 0.0)
    for now in range(turns):
        wanted, found = (sum(x[t] * float(discount) ** (t - now) for t in range(now, 12)) for x in (rewards, paid))
        assert found == pytest.approx(wanted, abs=1e-5)


def test_rewards_to_go_by_hand():
    played = jnp.array([True, True, True, False])
    found = objectives.rewards_to_go(jnp.array([1.0, 2.0, 4.0, 100.0]), played, jnp.float32(0.5))
    np.testing.assert_allclose(found, [3.0, 4.0, 4.0, 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, 1.2), (0.5, 1.0, 0.5), (1.5, -1.0, -1.5), (0.5, -1.0, -0.8), (9.0, -1.0, -3.0), (9.0, 1.0, 1.2)],
)
def test_the_dual_clip_bounds_what_a_bad_action_costs(ratio, advantage, expected):
    found = objectives.clipped_surrogate(jnp.log(jnp.float32(ratio)), jnp.float32(advantage), 0.2, 0.2, 3.0)
    assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("roles", sorted(itertools.combinations_with_replacement(range(3), 4)))
def test_equalized_entropy_by_hand_for_every_pattern_of_tiles(roles):
    logits = np.array([0.3, -1.2, 0.8, 2.0])
    expected = 0.0
    for role in set(roles):
        members = [logits[i] for i in range(4) if roles[i] == role]
        if len(members) >= 2:
            total = sum(math.exp(x) for x in members)
            expected -= sum(math.exp(x) / total * math.log(math.exp(x) / total) for x in members)
    log_probabilities = jax.nn.log_softmax(jnp.array(logits, jnp.float32))
    found = objectives.equalized_entropy(log_probabilities, jnp.array(roles, jnp.int8))
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_equalized_entropy_does_not_touch_the_choice_between_tiles():
    """Moving probability from one kind of tile to another leaves it unchanged; singletons get no gradient."""
    neighbours = jnp.array([tokens.PATH, tokens.PATH, tokens.GOLD, tokens.MOLD], jnp.int8)

    def bonus(logits):
        return objectives.equalized_entropy(jax.nn.log_softmax(logits), neighbours)

    gradient = jax.grad(bonus)(jnp.array([0.5, -0.5, 2.0, 1.0]))
    np.testing.assert_allclose(gradient[2:], 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient[0] + gradient[1], 0.0, atol=1e-6)
    assert float(gradient[0]) < 0 < float(gradient[1])


def test_entropy_of_four_equal_actions_is_log_four():
    assert float(objectives.entropy(jnp.full(4, -math.log(4.0)))) == pytest.approx(math.log(4))


def test_divergence_is_that_of_scipy_and_what_is_never_said_adds_nothing(key):
    first, second = (jax.nn.log_softmax(3 * jax.random.normal(each, (50, 5))) for each in jax.random.split(key))
    first = jax.nn.log_softmax(first.at[::2, 0].set(-jnp.inf))
    told = objectives.divergence(first, second)
    np.testing.assert_allclose(told, scipy.special.rel_entr(*map(np.exp, (first, second))).sum(axis=-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, 2.0), (1.5, 2.0, 2.4), (0.5, 2.0, 1.0), (1.5, -2.0, -3.0), (0.5, -2.0, -1.6), (1.25, 1.0, 1.2)],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected):
    found = objectives.clipped_surrogate(
        jnp.log(jnp.float32(ratio)), jnp.float32(advantage), jnp.float32(0.2), jnp.float32(0.2)
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_kl_estimate_is_unbiased_and_never_negative():
    old = jax.nn.log_softmax(jnp.array([0.1, 0.9, -0.4, 0.0]))
    new = jax.nn.log_softmax(jnp.array([0.4, 0.2, -0.1, 0.3]))
    estimates = objectives.kl_estimate(new - old)
    assert estimates.min() >= 0
    exact = jnp.sum(jnp.exp(old) * (old - new))
    assert float(jnp.sum(jnp.exp(old) * estimates)) == pytest.approx(float(exact), rel=1e-4)


def test_normalise_ignores_what_is_masked():
    x = jnp.array([[1.0, 2.0, 1e6], [3.0, 6.0, -1e6]])
    mask = jnp.array([[True, True, False], [True, True, False]])
    found = np.asarray(objectives.normalise(x, mask))
    assert found[mask].mean() == pytest.approx(0, abs=1e-6)
    assert found[mask].std() == pytest.approx(1, rel=1e-4)
    np.testing.assert_array_equal(found[:, 2], 0.0)


def test_masked_means_are_numpys_and_nothing_where_nothing_is_left():
    x = jnp.array([[1.0, 2.0, np.nan], [3.0, 6.0, np.inf]])
    mask = jnp.array([[True, True, False], [False, True, False]])
    assert float(objectives.mean(x, mask)) == 3
    assert float(objectives.variance(x, mask)) == pytest.approx(np.var([1, 2, 6]))
    for function in (objectives.mean, objectives.variance, objectives.normalise, objectives.rescale):
        np.testing.assert_array_equal(function(x, jnp.zeros_like(mask)), 0.0)


def test_action_log_probabilities_are_the_vocabulary_restricted_to_moves():
    logits = jax.random.normal(jax.random.key(0), (7, tokens.SIZE))
    found = objectives.action_log_probabilities(logits)
    moves = np.exp(np.asarray(logits)[:, list(tokens.MOVES)])
    np.testing.assert_allclose(np.exp(found), moves / moves.sum(-1, keepdims=True), rtol=1e-5)


def test_next_token_loss_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    assert float(objectives.next_token_loss(logits, jnp.array([1]))[0]) == pytest.approx(math.log(4), rel=1e-6)
