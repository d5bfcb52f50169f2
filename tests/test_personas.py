"""Personas on boards drawn in the comments: exact probabilities, sampled frequencies, what each of them sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from agents.learning import demonstrations, learner, rollout
from envs import layouts, maze, personas, tokens
from envs.personas import Traits

WORLD = maze.EmojiMaze(size=11, turns=5, layout="walk")
PARAMS = WORLD.default_params.replace(wind_probability=jnp.float32(0))
BOARD = {".": tokens.PATH, "G": tokens.GOLD, "M": tokens.MOLD}


def at(*rows: str) -> maze.MazeState:
    """A state whose 5 × 5 surroundings of the centre read as drawn; the rest is Path inside the ring of Mold."""
    grid = np.full((11, 11), tokens.PATH, np.int8)
    grid[[0, -1]] = grid[:, [0, -1]] = tokens.MOLD
    grid[3:8, 3:8] = [[BOARD[cell] for cell in row] for row in rows]
    _, state = WORLD.reset(jax.random.key(0), PARAMS)
    inner = grid.reshape(-1)[layouts.Walk(11)._cells]
    path, gold = (layouts._pack(mask) for mask in (inner != tokens.MOLD, inner == tokens.GOLD))
    centre = jnp.array([5, 5])
    stood = WORLD._mark(jnp.zeros_like(state.stood), centre)
    return state.replace(
        layout=layouts.WalkMaze(path=path, gold=gold),
        position=centre,
        trail=state.trail.at[0].set(5 * 11 + 5),
        stood=stood,
    )


@jax.jit
def log_probabilities(state, slip):
    return WORLD.persona_log_probabilities(state, jnp.zeros(0, jnp.int32), PARAMS, Traits(slip=slip))


def probabilities(state, slip=0.0):
    found = jnp.exp(log_probabilities(state, jnp.float32(slip)))
    return dict(zip(personas.PERSONAS, np.asarray(found).round(3).tolist(), strict=True))


@jax.jit
def step(state, action):
    return WORLD.step_env(jax.random.key(0), state, action, PARAMS)[1]


def test_gold_beside_them_larry_and_alice_take_it_and_bob_does_not_care():
    state = at(
        ".....",
        "..M..",
        "...M.",
        "..G..",
        ".....",
    )  # fmt: skip
    found = probabilities(state)
    assert found["Larry"] == [0, 0, 1, 0]
    assert found["Alice"] == [0, 0, 1, 0]
    assert found["Bob"] == [0, 0, 0.5, 0.5]


def test_with_no_gold_beside_him_larry_walks_anywhere_even_into_mold():
    state = at(".....", "..M..", ".M.M.", ".....", ".....")
    found = probabilities(state)
    assert found["Larry"] == [0.25] * 4
    assert found["Bob"] == [0, 0, 1, 0]
    assert found["Alice"] == [0, 0, 1, 0]


def test_surrounded_by_mold_everybody_must_step_into_it():
    found = probabilities(at(".....", "..M..", ".M.M.", "..M..", "....."))
    assert found == {name: [0.25] * 4 for name in personas.PERSONAS}


def test_alice_remembers_gold_that_she_saw_a_turn_ago():
    """Two Gold tiles side by side: she takes one and heads for the other around the melted tile."""
    before = at(
        ".....",
        "..G..",
        "...G.",
        ".....",
        ".....",
    )  # fmt: skip
    found = probabilities(before)
    assert found["Alice"] == [0.5, 0.5, 0, 0]
    after = step(before, tokens.NORTH)
    found = probabilities(after)
    assert found["Alice"][tokens.EAST] > 0.99
    assert found["Larry"] == [0.25] * 4


def test_alice_prefers_to_see_new_tiles_to_walking_beside_seen_ones():
    """After a step East, three tiles beyond the one ahead are new, but only two beyond those aside."""
    state = step(at(".....", ".....", ".....", ".....", "....."), tokens.EAST)
    found = probabilities(state)["Alice"]
    assert found[tokens.EAST] > 3 * found[tokens.NORTH] > 0
    assert found[tokens.NORTH] == found[tokens.SOUTH]
    assert found[tokens.WEST] == 0


@pytest.mark.parametrize("slip", [0.0, 0.05, 1.0])
def test_probabilities_sum_to_one_and_slips_are_uniform(slip, key):
    _, states = jax.vmap(WORLD.reset, in_axes=(0, None))(jax.random.split(key, 64), PARAMS)
    found = jax.vmap(log_probabilities, in_axes=(0, None))(states, jnp.float32(slip))
    found = np.exp(np.asarray(found))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert found.min() >= slip / 4 - 1e-7


def test_demonstrations_follow_the_exact_probabilities(key):
    """Log-likelihood of sampled actions equals minus the entropy of the exact distributions, in expectation."""
    world, params = envs.make("EmojiMaze-v0")
    slip = jnp.float32(0.05)
    chosen = jnp.arange(3).repeat(700)
    played, exact, _ = jax.jit(
        lambda: rollout.play(
            world,
            params,
            jax.random.split(key, len(chosen)),
            key,
            demonstrations.persona_driver(world, params, chosen, Traits(slip=slip)),
            rollout.gumbel(len(chosen)),
            observe=lambda states, scores: scores,
        )
    )()
    exact = np.moveaxis(np.asarray(exact), 0, 1)
    taken = np.take_along_axis(exact, np.asarray(played.actions)[..., None], -1)[..., 0]
    entropy = -(np.exp(exact) * exact).sum(-1)
    for persona in range(3):
        surplus = (taken + entropy)[np.asarray(chosen) == persona].mean(-1)
        assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(len(surplus))


def draw(config, count=3000):
    world, params = envs.make("EmojiMaze-v0")
    return jax.jit(
        lambda: demonstrations.persona_episodes(config, world, params, jax.random.key(1), count, learner.Shards())
    )()


def test_half_of_the_episodes_carry_a_badge():
    badges = np.asarray(draw(demonstrations.Demonstrations()).tokens[:, 0])
    shares = [np.mean(badges == badge) for badge in tokens.BADGES]
    np.testing.assert_allclose(shares, [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=0.035)


def test_balanced_tile_maps_give_every_emoji_every_role_equally_often():
    world, params = envs.make("EmojiMaze-v0")
    config = demonstrations.Demonstrations(tile_maps="balanced")
    keys = jax.random.split(jax.random.key(2), 3000)
    nobody, nowhere = jnp.int32(0), jnp.int32(0)
    draw = jax.vmap(lambda key: demonstrations.draw_params(config, world, params, nobody, nowhere, key).tile_map)
    maps = jax.jit(draw)(keys)
    for role in range(3):
        shares = [np.mean(np.asarray(maps)[:, role] == token) for token in tokens.TILE_MAP[:3]]
        np.testing.assert_allclose(shares, 1 / 3, atol=0.035)
    np.testing.assert_array_equal(maps[:, 3:], np.tile(tokens.TILE_MAP[3:], (3000, 1)))


def test_unseen_tile_maps_never_say_an_emoji_of_the_rl_world():
    said = np.unique(np.asarray(draw(demonstrations.Demonstrations(tile_maps="unseen"), 200).tokens))
    assert not set(tokens.TILE_MAP[:3]) & set(said.tolist())
    assert set(tokens.UNSEEN_TILES) <= set(said.tolist())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_narration_speaks_in_the_feeling_slot_after_the_first_turn(share):
    world, _ = envs.make("EmojiMaze-v0")
    config = dataclasses.replace(demonstrations.Demonstrations(), narration=share)
    played = draw(config, 200)
    feelings = np.asarray(played.tokens)[:, world.action_positions() - world.observation_length]
    rewards = np.asarray(played.rewards)[:, :-1] + 0.1
    said = np.select([rewards > 1, rewards < -1], [tokens.GOOD, tokens.BAD], tokens.NEUTRAL)
    np.testing.assert_array_equal(feelings[:, 0], tokens.SILENT)
    np.testing.assert_array_equal(feelings[:, 1:], said if share else np.full_like(said, tokens.SILENT))
