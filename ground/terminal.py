"""Command lines: typed options by tyro, and errors of one line."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

Command = TypeVar("Command")


class ConfigError(ValueError):
    """What is wrong with a configuration, in one line with the option, its value and the remedy."""


def read(
    command: type[Command], arguments: Sequence[str], default: Command | None = None, prog: str | None = None
) -> Command:
    """The options of a command as its dataclass; `prog` is what its help calls it.

    Raises:
        ConfigError: one line that says what is wrong and what would do.
    """
    errors = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(command, prog=prog, args=list(arguments), **extra)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise ConfigError(_one_line(errors.getvalue())) from None


def complain(command: str, message: object) -> None:
    """Print on standard error what is wrong, in one line whatever names it quotes."""
    print(" ".join(f"{command}: {message}".splitlines()), file=sys.stderr)


def _one_line(message: str) -> str:
    """Tyro's boxed message as one line: what is wrong, and the nearest suggestion."""
    sections = re.split(r"^.*[-─]{5,}.*$", message, flags=re.MULTILINE)
    sections = [" ".join(re.sub(r"[│╭╮╰╯]", " ", section).split()) for section in sections]
    problem = next((text for text in sections[1:] if text), "unreadable command line")
    close = next((text for text in sections if text.startswith("Perhaps you meant")), "")
    typed = re.search(r"--[\w.-]+", problem)
    suggestions = re.findall(r"--[\w.-]+", close)
    if typed:
        suggestions = difflib.get_close_matches(typed[0], suggestions, 1, 0.0)
    return f"{problem}; did you mean {suggestions[0]}?" if suggestions else f"{problem}; see --help"
