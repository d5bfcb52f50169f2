"""Measure speed.

uv run -m benchmarks env --json env.json
uv run -m benchmarks train
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from agents import devices

if __name__ == "__main__":
    devices.start()

import tyro
from rich.console import Console
from rich.table import Table

from agents import options
from agents.config import ConfigError
from benchmarks import cases, measure


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure speed on this machine."""

    what: Annotated[Literal["env", "train"], tyro.conf.Positional]
    """env: stepping mazes. train: whole updates."""
    repeats: int = 5
    """Timed calls of each case."""
    json: Path | None = None
    """Write the figures to this file."""


def main() -> int:
    """Run the command; returns the exit status."""
    try:
        command = options.read(Command, sys.argv[1:])
    except ConfigError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if command.repeats < 1:
        print(f"benchmarks: --repeats={command.repeats}: use at least 1", file=sys.stderr)
        return 2
    if command.json and not command.json.parent.is_dir():
        print(f"benchmarks: --json={command.json}: no such folder; make it first", file=sys.stderr)
        return 2
    console = Console()
    with console.status("measuring"):
        results = cases.CASES[command.what](command.repeats)
    about = measure.machine()
    table = Table(title=f"{about['processor']}, {about['cores']} cores, JAX {about['jax']}", title_justify="left")
    for name in ("case", "per second, median", "lowest", "highest", "compile seconds"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for result in results:
        spread = (result.median, min(result.rates), max(result.rates))
        table.add_row(
            result.case, f"{spread[0]:,.0f} {result.unit}", *(f"{x:,.0f}" for x in spread[1:]),
            f"{result.compile_seconds:.1f}",
        )  # fmt: skip
    console.print(table)
    if command.json:
        document = {"schema": 1, "machine": about, "results": [result.to_dict() for result in results]}
        command.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
