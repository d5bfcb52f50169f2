"""KL split into selection and change within personas: every episode of a tiny problem is the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy import special

from analysis import selection, tilting
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
    random_policy,
    random_table,
    split,
    split_of,
)


@pytest.fixture(scope="module")
def table():
    return random_table()


@pytest.fixture(scope="module")
def every():
    return episodes()


@pytest.fixture(scope="module")
def alien():
    return random_policy()


def test_the_split_is_that_of_the_definitions(every):
    expected, weights, change = oracle(every, every.policy)
    found = split_of(every, every.policy)
    assert parts(found) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(found.weights, weights, atol=1e-6)
    np.testing.assert_allclose(found.changes, change, atol=1e-5)
    assert float(found.selection + found.within) == pytest.approx(divergence(every.policy, every.base).mean(), abs=1e-5)
    assert min(change.min(), expected["routing"]) > 0.01  # nothing above is trivially 0


@pytest.mark.parametrize("jackknife", [False, True])
def test_selection_and_change_add_up_on_any_sample(jackknife):
    """The sum holds for estimates, which know nothing of where the numbers come from."""
    generator = np.random.default_rng(2)
    personas, policy = -40 + 4 * generator.normal(size=(5, 12, 4)), -38 + 3 * generator.normal(size=(5, 12))
    prior = special.softmax(generator.normal(size=4))
    given = f32(policy, personas, prior)
    found = split(*given, jackknife=jackknife)
    exact = (policy - special.logsumexp(personas, b=prior, axis=-1)).mean(axis=1)
    np.testing.assert_allclose(found.divergences, exact, atol=1e-5)
    np.testing.assert_allclose(found.selections + found.changes.sum(axis=1), exact, atol=1e-5)
    one = split(*given, divergences=jnp.full((5, 12), 7.0), jackknife=jackknife)
    np.testing.assert_allclose(one.selections + one.changes.sum(axis=1), 7, atol=1e-5)
    np.testing.assert_array_equal(one.selections, found.selections)


def test_a_policy_that_is_one_persona_has_changed_nothing_within(every):
    found = split_of(every, every.personas[..., 2])
    # E_{π_3} q is no unit vector: a persona is taken for another now and then, and W is what that costs.
    expected, _, _ = oracle(every, every.personas[..., 2])
    assert parts(found) == pytest.approx(expected, abs=1e-5)
    assert float(found.divergence) < -np.log(PRIOR[2])
    # One that nobody takes for another: all of its divergence is selection.
    told = jnp.array([[[-jnp.inf, -jnp.inf, 0.0]]])
    sure = split(jnp.zeros((1, 1)), told, jnp.array(PRIOR, jnp.float32))
    assert float(sure.selection) == pytest.approx(-np.log(PRIOR[2]), rel=1e-6)
    assert float(sure.within) == pytest.approx(0, abs=1e-6)


def test_selection_is_bounded_and_change_is_not(every):
    policy, others, prior = f32(np.zeros((MAZES, 1)), every.personas, PRIOR)
    most = 0.0
    for episode in range(len(every.actions)):
        found = split(policy, others[:, [episode]], prior)
        assert float(found.selection) <= -np.log(PRIOR.min()) + 1e-6
        assert float(found.divergence) == pytest.approx(-every.base[:, episode].mean(), rel=1e-5)
        assert float(found.within) >= -1e-6
        most = max(most, float(found.within))
    assert most > 3 * -np.log(PRIOR.min())


def test_the_jackknife_takes_the_bias_off_selection(every):
    exact = float(split_of(every, every.policy).selection)
    policy, others, prior = f32(every.policy, every.personas, PRIOR)
    generator = np.random.default_rng(3)
    drawn = jnp.asarray(np.stack([draw(generator, x, (4000, 6)) for x in every.policy], axis=1))

    @jax.jit
    @jax.vmap
    def estimates(index):
        log_policy = jnp.take_along_axis(policy, index, axis=1)
        log_personas = jnp.take_along_axis(others, index[..., None], axis=1)
        one = functools.partial(selection.split, log_policy, log_personas, prior)
        return one().selection, one(jackknife=True).selection

    plain, corrected = (np.asarray(x) for x in estimates(drawn))
    error = corrected.std() / np.sqrt(len(corrected))
    bias = plain.mean() - exact
    assert bias > 10 * error
    assert abs(corrected.mean() - exact) < max(4 * error, 0.15 * bias)
    with pytest.raises(ValueError, match="2 episodes"):
        selection.split(policy[:, :1], others[:, :1], prior, jackknife=True)
    with pytest.raises(ValueError, match="chances"):
        selection.split(policy, others, prior, chances=jnp.exp(policy), jackknife=True)


def test_turn_by_turn_divergences_have_the_same_mean_and_less_noise(every, table, alien):
    raw = every.policy - every.base
    states = every.states
    maze = np.arange(MAZES)[:, None, None]
    log_policy, log_personas = f32(
        alien[maze, np.arange(TURNS), states], np.moveaxis(table.log_policies, 1, 2)[maze, states]
    )
    actions, prior = jnp.asarray(every.actions), jnp.asarray(PRIOR, jnp.float32)
    each = jax.vmap(jax.vmap(selection.stepwise_divergence, (0, 0, 0, None, None)), (0, 0, None, None, None))
    each = jax.jit(each)
    found = np.asarray(each(log_policy, log_personas, actions, jnp.ones(TURNS, bool), prior), np.float64)
    chances = np.exp(every.policy)
    np.testing.assert_allclose((chances * found).sum(axis=1), (chances * raw).sum(axis=1), atol=1e-5)
    spread = [(chances * (x - (chances * x).sum(axis=1, keepdims=True)) ** 2).sum(axis=1) for x in (found, raw)]
    assert np.all(spread[0] < 0.5 * spread[1])
    stopped = each(log_policy, log_personas, actions, jnp.arange(TURNS) < 1, prior)
    first = special.rel_entr(
        np.exp(np.asarray(log_policy[:, 0, 0], np.float64)),
        np.einsum("i,mia->ma", PRIOR, np.exp(np.asarray(log_personas[:, 0, 0], np.float64))),
    ).sum(axis=-1)
    np.testing.assert_allclose(stopped, np.broadcast_to(first[:, None], stopped.shape), atol=1e-6)


@pytest.mark.parametrize("name", ["alien", "tilt", "persona", "mixture", "routed"])
def test_selection_lies_between_its_bounds(every, name):
    """The upper bound by a search over weights, the lower by definition; re-weighting the base lies in the first."""
    routes = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    log_policy = {
        "alien": every.policy,
        "tilt": every.tilted(2.0),
        "persona": every.personas[..., 2],
        "mixture": special.logsumexp(every.personas, b=[0.1, 0.1, 0.8], axis=-1),
        "routed": special.logsumexp(every.personas, b=routes[:, None], axis=-1),
    }[name]
    chances = np.exp(log_policy)
    found = jax.tree.map(
        float, jax.jit(selection.reach)(*f32(log_policy, every.personas, PRIOR), jnp.exp(*f32(log_policy)))
    )
    expected, _, _ = oracle(every, log_policy)

    def left(free):
        weights = special.softmax([*free, 0.0])
        return (chances * (log_policy - special.logsumexp(every.personas, b=weights, axis=-1))).sum() / MAZES

    best = min(
        scipy.optimize.minimize(left, start, method="Nelder-Mead", options={"fatol": 1e-10}).fun
        for start in ([0.0, 0.0], [-3.0, -3.0])
    )
    assert found.low == pytest.approx(expected["choice"], abs=1e-5)
    assert found.routed_low == pytest.approx(expected["selection"], abs=1e-5)
    assert found.high == pytest.approx(expected["divergence"] - best, abs=3e-5)
    assert found.low <= found.high + 1e-5
    assert found.routed_low <= found.routed_high + 1e-5
    assert found.high <= found.routed_high + 3e-5
    if name in ("persona", "mixture"):
        assert found.high == pytest.approx(expected["divergence"], abs=3e-5)
    if name in ("persona", "mixture", "routed"):
        assert found.routed_high == pytest.approx(expected["divergence"], abs=3e-5)
        assert found.routed_low < 0.95 * expected["divergence"]


def test_the_bounds_of_few_episodes_are_corrected(every):
    policy, others, prior = f32(every.policy, every.personas, PRIOR)
    exact = jax.tree.map(float, selection.reach(policy, others, prior, jnp.exp(policy)))
    generator = np.random.default_rng(9)
    drawn = jnp.asarray(np.stack([draw(generator, x, (800, 24)) for x in every.policy], axis=1))

    @jax.jit
    @jax.vmap
    def estimates(index):
        given = jnp.take_along_axis(policy, index, axis=1), jnp.take_along_axis(others, index[..., None], axis=1), prior
        plain = selection.reach(*given, jnp.full((MAZES, 24), 1 / 24))
        return selection.reach(*given).routed_high, plain.routed_high

    corrected, plain = (np.asarray(x) for x in estimates(drawn))
    error = corrected.std() / np.sqrt(len(corrected))
    assert plain.mean() - exact.routed_high > 5 * error
    assert abs(corrected.mean() - exact.routed_high) < max(4 * error, 0.35 * (plain.mean() - exact.routed_high))


def test_what_a_base_does_that_chooses_by_the_maze_needs_no_selection(every):
    routes = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    log_policy = special.logsumexp(every.personas, b=routes[:, None], axis=-1)
    given = f32(log_policy, every.personas, routes, np.exp(log_policy))
    found = jax.tree.map(float, jax.jit(selection.reach)(*given))
    assert [found.low, found.high, found.routed_low, found.routed_high] == pytest.approx([0] * 4, abs=3e-5)


def test_a_persona_that_has_no_prior_takes_no_part(every):
    chances, rewards = jnp.exp(*f32(every.policy)), *f32(every.rewards)

    def told(log_personas, prior):
        given = f32(every.policy, log_personas, prior)
        posterior = jax.nn.softmax(given[1] + jnp.log(given[2])[None, None], axis=-1)
        reach = jax.tree.leaves(jax.jit(selection.reach)(*given, chances))
        law = jax.jit(tilting.reward_share)(rewards, posterior, given[2], chances)
        return [*parts(split(*given, chances=chances)).values(), *map(float, reach), float(law)]

    expected = told(every.personas[..., :2], [0.6, 0.4])
    assert told(every.personas, [0.6, 0.4, 0.0]) == pytest.approx(expected, abs=5e-5)
    assert np.isfinite(expected).all()


def test_the_choice_of_few_mazes_is_corrected():
    generator = np.random.default_rng(4)
    mean, prior = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    weights = generator.dirichlet(3 * mean, (20_000, 8))
    exact = special.rel_entr(mean, prior).sum()
    found = jax.jit(jax.vmap(selection.common, in_axes=(0, None)))(*f32(weights, np.tile(prior, (8, 1))))
    plain = special.rel_entr(weights.mean(axis=1), prior).sum(axis=1)
    error = np.std(found) / len(found) ** 0.5
    assert plain.mean() - exact > 10 * error
    assert float(np.mean(found)) == pytest.approx(exact, abs=max(4 * error, 0.15 * (plain.mean() - exact)))


def test_the_best_mixture_is_scipys(every):
    for maze in range(MAZES):
        policy, personas, chances = every.policy[maze], every.personas[maze], np.exp(every.policy[maze])

        def residual(free, policy=policy, personas=personas, chances=chances):
            weights = special.softmax([*free, 0.0])
            return (chances * (policy - special.logsumexp(personas, b=weights, axis=-1))).sum()

        best = scipy.optimize.minimize(residual, np.zeros(2), method="Nelder-Mead", options={"fatol": 1e-10})
        rest, gap = from_mixture(policy, personas, mixture(*f32(personas, chances)))
        assert rest == pytest.approx(best.fun, abs=2e-5)
        assert gap < 3e-5
        within = divergence(policy, every.base[maze]) - float(split_of(every, every.policy).selections[maze])
        assert best.fun <= within + 1e-6
    mixed = special.logsumexp(every.personas[0], b=[0.2, 0.3, 0.5], axis=-1)
    found = mixture(*f32(every.personas[0], np.exp(mixed)), tolerance=1e-7)
    np.testing.assert_allclose(found, [0.2, 0.3, 0.5], atol=5e-3)
    assert from_mixture(mixed, every.personas[0], found)[0] == pytest.approx(0, abs=1e-5)


def test_the_best_mixture_of_told_apart_personas_is_how_often_each_was_seen():
    """Closed form, and a persona that never acts gets nothing."""
    log_personas = jnp.where(jnp.eye(4, dtype=bool)[jnp.array([0, 0, 0, 1, 2, 2])], -1.0, -jnp.inf)
    found = mixture(log_personas, jnp.full(6, 1 / 6))
    np.testing.assert_allclose(found, [3 / 6, 1 / 6, 2 / 6, 0], atol=1e-6)


def test_members_are_a_leading_axis(every):
    policy, personas, prior = f32(every.policy, every.personas, PRIOR)
    several = policy[None] + jnp.array([0.0, 0.1])[:, None, None]
    found = jax.jit(jax.vmap(selection.split, in_axes=(0, None, None)))(several, personas, prior)
    found, alone = (jax.tree.map(np.asarray, x) for x in (found, split(policy, personas, prior)))
    np.testing.assert_allclose(found.within, alone.within + np.array([0, 0.1]), atol=1e-5)
    np.testing.assert_allclose(jax.tree.map(np.asarray, found).choice, [alone.choice] * 2, rtol=1e-5)


def test_relative_entropy_is_precise_and_total():
    prior = np.full(3, 1 / 3)
    near = prior + 1e-4 * np.array([1, -2, 1])
    exact = special.rel_entr(near, prior).sum()
    assert selection.relative_entropy(near, prior) == pytest.approx(exact, rel=1e-6)
    assert selection.relative_entropy(near, prior).dtype == np.float64
    one = selection.relative_entropy(*f32(near, prior))
    assert float(one) == pytest.approx(exact, rel=1e-2)
    assert selection.relative_entropy(np.array([1.0, 0, 0]), prior) == pytest.approx(np.log(3))
    assert selection.relative_entropy(np.array([1.0, 1e-300, 0]), prior) == pytest.approx(np.log(3))
