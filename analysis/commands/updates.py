"""`updates`: what changed in the parameters between two checkpoints, by every definition, beside every chance."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from agents import runs
from agents.learning import rollout
from agents.runs import reporting
from agents.runs.config import ConfigError
from analysis import changes, overlaps, subject, update_figures, update_report, updates, weights
from analysis.changes import Update
from analysis.subject import Subject
from analysis.weights import Matrices
from envs import base, tokens
from ground import seeds

EPISODES = 512
"""Episodes that show which tokens a world says."""

Pair = tuple[str, str]
"""Checkpoints before and after an update."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What changed in the parameters between two checkpoints: how many, in which shape, which ones, and when."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    before: str = "pretrain"
    """Checkpoint before the update."""
    after: str = "rl"
    """Checkpoint after it."""
    against: Path | None = None
    """Another run of the same policy shape: do the updates of the two runs hit the same parameters?"""
    figures: bool = True
    """Draw figures beside the numbers."""


def run(command: Command, console: Console) -> None:
    """Measure the update, write its numbers and figures, and show a table."""
    opened = subject.open(command.run)
    names = opened.run.checkpoints()
    pair = (command.before, command.after)
    stages = list(itertools.pairwise(name for name in names if "-" not in name))
    pairs = list(dict.fromkeys([pair, *stages]))
    with console.status("reading checkpoints"):
        read = {name: weights.split(opened.parameters(name)) for name in dict.fromkeys(itertools.chain(*pairs))}
        during = names[names.index(pair[0]) : names.index(pair[1]) + 1]
        if len(during) < 2:
            raise ConfigError(
                f"--after {command.after}: does not come after --before {command.before}; "
                f"the order of training is {', '.join(names)}"
            )
        other = _other(command, read[pair[0]]) if command.against else None
        used = used_tokens(opened)
        read = {name: updates.parts(x, used) for name, x in read.items()}
    with console.status("measuring"):
        every = {each: changes.measure(read[each[0]], read[each[1]], seed) for seed, each in enumerate(pairs)}
        course = _course(opened, during, read, used)
        document = _document(opened, pair, stages, every, used)
        document["time_course"] = update_report.course(during, course)
        if other is not None:
            # The seed is unlike any of this run's.
            measured = changes.measure(*(updates.parts(x, used) for x in other), seed=1000)
            document["against"] = {"run": str(command.against), "overlaps": changes.compare(every[pair], measured)}
    with console.status("drawing"):
        paths = opened.write("updates", document, update_report.rows(every[pair], opened.population))
        paths += _draw(opened, document, pair, every, during, course) if command.figures else []
    update_report.show(console, document)
    reporting.written(console, paths, opened.caption)


@functools.partial(jax.jit, static_argnames="world")
def _said(world: base.World, params: base.WorldParams) -> jax.Array:
    """Tokens of episodes that a random player plays, int32[EPISODES, S]."""
    maze_key, turn_key = jax.random.split(seeds.held_out("tokens"))
    driver = rollout.scripted_driver(lambda states, plans: jnp.zeros((EPISODES, 4)))
    keys = jax.random.split(maze_key, EPISODES)
    return rollout.play(world, params, keys, turn_key, driver, rollout.gumbel(EPISODES))[0].tokens


def used_tokens(opened: Subject) -> list[int]:
    """Tokens that occur in the RL worlds of the run's members, as a random player meets them, and the moves."""
    seen = set(tokens.MOVES)
    for member in range(1 if not opened.config.starts.any() else opened.members):
        params = jax.tree.map(lambda x, member=member: x[member], opened.params)
        seen |= set(np.unique(np.asarray(_said(opened.world, params))).tolist())
    return sorted(seen)


def grid_points(opened: Subject) -> dict[str, list[int]]:
    """Point of the swept grid → its members; one point, `all members`, where nothing was swept."""
    points: dict[str, list[int]] = {}
    for index, member in enumerate(opened.population):
        points.setdefault(member.label or "all members", []).append(index)
    return points


def learning_rate(opened: Subject, pair: Pair) -> np.ndarray:
    """Learning rate summed over the optimiser steps between two checkpoints, from the metrics; float64[M].

    NaN where the metrics are not there.
    """

    def until(name: str) -> np.ndarray:
        last, _, update = name.partition("-")
        total = np.zeros(opened.members)
        for stage in runs.STAGES[: runs.STAGES.index(last) + 1] if last != "init" else ():
            config = getattr(opened.config, stage)
            count = int(update) if update and stage == last else config.updates
            if count == 0:
                continue
            table = opened.run.metrics(stage)
            if "learning_rate" not in table.column_names or len(table) < count * opened.run.members:
                return np.full(opened.members, np.nan)
            rates = opened.metric(stage, "learning_rate")
            steps = config.epochs * config.minibatches if stage == "rl" else 1
            total += steps * rates[:count].sum(axis=0)
        return total

    return until(pair[1]) - until(pair[0])


def _other(command: Command, like: Matrices) -> list[Matrices]:
    """The matrices of the other run, before and after."""
    opened = subject.open(str(command.against))
    pair = [weights.split(opened.parameters(name)) for name in (command.before, command.after)]
    shapes = [{name: x.shape[1:] for name, x in matrices.items()} for matrices in (pair[0], like)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"--against {command.against}: its policy has another shape; give a run of the same policy")
    return pair


def _course(
    opened: Subject, names: Sequence[str], read: Mapping[str, Matrices], used: Sequence[int]
) -> dict[str, np.ndarray]:
    """Kind → shares float64[C, M, views, states] at each checkpoint; those not yet read are read one at a time."""
    each = (
        read[name] if name in read else updates.parts(weights.split(opened.parameters(name)), used) for name in names
    )
    counted = list(updates.course(each))
    sizes = updates.sizes(read[names[0]])
    kinds = updates.kinds(sizes)
    return {kind: np.stack([updates.fraction(one, sizes, of) for one in counted]) for kind, of in kinds.items()}


def _document(
    opened: Subject, pair: Pair, stages: Sequence[Pair], every: Mapping[Pair, Update], used: Sequence[int]
) -> dict[str, Any]:
    """What updates.json holds, but for the time course and the other run."""
    update, everyone = every[pair], range(opened.members)
    sizes, rate = updates.sizes(update.before), learning_rate(opened, pair)

    def between(first: Pair, second: Pair) -> dict[str, Any]:
        """Overlap of what two stages changed in the same member."""
        overlap = changes.compare(every[first], every[second], same_member=True)
        return {"first": first, "second": second, "overlaps": overlap}

    return {
        "before": pair[0],
        "after": pair[1],
        "stored_dtype": str(next(iter(update.before.values())).dtype),
        "shared_base": opened.config.pretrain.shared,
        "parameters": {kind: sum(sizes[n] for n in names) for kind, names in updates.kinds(sizes).items()},
        "used_tokens": [tokens.VOCABULARY[token] for token in used],
        "population": [{"seed": member.seed, "values": member.values} for member in opened.population],
        "meanings": update_report.MEANINGS,
        **update_report.measures(update, everyone),
        **update_report.steps(update, rate),
        "curves": update_report.curves(update),
        "groups": [
            {"label": label} | update_report.group(update, rate, members)
            for label, members in grid_points(opened).items()
        ],
        "stages": [
            {"before": each[0], "after": each[1], **update_report.measures(every[each], everyone)}
            | update_report.steps(every[each], learning_rate(opened, each))
            for each in stages
        ],
        "between_stages": [between(*two) for two in itertools.pairwise(stages)],
    }


def _draw(
    opened: Subject,
    document: Mapping[str, Any],
    pair: Pair,
    every: Mapping[Pair, Update],
    during: Sequence[str],
    course: Mapping[str, np.ndarray],
) -> list[Path]:
    """All figures; returns the PNGs."""
    update, dtype, points = every[pair], document["stored_dtype"], grid_points(opened)
    what = f"{pair[0]} → {pair[1]}, {opened.members} members"
    bands = "bands: 95 % bootstrap interval of the mean over members"
    control = {
        f"{first} → {last}, for comparison": found for (first, last), found in every.items() if (first, last) != pair
    }
    path = {name: opened.run.figure(f"updates_{name}") for name in ("fraction", "matrices", "overlap", "course")}

    def percent(found: Mapping[str, np.ndarray], members: Sequence[int]) -> dict[str, float]:
        return {name: float(100 * found[name][list(members)].mean()) for name in update.before}

    changed = {name: update.fractions[name]["changed_bf16"] for name in update.before}
    farthest = {
        name: x.reshape(len(x), -1).mean(axis=1) for name, x in update.masks["farthest_10_percent"].items()
    }  # fmt: skip
    swept = len(points) > 1
    panels = {
        f"changed in bfloat16 (%){f', {label}' if swept else ''}": percent(changed, members)
        for label, members in points.items()
    }
    if not swept:
        panels["among the 10 % of all parameters that moved farthest (%); chance: 10 in every matrix"] = percent(
            farthest, range(opened.members)
        )
    for label, found in control.items():
        panels[f"changed in bfloat16 (%), {label}"] = percent(
            {n: found.fractions[n]["changed_bf16"] for n in update.before}, range(opened.members)
        )

    rows = {}
    for mask, meaning in changes.MASKS.items():
        title = meaning.partition(",")[0]
        rows[title] = {}
        for group in document["groups"]:
            for kind, found in group["overlaps"][mask].items():
                if swept and kind != "all":
                    continue
                ends = [found["seen"]["jaccard"][key] for key in ("mean", "low", "high")]
                chances = {chance: found[chance]["jaccard"] for chance in overlaps.CHANCES}
                rows[title][group["label"] if swept else kind] = (found["pairs"], ends, chances)
    written = [
        update_figures.curves(
            path["fraction"], {label: update.curves["all"][members] for label, members in points.items()},
            {label: found.curves["all"] for label, found in control.items()}, dtype, f"{what}; {bands}",
            opened.caption,
        ),
        update_figures.heat_map(
            path["matrices"], panels, f"{what}; mean over members; a blank is no matrix", opened.caption
        ),
        update_figures.course(
            path["course"], during, {label: course["all"][:, members] for label, members in points.items()}, dtype,
            f"{what}, as seen at the saved checkpoints; {bands}",
            opened.caption,
        ),
    ]  # fmt: skip
    if max(len(members) for members in points.values()) > 1:
        base = "one base for all" if opened.config.pretrain.shared else "a base each"
        written.append(
            update_figures.overlaps(
                path["overlap"],
                rows,
                f"{what}, {base}; the finer the chance, the more it explains",
                opened.caption,
            )
        )
    return [png for png, _ in written]
