"""Mazes that speak in emoji tokens: worlds, personas and pictures."""

import gymnax

from envs import base, labyrinth, maze, tokens
from envs.contract import api_test

_WORLDS = {"EmojiMaze-v0": maze.EmojiMaze, "EmojiLabyrinth-v0": labyrinth.EmojiLabyrinth}

for _name, _world in _WORLDS.items():
    if _name not in gymnax.registered_envs:
        gymnax.register(_name, _world)


def make(name: str, **options) -> tuple[base.World, base.WorldParams]:
    """A registered world and its default parameters.

    Args:
        name: `EmojiMaze-v0` or `EmojiLabyrinth-v0`.
        **options: the world's static options, for example `size=100, turns=15, layout="walk"`; a name that is a
            field of the parameters replaces that parameter, for example `wind_probability=0.0`.

    Raises:
        ValueError: for an unknown world, an unknown option or a value out of range; the message names the remedy.
    """
    if name not in _WORLDS:
        raise ValueError(f"{name!r}: no such world; choose one of {', '.join(_WORLDS)}")
    return _WORLDS[name].make(options)


__all__ = ["api_test", "base", "labyrinth", "make", "maze", "tokens"]
