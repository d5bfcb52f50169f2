"""Pass@k against every subset of the attempts, attempts against every sequence of actions, and the measurement."""

import dataclasses
import fractions
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from agents.learning import rollout
from agents.policies.base import Cache, Outputs
from agents.runs import scripts
from analysis import measures, passes
from analysis.measures.attempts import panels as measured_panels
from analysis.measures.attempts import per_maze
from envs import labyrinth, tokens
from envs.maze import EmojiMaze
from ground import seeds
from ground.terminal import ConfigError
from tests import tiny, untrained

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


@hypothesis.given(samples=st.integers(1, 40), data=st.data())
def test_cover_is_the_share_of_mazes_of_which_enough_attempts_succeed(samples, data):
    counts = data.draw(st.lists(st.integers(0, samples), min_size=1, max_size=9))
    ninths = [fractions.Fraction(i, 9) for i in range(10)]
    tenths = [fractions.Fraction(i, 10) for i in range(11)]
    for taus in (ninths, tenths):
        wanted = [np.mean([fractions.Fraction(c, samples) >= tau for c in counts]) for tau in taus]
        np.testing.assert_allclose(passes.cover(counts, samples, [float(tau) for tau in taus]), wanted)


def test_pass_at_k_is_the_mean_of_cover_weighted_towards_the_unreliable():
    """The integral over τ of k (1 − τ)^(k − 1) Cover@τ, arXiv 2510.08325, here with many attempts."""
    samples = 4000
    counts = np.random.default_rng(0).binomial(samples, np.random.default_rng(1).beta(0.5, 2, 60))
    edges = np.arange(samples + 1) / samples
    cover = passes.cover(counts, samples, edges[1:])  # constant between two of them
    for k in (1, 3, 10):
        weights = (1 - edges[:-1]) ** k - (1 - edges[1:]) ** k
        np.testing.assert_allclose(weights @ cover, passes.pass_at_k(counts, samples, [k]).mean(), atol=2e-3)
    assert passes.cover(np.zeros((2, 3, 5), int), 4, [0.5, 1]).shape == (2, 3, 2)


@dataclasses.dataclass(frozen=True)
class Blind:
    """A policy that looks at nothing: its parameters are the logits of what it says."""

    vocabulary: int = tokens.SIZE

    def empty_cache(self, batch, length):
        return Cache(((jnp.zeros((batch, 1), jnp.float32),),))

    def fork(self, cache, times, start):
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), cache)

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
    assert np.allclose(told, (np.array([[2, 4, 5]]) + 5 * np.arange(3)[:, None]).ravel() / 15)
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


def test_who_moves_at_random_does_as_a_policy_without_a_preference(ways, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", 2)
    _, params = blind()
    found = passes.measure(None, {}, WORLD, jax.tree.map(lambda x: x[:1], params), MAZES, SAMPLES)
    chances = np.array([sum(0.25 ** len(way) for way in goals) for goals in ways])
    error = np.sqrt(chances * (1 - chances) / SAMPLES)
    assert (np.abs(found.successes[0] / SAMPLES - chances) < 4.5 * error + 1e-12).all()


def test_distances_are_those_of_the_shortest_way(ways):
    params = jax.tree.map(lambda x: x[:2], blind()[1])
    shortest = [min((len(way) for way in goals), default=np.nan) for goals in ways]
    np.testing.assert_array_equal(passes.distances(WORLD, params, MAZES), [shortest] * 2)


def test_the_same_policy_does_the_same_and_fewer_mazes_are_the_first_of_more(attempts):
    for counts in (attempts.successes, attempts.distinct):
        np.testing.assert_array_equal(counts[1], counts[2])
        assert (counts[0] != counts[1]).any()
    fewer, told = measured(mazes=3)
    assert told == pytest.approx([2 / 9, 3 / 9, 5 / 9, 6 / 9, 8 / 9, 1])
    np.testing.assert_array_equal(fewer.successes, attempts.successes[:, :3])


def test_a_cold_policy_takes_its_likeliest_way_alone(ways):
    found, _ = measured(temperature=1e-3)
    east = [any(set(way) == {1} for way in goals) for goals in ways]  # what the last two members like best
    np.testing.assert_array_equal(found.successes[1], np.where(east, SAMPLES, 0))
    np.testing.assert_array_equal(found.distinct[1], np.where(east, 1, 0))


def test_held_out_mazes_are_not_those_of_the_evaluation():
    theirs, _ = scripts.mazes(256)
    maze_key, _ = jax.random.split(seeds.held_out("pass-at-k"))
    ours = jax.vmap(lambda index: jax.random.fold_in(maze_key, index))(jnp.arange(256))
    both = np.concatenate([jax.random.key_data(x) for x in (theirs, ours, jax.random.split(jax.random.key(0), 256))])
    assert len(np.unique(both, axis=0)) == 3 * 256


def test_success_is_the_goal_where_there_is_one_and_else_a_positive_return():
    ended = jnp.array([[False, True, True], [False, False, False], [True, True, True]])
    rewards = jnp.array([[-1.0, -5.0, 9.0], [2.0, 1.0, 1.0], [0.0, 3.0, 3.0]], jnp.float32)
    blank = jnp.zeros((3, 3), jnp.int32)
    episodes = rollout.Episodes(blank, blank, rewards, ended, blank, ended[:, :0])
    assert rollout.succeeded(WORLD, episodes).tolist() == [True, False, True]
    assert rollout.succeeded(EmojiMaze(size=11, turns=3), episodes).tolist() == [False, True, False]


# The measurement

LABYRINTH = tiny.changed(
    population={"seeds": 2, "sweep": ("rl.learning_rate=1e-4,1e-2",)},
    world=labyrinth.LabyrinthOptions(size=2, turns=3, view="bump"),
)


@pytest.mark.slow
def test_a_base_that_all_share_is_played_once_and_repeated(tmp_path, monkeypatch):
    run = untrained.write(tmp_path / "run", LABYRINTH)
    played, measure = [], passes.measure

    def counting(policy, parameters, world, params, *rest):
        played.append((policy is None, len(params.tile_map)))
        return measure(policy, parameters, world, params, *rest)

    monkeypatch.setattr(passes, "measure", counting)
    measured = measures.attempts(run, samples=12, mazes=6)
    assert played == [(False, 1), (True, 1), (False, 4), (True, 1)]
    base, after = (measured.sel(checkpoint=name) for name in ("pretrain", "rl"))
    assert measured["successes"].dims == ("checkpoint", "member", "maze")
    assert (base["successes"] == base["successes"][0]).all()
    assert (after["successes"] != after["successes"][0]).any()
    assert measured["k"].values.tolist() == [1, 2, 4, 8, 12]
    rate = measured["successes"] / 12
    np.testing.assert_allclose(measured["pass_at_k"].sel(k=1), rate.mean("maze"))
    np.testing.assert_allclose(measured["pass_at_k"].sel(k=12), (rate > 0).mean("maze"))
    np.testing.assert_allclose(measured["cover"].sel(tau=0.5), (rate >= 0.5).mean("maze"))
    np.testing.assert_allclose(measured["ways"], measured["distinct"].mean("maze"))
    assert (measured["distinct"] <= measured["successes"]).all()
    for k in (1, 4):
        np.testing.assert_allclose(per_maze(after, k).mean("maze"), after["pass_at_k"].sel(k=k))
    assert measured["random_successes"].dims == ("checkpoint", "maze")
    floor = measured.isel(checkpoint=0)
    assert float(floor["random_pass_at_k"].sel(k=1)) == pytest.approx(float(floor["random_successes"].mean()) / 12)
    shown = measured_panels({"run": measured})
    low, high = "rl.learning_rate=0.0001", "rl.learning_rate=0.01"
    labels = [f"{step}, {rate}" for rate in (low, high) for step in ("pretrain", "rl")]
    assert [list(panel.curves) for panel in shown] == [[*labels, "random player"]] * 2 + [labels]
    curve = shown[0].curves[f"rl, {high}"]
    np.testing.assert_array_equal(curve.values, after["pass_at_k"].values[2:].T)
    near = shown[2].curves[f"rl, {high}"]
    chosen = measured["distance"].values == near.x[0]
    np.testing.assert_allclose(near.values[0], rate.sel(checkpoint="rl").values[2:, chosen].mean(axis=1))


@pytest.mark.slow
def test_worlds_that_differ_have_mazes_and_random_players_of_their_own(tmp_path):
    swept = dataclasses.replace(LABYRINTH.population, sweep=("world.loops=0,1",))
    run = untrained.write(tmp_path / "run", dataclasses.replace(LABYRINTH, population=swept))
    measured = measures.attempts(run, "rl", samples=40, mazes=6)
    chance, far = measured["random_successes"].isel(checkpoint=0), measured["distance"]
    assert chance.dims == far.dims == ("member", "maze")
    for values in (chance.values, far.values):
        np.testing.assert_array_equal(values[:2], values[[0, 0]])
        assert (values[2] != values[0]).any()
    assert (far.values[2] <= far.values[0]).all()  # more doors are open
    assert len(measured_panels({"run": measured})) == 2


def test_a_maze_without_a_goal_has_no_distance(tmp_path):
    config = tiny.changed(
        world={"size": 7, "turns": 2}, population={"tile_maps": "permuted"}, pretrain={"tile_maps": "balanced"}
    )
    run = untrained.write(tmp_path / "run", config)
    measured = measures.attempts(run, "pretrain", samples=5, mazes=3)
    assert measured["unit"].values.tolist() == [[0, 1]]  # the base meets other emoji with every member
    assert measured["distance"].isnull().all()
    assert measured["successes"].attrs["long_name"] == "attempts that have a return above 0"
    assert measured["random_successes"].dims == ("checkpoint", "maze")


def test_wrong_requests(tmp_path):
    run = untrained.write(tmp_path / "run", LABYRINTH)
    for options, words in (
        ({"samples": 0}, "--samples=0: use 1 to 65536"),
        ({"mazes": 70_000}, "--mazes=70000: use 65536 at most"),
        *(({"temperature": x}, "--temperature=") for x in (0, -1, np.nan, np.inf, 1e-50, 1e-38, 9e-5, 2e4, 1e39)),
    ):
        with pytest.raises(ConfigError, match=words):
            measures.attempts(run, **options)
    assert not (run.path / "analysis").exists()
