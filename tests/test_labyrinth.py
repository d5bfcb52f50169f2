"""EmojiLabyrinth: every labyrinth against networkx, every turn against a reference in plain Python."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

import envs
from envs import corridors, labyrinth, tokens
from tests import reference_labyrinth as reference
from tests.thrift import some

WORLDS = (
    labyrinth.EmojiLabyrinth(size=3, turns=8, view="compass"),
    labyrinth.EmojiLabyrinth(size=5, turns=12, view="walls"),
    labyrinth.EmojiLabyrinth(size=2, turns=4, view="bump"),
    labyrinth.EmojiLabyrinth(size=4, turns=9, view="signpost"),
)
EPISODES, EXAMPLES = 32, 10
SURE = 1e-3


def named(world) -> str:
    return "-".join(str(option) for option in world.options().values())


@functools.partial(jax.jit, static_argnames="size")
def carved(keys, sources, loops, size):
    """Open walls bool[B, E], their distances int32[B, n, n] to `sources`, and the trees of the same draws."""

    def one(key, source):
        opened = corridors.carve(key, size, loops)
        return opened, corridors.distances(opened, source, size)

    return jax.vmap(one)(keys, sources)


@pytest.mark.parametrize("size", [2, 5, 7, 15])
@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), loops=st.sampled_from((0.0, 0.1, 0.37, 1.0)))
def test_mazes_are_connected_with_the_right_number_of_loops_and_networkx_distances(size, seed, loops):
    rng = np.random.default_rng(seed)
    sources = rng.integers(size, size=(6, 2)).astype(np.int32)
    every, far = carved(jax.random.split(jax.random.key(seed), 6), sources, jnp.float32(loops), size=size)
    first, second = corridors.ends(size)
    walls, needed = 2 * size * (size - 1), size * size - 1
    for opened, distance, source in zip(np.asarray(every), np.asarray(far), sources, strict=True):
        maze = nx.Graph(
            [pair for pair, is_open in zip(zip(first, second, strict=True), opened, strict=True) if is_open]
        )
        assert len(maze) == size * size
        assert nx.is_connected(maze)
        assert maze.number_of_edges() == needed + round(np.float32(loops) * (walls - needed))
        assert nx.is_tree(maze) == (loops == 0) or size == 2
        lengths = nx.single_source_shortest_path_length(maze, source[0] * size + source[1])
        np.testing.assert_array_equal(distance.ravel(), [lengths[cell] for cell in range(size * size)])


@pytest.mark.parametrize("size", [5, 7])
def test_spanning_trees_are_those_of_networkx(size, key):
    walls = 2 * size * (size - 1)
    draws = jax.vmap(lambda key: corridors.distinct_bits(key, walls))(jax.random.split(key, 32))
    trees = jax.jit(jax.vmap(lambda draws: corridors.spanning_tree(draws, size)))(draws)
    pairs = list(zip(*(ends.tolist() for ends in corridors.ends(size)), strict=True))
    for weights, tree in zip(np.asarray(draws), np.asarray(trees), strict=True):
        grid = nx.Graph()
        grid.add_weighted_edges_from((*pair, int(weight)) for pair, weight in zip(pairs, weights, strict=True))
        expected = {tuple(sorted(edge)) for edge in nx.minimum_spanning_edges(grid, data=False)}
        assert {pair for pair, is_open in zip(pairs, tree, strict=True) if is_open} == expected


def test_all_192_spanning_trees_of_nine_cells_come_up(key):
    trees = jax.jit(jax.vmap(lambda key: corridors.carve(key, 3, jnp.float32(0))))(jax.random.split(key, 8192))
    different, counts = np.unique(np.asarray(trees), axis=0, return_counts=True)
    assert len(different) == 192  # Kirchhoff
    assert counts.max() < 4 * counts.min()  # Kruskal's trees are not uniform, but none is rare


def test_chosen_are_the_smallest(key):
    draws = corridors.distinct_bits(key, 60)
    assert len(np.unique(draws)) == 60
    candidates = np.arange(60) % 3 > 0
    for count in (0, 1, 17, 40, 50):
        found = np.flatnonzero(corridors.choose(draws, candidates, jnp.int32(count)))
        allowed = np.flatnonzero(candidates)
        assert set(found) == set(allowed[np.argsort(np.asarray(draws)[allowed])[:count]])


@functools.partial(jax.jit, static_argnums=0)
def draw(world, params, keys):
    def one(key):
        obs, state = world.reset_env(key, params)
        return {"obs": obs, "prompt": world.prompt(state, params), "tiles": world.tiles(state, params), "state": state}

    return jax.vmap(one)(keys)


def episode(world, params, key, actions):
    def show(state, obs):
        return {
            "obs": obs,
            "position": state.position,
            "over": world.is_terminated(state, params),
            "neighbours": world.neighbours(state, params),
            "style": world.style(state),
        }

    def turn(state, action):
        obs, state, reward, terminated, info = world.step_env(key, state, action, params)
        return state, show(state, obs) | {"reward": reward, "terminated": terminated, "bumped": info["bumped"]}

    obs, state = world.reset_env(key, params)
    end, turns = jax.lax.scan(turn, state, actions)
    return show(state, obs) | {"prompt": world.prompt(end, params), "state": state}, turns


@functools.partial(jax.jit, static_argnums=0)
def play(world, params, keys, actions):
    return jax.vmap(episode, (None, None, 0, 0))(world, params, keys, actions)


@st.composite
def options(draw):
    """Any parameters that `check` lets pass."""
    low = draw(st.integers(1, 30))
    return {
        "rewards": draw(st.lists(st.integers(-4, 4), min_size=5, max_size=5)),
        "turn_reward": draw(st.sampled_from((0.0, -0.125))),
        "style_rewards": draw(st.lists(st.integers(-4, 4), min_size=3, max_size=3)),
        "tile_map": draw(st.permutations(tokens.TILE_MAP + tokens.UNSEEN_TILES))[:5],
        "head": draw(st.sampled_from(tokens.BADGES)),
        "narration": draw(st.booleans()),
        "loops": draw(st.sampled_from((0.0, 0.3, 1.0))),
        "distance_range": (low, low + draw(st.integers(0, 30))),
        "mold": draw(st.sampled_from((0.0, 0.4, 1.0))),
        "exploits": draw(st.integers(0, 3)),
    }


@pytest.mark.parametrize("world", some(WORLDS, 2), ids=named)
@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(data=options(), seed=st.integers(0, 2**32 - 1))
def test_lock_step_with_the_reference(world, data, seed):
    _, params = envs.make(world.name, **world.options(), **data)
    rng = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), EPISODES)
    fresh = jax.tree.map(np.asarray, draw(world, params, keys))
    actions = rng.integers(4, size=(EPISODES, world.turns)).astype(np.int32)
    for b in range(0, EPISODES, 2):  # every other episode follows a shortest way, with a stumble now and then
        actions[b] = guided(fresh["tiles"][b], fresh["state"].position[b], world.turns, rng)
    first, turns = jax.tree.map(np.asarray, play(world, params, keys, actions))
    given = ("rewards", "turn_reward", "style_rewards", "tile_map", "head", "narration")
    for b, row in enumerate(actions):
        start, board = first["state"].position[b], fresh["tiles"][b]
        check_board(board, start, first["state"].distances[b], world, params)
        twin = reference.ReferenceLabyrinth(
            board,
            start,
            turns=world.turns,
            view=world.view,
            **{name: np.asarray(getattr(params, name)) for name in given},
        )
        assert first["obs"][b].tolist() == twin.observe()
        assert first["prompt"][b].tolist() == twin.prompt()
        for t, action in enumerate(row):
            was_over, bumps = twin.over, twin.bumps
            obs, reward = twin.step(action)
            assert turns["obs"][b, t].tolist() == obs
            assert turns["reward"][b, t] == np.float32(reward)
            assert (turns["terminated"][b, t], turns["over"][b, t]) == (twin.over, twin.over)
            assert tuple(turns["position"][b, t]) == twin.position
            assert turns["neighbours"][b, t].tolist() == twin.neighbours()
            assert turns["bumped"][b, t] == (twin.bumps > bumps)
            if twin.over and not was_over:
                assert tuple(turns["style"][b, t].astype(bool)) == twin.style()


def guided(board, start, turns, rng):
    """Actions int[turns] along a shortest way from `start`, one in eight of them random and made good afterwards."""
    (goal,) = np.argwhere(board == tokens.GOAL)
    far, maze = reference.distances(board, goal // 2), reference.graph(board)
    cell, actions = tuple(int(at) for at in start // 2), []
    for _ in range(turns):
        steps = [(cell[0] + row, cell[1] + column) for row, column in tokens.STEPS]
        nearer = [d for d, to in enumerate(steps) if maze.has_edge(cell, to) and far[to] < far[cell]]
        action = int(rng.choice(nearer)) if nearer and rng.random() > 1 / 8 else int(rng.integers(4))
        cell = steps[action] if maze.has_edge(cell, steps[action]) else cell
        actions.append(action)
    return actions


def check_board(board, start, far, world, params):
    size = world.size
    assert board.shape == (2 * size + 1, 2 * size + 1)
    for ring in (board[0], board[-1], board[:, 0], board[:, -1], board[2:-1:2, 2:-1:2].ravel()):
        assert np.all(ring == tokens.WALL)
    cells, between = board[1::2, 1::2], np.concatenate([board[1::2, 2:-1:2].ravel(), board[2:-1:2, 1::2].ravel()])
    (goal,) = np.argwhere(cells == tokens.GOAL)
    np.testing.assert_array_equal(far, reference.distances(board, goal))
    assert np.all(far >= 0)
    assert far[tuple(start // 2)] > 0
    low, high = (int(bound) for bound in params.distance_range)
    assert min(low, far.max()) <= far[tuple(start // 2)] <= high
    assert cells[tuple(start // 2)] == tokens.PATH
    assert np.sum(cells == tokens.MOLD) == round(float(params.mold) * (size * size - 2))
    closed = np.sum(between != tokens.PATH)
    extra = 2 * size * (size - 1) - (size * size - 1)
    assert closed == extra - round(np.float32(params.loops) * extra)
    assert np.sum(between == tokens.GOLD) == min(int(params.exploits), closed)
    assert set(np.unique(between)) <= {tokens.PATH, tokens.WALL, tokens.GOLD}


def test_starts_and_goals_are_drawn_evenly(key):
    world = WORLDS[0]
    drawn = draw(world, world.default_params, jax.random.split(key, 9000))
    start, goal = (np.asarray(world.cell(getattr(drawn["state"], name))) @ [3, 1] for name in ("start", "goal"))
    table = np.bincount(9 * start + goal, minlength=81).reshape(9, 9)
    assert np.all(np.diag(table) == 0)
    assert stats.chisquare(table[~np.eye(9, dtype=bool)]).pvalue > SURE


def test_the_goal_ends_the_episode_and_pays_by_style(key):
    """Along the corridor S . X: straight on like Alice, with a bump like Larry, the long way round like Bob."""
    world = labyrinth.EmojiLabyrinth(size=3, turns=8, view="compass")
    params = world.default_params.replace(style_rewards=jnp.array([2.0, 3.0, 5.0]), turn_reward=jnp.float32(-0.25))
    state = place(world, params, "####### #S...X# #.###.# #.###.# #.###.# #.....# #######")
    north, east, south, west = range(4)
    for actions, reward, style in (
        ([east, east], 6, [0, 0, 1]),
        ([north, east, east], 3, [1, 0, 0]),
        ([south, south, east, east, north, north], 4, [0, 1, 0]),
        ([south, north, east, east], 1, [0, 0, 0]),
    ):
        at = state
        for turn, action in enumerate(actions):
            _, at, paid, terminated, _ = STEP(world, key, at, jnp.int32(action), params)
            last = turn == len(actions) - 1
            assert (float(paid), bool(terminated)) == ((reward if last else 0) - 0.25, last)
        assert world.style(at).tolist() == style
        _, after, paid, terminated, _ = STEP(world, key, at, jnp.int32(west), params)
        assert (float(paid), bool(terminated), int(after.time)) == (0, True, len(actions))


STEP = jax.jit(labyrinth.EmojiLabyrinth.step_env, static_argnums=0)


def place(world, params, drawing):
    """The state at the beginning of a drawn labyrinth; see `reference_labyrinth.board_of`."""
    board = reference.board_of(drawing)
    lines = drawing.split()
    ((start),) = [(row, line.index("S")) for row, line in enumerate(lines) if "S" in line]
    (goal,) = np.argwhere(board == tokens.GOAL)
    _, state = world.reset(jax.random.key(0), params)
    return state.replace(
        board=jnp.asarray(board),
        position=jnp.array(start, jnp.int32),
        start=jnp.array(start, jnp.int32),
        goal=jnp.asarray(goal, jnp.int32),
        distances=jnp.asarray(reference.distances(board, goal // 2), jnp.int32),
    )


def test_an_exploit_pays_again_and_again_without_moving(key):
    world, params = WORLDS[0], WORLDS[0].default_params
    state = place(world, params, "####### #SG..X# #.###.# #.###.# #.###.# #.....# #######")
    for _ in range(3):
        obs, state, paid, terminated, info = STEP(world, key, state, jnp.int32(tokens.EAST), params)
        assert (float(paid), bool(terminated), bool(info["bumped"])) == (1, False, True)
        assert int(obs[1]) == tokens.EXPLOIT
        assert state.position.tolist() == [1, 1]


@pytest.mark.parametrize(
    "wrong",
    [{"size": 1}, {"size": 17}, {"turns": 0}, {"view": "bird"}, {"size": 7.0}, {"wind_probability": 0.1}],
    ids=str,
)
def test_wrong_options(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        envs.make("EmojiLabyrinth-v0", **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"loops": 1.5}, {"loops": -0.1}, {"mold": 2.0}, {"distance_range": (0, 3)}, {"distance_range": (4, 3)}),
        *(
            {"exploits": -1},
            {"rewards": [np.nan] * 5},
            {"style_rewards": [1.0, 2.0]},
            {"tile_map": [99] * 5},
            {"head": -1},
        ),
    ],
    ids=str,
)
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        envs.make("EmojiLabyrinth-v0", **wrong)
