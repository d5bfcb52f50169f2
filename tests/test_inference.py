"""Implied weights against planted mixtures, the ideal observer against Bayes' symmetry, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import optimize, special

from agents import runs
from agents.runs import config as configs
from analysis import __main__ as cli
from analysis import inference
from analysis.commands import personas as command
from envs import personas, tokens
from envs.labyrinth import LabyrinthOptions
from tests import tiny

EPISODES, TURNS, ACTIONS = 40, 5, 4


def seen(alike, played=None, posterior=None, model=None):
    """`Seen` of personas float[I, N, T, J, A], probabilities; what is left out is uniform."""
    shape = alike.shape[:3]
    played = np.ones(shape, bool) if played is None else played
    posterior = np.full((*shape, alike.shape[3]), 1 / alike.shape[3]) if posterior is None else posterior
    model = np.full((*shape, alike.shape[4]), 1 / alike.shape[4]) if model is None else model
    return inference.Seen(
        model=jnp.log(jnp.asarray(model, jnp.float32)),
        personas=jnp.log(jnp.asarray(alike, jnp.float32)),
        posterior=jnp.log(jnp.asarray(posterior, jnp.float32)),
        played=jnp.asarray(played),
    )


def drawn(generator, *shape):
    return generator.dirichlet(np.full(ACTIONS, 0.5), shape) * 0.95 + 0.05 / ACTIONS


EVERY = jnp.ones(EPISODES, jnp.float32)
IMPLIED = jax.jit(inference.implied, static_argnums=3)


def test_planted_mixtures_are_recovered_at_every_turn():
    generator = np.random.default_rng(0)
    alike = drawn(generator, 2, EPISODES, TURNS, 3)
    planted = generator.dirichlet(np.ones(3), (2, TURNS))
    planted[0, 0] = (0, 0.4, 0.6)
    chances = np.einsum("itj,intja->inta", planted, alike)
    found = IMPLIED(jnp.asarray(chances, jnp.float32), seen(alike), EVERY, 500)
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
    found = jax.jit(inference.implied_weights, static_argnums=3)(*given, share, 500)
    assert expected.max() < 0.9
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_worked_by_hand():
    """.8 w + .2 (1 - w) = .65 makes w = .75; nearer to the first persona than itself the weight stays at 1."""
    alike = jnp.array([[[0.8, 0.2], [0.2, 0.8]]], jnp.float32)
    one = jnp.ones(1, jnp.float32)
    weigh = jax.jit(inference.implied_weights, static_argnums=3)

    def first(chance, steps=1000):
        return float(weigh(jnp.array([[chance, 1 - chance]], jnp.float32), alike, one, steps)[0])

    assert first(0.5) == pytest.approx(0.5, abs=1e-6)
    assert first(0.65) == pytest.approx(0.75, abs=1e-4)
    assert first(0.9) == pytest.approx(1, abs=1e-4)
    # One step by hand: .5 × (.65 × .8 / .5 + .35 × .2 / .5).
    assert first(0.65, 1) == pytest.approx(0.59, abs=1e-6)
    # What no persona ever does speaks for none of them.
    impossible = jnp.array([[[1.0, 0, 0], [0, 1.0, 0]]], jnp.float32)
    found = weigh(jnp.array([[0.1, 0.3, 0.6]], jnp.float32), impossible, one, 3)
    np.testing.assert_allclose(found, [0.25, 0.75], rtol=1e-6)
    assert np.isnan(weigh(impossible[:, 0], impossible, 0 * one, 3)).all()


def histories(alike, generator, ends=True):
    """Episodes that each persona plays, its actions drawn from float[I, N, T, J, A]; the posterior by Bayes' rule."""
    count, episodes, turns = alike.shape[:3]
    posterior, played = np.zeros((*alike.shape[:3], alike.shape[3])), np.ones((count, episodes, turns), bool)
    for i in range(count):
        for n in range(episodes):
            belief = np.full(alike.shape[3], 1 / alike.shape[3])
            length = generator.integers(1, turns + 1) if ends else turns
            for t in range(turns):
                posterior[i, n, t], played[i, n, t] = belief, t < length
                belief = belief * alike[i, n, t, :, generator.choice(alike.shape[4], p=alike[i, n, t, i])]
                belief /= belief.sum()
    return seen(alike, played, posterior)


def test_a_model_that_is_the_ideal_observer_implies_the_ideal_posterior_where_personas_differ():
    """Exact where personas differ in all states alike, and where no two of them ever do the same."""
    generator = np.random.default_rng(2)
    same = np.broadcast_to(drawn(generator, 3), (3, EPISODES, TURNS, 3, ACTIONS))
    apart = np.zeros((3, EPISODES, TURNS, 3, ACTIONS))
    for place in np.ndindex(apart.shape[:3]):
        apart[(*place, np.arange(3), generator.permutation(ACTIONS)[:3])] = 1
    for alike in (same, apart):
        found = histories(alike, generator)
        expected = inference.mean_posterior(found, EVERY)
        by_hand = [
            [np.exp(found.posterior)[i, found.played[i, :, t], t].mean(axis=0) for t in range(TURNS)] for i in range(3)
        ]
        np.testing.assert_allclose(expected, by_hand, atol=1e-5)
        implied = IMPLIED(jnp.exp(inference.ideal_actions(found)), found, EVERY, 3000)
        np.testing.assert_allclose(implied, expected, atol=3e-3)
        assert np.abs(np.asarray(expected)[:, -1] - 1 / 3).max() > 0.2


def test_personas_that_act_alike_leave_the_prior_and_no_episode_leaves_nothing():
    generator = np.random.default_rng(3)
    alike = np.repeat(drawn(generator, 3, EPISODES, TURNS, 1), 3, axis=3)
    found = histories(alike, generator)
    found = dataclasses.replace(found, played=found.played.at[1, :, 3:].set(False))
    counts = jnp.asarray(generator.integers(0, 3, EPISODES), jnp.float32)
    for weights in (
        inference.mean_posterior(found, counts),
        IMPLIED(jnp.exp(found.model), found, counts, inference.STEPS),
    ):
        weights = np.array(weights)
        assert np.isnan(weights[1, 3:]).all()
        weights[1, 3:] = 1 / 3
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-5)


LABYRINTH = tiny.changed(world=LabyrinthOptions(size=3, turns=4, plan_length=4))


def test_the_ideal_observer_of_real_episodes_obeys_bayes(key):
    """E_i q_j = E_j q_i of episodes still played, as π_i q_j = π_i π_j / Σ π; plans are part of the history."""
    world, params = LABYRINTH.world.make()
    policy = LABYRINTH.make_policy()
    parameters, count = policy.init(key), 384
    traits = LABYRINTH.pretrain.traits
    found, played = jax.jit(lambda: inference.watch(policy, parameters, world, params, traits, count))()
    posterior = np.exp(found.posterior) * np.asarray(found.played)[..., None]
    means, error = posterior.mean(axis=1), posterior.std(axis=1) / np.sqrt(count)
    noise = np.sqrt(error**2 + error.swapaxes(0, 2) ** 2)
    assert (np.abs(means - means.swapaxes(0, 2)) < 4 * noise + 1e-6).all()
    own = np.asarray(inference.mean_posterior(found, jnp.ones(count, jnp.float32)))[range(3), :, range(3)]
    assert (own[:, 0] > 0.4).all()  # the plan alone gives them away
    assert (own[:, -1] > own[:, 0]).all()
    assert not found.played.all()
    assert (played.tokens[..., 0] == tokens.NULL_BADGE).all()
    exact = np.asarray(found.personas)
    np.testing.assert_allclose(np.exp(exact).sum(-1), 1, rtol=1e-5)
    badges = np.asarray(
        jax.jit(inference.badge_fidelity, static_argnums=(0, 2))(policy, parameters, world, found, played)
    )
    assert badges.shape == (3, 4)
    for i in range(3):
        mine = exact[i, :, :, i]
        apart = (np.exp(mine) * (mine - np.asarray(found.model[i]))).sum(-1)
        # With the null badge it reads what was seen.
        np.testing.assert_allclose(badges[i, 0], apart[np.asarray(found.played[i])].mean(), rtol=1e-4)


def planted(directory, config):
    """A run directory with random policies: a base for all, and members that differ from it."""
    run = runs.create(directory, configs.to_dict(config), members=len(config.members))
    tree = jax.tree.map(lambda x: np.asarray(x)[None], config.make_policy().init(jax.random.key(0)))
    run.save_parameters("pretrain", tree)
    generator = np.random.default_rng(0)
    different = (run.members,)
    tree = jax.tree.map(lambda x: (x + generator.normal(size=different + x.shape[1:])).astype(np.float32), tree)
    run.save_parameters("rl", tree)
    return run


def analyse(run, *options):
    assert cli.main(["personas", str(run.path), *options]) == 0
    document = json.loads((run.path / "analysis" / "personas.json").read_text())
    assert document["personas"] == list(personas.PERSONAS)
    for ending in (".png", ".pdf"):
        assert (run.path / "figures" / f"personas{ending}").stat().st_size > 1000
    return document, pq.read_table(run.path / "analysis" / "personas.parquet").to_pylist()


def check_intervals(found):
    """Of a member alone: the mean lies in the interval, which has a width where there is something to resample."""
    assert (found["analysed"], found["intervals"]) == (1, "over mazes")
    for name in ("ideal", "implied"):
        low, mean, high = (np.array(found[name][end], float) for end in ("low", "mean", "high"))
        there = np.isfinite(mean) & np.isfinite(low)
        assert (low < high - 1e-3)[there].any()
        assert (low <= high + 1e-6)[there].all()
        assert ((low - 0.1 < mean) & (mean < high + 0.1))[there].all()
        np.testing.assert_allclose(mean[:, 0].sum(-1), 1, rtol=1e-5)
    assert np.array(found["badge_kl"]["mean"]).shape == (3, 4)
    assert found["badge_kl"]["low"] is None


def test_the_command_on_a_base_that_members_share(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "RESAMPLES", 20)
    run = planted(tmp_path / "run", tiny.changed(world={"size": 7, "turns": 2}))
    document, table = analyse(run, "--episodes", "16")
    found = document["checkpoints"]["pretrain"]
    check_intervals(found)
    assert found["episodes"] == [[16, 16]] * 3
    np.testing.assert_allclose(np.array(found["ideal"]["mean"])[:, 0], 1 / 3, rtol=1e-5)  # nothing has happened yet
    assert {row["member"] for row in table} == {None}
    assert [(row["true"], row["turn"], row["persona"]) for row in table[:4]] == [
        ("Larry", 1, "Larry"), ("Larry", 1, "Bob"), ("Larry", 1, "Alice"), ("Larry", 2, "Larry")
    ]  # fmt: skip
    for name in ("ideal", "implied", "benchmark"):
        np.testing.assert_allclose(np.array([row[name] for row in table]).reshape(3, 2, 3), found[name]["mean"])
    said = capsys.readouterr().out
    assert "Alice's badge" in said
    assert "ideal observer" in said


@pytest.mark.slow
def test_the_command_on_members_that_plan_and_differ_against_their_base(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RESAMPLES", 20)
    run = planted(tmp_path / "run", LABYRINTH)
    document, table = analyse(run, "--checkpoint", "rl", "--against", "pretrain", "--episodes", "24")
    after, base = document["checkpoints"]["rl"], document["checkpoints"]["pretrain"]
    check_intervals(base)
    assert (after["analysed"], after["intervals"]) == (2, "over members")
    rows = [row for row in table if row["checkpoint"] == "rl"]
    assert {row["member"] for row in rows} == {0, 1}
    assert len(table) == (2 + 1) * 3 * 4 * 3
    each = np.array([row["implied"] for row in rows]).reshape(2, 3, 4, 3)
    np.testing.assert_allclose(np.array(after["implied"]["mean"], float), each.mean(axis=0))
    np.testing.assert_allclose(np.array(after["implied"]["low"], float), each.min(axis=0), atol=1e-6)
    one, other = (np.array(found["ideal"]["mean"], float) for found in (after, base))
    np.testing.assert_allclose(one, other, atol=1e-6)  # the same episodes
    assert after["badge_kl"]["low"] != after["badge_kl"]["high"]
    episodes = np.array(after["episodes"])
    assert (episodes[:, 0] == 24).all()
    assert (np.diff(episodes) <= 0).all()
    assert episodes.min() < 24


def test_wrong_requests_end_in_one_line(tmp_path, capsys):
    run = planted(tmp_path / "run", LABYRINTH)

    def refused(*arguments):
        assert cli.main(["personas", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    for wrong in (0, -3, 70_000):
        assert f"--episodes={wrong}: use 1 to 65536" in refused(run.path, "--episodes", wrong)
    assert "no checkpoint 'sft'; there are pretrain, rl" in refused(run.path, "--checkpoint", "sft")
    assert "no checkpoint 'sft'" in refused(run.path, "--against", "sft")
    assert "--against pretrain: the checkpoint itself" in refused(run.path, "--against", "pretrain")
    assert "no such run directory" in refused(tmp_path / "none")
    assert not (run.path / "analysis").exists()
