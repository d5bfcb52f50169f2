"""Pictures of episodes, and the sprites they are made of."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageColor

from envs import rendering, sprites, tokens
from envs.maze import EmojiMaze


@pytest.fixture(scope="module")
def replay() -> rendering.Replay:
    """Three turns: East, blown South; North, off the next tile; West against a wall."""
    tiles = np.zeros((4, 20, 20), np.int8)
    tiles[:, 0], tiles[:, 4, 6] = tokens.MOLD, tokens.GOLD
    tiles[1:, 3, 5] = tiles[1:, 3, 6] = tiles[2:, 4, 6] = tokens.MOLD
    episode = [tokens.NULL_BADGE]
    for action, wind in ((1, 0), (0, 3), (3, 0)):
        gust = tokens.GUSTS[wind - 1] if wind else tokens.CALM
        episode += [tokens.SILENT, gust, *4 * [tokens.TILE_MAP[0]], tokens.MOVES[action]]
    return rendering.Replay(
        tiles=tiles,
        tile_map=np.array(tokens.TILE_MAP),
        positions=np.array([[3, 5], [4, 6], [3, 6], [3, 6]]),
        midpoints=np.array([[3, 6], [3, 6], [3, 6]]),
        actions=np.array([1, 0, 3]),
        winds=np.array([3, 0, 0]),
        rewards=np.array([19.9, -10.1, -0.1]),
        probabilities=np.full((3, 4), 0.25),
        values=np.array([9.0, -10.0, 0.0]),
        title="three turns",
        tokens=np.array(episode),
    )


def test_atlas_has_one_sprite_for_each_token():
    cells = [
        sprites.atlas().crop((left, top, left + sprites.CELL, top + sprites.CELL))
        for top in range(0, sprites.atlas().height, sprites.CELL)
        for left in range(0, sprites.atlas().width, sprites.CELL)
    ]
    drawn = [cell.getbbox() is not None for cell in cells]
    assert drawn == [True] * tokens.SIZE + [False] * (len(cells) - tokens.SIZE)
    assert len({cell.tobytes() for cell in cells[: tokens.SIZE]}) == tokens.SIZE
    assert sprites.ATLAS.stat().st_size < 400 * 1024


def test_sprite_is_the_callers_own():
    sprites.sprite(tokens.AGENT, 20).paste((255, 0, 0, 255), (0, 0, 20, 20))
    fresh = sprites.sprite(tokens.AGENT, 20)
    assert fresh.size == (20, 20)
    assert fresh.getpixel((0, 0)) != (255, 0, 0, 255)


@pytest.mark.parametrize(("token", "size"), [(-1, 8), (tokens.SIZE, 8), (0, 0)])
def test_sprite_refuses_what_is_not_there(token, size):
    with pytest.raises(ValueError, match=r"token|size"):
        sprites.sprite(token, size)


def test_atlas_is_not_drawn_from_a_folder_without_the_emoji(monkeypatch, capsys, tmp_path):
    picture = tmp_path / f"emoji_u{ord(tokens.VOCABULARY[0]):04x}.png"
    for content in (None, b"no picture"):
        if content:
            picture.write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["sprites", "--pictures", str(tmp_path)])
        with pytest.raises(SystemExit) as exit_:
            sprites.main()
        assert exit_.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_atlas_is_drawn_again_from_pictures(tmp_path):
    for index, emoji in enumerate(tokens.VOCABULARY):
        sprites.sprite(index).resize((128, 128)).save(tmp_path / f"emoji_u{ord(emoji):04x}.png")
    sprites.write_atlas(tmp_path, tmp_path / "emoji.png")
    with Image.open(tmp_path / "emoji.png") as image:
        assert image.info["Vocabulary"] == "".join(tokens.VOCABULARY)
        difference = np.abs(np.asarray(image, np.int32) - np.asarray(sprites.atlas(), np.int32))
    assert difference.mean() < 8
    sprites.sprite(0).save(tmp_path / f"emoji_u{ord('🐵'):04x}.png")
    sprites.sprite(0).save(tmp_path / f"emoji_u{ord('👤'):04x}.png")
    with pytest.raises(ValueError, match="like 👤"):
        sprites.write_atlas(tmp_path, tmp_path / "emoji.png")


def test_text_goes_back_to_tokens(replay):
    lines = rendering.text(replay.tiles[1], replay.tile_map, replay.positions[1]).split("\n")
    board = np.array([tokens.encode(line) for line in lines])
    expected = np.array(tokens.TILE_MAP)[replay.tiles[1]]
    assert np.argwhere(board == tokens.AGENT).tolist() == [[4, 6]]
    board[4, 6] = expected[4, 6]
    np.testing.assert_array_equal(board, expected)


def test_words_tell_the_turn(replay):
    told = [(rendering._move_words(replay, turn), rendering._wind_words(replay, turn)) for turn in range(3)]
    assert told == [("went East", "then blown South"), ("went North", "no wind"), ("bumped West", "no wind")]


@pytest.mark.parametrize("turn", [-1, 4])
def test_turns_outside_the_episode_are_refused(replay, turn):
    with pytest.raises(ValueError, match=f"turn={turn}"):
        rendering.frame(replay, turn)


def tile_box(replay, cell) -> tuple[int, ...]:
    """Left, top, right and bottom pixel of a tile in the replay's frames."""
    centre, half = rendering._centre(replay, np.asarray(cell)), rendering._tile_size(replay) / 2
    return tuple(np.rint(np.concatenate([centre - half, centre + half])).astype(int).tolist())


def _colours(image: Image.Image, replay: rendering.Replay, cell) -> np.ndarray:
    return np.asarray(image.crop(tile_box(replay, cell)), np.int32)


def test_agent_stands_on_its_tile(replay):
    cropped = replay.crop()
    for turn in range(4):
        image = rendering.frame(cropped, turn)
        robot = sprites.sprite(tokens.AGENT, 26)
        white = Image.new("RGBA", robot.size, "white")
        white.alpha_composite(robot)
        pattern = np.asarray(white.convert("RGB"), np.int32)
        distance = np.full(cropped.tiles.shape[1:], np.inf)
        for cell in np.ndindex(*distance.shape):
            tile = _colours(image, cropped, cell)
            edge = (tile.shape[0] - 26) // 2
            distance[cell] = np.abs(tile[edge : edge + 26, edge : edge + 26] - pattern).mean()
        assert np.unravel_index(distance.argmin(), distance.shape) == tuple(cropped.positions[turn])


def test_wind_shows_where_it_blew_and_fades_what_was_never_seen(replay):
    cropped = replay.crop()
    air = ImageColor.getrgb("#d3effb")
    blown, calm = rendering.frame(cropped, 1), rendering.frame(cropped, 3)
    cell = cropped.midpoints[0]
    assert np.any(np.all(_colours(blown, cropped, cell) == air, axis=-1))
    assert not np.any(np.all(_colours(calm, cropped, (0, 0)) == air, axis=-1))
    row, column = cropped.positions[1]
    assert _colours(blown, cropped, (row, column + 1)).mean() < _colours(blown, cropped, (row, column + 3)).mean() - 5


@pytest.mark.parametrize(("shift", "shape"), [(0, (13, 13)), (-3, (13, 13)), (13, (13, 13))])
def test_crop_keeps_the_way(replay, shift, shape):
    moved = dataclasses.replace(replay, positions=replay.positions + shift, midpoints=replay.midpoints + shift)
    cropped = moved.crop()
    assert cropped.tiles.shape[1:] == shape
    for turn, (old, new) in enumerate(zip(moved.positions, cropped.positions, strict=True)):
        assert np.all((new >= 0) & (new < 13))
        assert moved.tiles[(turn, *old)] == cropped.tiles[(turn, *new)]
    assert moved.crop(margin=4, smallest=1).tiles.shape[1:] == (10, 10)
    assert moved.crop(smallest=50).tiles.shape == moved.tiles.shape


def test_replay_refuses_shapes_that_do_not_fit(replay):
    for name, value in (("winds", np.zeros(2)), ("tokens", np.zeros(9)), ("probabilities", np.zeros((3, 5)))):
        with pytest.raises(ValueError, match=rf"Replay\.{name}"):
            dataclasses.replace(replay, **{name: value})


def test_replay_has_seen_what_the_world_says():
    env = EmojiMaze(size=21, turns=4)
    params = dataclasses.replace(env.default_params, wind_probability=jnp.float32(1))
    everywhere = jnp.stack(jnp.meshgrid(jnp.arange(21), jnp.arange(21), indexing="ij"), axis=-1)

    @jax.jit
    def play(key, actions):
        def turn(carry, action):
            observation, state = carry
            following, after, reward, _, _ = env.step_env(key, state, action, params)
            return (following, after), (observation, state, reward)

        (_, end), (observations, before, rewards) = jax.lax.scan(turn, env.reset_env(key, params), actions)
        states = jax.tree.map(lambda turns, last: jnp.concatenate([turns, last[None]]), before, end)
        view = jax.vmap(lambda state: (env.tiles(state, params), env.seen(state, everywhere, memory=4)))
        return observations, states, rewards, *view(states)

    actions = np.array([0, 1, 1, 2], np.int32)
    observations, states, rewards, tiles, seen = jax.tree.map(np.asarray, play(jax.random.key(5), actions))
    turns = np.concatenate([observations, tokens.MOVES[0] + actions[:, None]], axis=1)
    midpoints = states.trail[-1][1::2]
    replay = rendering.Replay(
        tiles=tiles,
        tile_map=np.asarray(params.tile_map),
        positions=states.position,
        midpoints=np.stack([midpoints // 21, midpoints % 21], axis=-1),
        actions=actions,
        winds=states.wind[1:],
        rewards=rewards,
        tokens=np.concatenate([[tokens.NULL_BADGE], turns.ravel()]),
    )
    for turn in range(5):
        np.testing.assert_array_equal(replay.seen(turn), seen[turn])
    for turn in range(4):
        row, column = replay.positions[turn]
        around = [replay.tiles[turn, row + down, column + right] for down, right in tokens.STEPS]
        assert replay.observation(turn)[2:] == [tokens.TILE_MAP[role] for role in around]


def test_gif_has_a_frame_for_each_turn_and_the_end(replay, tmp_path):
    rendering.gif(replay.crop(), tmp_path / "way.gif", milliseconds=200)
    with Image.open(tmp_path / "way.gif") as image:
        assert isinstance(image, GifImagePlugin.GifImageFile)
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
        assert durations == [200, 200, 200, 800]
        image.seek(0)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert rendering.frame(replay.crop(), 1, scale=0.5).size == (428, 256)


def test_small_rewards_do_not_read_as_none():
    assert [rendering._signed(value) for value in (-0.004, -0.04, 0.25, -20.0)] == ["0", "−0.04", "+0.2", "−20.0"]
    assert [rendering._signed(value, 0) for value in (0.3, -0.4, 1.0, -10.0)] == ["+0.3", "−0.4", "+1", "−10"]


def test_side_by_side_waits_for_the_longer_episode(replay, tmp_path):
    short = dataclasses.replace(
        replay,
        **{name: getattr(replay, name)[:2] for name in ("tiles", "positions")},
        **{name: getattr(replay, name)[:1] for name in ("midpoints", "actions", "winds", "rewards")},
        probabilities=None,
        values=None,
        title="an early end",
    )
    rendering.side_by_side([short, replay], tmp_path / "both.gif", scale=0.5)
    with Image.open(tmp_path / "both.gif") as image:
        assert isinstance(image, GifImagePlugin.GifImageFile)
        assert image.n_frames == 4
        assert image.width == 2 * 256
    for wrong in ([], [replay, replay.crop()]):
        with pytest.raises(ValueError, match="side_by_side"):
            rendering.side_by_side(wrong, tmp_path / "wrong.gif")


def test_a_labyrinth_is_drawn_from_its_board_to_its_end(tmp_path):
    """A world without wind, two tiles a move, which ended before its time limit; the plan is told up to its end."""
    board = np.full((5, 5), tokens.WALL, np.int8)
    board[1, 1:4], board[1:4, 3], board[3, 3] = tokens.PATH, tokens.PATH, tokens.GOAL
    plan = tokens.encode("⏩⏬🔚🔚")
    turns = [[tokens.SILENT, tokens.TILE_MAP[0], tokens.MOVES[action]] for action in (0, 1, 2, 2)]
    replay = rendering.Replay.calm(
        tiles=np.broadcast_to(board, (5, 5, 5)),
        tile_map=np.array(tokens.TILE_MAP),
        positions=np.array([[1, 1], [1, 1], [1, 3], [3, 3], [3, 3]]),
        actions=np.array([0, 1, 2, 2]),
        rewards=np.array([0.0, 0.0, 1.0, 0.0]),
        tokens=np.array([tokens.NULL_BADGE, *plan, *(token for turn in turns for token in turn)]),
        prompt_length=5,
        observation_length=2,
        sees_all=True,
    )
    shown = replay.until(3)
    assert (shown.turns, shown.returns[-1]) == (3, 1)
    assert tokens.decode(shown.prompt) == "👤⏩⏬🔚"
    assert [rendering._move_words(shown, turn) for turn in range(3)] == ["bumped North", "went East", "went South"]
    assert shown.seen(0).all()
    rendering.gif(shown, tmp_path / "labyrinth.gif", scale=0.5)
    with Image.open(tmp_path / "labyrinth.gif") as image:
        assert image.n_frames == 4
    left, top, right, bottom = tile_box(shown, (3, 3))
    at_start, at_end = (np.asarray(rendering.frame(shown, turn)) for turn in (0, 3))
    assert np.any(at_start[top:bottom, left:right] != at_end[top:bottom, left:right])
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=f"turns={wrong}"):
            replay.until(wrong)
