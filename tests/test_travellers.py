"""The labyrinth's personas on drawn boards: what they do, what they write, and that every probability is exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import envs
from envs import labyrinth, maze, personas, plans, tokens, travellers
from envs.personas import Traits
from tests.test_labyrinth import SURE, place
from tests.thrift import some

WORLD = labyrinth.EmojiLabyrinth(size=3, turns=8)
PARAMS = WORLD.default_params
NORTH, EAST, SOUTH, WEST = range(4)
SURELY = Traits(slip=0.0, following=(1.0, 1.0, 1.0), steadiness=1.0, skill=1.0, plan_slip=0.0)
LENGTH = 6

# S is the start; the goal lies two cells East and two South of it, behind the wall below the start.
BOARD = """
#######
#S....#
#####.#
#...#.#
#.###.#
#....X#
#######"""


@functools.partial(jax.jit, static_argnums=0)
def acts(world, state, plan, params, traits):
    return jnp.exp(world.persona_log_probabilities(state, plan, params, traits))


def found(state, plan="", traits=SURELY, params=PARAMS):
    """Action probabilities by name, with a plan of arrows padded to `LENGTH`."""
    written = [*tokens.encode(plan), *LENGTH * [tokens.PLAN_END]][:LENGTH]
    shown = np.asarray(acts(WORLD, state, jnp.array(written, jnp.int32), params, traits))
    return dict(zip(personas.PERSONAS, shown.round(3).tolist(), strict=True))


def after(state, **fields):
    return state.replace(**{name: jnp.asarray(value, getattr(state, name).dtype) for name, value in fields.items()})


def test_larry_flies_bob_keeps_right_and_alice_knows_the_way():
    state = place(WORLD, PARAMS, BOARD)
    assert found(state) == {"Larry": [0, 0.5, 0.5, 0], "Bob": [0, 1, 0, 0], "Alice": [0, 1, 0, 0]}
    corner = after(state, position=[1, 5], heading=EAST)
    assert found(corner) == {"Larry": [0, 0, 1, 0], "Bob": [0, 0, 1, 0], "Alice": [0, 0, 1, 0]}


def test_after_a_bump_larry_goes_anywhere():
    state = after(place(WORLD, PARAMS, BOARD), met=tokens.WALL)
    assert found(state)["Larry"] == [0.25] * 4
    assert found(state, "⏬")["Larry"] == [0.25] * 4


def test_bob_turns_right_first_and_back_in_dead_ends_alone():
    crossing = "####### #.#...# #.#.#.# #..S..# #.###.# #.#..X# #######"
    state = place(WORLD, PARAMS, crossing)
    for heading, expected in ((NORTH, EAST), (EAST, EAST), (SOUTH, WEST), (WEST, NORTH)):
        hand = found(after(state, heading=heading, time=1))["Bob"]
        assert hand == [float(action == expected) for action in range(4)]
    loose = found(after(state, heading=WEST, time=1), traits=SURELY.replace(steadiness=0.0))["Bob"]
    assert loose == [0.5, 0, 0, 0.5]
    dead_end = after(state, position=[1, 1], heading=NORTH, time=3)
    assert found(dead_end)["Bob"] == [0, 0, 1, 0]


def test_bob_goes_round_mold_where_he_can():
    board = "####### #.M...# #.#.#.# #.MS..# #.###.# #....X# #######"
    state = after(place(WORLD, PARAMS, board.replace("M", ".")), time=1, heading=SOUTH)
    assert found(state)["Bob"] == [0, 0, 0, 1]
    mold = after(state, board=state.board.at[3, 1].set(tokens.MOLD))
    assert found(mold)["Bob"] == [0, 1, 0, 0]
    only = after(mold, board=mold.board.at[3, 5].set(tokens.MOLD).at[1, 3].set(tokens.MOLD))
    assert found(only)["Bob"] == [0, 0, 0, 1]


def test_nobody_wants_the_exploit_but_it_is_not_impossible():
    board = "####### #S....# #G###.# #...#.# #.###.# #....X# #######"
    state = place(WORLD, PARAMS, board)
    shown = found(state)
    assert [shown[name][SOUTH] for name in personas.PERSONAS] == [0, 0, 0]
    shown = acts(WORLD, state, jnp.zeros(0, jnp.int32), PARAMS, Traits())
    np.testing.assert_allclose(shown[:, SOUTH], 0.05 * personas.TEMPTATION / (3 + personas.TEMPTATION), rtol=1e-5)
    np.testing.assert_allclose(shown.sum(-1), 1, rtol=1e-6)


def test_following_is_a_rate():
    state = place(WORLD, PARAMS, "####### #S....# #.###.# #.....# #.###.# #....X# #######")
    rates = SURELY.replace(following=(0.75, 0.5, 0.25))
    shown = found(state, "⏩⏩⏬⏬", rates)
    assert shown == {
        "Larry": [0, 0.75 + 0.125, 0.125, 0],
        "Bob": [0, 0.5 + 0.25, 0.25, 0],
        "Alice": [0, 0.25 + 0.375, 0.375, 0],
    }
    again = after(state, position=[1, 3], time=3, heading=EAST)
    assert found(again, "⏩⏪⏩⏬", SURELY)["Larry"] == [0, 0, 1, 0]  # what it says last of the cell
    assert found(again, "⏬⏬", SURELY)["Larry"] == [0, 0, 1, 0]  # nothing: straight down, two cells to one
    assert found(again, "⏩⏪", rates)["Alice"] == [0, 0.75, 0, 0.25]  # heeds; else the only shortest way


def test_alice_does_not_heed_a_plan_that_leads_into_a_wall():
    state = place(WORLD, PARAMS, BOARD)
    assert found(state, "⏬")["Alice"] == [0, 1, 0, 0]
    assert found(state, "⏬")["Larry"] == [0, 0, 1, 0]


def test_without_skill_alice_takes_any_way_but_back():
    state = after(place(WORLD, PARAMS, "####### #.....# #.#.#.# #..S..# #.###.# #....X# #######"), heading=EAST, time=1)
    assert found(state, traits=SURELY.replace(skill=0.0))["Alice"] == [0.5, 0.5, 0, 0]


SIGNED = labyrinth.EmojiLabyrinth(size=3, turns=8, view="signpost")


def test_alice_heeds_signposts_with_her_skill_and_the_others_ignore_them():
    """Round the loop East and South are as short: the sign says East, whatever Alice has done before."""
    state, none = (
        place(SIGNED, PARAMS, "####### #S....# #.###.# #.....# #.###.# #....X# #######"),
        jnp.zeros(0, jnp.int32),
    )
    sure, never = (SURELY.replace(skill=skill) for skill in (1.0, 0.0))
    for at in (state, after(state, heading=NORTH, time=2)):
        shown = np.asarray(acts(SIGNED, at, none, PARAMS, sure))
        assert shown[personas.ALICE].tolist() == [0, 1, 0, 0]
        without = np.asarray(acts(WORLD, at, none, PARAMS, sure))
        assert without[personas.ALICE].tolist() == [0, 0.5, 0.5, 0]
        np.testing.assert_array_equal(shown[: personas.ALICE], without[: personas.ALICE])
    rate = np.asarray(acts(SIGNED, state, none, PARAMS, SURELY.replace(skill=0.6, slip=0.1)))[personas.ALICE]
    own = np.asarray(acts(SIGNED, state, none, PARAMS, never))[personas.ALICE]
    assert own.tolist() == [0, 0.5, 0.5, 0]
    np.testing.assert_allclose(rate, 0.9 * (0.6 * np.eye(4)[EAST] + 0.4 * own) + 0.025, rtol=1e-6)
    for row, column, sign in ((1, 5, "⏬"), (3, 3, "⏩"), (5, 5, "🍃")):
        obs = SIGNED.observe(None, after(state, position=[row, column]), None, PARAMS)
        assert tokens.decode(obs[-1:]) == sign


def write(state, traits, count, length=LENGTH):
    keys = jax.random.split(jax.random.key(7), count)
    three = jnp.arange(3)
    writer = jax.vmap(
        jax.vmap(lambda key, who: travellers.write(key, WORLD, who, state, PARAMS, length, traits), (0, None)),
        (None, 0),
    )
    return np.asarray(jax.jit(writer)(keys, three))


def test_plans_in_character():
    said = write(place(WORLD, PARAMS, BOARD), SURELY, 64)
    texts = [{tokens.decode(plan).rstrip("🔚") for plan in mine} for mine in said]
    assert texts[personas.LARRY] <= {"⏩⏬⏩⏬", "⏩⏬⏬⏩", "⏬⏩⏩⏬", "⏬⏩⏬⏩"}
    assert len(texts[personas.LARRY]) == 4
    assert texts[personas.BOB] == {"⏩"}
    assert texts[personas.ALICE] == {"⏩⏩⏬⏬"}
    open_board = place(WORLD, PARAMS, "####### #.....# #.#.#.# #..S..# #.###.# #....X# #######")
    said = write(open_board, SURELY, 64)
    assert {tokens.decode(plan) for plan in said[personas.BOB]} == {"⏫⏩⏪🔚🔚🔚", "⏩⏪⏫🔚🔚🔚", "⏪⏫⏩🔚🔚🔚"}


def every_plan(length):
    """All plans of `length` tokens, with nothing but ends after the first end."""
    for directions in range(length + 1):
        for said in itertools.product(tokens.MOVES, repeat=directions):
            yield [*said, *(length - directions) * [tokens.PLAN_END]]


def test_plan_probabilities_sum_to_one_and_equal_sampled_frequencies():
    state, count = place(WORLD, PARAMS, BOARD), 20_000
    traits = Traits(plan_slip=0.2)
    every = jnp.array(list(every_plan(4)), jnp.int32)
    exact = jax.jit(jax.vmap(lambda plan: WORLD.plan_log_probabilities(plan, state, PARAMS, traits)))(every)
    exact = np.exp(np.asarray(exact, np.float64))
    np.testing.assert_allclose(exact.sum(0), 1, rtol=1e-5)
    place_of = {tuple(plan): index for index, plan in enumerate(np.asarray(every).tolist())}
    for persona, said in enumerate(write(state, traits, count, 4)):
        drawn = np.bincount([place_of[tuple(plan)] for plan in said.tolist()], minlength=len(every))
        mean = count * exact[:, persona]
        assert np.all(np.abs(drawn - mean) < 5 * np.sqrt(mean) + 5)
        assert special.chdtrc(len(every) - 1, np.sum((drawn - mean) ** 2 / mean)) > SURE


@pytest.mark.parametrize(("length", "view"), some([(LENGTH, "walls"), (0, "walls"), (0, "signpost")]))
def test_episode_likelihoods_frequencies_and_posteriors(length, view, key):
    """Personas play; their likelihoods, put together by hand, give the posterior that `log_posteriors` gives."""
    world, params = envs.make("EmojiLabyrinth-v0", size=3, turns=8, mold=0.2, exploits=1, view=view)
    traits, count = Traits(), 1500

    def one(persona, key):
        reset_key, plan_key, play_key = jax.random.split(key, 3)
        _, start = world.reset_env(reset_key, params)
        plan = travellers.write(plan_key, world, persona, start, params, length, traits)

        def turn(state, key):
            each = world.persona_log_probabilities(state, plan, params, traits)
            action = jax.random.categorical(key, each[persona])
            _, after, _, _, _ = world.step_env(key, state, action, params)
            return after, (each, action, ~world.is_terminated(state, params))

        _, (each, actions, played) = jax.lax.scan(turn, start, jax.random.split(play_key, world.turns))
        return world.plan_log_probabilities(plan, start, params, traits), each, actions, played

    who = jnp.arange(3).repeat(count)
    written, each, actions, played = jax.jit(jax.vmap(one))(who, jax.random.split(key, len(who)))
    turns = jnp.take_along_axis(each, actions[:, :, None, None], axis=-1)[..., 0]
    prior = jnp.array([0.5, 0.2, 0.3], jnp.float32)
    posterior = np.asarray(personas.log_posteriors(prior, written, turns, played), np.float64)

    each, turns, played, written = (np.asarray(x, np.float64) for x in (each, turns, played, written))
    np.testing.assert_allclose(np.exp(each).sum(-1), 1, rtol=1e-5)
    for t in (0, 3, world.turns):
        joint = np.log(np.asarray(prior)) + written
        for turn in range(t):
            joint = joint + np.where(played[:, turn, None] > 0, turns[:, turn], 0)
        np.testing.assert_allclose(posterior[:, t], joint - special.logsumexp(joint, axis=-1, keepdims=True), atol=2e-5)

    # Sampled actions are as frequent as they should be: surplus log-likelihood over minus entropy is 0 in the mean.
    who = np.asarray(who)
    mine = each[np.arange(len(who)), :, who]
    surplus = turns[np.arange(len(who)), :, who] - (np.exp(mine) * mine).sum(-1)
    surplus = (surplus * played).sum(-1)
    for persona in range(3):
        assert abs(surplus[who == persona].mean()) < 4 * surplus[who == persona].std() / np.sqrt(count)
    # Posteriors are calibrated: with episodes drawn from the prior, their mean is the prior.
    weight = np.asarray(prior)[who] * 3
    np.testing.assert_allclose((weight[:, None] * np.exp(posterior[:, -1])).mean(0), prior, atol=0.03)
    right = np.exp(posterior[np.arange(len(who)), :, who])
    assert right[:, -1].mean() > right[:, 1].mean() > 1 / 3


def test_plans_are_read_up_to_their_end():
    plan = jnp.array(tokens.encode("⏩⏬🔚⏫🤖"), jnp.int32)
    assert plans.indices(plan).tolist() == [1, 2, 4, 0, 4]
    assert plans.open_slots(plan).tolist() == [True, True, True, False, False]
    assert plans.way(plan, jnp.array([1, 1])).tolist() == [[1, 1], [1, 2], [2, 2], [2, 2], [2, 2]]
    start = jnp.array([1, 1])
    assert plans.advice(plan, start, jnp.array([1, 2])).tolist() == [0, 0, 1, 0]
    assert plans.advice(plan, start, jnp.array([2, 2])).tolist() == [0, 0, 0, 0]
    assert plans.advice(plan[:0], start, start).tolist() == [0, 0, 0, 0]


def test_a_world_without_plans_behind_the_same_interface(key):
    world = maze.EmojiMaze(size=7, turns=3)
    _, state = world.reset(key, world.default_params)
    none, params = jnp.zeros(0, jnp.int32), world.default_params
    found = world.persona_log_probabilities(state, none, params, Traits(slip=0.1))
    scores = jnp.stack([persona(state, params) for persona in (world.larry, world.bob, world.alice)])
    np.testing.assert_array_equal(found, personas.log_probabilities(scores, 0.1))
    assert world.write_plan(key, jnp.int32(0), state, params, Traits()).shape == (0,)
    assert world.plan_log_probabilities(none, state, params, Traits()).tolist() == [0, 0, 0]


def test_scripts_of_both_worlds(key):
    assert personas.SCRIPTS == ("random", "greedy", "Larry", "Bob", "Alice")
    state, none = place(WORLD, PARAMS, BOARD), jnp.zeros(0, jnp.int32)
    found = np.exp(WORLD.script_log_probabilities(state, none, PARAMS, Traits()))
    assert found[:2].round(3).tolist() == [[0.25] * 4, [0, 1, 0, 0]]
    np.testing.assert_array_equal(found[2:], np.exp(WORLD.persona_log_probabilities(state, none, PARAMS, Traits())))
    world = maze.EmojiMaze(size=7, turns=3)
    for index in range(8):
        _, state = world.reset(jax.random.fold_in(key, index), world.default_params)
        found = np.exp(world.script_log_probabilities(state, none, world.default_params, Traits(slip=0.0)))
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
        around = np.asarray(world.neighbours(state, world.default_params))
        paid = np.array([0, 20, -10, 0, 0])[around]
        best = paid == paid.max()
        np.testing.assert_allclose(found[1], best / best.sum(), atol=1e-5)
