"""Boards that are given: what the text says is what every episode plays, and what a world cannot hold is refused."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import strategies as st

import envs
from envs import boards, rendering, tokens
from envs.labyrinth import EmojiLabyrinth, LabyrinthOptions
from envs.maze import EmojiMaze, MazeOptions
from envs.personas import ALICE, Traits
from tests import reference, test_labyrinth, test_maze
from tests import reference_labyrinth as drawn
from tests.thrift import some

LABYRINTH = """
#######
#S..#G#
#.#.#.#
#.#...#
#.#.#.#
#M$.#.#
#######
"""
MAZE = """
MMMMMM
M..$MM
M$S..M
M.MM.M
M...$M
MMMMMM
"""
PATHS = [(row, column) for row, line in enumerate(MAZE.split()) for column, tile in enumerate(line) if tile == "."]


@functools.partial(jax.jit, static_argnums=0)
def resets(world, params, keys):
    return jax.vmap(world.reset_env, in_axes=(0, None))(keys, params)[1]


def spoken(board: str, gold: int = tokens.EXPLOIT) -> str:
    """A board in emoji, by hand."""
    emoji = {"#": tokens.TILE_MAP[3], ".": tokens.TILE_MAP[0], "S": tokens.AGENT, "G": tokens.TILE_MAP[4]}
    emoji |= {"$": gold, "M": tokens.TILE_MAP[2]}
    return "".join(tokens.VOCABULARY[emoji[tile]] if tile in emoji else tile for tile in board)


@pytest.mark.parametrize(("world", "board"), [(EmojiLabyrinth, LABYRINTH), (EmojiMaze, MAZE)])
def test_ways_to_give_a_board_mean_the_same(world, board):
    same = (board, "/".join(board.split()), spoken(board), spoken(board, tokens.TILE_MAP[tokens.GOLD]))
    worlds = {world(board=said, turns=2) for said in same}
    assert len(worlds) == 1
    (given,) = worlds
    twin, _ = envs.make(given.name, board=board, turns=2)
    assert twin == given
    assert hash(twin) == hash(given)
    other = board.replace("$", ".", 1)
    assert world(board=other, turns=2) != given
    assert world(size=given.size, turns=2) != given
    roles = np.array([[".$M#G".index(tile.replace("S", ".")) for tile in row] for row in board.split()])
    marked = next((row, line.index("S")) for row, line in enumerate(board.split()) if "S" in line)
    assert envs.make(given.name, board=boards.text(roles, marked), turns=2)[0] == given
    loose, _ = envs.make(given.name, board=jnp.asarray(roles, jnp.int8), turns=2)
    assert loose == world(board=board.replace("S", "."), turns=2)
    options = given.Options(board=spoken(board), turns=2)
    assert (options.board, options.size) == ("/".join(board.split()), given.size)
    assert options.make()[0] == given


def test_the_example_of_the_module_is_a_labyrinth():
    lines = [line.split() for line in (boards.__doc__ or "").splitlines() if line.count("#") > 1]
    characters, emoji = ("\n".join(column) for column in zip(*lines, strict=True))
    assert boards.tidy(characters) == boards.tidy(emoji)
    assert EmojiLabyrinth(board=characters).size == 3


def test_every_episode_of_a_labyrinth_is_on_its_board(key):
    world, params = envs.make("EmojiLabyrinth-v0", board=LABYRINTH, turns=9, view="signpost")
    state = jax.tree.map(lambda leaves: leaves[0], resets(world, params, jax.random.split(key, 2)))
    board = drawn.board_of(LABYRINTH.replace("G", "X").replace("$", "G"))
    np.testing.assert_array_equal(state.board, board)
    assert (state.position.tolist(), state.goal.tolist()) == ([1, 1], [1, 5])
    np.testing.assert_array_equal(state.distances, drawn.distances(board, (0, 2)))
    again = rendering.text(np.asarray(world.tiles(state, params)), np.asarray(params.tile_map), np.asarray(state.start))
    assert world == EmojiLabyrinth(board=again, turns=9, view="signpost")
    assert tokens.decode(world.prompt(state, params)) == "👤" + "".join(row[1:-1] for row in again.split("\n")[1:-1])
    _, played = test_labyrinth.play(world, params, jax.random.split(key, 1), jnp.array([[1, 2, 1, 0, 0, 0, 0, 0, 0]]))
    assert played["terminated"][0].tolist() == 3 * [False] + 6 * [True]
    alice = np.exp(world.persona_log_probabilities(state, jnp.zeros(0, jnp.int32), params, Traits(slip=0.0, skill=1.0)))
    assert alice[ALICE].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bounds", [(1, 256), (4, 5), (50, 60), (1, 1)])
@pytest.mark.parametrize("unmarked", ["S", "G", "SG"])
def test_ends_that_are_not_marked_are_drawn_among_free_cells_within_the_range(unmarked, bounds, key):
    text = "".join("." if tile in unmarked else tile for tile in LABYRINTH)
    world, params = envs.make("EmojiLabyrinth-v0", board=text, distance_range=bounds)
    states = resets(world, params, jax.random.split(key, 2000))
    base = drawn.board_of(text.replace("G", "P").replace("$", "G").replace("P", "X"))
    maze = drawn.graph(base)
    lengths = dict(nx.all_pairs_shortest_path_length(maze))
    free = [
        (row, column) for row in range(3) for column in range(3) if base[2 * row + 1, 2 * column + 1] == tokens.PATH
    ]
    starts = free if "S" in unmarked else [(0, 0)]
    goals = free if "G" in unmarked else [(0, 2)]

    def within(one, others):
        """Of `others` those that come nearest to the bounds."""
        far = {other: lengths[one][other] for other in others if other != one}
        missed = {other: max(bounds[0] - steps, steps - bounds[1], 0) for other, steps in far.items()}
        return {other for other in far if missed[other] == min(missed.values())}

    if "S" in unmarked:
        expected = {(start, goal) for goal in goals for start in within(goal, starts)}
    else:
        expected = {((0, 0), goal) for goal in within((0, 0), goals)}
    cells = (np.asarray(states.start) // 2).tolist(), (np.asarray(states.goal) // 2).tolist()
    assert {(tuple(start), tuple(goal)) for start, goal in zip(*cells, strict=True)} == expected
    for index in range(0, 2000, 100):
        board, goal = np.asarray(states.board[index]), np.asarray(states.goal[index])
        assert np.argwhere(board == tokens.GOAL).tolist() == [goal.tolist()]
        np.testing.assert_array_equal(states.distances[index], drawn.distances(board, goal // 2))
        changed = np.argwhere(board != base).tolist()
        assert changed == ([goal.tolist()] if "G" in unmarked else [])


@pytest.mark.slow
@hypothesis.settings(max_examples=12)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from((2, 4)), exploits=st.integers(0, 2))
def test_a_labyrinth_given_back_is_played_alike(seed, size, exploits):
    """What a world has drawn, written down and given, plays turn by turn as it did."""
    options = {"size": size, "turns": 8, "view": "compass"}
    world, params = envs.make("EmojiLabyrinth-v0", **options, mold=0.4, exploits=exploits, loops=0.5)
    keys, actions = jax.random.split(jax.random.key(seed), 1), np.random.default_rng(seed).integers(4, size=(1, 8))
    first, turns = test_labyrinth.play(world, params, keys, actions.astype(np.int32))
    board, start = np.asarray(first["state"].board[0]), np.asarray(first["state"].start[0])
    twin, theirs = envs.make("EmojiLabyrinth-v0", **options, board=boards.text(board, start))
    again = jax.jit(functools.partial(test_labyrinth.episode, twin))(theirs, keys[0], actions[0].astype(np.int32))
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one[0], other), (first, turns), again)


@pytest.mark.parametrize("shuffle", some([True, False]))
@pytest.mark.parametrize("board", [MAZE, MAZE.replace("S", "."), "MMM/M.M/MMM"])
def test_a_maze_that_is_given_in_lock_step_with_the_reference(board, shuffle, key):
    """The border is within reach: 12 turns with wind on a grid of 6 × 6."""
    world, params = envs.make(
        "EmojiMaze-v0", board=board, turns=12, shuffle=shuffle, wind_probability=0.3, narration=True
    )
    grid = np.array([[".$M".index(tile.replace("S", ".")) for tile in row] for row in board.replace("/", "\n").split()])
    keys, actions = jax.random.split(key, 64), np.random.default_rng(0).integers(4, size=(64, 12)).astype(np.int32)
    first, turns = jax.tree.map(np.asarray, test_maze.play(world, params, keys, actions))
    starts = {tuple(position) for position in first["position"].tolist()}
    if "S" in board:
        assert starts == {(2, 2)}
    elif len(grid) > 3:
        assert starts == {*PATHS, (2, 2)}
    stayed = 0
    for b, row in enumerate(actions):
        np.testing.assert_array_equal(first["tiles"][b], grid)
        clauses = first["clauses"][b] if shuffle else None
        twin = reference.ReferenceMaze(grid, first["position"][b], clauses=clauses, narration=True, turns=12)
        assert first["obs"][b].tolist() == twin.observe()
        for t, action in enumerate(row):
            stayed += twin.position[0] in (0, len(grid) - 1)
            obs, reward, truncated = twin.step(action, turns["wind"][b, t])
            assert turns["obs"][b, t].tolist() == obs
            np.testing.assert_allclose(turns["reward"][b, t], np.float32(reward), rtol=1e-6, atol=1e-5)
            assert turns["truncated"][b, t] == truncated
            assert tuple(turns["position"][b, t]) == twin.position
            np.testing.assert_array_equal(turns["tiles"][b, t], twin.grid)
    assert stayed > 20  # else nobody has come to the border


BAD = [
    ("#####/#S.G#/#.#.#/#..#/#####", "row 4 has 4 tiles, row 1 5; give all as many"),
    ("#####/#S.G#/#####", "3 rows of 5 tiles; use as many rows as tiles in a row"),
    ("#####/#S.G#/#.#x#/#...#/#####", "'x' in row 3 is no tile; use # . S G"),
    ("#####/#S G#/#.#.#/#...#/#####", "' ' in row 2 is no tile"),
    ("#####/#S.G#/#.#.#/#..G#/#####", r"2 goals \(G\); mark one"),
    ("#####/#S.G#/#.#.#/#S..#/#####", r"2 starts \(S\); mark one"),
    ("#####/#S.G#/###.#/#.#.#/#####", "the cell in row 4, column 2 cannot be reached; open a wall"),
    ("#####/#S#G#/#.###/#...#/#####", "the goal in row 2, column 4 cannot be reached"),
    ("#####/#S$G#/#.###/#...#/#####", "the goal in row 2, column 4 cannot be reached"),
    ("####/#SG#/#..#/####", r"4 rows; n × n cells with walls have 2n \+ 1"),
    ("###/#S#/###", "3 rows; n × n cells"),
    ("#####/#S.G#/..#.#/#...#/#####", "'.' in row 3, column 1, which is of the outer ring; use # there"),
    ("##$##/#S.G#/#.#.#/#...#/#####", r"'\$' in row 1, column 3, which is of the outer ring; use # there"),
    ("#####/#S.G#/#...#/#...#/#####", "'.' in row 3, column 3, which is a pillar between four cells; use # there"),
    ("#####/#S.G#/#.$.#/#...#/#####", r"'\$' in row 3, column 3, which is a pillar"),
    ("#####/#S.G#/#.#.#/##..#/#####", "'#' in row 4, column 2, which is a cell; use . or M or G there"),
    ("#####/#S.G#/#.#.#/#$..#/#####", r"'\$' in row 4, column 2, which is a cell"),
    ("#####/#SMG#/#.#.#/#...#/#####", r"'M' in row 2, column 3, which is between two cells; use # or \. or \$ there"),
    ("#####/#.SG#/#.#.#/#...#/#####", "'S' in row 2, column 3, which is between two cells"),
    ("#####/#..S#/#.#.#/#.G.#/#####", "'G' in row 4, column 3, which is between two cells"),
    ("#####/#S.M#/#.#.#/#M.M#/#####", "too few cells of Path to draw start and goal from"),
    ("/".join(35 * ["#" * 35]), "35 rows; n × n cells"),
]
BAD_MAZES = [
    ("MMM/M#M/MMM", "'#' in row 2, column 2, which is inside an EmojiMaze; use . or"),
    ("MMM/MGM/MMM", "'G' in row 2, column 2, which is inside an EmojiMaze"),
    ("MMM/..M/MMM", "'.' in row 2, column 1, which is of the outer ring; use M there"),
    ("MMM/S.M/MMM", "'S' in row 2, column 1, which is of the outer ring; use M there"),
    ("MMM/M$M/MMM", "no Path to start on; mark one with S or ."),
    ("MM/MM", "no Path to start on"),
]


@pytest.mark.parametrize(
    ("name", "board", "message"),
    [*(("EmojiLabyrinth-v0", *bad) for bad in BAD), *(("EmojiMaze-v0", *bad) for bad in BAD_MAZES)],
)
def test_boards_that_a_world_cannot_hold_are_refused_in_one_line(name, board, message):
    with pytest.raises(ValueError, match=f"^board: {message}") as caught:
        envs.make(name, board=board)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("EmojiLabyrinth-v0", {"board": LABYRINTH, "size": 5}, "size=5: the board that is given has size 3; leave one"),
        ("EmojiMaze-v0", {"board": MAZE, "size": 31}, "size=31: the board that is given has size 6"),
        (
            "EmojiLabyrinth-v0",
            {"board": LABYRINTH, "mold": 0.5},
            "mold=0.5: a board that is given has its own; mark them M",
        ),
        (
            "EmojiLabyrinth-v0",
            {"board": LABYRINTH, "exploits": 1},
            r"exploits=1: a board that is given .* mark them \$ there",
        ),
        ("EmojiLabyrinth-v0", {"board": np.full((5, 5), 5)}, "board: not an array of roles"),
        ("EmojiLabyrinth-v0", {"board": np.zeros((5, 5))}, "board: not an array of roles"),
        ("EmojiMaze-v0", {"board": np.zeros(5, int)}, "board: not an array of roles"),
        ("EmojiMaze-v0", {"board": np.zeros((0, 0), int)}, "board: not an array of roles"),
        ("EmojiMaze-v0", {"board": 3}, "board: not an array of roles"),
    ],
)
def test_options_that_do_not_fit_a_board_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **options)


def test_a_start_must_be_a_path():
    grid = np.array([[2, 2, 2], [2, 0, 2], [2, 2, 2]])
    assert boards.text(grid, (1, 1)) == "MMM/MSM/MMM"
    for start in ((0, 0), (-1, 1), (1, 3)):
        with pytest.raises(ValueError, match=r"board: start=\(.*\) is no PATH of it"):
            boards.text(grid, start)


def test_options_without_a_board_are_as_they_were():
    assert (MazeOptions().size, MazeOptions().board) == (100, "")
    assert (LabyrinthOptions().size, LabyrinthOptions().board) == (7, "")
