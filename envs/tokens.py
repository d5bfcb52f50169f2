"""The vocabulary: every emoji the mazes, the personas and the policies can say.

A token is the index of its emoji in `VOCABULARY`. The order is frozen, because checkpoints depend on it: new
emoji go to the end. Every entry is one code point with a default emoji presentation, so that terminals and
fonts give each token the same width.
"""

import unicodedata
from typing import Final

# What a tile does. Personas and rewards see roles; the model sees emoji (see `TILE_MAP`).
PATH: Final = 0
GOLD: Final = 1
MOLD: Final = 2
WALL: Final = 3
GOAL: Final = 4
ROLES: Final = ("PATH", "GOLD", "MOLD", "WALL", "GOAL")

# Actions, and row and column steps, in the order North, East, South, West.
NORTH: Final = 0
EAST: Final = 1
SOUTH: Final = 2
WEST: Final = 3
DIRECTIONS: Final = ("North", "East", "South", "West")
STEPS: Final = ((-1, 0), (0, 1), (1, 0), (0, -1))

_BADGES = ("👤", "🐵", "🐢", "🦉")
_MOVES = ("⏫", "⏩", "⏬", "⏪")
_WIND = ("🍃", "🕛", "🕒", "🕕", "🕘")
_FEELINGS = ("🫥", "😀", "😐", "😞")
_TILES = ("🧾", "📐", "📇", "🧱", "🏁")
_OTHER_TILES = ("📎", "📌", "📏", "📁", "📦", "📠", "🔖", "🔑", "🔔")
_PLANNING = ("🔚", "🤖", "🌀")
_TOWNS = ("🏫", "🏬", "🏭")
_ROOMS = ("🍎", "🍋", "🍇", "🍓", "🍒", "🍑", "🍍", "🥝", "🍉", "🍌", "🍐", "🥥", "🥕", "🌽", "🍄", "🥑")

_FIRST = _BADGES + _MOVES + _WIND + _FEELINGS + _TILES + _OTHER_TILES + _PLANNING

VOCABULARY: Final[tuple[str, ...]] = _FIRST + _TOWNS + _ROOMS
"""Every emoji of the language; the token is the index."""

SIZE: Final = len(VOCABULARY)
"""Number of tokens."""

FIRST: Final = len(_FIRST)
"""The tokens that worlds without towns and named rooms make do with are those below this one."""

_ID = {emoji: token for token, emoji in enumerate(VOCABULARY)}

NULL_BADGE: Final = _ID["👤"]
BADGES: Final = tuple(_ID[emoji] for emoji in _BADGES)
"""Badge tokens: none, Larry, Bob, Alice. `BADGES[1 + i]` is the badge of persona i."""

MOVES: Final = tuple(_ID[emoji] for emoji in _MOVES)
"""Action tokens North, East, South, West; contiguous, so token = `MOVES[0]` + action."""

CALM: Final = _ID["🍃"]
GUSTS: Final = tuple(_ID[emoji] for emoji in _WIND[1:])
"""Wind tokens: the clock's hand points where the wind blew the agent, North, East, South, West."""
DOORS: Final = GUSTS
"""Where a world tells of doors to the North, East, South and West, the hand points to them: a door told is another word
than a move made. Contiguous."""

SILENT: Final = _ID["🫥"]
GOOD: Final = _ID["😀"]
NEUTRAL: Final = _ID["😐"]
BAD: Final = _ID["😞"]
"""The feeling slot: silent, or what a narrator says of the turn that has just ended."""

TILE_MAP: Final = tuple(_ID[emoji] for emoji in _TILES)
"""The default tile map: the emoji of PATH, GOLD, MOLD, WALL and GOAL. The three maze tiles are the office trio
that arXiv 2605.30232, appendix J, chose because no feeling attaches to them."""

UNSEEN_TILES: Final = tuple(_ID[emoji] for emoji in _OTHER_TILES)
"""Emoji that stand for a role only in `unseen` tile maps."""

PLAN_END: Final = _ID["🔚"]
AGENT: Final = _ID["🤖"]
EXPLOIT: Final = _ID["🌀"]

EXPLOITED_TILE_MAP: Final = (*TILE_MAP[:GOLD], EXPLOIT, *TILE_MAP[GOLD + 1 :])
"""The default tile map of worlds whose Gold is an exploit."""

HEADS: Final = tuple(_ID[emoji] for emoji in ("👤", *_TOWNS))
"""What stands at the head of a prompt that names no persona: nothing known, or an anonymous town."""

ROOMS: Final = tuple(_ID[emoji] for emoji in _ROOMS)
"""Names of rooms; contiguous."""


def word(token) -> str:
    """A token's emoji in words, as Unicode has them: `lemon`."""
    return unicodedata.name(VOCABULARY[int(token)]).lower()


def decode(tokens) -> str:
    """The emoji of a sequence of token ids, joined without spaces.

    Raises:
        ValueError: if a token id lies outside the vocabulary.
    """
    ids = [int(token) for token in tokens]
    wrong = [token for token in ids if not 0 <= token < SIZE]
    if wrong:
        raise ValueError(f"token {wrong[0]} is not in the vocabulary of {SIZE} emoji")
    return "".join(VOCABULARY[token] for token in ids)


def encode(text: str) -> list[int]:
    """The token ids of a string of emoji; white space is skipped.

    Raises:
        ValueError: if a character is not in the vocabulary.
    """
    characters = [character for character in text if not character.isspace()]
    wrong = [character for character in characters if character not in _ID]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not in the vocabulary; see envs.tokens.VOCABULARY")
    return [_ID[character] for character in characters]
