"""The extraction set, replayed in the reference maze, and what is read at its last moves."""

import collections
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.policies import PolicyConfig
from agents.policies.transformer import Transformer
from analysis import extraction
from envs import maze, tokens
from tests import reference

EPISODES = 48
WORLDS = {
    "scatter": maze.EmojiMaze(size=11, turns=4),
    "spoken names, shuffled prompts": maze.EmojiMaze(size=11, turns=4, shuffle=True).speaking("spoken"),
}
TILE_MAP = (tokens.TILE_MAP[2], tokens.TILE_MAP[0], tokens.TILE_MAP[1], *tokens.TILE_MAP[3:])
POLICY = Transformer(PolicyConfig(width=16, layers=1, heads=2, hidden=16))


def stormy(world, tile_map=TILE_MAP):
    """Parameters that would spoil the set if they were left as they are."""
    return dataclasses.replace(
        world.default_params,
        tile_map=jnp.array(tile_map, jnp.int32),
        head=jnp.int32(tokens.BADGES[2]),
        wind_probability=jnp.float32(0.9),
    )


@pytest.fixture(scope="module", params=WORLDS)
def drawn(request):
    """A world and a set of it, in NumPy."""
    world = WORLDS[request.param]
    return world, draw(5, stormy(world), world)


@pytest.fixture(scope="module")
def parameters():
    return jax.jit(POLICY.init)(jax.random.key(7))


def turns_of(world, sequence):
    """Feeling, wind, tiles by direction, order of the clauses and move of every turn, read off the tokens."""
    opened = world.prompt_length + world.opening_length
    for spoken in np.asarray(sequence)[opened:].reshape(world.turns, -1).tolist():
        feeling, wind, *tiles, move = spoken
        clauses = None
        if world.shuffle:
            clauses = [tokens.MOVES.index(name) for name in tiles[::2]]
            tiles = [tile for _, tile in sorted(zip(clauses, tiles[1::2], strict=True))]
        yield feeling, wind, tiles, clauses, tokens.MOVES.index(move)


def test_every_episode_replays_in_the_reference(drawn):
    world, found = drawn
    assert found.found.all()
    for n, sequence in enumerate(found.tokens):
        steps = found.steps[n]
        assert sequence[0] == tokens.BADGES[2]
        told = list(turns_of(world, sequence))[:steps]
        # The maze as far as it was told; nothing melts, so that a cell always reads the same.
        grid, cell, path = {}, (0, 0), {(0, 0)}
        for turn, (feeling, wind, tiles, clauses, move) in enumerate(told):
            assert (feeling, wind) == (tokens.SILENT, tokens.CALM)
            assert clauses == told[0][3]
            beside = [(cell[0] + down, cell[1] + right) for down, right in tokens.STEPS]
            roles = [TILE_MAP.index(tile) for tile in tiles]
            for near, role in zip(beside, roles, strict=True):
                assert grid.setdefault(near, role) == role
            cell = beside[move]
            if turn < steps - 1:
                assert roles[move] == tokens.PATH
                path.add(cell)
            else:
                assert roles[move] == found.classes[n]
                assert move == found.directions[n]
        middle = world.turns + 1
        known = np.full((2 * middle + 1, 2 * middle + 1), tokens.MOLD, np.int8)
        for (row, column), role in [*((cell, tokens.PATH) for cell in path), *grid.items()]:
            known[middle + row, middle + column] = role
        options = {"melting": False, "tile_map": TILE_MAP, "clauses": told[0][3]}
        replay = reference.ReferenceMaze(known, (middle, middle), turns=world.turns, **options)
        spoken, rewards = [tokens.BADGES[2], *world.opening(sequence)], []
        for *_, move in told:
            observation = replay.observe()
            spoken += [*observation, tokens.MOVES[move]]
            rewards.append(replay.step(move)[1])
        np.testing.assert_array_equal(sequence[: found.last[n] + 1], spoken)
        pays = {tokens.PATH: 0.0, tokens.GOLD: 20.0, tokens.MOLD: -10.0}[int(found.classes[n])]
        np.testing.assert_allclose(rewards, [-0.1] * (steps - 1) + [pays - 0.1])


def test_the_set_is_what_was_planned_and_every_episode_another(drawn):
    world, found = drawn
    for name, value in zip(("classes", "directions", "steps"), extraction.plan(EPISODES, world.turns), strict=True):
        np.testing.assert_array_equal(getattr(found, name), value)
    opened = world.prompt_length + world.opening_length
    np.testing.assert_array_equal(found.last, opened + (world.observation_length + 1) * found.steps - 1)
    assert len({tuple(sequence) for sequence in found.tokens.tolist()}) == EPISODES
    if world.shuffle:
        assert len({tuple(next(turns_of(world, sequence))[3]) for sequence in found.tokens}) > 10


def test_names_go_with_the_prior_and_are_the_same_in_every_class():
    world = WORLDS["spoken names, shuffled prompts"]
    even, other = (draw(5, stormy(world), world, prior=prior) for prior in ((1 / 3, 1 / 3, 1 / 3), (0.0, 0.9, 0.1)))
    names = [set(found.tokens[:, world.badge_position].tolist()) for found in (even, other)]
    assert names == [set(tokens.BADGES[1:]), set(tokens.BADGES[2:])]
    for found in (even, other):
        by_class = found.tokens[:, world.badge_position].reshape(3, -1)
        np.testing.assert_array_equal(by_class, by_class[:1].repeat(3, axis=0))
    # The name is all that a prior changes.
    np.testing.assert_array_equal(*(np.delete(found.tokens, world.badge_position, 1) for found in (even, other)))


@pytest.mark.parametrize("episodes", [0, 13, 100])
def test_a_plan_that_cannot_be_balanced_is_refused(episodes):
    with pytest.raises(ValueError, match=f"episodes={episodes}: use a multiple of 12"):
        extraction.plan(episodes, 15)


@pytest.mark.parametrize(("episodes", "turns"), [(15_000, 15), (3_000, 15), (48, 4), (12, 15), (36, 2)])
def test_the_plan_is_balanced(episodes, turns):
    classes, directions, steps = extraction.plan(episodes, turns)
    cells = collections.Counter(zip(classes.tolist(), directions.tolist(), strict=True))
    assert set(cells.values()) == {episodes // 12}
    assert len(cells) == 12
    lengths = [collections.Counter(steps[(classes == c) & (directions == d)].tolist()) for c, d in cells]
    assert all(length == lengths[0] for length in lengths)  # no class and no direction is longer than another
    counts = [lengths[0][n] for n in range(1, turns + 1)]
    assert sum(counts) == episodes // 12
    assert max(counts) - min(counts) <= 1


def draw(key, params, world=WORLDS["scatter"], prior=(1 / 3, 1 / 3, 1 / 3)):
    """The set of this key; one compiled program of each world for all tests."""
    found = extraction.approaches(world, params, jax.random.key(key), EPISODES, batch=12, prior=prior)
    return jax.tree.map(np.asarray, found)


def test_a_set_depends_on_its_key_and_not_on_the_batch(monkeypatch):
    world = WORLDS["scatter"]
    first, other = (draw(key, stormy(world)) for key in (5, 6))
    assert (first.tokens != other.tokens).any(axis=1).mean() > 0.9
    monkeypatch.setattr(extraction, "TRIES", 60)
    wide = jax.jit(
        lambda params: extraction.approaches.__wrapped__(world, params, jax.random.key(5), EPISODES, EPISODES)
    )
    found = jax.tree.map(np.asarray, wide(stormy(world)))
    assert found.found.mean() > 0.8
    np.testing.assert_array_equal(found.tokens[found.found], first.tokens[found.found])
    # A class that the world lacks is reported, not invented.
    barren = wide(dataclasses.replace(stormy(world), gold_ratio=jnp.float32(0)))
    np.testing.assert_array_equal(barren.found, first.classes != tokens.GOLD)


def simulated(rng, turns, size, wanted, episodes):
    """Episodes by trial and error in NumPy: Mold at the last view, whether it stepped back, whether first North."""
    seen = []
    while len(seen) < episodes:
        direction, steps = int(rng.integers(4)), int(rng.integers(1, turns + 1))
        while True:
            mold, u = rng.uniform(0.1, 0.5), rng.random((size, size))
            grid = np.where(u < mold, tokens.MOLD, np.where(u < 1.2 * mold, tokens.GOLD, tokens.PATH))
            grid[[0, -1]] = grid[:, [0, -1]] = tokens.MOLD
            cell = before = (size // 2, size // 2)
            grid[cell], north = tokens.PATH, False
            for turn in range(steps - 1):
                around = [(cell[0] + down, cell[1] + right) for down, right in tokens.STEPS]
                around = [near for near in around if grid[near] == tokens.PATH]
                if not around:
                    break
                before, cell = cell, around[rng.integers(len(around))]
                north |= turn == 0 and cell[0] < before[0]
            else:
                around = [grid[cell[0] + down, cell[1] + right] for down, right in tokens.STEPS]
                if around[direction] == wanted:
                    down, right = tokens.STEPS[direction]
                    back = before == (cell[0] + down, cell[1] + right)
                    seen.append((around.count(tokens.MOLD), back, north))
                    break
    return np.array(seen, float)


def test_episodes_are_a_sample_of_all_such_walks():
    world, ours = WORLDS["scatter"], collections.defaultdict(list)
    for key in range(100, 150):
        found = draw(key, stormy(world))
        for sequence, steps, role in zip(found.tokens, found.steps, found.classes, strict=True):
            told = list(turns_of(world, sequence))[:steps]
            back = len(told) > 1 and (told[-1][4] - told[-2][4]) % 4 == 2
            north = len(told) > 1 and told[0][4] == tokens.NORTH
            ours[int(role)].append((told[-1][2].count(TILE_MAP[tokens.MOLD]), back, north))
    rng = np.random.default_rng(0)
    for wanted in extraction.CLASSES:
        theirs, mine = simulated(rng, world.turns, world.size, wanted, 800), np.array(ours[wanted], float)
        error = np.sqrt(theirs.var(axis=0) / len(theirs) + mine.var(axis=0) / len(mine))
        np.testing.assert_array_less(np.abs(theirs.mean(axis=0) - mine.mean(axis=0)), 3.5 * error + 1e-9)


@pytest.mark.parametrize(
    "wanted",
    [
        (TILE_MAP[1], TILE_MAP[2], TILE_MAP[0], TILE_MAP[4], TILE_MAP[3]),
        tokens.UNSEEN_TILES[:5],
        (tokens.UNSEEN_TILES[0], TILE_MAP[0], *TILE_MAP[2:]),
    ],
    ids=["same emoji", "other emoji", "some of each"],
)
def test_retiling_equals_drawing_in_the_other_emoji(wanted):
    found, there = (draw(5, stormy(WORLDS["scatter"], emoji)).tokens for emoji in (TILE_MAP, wanted))
    changed = extraction.retile(jnp.asarray(found), jnp.array(TILE_MAP), jnp.array(wanted))
    assert changed.dtype == jnp.int32
    np.testing.assert_array_equal(changed, there)
    assert (np.asarray(changed) != found).any()


def test_blocks_are_all_outputs_and_not_the_embedding():
    assert extraction.blocks(POLICY) == (1,)
    assert extraction.blocks(Transformer(PolicyConfig(layers=3))) == (1, 2, 3)


STREAM = jax.jit(lambda p, x: POLICY.forward(p, x, capture=np.arange(x.shape[1])).residual)
READ = jax.jit(
    lambda parameters, world, sequence: extraction.read_last(POLICY, parameters, world, sequence, (1,)),
    static_argnames="world",
)


def test_the_last_move_is_read_in_the_order_of_the_episodes(parameters):
    world, rng = WORLDS["scatter"], np.random.default_rng(1)
    sequence = jnp.asarray(rng.integers(0, tokens.FIRST, (EPISODES, world.episode_length())), jnp.int32)
    whole = np.asarray(STREAM(parameters, sequence))
    last = world.action_positions()[extraction.plan(EPISODES, world.turns)[2] - 1]
    wanted = np.stack([whole[n, last[n], 1:] for n in range(EPISODES)])
    np.testing.assert_allclose(READ(parameters, world, sequence), wanted, rtol=1e-4, atol=1e-5)


def test_what_follows_the_last_move_means_nothing(parameters):
    world = WORLDS["scatter"]
    found = draw(5, stormy(world))
    position = np.arange(found.tokens.shape[1])[None]
    spoilt = np.where(position > found.last[:, None], tokens.UNSEEN_TILES[0], found.tokens)
    turned = np.where(position == found.last[:, None], tokens.MOVES[0], found.tokens)
    plain, same, moved = (np.asarray(READ(parameters, world, x)) for x in (found.tokens, spoilt, turned))
    np.testing.assert_array_equal(plain, same)
    np.testing.assert_array_equal((plain != moved).any(axis=(1, 2)), found.directions != tokens.NORTH)


def test_any_positions_and_layers_are_read(parameters):
    rng = np.random.default_rng(2)
    sequence = jnp.asarray(rng.integers(0, tokens.FIRST, (6, 9)), jnp.int32)
    at = rng.integers(0, 9, (6, 2)).astype(np.int32)
    whole = np.asarray(STREAM(parameters, sequence))
    wanted = np.stack([whole[n, at[n]][:, [1, 0]] for n in range(6)])  # layers in the order of the caller
    read = jax.jit(lambda p: extraction.residuals(POLICY, p, sequence, at, (1, 0), batch=2))
    np.testing.assert_allclose(read(parameters), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "batch", "used"), [(5000, 512, 500), (1000, 20, 20), (36, 20, 18), (7, 20, 7), (13, 4, 1)]
)
def test_a_batch_is_the_largest_that_divides_the_episodes(rows, batch, used):
    sizes = []

    def forward(parameters, sequence, *, capture, capture_layers):
        sizes.append(len(sequence))
        stream = (100 * sequence[:, :, None, None] + capture[:, :, None, None]).astype(jnp.float32)
        return types.SimpleNamespace(residual=stream)

    sequence = jnp.arange(rows, dtype=jnp.int32)[:, None]
    policy = types.SimpleNamespace(forward=forward)
    read = extraction.residuals(policy, None, sequence, sequence % 7, (1,), batch=batch)
    assert set(sizes) == {used}
    np.testing.assert_array_equal(read[:, 0, 0, 0], 100 * np.arange(rows) + np.arange(rows) % 7)
