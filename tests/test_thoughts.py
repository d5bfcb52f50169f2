"""Thoughts that were not chosen: read like chosen ones, and what they are worth to somebody who follows them."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents.learning import rl, rollout
from agents.runs import evaluation
from agents.runs.config import start
from analysis import __main__ as command
from analysis import measures, passes
from analysis.figures.panels import Curves
from analysis.measures.thoughts import KINDS, others, panels
from envs import personas, tokens
from envs.labyrinth import LabyrinthOptions
from envs.rooms import RoomsOptions
from ground.terminal import ConfigError
from tests import tiny, untrained

SPOKEN, PARAMS = envs.make("EmojiRooms-v0", size=6, distance_range=(1, 5))
POLICY = start("smoke", "EmojiRooms-v0").make_policy()
ROOMS = tiny.changed(world=RoomsOptions(size=6, distance_range=(1, 5)), population={"seeds": 2})
SURELY = personas.Traits(slip=0.0, following=(1.0, 1.0, 1.0), skill=0.0, plan_slip=0.0, thinking=(1.0, 1.0, 1.0))


@functools.partial(jax.jit, static_argnames="world")
def play(world, params, parameters, keys, opening=None):
    driver = rollout.policy_driver(POLICY, parameters, world, opening=opening)
    return rollout.play(
        world, params, keys, keys[0], driver, rollout.gumbel(len(keys)), observe=lambda states, scores: scores
    )[:2]


@pytest.fixture(scope="module")
def parameters():
    drawn = jax.jit(POLICY.init)(jax.random.key(1))
    return jax.tree.map(lambda x: 3 * x, drawn)  # far from uniform


@pytest.mark.parametrize(
    ("badge", "speaker"), [("spoken", personas.ALICE), pytest.param("shown", None, marks=pytest.mark.slow)]
)
def test_ones_own_thought_given_back_changes_nothing(badge, speaker, parameters, key):
    world, keys = SPOKEN.speaking(badge), jax.random.split(key, 64)
    _, free = rollout.told(world, PARAMS, jnp.int32(-1 if speaker is None else speaker), 64)
    own, scores = play(world, PARAMS, parameters, keys, free)
    again, same = play(world, PARAMS, parameters, keys, world.opening(own.tokens))
    np.testing.assert_array_equal(own.tokens, again.tokens)
    np.testing.assert_array_equal(own.rewards, again.rewards)
    np.testing.assert_array_equal(scores, same)
    if speaker is None:
        np.testing.assert_array_equal(own.tokens, play(world, PARAMS, parameters, keys)[0].tokens)
    else:
        assert (world.opening(own.tokens)[:, 0] == tokens.BADGES[1 + speaker]).all()
    assert own.written.any()
    assert not again.written.any()
    half, _ = play(world, PARAMS, parameters, keys, world.opening(own.tokens).at[:, 4:].set(-1))
    np.testing.assert_array_equal(own.tokens, half.tokens)
    np.testing.assert_array_equal(half.written, own.written.at[:, :4].set(False))


def test_actions_after_a_given_opening_are_those_of_the_whole_forward(parameters, key):
    said = SPOKEN.sayings[3:]
    plans = np.random.default_rng(0).choice(said, (64, SPOKEN.plan_length))
    opening = jnp.asarray(np.concatenate([np.full((64, 1), tokens.BADGES[2]), plans], axis=1), jnp.int32)
    played, scores = play(SPOKEN, PARAMS, parameters, jax.random.split(key, 64), opening)
    np.testing.assert_array_equal(SPOKEN.opening(played.tokens), opening)
    read = jax.jit(lambda: rl.read_decisions(POLICY, parameters, SPOKEN, played.tokens).actions)()
    # Weights this large make rounding large in the logarithm of what is improbable.
    np.testing.assert_allclose(np.exp(jnp.moveaxis(scores, 0, 1)), np.exp(read), atol=1e-4)
    assert np.ptp(read, axis=0).max() > 0.1


def test_thoughts_of_every_kind(key):
    keys = jax.random.split(key, 16)
    noisy = SURELY.replace(plan_slip=0.5)

    def thought(key):
        _, state = SPOKEN.reset_env(key, PARAMS)
        return state, SPOKEN.write_plan(key, jnp.int32(personas.ALICE), state, PARAMS, noisy)

    states, plans = jax.tree.map(np.asarray, jax.jit(jax.vmap(thought))(keys))  # of any length
    another, none, right, shuffled = np.asarray(jax.jit(others, static_argnums=0)(SPOKEN, PARAMS, keys, plans, key))
    np.testing.assert_array_equal(another, [*plans[1:], plans[0]])
    assert (none == tokens.PLAN_END).all()
    for maze in range(16):
        room = int(states.goal[maze])
        chain = [states.names[maze, room]]
        while room != states.start[maze]:
            chain.append(tokens.DOORS[0] + states.entries[maze, room])
            room = int(states.parents[maze, room])
            chain.append(states.names[maze, room])
        assert right[maze].tolist() == [*map(int, chain), *[tokens.PLAN_END] * 12][:12]
        assert sorted(shuffled[maze]) == sorted(plans[maze])
        ends = plans[maze] == tokens.PLAN_END
        assert (shuffled[maze][ends] == tokens.PLAN_END).all()
    assert (shuffled != plans).any(axis=1).sum() > 5


def test_moves_are_the_doors_from_start_to_goal(key):
    keys = jax.random.split(key, 128)
    _, states = jax.jit(jax.vmap(SPOKEN.reset_env, in_axes=(0, None)))(keys, PARAMS)
    doors = states.below[jnp.arange(128), states.start, states.goal]
    np.testing.assert_array_equal(jax.jit(lambda: passes.moves(SPOKEN, PARAMS, keys, key))(), doors)


@pytest.mark.slow
@pytest.mark.usefixtures("retraced")
def test_one_who_follows_thoughts_needs_right_ones(tmp_path, monkeypatch):
    """Alice, who without a thought does what Larry does: who stands beside the goal sees it."""
    run = untrained.write(tmp_path / "run", ROOMS)

    def follower(policy, parameters, world, *, opening):
        def write(states, key):
            keys, alice = jax.random.split(key, len(states.time)), jnp.int32(personas.ALICE)
            own = jax.vmap(lambda k, s: world.write_opening(k, alice, s, PARAMS, SURELY))(keys, states)
            return jnp.where(opening < 0, own, opening)

        act = jax.vmap(lambda state, plan: world.persona_log_probabilities(state, plan, PARAMS, SURELY)[personas.ALICE])
        return rollout.scripted_driver(world, act, write)

    monkeypatch.setattr(rollout, "policy_driver", follower)
    measured = measures.thoughts(run, "pretrain", episodes=192, shuffled=True).isel(checkpoint=0, member=0)
    assert int(measured["episodes"].sum()) == 192
    assert measured["distance"].values.tolist()[:3] == [1, 2, 3]
    success = {kind: measured["success"].sel(thought=kind) for kind in KINDS}
    assert (success["own"] == 1).all()
    assert (success["right"] == success["own"]).all()
    for kind in ("none", "another's"):
        assert success[kind][0] > 0.9
        assert float(success[kind].sel(distance=3)) < 0.75
    weights = measured["episodes"] / 192
    for kind in KINDS:
        assert float((weights * success[kind]).sum()) == pytest.approx(float(measured["overall"].sel(thought=kind)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained.write(tmp_path_factory.mktemp("runs") / "run", ROOMS)


@pytest.mark.slow
def test_own_play_is_that_of_the_badge(run):
    """A policy that was never trained, on other mazes, succeeds as often as the evaluation says."""
    parameters = jax.tree.map(lambda x: x[0], run.kept_parameters("pretrain"))
    measured = measures.thoughts(run, "pretrain", episodes=256).isel(checkpoint=0)
    one = jax.tree.map(lambda x: jnp.asarray(x)[None], (parameters, PARAMS))
    alice = np.full(1, personas.ALICE, np.int32)
    _, succeeded = evaluation.policy_outcomes(run.policy, one[0], run.world, one[1], 256, speakers=alice)
    assert float(measured["overall"].sel(thought="own", member=0)) == pytest.approx(succeeded.mean(), abs=0.12)


@pytest.mark.slow
def test_the_command_draws_and_writes(run, capsys):
    assert command.main(["thoughts", str(run.path), "--episodes", "256", "--speaker", "Bob"]) == 0
    text = capsys.readouterr().out
    for word in ("another's", "right", "distance 3", "pretrain"):
        assert word in text
    files = {path.suffix: path for path in run.path.rglob("*thoughts.*")}
    assert {".pdf", ".png", ".csv"} <= set(files)
    rows = list(csv.reader(files[".csv"].read_text().splitlines()))
    assert any("another's" in row for row in rows)
    measured = measures.thoughts(run, episodes=256, speaker="Bob")
    first, second = panels({"run": measured})
    assert isinstance(first, Curves)
    assert (list(first.curves), first.y) == (list(KINDS[:4]), "pretrain: success (%)")
    assert second.y == "rl: success (%)"


@pytest.mark.slow
def test_what_is_wrong_is_told_in_one_line(run, tmp_path, capsys):
    def refused(*arguments):
        assert command.main(["thoughts", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    silent = untrained.write(tmp_path / "silent", tiny.changed(world=RoomsOptions(size=6, plan_length=0)))
    assert "--world.plan-length above 0" in refused(silent.path)
    null = LabyrinthOptions(size=2, turns=3, view="bump", plan_length=4, badge="null")
    nameless = untrained.write(tmp_path / "null", tiny.changed(world=null))
    assert "--speaker=Alice: no badge is told in the run's world; use none" in refused(nameless.path)
    assert measures.thoughts(nameless, "rl", speaker="none", episodes=4).sizes["thought"] == 4
    assert "--episodes=65" in refused(run.path, "--episodes", "65")
    assert "--episodes=1" in refused(run.path, "--episodes", "1")
    assert "--speaker" in refused(run.path, "--speaker", "Carol")
    with pytest.raises(ConfigError, match="--speaker=Carol"):
        measures.thoughts(run, speaker="Carol")
