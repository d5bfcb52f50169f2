"""Learning from demonstrations: what is learnt of them, stage `sft`, and RL mixed with imitation."""

import dataclasses

import jax
import numpy as np
import pytest

import train
from agents.learning import demonstrations, imitation, learner, population, rollout
from agents.runs import config as configs
from agents.runs import stages
from agents.runs.config import ConfigError
from envs import personas, tokens
from envs.labyrinth import LabyrinthOptions
from tests import tiny

SHARDS = learner.Shards()
LABYRINTH = LabyrinthOptions(size=3, turns=5, view="compass", plan_length=4)


@pytest.fixture(scope="module")
def shown():
    """A world with plans, and 32 episodes of its personas."""
    world, params = LABYRINTH.make()
    config = demonstrations.Demonstrations()
    key = jax.random.key(5)
    return world, jax.jit(lambda: demonstrations.persona_episodes(config, world, params, key, 32, SHARDS))()


def test_a_lesson_is_all_choices_or_those_of_a_kind_or_of_some_episodes(shown):
    world, episodes = shown
    whole = imitation.Lesson.of(world, episodes)
    plan, actions = (imitation.Lesson.of(world, episodes, kind) for kind in ("plan", "actions"))
    np.testing.assert_array_equal(whole.chosen, plan.chosen | actions.chosen)
    assert not (plan.chosen & actions.chosen).any()
    assert plan.chosen.sum() == episodes.written.sum()
    assert actions.chosen.sum() == episodes.played.sum()
    keep = rollout.succeeded(world, episodes)
    assert 0 < keep.sum() < 32
    some = imitation.Lesson.of(world, episodes, keep=keep)
    np.testing.assert_array_equal(some.chosen, whole.chosen & keep[:, None])
    np.testing.assert_array_equal(some.told, whole.told & keep[:, None])


@pytest.mark.parametrize("focus", [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_choices_and_observations(shown, focus, key):
    world, episodes = shown
    policy = tiny.CONFIG.make_policy()
    parameters = policy.init(key)
    lesson = imitation.Lesson.of(world, episodes)
    _, metrics = jax.jit(lambda: imitation.gradient(policy, parameters, lesson, 0.25, 8, SHARDS, focus=focus))()
    logits, _ = policy.heads(parameters, policy.forward(parameters, lesson.tokens[:, :-1]).hidden)
    logits = np.asarray(logits, np.float64)
    nats = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(lesson.tokens)[:, 1:, None], -1)[..., 0]
    )
    chosen, told = np.asarray(lesson.chosen)[:, 1:], np.asarray(lesson.told)[:, 1:]
    weight = np.exp(-nats) * (1 - np.exp(-nats)) if focus else np.ones_like(nats)
    expected = ((weight * nats)[chosen].sum() + 0.25 * nats[told].sum()) / (chosen.sum() + 0.25 * told.sum())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["action_loss"], nats[chosen].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["observation_loss"], nats[told].mean(), rtol=1e-4)


def test_one_persona_shows_only_its_own_ways(key):
    world, params = tiny.CONFIG.world.make()
    config = demonstrations.Demonstrations(persona="Larry", badge_probability=1.0)
    played = demonstrations.persona_episodes(config, world, params, key, 8, SHARDS)
    badge = personas.LARRY + 1
    assert (played.tokens[:, 0] == tokens.BADGES[badge]).all()


SFT = tiny.changed(sft={"updates": 12, "chunk": 12, "episodes": 32, "learning_rate": 1e-2, "warmup": 1})


@pytest.mark.slow
def test_fine_tuning_learns_its_persona_and_each_member_by_itself():
    state, metrics = tiny.train_stage(SFT, "sft")
    assert metrics["action_loss"].shape == (2, 12)
    assert (metrics["action_loss"][:, -3:].mean(1) < metrics["action_loss"][:, 0] - 0.05).all()
    kernels = np.asarray(jax.tree.leaves(state.parameters)[0])
    assert (kernels[0] != kernels[1]).any()
    assert state.reference is None


def test_rejection_fine_tuning_learns_nothing_where_nobody_succeeds():
    """In EmojiMaze to succeed is to earn more than nothing, which a turn's own reward decides here."""
    config = dataclasses.replace(SFT, sft=dataclasses.replace(SFT.sft, source="successes", updates=2, chunk=2))
    stage = stages.make_stage(config, "sft")
    start = population.on_host(stage.initial(None).parameters)

    def trained(turn_reward):
        paid = dataclasses.replace(config, world=dataclasses.replace(config.world, turn_reward=turn_reward))
        return tiny.train_stage(paid, "sft", start)

    (rich, won), (poor, lost) = trained(100.0), trained(-100.0)
    assert (won["success"] == 1).all()
    assert (lost["success"] == 0).all()
    assert (lost["loss"] == 0).all()
    jax.tree.map(np.testing.assert_array_equal, poor.parameters, start)
    jax.tree.map(np.testing.assert_array_equal, rich.reference, start)
    pairs = zip(jax.tree.leaves(rich.parameters), jax.tree.leaves(start), strict=True)
    assert sum(int((now != before).sum()) for now, before in pairs) > 1000


def mixed(mu: float, final: float, **rl) -> configs.Config:
    mix = {"imitation": "sft", "imitation_weight": mu, "final_imitation_weight": final, "updates": 2, "chunk": 2}
    return tiny.changed(sft={"episodes": 16}, rl=mix | rl)


@pytest.mark.slow
@pytest.mark.usefixtures("retraced")
@pytest.mark.long
def test_lessons_are_drawn_by_no_key_of_an_order(monkeypatch):
    """A fold of a key is one of its splits."""
    drawn = {"orders": set(), "lessons": set()}
    permutation, show = jax.random.permutation, demonstrations.persona_episodes

    def note(kind, key):
        jax.debug.callback(lambda data: drawn[kind].add(tuple(data.tolist())), jax.random.key_data(key))

    def ordered(key, groups):
        note("orders", key)
        return permutation(key, groups)

    def shown(config, world, params, key, *rest):
        note("lessons", key)
        return show(config, world, params, key, *rest)

    monkeypatch.setattr(jax.random, "permutation", ordered)
    monkeypatch.setattr(demonstrations, "persona_episodes", shown)
    tiny.train_stage(mixed(0.5, 0.5, epochs=3), "rl")
    jax.effects_barrier()
    assert len(drawn["orders"]) >= 3 * 2 * 2  # epochs, updates, members
    assert len(drawn["lessons"]) == 2 * 2
    assert not drawn["orders"] & drawn["lessons"]


@pytest.mark.slow
@pytest.mark.long
def test_mu_goes_from_rl_alone_to_imitation_alone():
    def trained(config):
        state, metrics = tiny.train_stage(config, "rl")
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.parameters)]), metrics

    alone, _ = tiny.train_stage(tiny.changed(rl={"updates": 2, "chunk": 2}), "rl")
    rl, _ = trained(mixed(0.0, 0.0))
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(alone.parameters)])
    np.testing.assert_allclose(rl, expected, atol=1e-6)  # another program, rounded otherwise
    imitated, metrics = trained(mixed(1.0, 1.0))
    rewarded_otherwise, _ = trained(mixed(1.0, 1.0, reward_scale=3.0))
    np.testing.assert_array_equal(imitated, rewarded_otherwise)
    assert (imitated != rl).mean() > 0.5
    _, between = trained(mixed(0.75, 0.25))
    np.testing.assert_allclose(between["imitation_weight"], [[0.75, 0.25]] * 2)
    assert (metrics["imitation_loss"] > 0).all()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sft": {"updates": 3, "chunk": 2}}, r"--sft\.updates=3: use a multiple of sft\.chunk=2"),
        ({"sft": {"updates": -1}}, r"--sft\.updates=-1: use 0 or more"),
        ({"sft": {"slip": 2.0}}, r"--sft\.slip=2: use a value from 0 to 1"),
        ({"rl": {"imitation": "sft"}, "sft": {"episodes": 15}}, r"--sft\.episodes=15: .* rl\.minibatches=2"),
        ({"rl": {"imitation": "sft"}, "sft": {"source": "successes"}}, r"--sft\.source=successes: .*personas alone"),
        ({"rl": {"importance": "decoupled"}}, r"--rl\.importance=decoupled: .*--rl\.staleness"),
        ({"rl": {"staleness": -1}}, r"--rl\.staleness=-1: use 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        configs.check(tiny.changed(**sections))


@pytest.mark.slow
def test_a_run_with_fine_tuning_starts_rl_from_its_end(tmp_path):
    config = dataclasses.replace(SFT, sft=dataclasses.replace(SFT.sft, updates=2, chunk=1))
    run = train.train(config, tmp_path / "run")
    assert run.checkpoints() == ["init", "pretrain", "sft-000001", "sft", "rl-000001", "rl-000002", "rl"]
    assert run.metrics("sft").num_rows == 4
    summary = run.summary()
    assert len(set(summary["return"]["before_rl"])) == 2
    assert summary["tokens_per_second"]["sft"] > 0
    again, _ = tiny.train_stage(config, "rl", run.parameters("sft"))
    jax.tree.map(np.testing.assert_array_equal, again.parameters, run.parameters("rl"))
