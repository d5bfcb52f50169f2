"""An episode as a picture needs it: arrays of one maze, turn by turn, and the window that holds the way."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from envs import tokens
from envs.personas import PERSONAS


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Replay:
    """One episode of T turns on a grid of H × W tiles.

    Raises:
        ValueError: if there is no turn, or shapes do not fit together; the message names the field.
    """

    tiles: np.ndarray
    """int8[T+1, H, W], roles as they stand before each turn, and at the end."""
    tile_map: np.ndarray
    """int[5], the token that stands for each role."""
    positions: np.ndarray
    """int[T+1, 2], row and column of the agent before each turn, and at the end."""
    midpoints: np.ndarray
    """int[T, 2], row and column after the turn's move, before the wind pushes."""
    actions: np.ndarray
    """int[T], 0 to 3: North, East, South, West; -1 for one that is yet to come."""
    winds: np.ndarray
    """int[T], 0 calm, 1..4 blew to North, East, South, West."""
    rewards: np.ndarray
    """float[T]"""
    probabilities: np.ndarray | None = None
    """float[T, 4], the policy's action probabilities."""
    values: np.ndarray | None = None
    """float[T], the return that the policy expects from each turn on."""
    beliefs: np.ndarray | None = None
    """float[T+1, I], how likely each persona is to be who acts, by what was said and done before each turn."""
    title: str = ""
    tokens: np.ndarray | None = None
    """int[S], the whole episode: prompt and plan, then the turns' observations and actions."""
    prompt_length: int = 1
    """Tokens before the first observation: prompt and plan, P + K."""
    observation_length: int = 6
    """Tokens of an observation, O."""
    sees_all: bool = False
    """Whether the prompt shows the whole maze; otherwise tiles are faded until the agent has seen them."""

    labels: np.ndarray | None = None
    """int[H, W], the token that names each tile of a map, -1 for none; None where roles alone name tiles."""
    words: np.ndarray | None = None
    """str[H, W], the same in words, empty for none."""
    thought: np.ndarray | None = None
    """bool[H, W], tiles of a map that the thought names."""
    advised: np.ndarray | None = None
    """int[T+1], the tile, row by row, that the thought names for where the agent is before each turn; -1 for none."""

    def __post_init__(self):
        turns = len(self.actions)
        shapes: dict[str, tuple[int, ...]] = {
            "actions": (max(turns, 1),),
            "tiles": (turns + 1, *self.tiles.shape[-2:]),
            "tile_map": (len(tokens.ROLES),),
            "positions": (turns + 1, 2),
            "midpoints": (turns, 2),
            "winds": (turns,),
            "rewards": (turns,),
            "probabilities": (turns, 4),
            "values": (turns,),
            "advised": (turns + 1,),
            "beliefs": (turns + 1, len(PERSONAS)),
        }
        shapes |= dict.fromkeys(("labels", "words", "thought"), self.tiles.shape[-2:])
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f"Replay.{name}: shape {np.shape(value)}; for {turns} turns it must be {shape}")
        needed = self.prompt_length + turns * (self.observation_length + 1)
        if self.tokens is not None and len(self.tokens) < needed:
            raise ValueError(f"Replay.tokens: {len(self.tokens)} tokens; {turns} turns need {needed}")

    @classmethod
    def calm(cls, *, positions: np.ndarray, actions: np.ndarray, **fields) -> "Replay":
        """An episode of a world without wind: every turn ends where its move has led."""
        winds = np.zeros(len(actions), np.int32)
        return cls(positions=positions, midpoints=positions[1:], actions=actions, winds=winds, **fields)

    def _repr_png_(self) -> bytes:
        """The end of the episode, as a notebook shows it."""
        from envs import rendering  # which draws replays

        drawn = io.BytesIO()
        rendering.frame(self, self.turns).save(drawn, format="PNG")
        return drawn.getvalue()

    def _repr_html_(self) -> str:
        """The episode as an animation, as a notebook shows it."""
        from envs import rendering

        drawn = io.BytesIO()
        rendering.gif(self, drawn)
        text = base64.b64encode(drawn.getvalue()).decode()
        return f'<img alt="an episode of {self.turns} turns" src="data:image/gif;base64,{text}">'

    def until(self, turns: int) -> "Replay":
        """The first turns of the episode, for one that has ended before its time limit.

        Raises:
            ValueError: if it has not got as many, or for none.
        """
        if not 1 <= turns <= self.turns:
            raise ValueError(f"turns={turns}: use 1 to {self.turns}")
        states = ("tiles", "positions", "advised", "beliefs")
        states = {name: getattr(self, name)[: turns + 1] for name in states if getattr(self, name) is not None}
        moves = ("midpoints", "actions", "winds", "rewards", "probabilities", "values")
        kept = {name: getattr(self, name)[:turns] for name in moves if getattr(self, name) is not None}
        return dataclasses.replace(self, **states, **kept)

    @property
    def turns(self) -> int:
        """Turns played, T."""
        return len(self.actions)

    @property
    def returns(self) -> np.ndarray:
        """float[T+1], sum of the rewards before each turn, and at the end."""
        return np.concatenate([[0.0], np.cumsum(self.rewards)])

    @property
    def prompt(self) -> list[int]:
        """Tokens of prompt and plan up to its first end; none if the replay has no tokens."""
        told = [] if self.tokens is None else [int(token) for token in self.tokens[: self.prompt_length]]
        while told[-2:] == [tokens.PLAN_END] * 2:
            told.pop()
        return told

    def observation(self, turn: int) -> list[int]:
        """Tokens that the policy reads in turn `turn`; none at the end, or if the replay has no tokens."""
        if self.tokens is None or turn >= self.turns:
            return []
        start = self.prompt_length + turn * (self.observation_length + 1)
        return [int(token) for token in self.tokens[start : start + self.observation_length]]

    def place(self, turn: int) -> str:
        """What the tile is called that the agent stands on before turn `turn`; empty where tiles have no names."""
        return "" if self.words is None else str(self.words[tuple(self.positions[turn])])

    def seen(self, turn: int) -> np.ndarray:
        """Tiles bool[H, W] that the agent has stood on, or beside when it looked, until it acts in turn `turn`."""
        seen = np.full(self.tiles.shape[1:], self.sees_all)
        seen[tuple(self.midpoints[:turn].T)] = True
        for step in ((0, 0), *tokens.STEPS):
            cells = self.positions[: turn + 1] + np.array(step)
            inside = np.all((cells >= 0) & (cells < seen.shape), axis=-1)
            seen[tuple(cells[inside].T)] = True
        return seen

    def crop(self, margin: int = 2, smallest: int = 13) -> "Replay":
        """The same episode in a square window around the whole way.

        Args:
            margin: tiles to keep around the way, where the grid has them.
            smallest: tiles of the window's side at least, where the grid has them.
        """
        return crop_together([self], margin, smallest)[0]


def crop_together(replays: Sequence[Replay], margin: int, smallest: int) -> list[Replay]:
    """The replays, all of one grid, in the one square window that holds all of their ways; a map stays whole."""
    if replays[0].labels is not None:
        return list(replays)
    shape = np.array(replays[0].tiles.shape[1:])
    cells = np.concatenate([cells for replay in replays for cells in (replay.positions, replay.midpoints)])
    low, high = cells.min(axis=0), cells.max(axis=0)
    sides = np.minimum(max(int((high - low).max()) + 1 + 2 * margin, smallest), shape)
    corner = np.clip((low + high + 1 - sides) // 2, 0, shape - sides)
    rows, columns = (slice(int(start), int(start + side)) for start, side in zip(corner, sides, strict=True))
    return [
        dataclasses.replace(
            replay,
            tiles=replay.tiles[:, rows, columns],
            positions=replay.positions - corner,
            midpoints=replay.midpoints - corner,
        )
        for replay in replays
    ]
