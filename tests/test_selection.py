"""KL split into selection, change within personas and drift: every episode of a tiny problem is the oracle."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy import special

from analysis import selection, tabular, tilting

MAZES, PERSONAS, STATES, ACTIONS, TURNS = 3, 3, 6, 2, 7
PRIOR = np.array([0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def table():
    """Random moves, rewards and personas; state 0 is final."""
    generator = np.random.default_rng(0)
    following = generator.integers(0, STATES, (MAZES, STATES, ACTIONS))
    rewards = generator.normal(size=(MAZES, STATES, ACTIONS)) / 2
    following[:, 0], rewards[:, 0] = 0, 0
    log_policies = special.log_softmax(1.5 * generator.normal(size=(MAZES, PERSONAS, STATES, ACTIONS)), axis=-1)
    return tabular.Table(following, rewards, log_policies, np.array([1, 2, 3]), TURNS)


@pytest.fixture(scope="module")
def alien():
    """Log-probabilities of a policy that is no mixture and remembers the turn, float64[M, T, X, A]."""
    scores = np.random.default_rng(1).normal(size=(MAZES, TURNS, STATES, ACTIONS))
    return special.log_softmax(scores, axis=-1)


class Episodes:
    """All action sequences of each maze, in float64; those that differ after the end only are told apart."""

    def __init__(self, table, alien):
        self.actions = np.array(list(itertools.product(range(ACTIONS), repeat=TURNS)))
        shape = (MAZES, len(self.actions))
        self.rewards, self.policy = np.zeros(shape), np.zeros(shape)
        self.personas = np.zeros((*shape, PERSONAS))
        self.states = np.zeros((*shape, TURNS), int)
        for maze, (n, actions) in itertools.product(range(MAZES), enumerate(self.actions)):
            state = int(table.starts[maze])
            for turn, action in enumerate(actions):
                self.states[maze, n, turn] = state
                self.rewards[maze, n] += table.rewards[maze, state, action]
                self.policy[maze, n] += alien[maze, turn, state, action]
                self.personas[maze, n] += table.log_policies[maze, :, state, action]
                state = int(table.following[maze, state, action])
        self.base = np.asarray(special.logsumexp(self.personas, b=PRIOR, axis=-1))
        self.posterior = np.exp(self.personas + np.log(PRIOR) - self.base[..., None])

    def tilted(self, scale):
        return special.log_softmax(self.base + scale * self.rewards, axis=-1)

    def earned(self, log_policy):
        return (np.exp(log_policy) * self.rewards).sum(axis=-1).mean()


@pytest.fixture(scope="module")
def every(table, alien):
    return Episodes(table, alien)


def divergence(log_first, log_second):
    return (np.exp(log_first) * (log_first - log_second)).sum(axis=-1)


def oracle(every, log_policy):
    """KL, S, choice, routing and W by their definitions, π^(i) written out."""
    chances = np.exp(log_policy)
    weights = (chances[..., None] * every.posterior).sum(axis=1)
    change = np.zeros((MAZES, PERSONAS))
    for maze, i in itertools.product(range(MAZES), range(PERSONAS)):
        own = chances[maze] * every.posterior[maze, :, i] / weights[maze, i]
        change[maze, i] = weights[maze, i] * (own * (np.log(own) - every.personas[maze, :, i])).sum()
    total = weights.mean(axis=0)
    choice, selected = (total * np.log(total / PRIOR)).sum(), special.rel_entr(weights, PRIOR).sum(axis=-1).mean()
    parts = (divergence(log_policy, every.base).mean(), selected, choice, selected - choice, change.sum(axis=1).mean())
    return dict(zip(selection.PARTS[:5], parts, strict=True)) | {"share": selected / parts[0]}, weights, change


def parts(found):
    found = jax.tree.map(np.asarray, found)
    return {name: float(getattr(found, name)) for name in selection.PARTS}


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


mixture = jax.jit(selection.best_mixture, static_argnames="tolerance")
split = jax.jit(selection.split, static_argnames="jackknife")
tilt, match = jax.jit(tilting.tilt), jax.jit(tilting.match)


def split_of(every, log_policy):
    return split(*f32(log_policy, every.personas, PRIOR), chances=jnp.exp(*f32(log_policy)))


def draw(generator, log_chances, shape):
    """Indices of episodes int[*shape], drawn by their chances."""
    chances = np.exp(log_chances)
    return generator.choice(len(chances), shape, p=chances / chances.sum())


def base_of(every):
    """Arguments of `tilt` and `match` with every episode of the base."""
    rewards, posterior, prior, base = f32(every.rewards, every.posterior, PRIOR, every.base)
    return rewards, posterior, prior, jnp.exp(base)


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


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.0, 30.0])
def test_the_tilt_is_that_of_every_episode(every, table, scale):
    log_policy = every.tilted(scale)
    expected, weights, change = oracle(every, log_policy)
    exact, sampled = tabular.tilt(table, scale), tilt(*base_of(every)[:3], scale, base_of(every)[3])
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

    found, matched = split_of(every, every.policy), match(*base_of(every)[:3], reward, base_of(every)[3])
    wasted = float(tilting.gratuitous(found, reward, matched))
    assert wasted == pytest.approx(drift, abs=1e-5)
    assert parts(matched.split) == pytest.approx(needed, abs=1e-4)
    total = float(matched.split.selection + matched.split.within) + wasted
    assert total == pytest.approx(divergence(every.policy, every.base).mean(), abs=1e-5)

    exact = tabular.match(table, PRIOR, reward)
    assert exact.scale == pytest.approx(scale, abs=1e-9)
    assert float(found.divergence - exact.split(PRIOR).divergence) == pytest.approx(drift, abs=1e-5)
    # G is the divergence from any other tilt too.
    other = tilt(*base_of(every)[:3], 1.5, base_of(every)[3])
    expected = divergence(every.policy, every.tilted(1.5)).mean()
    assert float(tilting.gratuitous(found, reward, other)) == pytest.approx(expected, abs=1e-5)


def test_a_tilt_wastes_nothing_and_an_impossible_reward_is_told(every, table):
    policy = every.tilted(3.0)
    matched = match(*base_of(every)[:3], every.earned(policy), base_of(every)[3])
    assert float(matched.scale) == pytest.approx(3, abs=1e-3)
    assert float(tilting.gratuitous(split_of(every, policy), every.earned(policy), matched)) == pytest.approx(
        0, abs=1e-5
    )
    best = every.rewards.max(axis=1).mean()
    unmet = match(*base_of(every)[:3], best + 1, base_of(every)[3])
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
    rewards, posterior, prior, base = base_of(every)
    assert float(tilting.reward_share(rewards, posterior, prior, base)) == pytest.approx(expected, rel=1e-5)

    shares = [float(tabular.tilt(table, scale).split(PRIOR).share) for scale in (1e-1, 1e-2, 1e-3)]
    errors = np.abs(np.array(shares) - expected)
    assert errors[2] < 2e-3 * expected
    np.testing.assert_allclose(errors[:2] / errors[1:], 10, rtol=0.1)  # linear in λ
    # The estimator in float32 keeps the limit too.
    assert float(tilt(rewards, posterior, prior, 1e-2, base).split.selection) == pytest.approx(
        float(tabular.tilt(table, 1e-2).split(PRIOR).selection), rel=1e-2
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_the_reward_share_of_few_episodes_is_corrected(every, table, labelled):
    """Four episodes of each persona, known by their labels or by posterior."""
    rewards, _, _, _ = base_of(every)
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


def test_the_best_mixture_is_scipys(every):
    for maze in range(MAZES):
        policy, personas, chances = every.policy[maze], every.personas[maze], np.exp(every.policy[maze])

        def residual(free, policy=policy, personas=personas, chances=chances):
            weights = special.softmax([*free, 0.0])
            return (chances * (policy - special.logsumexp(personas, b=weights, axis=-1))).sum()

        best = scipy.optimize.minimize(residual, np.zeros(2), method="Nelder-Mead", options={"fatol": 1e-10})
        found = mixture(*f32(policy, personas, chances))
        assert float(found.residual) == pytest.approx(best.fun, abs=2e-5)
        assert float(found.gap) < 3e-5
        within = divergence(policy, every.base[maze]) - float(split_of(every, every.policy).selections[maze])
        assert best.fun <= within + 1e-6
    mixed = special.logsumexp(every.personas[0], b=[0.2, 0.3, 0.5], axis=-1)
    found = mixture(*f32(mixed, every.personas[0], np.exp(mixed)), tolerance=1e-7)
    np.testing.assert_allclose(found.weights, [0.2, 0.3, 0.5], atol=5e-3)
    assert float(found.residual) == pytest.approx(0, abs=1e-5)


def test_the_best_mixture_of_told_apart_personas_is_how_often_each_was_seen():
    """Closed form, and a persona that never acts gets nothing."""
    log_personas = jnp.where(jnp.eye(4, dtype=bool)[jnp.array([0, 0, 0, 1, 2, 2])], -1.0, -jnp.inf)
    found = mixture(jnp.full(6, -1.0), log_personas)
    np.testing.assert_allclose(found.weights, [3 / 6, 1 / 6, 2 / 6, 0], atol=1e-6)
    expected = special.entr([3 / 6, 1 / 6, 2 / 6]).sum()
    assert float(found.residual) == pytest.approx(expected, abs=1e-6)
    assert float(found.gap) == pytest.approx(0, abs=1e-5)


def test_intervals_resample_mazes():
    weights = jnp.asarray(np.random.default_rng(5).dirichlet(np.ones(3), 200), jnp.float32)
    prior = jnp.array(PRIOR, jnp.float32)
    selections = selection.relative_entropy(weights, jnp.broadcast_to(prior, (200, 3)))
    divergences = selections + 0.5
    found = selection.Split(prior, weights, divergences, selections, weights / 2)
    spans = selection.intervals(found, resamples=500)
    assert set(spans) == set(selection.PARTS)
    for name, value in parts(found).items():
        low, high = spans[name]
        assert low - 1e-6 <= value <= high + 1e-6 or name in ("choice", "routing")
    low, high = spans["divergence"]
    error = np.asarray(divergences).std() / np.sqrt(200)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)
    assert spans["within"] == pytest.approx((0.5, 0.5), abs=1e-5)


def test_members_are_a_leading_axis(every):
    policy, personas, prior = f32(every.policy, every.personas, PRIOR)
    several = policy[None] + jnp.array([0.0, 0.1])[:, None, None]
    found = jax.jit(jax.vmap(selection.split, in_axes=(0, None, None)))(several, personas, prior)
    found, alone = (jax.tree.map(np.asarray, x) for x in (found, split(policy, personas, prior)))
    np.testing.assert_allclose(found.within, alone.within + np.array([0, 0.1]), atol=1e-5)
    stacked = jax.tree.map(np.asarray, found).replace(prior=np.broadcast_to(prior, (2, 3)))
    np.testing.assert_allclose(stacked.choice, [alone.choice] * 2, rtol=1e-5)


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
