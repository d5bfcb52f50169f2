"""Episodes of a run's members, before RL and after, and the script that brings them to the page.

A page that is opened from disk may load scripts but no data, so that a recording is a script which assigns one object.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents import runs
from agents.runs import Run
from agents.runs.config import Config, Member
from analysis.figures import replays
from envs import sprites, tokens
from envs.replay import Replay, crop_together
from ground import seeds
from ground.files import RunError

SCHEMA = 1
"""Version of the recordings; the player and this file change together."""
VARIABLE = "emojimazeReplays"
"""The global object that recordings enter themselves into."""
MARGIN, SMALLEST = 2, 9
"""Of the window; see `Replay.crop`."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """What was played in one run."""

    config: Config
    population: list[Member]
    """Who plays: the members that have not diverged."""
    sides: tuple[str, ...]
    """Names of the checkpoints: before RL and after, or the base alone."""
    replays: list[list[tuple[Replay, ...]]]
    """By member, episode and side; sides of an episode share a maze, and are not cropped yet."""
    returns: list[list[float]]
    """Mean return over all evaluation mazes, by side and member."""


def record(path: Path, episodes: int) -> Recording:
    """Play a run's checkpoints.

    Args:
        path: of a finished run.
        episodes: mazes that every member meets.

    Raises:
        RunError, ConfigError: a checkpoint or the config cannot be read.
    """
    run = runs.open(path)
    config = run.config
    keys = jax.random.split(seeds.held_out("report"), episodes)
    # Without updates of RL there is but one policy to see.
    names = (config.before_rl, "rl") if config.rl.updates else (config.before_rl,)
    sides = ("before RL", "after RL") if config.rl.updates else ("the base",)
    # What may be missing is asked for before anything is played.
    returns = [[side[index] for index in run.kept] for side in _returns(run)[: len(names)]]
    if not all(isinstance(value, (int, float)) for side in returns for value in side):
        raise _no_returns(run)
    stored = [run.kept_parameters(name) for name in names]
    # The value head is trained by RL alone, and not by every algorithm.
    valued = {"after RL"} if config.rl.value_weight > 0 else set()
    played: list[list[list[Replay]]] = []
    for side, name, parameters in zip(sides, names, stored, strict=True):
        twins = config.starts[run.kept] if name == config.before_rl else run.kept
        first, copies = np.unique(twins, return_index=True, return_inverse=True)[1:]
        of_side = []
        for member in first:
            own, at = jax.tree.map(lambda x, m=member: jnp.asarray(x[m]), (parameters, run.params))
            shown = replays.record(config, own, at, keys, side)
            if side not in valued:
                shown = [dataclasses.replace(replay, values=None) for replay in shown]
            of_side.append(shown)
        played.append([of_side[index] for index in copies])
    pairs = [[tuple(pair) for pair in zip(*sides_of, strict=True)] for sides_of in zip(*played, strict=True)]
    return Recording(config, run.population, tuple(sides), pairs, returns)


def _returns(run: Run) -> list[list[float]]:
    """Mean returns of all members, before RL and after."""
    told = run.summary().get("return")
    means = [told.get(key) for key in ("before_rl", "after_rl")] if isinstance(told, dict) else [None]
    if not all(isinstance(side, list) and len(side) == run.members for side in means):
        raise _no_returns(run)
    return means  # pyright: ignore[reportReturnType]


def _no_returns(run: Run) -> RunError:
    return RunError(f"{run.path / 'summary.json'}: holds no returns of {run.members} members; train again")


def document(recording: Recording) -> dict[str, Any]:
    """A recording as short plain values; `script` says how it is laid out."""
    config = recording.config
    world, _ = config.world.make()
    means = recording.returns[-1]
    return {
        "schema": SCHEMA,
        "world": config.world.name,
        "sides": list(recording.sides),
        "typical": int(np.argmin(np.abs(np.asarray(means) - np.median(means)))),
        "members": [
            {
                "label": f"seed {member.seed}" + (f", {member.label}" if member.label else ""),
                "returns": [round(side[index], 4) for side in recording.returns],
                "episodes": [_episode(pair, world.prompt_length) for pair in recording.replays[index]],
            }
            for index, member in enumerate(recording.population)
        ],
    }


def _episode(pair: tuple[Replay, ...], prompt_length: int) -> dict[str, Any]:
    """The sides of an episode in the one window that holds all of their ways; all of a maze that is seen whole."""
    cropped = pair if pair[0].sees_all else crop_together(pair, MARGIN, SMALLEST)
    height, width = cropped[0].tiles.shape[1:]
    return {
        "height": int(height),
        "width": int(width),
        "tileMap": cropped[0].tile_map.tolist(),
        "seesAll": cropped[0].sees_all,
        "places": _places(cropped[0]),
        "sides": [_side(replay, prompt_length) for replay in cropped],
    }


def _places(replay: Replay) -> list[list[int | str]] | None:
    """Tile, token and words of all that has a name on a map; None without one."""
    if replay.labels is None or replay.words is None:
        return None
    named = np.flatnonzero(replay.labels >= 0)
    return [[int(at), int(replay.labels.flat[at]), str(replay.words.flat[at])] for at in named]


def _side(replay: Replay, prompt_length: int) -> dict[str, Any]:
    flat = replay.tiles.reshape(replay.turns + 1, -1)
    changes = []
    for before, after in itertools.pairwise(flat):
        at = np.flatnonzero(before != after)
        changes.append(np.stack([at, after[at]], axis=1).ravel().tolist())
    return {
        "board": _digits(flat[0]),
        "changes": changes,
        "positions": replay.positions.ravel().tolist(),
        "midpoints": replay.midpoints.ravel().tolist(),
        "actions": _digits(replay.actions),
        "winds": _digits(replay.winds),
        "rewards": _rounded(replay.rewards, 4),
        "probabilities": None if replay.probabilities is None else _rounded(replay.probabilities * 1000, 0),
        "values": None if replay.values is None else _rounded(replay.values, 3),
        "observations": [token for turn in range(replay.turns) for token in replay.observation(turn)],
        "plan": replay.prompt[prompt_length:],
        "thought": [] if replay.thought is None else np.flatnonzero(replay.thought).tolist(),
        "advised": None if replay.advised is None else replay.advised.tolist(),
    }


def _digits(values: np.ndarray) -> str:
    return "".join(str(int(value)) for value in np.ravel(values))


def _rounded(values: np.ndarray, digits: int) -> list[float | int | None]:
    rounded = np.round(np.asarray(values, np.float64).ravel(), digits)
    plain = [float(value) if np.isfinite(value) else None for value in rounded]
    return [int(value) if value is not None and value == int(value) else value for value in plain]


def script(key: str, recording: Recording) -> bytes:
    """The script that enters a recording under a key.

    Boards are one digit per tile, the role, row by row; `changes[t]` are cell and role of every tile that turn t has
    changed. `thought` are the tiles that the thought names, `advised` the one that it names for each turn, or -1.
    Positions are row and column in the window, probabilities in thousandths, in the order of the moves.
    """
    text = json.dumps(document(recording), separators=(",", ":"), allow_nan=False)
    name = json.dumps(key)
    return f"(window.{VARIABLE} = window.{VARIABLE} || {{}})[{name}] = {text};\n".encode("ascii")


def vocabulary() -> bytes:
    """The script that names every emoji and says where its picture lies in the atlas."""
    document = {
        "columns": sprites.COLUMNS,
        "rows": -(-tokens.SIZE // sprites.COLUMNS),
        "roles": [role.lower() for role in tokens.ROLES],
        "directions": list(tokens.DIRECTIONS),
        "moves": tokens.MOVES[0],
        "agent": tokens.AGENT,
        "names": [tokens.word(token) for token in range(tokens.SIZE)],
    }
    return f"window.emojimazeVocabulary = {json.dumps(document)};\n".encode("ascii")
