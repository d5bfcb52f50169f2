"""The options of a world in a run's configuration: chosen by name, on the command line and in documents."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import envs
from envs import base, boards
from ground.terminal import ConfigError


def _fields(world: type[base.World]) -> dict[str, Any]:
    """A world's options and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(world.Options)}


def check_arguments(name: str, arguments: Sequence[str]) -> None:
    """Refuse options of other worlds than the named one on a command line.

    Raises:
        ConfigError: one line that names the option and the worlds that have it.
    """
    for option in (argument.partition("=")[0] for argument in arguments):
        field = option.removeprefix("--world.").removeprefix("no-").replace("-", "_")
        owners = [other for other, world in envs.WORLDS.items() if field in _fields(world)]
        if option.startswith("--world.") and owners and name not in owners:
            raise ConfigError(f"{option}: {name} has no such option; leave it out, or add --world.name {owners[0]}")


def read_board(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the text of the file for `@FILE` after `--world.board`: a run keeps the board itself.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    option, told = "--world.board", []
    for argument in arguments:
        lead, at, name = argument.partition("@")
        if at and (lead == f"{option}=" or (not lead and told[-1:] == [option])):
            try:
                board = Path(name).read_text("utf-8")
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or "no text in UTF-8"
                raise ConfigError(f"{option} @{name}: {why}; name a text file with the board") from None
            if not boards.tidy(board):  # which would say: a maze at random
                raise ConfigError(f"{option} @{name}: there is no board in it; name a text file with the board")
            argument = lead + board
        told.append(argument)
    return told


def of_document(document: Mapping[str, Any], where: str) -> tuple[type[base.Options], dict[str, Any]]:
    """The options that a document's section is of, and those of its fields that mean anything.

    Older runs kept the fields of all worlds. Those of another world are passed over where they are as it has them by
    default, which is what they were unless the run was refused.

    Args:
        document: of `config.json`, the section of the world.
        where: what messages call it.

    Raises:
        ConfigError: no such world.
    """
    name = document.get("name", base.Options.name)
    if not isinstance(name, str) or name not in envs.WORLDS:
        known = ", ".join(envs.WORLDS)
        raise ConfigError(f"{where}.name={name!r}: no such world; there are {known}: envs.register others first")
    mine = _fields(envs.WORLDS[name])
    others = [_fields(world) for world in envs.WORLDS.values()]

    def foreign(field: str, value: Any) -> bool:
        return field not in mine and any(field in theirs and theirs[field] == value for theirs in others)

    return envs.WORLDS[name].Options, {field: value for field, value in document.items() if not foreign(field, value)}
