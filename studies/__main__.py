"""Claims from the literature, each tried by one command.

    uv run -m studies list                         every study, its claim, how long it takes, its last verdict
    uv run -m studies run NAME --scale laptop      train or find what it needs, measure, judge, draw
    uv run -m studies run all                      all of them, the cheapest first
    uv run -m studies train 'rooms/*'              train or find populations of the catalogue, by name or pattern
    uv run -m studies report                       one site of everything that has been run, to open from disk
    uv run -m studies report --into docs/results   what must last: the table of verdicts, data and figures

`--out DIR` says where results lie; by default runs/studies.
"""

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from ground import environment

if __name__ == "__main__":
    environment.prepare("studies", __doc__)

import jax
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agents.runs import reporting, stages, watching
from ground import signals, terminal
from ground.files import RunError
from ground.terminal import ConfigError
from studies import study as frame
from studies.populations import CATALOGUE, Population, Scale, of
from studies.questions import agreement
from studies.report import results, site
from studies.store import Store
from studies.study import Study

NAMES = ("persona_transition", "functional_welfare", "negative_reinforcement", "sparse_updates")
"""The studies; each is a module of `studies` with a `STUDY`."""
OUT = Path("runs/studies")
_COLOURS = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}


@dataclasses.dataclass(frozen=True)
class List:
    """List every study, its claim, how long it takes, its last verdict."""

    out: Path = OUT
    """Where results lie."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Options of what trains."""

    scale: Scale = "laptop"
    """`smoke` takes minutes and decides little, `laptop` an hour or two on 2 CPU cores, `paper` one large GPU."""
    seed: int = 0
    """Of the first member and base; another one replicates the claim on other seeds and bases."""
    out: Path = OUT
    """Where results lie."""
    track: watching.Tool | None = None
    """Show training and verdict in this tool, too; see docs/tracking.md."""

    def check(self) -> None:
        """Refuse what cannot be trained, in one line that names the option, its value and the remedy: a ConfigError."""
        if not 0 <= self.seed < 2**30:
            raise ConfigError(f"--seed={self.seed}: use 0 to {2**30 - 1}; members count on from there")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Trained):
    """Train populations of the catalogue, or find them; `uv run -m analysis course RUN` measures what training did."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Which population, such as rooms/ppo, or a pattern of names, such as 'rooms/*'."""

    def populations(self) -> dict[str, Population]:
        """What is asked for, by name; raises ConfigError where that is nothing."""
        chosen = {name: one for name, one in CATALOGUE.items() if fnmatch.fnmatchcase(name, self.name)}
        return chosen or {self.name: of(self.name)}

    def check(self) -> None:
        super().check()
        self.populations()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Trained):
    """Run a study to its verdict. What it has trained before is found again."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Which study, or `all`."""

    def studies(self) -> list[Study]:
        """What is asked for; raises ConfigError where there is no such study."""
        return [find(name) for name in (NAMES if self.name == "all" else (self.name,))]

    def check(self) -> None:
        super().check()
        frame.takeaways()
        self.studies()


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one site of everything that has been run; it opens from disk, without a server or a network."""

    out: Path = OUT
    """Where results lie; the site is its folder `report`."""
    episodes: int = 3
    """Mazes that every member of every run replays."""
    into: Path | None = None
    """Instead, copy verdicts, data and figures into this folder, and write the table into its README.md."""


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


def show_list(command: List, console: Console) -> int:
    """Print every study."""
    verdicts = results.by_study(results.find(command.out))
    for name in NAMES:
        study = find(name)
        say = functools.partial(console.print, highlight=False, soft_wrap=True)
        say(f"[bold]{name}[/]  {study.source}")
        for result in verdicts.get(name, []):
            with result.whole():
                document, (_, criterion, estimate) = result.document, result.deciding
                colour, takeaway = _COLOURS[document["verdict"]], escape(document["takeaway"] or "")
                words = f"[{colour}]{escape(document['words'])}[/]. {takeaway}"
                number = results.shown(estimate) if estimate else "–"
                say(f"  {escape(result.variant)}: {words} ({escape(criterion['words'])}: {number})")
        if name not in verdicts:
            say("  not run yet")
        forecasts = {scale: max(frame.minutes(study.configs(scale).values(), scale), 1) for scale in frame.SCALES}
        say(f"  {study.claim}")
        say(f"  minutes: {', '.join(f'{scale} {x:.0f}' for scale, x in forecasts.items())} (a guess, on one GPU)\n")
    return 0


def show_train(command: Train, console: Console) -> int:
    """Train populations, and print where each lies."""
    shelf = Store(command.out / "runs", console, command.scale != "smoke", command.track)
    chosen = command.populations()
    arms = {name: one.config(command.scale, command.seed) for name, one in chosen.items()}
    minutes = frame.minutes((config for config in arms.values() if not shelf.finished(config)), command.scale)
    console.print(
        f"{len(arms)} population{'s' * (len(arms) > 1)}, about {minutes:.0f} minutes of training", highlight=False
    )
    for name, config in arms.items():
        reporting.written(console, [shelf.run(config).path], f"{name}: {chosen[name].title}")
    return 0


def show_run(command: Run, console: Console) -> int:
    """Run a study and print its verdict; or all of them, the cheapest first."""
    studies = command.studies()
    if len(studies) == 1:
        _run(studies[0], command, console)
        return 0
    failed: list[str] = []
    shelf = Store(command.out / "runs", console)
    while studies:
        missing = {
            one.name: [x for x in one.configs(command.scale, command.seed).values() if not shelf.finished(x)]
            for one in studies
        }
        studies.sort(key=lambda one: frame.minutes(missing[one.name], command.scale))
        minutes = frame.minutes(itertools.chain.from_iterable(missing.values()), command.scale)
        console.print(f"{len(studies)} studies left, about {minutes:.0f} minutes of training", highlight=False)
        study = studies.pop(0)
        try:
            _run(study, command, console)
        except (ConfigError, RunError, stages.Diverged) as error:
            terminal.complain(f"studies run {study.name}", error)
            failed.append(study.name)
    if failed:
        terminal.complain("studies run all", f"{', '.join(failed)} failed; the others have their verdicts")
    return 1 if failed else 0


def _run(study: Study, command: Run, console: Console) -> None:
    document = frame.run(study, command.scale, command.out, console, command.seed, command.track)
    console.print(f"\n{study.title}\n{study.claim} ({study.source})", highlight=False, markup=False)
    table = Table(show_lines=True)
    for column in ("question", "asked", "mean and 95 % interval", "verdict"):
        table.add_column(column, overflow="fold")
    for question in document["questions"]:
        for index, criterion in enumerate(question["criteria"]):
            estimate = document["estimates"].get(criterion["estimate"])
            text = "" if index else escape(question["text"])
            table.add_row(
                f"[bold]{text}[/]" if question["leading"] else text,
                escape(criterion["words"]),
                results.shown(estimate) if estimate else "–",
                f"[{_COLOURS[criterion['verdict']]}]{criterion['verdict']}[/]",
            )
    console.print(table)
    for question in document["questions"]:
        if words := agreement(question):
            console.print(f"{question['text']} {words}.", highlight=False, markup=False)
    verdict = document["verdict"]
    console.print(
        f"verdict: [bold {_COLOURS[verdict]}]{document['words']}[/] ({verdict}), by the questions in bold together, "
        f"over {document['bases']} bases",
        highlight=False,
    )
    folder = command.out / study.name / frame.variant(command.scale, command.seed)
    reporting.written(console, [folder / frame.VERDICT, folder / document["figure"]])


def show_report(command: Report, console: Console) -> int:
    """Write the site and print the path of its first page; or keep what must last."""
    studies = [find(name) for name in NAMES]
    if command.into:
        written, notes = results.keep(command.out, command.into, studies)
        for note in notes:
            console.print(note, highlight=False, markup=False)
        reporting.written(console, written)
        return 0
    reporting.written(console, [site.build(command.out, command.episodes, console, studies)])
    return 0


COMMANDS = {
    "list": (List, show_list),
    "run": (Run, show_run),
    "train": (Train, show_train),
    "report": (Report, show_report),
}


def main(arguments: Sequence[str], begin: Callable[[], None] = lambda: None) -> int:
    """Run the command; returns the exit status. `begin` is called before JAX is used."""
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
        if isinstance(command, Trained):
            command.check()  # refused before a device is looked for
        with signals.catch(at_once=True), environment.enough_memory():
            begin()
            if isinstance(command, Trained) and command.scale == "smoke":  # compiling is most of it
                jax.config.update("jax_disable_most_optimizations", True)
            return show(command, terminal.console(markup=True))
    except (ConfigError, RunError, stages.Diverged) as error:
        terminal.complain(f"studies {name}", error)
        return 1 if isinstance(error, stages.Diverged) else 2
    except signals.Interrupted as error:
        terminal.complain(f"studies {name}", f"{error}; the same command goes on from there")
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], functools.partial(environment.start, "studies")))
