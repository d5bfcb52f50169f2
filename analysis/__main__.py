"""Look inside a run: any measurement, by its name.

    uv run -m analysis list
    uv run -m analysis NAME RUN [options] [--checkpoints all|A,B] [--json FILE]
    uv run -m analysis compare RUN RUN … [--measure return|kl|…] [--against update|tokens|kl] [--as-one]
    uv run -m analysis export RUN --to transformer-lens|safetensors|torch|run [--member N] [--checkpoint NAME]

`uv run -m analysis NAME --help` lists the options of one.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from ground import environment

if __name__ == "__main__":
    environment.prepare("analysis", __doc__)

import tyro
from rich.console import Console
from rich.table import Table

from agents import runs
from agents.runs import reporting
from analysis import comparing, estimates, interop, measures  # noqa: F401 (importing measures registers them)
from analysis.figures import defaults
from analysis.measure import REGISTRY, Measurement
from analysis.output import Output
from ground import signals, terminal
from ground.files import RunError
from ground.terminal import ConfigError


def command(measurement: Measurement) -> Any:
    """The options of a measurement as a dataclass: its own, and those that all share."""

    def field(name: str, kind: Any, default: Any, words: str, **shown: Any) -> tuple[str, Any, Any]:
        return name, Annotated[kind, tyro.conf.arg(help=words, **shown)], dataclasses.field(default=default)

    where = "The run's directory; several are shown side by side."
    fields: list[Any] = [("runs", Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help=where)])]
    fields += [field(name, option.type, option.default, option.help) for name, option in measurement.options.items()]
    if measurement.followed:
        words = "Which checkpoints; by default those that it is about."
        fields.append(field("checkpoints", str | None, None, words, metavar="all|A,B", help_behavior_hint=""))
    fields.append(("output", Annotated[Output, tyro.conf.arg(name="")], dataclasses.field(default=Output())))
    made = dataclasses.make_dataclass("Command", fields, frozen=True)
    made.__doc__ = measurement.summary
    return made


def run(measurement: Measurement, options: Any, console: Console) -> None:
    """Measure, print, write."""
    if not options.runs:
        raise ConfigError(f"which run? give its directory: uv run -m analysis {measurement.name} RUN")
    options.output.check()
    opened = {path.name: runs.open(path) for path in options.runs}
    if len(opened) < len(options.runs):
        raise ConfigError("two of the runs have the same name; rename one of their directories")
    values = {name: getattr(options, name) for name in measurement.options}
    if measurement.followed:
        values["checkpoints"] = options.checkpoints
    with console.status("reading") as status:
        arms = {name: measurement(one, tell=status.update, **values) for name, one in opened.items()}
    console.print(estimates.table(arms, measurement.summary, console.width))
    caption = "; ".join(one.caption for one in opened.values())
    written = options.output.write(
        lambda: {
            "measurement": measurement.name,
            "runs": {name: dataset.to_dict(encoding=False) for name, dataset in arms.items()},
        },
        lambda: (measurement.panels or defaults.panels)(arms),
        lambda: next(iter(opened.values())).figure(measurement.name),
        measurement.summary.rstrip("."),
        caption,
    )
    reporting.written(console, written, caption)


def listed() -> Table:
    """Every measurement, what it measures, and its other names."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("compare", comparing.Command.__doc__)
    table.add_row("export", interop.Export.__doc__)
    for name, measurement in sorted(REGISTRY.items()):
        table.add_row(name, measurement.summary if name == measurement.name else f"the same as {measurement.name}")
    return table


def main(arguments: Sequence[str], begin: Callable[[], None] = lambda: None) -> int:
    """Run the command; returns the exit status. `begin` is called before JAX is used."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if name == "list":
        terminal.console().print(listed())
        return 0
    commands = {"compare": (comparing.Command, comparing.run), "export": (interop.Export, interop.command)}
    if name in commands:
        kind, carry_out = commands[name]
    elif name in REGISTRY:
        kind, carry_out = command(REGISTRY[name]), functools.partial(run, REGISTRY[name])
    else:
        wrong = f"{name}: no such measurement" if name else "which measurement?"
        names = ", ".join(sorted([*REGISTRY, *commands]))
        terminal.complain("analysis", f"{wrong}; choose one of {names}, or list")
        return 2
    try:
        options = terminal.read(kind, arguments[1:], prog=f"analysis {name}")
        with signals.catch(at_once=True), environment.enough_memory():
            begin()
            carry_out(options, terminal.console())
    except (ConfigError, RunError) as error:
        terminal.complain(f"analysis {name}", error)
        return 2
    except signals.Interrupted as error:
        terminal.complain(f"analysis {name}", f"{error}; what was finished is kept")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], functools.partial(environment.start, "analysis")))
