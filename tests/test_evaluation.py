"""What the summary of a run says of its scripts: each plays in the world of every member, and with its traits."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

import envs
from agents import runs
from agents.runs import config as configs
from agents.runs import evaluation, reporting, scripts
from envs import personas, tokens
from tests import tiny, untrained


def told(tmp_path, **population) -> dict:
    """The summary of a run that has not been trained; members return their number before RL, and tenfold after."""
    config = tiny.changed(**population)
    count = len(config.members)
    run = runs.create(tmp_path / "run", configs.to_dict(config), members=count)
    base = config.make_policy().init(jax.random.key(0))
    means = np.stack([np.outer([1.0, 10.0], np.arange(count)), np.zeros((2, count))])
    return evaluation.summary(run, jax.tree.map(lambda x: np.asarray(x)[None], base), means, np.zeros((2, 3)))


@pytest.mark.slow
def test_scripts_play_every_world_of_a_sweep(tmp_path):
    rewards = (-20.0, 1.0, 20.0)
    sweep = ("world.gold_reward=-20,1,20",)
    found = told(tmp_path, population={"seeds": 2, "sweep": sweep})["return"]
    points = found["points"]
    assert [point["values"] for point in points] == [{"world.gold_reward": reward} for reward in rewards]
    assert [point["before_rl"] for point in points] == [0.5, 2.5, 4.5]
    assert [point["after_rl"] for point in points] == [5.0, 25.0, 45.0]

    # Whom rewards do not move meets the same tiles in each world, so that returns are linear in what Gold pays.
    def slopes(of):
        returns = np.array([of(point) for point in points])
        return np.diff(returns) / np.diff(rewards)

    for of in (lambda point: point["random"], *(lambda p, name=name: p["personas"][name] for name in ("Larry", "Bob"))):
        np.testing.assert_allclose(slopes(of), slopes(of)[0], rtol=1e-3)
    # The planner and Alice know what Gold pays: they shun it in one world and seek it in another.
    world, params = envs.make("EmojiMaze-v0", size=11, turns=4, gold_reward=20.0)
    played, _ = scripts.script_episodes(world, params, tiny.CONFIG.pretrain.traits, 1024)
    returns = dict(zip(personas.SCRIPTS, np.asarray(played.returns, np.float64).mean(axis=1), strict=True))
    assert points[2]["greedy"] == pytest.approx(returns["greedy"], rel=1e-6)
    assert points[2]["personas"]["Alice"] == pytest.approx(returns["Alice"], rel=1e-6)
    assert points[0]["personas"]["Larry"] < -10 < points[0]["personas"]["Alice"]

    # The contract's numbers are means over the members.
    assert found["random"] == pytest.approx(np.mean([point["random"] for point in points]))
    assert found["personas"]["Alice"] == pytest.approx(np.mean([point["personas"]["Alice"] for point in points]))
    assert len(found["before_rl"]) == 6


def test_scripts_have_the_traits_that_are_swept(tmp_path):
    summary = told(tmp_path, population={"seeds": 1, "sweep": ("pretrain.slip=0,1",)}, pretrain={"shared": False})
    steady, slipping = summary["return"]["points"]
    assert steady["random"] == slipping["random"]
    assert abs(slipping["personas"]["Alice"] - slipping["random"]) < 4
    assert steady["personas"]["Alice"] - steady["random"] > 10


def test_without_a_sweep_there_are_no_points_and_one_row_a_script(tmp_path):
    summary = told(tmp_path)
    assert "points" not in summary["return"]
    assert set(summary["badge_kl"]) == set(personas.PERSONAS)


@pytest.mark.slow
def test_the_summary_tells_of_badges_where_there_are_some(tmp_path):
    both = {"badges", "misfit", "badge_kl"}
    known = {"shown": both | {"null_badge_kl"}, "spoken": both, "null": {"null_badge_kl"}}
    for badge, words in known.items():
        world = dataclasses.replace(tiny.CONFIG.world, badge=badge)
        summary = told(tmp_path / badge, world=world)
        assert set(summary) & known["shown"] == words
        for name in personas.PERSONAS if badge == "shown" else ():
            script = summary["return"]["personas"][name]
            assert summary["badges"][name]["script_return"] == pytest.approx(script, rel=1e-6)
            assert set(summary["badges"][name]) == {"return", "script_return", "kl_per_token"}


@pytest.mark.slow
def test_what_the_summary_tells_of_no_badge_is_under_the_head_of_the_town(tmp_path):
    """One base, the same episodes: the town changes what it reads where no badge is shown, and there alone."""
    towns = (dataclasses.replace(tiny.CONFIG.world, towns=2, town=town) for town in (1, 2))
    one, other = (told(tmp_path / str(world.town), world=world) for world in towns)
    for name in personas.PERSONAS:
        assert one["badge_kl"][name] == other["badge_kl"][name]
        assert one["null_badge_kl"][name] != pytest.approx(other["null_badge_kl"][name], rel=1e-6)


@pytest.mark.parametrize("random", [(-3.0, -3.0), (-3.0, -4.0)])
def test_the_table_has_a_row_for_each_point_whose_scripts_differ(random):
    scripts = {"personas": {"Larry": 0.0}, "greedy": 1.0}
    points = [
        {"values": {"world.gold_reward": 5.0 * i}, "random": x, **scripts, "after_rl": 1.0, "after_rl_interval": None}
        for i, x in enumerate(random)
    ]
    found = {"random": np.mean(random), **scripts, "points": points, "before_rl": [0.0] * 2, "after_rl": [1.0, 1.0]}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(reporting._outcomes({"return": found}, "return", "", "{:.1f}".format))
    rows = [line.split("│")[1].strip() for line in console.export_text().splitlines() if "random" in line]
    assert rows == (
        ["random"] if len(set(random)) == 1 else ["random, world.gold_reward=0", "random, world.gold_reward=5"]
    )


def test_personas_are_told_apart_where_the_base_has_met_them(tmp_path, monkeypatch):
    """Not in the world of the first point of the grid: what they earn stands beside their scripts on the same mazes."""
    config = tiny.changed(population={"seeds": 1, "sweep": ("world.gold_reward=-20,20",)})
    run = runs.create(tmp_path / "run", configs.to_dict(config), members=2)
    paid = []

    def play(policy, parameters, world, params, episodes, *, speakers):
        paid.extend(zip(speakers.tolist(), params.rewards[:, tokens.GOLD].tolist(), strict=True))
        return np.zeros((len(speakers), 4), np.float32), np.zeros((len(speakers), 4), bool)

    monkeypatch.setattr(evaluation, "policy_outcomes", play)
    parameters = {"w": np.zeros((2, 1), np.float32)}
    evaluation.means(run, parameters, parameters)
    usual = config.world.gold_reward
    assert paid == [(-1, -20), (-1, 20), (-1, -20), (-1, 20), (0, usual), (1, usual), (2, usual)]


@pytest.mark.parametrize("updates", [0, 4])
def test_members_that_are_the_same_policy_have_no_interval(tmp_path, updates):
    config = tiny.changed(population={"seeds": 6}, rl={"updates": updates})
    assert (evaluation._interval(config, np.arange(6.0)) is None) == (updates == 0)
    own = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, shared=False))
    assert evaluation._interval(own, np.arange(6.0)) is not None


def test_a_notebook_shows_each_point_of_a_grid_and_no_interval_of_a_single_policy(tmp_path):
    """Before RL all members are the base that they share."""
    config = tiny.changed(population={"seeds": 4, "sweep": ("rl.learning_rate=1e-4,0.5",)})
    run = runs.create(tmp_path / "run", configs.to_dict(config), members=8)
    points = [
        {"values": {"rl.learning_rate": 1e-4}, "after_rl": 2.0, "after_rl_interval": [1.5, 2.5]},
        {"values": {"rl.learning_rate": 0.5}, "after_rl": None, "after_rl_interval": None},
    ]
    found = {"random": -3.0, "personas": {"Bob": 0.5}, "before_rl": [1.0] * 8, "after_rl": [2.0] * 4 + [None] * 4}
    run.write_summary({"return": found | {"points": points}})
    cells = [row.split("</td><td>") for row in run._repr_html_().split("<tr><td>")[1:]]
    assert [(name, value.partition("<")[0]) for name, value in cells] == [
        ("random", "−3.00"),
        ("Bob", "0.500"),
        ("before RL", "1.00"),
        ("after RL, rl.learning_rate=0.0001", "2.0 [1.5, 2.5]"),
        ("after RL, rl.learning_rate=0.5", "–"),
    ]


@pytest.mark.parametrize(
    "told", [{"return": 5}, {"return": {"random": 1.0}}, {"return": {"random": "x", "personas": 3}}]
)
def test_a_notebook_shows_what_is_wrong_with_a_summary(tmp_path, told):
    run = untrained.write(tmp_path / "run", tiny.CONFIG)
    (run.path / "summary.json").write_text(json.dumps(told))
    shown = run._repr_html_()
    assert "summary.json: not the summary of a run" in shown
    assert shown.startswith(f"<p><code>Run {run.path}")
