"""Episodes of a run's members, before training, along it and after, and the script that brings them to the page.

A page that is opened from disk may load scripts but no data, so that a recording is a script which assigns one object.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents import runs
from agents.runs import Run
from agents.runs.config import Config, Member
from analysis.figures import replays
from analysis.measure import ends, once
from envs import sprites, tokens
from envs.personas import PERSONAS
from envs.replay import Replay, crop_together
from ground import seeds
from ground.files import RunError
from studies.report import explorer

SCHEMA = 3
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
    """Names of the checkpoints: before training and after, with those between of which KL is known; or the base."""
    replays: list[list[tuple[Replay, ...]]]
    """By member, episode and side; sides of an episode share a maze, and are not cropped yet."""
    returns: list[Sequence[float | None]]
    """Mean return over all evaluation mazes, by side and member; None between the ends of training."""
    nats: list[Sequence[float | None]]
    """KL from the base, nats per episode, by side and member; None where nothing that the run keeps tells it."""


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
    nats, trained = explorer.nats(run), ends(run)
    names = list(dict.fromkeys([trained[0], *nats, trained[-1]]))
    # What may be missing is asked for before anything is played.
    returns, stored = _returns(run, names), [run.kept_parameters(name) for name in names]
    # The value head is trained by RL alone, and not by every algorithm.
    valued = np.asarray(config.per_member("rl", run.population).value_weight) > 0
    played: list[list[list[Replay]]] = []
    for name, parameters in zip(names, stored, strict=True):
        first, copies = once(run, name)
        of_side = []
        for member in first:
            own, base, at = jax.tree.map(lambda x, m=member: jnp.asarray(x[m]), (parameters, stored[0], run.params))
            shown = replays.record(config, own, at, keys, name, base, run.population[member])
            if not (valued[member] and name.partition("-")[0] == "rl"):
                shown = [dataclasses.replace(replay, values=None) for replay in shown]
            of_side.append(shown)
        played.append([of_side[index] for index in copies])
    pairs = [[tuple(pair) for pair in zip(*sides_of, strict=True)] for sides_of in zip(*played, strict=True)]
    unknown: Sequence[float | None] = [None] * len(pairs)
    told: list[Sequence[float | None]] = [
        np.round(nats[name].astype(float), 6).tolist() if name in nats else unknown for name in names
    ]
    return Recording(config, run.population, _sides(names), pairs, returns, told)


def _sides(names: list[str]) -> tuple[str, ...]:
    """What the page calls checkpoints."""
    if len(names) == 1:
        return ("the base",)
    stage = "RL" if names[-1] == "rl" else "fine-tuning"
    between = (int(name.partition("-")[2]) for name in names[1:-1])
    after = (f"after {update:,} update{'s' * (update > 1)} of {stage}" for update in between)
    return (f"before {stage}", *after, f"after {stage}")


def _returns(run: Run, names: list[str]) -> list[Sequence[float | None]]:
    """Mean returns of the members kept, at each checkpoint that the run's summary tells of."""
    places = {run.config.before_rl: "before_rl", "rl": "after_rl"}

    def means(name: str) -> Sequence[float | None]:
        if name not in places:
            return [None] * len(run.kept)
        try:
            every = run.summary()["return"][places[name]]
            return [round(every[index], 4) for index in run.kept]
        except (LookupError, TypeError):
            raise RunError(
                f"{run.path / 'summary.json'}: holds no returns of {run.members} members; train again"
            ) from None

    return [means(name) for name in names]


def document(recording: Recording) -> dict[str, Any]:
    """A recording as short plain values; `script` says how it is laid out."""
    config = recording.config
    world, _ = config.world.make()
    means = np.asarray(recording.returns[-1], np.float64)
    return {
        "schema": SCHEMA,
        "world": config.world.name,
        "sides": list(recording.sides),
        "personas": [{"name": name, "badge": tokens.BADGES[1 + index]} for index, name in enumerate(PERSONAS)],
        "typical": int(np.argmin(np.abs(means - np.median(means)))),
        "members": [
            {
                "label": f"seed {member.seed}" + (f", {member.label}" if member.label else ""),
                "returns": [side[index] for side in recording.returns],
                "nats": [side[index] for side in recording.nats],
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
    turns, flat = range(replay.turns + 1), replay.tiles.reshape(replay.turns + 1, -1)
    changes = []
    for before, after in itertools.pairwise(flat):
        at = np.flatnonzero(before != after)
        changes.append(np.stack([at, after[at]], axis=1).ravel().tolist())
    return {
        "board": _digits(flat[0]),
        "seen": None if replay.sees_all else np.sum([~replay.seen(turn) for turn in turns], axis=0).ravel().tolist(),
        "changes": changes,
        "positions": replay.positions.ravel().tolist(),
        "midpoints": replay.midpoints.ravel().tolist(),
        "actions": _digits(replay.actions),
        "winds": _digits(replay.winds),
        "rewards": _rounded(replay.rewards, 4),
        "probabilities": None if replay.probabilities is None else _rounded(replay.probabilities * 1000, 0),
        "values": None if replay.values is None else _rounded(replay.values, 3),
        "beliefs": None if replay.beliefs is None else _rounded(replay.beliefs * 1000, 0),
        "observations": [token for turn in range(replay.turns) for token in replay.observation(turn)],
        "plan": replay.prompt[prompt_length:],
        "thought": [] if replay.thought is None else np.flatnonzero(replay.thought).tolist(),
        "advised": None if replay.advised is None else replay.advised.tolist(),
    }


def _digits(values: np.ndarray) -> str:
    return "".join(str(int(value)) for value in np.ravel(values))


def _rounded(values: np.ndarray, digits: int) -> list[float | int | None]:
    return explorer.plain(np.round(np.asarray(values, np.float64).ravel(), digits))


def script(key: str, recording: Recording) -> bytes:
    """The script that enters a recording under a key.

    Boards are one digit per tile, the role, row by row; `seen` are the turns before which tiles were hidden, null where
    all is seen. `changes[t]` are cell and role of every tile that turn t has
    changed. `thought` are the tiles that the thought names, `advised` the one that it names for each turn, or -1.
    `beliefs` are the personas before each turn and at the end, in thousandths. Positions are row and column in the
    window, probabilities in thousandths, in the order of the moves.
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
