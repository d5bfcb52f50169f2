"""Claims from the literature, each tried by one command.

    uv run -m studies list                         every study, its claim, how long it takes, its last verdict
    uv run -m studies run NAME --scale laptop      train or find what it needs, analyse, draw, judge
    uv run -m studies report                       one site of everything that has been run, to open from disk
    uv run -m studies report --into README.md      the verdicts as a table, between the file's markers

`--out DIR` says where results lie; by default runs/studies.
"""

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from ground import environment

if __name__ == "__main__":
    environment.start("studies")

import jax
import tyro
from rich.console import Console
from rich.table import Table

from agents import runs
from agents.runs import reporting, stages
from agents.runs.config import ConfigError
from analysis.figures import learning_curve
from ground import files, signals, terminal
from studies import study as frame
from studies import tables
from studies.report import site
from studies.study import Scale, Study

NAMES = ("functional_welfare", "negative_reinforcement", "sparse_updates")
"""The studies; each is a module of `studies` with a `STUDY`."""
OUT = Path("runs/studies")
_COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}


@dataclasses.dataclass(frozen=True)
class List:
    """List every study, its claim, how long it takes, its last verdict."""

    out: Path = OUT
    """Where results lie."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Run a study to its verdict. What it has trained before is found again."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Which study."""
    scale: Scale = "laptop"
    """`smoke` takes two minutes and decides little, `laptop` up to an hour on 2 CPU cores, `paper` one large GPU."""
    out: Path = OUT
    """Where results lie."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one site of everything that has been run; it opens from disk, without a server or a network."""

    out: Path = OUT
    """Where results lie; the site is its folder `report`."""
    episodes: int = 3
    """Mazes that every member of every run replays."""
    into: Path | None = None
    """Write the verdicts as a table into this Markdown file instead, between its markers."""


def find(name: str) -> Study:
    """A study by name.

    Raises:
        ConfigError: there is none.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name.replace("-", "_"), NAMES, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(NAMES)}"
        raise ConfigError(f"{name[:80]}: no such study; {hint}")
    return importlib.import_module(f"studies.{name}").STUDY


def show_list(command: List, console: Console) -> None:
    """Print every study."""
    for name in NAMES:
        study = find(name)
        forecast = ", ".join(f"{scale} {max(frame.minutes(study, scale), 1):.0f}" for scale in frame.SCALES)
        verdicts = []
        for scale in frame.SCALES:
            path = frame.directory(command.out, study, scale) / frame.VERDICT
            if path.exists():
                found = str(files.read_json(path).get("verdict"))
                verdicts.append(f"{scale} [{_COLOURS.get(found, 'white')}]{found}[/]")
        console.print(f"[bold]{name}[/]  {study.source}", highlight=False)
        console.print(f"  {study.claim}", highlight=False)
        console.print(
            f"  minutes: {forecast} (a guess, on one GPU); last verdict: {', '.join(verdicts) or 'none'}\n",
            highlight=False,
        )


def show_run(command: Run, console: Console) -> None:
    """Run a study and print its verdict."""
    study = find(command.name)
    if command.scale == "smoke":  # compiling is most of it
        jax.config.update("jax_disable_most_optimizations", True)
    document = frame.run(study, command.scale, command.out, console)
    console.print(f"\n[bold]{study.title}[/]\n{study.claim} ({study.source})", highlight=False)
    table = Table(show_lines=True)
    for column in ("question", "estimate", "asked", "95 % interval", "verdict"):
        table.add_column(column, overflow="fold")
    for question in document["questions"]:
        for index, criterion in enumerate(question["criteria"]):
            estimate = document["estimates"].get(criterion["estimate"])
            mean, interval = "–", "–"
            if estimate and estimate["members"]:
                mean = learning_curve.signed(estimate["mean"], "+.3g")
                if estimate["interval"]:
                    interval = " to ".join(learning_curve.signed(end, "+.3g") for end in estimate["interval"])
            answer = criterion["verdict"]
            table.add_row(
                "" if index else ("[bold]" if question["leading"] else "") + question["text"],
                f"{criterion['estimate'].replace('_', ' ')} {mean}",
                f"{criterion['side']} {criterion['bound']:g}",
                interval,
                f"[{_COLOURS[answer]}]{answer}[/]",
            )
    console.print(table)
    verdict = document["verdict"]
    console.print(f"verdict: [bold {_COLOURS[verdict]}]{verdict}[/], by the questions in bold", highlight=False)
    folder = frame.directory(command.out, study, command.scale)
    reporting.written(console, [folder / frame.VERDICT, folder / document["figure"]])


def show_report(command: Report, console: Console) -> None:
    """Write the site and print the path of its first page; or the table."""
    studies = [find(name) for name in NAMES]
    if command.into:
        tables.write(command.into, command.out, studies)
        reporting.written(console, [command.into])
        return
    index = site.build(command.out, command.episodes, console, studies)
    reporting.written(console, [index])


COMMANDS = {"list": (List, show_list), "run": (Run, show_run), "report": (Report, show_report)}


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if name not in COMMANDS:
        wrong = f"{name[:80]}: no such command" if name else "which command?"
        terminal.complain("studies", f"{wrong}; choose one of {', '.join(COMMANDS)}")
        return 2
    kind, show = COMMANDS[name]
    try:
        command = terminal.read(kind, arguments[1:], prog=f"studies {name}")
        with signals.catch(at_once=True):
            show(command, Console())
    except (ConfigError, runs.RunError, stages.Diverged) as error:
        terminal.complain(f"studies {name}", error)
        return 1 if isinstance(error, stages.Diverged) else 2
    except signals.Interrupted as error:
        terminal.complain(f"studies {name}", f"{error}; the same command goes on from there")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
