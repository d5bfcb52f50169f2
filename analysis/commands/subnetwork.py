"""`subnetwork`: the parameters that RL changed trained alone, from the same start, against other masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from agents.runs import reporting
from agents.runs.config import ConfigError
from analysis import drawing, subject, subnetwork_figures, subnetworks, weights
from analysis.subject import Subject
from analysis.subnetworks import Definition
from analysis.weights import Matrices
from ground import files, statistics

NAME = "subnetwork"
"""Of the files written."""
BEFORE, FULL = "before RL", "full run"
"""The two policies of the run that the retrained ones are compared with."""

_MEANING = {
    "learned": "the subnetwork that RL changed",
    "random": "as many per matrix, at random",
    "complement": "all other parameters",
    "smallest": "as many per matrix, of the smallest magnitude",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """Train the parameters that RL changed alone, against random masks, all others, and the smallest."""

    run: tyro.conf.Positional[Path]
    """Run directory; it must hold the checkpoints `pretrain` and `rl`."""
    definition: Definition = "top"
    """What counts as changed: `top` the --density of the parameters that moved farthest, `bf16` a different bfloat16
    value, `paper` one that differs by more than 1e-5."""
    density: float = 0.1
    """Share of a member's parameters that `top` takes."""
    draws: int = 2
    """Random masks, each with as many parameters in each matrix."""
    seed: int = 0
    """Of the random masks."""
    members: int | None = None
    """Train only the first members of the run, to bound the time; all by default."""
    episodes: int | None = None
    """Evaluation episodes of each policy, at least 1,024; those of the run by default."""
    figures: bool = True
    """Draw figures beside the numbers."""


def run(command: Command, console: Console) -> list[Path]:
    """Train, evaluate, print, write; returns the paths written.

    Raises:
        ConfigError, RunError: an option or the run is wrong; nothing was written.
    """
    opened = subject.open(command.run)
    members, episodes = _check(command, opened)
    if (opened.kept[:members] != np.arange(members)).any():
        first = int(np.argmax(opened.kept[:members] != np.arange(members)))
        remedy = f"use --members {first}" if first else "train again with a lower learning rate"
        raise ConfigError(f"{command.run}: member {first} has diverged, and cannot be trained again in part; {remedy}")
    ends = (opened.config.before_rl, "rl")
    start, full = (jax.tree.map(lambda x: x[:members], opened.parameters(name)) for name in ends)
    before, after = weights.split(start), weights.split(full)
    chosen = subnetworks.learned(before, after, command.definition, command.density)
    _refuse_no_choice(command, chosen)
    names, masks = zip(*subnetworks.arms(before, chosen, command.draws, command.seed), strict=True)

    updates = opened.config.rl.updates * len(masks)
    console.print(f"rl of {members} members with {len(masks)} masks, {updates:,} updates in all", highlight=False)
    with reporting.progress(console) as bars:
        bar = bars.add_task("masked rl", total=updates, reward="", speed="compiling")

        def report(done, metrics, timing):
            speed = reporting.speed(timing.tokens, timing.run_seconds)
            bars.update(bar, completed=done, reward=f"{metrics['return'][:, -1].mean():+.1f}", speed=speed)

        results, first = subnetworks.train(opened.config, start, masks, report)
    with console.status("evaluating"):
        played = subnetworks.returns(opened.config, [start, full, *results], episodes)

    measures = [
        subnetworks.agreement(mask, before, after, weights.split(result))
        for mask, result in zip(masks, results, strict=True)
    ]
    strata = _grid_points(opened, members)
    returns = _by_arm([BEFORE, FULL, *names], played)
    agreement = {key: _by_arm(names, [one[key] for one in measures]) for key in measures[0]}
    document = {
        "options": dataclasses.asdict(command) | {"run": str(command.run), "members": members, "episodes": episodes},
        "repeats": _repeats(opened, first),
        "returns": {name: _estimates(name, returns, strata) for name in returns},
        "agreement": {key: {name: x.mean() for name, x in arms.items()} for key, arms in agreement.items()},
    }
    _print(console, document)
    paths = opened.write(NAME, document, _rows(opened, [BEFORE, FULL, *names], played, measures))
    if command.figures:
        figure = subnetwork_figures.subnetwork(returns, agreement, strata, command.definition)
        paths += drawing.save(figure, opened.run.figure(NAME), f"{opened.caption}; {episodes:,} mazes per policy")
    reporting.written(console, paths, opened.caption)
    return paths


def _check(command: Command, opened: Subject) -> tuple[int, int]:
    """Members to train and episodes to play."""
    members = opened.members if command.members is None else command.members
    episodes = opened.config.evaluation_episodes if command.episodes is None else command.episodes
    for name, value, good, remedy in (
        ("members", members, 1 <= members <= opened.members, f"the run has {opened.members}; use 1 to all of them"),
        ("density", command.density, 0 < command.density < 1, "use a share between 0 and 1"),
        ("draws", command.draws, command.draws >= 1, "use at least 1"),
        ("seed", command.seed, command.seed >= 0, "use 0 or more"),
        ("episodes", episodes, episodes >= 1024 and episodes % 256 == 0, "use a multiple of 256, at least 1024"),
    ):
        if not good:
            raise ConfigError(f"--{name}={value}: {remedy}")
    return members, episodes


def _refuse_no_choice(command: Command, chosen: Matrices) -> None:
    """A mask of nothing or of everything leaves nothing to compare."""
    inside = np.concatenate([x.reshape(len(x), -1) for x in chosen.values()], axis=1)
    for wrong, what in ((~inside.any(axis=1), "none"), (inside.all(axis=1), "all")):
        if wrong.any():
            option, remedy = f"--definition={command.definition}", "use --definition top"
            if command.definition == "top":
                option, remedy = f"--density={command.density:g}", f"use a share of {inside.shape[1]:,} parameters"
            raise ConfigError(f"{option}: {what} of the parameters of member {int(wrong.argmax())}; {remedy}")


def _by_arm(names: Sequence[str], values: Any) -> dict[str, np.ndarray]:
    """Arm → its values [draws, N]; only `random` has several draws."""
    return {
        name: np.stack([row for other, row in zip(names, values, strict=True) if other == name])
        for name in dict.fromkeys(names)
    }


def _grid_points(opened: Subject, members: int) -> np.ndarray:
    """Which point of the population's grid each member stands at, int[N]: the strata of the bootstrap."""
    points = [tuple(member.values.items()) for member in opened.population]
    return np.array([points.index(point) for point in points[:members]])


def _estimates(name: str, returns: Mapping[str, np.ndarray], strata: np.ndarray) -> dict[str, Any]:
    """Return of an arm, with intervals over members; what it recovers, and what it has over the random masks."""
    arm, random, before, full = (returns[key].mean(axis=0) for key in (name, "random", BEFORE, FULL))

    def interval(values):
        return [float(end) for end in statistics.bootstrap_interval(values, statistic=np.mean, strata=strata)]

    found = {"members": arm.tolist(), "mean": arm.mean(), "interval": interval(arm)}
    if name != BEFORE:
        share, *ends = subnetworks.share_of_gain(before, full, arm, strata)
        found |= {"share_of_gain": share, "share_of_gain_interval": ends}
    if name not in (BEFORE, FULL, "random"):
        found |= {
            "minus_random": (arm - random).mean(),
            "minus_random_interval": interval(arm - random),
            "better_than_random": statistics.probability_of_improvement(arm, random, (strata, strata)),
            "better_than_random_interval": list(statistics.improvement_interval(arm, random, (strata, strata))),
        }
    return found


def _repeats(opened: Subject, first: np.ndarray) -> dict[str, Any]:
    """Whether the retraining began as the run did: on the same kind of devices, with the same first episodes.

    The first update is played before anything is trained, so that its returns say for every arm and member whether
    seeds and mazes are those of the run.
    """
    made = files.read_json(opened.run.path / "config.json")
    then, now = made.get("device"), jax.devices()
    here = {"platform": jax.default_backend(), "kind": now[0].device_kind, "devices": len(now)}
    then = {key: then.get(key) for key in here} if isinstance(then, dict) else dict.fromkeys(here)
    table = opened.run.metrics("rl").to_pydict()
    rows = zip(table["update"], table["member"], table.get("return", []), strict=False)
    recorded = {member: value for update, member, value in rows if update == 0}
    expected = np.array([recorded.get(member, np.nan) for member in range(first.shape[1])], np.float32)
    return {
        "same_devices": then == here,
        "devices_of_the_run": then,
        "devices_here": here,
        "first_returns_equal": bool((first == expected).all()),
        "first_returns_difference": float(np.abs(first - expected).max()),
    }


def _rows(
    opened: Subject, names: Sequence[str], played: np.ndarray, measures: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list]:
    """The table that is written: a row per policy and member; measures are null for the run's own two policies."""
    rows = []
    for index, name in enumerate(names):
        for number, member in enumerate(opened.population[: played.shape[1]]):
            measured = measures[index - 2] if index >= 2 else dict.fromkeys(measures[0])
            rows.append(
                {
                    "arm": name,
                    "draw": names[:index].count(name),
                    "member": number,
                    "seed": member.seed,
                    **member.values,
                    "return": float(played[index, number]),
                }
                | {key: None if x is None else float(x[number]) for key, x in measured.items()}
            )
    return {key: [row[key] for row in rows] for key in rows[0]}


def _print(console: Console, document: Mapping[str, Any]) -> None:
    options, repeats = document["options"], document["repeats"]
    agreement = document["agreement"]
    table = Table(title="RL with only some of the parameters trained: return per episode", title_justify="left")
    for column in ("trained", "return", "95 % interval", "gain", "− random", "95 % interval"):
        table.add_column(column, justify="left" if column == "trained" else "right")
    for name, found in document["returns"].items():
        table.add_row(
            name, _number(found["mean"]), _range(found["interval"]), _number(found.get("share_of_gain"), ".0%"),
            _number(found.get("minus_random")), _range(found.get("minus_random_interval")),
        )  # fmt: skip
    console.print(table)
    for name, meaning in _MEANING.items():
        console.print(f"  {name}: {meaning}, {agreement['density'][name]:.1%}", highlight=False)
    learned = document["returns"]["learned"]
    low, high = learned["better_than_random_interval"]
    console.print(
        f"gain: share of the full run's. P(learned > random) {_number(learned['better_than_random'], '.2f')}, "
        f"interval {low:.2f} to {high:.2f}; {options['members']} members, "
        f"{options['episodes']:,} mazes each",
        highlight=False,
    )

    table = Table(title="Agreement with the full run, share of the parameters in the mask", title_justify="left")
    columns = {
        "moved": "moved", "=\nbf16": "inside_bf16", "|Δ| ≤\n1e-5": "inside_1e-5", "|Δ| ≤\n1e-4": "inside_1e-4",
        "start\n1e-4": "start_1e-4", "all\n1e-5": "whole_1e-5", "cosine": "inside_cosine",
        "all\ncosine": "whole_cosine",
    }  # fmt: skip
    table.add_column("trained")
    for column in columns:
        table.add_column(column, justify="right")
    for name in _MEANING:
        forms = [(key, ".2f" if key.endswith("cosine") else ".0%") for key in columns.values()]
        table.add_row(name, *[_number(agreement[key][name], form) for key, form in forms])
    console.print(table)
    console.print(
        "start: of the model before RL. all: over all parameters, where those that were not trained agree with the run "
        "wherever it hardly moved them; that flatters a small mask, so judge inside it.",
        highlight=False,
    )
    devices = "as in the run" if repeats["same_devices"] else f"not those of the run ({repeats['devices_of_the_run']})"
    same = "equal the run's to the bit"
    if not repeats["first_returns_equal"]:
        same = f"differ from the run's by up to {repeats['first_returns_difference']:.2g}"
    here = repeats["devices_here"]
    console.print(
        f"devices: {here['devices']} × {here['kind']}, {devices}; returns of the first update {same}", highlight=False
    )


def _number(value: float | None, form: str = "+.1f") -> str:
    return "" if value is None else "–" if np.isnan(value) else format(value, form)


def _range(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:+.1f} to {ends[1]:+.1f}" if ends and ends[0] < ends[1] else ""
