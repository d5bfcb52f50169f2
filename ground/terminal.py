"""Command lines: typed options by tyro, errors of one line, and output that never ends the work."""

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from tyro import _errors  # private, so tyro's version is bounded; the alternative is to read the boxes that it draws

Command = TypeVar("Command")


class ConfigError(ValueError):
    """What is wrong with a configuration, in one line with the option, its value and the remedy."""


def explain(text: str, arguments: Sequence[str]) -> None:
    """Print a text and end, where nothing but help is asked for."""
    if list(arguments) in (["-h"], ["--help"]):
        print(text.strip())
        raise SystemExit(0)


def read(
    command: type[Command],
    arguments: Sequence[str],
    default: Command | None = None,
    prog: str | None = None,
    synonyms: Mapping[str, str] = MappingProxyType({}),
) -> Command:
    """The options of a command as its dataclass.

    Args:
        command: a dataclass.
        arguments: of the command line.
        default: values to start from.
        prog: what its help calls it.
        synonyms: option that people try in vain → the one that is meant.

    Raises:
        ConfigError: one line that says what is wrong and what would do.
    """
    extra: dict[str, Any] = {} if default is None else {"default": default}

    def refuse(event: _errors.ParseErrorEvent) -> NoReturn:
        with contextlib.redirect_stdout(io.StringIO()) as help_text, contextlib.suppress(SystemExit):
            tyro.cli(command, args=["--help"], **extra)
        options = re.findall(r"--[a-z][\w.-]*", help_text.getvalue())
        raise ConfigError(_one_line(event, list(dict.fromkeys(options)), synonyms))

    with _errors.on_parse_error(refuse):
        return tyro.cli(command, prog=prog, args=list(arguments), **extra)


def _one_line(event: _errors.ParseErrorEvent, options: list[str], synonyms: Mapping[str, str]) -> str:
    """What is wrong with a command line, and what would do."""
    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            name = next((token.partition("=")[0] for token in tokens if token.startswith("--")), "")
            meant = _meant(name, options, synonyms)
            return f"Unrecognized options: {' '.join(tokens)}; " + (
                f"did you mean {' or '.join(meant)}?" if meant else "see --help"
            )
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{argument.display_name()} {value}: choose one of {', '.join(choices)}"
        case _errors.InstantiationFailure(argument=argument, message=message) if argument:
            return f"{argument.display_name()}: {message}; see --help"
        case _errors.InstantiationFailure(message=message):  # options that do not go together
            return f"--{message}"
        case _errors.BadValue(argument=argument):
            return f"{argument.display_name()}: its value is missing; see --help"
        case _errors.MissingArgs(missing_arguments=missing):
            return f"{', '.join(one.arg.display_name() for one in missing)}: missing; see --help"
    return "unreadable command line; see --help"


def _meant(name: str, options: list[str], synonyms: Mapping[str, str]) -> list[str]:
    """Options that one that there is not may stand for: a synonym, the same in a section, or one letter off."""
    if name in synonyms:
        return [synonyms[name]]
    inside = [option for option in options if option.rpartition(".")[2] == name.removeprefix("--")]
    return inside[:3] or difflib.get_close_matches(name, options, 1)


def console(*, markup: bool = False, **options: Any) -> Console:
    """A console to which names and paths are text: `:bug:` is no picture and, but for `markup`, `[x]` no tag."""
    return Console(markup=markup, emoji=False, **options)


def complain(command: str, message: object) -> None:
    """Print on standard error what is wrong, in one line whatever names it quotes."""
    print(" ".join(f"{command}: {message}".splitlines()), file=sys.stderr)


def never_fail(command: str) -> None:
    """Let nothing printed from here on end this process: not its letters, a full disk, or a pipe that nobody reads."""
    lament = f"{command}: standard output is lost ({{}}); the work goes on"
    sys.stdout = _Unfailing(sys.stdout or open(os.devnull, "w"), lament)  # noqa: SIM115 (stays open)
    sys.stderr = _Unfailing(sys.stderr or open(os.devnull, "w"), "")  # noqa: SIM115


class _Unfailing:
    """A stream that shows ? for letters that it lacks, and after an error nothing more.

    Args:
        stream: to write to.
        lament: said once on standard error when the stream fails, where the error is written in.
    """

    def __init__(self, stream: Any, lament: str):
        self._stream, self._lament = stream, lament
        stream.reconfigure(errors="backslashreplace" if stream.errors == "backslashreplace" else "replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            return self._give_up(error) or len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())  # what is still in the buffer, too
        os.close(nothing)
        if self._lament:
            print(self._lament.format(error.strerror), file=sys.stderr)
