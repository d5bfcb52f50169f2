"""Mazes that are given: read from text or from an array of roles, and refused where a world cannot hold them.

A board is square and is written row by row, `#` wall, `.` path, `S` start, `G` goal, `$` Gold, `M` Mold, or as the
emoji that `rendering.text` shows:

    #######        🧱🧱🧱🧱🧱🧱🧱
    #S..#G#        🧱🤖🧾🧾🧱🏁🧱
    #.#.#.#        🧱🧾🧱🧾🧱🧾🧱
    #.#...#        🧱🧾🧱🧾🧾🧾🧱
    #.#.#.#        🧱🧾🧱🧾🧱🧾🧱
    #M$.#.#        🧱📇🌀🧾🧱🧾🧱
    #######        🧱🧱🧱🧱🧱🧱🧱

Rows are separated by new lines or by `/`. In a config, on the command line and in a world's options a board is such
text, `tidy`: characters and `/`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from envs import corridors, tokens

LARGEST: Final = 1_024
"""Rows at most."""

_BY_ROLE: Final = ".$M#G"
_START: Final = "S"
LEGEND: Final = ("#", ".", _START, "G", "$", "M")
"""The characters of a board: wall, path, start, goal, Gold, Mold."""

_ROLES = {character: role for role, character in enumerate(_BY_ROLE)} | {_START: tokens.PATH}
_SPOKEN = {tokens.VOCABULARY[token]: character for token, character in zip(tokens.TILE_MAP, _BY_ROLE, strict=True)}
_SPOKEN |= {tokens.VOCABULARY[tokens.AGENT]: _START, tokens.VOCABULARY[tokens.EXPLOIT]: "$"}
_SPOKEN["\ufe0f"] = ""  # some editors add it to an emoji


@dataclasses.dataclass(frozen=True, eq=False)
class Board:
    """A maze that is given."""

    roles: np.ndarray
    """int8[H, H]; the start is Path."""
    start: tuple[int, int] | None
    """Row and column of the start, if it is marked."""

    @property
    def goal(self) -> tuple[int, int] | None:
        """Row and column of the goal, if there is one."""
        return next(_cells(self.roles == tokens.GOAL), None)


def _cells(mask: np.ndarray):
    return ((int(row), int(column)) for row, column in np.argwhere(mask))


def tidy(text: str) -> str:
    """A board in characters, rows separated by `/`; what is no emoji of a board stays, for `read` to refuse."""
    rows = (row.strip() for row in text.replace("/", "\n").splitlines())
    return "/".join("".join(_SPOKEN.get(character, character) for character in row) for row in rows if row)


def text(roles: np.ndarray, start: Sequence[int] | None = None) -> str:
    """The tidy text of roles int[H, H], with the start at a row and a column, or to be drawn by every episode.

    Raises:
        ValueError: no grid of roles, or a start that is no Path.
    """
    grid = np.asarray(roles)
    known = grid.dtype.kind in "iu" and np.isin(grid, range(len(tokens.ROLES))).all()
    if grid.ndim != 2 or not grid.size or not known:
        raise ValueError(f"board: not an array of roles; use int[H, H] of 0 to 4: {', '.join(tokens.ROLES)}")
    characters = np.array(list(_BY_ROLE))[grid]
    if start is not None:
        row, column = (int(at) for at in start)
        if not (0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]) or grid[row, column] != tokens.PATH:
            raise ValueError(f"board: start=({row}, {column}) is no PATH of it; start on one, or leave it out")
        characters[row, column] = _START
    return "/".join("".join(row) for row in characters.tolist())


def in_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a world, a `board` that is an array of roles as text."""
    board = options.get("board", "")
    return {**options} if isinstance(board, str) else {**options, "board": text(board)}


def read(board: str) -> Board:
    """The board that a text shows.

    Raises:
        ValueError: rows of different lengths, no square, a character that is no tile, two starts or goals.
    """
    rows = tidy(board).split("/")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(f"board: row {number} has {len(row)} tiles, row 1 {len(rows[0])}; give all as many")
        for character in row:
            if character not in LEGEND:
                raise ValueError(
                    f"board: {character!r} in row {number} is no tile; use {' '.join(LEGEND)} for wall, path, start, "
                    f"goal, Gold and Mold, or their emoji"
                )
    if len(rows) != len(rows[0]):
        raise ValueError(f"board: {len(rows)} rows of {len(rows[0])} tiles; use as many rows as tiles in a row")
    if len(rows) > LARGEST:
        raise ValueError(f"board: {len(rows)} rows; use at most {LARGEST}")
    characters = np.array([list(row) for row in rows])
    for mark, name in ((_START, "starts"), ("G", "goals")):
        if (count := int(np.sum(characters == mark))) > 1:
            raise ValueError(f"board: {count} {name} ({mark}); mark one, or none and it is drawn")
    roles = np.array([[_ROLES[character] for character in row] for row in rows], np.int8)
    return Board(roles, next(_cells(characters == _START), None))


def _require(board: Board, where: np.ndarray, allowed: str, what: str, start: bool = False) -> None:
    """Refuse other tiles than those `allowed`, and the start unless it is, in `where` bool[H, H]."""
    wrong = where & ~np.isin(board.roles, [_ROLES[character] for character in allowed])
    if board.start and not start:
        wrong[board.start] |= where[board.start]
    for row, column in _cells(wrong):
        tile = _START if (row, column) == board.start else _BY_ROLE[board.roles[row, column]]
        raise ValueError(
            f"board: {tile!r} in row {row + 1}, column {column + 1}, which is {what}; use {' or '.join(allowed)} there"
        )


def _ring(size: int) -> np.ndarray:
    ring = np.ones((size, size), bool)
    ring[1:-1, 1:-1] = False
    return ring


def maze(board: str) -> Board:
    """A board as an EmojiMaze holds it: Path, Gold and Mold, a ring of Mold around, and a Path to start on.

    Raises:
        ValueError: one line that says what of it an EmojiMaze cannot hold.
    """
    given = read(board)
    ring = _ring(len(given.roles))
    _require(given, ring, "M", "of the outer ring")
    _require(given, ~ring, ".$M", "inside an EmojiMaze", start=True)
    if not np.any(given.roles == tokens.PATH):
        raise ValueError("board: no Path to start on; mark one with S or .")
    return given


def labyrinth(board: str) -> Board:
    """A board as an EmojiLabyrinth holds it: n × n cells, walls or openings between them, all cells connected.

    Raises:
        ValueError: one line that says what of it an EmojiLabyrinth cannot hold.
    """
    given = read(board)
    size = len(given.roles)
    if size % 2 == 0 or not 2 <= size // 2 <= corridors.LARGEST:
        raise ValueError(f"board: {size} rows; n × n cells with walls have 2n + 1, n from 2 to {corridors.LARGEST}")
    odd = np.arange(size) % 2 == 1
    cells, pillars = odd[:, None] & odd[None], ~odd[:, None] & ~odd[None]
    ring = _ring(size)
    _require(given, ring, "#", "of the outer ring")
    _require(given, pillars, "#", "a pillar between four cells")
    _require(given, cells, ".MG", "a cell", start=True)
    _require(given, ~(cells | pillars | ring), "#.$", "between two cells")
    free = int(np.sum(cells & (given.roles == tokens.PATH))) - (given.start is not None)
    if free < (given.start is None) + (given.goal is None):
        raise ValueError("board: too few cells of Path to draw start and goal from; mark them with S and G")
    passable, begun = (given.roles != tokens.WALL) & (given.roles != tokens.GOLD), np.zeros_like(ring)
    begun[given.start or (1, 1)] = True
    from scipy import ndimage  # a quarter of a second, for boards of one's own alone

    reached = np.asarray(ndimage.binary_propagation(begun, mask=passable), bool)
    for row, column in _cells(cells & ~reached):
        what = "the goal" if (row, column) == given.goal else "the cell"
        raise ValueError(f"board: {what} in row {row + 1}, column {column + 1} cannot be reached; open a wall")
    return given


def agree(size: int, mine: int, default: int) -> int:
    """The size of a world whose board is of the size `mine`.

    Raises:
        ValueError: another size than the default was chosen, and not the board's.
    """
    if size not in (mine, default):
        raise ValueError(f"size={size}: the board that is given has size {mine}; leave one of them out")
    return mine
