"""The named algorithms: what each changes, hand-worked advantages and averages, and plans in one learner."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from agents import runs
from agents.learning import algorithms, demonstrations, learner, rl, rollout
from agents.learning.algorithms import ALGORITHMS, Algorithm, RLConfig
from agents.runs import config as configs
from agents.runs import stages
from analysis.figures import panels
from envs import plans, tokens
from envs.labyrinth import LabyrinthOptions
from tests import tiny

NO_PLAN = np.zeros((4, 0), bool)


def episodes(rewards, written=NO_PLAN) -> rollout.Episodes:
    """Four episodes of two turns in groups of two; the second episode ends after its first turn."""
    rewards = jnp.array(rewards, jnp.float32)
    return rollout.Episodes(
        tokens=jnp.zeros((4, 3), jnp.int32),
        actions=jnp.zeros((4, 2), jnp.int32),
        rewards=rewards,
        terminated=jnp.zeros((4, 2), bool).at[1, 0].set(True),
        neighbours=jnp.zeros((4, 2, 4), jnp.int8),
        written=jnp.array(written),
    )


REWARDS = [[1, 2], [1, 0], [-1, 0], [0, -3]]
PLAYED = np.array([[1, 1], [1, 0], [1, 1], [1, 1]], bool)


def advantages(**changes):
    config = RLConfig(**({"normalise": "none", "group": 2} | changes))
    rewards = jnp.array(REWARDS, jnp.float32)
    decided, found, _ = algorithms.advantages(config, episodes(REWARDS), rewards, rewards, jnp.zeros((4, 2)))
    return np.where(decided, found, np.nan)


def of_episodes(*values):
    return np.where(PLAYED, np.array(values)[:, None], np.nan)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"advantage": "episode"}, of_episodes(3, 1, -1, -3)),
        ({"advantage": "group_mean"}, of_episodes(1, -1, 1, -1)),
        ({"advantage": "group_others"}, of_episodes(2, -2, 2, -2)),
        ({"advantage": "group_z"}, of_episodes(*np.array([1, -1, 1, -1]) / (2**0.5 + 1e-4))),
        ({"advantage": "outcome"}, of_episodes(1, 1, -1, -1)),
        ({"advantage": "outcome", "positive_weight": 0.0}, of_episodes(0, 0, -1, -1)),
        ({"advantage": "outcome", "negative_weight": 0.0}, of_episodes(1, 1, 0, 0)),
        ({"advantage": "outcome", "positive_weight": 0.1}, of_episodes(0.1, 0.1, -1, -1)),
        ({"advantage": "to_go"}, np.where(PLAYED, [[3, 2], [1, 0], [-1, 0], [-3, -3]], np.nan)),
        ({"advantage": "to_go", "discount": 0.5}, np.where(PLAYED, [[2, 2], [1, 0], [-1, 0], [-1.5, -3]], np.nan)),
        ({"advantage": "gae", "trace_decay": 1.0}, np.where(PLAYED, [[3, 2], [1, 0], [-1, 0], [-3, -3]], np.nan)),
        # Root mean square over the seven decisions: sqrt((9 + 9 + 1 + 1 + 1 + 9 + 9) / 7).
        ({"advantage": "episode", "normalise": "scale"}, of_episodes(3, 1, -1, -3) / np.sqrt(39 / 7)),
        # Deviation of the returns 3, 1, -1, -3: sqrt((9 + 1 + 1 + 9) / 3).
        ({"advantage": "group_mean", "normalise": "returns"}, of_episodes(1, -1, 1, -1) / np.sqrt(20 / 3)),
        # Mean absolute advantage of an episode: (3 + 1 + 1 + 3) / 4.
        ({"advantage": "episode", "absolute_weights": True}, of_episodes(9, 1, -1, -9) / 2),
    ],
    ids=str,
)
def test_advantages_by_hand(changes, expected):
    np.testing.assert_allclose(advantages(**changes), expected, rtol=1e-5)


def test_groups_that_earn_the_same_can_be_left_out():
    rewards = jnp.array([[1, 2], [1, 2], [-1, 0], [0, -3]], jnp.float32)
    config = RLConfig(advantage="group_mean", group=2, informative_groups=True)
    decided, found, _ = algorithms.advantages(config, episodes(rewards), rewards, rewards, jnp.zeros((4, 2)))
    assert decided.tolist() == [[False] * 2, [False] * 2, [True] * 2, [True] * 2]
    np.testing.assert_allclose(found[2:, 0], [1, -1], atol=1e-5)


def test_what_is_charged_for_makes_no_success_and_no_difference_between_groups():
    """Labels and filters read what the world paid; the advantage of a group reads what is credited."""
    pay = jnp.array([[1, 2], [3, 0], [-1, 0], [0, -3]], jnp.float32)
    credited = pay - jnp.array([[9, 0], [0, 0], [-9, 0], [-9, 0]], jnp.float32)
    values = jnp.zeros((4, 2))
    config = RLConfig(advantage="group_mean", group=2, informative_groups=True, normalise="none")
    decided, found, _ = algorithms.advantages(config, episodes(pay), pay, credited, values)
    assert decided[:, 0].tolist() == [False, False, True, True]
    np.testing.assert_allclose(found[2:, 0], [1, -1])
    config = RLConfig(advantage="outcome", normalise="none")
    assert algorithms.advantages(config, episodes(pay), pay, credited, values)[1][:, 0].tolist() == [1, 1, -1, -1]


def rounded_apart():
    """Eight episodes of 15 turns in two groups of four: each pays the same in another order, so that sums differ."""
    generator = np.random.default_rng(2)
    shares = [generator.permuted(np.tile(1000 * generator.normal(size=15), (4, 1)), axis=1) for _ in range(2)]
    pay = jnp.array(np.concatenate(shares), jnp.float32)
    sums = np.asarray(pay.sum(axis=1)).reshape(2, 4)
    assert (sums.max(axis=1) > sums.min(axis=1)).all()
    return pay


def of_turns(pay) -> rollout.Episodes:
    batch, turns = pay.shape
    false = jnp.zeros((batch, turns), bool)
    return rollout.Episodes(
        tokens=jnp.zeros((batch, 1), jnp.int32), actions=jnp.zeros((batch, turns), jnp.int32), rewards=pay,
        terminated=false, neighbours=jnp.zeros((batch, turns, 4), jnp.int8),
        written=jnp.zeros((batch, 0), bool),
    )  # fmt: skip


@pytest.mark.parametrize("advantage", ["group_mean", "group_z", "group_others"])
@pytest.mark.parametrize("normalise", ["none", "scale"])
def test_groups_that_differ_by_rounding_alone_earn_the_same(advantage, normalise):
    pay = rounded_apart()
    config = RLConfig(advantage=advantage, group=4, normalise=normalise)
    _, found, _ = algorithms.advantages(config, of_turns(pay), pay, pay, jnp.zeros((8, 15)))
    np.testing.assert_array_equal(found, 0.0)
    config = dataclasses.replace(config, informative_groups=True)
    decided, _, _ = algorithms.advantages(config, of_turns(pay), pay, pay, jnp.zeros((8, 15)))
    assert not decided.any()
    more = pay.at[0, 3].add(0.5)
    decided, found, _ = algorithms.advantages(config, of_turns(more), more, more, jnp.zeros((8, 15)))
    assert decided[:, 0].tolist() == [True] * 4 + [False] * 4
    assert (found[0] > 0).all()


def test_a_return_of_nothing_but_rounding_is_no_success():
    pay = jnp.array([[0.3, -0.1, -0.1, -0.1], [0.3, -0.1, -0.1, -0.0999]], jnp.float32)
    assert pay[0].sum() > 0
    world, _ = tiny.CONFIG.world.make()
    assert rollout.succeeded(world, of_turns(pay)).tolist() == [False, True]
    config = RLConfig(advantage="outcome", normalise="none")
    assert algorithms.advantages(config, of_turns(pay), pay, pay, jnp.zeros((2, 4)))[1][:, 0].tolist() == [-1, 1]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_batch_that_teaches_nothing_has_advantages_of_nothing(name):
    """All earn the same, so that groups are left out to the last."""
    pay = jnp.zeros((8, 15))
    for normalise in ("batch", "scale", "returns", "none"):
        config = RLConfig(
            **(ALGORITHMS[name].switches | {"group": 4, "informative_groups": True, "normalise": normalise})
        )
        decided, found, targets = algorithms.advantages(config, of_turns(pay), pay, pay, jnp.zeros((8, 15)))
        assert not decided.any()
        assert np.isfinite(found).all()
        assert np.isfinite(targets).all()
        share, norm = algorithms.shares(config, decided)
        assert not share.any()
        assert norm >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite_ppo", "ms_grpo", "dapo"])
def test_updates_that_teach_nothing_are_steps_of_nothing(name):
    rl = ALGORITHMS[name].switches | {"group": 4, "informative_groups": True, "updates": 2, "chunk": 2}
    config = tiny.changed(world={"gold_reward": 0.0, "mold_reward": 0.0}, rl=rl)
    before, _ = tiny.train_stage(config, "rl", chunks=0)
    after, metrics = tiny.train_stage(config, "rl", chunks=1)
    jax.tree.map(np.testing.assert_array_equal, before.parameters, after.parameters)
    assert all(np.isfinite(values).all() for values in metrics.values())
    np.testing.assert_array_equal(metrics["gradient_norm"], 0.0)


def test_batch_normalised_advantages_have_mean_0_and_deviation_1():
    found = advantages(advantage="to_go", normalise="batch")[PLAYED]
    np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("average", "share", "norm"),
    [
        ("decision", [[1, 1, 1], [1, 0, 0]], 4),
        ("episode", [[1 / 3, 1 / 3, 1 / 3], [1, 0, 0]], 2),
        ("constant", [[1, 1, 1], [1, 0, 0]], 6),
    ],
)
def test_what_a_step_averages_over(average, share, norm):
    decided = jnp.array([[True, True, True], [True, False, False]])
    found, over = algorithms.shares(RLConfig(average=average), decided)
    np.testing.assert_allclose(found, share)
    assert float(over) == norm


def test_every_name_is_an_option_and_names_fields():
    assert len({algorithm.title for algorithm in ALGORITHMS.values()}) == len(ALGORITHMS)
    for name, changes in ((name, algorithm.switches) for name, algorithm in ALGORITHMS.items()):
        config = configs.start(algorithm=name)
        configs.check(config)
        assert (config.algorithm, {key: getattr(config.rl, key) for key in changes}) == (name, changes)
        same = {field.name for field in dataclasses.fields(RLConfig)} - changes.keys()
        assert all(getattr(config.rl, key) == getattr(RLConfig(), key) for key in same)


@pytest.mark.parametrize("wrong", ["", "PPO", "grpo2"])
def test_an_unknown_name_is_refused_with_those_there_are(wrong):
    message = f"--algorithm {wrong}: unknown; choose one of {', '.join(ALGORITHMS)}$"
    with pytest.raises(configs.ConfigError, match=message):
        configs.start(algorithm=wrong)
    with pytest.raises(configs.ConfigError, match=message):
        configs.from_dict(configs.to_dict(tiny.CONFIG) | {"algorithm": wrong})


@pytest.mark.slow
def test_an_algorithm_is_one_entry_of_one_table(tmp_path, monkeypatch):
    """As the page tells: trained, drawn under its title and opened again, with nothing else changed."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    name, title, switches = re.findall(r'^"(\w+)": Algorithm\("([\w ]+)", (\{.*\})\),$', page, re.MULTILINE)[0]
    monkeypatch.setitem(ALGORITHMS, name, Algorithm(title, json.loads(switches)))
    titles, draw = [], panels.draw

    def drawn(*arguments, title, **options):
        titles.append(title)
        return draw(*arguments, title=title, **options)

    monkeypatch.setattr(panels, "draw", drawn)
    config = train.parse([*tiny.arguments(tiny.CONFIG), f"--algorithm={name}"]).config
    assert (config.algorithm, config.rl.advantage, config.rl.clip_high) == (name, "group_z", 0.5)
    run = train.train(config, tmp_path / "run")
    assert run.checkpoints()[-1] == "rl"
    assert runs.open(run.path).config == config
    assert len(titles) == 1
    assert title in titles[0]


LABYRINTH = LabyrinthOptions(size=3, turns=5, view="compass", plan_length=4)


def labyrinth(algorithm="ppo", **rl):
    # Sixteen episodes at a time fill the processor's vectors; a remainder is rounded otherwise, by a bit.
    changes = ALGORITHMS[algorithm].switches | {"group": 4, "reward_scale": 1.0, "episodes": 32} | rl
    return dataclasses.replace(
        tiny.CONFIG,
        world=LABYRINTH,
        rl=dataclasses.replace(tiny.CONFIG.rl, **changes),
        population=configs.PopulationConfig(seeds=1, microbatch=16),
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("grpo", marks=pytest.mark.long)])
def test_plans_are_part_of_the_same_learner(algorithm):
    config = labyrinth(algorithm, updates=2, chunk=2)
    state, metrics = tiny.train_stage(config, "rl", chunks=1, options=tiny.AS_USERS)
    assert np.all(metrics["first_ratio_error"] == 0)
    assert np.all(metrics["first_kl"] == 0)
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert (state.reference is not None) == (algorithm == "grpo")
    if algorithm == "grpo":
        assert metrics["episode_kl"][0, 0] == 0
        assert metrics["episode_kl"][0, 1] > 0


def test_what_was_planned_is_what_is_scored(key):
    config = labyrinth()
    policy, (world, params) = config.make_policy(), config.world.make()
    parameters = jax.tree.map(lambda x: 2 * x, policy.init(key))

    @jax.jit
    def play(budget):
        driver = rollout.policy_driver(policy, parameters, world, plan_budget=budget)
        keys = jax.random.split(key, 512)
        played, scores, _ = rollout.play(
            world, params, keys, key, driver, rollout.gumbel(512), observe=lambda states, scores: scores
        )
        return played, jnp.moveaxis(scores, 0, 1), rl.read_decisions(policy, parameters, world, played.tokens)

    played, scores, found = play(jnp.int32(4))
    np.testing.assert_allclose(scores, found.actions, rtol=3e-5, atol=2e-5)
    plan = world.plan(played.tokens)
    assert np.isin(plan, plans.SAYINGS).all()
    np.testing.assert_array_equal(played.written, jax.vmap(plans.open_slots)(plan))
    # Expected log-probability of the tokens drawn equals minus the entropy, within sampling error.
    chosen = found.chosen(world.said(plan), played.actions)[:, :4]
    surplus = np.asarray(chosen - jnp.sum(jnp.exp(found.openings) * found.openings, axis=-1))[
        np.asarray(played.written)
    ]
    assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(len(surplus))
    short, _, _ = play(jnp.int32(1))
    assert not short.written[:, 1:].any()
    assert (world.plan(short.tokens)[:, 1:] == tokens.PLAN_END).all()


def test_personas_write_and_follow_their_plans(key):
    world, params = dataclasses.replace(LABYRINTH, plan_length=6).make()
    config = demonstrations.Demonstrations()
    played = jax.jit(lambda: demonstrations.persona_episodes(config, world, params, key, 256, learner.Shards()))()
    chosen, told = rollout.spoken(world, played)
    assert not (chosen & told).any()
    positions = world.action_positions()
    np.testing.assert_array_equal(chosen[:, positions], played.played)
    assert told[:, : world.prompt_length].all()
    assert 0.2 < np.asarray(played.terminated).any(axis=1).mean() < 0.95
    counted = np.asarray(chosen | told).sum(axis=1)
    turns = np.asarray(played.played).sum(1) * (world.observation_length + 1)
    expected = world.prompt_length + np.asarray(played.written).sum(1) + turns
    np.testing.assert_array_equal(counted, expected)


def test_groups_share_a_maze(key):
    config = dataclasses.replace(tiny.CONFIG.rl, group=4, episodes=8)
    policy, (world, params) = tiny.CONFIG.make_policy(), tiny.CONFIG.world.make()
    parameters = policy.init(key)
    batch, _ = jax.jit(lambda: rl.collect(policy, world, config, params, parameters, key, 8, learner.Shards()))()
    first = np.asarray(batch.tokens)[:, : 1 + world.observation_length]
    assert all((first[i] == first[i - i % 4]).all() for i in range(8))
    assert (first[0] != first[4]).any()
    assert len({tuple(row) for row in np.asarray(batch.actions)[:4].tolist()}) > 1


def test_a_budget_of_plans_moves_over_the_updates():
    world, _ = LABYRINTH.make()
    config = RLConfig(updates=5, plan_budget=1.0, final_plan_budget=0.25)
    assert [int(rl.plan_budget(config, world, jnp.int32(u))) for u in range(5)] == [4, 3, 2, 2, 1]


def test_a_reset_makes_the_policy_its_own_reference():
    config = labyrinth("grpo", reference_reset=2)
    state = stages.make_stage(config, "rl").initial(None)
    state = jax.tree.map(lambda x: x[0], state)
    moved = dataclasses.replace(
        state,
        parameters=jax.tree.map(lambda x: x + 1, state.parameters),
        moments=jax.tree.map(lambda x: x + 1, state.moments),
    )
    for update, due in ((0, False), (1, False), (2, True), (3, False), (4, True)):
        found = rl.reset_reference(config.rl, dataclasses.replace(moved, update=jnp.int32(update)))
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), found.reference, found.parameters)
        assert all(jax.tree.leaves(equal)) == due
        assert all(bool((x == 0).all()) for x in jax.tree.leaves(found.moments)) == due


@pytest.mark.parametrize("lag", [1, 3])
def test_stale_episodes_are_played_by_the_version_of_so_many_updates_ago(lag):
    config = RLConfig(staleness=lag)
    state = learner.fresh({"w": jnp.float32(0.0)}, jax.random.key(0))
    state = dataclasses.replace(state, versions={"w": jnp.zeros(lag + 1)})
    for update in range(9):
        state = dataclasses.replace(state, parameters={"w": jnp.float32(update)}, update=jnp.int32(update))
        state, plays = rl.stale_version(config, state)
        assert plays is not None
        assert float(plays["w"]) == max(0, update - lag)


@pytest.mark.parametrize("importance", ["coupled", "decoupled"])
def test_what_stale_episodes_are_clipped_against(importance, key):
    config = dataclasses.replace(tiny.CONFIG.rl, staleness=1, importance=importance, value_weight=0.0, normalise="none")
    policy, (world, params) = tiny.CONFIG.make_policy(), tiny.CONFIG.world.make()
    now, old = (policy.init(k) for k in jax.random.split(key))

    @jax.jit
    def collect():
        batch, metrics = rl.collect(policy, world, config, params, now, key, 8, learner.Shards(), behaviour=old)
        read = [rl.read_decisions(policy, p, world, batch.tokens) for p in (now, old)]
        return (
            batch,
            metrics,
            [found.chosen(world.said(world.opening(batch.tokens)), batch.actions) for found in read],
            read[0].values,
        )

    batch, metrics, (mine, theirs), values = collect()
    weight = np.exp(np.asarray(mine - theirs))
    against = mine if importance == "decoupled" else theirs
    np.testing.assert_allclose(batch.log_probabilities, against, atol=1e-5)
    ess = weight.sum() ** 2 / (weight**2).sum() / weight.size
    np.testing.assert_allclose(metrics["effective_samples"], ess, rtol=1e-4)
    assert ess < 0.99
    plain = np.asarray(batch.targets - values)  # of GAE, the targets are advantages plus values
    expected = weight * plain if importance == "decoupled" else plain
    np.testing.assert_allclose(batch.advantages, expected, atol=1e-4)


def test_the_divergence_of_those_who_learn_is_told_whoever_played(key):
    config = dataclasses.replace(tiny.CONFIG.rl, staleness=1, reference="loss", episodes=512)
    policy, (world, params) = tiny.CONFIG.make_policy(), tiny.CONFIG.world.make()
    old, other = (policy.init(k) for k in jax.random.split(key))
    old, other = (jax.tree.map(lambda x: 2 * x, parameters) for parameters in (old, other))
    now = jax.tree.map(lambda a, b: a + 0.05 * (b - a), old, other)

    @jax.jit
    def told(plays):
        of = {"behaviour": plays, "reference": old}
        return rl.collect(policy, world, config, params, now, key, 64, learner.Shards(), **of)[1]["episode_kl"]

    fresh, stale = float(told(now)), float(told(old))
    assert fresh > 0.1
    np.testing.assert_allclose(stale, fresh, rtol=0.5)


@pytest.mark.parametrize("kind", ["episode", "to_go"])
def test_who_is_paid_for_others_is_paid_no_less_for_playing_less(kind, key):
    config = dataclasses.replace(
        tiny.CONFIG.rl, advantage=kind, normalise="none", shuffle_rewards=True, discount=0.5, reward_scale=1.0
    )
    policy, (world, params) = tiny.CONFIG.make_policy(), tiny.CONFIG.world.make()
    batch, told = jax.jit(lambda p: rl.collect(policy, world, config, params, p, key, 8, learner.Shards()))(
        policy.init(key)
    )
    equal = np.allclose(np.asarray(batch.advantages)[:, 0].mean(), told["return"], atol=1e-4)
    assert equal == (kind == "episode")
