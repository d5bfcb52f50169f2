"""Episodes of rooms on a map: no room hides another, what is drawn reads back as the facts, and thoughts are shown."""

import dataclasses
import functools
import io
import itertools
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import envs
from agents.learning import rl
from envs import contract, maps, rendering, rooms, tokens
from envs.personas import ALICE, Traits
from envs.replay import Replay
from studies.report import recordings
from tests import tiny, verdicts
from tests.thrift import some

SURELY = Traits(slip=0.0, following=(1.0, 1.0, 1.0), skill=0.0, plan_slip=0.0, thinking=(1.0, 1.0, 1.0))


@st.composite
def trees(draw):
    """Doors of a tree of 2 to 16 rooms, and dead ends where there is none: int[n, 4], bool[n, 4]."""
    size = draw(st.integers(2, 16))
    children = np.full((size, 4), -1)
    for room in range(1, size):
        free = np.argwhere(children[:room] < 0)
        parent, door = free[draw(st.integers(0, len(free) - 1))]
        children[parent, door] = room
    gold = np.array(draw(st.lists(st.booleans(), min_size=4 * size, max_size=4 * size))).reshape(size, 4)
    return children, gold & (children < 0)


@hypothesis.given(trees())
def test_every_room_and_door_has_a_place_of_its_own_below_those_before(tree):
    children, gold = tree
    places, doors, side = maps.layout(children, gold)
    drawn = doors[..., 0] >= 0
    np.testing.assert_array_equal(drawn, (children >= 0) | gold)
    cells = np.concatenate([places, doors[drawn]])
    assert len(np.unique(cells, axis=0)) == len(cells)
    assert cells.min() >= 0
    assert cells.max() < side
    for room, door in np.argwhere(drawn):
        assert doors[room, door, 0] == places[room, 0] + 1
        if children[room, door] >= 0:
            np.testing.assert_array_equal(places[children[room, door]], doors[room, door] + (1, 0))
    # Corridors of two rooms never touch.
    spans = sorted((*cells.min(axis=0), cells[:, 1].max()) for own in doors if len(cells := own[own[:, 0] >= 0]))
    assert all(one[0] < other[0] or one[2] + 1 < other[1] for one, other in itertools.pairwise(spans))


@functools.partial(jax.jit, static_argnums=0)
def walked(world, params, key):
    """Alice's episode, as she thinks: tokens before her moves, then what each turn shows."""
    maze_key, plan_key = jax.random.split(key)
    observation, state = world.reset_env(maze_key, params)
    opening = world.write_opening(plan_key, jnp.int32(ALICE), state, params, SURELY)

    def turn(carry, _):
        observation, state = carry
        scores = world.persona_log_probabilities(state, opening[world.spoken :], params, SURELY)[ALICE]
        action = jnp.argmax(scores).astype(jnp.int32)
        after, following, reward, _, _ = world.step_env(key, state, action, params)
        return (after, following), (observation, state, action, reward)

    (_, end), (observations, states, actions, rewards) = jax.lax.scan(turn, (observation, state), length=world.turns)
    states = jax.tree.map(lambda turns, last: jnp.concatenate([turns, last[None]]), states, end)
    tiles = jax.vmap(world.tiles, in_axes=(0, None))(states, params)
    turns = jnp.concatenate([observations, tokens.MOVES[0] + actions[:, None]], axis=1)
    return jnp.concatenate([world.prompt(state, params), opening, turns.reshape(-1)]), states, tiles, actions, rewards


def episode(seed: int, **options) -> tuple[rooms.EmojiRooms, rooms.RoomsState, Replay]:
    world, params = rooms.RoomsOptions(**{"size": 10, "plan_length": 12, "distance_range": (1, 5)} | options).make()
    assert isinstance(world, rooms.EmojiRooms)
    told, states, tiles, actions, rewards = jax.tree.map(np.asarray, walked(world, params, jax.random.key(seed)))
    replay = world.replay(
        states,
        tiles=tiles,
        tile_map=np.asarray(params.tile_map),
        actions=actions,
        rewards=rewards,
        tokens=told,
        prompt_length=world.prompt_length + world.opening_length,
        observation_length=world.observation_length,
    )
    return world, states, replay.until(int(np.argmax(states.position[:, 1] == states.goal[0])))


@pytest.mark.parametrize(("size", "mold"), some([(2, 0), (10, 2), (5, 1), (16, 1)], 2))
def test_the_text_of_a_map_reads_back_as_the_facts_of_the_prompt(size, mold):
    for seed in range(5):
        world, states, replay = episode(seed, size=size, mold_rooms=mold)
        assert replay.labels is not None
        assert not (replay.tiles[:, replay.labels >= 0] == tokens.WALL).any()
        for turn in (0, replay.turns):
            text = rendering.text(replay.tiles[turn], replay.tile_map, replay.positions[turn], replay.labels)
            board = np.array([tokens.encode(line) for line in text.split("\n")])
            hidden = {tokens.AGENT: states.position[turn, 1], int(replay.tile_map[tokens.GOAL]): states.goal[0]}
            for token, room in hidden.items():
                board[board == token] = states.names[0, room]
            facts = set()
            for row, column in np.argwhere(np.isin(board, tokens.ROOMS)):
                below, wall = board[row + 1 : row + 2].ravel(), replay.tile_map[tokens.WALL]
                if not len(below) or below[column] == wall:
                    continue
                ends = np.flatnonzero(np.concatenate([[wall], below, [wall]]) == wall) - 1
                for at in range(ends[ends < column].max() + 1, ends[ends > column].min()):
                    if below[at] in tokens.DOORS:
                        leads = board[row + 2, at] if row + 2 < len(board) else wall
                        child = tokens.EXPLOIT if leads == wall else leads
                        facts.add((int(child), int(below[at]), int(board[row, column])))
            told = replay.prompt[1 : 1 + 3 * (world.size - 1 + world.exploits)]
            assert facts == set(zip(told[::3], told[1::3], told[2::3], strict=True))


def test_the_thought_of_alice_is_the_way_that_she_goes():
    for seed in range(6):
        _, states, replay = episode(seed, distance_range=(2, 5))
        assert replay.labels is not None
        assert replay.thought is not None
        assert replay.advised is not None
        heeded = replay.advised[:-1]
        np.testing.assert_array_equal(replay.labels.flat[heeded], tokens.DOORS[0] + replay.actions)
        assert replay.advised[-1] == -1
        passed = set(heeded) | set(np.ravel_multi_index(tuple(replay.positions.T), replay.labels.shape))
        assert set(np.flatnonzero(replay.thought)) == passed
        goal = tokens.word(states.names[0, states.goal[0]])
        assert replay.place(replay.turns) == f"{goal} room"


def test_a_thought_of_a_door_that_is_not_there_names_no_tile():
    world, states, replay = episode(0)
    start = int(states.start[0])
    there = (states.children[0, start] >= 0) | states.gold[0, start]
    told, first = np.array(replay.tokens), world.prompt_length + world.spoken
    chain = [states.names[0, states.goal[0]], tokens.DOORS[int(np.argmin(there))], states.names[0, start]]
    told[first : first + world.plan_length] = [*chain, *[tokens.PLAN_END] * (world.plan_length - 3)]
    shown = maps.drawn(world, states, np.zeros((len(states.position), world.size), np.int8), told)
    assert not there.all()
    assert set(shown["advised"]) == {-1}


def test_a_map_is_drawn_whole_and_thoughts_and_what_they_say_now_can_be_told_from_none():
    _, _, replay = episode(2, distance_range=(3, 5))
    drawn = io.BytesIO()
    rendering.side_by_side([replay, replay.until(1)], drawn)
    with Image.open(drawn) as image:
        assert getattr(image, "n_frames", 1) == replay.turns + 1
    assert replay.crop(smallest=1).tiles.shape == replay.tiles.shape
    assert replay.thought is not None
    none = np.zeros_like(replay.thought)
    bare, quiet = (dataclasses.replace(replay, **changes) for changes in (
        {"thought": none, "advised": None}, {"advised": None}
    ))  # fmt: skip
    frames = [np.asarray(rendering.frame(shown, 1)) for shown in (bare, quiet, replay)]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])


class Lost(rooms.EmojiRooms):
    """Its map shows the agent elsewhere."""

    def replay(self, states, **fields):
        shown = super().replay(states, **fields)
        return dataclasses.replace(shown, positions=shown.positions[::-1])


@pytest.mark.slow
def test_a_map_that_shows_the_agent_elsewhere_is_noticed(key):
    world = Lost(size=6, turns=6)
    with pytest.raises(contract.ContractError, match="replay: positions do not stand for the state's"):
        envs.api_test(world, world.default_params, key)


@pytest.mark.slow
def test_recordings_hold_the_map(tmp_path):
    run = verdicts.write_run(tmp_path / "run", tiny.changed(world=rooms.RoomsOptions()))
    recording = recordings.record(run.path, 2)
    document = json.loads(json.dumps(recordings.document(recording)))
    for member, played in zip(document["members"], recording.replays, strict=True):
        for told, pair in zip(member["episodes"], played, strict=True):
            assert {side["seen"] for side in told["sides"]} == {None}
            assert told["height"] * told["width"] == len(told["sides"][0]["board"])
            for side, replay in zip(told["sides"], pair, strict=True):
                names = {at: (token, words) for at, token, words in told["places"]}
                positions = np.reshape(side["positions"], (-1, 2))
                for turn, (row, column) in enumerate(positions[:-1]):
                    token, words = names[row * told["width"] + column]
                    assert token == replay.observation(turn)[0]
                    assert words == f"{tokens.word(token)} room"
                assert len(side["advised"]) == replay.turns + 1
                assert {names[at][0] for at in side["thought"]} <= set(side["plan"])
                assert {at for at in side["advised"] if at >= 0} <= set(side["thought"])


@pytest.mark.slow
def test_recordings_follow_a_run_and_tell_whose_deeds_they_are(tmp_path):
    run = verdicts.write_run(tmp_path / "run", tiny.changed(world=rooms.RoomsOptions()))
    names, world = verdicts.follow(run, [[0, 0], [0.01, 0.02], [0.5, 0.25], [1, 2]]), run.world
    recording = recordings.record(run.path, 2)
    document = json.loads(json.dumps(recordings.document(recording)))
    assert document["sides"] == ["before RL", "after 1 update of RL", "after 2 updates of RL", "after RL"]
    assert [member["nats"] for member in document["members"]] == [[0, 0.01, 0.5, 1], [0, 0.02, 0.25, 2]]
    assert [member["returns"] for member in document["members"]] == [[-1, None, None, 0], [-1, None, None, 1]]
    assert [document["personas"][i]["badge"] for i in range(3)] == list(tokens.BADGES[1:])
    replay = recording.replays[1][0][names.index("rl-000002")]
    assert replay.tokens is not None
    assert replay.beliefs is not None

    # By hand: each name in turn, the whole episode read at once, and Bayes.
    base = jax.tree.map(lambda x: jnp.asarray(x[1]), run.parameters("pretrain"))
    told = np.tile(replay.tokens, (4, 1))
    told[1:, world.badge_position] = tokens.BADGES[1:]
    reading = rl.read_decisions(run.policy, base, world, jnp.asarray(told))
    said, acted = (np.asarray(x, np.float64) for x in (reading.openings, reading.actions))
    chosen = np.asarray(world.said(world.opening(jnp.asarray(told[:1]))))[0]
    closed = np.flatnonzero(told[0, world.prompt_length :] == tokens.PLAN_END)
    words = int(closed[0]) + 1 if len(closed) else world.opening_length
    joint = said[0, 0, :3] + said[1:, np.arange(1, words), chosen[1:words]].sum(axis=1)
    moves = acted[1:, np.arange(replay.turns), replay.actions]
    joint = np.concatenate([joint[None], joint + np.cumsum(moves.T, axis=0)])
    np.testing.assert_allclose(replay.beliefs, np.exp(joint) / np.exp(joint).sum(axis=1, keepdims=True), atol=1e-5)
    side = document["members"][1]["episodes"][0]["sides"][names.index("rl-000002")]
    np.testing.assert_allclose(np.reshape(side["beliefs"], (-1, 3)) / 1000, replay.beliefs, atol=6e-4)
    assert np.ptp(replay.beliefs) > 0.01


def test_recordings_of_fine_tuning_show_the_base_and_what_became_of_it(tmp_path):
    config = tiny.changed(sft={"updates": 2, "chunk": 1}, rl={"updates": 0})
    trained = verdicts.write_run(tmp_path / "run", config)
    trained.save_parameters("sft", trained.parameters("rl"))
    document = recordings.document(recordings.record(trained.path, 1))
    assert document["sides"] == ["before fine-tuning", "after fine-tuning"]
    assert [member["returns"] for member in document["members"]] == [[None, -1]] * 2
