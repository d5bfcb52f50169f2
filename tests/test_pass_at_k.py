"""Pass@k against every subset of the attempts, attempts against every sequence of actions, and the command."""

import dataclasses
import itertools
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from agents import runs
from agents.learning import rollout
from agents.policies.base import Cache, Outputs
from agents.runs import config as configs
from agents.runs import evaluation
from analysis import __main__ as cli
from analysis import passes
from envs import labyrinth, tokens
from envs.maze import EmojiMaze
from ground import seeds
from tests import tiny

MAZES, SAMPLES, TURNS = 5, 1000, 4


@hypothesis.given(samples=st.integers(1, 9), data=st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(samples, data):
    successes, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations(range(samples), k))
    hit = sum(min(subset) < successes for subset in subsets)  # the first few attempts are the ones that succeeded
    assert np.isclose(passes.pass_at_k(successes, samples, [k])[0], hit / len(subsets), rtol=1e-13, atol=0)


def test_pass_at_k_at_the_edges_and_its_shape():
    samples = 1000
    ks = passes.powers(samples)
    assert ks.tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert passes.powers(256).tolist() == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert passes.powers(1).tolist() == [1]
    found = passes.pass_at_k(np.array([[0, 1], [500, samples]]), samples, ks)
    assert found.shape == (2, 2, len(ks))
    assert found.dtype == np.float64
    assert (found[0, 0] == 0).all()
    np.testing.assert_allclose(found[0, 1], ks / samples, rtol=1e-12)  # one success is in a set with chance k / n
    assert (found[1, 1] == 1).all()
    assert (found[:, :, -1] == [[0, 1], [1, 1]]).all()
    assert found[1, 0, 0] == pytest.approx(0.5, rel=1e-13)
    for successes, k in ((samples + 1, 1), (-1, 1), (1, 0), (1, samples + 1), (0.5, 1)):
        with pytest.raises(ValueError, match="use whole numbers"):
            passes.pass_at_k(successes, samples, [k])


def test_the_estimate_is_unbiased(key):
    chance, samples = 0.07, 20
    counts = np.random.default_rng(0).binomial(samples, chance, 40_000)
    ks = np.array([1, 4, 16])
    each = passes.pass_at_k(counts, samples, ks)
    error = each.std(axis=0) / np.sqrt(len(counts))
    assert (np.abs(each.mean(axis=0) - (1 - (1 - chance) ** ks)) < 4 * error).all()


def test_crossover_is_the_first_k_at_which_the_base_is_ahead():
    samples = 300  # more than are looked at in one go
    base = np.array([[20, 20, 20, 20]])
    after = np.array([[300, 300, 0, 0], [300, 0, 300, 300]])
    curve = [passes.pass_at_k(base, samples, [k]).mean() for k in range(1, samples + 1)]
    assert passes.crossover(base, after, samples) == 1 + next(k for k, x in enumerate(curve) if x > 5 / 8)
    assert passes.crossover(base, base, samples) is None
    assert passes.crossover(base, base - 10, samples) == 1
    assert passes.crossover(np.array([[1, 0]]), np.array([[299, 0]]), samples) is None  # both solve half in the end
    late = passes.crossover(np.array([[1, 1]]), np.array([[299, 0]]), samples)
    assert late == 151  # k / 300 against a half


def test_intervals_are_over_members_or_mazes_and_a_slice_is_a_ratio():
    generator = np.random.default_rng(0)
    values, chosen = generator.random((8, 6, 3)), generator.random((8, 6)) < 0.5
    chosen[2] = False  # a member without a maze of this kind
    found = passes.estimate(values, chosen)
    np.testing.assert_allclose(found["mean"], values[chosen].mean(axis=0))
    for which in ("over_members", "over_mazes"):
        low, high = found[which]
        assert (low < found["mean"]).all()
        assert (found["mean"] < high).all()
    same_mazes = np.repeat(values[:, :1], 6, axis=1)
    found = passes.estimate(same_mazes, np.ones((8, 6), bool))
    np.testing.assert_allclose(found["over_mazes"], np.stack([found["mean"]] * 2), rtol=1e-12)
    assert (found["over_members"][0] < found["over_members"][1]).all()
    point = passes.estimate(values[:1, :1], np.ones((1, 1), bool))
    assert point["over_members"] is point["over_mazes"] is None


@dataclasses.dataclass(frozen=True)
class Blind:
    """A policy that looks at nothing: its parameters are the logits of what it says."""

    def empty_cache(self, batch, length):
        return Cache(((jnp.zeros((batch, 1), jnp.float32),),))

    def decode(self, parameters, cache, chunk, start, *, intervention=None, at=None):
        return Outputs(jnp.zeros((len(chunk), 1, 1), jnp.float32)), cache

    def heads(self, parameters, hidden):
        return jnp.broadcast_to(parameters["logits"], (len(hidden), tokens.SIZE)), hidden[:, 0]


WORLD = labyrinth.EmojiLabyrinth(size=2, turns=TURNS, view="bump")
CHANCES = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.5, 0.3, 0.1], [0.1, 0.5, 0.3, 0.1]])


def blind():
    logits = np.zeros((len(CHANCES), tokens.SIZE), np.float32)
    logits[:, tokens.MOVES[0] : tokens.MOVES[0] + 4] = np.log(CHANCES)
    params = jax.tree.map(lambda x: jnp.stack([x] * len(CHANCES)), WORLD.default_params)
    return {"logits": jnp.asarray(logits)}, params


def measured(mazes=MAZES, temperature=1.0):
    """Attempts in blocks of two mazes, the last of which goes beyond what was asked, and what progress was told."""
    parameters, params = blind()
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK", 2)
        found = passes.measure(Blind(), parameters, WORLD, params, mazes, SAMPLES, temperature, told.append)
    return found, told


@pytest.fixture(scope="module")
def attempts():
    found, told = measured()
    assert told == [2, 4, 5]
    return found


@pytest.fixture(scope="module")
def ways():
    """For each held-out maze all sequences of actions that end at the goal, walked on its board."""
    maze_key, _ = jax.random.split(seeds.held_out("pass-at-k"))
    keys = [jax.random.fold_in(maze_key, index) for index in range(MAZES)]
    _, states = jax.jit(jax.vmap(WORLD.reset_env, in_axes=(0, None)))(jnp.stack(keys), WORLD.default_params)
    found = []
    for board, start in zip(np.asarray(states.board), np.asarray(states.position), strict=True):
        goals = set()
        for actions in itertools.product(range(4), repeat=TURNS):
            row, column = start
            for turn, action in enumerate(actions):
                down, right = tokens.STEPS[action]
                if board[row + down, column + right] == tokens.PATH:
                    row, column = row + 2 * down, column + 2 * right
                if board[row, column] == tokens.GOAL:
                    goals.add(actions[: turn + 1])
                    break
        found.append(goals)
    return found


def test_attempts_succeed_as_often_as_the_sum_over_all_ways_to_the_goal(attempts, ways):
    assert attempts.successes.shape == attempts.distinct.shape == (len(CHANCES), MAZES)
    for maze, goals in enumerate(ways):
        for member, chances in enumerate(CHANCES):
            each = np.array([np.prod(chances[list(way)]) for way in goals])
            chance = each.sum()
            error = np.sqrt(chance * (1 - chance) / SAMPLES)
            assert abs(attempts.successes[member, maze] / SAMPLES - chance) < 4.5 * error
            seen = 1 - (1 - each) ** SAMPLES  # a way that is seldom taken may not come up
            spread = np.sqrt((seen * (1 - seen)).sum())
            assert abs(attempts.distinct[member, maze] - seen.sum()) <= 4.5 * spread + 0.5
    assert len({frozenset(goals) for goals in ways}) > 1
    assert (attempts.distinct < attempts.successes).any()


def test_the_same_policy_does_the_same_and_fewer_mazes_are_the_first_of_more(attempts):
    for counts in (attempts.successes, attempts.distinct):
        np.testing.assert_array_equal(counts[1], counts[2])
        assert (counts[0] != counts[1]).any()
    fewer, told = measured(mazes=3)
    assert told == [2, 3]
    np.testing.assert_array_equal(fewer.successes, attempts.successes[:, :3])


def test_a_cold_policy_takes_its_likeliest_way_alone(ways):
    found, _ = measured(temperature=1e-3)
    east = [any(set(way) == {1} for way in goals) for goals in ways]  # what the last two members like best
    np.testing.assert_array_equal(found.successes[1], np.where(east, SAMPLES, 0))
    np.testing.assert_array_equal(found.distinct[1], np.where(east, 1, 0))


def test_held_out_mazes_are_not_those_of_the_evaluation():
    theirs, _ = evaluation._keys(256)
    maze_key, _ = jax.random.split(seeds.held_out("pass-at-k"))
    ours = jax.vmap(lambda index: jax.random.fold_in(maze_key, index))(jnp.arange(256))
    both = np.concatenate([jax.random.key_data(x) for x in (theirs, ours, jax.random.split(jax.random.key(0), 256))])
    assert len(np.unique(both, axis=0)) == 3 * 256


def test_success_is_the_goal_where_there_is_one_and_else_a_positive_return():
    ended = jnp.array([[False, True, True], [False, False, False], [True, True, True]])
    rewards = jnp.array([[-1.0, -5.0, 9.0], [2.0, 1.0, 1.0], [0.0, 3.0, 3.0]], jnp.float32)
    blank = jnp.zeros((3, 3), jnp.int32)
    episodes = rollout.Episodes(blank, blank, rewards, ended, ended, blank, ended[:, :0])
    assert rollout.succeeded(WORLD, episodes).tolist() == [True, False, True]
    assert rollout.succeeded(EmojiMaze(size=11, turns=3), episodes).tolist() == [False, True, False]


def planted(directory, config):
    """A run directory as training leaves it, with random policies: one base, and members that differ from it."""
    run = runs.create(directory, configs.to_dict(config), members=len(config.members))
    tree = jax.tree.map(lambda x: np.asarray(x)[None], config.make_policy().init(jax.random.key(0)))
    generator = np.random.default_rng(0)
    run.save_parameters("init", tree)
    run.save_parameters("pretrain", tree)
    shape = (run.members,)
    tree = jax.tree.map(lambda x: (x + generator.normal(size=shape + x.shape[1:])).astype(np.float32), tree)
    run.save_parameters("rl", tree)
    return run


LABYRINTH = tiny.changed(
    population={"seeds": 1, "sweep": ("rl.learning_rate=1e-4,1e-2",)},
    world=labyrinth.LabyrinthOptions(size=2, turns=3, view="bump"),
)


def analyse(run, *options):
    assert cli.main(["pass-at-k", str(run.path), *options]) == 0
    document = json.loads((run.path / "analysis" / "pass_at_k.json").read_text())
    table = pq.read_table(run.path / "analysis" / "pass_at_k.parquet").to_pylist()
    return document, table


def test_the_command_on_a_labyrinth_with_a_shared_base(tmp_path, capsys):
    run = planted(tmp_path / "run", LABYRINTH)
    document, table = analyse(run, "--samples", "12", "--mazes", "6")
    assert document["success"] == "reaches the goal"
    assert document["ks"] == [1, 2, 4, 8, 12]
    base = [row for row in table if row["checkpoint"] == "pretrain"]
    after = [row for row in table if row["checkpoint"] == "rl"]
    assert [row["maze"] for row in base] == list(range(6))
    assert {row["member"] for row in base} == {None}  # played once
    assert [(row["member"], row["maze"]) for row in after] == list(itertools.product(range(2), range(6)))
    assert [row["rl.learning_rate"] for row in after] == [1e-4] * 6 + [1e-2] * 6
    for name, rows in (("pretrain", base), ("rl", after)):
        found = document["checkpoints"][name]
        counts = np.array([row["successes"] for row in rows])
        assert np.isclose(found["mean"][0], counts.mean() / 12)
        assert np.isclose(found["mean"][-1], (counts > 0).mean())
        assert all(row["distinct"] <= row["successes"] for row in rows)
        assert all((row["distinct"] > 0) == (row["successes"] > 0) for row in rows)
    assert document["checkpoints"]["pretrain"]["over_members"] is None
    assert np.isclose(sum(document["solved"].values()), 1)
    difference = np.subtract(*(document["checkpoints"][name]["mean"] for name in ("rl", "pretrain")))
    np.testing.assert_allclose(document["difference"]["mean"], difference, atol=1e-12)
    sometimes, never = (document["slices"][part] for part in ("sometimes", "never"))
    assert np.isclose(sometimes["share"], np.mean([row["successes"] > 0 for row in base]))
    assert np.isclose(sometimes["share"] + never["share"], 1)
    assert sometimes["before"]["mean"][-1] == 1
    assert [group["label"] for group in document["groups"]] == ["rl.learning_rate=0.0001", "rl.learning_rate=0.01"]
    mean = np.mean([group["mean"] for group in document["groups"]], 0)
    np.testing.assert_allclose(mean, document["checkpoints"]["rl"]["mean"])
    for ending in (".png", ".pdf", ".csv"):
        assert (run.path / "figures" / f"pass_at_k{ending}").stat().st_size > 100
    lines = (run.path / "figures" / "pass_at_k.csv").read_text().splitlines()
    assert lines[1].startswith("all 6 mazes,")
    assert "by both" in capsys.readouterr().out


def test_the_command_on_a_maze_with_a_world_for_each_member(tmp_path):
    config = tiny.changed(
        world={"size": 7, "turns": 2}, population={"tile_maps": "permuted"}, pretrain={"tile_maps": "balanced"}
    )
    run = planted(tmp_path / "run", config)
    document, table = analyse(run, "--samples", "5", "--mazes", "3")
    assert document["success"] == "return above 0"
    assert len(table) == 2 * 2 * 3  # the base meets other emoji with every member, and is played with each
    assert {row["member"] for row in table} == {0, 1}
    assert "groups" not in document
    assert len(document["config_hash"]) == 12


def test_wrong_requests_end_in_one_line(tmp_path, capsys):
    run = planted(tmp_path / "run", LABYRINTH)

    def refused(*arguments):
        assert cli.main(["pass-at-k", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "--samples=0: use 1 to" in refused(run.path, "--samples", 0)
    assert "--mazes=70000: use 1 to" in refused(run.path, "--mazes", 70000)
    for wrong in (0, -1, "nan", "inf"):
        assert "--temperature=" in refused(run.path, "--temperature", wrong)
    assert "no checkpoint 'sft'; there are init, pretrain, rl" in refused(run.path, "--before", "sft")
    assert "--after init: does not come after --before rl" in refused(run.path, "--before", "rl", "--after", "init")
    assert "--after rl: does not come after" in refused(run.path, "--before", "rl")
    assert "no such run directory" in refused(tmp_path / "none")
    assert "--sample" in refused(run.path, "--sampels", 3)
    assert not (run.path / "analysis").exists()
