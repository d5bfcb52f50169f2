"""`pass-at-k`: how often one of k attempts at a held-out maze succeeds, at two checkpoints of a run."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agents.runs import reporting
from agents.runs.config import ConfigError
from analysis import pass_figures, passes, subject
from analysis.figures import learning_curve
from analysis.passes import Attempts
from analysis.subject import Subject

NAME = "pass_at_k"
"""Of the files written."""
LIMIT = 65_536
"""Most attempts and most mazes."""

SLICES = {
    "sometimes": "mazes that the checkpoint before solved in at least one of its attempts",
    "never": "mazes that it solved in none; what it would do there in others is not known, so its 0 is no estimate",
}
"""Parts of the mazes, judged member by member (ProRL, arXiv 2505.24864, asks where RL helps most)."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Play n attempts at each of many held-out mazes, before RL and after: the unbiased pass@k, with intervals."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    samples: int = 256
    """Attempts of each member at each maze, n; pass@k is told for k = 1, 2, 4 … n."""
    mazes: int = 128
    """Held-out mazes, the same for every member and checkpoint; fewer are the first of more."""
    before: str = "pretrain"
    """Checkpoint to compare with, the base."""
    after: str = "rl"
    """A later checkpoint."""
    temperature: float = 1.0
    """Of plans and actions."""
    figures: bool = True
    """Draw figures beside the numbers."""


def run(command: Command, console: Console) -> None:
    """Play, estimate, print, write.

    Raises:
        ConfigError, RunError: an option or the run is wrong; nothing was written.
    """
    _check(command)
    opened = subject.open(command.run)
    before, after = (opened.parameters(name) for name in (command.before, command.after))
    names = opened.run.checkpoints()
    if names.index(command.before) >= names.index(command.after):
        raise ConfigError(
            f"--after {command.after}: does not come after --before {command.before}; "
            f"the order of training is {', '.join(names)}"
        )
    one = _alike(opened, before)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("playing", total=command.mazes)
        played = _measure(opened, command, before, after, one, lambda done: progress.update(bar, completed=done))
    with console.status("estimating"):
        found = _estimates(opened, command, played)
        document = _document(opened, command, played, found)
        paths = opened.write(NAME, document, _rows(opened, command, played))
        paths += _draw(opened, command, document, found) if command.figures else []
    _print(console, document)
    reporting.written(console, paths, opened.caption)


def _check(command: Command) -> None:
    for name, value in (("samples", command.samples), ("mazes", command.mazes)):
        if not 1 <= value <= LIMIT:
            raise ConfigError(f"--{name}={value}: use 1 to {LIMIT}")
    if not (math.isfinite(command.temperature) and command.temperature > 0):
        raise ConfigError(f"--temperature={command.temperature:g}: use a number above 0")


def _alike(opened: Subject, parameters: Any) -> bool:
    """Whether all members would play alike: one set of parameters, as of a shared base, and one world."""
    same = all(bool((x == x[:1]).all()) for x in jax.tree.leaves(parameters))
    return not opened.config.starts.any() and same


def _measure(
    opened: Subject, command: Command, before: Any, after: Any, one: bool, report: Any
) -> tuple[Attempts, ...]:
    """Attempts before and after; before those of one member where all are alike. Played together, by one program."""
    count = 1 if one else opened.members

    def stacked(first, second):
        return jax.tree.map(lambda x, y: np.concatenate([np.asarray(x)[:count], np.asarray(y)]), first, second)

    played = passes.measure(
        opened.policy,
        stacked(before, after),
        opened.world,
        stacked(opened.params, opened.params),
        command.mazes,
        command.samples,
        command.temperature,
        report,
    )
    return tuple(jax.tree.map(lambda x, part=part: x[part], played) for part in (slice(count), slice(count, None)))


def _points(opened: Subject) -> dict[str, np.ndarray]:
    """Point of the swept grid → which members stand there, bool[M]; one point, named nothing, without a sweep."""
    labels = [member.label for member in opened.population]
    return {label: np.array([other == label for other in labels]) for label in dict.fromkeys(labels)}


def _estimates(opened: Subject, command: Command, played: tuple[Attempts, ...]) -> dict[str, dict[str, Any]]:
    """Part of the mazes → curve → estimate; the difference is after minus before."""
    ks = passes.powers(command.samples)
    before, after = (passes.pass_at_k(x.successes, command.samples, ks) for x in played)
    shape = after.shape[:2]
    sometimes = np.broadcast_to(played[0].successes > 0, shape)
    points = _points(opened)
    strata = np.argmax(list(points.values()), axis=0)
    found = {}
    for part, chosen in {"all": np.ones(shape, bool), "sometimes": sometimes, "never": ~sometimes}.items():
        if not chosen.any():
            continue
        alone = len(before) == 1
        found[part] = {
            "before": passes.estimate(before, chosen[:1] if alone else chosen, None if alone else strata),
            "after": passes.estimate(after, chosen, strata),
            "difference": passes.estimate(after - before, chosen, strata),
        }
        if len(points) > 1:
            for label, mine in points.items():
                if chosen[mine].any():
                    found[part][label] = passes.estimate(after[mine], chosen[mine])
    return found


def _document(
    opened: Subject, command: Command, played: tuple[Attempts, ...], found: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What pass_at_k.json holds."""
    ks, n = passes.powers(command.samples), command.samples
    before, after = (x.successes for x in played)
    each = {"before": before, "after": after}
    solved = [np.broadcast_to(x > 0, after.shape) for x in (before, after)]
    gap = found["all"]["before"]["mean"][-1] - found["all"]["after"]["mean"][0]
    document: dict[str, Any] = {
        "source": "arXiv 2107.03374, section 2.1; arXiv 2504.13837; arXiv 2506.01347; arXiv 2505.24864",
        "run": str(opened.run.path),
        **{name: getattr(command, name) for name in ("before", "after", "samples", "mazes", "temperature")},
        "success": "reaches the goal" if opened.world.has_goal else "return above 0",
        "ks": ks,
        "population": [{"seed": member.seed, "values": member.values} for member in opened.population],
        "checkpoints": {},
        "difference": found["all"]["difference"],
        "crossover": passes.crossover(before, after, n),
        "crossover_of_members": [passes.crossover(_row(before, index), x, n) for index, x in enumerate(after)],
        "sampling_efficiency_gap": gap,
        "solved": {
            "both": (solved[0] & solved[1]).mean(),
            "only_before": (solved[0] & ~solved[1]).mean(),
            "only_after": (~solved[0] & solved[1]).mean(),
            "neither": (~solved[0] & ~solved[1]).mean(),
        },
        "slices": {
            part: {"meaning": SLICES[part], "share": (solved[0] if part == "sometimes" else ~solved[0]).mean()}
            | {curve: x for curve, x in found.get(part, {}).items() if curve in ("before", "after", "difference")}
            for part in SLICES
        },
        "meanings": {
            "crossover": "smallest k at which the mean pass@k before is above that after, null if none",
            "sampling_efficiency_gap": "pass@n before minus pass@1 after",
            "solved": "share of pairs of member and maze with at least one success in n attempts",
            "distinct": "different sequences of actions among the successes at a maze",
        },
    }
    for role, attempts in zip(each, played, strict=True):
        document["checkpoints"][getattr(command, role)] = {
            **found["all"][role],
            "members": passes.pass_at_k(attempts.successes, n, ks).mean(axis=1),
            "distinct": attempts.distinct.mean(axis=1),
        }
    points = _points(opened)
    if len(points) > 1:
        document["groups"] = [
            {"label": label, **found["all"][label]}
            | {"crossover": passes.crossover(before if len(before) == 1 else before[mine], after[mine], n)}
            for label, mine in points.items()
        ]
    return document


def _row(counts: np.ndarray, member: int) -> np.ndarray:
    """Counts of a member, or of the one who stands for all."""
    return counts[member if len(counts) > 1 else 0]


def _rows(opened: Subject, command: Command, played: tuple[Attempts, ...]) -> dict[str, list]:
    """A row per checkpoint, member and maze; member and seed are null where one stands for all."""
    rows = []
    for checkpoint, attempts in zip((command.before, command.after), played, strict=True):
        alone = len(attempts.successes) < opened.members
        for index, maze in np.ndindex(attempts.successes.shape):
            member = opened.population[index]
            rows.append(
                {
                    "checkpoint": checkpoint,
                    "member": None if alone else index,
                    "seed": None if alone else member.seed,
                    **(dict.fromkeys(member.values) if alone else member.values),
                    "maze": maze,
                    "successes": int(attempts.successes[index, maze]),
                    "distinct": int(attempts.distinct[index, maze]),
                }
            )
    return {key: [row[key] for row in rows] for key in rows[0]}


def _draw(opened: Subject, command: Command, document: Mapping[str, Any], found: Mapping[str, Any]) -> list[Path]:
    points = [label for label in _points(opened) if label]
    curves = {f"{command.before}, the base": "before"}
    curves |= {f"{command.after}, {label}": label for label in points} or {command.after: "after"}
    share = {part: document["slices"][part]["share"] for part in SLICES}
    times = "attempt" if command.samples == 1 else f"{command.samples} attempts"
    titles = {
        "all": f"all {command.mazes} mazes",
        "sometimes": f"the {share['sometimes']:.0%} that the base has ever solved",
        "never": f"the {share['never']:.0%} that it never solved in {times}",
    }
    panels = {
        titles[part]: {label: found[part][key] for label, key in curves.items() if key in found[part]}
        for part in found
    }  # fmt: skip
    members = f"{opened.members} {'member' if opened.members == 1 else 'members'}"
    meaning = (
        f"pass@k: chance that one of k attempts {document['success']}; {members}, "
        f"{command.samples} attempts each at {command.mazes} held-out mazes, temperature {command.temperature:g}"
    )
    title = f"{opened.world.name}: mazes solved at one attempt, and at many"
    return pass_figures.draw(
        opened.run.figure(NAME), panels, passes.powers(command.samples), None if points else document["crossover"],
        title, meaning, opened.caption,
    )  # fmt: skip


def _print(console: Console, document: Mapping[str, Any]) -> None:
    before, after = (document["checkpoints"][document[role]] for role in ("before", "after"))
    difference = document["difference"]
    intervals = [which for which in ("over_members", "over_mazes") if difference[which] is not None]
    table = Table(title="pass@k, % of held-out mazes", title_justify="left")
    titles = ["k", document["before"], document["after"], "difference"]
    for name in (*titles, *(f"95 % interval {which.replace('_', ' ')}" for which in intervals)):
        table.add_column(name, justify="right")
    for index, k in enumerate(document["ks"]):
        ends = [[learning_curve.signed(100 * end[index]) for end in difference[which]] for which in intervals]
        table.add_row(
            str(k), f"{100 * before['mean'][index]:.1f}", f"{100 * after['mean'][index]:.1f}",
            learning_curve.signed(100 * difference["mean"][index]), *(" to ".join(pair) for pair in ends),
        )  # fmt: skip
    console.print(table)
    crossing, solved = document["crossover"], document["solved"]
    found = f"from k = {crossing}" if crossing else f"at no k up to {document['samples']}"
    console.print(f"{document['before']} is ahead of {document['after']} {found}", highlight=False)
    console.print(
        f"mazes solved at all: by both {solved['both']:.0%}, only by {document['before']} {solved['only_before']:.0%}, "
        f"only by {document['after']} {solved['only_after']:.0%}, by neither {solved['neither']:.0%}; different "
        f"successful ways a maze: {np.mean(before['distinct']):.1f} and {np.mean(after['distinct']):.1f}",
        highlight=False,
    )
