"""Worlds are added by a file and a line, chosen by name, and leave the runs of others alone."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest

import envs
import train
from agents import runs
from agents.runs import config as configs
from agents.runs import evaluation
from agents.runs.config import ConfigError
from docs import tmaze
from envs import base, rendering
from envs.labyrinth import LabyrinthOptions
from envs.maze import MazeOptions
from studies.report import recordings
from tests import tiny

SHARED = {"layout": "scatter", "shuffle": False, "view": "walls", "plan_length": 0, "loops": 0.1, "mold": 0.0}
SHARED |= {"exploits": 0, "goal_reward": 1.0, "style": "none", "style_reward": 0.0, "wind_probability": 0.1}
SHARED |= {"gold_ratio": 0.2, "melting": True}
OLD = {
    "maze": SHARED
    | {"name": "EmojiMaze-v0", "size": 41, "turns": 10, "layout": "walk", "gold_reward": 5.0, "mold_reward": -10.0}
    | {"turn_reward": -0.1},
    "labyrinth": SHARED
    | {"name": "EmojiLabyrinth-v0", "size": 7, "turns": 20, "view": "compass", "plan_length": 16, "gold_reward": 1.0}
    | {"mold_reward": -1.0, "turn_reward": 0.0, "exploits": 2},
}
"""The section `world` of config.json as runs wrote it that kept the options of all worlds."""
NEW = {
    "maze": MazeOptions(size=41, turns=10, layout="walk", gold_reward=5.0),
    "labyrinth": LabyrinthOptions(view="compass", plan_length=16, exploits=2),
}


@pytest.fixture
def registered():
    """The T-maze, for one test."""
    envs.register(tmaze.TMaze)
    yield
    del envs.WORLDS["TMaze-v0"]


def added():
    """The config of a run in the T-maze."""
    small = tiny.changed(world=tmaze.TMazeOptions(length=3, turns=4))
    return dataclasses.replace(small, rl=dataclasses.replace(small.rl, reward_scale=1.0))


def test_a_maze_is_added_by_a_file_and_a_line(registered, key, capsys):
    envs.api_test(*envs.make("TMaze-v0", length=3), key)
    with pytest.raises(SystemExit):
        train.main(["--world.name", "TMaze-v0", "--help"])
    shown = capsys.readouterr().out
    assert "--world.length" in shown
    assert "The way" not in shown
    assert "--world.size" not in shown
    assert train.parse(tiny.arguments(added())).config == added()


@pytest.mark.slow  # a whole run, of a world of its own
def test_a_maze_that_was_added_is_trained_in_and_shown(registered, tmp_path):
    config = added()
    run = train.train(config, tmp_path / "run")
    success = run.summary()["success"]
    assert success["personas"]["Alice"] > success["personas"]["Bob"] > success["personas"]["Larry"]
    assert success["personas"]["Bob"] == pytest.approx(0.5, abs=0.06)
    for side, name in (("before_rl", "pretrain"), ("after_rl", "rl")):
        told = {"return": run.summary()["return"][side], "success": success[side]}
        played = evaluation.policy_outcomes(run.policy, run.parameters(name), run.world, run.params, 1024)
        for kind, outcomes in zip(("return", "success"), played, strict=True):
            np.testing.assert_allclose(told[kind], outcomes.mean(axis=1), rtol=1e-5)
    assert (run.path / "figures" / "replay.gif").stat().st_size > 1000
    told = recordings.document(recordings.record(run.path, 2))
    assert told["world"] == "TMaze-v0"
    assert len(told["members"][1]["episodes"]) == 2
    assert configs.from_dict(json.loads((run.path / "config.json").read_text())["config"]) == config


def test_a_run_in_a_world_that_nobody_knows_is_refused_in_one_line():
    document = configs.to_dict(tiny.changed(world=tmaze.TMazeOptions()))
    with pytest.raises(ConfigError, match=r"config\.world\.name='TMaze-v0': no such world; .*envs\.register"):
        configs.from_dict(json.loads(json.dumps(document)))


def test_worlds_are_registered_once(registered):
    envs.register(tmaze.TMaze)

    class Other(tmaze.TMaze):
        pass

    with pytest.raises(ValueError, match="'TMaze-v0': there is such a world already"):
        envs.register(Other)


@pytest.mark.parametrize("which", OLD)
def test_runs_that_kept_the_options_of_all_worlds_mean_the_same(which, registered):
    document = json.loads(json.dumps(configs.to_dict(tiny.CONFIG) | {"world": OLD[which]}))
    kept = copy.deepcopy(document)
    assert configs.from_dict(document).world == NEW[which]
    assert document == kept
    assert runs.config_hash(document) == runs.config_hash(kept)
    foreign = "view" if which == "maze" else "layout"
    document["world"][foreign] = "bump" if which == "maze" else "walk"
    with pytest.raises(ConfigError, match=rf"config\.world\.{foreign}: unknown field"):
        configs.from_dict(document)


LABYRINTH = ("--world.name", "EmojiLabyrinth-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world.plan-length", "8"], "--world.plan-length: EmojiMaze-v0 has no such option.*EmojiLabyrinth-v0"),
        (["--world.name=EmojiLabyrinth-v0", "--world.no-melting"], "--world.no-melting: EmojiLabyrinth-v0 has no"),
        (["--world.name", "Nowhere-v0"], "--world.name Nowhere-v0: unknown; choose one of EmojiMaze-v0, EmojiLab"),
        (["--world.bogus", "1"], "Unrecognized options: --world.bogus"),
        (["--world.size", "70000"], r"--world\.size=70000: use at most 46340"),
        (["--world.size", "2000", "--world.layout", "walk"], r"--world\.size=2000: use at most 1024"),
        (["--world.turns", str(2**70)], r"--world\.turns=\d+: use a 32-bit integer"),
        (["--world.name", "EmojiLabyrinth-v0", "--world.turns", "1000000"], r"--world\.turns=1000000: an episode of"),
        (["--world.name", "EmojiLabyrinth-v0", "--world.exploits", str(2**40)], r"--world\.exploits=\d+: use a 32-bit"),
        (["--world.mold-reward", "1e39"], r"--world\.mold_reward=1e\+39: use a finite number"),
        (["--world.name", "EmojiLabyrinth-v0", "--world.mold", "2"], r"--world\.mold=2: not a share"),
        ([*LABYRINTH, "--world.distance-range", "5", "4"], r"--world\.distance_range=\(5, 4\): use 1 <= low <= high"),
        ([*LABYRINTH, "--world.distance-range", "0", "4"], r"--world\.distance_range=\(0, 4\): use 1 <= low <= high"),
        ([*LABYRINTH, "--world.distance-range", "1", str(2**31)], r"--world\.distance_range=\d+: use a 32-bit integer"),
        ([*LABYRINTH, "--world.distance-range", "5"], r"--world\.distance-range: .*"),
        ([*LABYRINTH, "--world.distance-range", "5", "far"], r"--world\.distance-range: .*far"),
        ([*LABYRINTH, "--world.board", "#####/#S.G"], r"--world\.board: row 2 has 4 tiles, row 1 5"),
        ([*LABYRINTH, "--world.board", "@/nowhere/maze"], r"--world\.board @/nowhere/maze: No such file"),
        (["--world.board=@/"], r"--world\.board @/: Is a directory; name a text file with the board"),
    ],
)
def test_options_that_make_no_world_are_refused_in_one_line(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        configs.check(train.parse(arguments).config)
    assert "\n" not in str(caught.value)


def test_far_mazes_are_an_option_that_runs_keep():
    config = train.parse([*LABYRINTH, "--world.distance-range", "5", "12"]).config
    assert config.world == LabyrinthOptions(view="compass", distance_range=(5, 12))
    assert config.world_params().distance_range.tolist() == 8 * [[5, 12]]
    document = json.loads(json.dumps(configs.to_dict(config)))
    assert document["world"]["distance_range"] == [5, 12]
    assert configs.from_dict(document) == config
    small = tiny.changed(world=config.world)
    assert train.parse(tiny.arguments(small)).config.world == config.world
    for wrong in ([5], [5, 12, 13], [5, "12"], [5, 12.0], 5, "5 12"):
        document["world"]["distance_range"] = wrong
        with pytest.raises(ConfigError, match=r"config\.world\.distance_range.*not a valid value"):
            configs.from_dict(document)
    del document["world"]["distance_range"], document["world"]["board"]
    assert configs.from_dict(document).world == LabyrinthOptions(view="compass")
    with pytest.raises(ValueError, match=r"distance_range=\(1, 2\.5\): not a int32 array"):
        envs.make("EmojiLabyrinth-v0", distance_range=(1, 2.5))


def test_a_run_keeps_the_board_and_not_its_file(tmp_path):
    file = tmp_path / "maze.txt"
    file.write_text("🧱🧱🧱🧱🧱\n🧱🤖🧾🏁🧱\n🧱🧾🧱🧾🧱\n🧱📇🌀🧾🧱\n🧱🧱🧱🧱🧱\n", "utf-8")
    for arguments in (["--world.board", f"@{file}"], [f"--world.board=@{file}"]):
        config = train.parse([*LABYRINTH, *arguments]).config
        assert (config.world.board, config.world.size) == ("#####/#S.G#/#.#.#/#M$.#/#####", 2)
        configs.check(config)
        assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config
    assert train.parse(tiny.arguments(tiny.changed(world=config.world))).config.world == config.world
    for nothing in ("", "\n \n", "/"):
        file.write_text(nothing, "utf-8")
        with pytest.raises(ConfigError, match=r"--world\.board @.*there is no board in it; name a text file"):
            train.parse([*LABYRINTH, "--world.board", f"@{file}"])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"--world\.board @.*no text in UTF-8"):
        train.parse([*LABYRINTH, "--world.board", f"@{file}"])


def test_help_shows_the_options_of_the_chosen_world(capsys):
    for name, mine, other in (
        ("EmojiMaze-v0", "--world.wind-probability", "--world.loops"),
        ("EmojiLabyrinth-v0", "--world.loops", "--world.wind-probability"),
    ):
        with pytest.raises(SystemExit):
            train.main(["--world.name", name, "--help"])
        shown = capsys.readouterr().out
        assert mine in shown
        assert other not in shown


def test_what_a_scale_a_world_and_an_algorithm_stand_for():
    """As `configs.start` had it while it knew the worlds by name."""
    config = configs.start("laptop", "EmojiLabyrinth-v0", "ppo")
    assert config.world == LabyrinthOptions(view="compass")
    assert config.pretrain.updates == 2000
    assert configs.start("paper", "EmojiLabyrinth-v0").pretrain == configs.SCALES["paper"].pretrain
    rl = config.rl
    assert (rl.reward_scale, rl.equalized_entropy_weight, rl.entropy_weight) == (1.0, 0.0, 0.01)
    assert configs.start("laptop") == configs.SCALES["laptop"]


@pytest.mark.parametrize("name", envs.WORLDS)
def test_every_world_is_made_by_its_options_alone(name):
    world, params = envs.make(name)
    options = envs.WORLDS[name].Options(**world.options())
    twin, theirs = options.make()
    assert (twin, options.name) == (world, world.name)
    jax.tree.map(np.testing.assert_array_equal, params, theirs)
    jax.tree.map(np.testing.assert_array_equal, params, world.default_params)
    for field in dataclasses.fields(options):
        assert base.Options.__dataclass_fields__.get(field.name) or field.name in type(options).__annotations__


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in envs.WORLDS), ("EmojiMaze-v0", {"layout": "walk"})]
)
def test_more_turns_than_the_world_has_are_refused(name, options):
    world, params = envs.make(name, **options)
    turns = world.turns
    assert int(envs.make(name, max_steps_in_episode=turns, **options)[1].max_steps_in_episode) == turns
    for steps in (0, turns + 1, 40):
        with pytest.raises(ValueError, match=f"max_steps_in_episode={steps}: use 1 to {turns}"):
            envs.make(name, max_steps_in_episode=steps, **options)
        with pytest.raises(ValueError, match=f"max_steps_in_episode={steps}: use 1 to {turns}"):
            world.check(params.replace(max_steps_in_episode=jax.numpy.int32(steps)))


def test_options_and_parameters_by_keyword():
    _, params = envs.make("EmojiLabyrinth-v0", style="Bob", style_reward=2, goal_reward=3.0, rewards=[0, 1, 2, 3, 4])
    assert params.style_rewards.tolist() == [0, 2, 0]
    assert params.rewards.tolist() == [0, 1, 2, 3, 4]  # a parameter goes before the options that it is made of
    with pytest.raises(ValueError, match="style=3: use a value of type str"):
        envs.make("EmojiLabyrinth-v0", style=3)
    with pytest.raises(ValueError, match="name='x': these are the options of EmojiMaze-v0"):
        MazeOptions(name="x")


def test_the_recipe_shows_its_board(registered):
    world, params = envs.make("TMaze-v0", length=4)
    _, state = world.reset(jax.random.key(0), params)
    text = rendering.text(np.asarray(world.tiles(state, params)), np.asarray(params.tile_map), state.position)
    assert sorted(text.split("\n")[::2]) == sorted(["🧱🧱🧱🏁", "🧱🧱🧱📇"])
    assert text.split("\n")[1] == "🤖🧾🧾🧾"
