"""Implied weights against planted mixtures, the ideal observer against Bayes' symmetry, and the measurement."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from analysis import inference, measures
from analysis.figures.panels import draw
from analysis.measures.beliefs import panels
from envs import personas, tokens
from envs.labyrinth import LabyrinthOptions
from ground.terminal import ConfigError
from tests import tiny, untrained
from tests.thrift import some

EPISODES, TURNS, ACTIONS = 40, 5, 4


def seen(alike, played=None, posterior=None, model=None, prior=None):
    """`Seen` of personas float[I, N, T, J, A], probabilities; what is left out is uniform."""
    prior = np.full(alike.shape[3], 1 / alike.shape[3]) if prior is None else prior
    shape = alike.shape[:3]
    played = np.ones(shape, bool) if played is None else played
    posterior = np.full((*shape, alike.shape[3]), 1 / alike.shape[3]) if posterior is None else posterior
    model = np.full((*shape, alike.shape[4]), 1 / alike.shape[4]) if model is None else model
    return inference.Seen(
        model=jnp.log(jnp.asarray(model, jnp.float32)),
        personas=jnp.log(jnp.asarray(alike, jnp.float32)),
        posterior=jnp.log(jnp.asarray(posterior, jnp.float32)),
        played=jnp.asarray(played),
        prior=jnp.asarray(prior, jnp.float32),
    )


def drawn(generator, *shape):
    return generator.dirichlet(np.full(ACTIONS, 0.5), shape) * 0.95 + 0.05 / ACTIONS


IMPLIED = jax.jit(inference.implied, static_argnums=2)


def test_planted_mixtures_are_recovered_at_every_turn():
    generator = np.random.default_rng(0)
    alike = drawn(generator, 2, EPISODES, TURNS, 3)
    planted = generator.dirichlet(np.ones(3), (2, TURNS))
    planted[0, 0] = (0, 0.4, 0.6)
    chances = np.einsum("itj,intja->inta", planted, alike)
    found = IMPLIED(jnp.asarray(chances, jnp.float32), seen(alike), 500)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, planted, atol=5e-3)
    np.testing.assert_allclose(np.sum(found, -1), 1, rtol=1e-5)


def test_a_model_that_is_no_mixture_has_the_weights_that_a_general_optimiser_finds():
    generator = np.random.default_rng(1)
    alike, chances = drawn(generator, EPISODES, 3), drawn(generator, EPISODES)
    chances = 0.5 * chances + 0.3 * alike[:, 0] + 0.2 * alike[:, 2]
    counts = generator.integers(0, 3, EPISODES)

    def loss(scores):
        mixture = np.einsum("j,nja->na", special.softmax(scores), alike)
        return -(counts[:, None] * chances * np.log(mixture)).sum() / counts.sum()

    expected = special.softmax(optimize.minimize(loss, np.zeros(3)).x)
    share = jnp.asarray(counts / counts.sum(), jnp.float32)
    given = (jnp.asarray(x, jnp.float32) for x in (chances, alike))
    found = jax.jit(inference.implied_weights, static_argnums=4)(*given, share, jnp.full(3, 1 / 3), 500)
    assert expected.max() < 0.9
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_worked_by_hand():
    """.8 w + .2 (1 - w) = .65 makes w = .75; nearer to the first persona than itself the weight stays at 1."""
    alike = jnp.array([[[0.8, 0.2], [0.2, 0.8]]], jnp.float32)
    one = jnp.ones(1, jnp.float32)
    weigh, even = jax.jit(inference.implied_weights, static_argnums=4), jnp.full(2, 0.5)

    def first(chance, steps=1000, start=even):
        return float(weigh(jnp.array([[chance, 1 - chance]], jnp.float32), alike, one, start, steps)[0])

    assert first(0.5) == pytest.approx(0.5, abs=1e-6)
    assert first(0.65) == pytest.approx(0.75, abs=1e-4)
    assert first(0.9) == pytest.approx(1, abs=1e-4)
    # One step by hand: .5 × (.65 × .8 / .5 + .35 × .2 / .5), and .25 × (.65 × .8 / .35 + .35 × .2 / .65).
    assert first(0.65, 1) == pytest.approx(0.59, abs=1e-6)
    assert first(0.65, 1, jnp.array([0.25, 0.75])) == pytest.approx(0.39835165, abs=1e-6)
    # Who has no chance in the prior can be found all the same.
    assert first(0.65, start=jnp.array([0.0, 1.0])) == pytest.approx(0.75, abs=1e-4)
    # What no persona ever does speaks for none of them.
    impossible = jnp.array([[[1.0, 0, 0], [0, 1.0, 0]]], jnp.float32)
    found = weigh(jnp.array([[0.1, 0.3, 0.6]], jnp.float32), impossible, one, even, 3)
    np.testing.assert_allclose(found, [0.25, 0.75], rtol=1e-6)
    assert np.isnan(weigh(impossible[:, 0], impossible, 0 * one, even, 3)).all()


def histories(alike, generator, ends=True, prior=(1 / 3, 1 / 3, 1 / 3)):
    """Episodes that each persona plays, its actions drawn from float[I, N, T, J, A]; the posterior by Bayes' rule."""
    count, episodes, turns = alike.shape[:3]
    posterior, played = np.zeros((*alike.shape[:3], alike.shape[3])), np.ones((count, episodes, turns), bool)
    for i in range(count):
        for n in range(episodes):
            belief = np.array(prior)
            length = generator.integers(1, turns + 1) if ends else turns
            for t in range(turns):
                posterior[i, n, t], played[i, n, t] = belief, t < length
                belief = belief * alike[i, n, t, :, generator.choice(alike.shape[4], p=alike[i, n, t, i])]
                belief /= belief.sum()
    return seen(alike, played, posterior, prior=prior)


def test_a_model_that_is_the_ideal_observer_implies_the_ideal_posterior_where_personas_differ():
    """Exact where personas differ in all states alike, and where no two of them ever do the same."""
    generator = np.random.default_rng(2)
    same = np.broadcast_to(drawn(generator, 3), (3, EPISODES, TURNS, 3, ACTIONS))
    apart = np.zeros((3, EPISODES, TURNS, 3, ACTIONS))
    for place in np.ndindex(apart.shape[:3]):
        apart[(*place, np.arange(3), generator.permutation(ACTIONS)[:3])] = 1
    for alike in (same, apart):
        found = histories(alike, generator)
        expected = inference.mean_posterior(found)
        by_hand = [
            [np.exp(found.posterior)[i, found.played[i, :, t], t].mean(axis=0) for t in range(TURNS)] for i in range(3)
        ]
        np.testing.assert_allclose(expected, by_hand, atol=1e-5)
        implied = IMPLIED(jnp.exp(inference.ideal_actions(found)), found, 3000)
        np.testing.assert_allclose(implied, expected, atol=3e-3)
        assert np.abs(np.asarray(expected)[:, -1] - 1 / 3).max() > 0.2


@pytest.mark.parametrize("prior", [(1 / 3, 1 / 3, 1 / 3), (0.8, 0.1, 0.1)])
def test_personas_that_act_alike_leave_the_prior_and_no_episode_leaves_nothing(prior):
    generator = np.random.default_rng(3)
    alike = np.repeat(drawn(generator, 3, EPISODES, TURNS, 1), 3, axis=3)
    found = histories(alike, generator, prior=prior)
    found = dataclasses.replace(found, played=found.played.at[1, :, 3:].set(False))
    for weights in (inference.mean_posterior(found), IMPLIED(jnp.exp(found.model), found, inference.STEPS)):
        weights = np.array(weights)
        assert np.isnan(weights[1, 3:]).all()
        weights[1, 3:] = prior
        np.testing.assert_allclose(weights, np.broadcast_to(prior, weights.shape), rtol=1e-5)


def watched(config, parameters, episodes):
    """What `watch` sees of the config's personas, and the episodes."""
    (world, params), policy, prior = config.world.make(), config.make_policy(), jnp.asarray(config.prior, jnp.float32)
    traits = config.pretrain.traits
    return jax.jit(lambda: inference.watch(policy, parameters, world, params, traits, prior, episodes))()


LABYRINTH = tiny.changed(world=LabyrinthOptions(size=3, turns=4, plan_length=4))
IN_TOWN = {"towns": 2, "town": 2}
PRIORS = {"prior": (".2,.2,.6", ".8,.1,.1")}
TOWN = tiny.changed(world=dataclasses.replace(LABYRINTH.world, **IN_TOWN), pretrain=PRIORS)


@pytest.mark.parametrize(("config", "head"), some([(TOWN, tokens.HEADS[2]), (LABYRINTH, tokens.NULL_BADGE)]))
def test_the_ideal_observer_of_real_episodes_obeys_bayes(config, head, key):
    """w_i E_i q_j = w_j E_j q_i of episodes still played, as π_i q_j = π_i w_j π_j / Σ w π; plans are part of them."""
    world, params = config.world.make()
    policy = config.make_policy()
    parameters, count = policy.init(key), 384
    found, played = watched(config, parameters, count)
    posterior = np.exp(found.posterior) * np.asarray(found.played)[..., None] * config.prior[:, None, None, None]
    means, error = posterior.mean(axis=1), posterior.std(axis=1) / np.sqrt(count)
    noise = np.sqrt(error**2 + error.swapaxes(0, 2) ** 2)
    assert (np.abs(means - means.swapaxes(0, 2)) < 4 * noise + 1e-6).all()
    own = np.asarray(inference.mean_posterior(found))[range(3), :, range(3)]
    assert (own[:, 0] > config.prior + 0.05).all()  # the plan alone gives them away
    assert (own[:, -1] > own[:, 0]).all()
    assert not found.played.all()
    assert (played.tokens[..., 0] == head).all()
    exact = np.asarray(found.personas)
    np.testing.assert_allclose(np.exp(exact).sum(-1), 1, rtol=1e-5)
    badges = np.asarray(
        jax.jit(inference.badge_fidelity, static_argnums=(0, 2))(policy, parameters, world, params, found, played)
    )
    assert badges.shape == (3, 4)
    for i in range(3):
        mine = exact[i, :, :, i]
        apart = (np.exp(mine) * (mine - np.asarray(found.model[i]))).sum(-1)
        # Without a badge it reads what was seen.
        np.testing.assert_allclose(badges[i, 0], apart[np.asarray(found.played[i])].mean(), rtol=1e-4)


def test_a_reader_that_is_the_mixture_it_was_shown_is_the_ideal_observer(key):
    """By Bayes' rule from the town's own prior; what an observer makes of it who infers nothing, by hand too."""
    config = tiny.changed(world={"size": 7, "turns": 3, **IN_TOWN}, pretrain=PRIORS)
    found, played = watched(config, config.make_policy().init(key), 32)
    alike, actions = np.exp(np.asarray(found.personas, np.float64)), np.asarray(played.actions)
    prior = np.array([0.8, 0.1, 0.1])
    belief, reader = np.broadcast_to(prior, (3, 32, 3)), []
    for turn in range(3):
        reader.append(np.einsum("inj,inja->ina", belief, alike[:, :, turn]))
        belief = belief * np.take_along_axis(alike[:, :, turn], actions[:, :, turn, None, None], axis=-1)[..., 0]
        belief = belief / belief.sum(axis=-1, keepdims=True)
    reader = np.stack(reader, axis=2)
    found = dataclasses.replace(found, model=jnp.asarray(np.log(reader), jnp.float32))
    told = jax.jit(inference.beliefs)(found, jnp.zeros((3, 4)))
    np.testing.assert_allclose(told.ideal[:, 0], np.broadcast_to(prior, (3, 3)), rtol=1e-5)
    np.testing.assert_allclose(told.nats[:, 0], 0, atol=1e-5)
    blind = np.einsum("j,intja->inta", prior, alike)
    apart = (reader * np.log(reader / blind)).sum(axis=-1).mean(axis=(1, 2))
    assert apart.min() > 1e-3
    np.testing.assert_allclose(told.nats[:, 1], apart, rtol=1e-4)
    # Of what nobody of any chance would do there is no posterior.
    lost = dataclasses.replace(found, posterior=found.posterior.at[1, 0, 1].set(jnp.nan))
    assert np.isnan(jax.jit(inference.beliefs)(lost, jnp.zeros((3, 4))).nats).all(axis=1).tolist() == [
        False,
        True,
        False,
    ]


# The measurement


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """Two members of one base."""
    return untrained.write(tmp_path_factory.mktemp("runs") / "maze", tiny.changed(world={"size": 7, "turns": 2}))


@pytest.mark.slow
def test_beliefs_of_members_and_of_the_base_that_they_share(maze, monkeypatch):
    asked, measure = [], inference.measure

    def counting(*arguments):
        asked.append(len(arguments[3].tile_map))
        return measure(*arguments)

    monkeypatch.setattr(inference, "measure", counting)
    measured = measures.beliefs(maze, episodes=16)
    assert asked == [1, 2]  # the base once
    base, after = (measured.sel(checkpoint=name) for name in ("pretrain", "rl"))
    assert (base["implied"] == base["implied"][0]).all()
    assert (after["implied"][0] != after["implied"][1]).any()
    assert measured["implied"].dims == ("checkpoint", "member", "persona", "turn", "believed")
    np.testing.assert_allclose(measured["implied"].sum("believed"), 1, rtol=1e-5)
    np.testing.assert_allclose(measured["ideal"].sel(turn=1), 1 / 3, rtol=1e-5)  # nothing has happened yet
    np.testing.assert_allclose(base["ideal"], after["ideal"], atol=1e-6)  # the same episodes
    assert (measured["episodes"] == 16).all()
    own = [after["implied"].sel(persona=name, believed=name).mean("turn") for name in personas.PERSONAS]
    np.testing.assert_allclose(after["recognised"], np.stack(own, axis=1), rtol=1e-6)
    assert measured["badge_kl"].dims == ("checkpoint", "member", "persona", "badge")
    assert (measured["nats"] > 0).all()
    alone = measures.beliefs(maze, "rl", episodes=8)
    assert (alone["episodes"] == 8).all()

    *curves, badges = panels({"maze": measured})
    assert [list(panel.curves) for panel in curves] == [["pretrain", "rl", "ideal observer"]] * 3
    np.testing.assert_array_equal(curves[1].curves["rl"].values, after["implied"].values[:, 1, :, 1].T)
    np.testing.assert_allclose(badges.values, after["badge_kl"].mean("member"))
    draw([*curves, badges])  # of several members


@pytest.mark.slow
def test_beliefs_of_members_that_plan_and_arrive(tmp_path):
    measured = measures.beliefs(untrained.write(tmp_path / "run", LABYRINTH), "rl", episodes=24).sel(checkpoint="rl")
    episodes = measured["episodes"].values
    assert (episodes[..., 0] == 24).all()
    assert (np.diff(episodes) <= 0).all()
    assert episodes.min() < 24
    own = np.stack([measured["ideal"].values[:, i, :, i] for i in range(3)], axis=1)
    wanted = np.nansum(own * episodes, axis=-1) / episodes.sum(axis=-1)
    np.testing.assert_allclose(measured["recognisable"], wanted, rtol=1e-6)
    assert (measured["recognisable"] > 1 / 3).all()


@pytest.mark.slow
def test_beliefs_start_from_the_prior_of_the_town_and_tell_of_no_badge_that_nobody_has_read(tmp_path):
    config = tiny.changed(world={"size": 7, "turns": 2, "badge": "null", **IN_TOWN}, pretrain=PRIORS)
    measured = measures.beliefs(untrained.write(tmp_path / "town", config), "rl", episodes=8)
    prior = np.array([0.8, 0.1, 0.1])
    np.testing.assert_allclose(measured["ideal"].sel(turn=1), np.broadcast_to(prior, (1, 2, 3, 3)), rtol=1e-5)
    assert measured["badge"].values.tolist() == ["none"]
    assert measured["badge_kl"].shape == (1, 2, 3, 1)
    *curves, badges = panels({"town": measured})
    assert [panel.marks for panel in curves] == [{"prior": pytest.approx(chance)} for chance in prior]
    assert badges.columns == ("none",)
    draw([*curves, badges])


def test_wrong_requests(maze, tmp_path):
    for wrong in (0, -3, 70_000):
        with pytest.raises(ConfigError, match=f"--episodes={wrong}: use (1 to 65536|65536 at most)"):
            measures.beliefs(maze, episodes=wrong)
    spoken = tiny.changed(world={"size": 7, "turns": 2, "badge": "spoken"})
    with pytest.raises(ConfigError, match=r"--world\.badge=spoken: .* --world\.badge shown"):
        measures.beliefs(untrained.write(tmp_path / "spoken", spoken))
