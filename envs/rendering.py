"""Pictures of an episode: as text for a terminal, as one image, as an animation, and episodes side by side.

Everything here takes NumPy arrays. A `Replay` holds one episode of T turns; its frame t, of T + 1, shows it before
turn t: the board as it stands, what the policy reads and is about to do, and what the turn before has brought.
Nothing is told by colour alone: rewards have signs, bars have directions, and the wind's pushes are dashed.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import IO, Final

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from envs import sprites, tokens
from envs.replay import Replay, crop_together
from ground import numbers

BOARD: Final = 480
"""Width and height of the board at scale 1, pixels."""

_MARGIN, _PANEL, _STRIP = 16, 312, 256
_FADED = 0.3

# Okabe and Ito's colours, which stay apart for colour-blind readers, and a tint for each role.
_INK, _GREY, _PALE, _PAPER = sprites.INK, "#6a6a72", "#dedee4", "#ffffff"
_GAIN, _LOSS, _WAY, _WIND, _AIR = "#0072b2", "#d55e00", "#8a2f72", "#0091c8", "#d3effb"
_TINTS = ("#f5f5ec", "#fff0a0", "#d9dbe2", "#e9c9b8", "#bfe8da")
_THEME = (_INK, _GREY, _PALE, _PAPER, _GAIN, _LOSS, _WAY, _WIND, _AIR, *_TINTS)


# Words.


def text(tiles: np.ndarray, tile_map: np.ndarray, position: np.ndarray, labels: np.ndarray | None = None) -> str:
    """The board as lines of emoji, the agent as 🤖.

    Args:
        tiles: roles int[H, W].
        tile_map: the token that stands for each role, int[5].
        position: row and column of the agent, int[2].
        labels: of a map, int[H, W], shown in place of all roles but the goal's; see `Replay.labels`.
    """
    board = np.asarray(tile_map)[np.asarray(tiles)]
    if labels is not None:
        board = np.where((labels >= 0) & (tiles != tokens.GOAL), labels, board)
    board[tuple(position)] = tokens.AGENT
    return "\n".join(tokens.decode(row) for row in board)


def _signed(value: float, digits: int = 1) -> str:
    """A reward; a small one has more digits, so that it does not read as none."""
    if abs(value) < 0.005:
        return "0"
    return numbers.signed(value, f"+.{2 if abs(value) < 0.095 else max(digits, 1) if abs(value) < 1 else digits}f")


def _tone(reward: float) -> str:
    """Blue for a gain, orange for a loss, grey for a turn that has cost no more than the usual price of a turn."""
    return _GREY if abs(reward) < 0.25 else _GAIN if reward > 0 else _LOSS


def _when(replay: Replay, turn: int) -> str:
    return f"turn {turn + 1} of {replay.turns}" if turn < replay.turns else f"the end, after {replay.turns} turns"


def _move_words(replay: Replay, turn: int) -> str:
    bumped = np.array_equal(replay.midpoints[turn], replay.positions[turn])
    return f"{'bumped' if bumped else 'went'} {tokens.DIRECTIONS[int(replay.actions[turn])]}"


def _place_words(replay: Replay, turn: int) -> str:
    """Where the move has led on a map."""
    bumped = np.array_equal(replay.midpoints[turn], replay.positions[turn])
    return "a closed door" if bumped else f"to the {replay.place(turn + 1)}"


def _wind_words(replay: Replay, turn: int) -> str:
    wind = int(replay.winds[turn])
    return f"then blown {tokens.DIRECTIONS[wind - 1]}" if wind else "no wind"


# Drawing.


def _tile_size(replay: Replay) -> float:
    return BOARD / max(replay.tiles.shape[1:])


def _centre(replay: Replay, position: np.ndarray) -> np.ndarray:
    """Point (x, y) of a tile's centre; a board that is not square lies in the middle of its place."""
    size = _tile_size(replay)
    free = BOARD - size * np.array(replay.tiles.shape[:0:-1])
    return _MARGIN + free / 2 + size * (position[::-1] + 0.5)


def _draw_board(canvas: sprites.Canvas, replay: Replay, turn: int) -> None:
    """The tiles, the way so far, a dot for each turn's reward, the last turn's push and wind, and the agent."""
    size, seen = _tile_size(replay), replay.seen(turn)
    for cell in np.ndindex(*seen.shape):
        role, centre = int(replay.tiles[turn][cell]), _centre(replay, np.array(cell))
        if replay.labels is not None:
            _draw_place(canvas, replay, turn, cell)
            continue
        fill, line, opacity = (_TINTS[role], _GREY, 1.0) if seen[cell] else (_PAPER, _PALE, _FADED)
        _draw_tile(canvas, centre, size, fill, line, 0.02)
        canvas.sprite(centre, int(replay.tile_map[role]), 0.72 * size, opacity)

    stops = [_centre(replay, position) for position in replay.positions[: turn + 1]]
    bends = [_centre(replay, position) for position in replay.midpoints[:turn]]
    layer = Image.new("RGBA", canvas.image.size)
    pen = ImageDraw.Draw(layer)
    for index in range(turn - 1):
        alpha = format(round(90 + 90 * (index + 1) / turn), "02x")
        for start, end in itertools.pairwise(_corners(stops[index], bends[index])):
            canvas.arrow(start, end, _WAY + alpha, 0.1 * size, pen=pen)
        canvas.arrow(bends[index], stops[index + 1], _WIND + alpha, 0.1 * size, 0.14 * size, pen=pen)
    canvas.image.alpha_composite(layer)
    if turn:
        *corners, last = _corners(stops[-2], bends[-1])
        tip = last - 0.46 * size * np.sign(last - corners[-1])
        for colour, width in ((_PAPER, 0.22), (_WAY, 0.14)):
            for start, end in itertools.pairwise(corners):
                canvas.arrow(start, end, colour, width * size)
            canvas.arrow(corners[-1], tip, colour, width * size, head=(width + 0.2) * size)
    for index in range(1, turn):
        _draw_reward(canvas, stops[index], 0.17 * size, float(replay.rewards[index - 1]))
    if turn and replay.winds[turn - 1]:
        _draw_gust(canvas, bends[-1], stops[-1], size)
    _draw_tile(canvas, stops[-1], size, _PAPER, _INK, 0.06)
    canvas.sprite(stops[-1], tokens.AGENT, 0.76 * size)
    if replay.labels is not None:
        here = int(replay.labels[tuple(replay.positions[turn])])
        canvas.sprite(stops[-1] + np.array([-0.34, 0.34]) * size, here, 0.5 * size)
    elif turn < replay.turns and replay.actions[turn] >= 0:
        ahead = size * np.array(tokens.STEPS[int(replay.actions[turn])][::-1])
        canvas.arrow(stops[-1] + 0.5 * ahead, stops[-1] + 0.72 * ahead, _INK, 0, head=0.22 * size)


def _corners(start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Points of a move: straight, or as the corridors of a map run: half of the rows, the columns, the rest."""
    if np.isclose(start, end).any():
        return [start, end]
    half = (start[1] + end[1]) / 2
    return [start, np.array([start[0], half]), np.array([end[0], half]), end]


def _draw_place(canvas: sprites.Canvas, replay: Replay, turn: int, cell: tuple[int, ...]) -> None:
    """A tile of a map: its name, a small mark of its role, a ring if the thought names it, and a thick one for now."""
    assert replay.labels is not None
    size, centre, role = _tile_size(replay), _centre(replay, np.array(cell)), int(replay.tiles[turn][cell])
    if role == tokens.WALL:
        return
    ring, thick = (_GAIN, 0.07) if replay.thought is not None and replay.thought[cell] else (_GREY, 0.02)
    if replay.advised is not None and replay.advised[turn] == np.ravel_multi_index(cell, replay.labels.shape):
        thick = 0.16
    _draw_tile(canvas, centre, size, _TINTS[role], ring, thick)
    if replay.labels[cell] >= 0:
        canvas.sprite(centre, int(replay.labels[cell]), 0.66 * size)
        if role != tokens.PATH:
            canvas.sprite(centre + 0.34 * size, int(replay.tile_map[role]), 0.4 * size)
    if cell == tuple(replay.positions[0]):
        canvas.text(centre + np.array([0.54 * size, 0]), "start", 12, _GREY)


def _draw_tile(canvas: sprites.Canvas, centre: np.ndarray, size: float, fill: str, line: str, thick: float) -> None:
    canvas.box(centre - 0.48 * size, 0.96 * size, 0.96 * size, fill, line, thick * size, 0.14 * size)


def _draw_reward(canvas: sprites.Canvas, centre: np.ndarray, radius: float, reward: float) -> None:
    """A dot with the reward's sign; small and empty if the turn was neither gain nor loss."""
    tone = _tone(reward)
    if tone == _GREY:
        canvas.disc(centre, 0.6 * radius, _PAPER, _WAY)
        return
    canvas.disc(centre, radius, tone, _PAPER)
    canvas.text(centre, "+" if reward > 0 else "−", 1.8 * radius, _PAPER, True, "mm")


def _draw_gust(canvas: sprites.Canvas, bend: np.ndarray, stop: np.ndarray, size: float) -> None:
    """The tile that the agent has been blown from: a leaf between two dashed streaks."""
    _draw_tile(canvas, bend, size, _AIR, _WIND, 0.03)
    canvas.sprite(bend, tokens.CALM, 0.5 * size)
    ahead = size * np.sign(stop - bend)
    for side in (-0.31, 0.31):
        middle = bend + side * ahead[::-1]
        canvas.arrow(middle - 0.36 * ahead, middle + 0.54 * ahead, _WIND, 0.09 * size, 0.16 * size, 0.26 * size)


# The panel: sections at (x, y), of one width.


def _draw_header(canvas: sprites.Canvas, replay: Replay, turn: int, x: float, y: float, width: float) -> None:
    title, size = replay.title, 17
    while len(title) > 1 and canvas.text_width(title, size, True) > width:
        title, size = (title, size - 1) if size > 12 else (title.rstrip("…")[:-1] + "…", size)
    canvas.text((x, y + 10), title, size, bold=True)
    canvas.text((x, y + 32), _when(replay, turn), 13, _GREY)
    canvas.text((x + width, y + 32), f"return {_signed(float(replay.returns[turn]))}", 15, bold=True, anchor="rm")


def _draw_reading(canvas: sprites.Canvas, replay: Replay, turn: int, x: float, y: float, width: float) -> None:
    """The tokens that the policy reads: prompt and plan, or the end of them, and the turn's observation."""
    observation, step = replay.observation(turn), 26 if replay.labels is None else 20
    if not observation:
        return
    room = int(width / step - 0.5) - len(observation)
    prompt = replay.prompt[-room:] if room > 0 else []
    canvas.text((x, y + 6), "prompt, and what it reads now" if prompt else "reads", 12, _GREY)
    for index, token in enumerate(prompt):
        canvas.sprite((x + step * index + step / 2 - 1, y + 29), token, step - 4)
    x += step * len(prompt) + 4 * bool(prompt)
    canvas.box((x, y + 15), step * len(observation) + 2, 28, _TINTS[0], _GREY, 1, 5)
    for index, token in enumerate(observation):
        canvas.sprite((x + step * index + step / 2 + 1, y + 29), token, step - 4)


def _draw_choice(canvas: sprites.Canvas, replay: Replay, turn: int, x: float, y: float, width: float) -> None:
    """The probability of each action, the chosen one dark and marked; at the end, the return."""
    if turn == replay.turns:
        canvas.text((x, y + 6), "return of the episode", 12, _GREY)
        canvas.text((x, y + 48), _signed(float(replay.returns[-1])), 40, bold=True)
        return
    canvas.text((x, y + 6), "chooses", 12, _GREY)
    if replay.labels is not None and replay.advised is not None and replay.advised[turn] >= 0:
        canvas.text((x + width - 24, y + 6), "the thought says", 12, _GAIN, anchor="rm")
        canvas.sprite((x + width - 10, y + 6), int(replay.labels.flat[replay.advised[turn]]), 18)
    left, room = x + 90, width - 132
    for action, name in enumerate(tokens.DIRECTIONS):
        chosen, line = action == int(replay.actions[turn]), y + 27 + 22 * action
        colour = _INK if chosen else _GREY
        canvas.text((x, line), "▶" if chosen else "", 11)
        canvas.sprite((x + 24, line), tokens.MOVES[action], 18)
        canvas.text((x + 40, line), name, 13, colour, chosen)
        if replay.probabilities is not None:
            share = float(replay.probabilities[turn, action])
            canvas.box((left, line - 7), room, 14, _PALE, radius=3)
            canvas.box((left, line - 7), max(share * room, 1), 14, colour, radius=min(3, share * room / 2))
            canvas.text((x + width, line), f"{share:.0%}", 12, colour, chosen, "rm")


def _draw_outcome(canvas: sprites.Canvas, replay: Replay, turn: int, x: float, y: float, width: float) -> None:
    """What the turn before has brought: the move, the wind, the reward."""
    if turn == 0:
        return
    reward, wind = float(replay.rewards[turn - 1]), bool(replay.winds[turn - 1])
    canvas.text((x, y + 6), "last turn", 12, _GREY)
    canvas.sprite((x + 10, y + 28), tokens.MOVES[int(replay.actions[turn - 1])], 18)
    canvas.text((x + 26, y + 28), _move_words(replay, turn - 1))
    if replay.labels is not None:
        canvas.sprite((x + 10, y + 50), int(replay.labels[tuple(replay.positions[turn])]), 18)
        canvas.text((x + 26, y + 50), _place_words(replay, turn - 1))
    else:
        canvas.sprite((x + 10, y + 50), tokens.CALM, 18, 1.0 if wind else _FADED)
        canvas.text((x + 26, y + 50), _wind_words(replay, turn - 1), 13, _WIND if wind else _GREY, wind)
    canvas.box((x + width - 92, y + 18), 92, 42, _tone(reward), radius=6)
    canvas.text((x + width - 46, y + 33), _signed(reward), 18, _PAPER, True, "mm")
    canvas.text((x + width - 46, y + 51), "reward", 11, _PAPER, anchor="mm")


def _draw_rewards(canvas: sprites.Canvas, replay: Replay, turn: int, x: float, y: float, width: float) -> None:
    """The rewards so far, one bar a turn, and the return that the policy still expects."""
    canvas.text((x, y + 6), "rewards turn by turn", 12, _GREY)
    if replay.values is not None and turn < replay.turns:
        canvas.text((x + width, y + 6), f"expects {_signed(float(replay.values[turn]))} more", 12, _GREY, anchor="rm")
    step = width / replay.turns
    low, high = min(float(replay.rewards.min()), 0.0), max(float(replay.rewards.max()), 0.0)
    unit = 40 / max(high - low, 1.0)
    zero = y + 30 + high * unit
    for index in range(replay.turns):
        reward = float(replay.rewards[index]) if index < turn else 0.0
        left, tone = x + index * step, _tone(reward) if index < turn else _PALE
        height = max(abs(reward) * unit, 2.0)
        canvas.box((left + 2, zero - height if reward > 0 else zero), step - 4, height, tone)
        if tone in (_GAIN, _LOSS):
            end = zero - height - 7 if reward > 0 else zero + height + 7
            canvas.text((left + step / 2, end), _signed(reward, 0), 9, tone, anchor="mm")


def _draw_legend(canvas: sprites.Canvas, replay: Replay, x: float, y: float, width: float) -> None:
    """What the tiles do."""
    roles = [int(role) for role in np.unique(replay.tiles)]
    step = width / max(len(roles), 3)
    for index, role in enumerate(roles):
        canvas.box((x + index * step, y), 24, 24, _TINTS[role], _GREY, 1, 4)
        canvas.sprite((x + index * step + 12, y + 12), int(replay.tile_map[role]), 17)
        canvas.text((x + index * step + 30, y + 12), tokens.ROLES[role].capitalize(), 12)


def _draw_key(canvas: sprites.Canvas, replay: Replay, x: float, y: float, width: float) -> None:
    """What the marks on the board mean."""
    lines = [(np.array([x + start + 2, y]), np.array([x + start + 23, y])) for start in (0, width / 3)]
    canvas.arrow(*lines[0], _WAY, 4)
    if replay.labels is None:
        canvas.arrow(*lines[1], _WIND, 3, 6)
    else:
        canvas.box((x + width / 3 + 6, y - 8), 16, 16, _PAPER, _GAIN, 2, 3)
    for shift, reward in ((6, 1.0), (19, -1.0)):
        _draw_reward(canvas, np.array([x + 2 * width / 3 + shift, y]), 6, reward)
    for index, words in enumerate(("way", "wind" if replay.labels is None else "thought", "reward")):
        canvas.text((x + index * width / 3 + 30, y), words, 12)


def frame(replay: Replay, turn: int, scale: float = 1.0) -> Image.Image:
    """The episode before turn `turn`, or at its end, RGB: the board, and beside it a panel.

    Args:
        replay: cropped as it should be shown.
        turn: 0 to T.
        scale: 1 gives an image of 856 × 512 pixels, whatever the size of the board.

    Raises:
        ValueError: for a turn that the episode does not have.
    """
    if not 0 <= turn <= replay.turns:
        raise ValueError(f"turn={turn}: the episode has turns 0 to {replay.turns - 1}, and its end {replay.turns}")
    canvas = sprites.Canvas(2 * _MARGIN + BOARD + _PANEL + 32, 2 * _MARGIN + BOARD, scale)
    _draw_board(canvas, replay, turn)
    x = _MARGIN + BOARD + 24
    _draw_header(canvas, replay, turn, x, 16, _PANEL)
    _draw_reading(canvas, replay, turn, x, 72, _PANEL)
    _draw_choice(canvas, replay, turn, x, 134, _PANEL)
    _draw_outcome(canvas, replay, turn, x, 254, _PANEL)
    _draw_rewards(canvas, replay, turn, x, 334, _PANEL)
    _draw_legend(canvas, replay, x, 436, _PANEL)
    _draw_key(canvas, replay, x, 482, _PANEL)
    return canvas.finish()


def _narrow_frame(replay: Replay, turn: int, scale: float) -> Image.Image:
    """A frame whose panel lies below the board."""
    canvas = sprites.Canvas(2 * _MARGIN + BOARD, 2 * _MARGIN + BOARD + _STRIP, scale)
    _draw_board(canvas, replay, turn)
    left, middle, right, y = _MARGIN, _MARGIN + 226, _MARGIN + BOARD, _MARGIN + BOARD + 12
    _draw_header(canvas, replay, turn, left, y, BOARD)
    _draw_choice(canvas, replay, turn, left, y + 50, 200)
    _draw_outcome(canvas, replay, turn, middle, y + 50, right - middle)
    _draw_legend(canvas, replay, middle, y + 124, right - middle)
    _draw_rewards(canvas, replay, turn, left, y + 168, BOARD)
    return canvas.finish()


def gif(replay: Replay, path: str | pathlib.Path | IO[bytes], milliseconds: int = 700, scale: float = 1.0) -> None:
    """Write the episode as an animation of T + 1 frames, the last of which stays longer."""
    _write_gif([frame(replay, turn, scale) for turn in range(replay.turns + 1)], path, milliseconds)


def side_by_side(replays: Sequence[Replay], path: str | pathlib.Path | IO[bytes], milliseconds=700, scale=1.0) -> None:
    """Write episodes on one maze beside each other as an animation, for example before and after RL.

    The boards show the one window that holds all of the ways; an episode that ends early waits for the others.

    Raises:
        ValueError: if there is nothing to show, or the grids have different sizes.
    """
    shapes = {replay.tiles.shape[1:] for replay in replays}
    if len(shapes) != 1:
        raise ValueError(f"side_by_side: grids of {sorted(shapes)} tiles; give uncropped replays of one maze")
    frames = []
    replays = crop_together(replays, margin=2, smallest=13)
    for turn in range(max(replay.turns for replay in replays) + 1):
        shown = [_narrow_frame(replay, min(turn, replay.turns), scale) for replay in replays]
        frames.append(Image.fromarray(np.concatenate([np.asarray(image) for image in shown], axis=1)))
    _write_gif(frames, path, milliseconds)


def _write_gif(frames: Sequence[Image.Image], path: str | pathlib.Path | IO[bytes], milliseconds: int) -> None:
    """One palette for all frames and no dithering, so that what stands still costs no bytes."""
    palette = _palette(frames)
    drawn = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    durations = [milliseconds] * (len(drawn) - 1) + [4 * milliseconds]
    drawn[0].save(path, format="GIF", save_all=True, append_images=drawn[1:], duration=durations, loop=0)


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """The theme's colours exactly, then those that serve the sprites best.

    Every colour of the sprites counts once, however few its pixels are, or a green leaf would turn yellow.
    """
    theme = np.array([ImageColor.getrgb(colour) for colour in _THEME])
    colours = {colour for image in frames for _, colour in image.getcolors(image.width * image.height) or []}
    sample = Image.fromarray(np.array([sorted(colours)], np.uint8))
    chosen = sample.quantize(256 - len(theme), Image.Quantize.MEDIANCUT, kmeans=1).getpalette() or []
    others = np.array(chosen).reshape(-1, 3)
    # Pillow rounds each channel down to a multiple of 4 before it looks a colour up, which moves it by up to 3√3:
    # white would become a near-white if the palette had one.
    apart = np.linalg.norm(others[:, None] - theme, axis=-1).min(axis=-1) > 2 * 3 * 3**0.5
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(value) for value in np.concatenate([theme, others[apart]]).ravel()])
    return palette
