"""Measure speed.

uv run -m benchmarks env --json env.json
uv run --extra peers -m benchmarks env --peers
uv run -m benchmarks report env.json train.json --into docs/performance.md
"""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from ground import environment

if __name__ == "__main__":
    environment.prepare("benchmarks")

import tyro
from rich.console import Console
from rich.markdown import Markdown

from agents.runs.config import ConfigError
from benchmarks import machine, measure, peers, tables
from benchmarks.cases import BENCHMARKS
from ground import files, signals, terminal


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure speed on this machine, as fractions of what it can do."""

    what: Annotated[Literal["env", "worlds", "policy", "train", "population", "analysis"], tyro.conf.Positional]
    """env: stepping mazes. worlds: stepping each of our worlds. policy: the transformer alone. train: whole updates.
    population: many members, memory and scaling. analysis: reading and steering. (`report FILE...` writes the tables of
    earlier measurements.)"""
    peers: bool = False
    """Measure what others offer beside us, in the same process: other mazes (env), plain PyTorch (train)."""
    repeats: int = 5
    """Timed repeats of each case."""
    only: str = ""
    """A regular expression: measure only the cases in whose name it matches, and those timed in turn with them."""
    json: Path | None = None
    """Write the figures to this file."""


def check(command: Command) -> None:
    """Refuse what cannot be measured.

    Raises:
        ConfigError: one line that names the option, its value and the remedy.
    """
    if command.repeats < 1:
        raise ConfigError(f"--repeats={command.repeats}: use at least 1")
    tables.check(command.only, command.json)
    if command.peers and (remedy := peers.missing(command.what)):
        raise ConfigError(f"--peers: {remedy}")


def document(command: Command, console: Console) -> dict[str, Any]:
    """Measure; → what `--json` writes. Ceilings are measured before and after, and the higher counts.

    Raises:
        ConfigError: `--only` leaves nothing to measure.
    """
    groups, ratios = BENCHMARKS[command.what](command.peers)
    groups = [group for group in groups if any(re.search(command.only, case.name) for case in group)]
    if not groups:
        raise ConfigError(f"--only={command.only}: no case of {command.what} has such a name")
    with console.status("measuring the ceilings"):
        before = machine.ceilings()
    with console.status("measuring"):
        results = [result for group in groups for result in measure.measure(group, command.repeats)]
    with console.status("measuring the ceilings again"):
        after = machine.ceilings()
    limits = {name: max(before[name], after[name]) for name in before}
    return {
        "schema": tables.SCHEMA,
        "what": command.what,
        **machine.about(),
        "ceilings": limits,
        "results": [result.to_dict(limits) for result in results],
        "ratios": measure.compared(ratios, results),
    }


def main(arguments: list[str], begin: Callable[[], None] = lambda: None) -> int:
    """Run the command; returns the exit status. `begin` is called before JAX is used."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        if arguments[:1] == ["report"]:
            tables.report(arguments[1:], "benchmarks report", tables.KEYS, tables.sections)
            return 0
        command = terminal.read(Command, arguments, prog="benchmarks")
        check(command)
        with signals.catch(at_once=True), environment.enough_memory():
            begin()
            measured = document(command, console)
        console.print(Markdown("\n\n".join(tables.sections([measured]).values())))
        if command.json:
            files.write(command.json, (json.dumps(measured, indent=1) + "\n").encode())
    except (ConfigError, files.RunError) as error:
        terminal.complain("benchmarks", error)
        return 2
    except signals.Interrupted as error:
        terminal.complain("benchmarks", f"{error}; nothing is written")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], functools.partial(environment.start, "benchmarks", keep_programs=False)))
