import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from envs import maze, tokens
from tests import reference
from tests.thrift import some

WORLDS = (
    maze.EmojiMaze(size=7, turns=3, layout="walk", shuffle=True),
    maze.EmojiMaze(size=5, turns=2, layout="scatter"),
    maze.EmojiMaze(size=14, turns=6, layout="walk"),
    maze.EmojiMaze(size=12, turns=5, layout="scatter", shuffle=True),
)
EPISODES, EXAMPLES = 64, 16  # for each of four worlds: 4,096 episodes in lock-step
ANY_TILES = tokens.TILE_MAP + tokens.UNSEEN_TILES
SURE = 1e-3  # the smallest p-value that is still put down to chance; the keys are fixed, so it is drawn once


def named(world: maze.EmojiMaze) -> str:
    return "-".join(str(option) for option in world.options().values())


def assert_same(left, right) -> None:
    """Equal structure, dtypes, shapes and values."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


def episode(world, params, key, actions):
    """What an episode shows: at reset, and a stack of what it shows after each turn."""

    def show(state, obs):
        kept = {name: getattr(state, name) for name in ("position", "time", "clauses")}
        roles = {"tiles": world.tiles(state, params), "neighbours": world.neighbours(state, params)}
        return {"obs": obs, "truncated": world.is_truncated(state, params)} | kept | roles

    def turn(state, inputs):
        obs, state, reward, terminated, info = world.step_env(*inputs[:1], state, inputs[1], params)
        return state, {"reward": reward, "terminated": terminated, "wind": info["wind"]} | show(state, obs)

    key, reset_key = jax.random.split(key)
    obs, state = world.reset(reset_key, params)
    _, turns = jax.lax.scan(turn, state, (jax.random.split(key, actions.size), actions))
    return show(state, obs) | {"prompt": world.prompt(state, params)}, turns


@functools.partial(jax.jit, static_argnums=0)
def play(world, params, keys, actions):
    return jax.vmap(episode, (None, None, 0, 0))(world, params, keys, actions)


@functools.partial(jax.jit, static_argnums=0)
def draw(world, params, keys):
    """Fresh mazes: tiles int8[B, H, W], starts int32[B, 2] and states."""

    def one(key):
        _, state = world.reset(key, params)
        return world.tiles(state, params), state.position, state

    return jax.vmap(one)(keys)


def assert_lock_step(world, params, seed, actions) -> None:
    """The world and the reference agree on every observation, reward, flag and tile of the episodes [B, T]."""
    keys = jax.random.split(jax.random.key(seed), len(actions))
    first, turns = jax.tree.map(np.asarray, play(world, params, keys, actions))
    data = {name: np.asarray(getattr(params, name)) for name in ("rewards", "turn_reward", "tile_map")}
    data |= {"melting": bool(params.melting), "narration": bool(params.narration), "turns": world.turns}
    np.testing.assert_array_equal(first["prompt"], np.full((len(actions), 1), params.head))
    if params.wind_probability in (0, 1):
        np.testing.assert_array_equal(turns["wind"] > 0, np.full(actions.shape, params.wind_probability == 1))
    for b, row in enumerate(actions):
        clauses = first["clauses"][b] if world.shuffle else None
        twin = reference.ReferenceMaze(first["tiles"][b], first["position"][b], clauses=clauses, **data)
        centre = (world.size // 2, world.size // 2)
        assert twin.position == (reference.nearest_path(twin.grid) if world.layout == "walk" else centre)
        assert twin.grid[twin.position] == tokens.PATH
        assert (first["obs"][b].tolist(), first["truncated"][b]) == (twin.observe(), False)
        for t, action in enumerate(row):
            seen = {name: value[b, t] for name, value in turns.items()}
            obs, reward, truncated = twin.step(action, seen["wind"])
            assert seen["obs"].tolist() == obs
            np.testing.assert_allclose(seen["reward"], np.float32(reward), rtol=1e-6, atol=1e-5)
            assert (seen["truncated"], seen["terminated"]) == (truncated, False)
            assert (tuple(seen["position"]), seen["time"]) == (twin.position, twin.time)
            assert seen["neighbours"].tolist() == twin.neighbours()
            np.testing.assert_array_equal(seen["tiles"], twin.grid)


@st.composite
def options(draw):
    """Any parameters that `check` lets pass."""
    low = draw(st.floats(0.0625, 0.5, width=32))
    high = draw(st.floats(low, 0.75, width=32))
    halves = st.integers(-40, 40).map(lambda number: number / 2)
    return {
        "rewards": draw(st.lists(halves, min_size=5, max_size=5)),
        "turn_reward": draw(st.integers(-20, 20)) / 10,
        "tile_map": draw(st.permutations(ANY_TILES))[:5],
        "head": draw(st.sampled_from(tokens.BADGES)),
        "wind_probability": draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        "gold_ratio": draw(st.floats(0, 0.99)) * (1 / high - 1),
        "mold_range": (low, high),
        "melting": draw(st.booleans()),
        "narration": draw(st.booleans()),
    }


@pytest.mark.parametrize("turns", [1, 3, 7, 15, 16])
def test_cells_within_reach_are_told_apart(turns):
    world = maze.EmojiMaze(size=2 * max(turns, 2) + 1, turns=turns)
    params = world.default_params.replace(wind_probability=jnp.float32(1))

    def compare(state, action):
        around = state.position[None] + jnp.array(tokens.STEPS, jnp.int32)
        equal = jnp.array_equal(world.neighbours(state, params), world.roles(state, around, params))
        return world.step_env(jax.random.key(0), state, action, params)[1], equal

    def straight(key, action):
        state, equal = jax.lax.scan(compare, world.reset_env(key, params)[1], jnp.full(turns, action))
        return equal, compare(state, action)[1]

    keys = jax.random.split(jax.random.key(turns), 4096)
    equal = jax.jit(jax.vmap(straight))(keys, jnp.arange(4096) % 4)
    assert all(map(jnp.all, equal))


@pytest.mark.parametrize("world", some(WORLDS, 2), ids=named)
@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(data=options(), seed=st.integers(0, 2**32 - 1), steadiness=st.sampled_from((0.0, 0.8)))
def test_lock_step_with_the_reference(world, data, seed, steadiness):
    rng = np.random.default_rng(seed)
    shape = (EPISODES, world.turns)
    steady = rng.random(shape) < steadiness  # steady agents meet the border
    actions = np.where(steady, rng.integers(4, size=(EPISODES, 1)), rng.integers(4, size=shape)).astype(np.int32)
    assert_lock_step(world, type(world).make(world.options() | data)[1], seed, actions)


@pytest.mark.parametrize("direction", range(4))
def test_nobody_leaves_the_grid(direction):
    world = WORLDS[1]
    params = world.default_params.replace(wind_probability=jnp.float32(1))
    actions = np.full((EPISODES, world.turns), direction, np.int32)
    assert_lock_step(world, params, direction, actions)
    first, turns = play(world, params, jax.random.split(jax.random.key(direction), EPISODES), actions)
    before = np.concatenate([first["position"][:, None], turns["position"][:, :-1]], axis=1)
    target = before + np.array(tokens.STEPS)[direction]
    assert np.sum((target < 0) | (target >= world.size)) > 5  # else nobody has tried


@pytest.mark.parametrize(
    ("size", "count", "mold_range"),
    [(100, 400, (0.1, 0.5)), (12, 2000, (0.1, 0.5)), (12, 2000, (0.875, 0.9375))],
    ids=["paper", "small", "bare walk"],  # a bare walk leaves less Mold than the bound and is not thinned
)
def test_walk_generator_by_distribution(size, count, mold_range):
    world = maze.EmojiMaze(size=size, turns=2, layout="walk")
    ratio = 0.0625 if mold_range[1] > 0.5 else 0.2
    data = {"mold_range": jnp.array(mold_range, jnp.float32), "gold_ratio": jnp.float32(ratio)}
    drawn = draw(world, world.default_params.replace(**data), jax.random.split(jax.random.key(size), count))
    grids, starts = np.asarray(drawn[0]), np.asarray(drawn[1])
    rng = np.random.default_rng(size)
    pairs = [reference.walk_maze(rng, size, mold_range, ratio) for _ in range(count)]
    expected = reference.statistics(np.stack([grid for grid, _ in pairs]), np.array([start for _, start in pairs]))
    ours = reference.statistics(grids, starts)
    p_values = {name: stats.ks_2samp(ours[name], expected[name], method="asymp").pvalue for name in ours}
    assert min(p_values.values()) > SURE, p_values

    for grid, start in zip(grids, starts, strict=True):
        inside = grid[1:-1, 1:-1]
        assert np.sum(grid == tokens.MOLD) - np.sum(inside == tokens.MOLD) == 4 * (size - 1)
        assert np.sum(grid == tokens.GOLD) == max(1, int(ratio * np.sum(inside == tokens.MOLD)))
        assert set(np.unique(grid)) <= {tokens.PATH, tokens.GOLD, tokens.MOLD}
        assert tuple(start) == reference.nearest_path(grid)


@pytest.fixture(scope="module")
def scattered() -> np.ndarray:
    """Interior tiles int8[B, 98, 98] of mazes with 30 % Mold and 15 % Gold."""
    world = maze.EmojiMaze(layout="scatter")
    data = {"mold_range": jnp.array([0.3, 0.3], jnp.float32), "gold_ratio": jnp.float32(0.5)}
    grids, starts, _ = draw(world, world.default_params.replace(**data), jax.random.split(jax.random.key(2), 64))
    assert np.all(np.asarray(starts) == 50)
    grids = np.asarray(grids)
    assert np.all(grids[:, 50, 50] == tokens.PATH)
    for ring in (grids[:, 0], grids[:, -1], grids[:, :, 0], grids[:, :, -1]):
        assert np.all(ring == tokens.MOLD)
    return grids[:, 1:-1, 1:-1]


def test_scatter_shares(scattered):
    counts = np.bincount(scattered.ravel(), minlength=3)
    assert stats.chisquare(counts, np.array([0.55, 0.15, 0.3]) * scattered.size).pvalue > SURE
    by_cell = np.delete((scattered == tokens.MOLD).sum(0).ravel(), 49 * 98 + 49)  # the centre is never Mold
    assert by_cell.var() == pytest.approx(64 * 0.3 * 0.7, rel=0.06)


def test_scatter_draws_its_share_of_mold_uniformly():
    world = maze.EmojiMaze(layout="scatter")
    grids, _, _ = draw(world, world.default_params, jax.random.split(jax.random.key(3), 512))
    inside = np.asarray(grids)[:, 1:-1, 1:-1]
    mold = (inside == tokens.MOLD).mean((1, 2))
    assert stats.kstest(mold, stats.uniform(0.1, 0.4).cdf).pvalue > SURE
    np.testing.assert_allclose((inside == tokens.GOLD).mean((1, 2)), 0.2 * mold, atol=0.015)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.s_[:, :, :-1], np.s_[:, :, 1:]),
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:, :-1, :-1], np.s_[:, 1:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ],
    ids=["row", "column", "diagonal", "episode"],
)
def test_scatter_tiles_are_independent(scattered, one, other):
    table = np.bincount((3 * scattered[one] + scattered[other]).ravel(), minlength=9).reshape(3, 3)
    assert stats.chi2_contingency(table).pvalue > SURE


@pytest.mark.parametrize("layout", ["walk", "scatter"])
def test_fresh_mazes_differ(layout, key):
    world = maze.EmojiMaze(size=12, turns=2, layout=layout)
    grids, _, _ = draw(world, world.default_params, jax.random.split(key, 2000))
    assert len(np.unique(np.asarray(grids).reshape(2000, -1), axis=0)) == 2000


def test_clause_orders_are_uniform(key):
    _, _, states = draw(WORLDS[3], WORLDS[3].default_params, jax.random.split(key, 4800))
    orders, counts = np.unique(np.asarray(states.clauses), axis=0, return_counts=True)
    assert np.all(np.sort(orders, axis=1) == np.arange(4))
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > SURE


@functools.partial(jax.jit, static_argnums=0)
def returns(world, params, keys):
    """Returns float32[B, 3] of random play, always North and greedy play, in the same mazes and winds."""

    def one(key):
        reset_key, play_key = jax.random.split(key)
        _, start = world.reset_env(reset_key, params)

        def turn(policy, state, key):
            action_key, wind_key = jax.random.split(key)
            rank = jnp.array([1, 2, 0, 0, 0], jnp.float32)[world.neighbours(state, params)]
            greedy = jnp.argmax(rank + jax.random.uniform(action_key, 4))
            action = jnp.stack([jax.random.randint(action_key, (), 0, 4), jnp.int32(tokens.NORTH), greedy])[policy]
            _, state, reward, _, _ = world.step_env(wind_key, state, action, params)
            return state, reward

        def total(policy):
            keys = jax.random.split(play_key, world.turns)
            return jax.lax.scan(functools.partial(turn, policy), start, keys)[1].sum()

        return jax.vmap(total)(jnp.arange(3))

    return jax.lax.map(one, keys, batch_size=512)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.2, (-80.6, -37.1, 17.4)),
        pytest.param(0.5, (-61.4, -8.3, 72.7), marks=pytest.mark.slow),
    ],
)
def test_reference_returns(ratio, expected, key):
    world = maze.EmojiMaze(size=100, turns=15, layout="walk")
    params = world.default_params.replace(gold_ratio=jnp.float32(ratio))
    measured = np.asarray(returns(world, params, jax.random.split(key, 8192))).mean(0)
    assert measured == pytest.approx(expected, abs=2.5)


@pytest.mark.parametrize("world", WORLDS[:2], ids=named)
def test_plain_jit_vmap_and_scan_agree(world, key):
    params = world.default_params.replace(wind_probability=jnp.float32(0.5), narration=jnp.array(True))
    keys, actions = jax.random.split(key, world.turns), jax.random.randint(key, world.turns, 0, 4)
    _, start = world.reset(key, params)

    def turn(step, state, inputs):
        shown = step(inputs[0], state, inputs[1], params)
        return shown[1], shown

    def run(step):
        state, shown = start, []
        for inputs in zip(keys, actions, strict=True):
            state, last = turn(step, state, inputs)
            shown.append(last)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *shown)

    @jax.jit
    def second_of_two(key, state, action, params):
        state, action = jax.tree.map(lambda leaf: jnp.stack([jnp.zeros_like(leaf), leaf]), (state, action))
        shown = jax.vmap(world.step_env, (None, 0, 0, None))(key, state, action, params)
        return jax.tree.map(lambda leaf: leaf[1], shown)

    plain = run(world.step_env)
    assert_same(plain, run(jax.jit(world.step_env)))
    assert_same(plain, run(second_of_two))
    assert_same(plain, jax.lax.scan(functools.partial(turn, world.step_env), start, (keys, actions))[1])


@pytest.mark.parametrize("world", WORLDS[:2], ids=named)
def test_gymnax_step_truncates_and_starts_again(world, key):
    def kinds(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype), leaf.weak_type), tree)

    params = world.default_params
    obs, state = world.reset(key, params)
    first = kinds((obs, state))
    assert first[0] == ((world.observation_length,), "int32", False)
    for turn in range(1, 2 * world.turns + 1):
        turn_key, reset_key = jax.random.split(jax.random.fold_in(key, turn))
        expected = world.step_env(turn_key, state, jnp.int32(turn % 4), params)
        obs, state, reward, terminated, truncated, info = world.step(
            jax.random.fold_in(key, turn), state, jnp.int32(turn % 4), params
        )
        last = turn % world.turns == 0
        assert (bool(terminated), bool(truncated), int(state.time)) == (False, last, turn % world.turns)
        assert_same((info["final_observation"], reward, info["wind"]), (expected[0], expected[2], expected[4]["wind"]))
        assert_same((obs, state), world.reset(reset_key, params) if last else expected[:2])
        assert kinds((obs, state)) == first
        assert kinds((reward, info["wind"])) == (((), "float32", False), ((), "int32", False))
        assert kinds((terminated, truncated)) == (((), "bool", False),) * 2
        assert (world.tiles(state, params).dtype, world.neighbours(state, params).dtype) == (jnp.int8, jnp.int8)


def test_wind_under_one_shared_key():
    world = maze.EmojiMaze(size=31, turns=15)
    params = world.default_params.replace(wind_probability=jnp.float32(0.3))
    _, _, states = draw(world, params, jax.random.split(jax.random.key(6), 4096))
    step = jax.jit(jax.vmap(world.step_env, (None, 0, None, None)))
    winds = []
    for turn in range(world.turns):
        key = jax.random.key(turn // 5)  # the same key five turns running: the turn alone must bring a new wind
        _, states, _, _, info = step(key, states, jnp.int32(0), params)
        winds.append(np.asarray(info["wind"]))
    winds = np.stack(winds)
    counts = np.bincount(winds.ravel(), minlength=5)
    assert stats.chisquare(counts, np.array([0.7, *4 * [0.075]]) * winds.size).pvalue > SURE
    for one, other in ((winds[:-1], winds[1:]), (winds[:, :-1], winds[:, 1:]), (winds[:-5], winds[5:])):
        table = np.bincount((5 * one + other).ravel(), minlength=25).reshape(5, 5)
        assert stats.chi2_contingency(table).pvalue > SURE
    assert len(np.unique(winds.T, axis=0)) > 0.9 * 4096


@pytest.mark.parametrize(
    "wrong", [{"size": 4, "turns": 1}, {"size": 30, "turns": 15}, {"turns": 0}, {"layout": "spiral"}], ids=str
)
def test_wrong_options(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        maze.EmojiMaze(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"wind_probability": 1.5}, {"wind_probability": -0.1}, {"head": -1}, {"tile_map": [99] * 5}),
        *({"mold_range": (0.5, 0.1)}, {"mold_range": (0.0, 0.5)}, {"gold_ratio": 1.5}, {"gold_ratio": -0.1}),
        *({"rewards": [np.nan] * 5}, {"rewards": [1.0, 2.0]}, {"melting_point": 3}),
    ],
    ids=str,
)
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        maze.EmojiMaze.make(wrong)


def test_the_smallest_worlds_are_allowed():
    assert maze.EmojiMaze(size=5, turns=1).episode_length() == 1 + 7
    assert maze.EmojiMaze(size=31, turns=15, shuffle=True).episode_length() == 1 + 15 * 11
