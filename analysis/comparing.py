"""Runs beside each other: one number along training in all of them, and how it differs base by base.

    uv run -m analysis compare RUN RUN … --measure return --against kl
    uv run -m analysis compare runs/sweep/* --as-one

Nothing is measured here that `course` does not measure; what it has measured is found again.
"""

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
import xarray as xr
from rich import box
from rich.console import Console, Group
from rich.table import Table

from agents import runs
from agents.runs import Run, reporting
from agents.runs import config as configs
from analysis import estimates, measure, transitions
from analysis.measures.course import AXES, FOLLOWED, chosen, drawn, passed, sources, stretch
from analysis.output import Output
from ground import numbers, statistics
from ground.estimates import Estimate
from ground.files import RunError
from ground.terminal import ConfigError

_ASIDE = ("seed", "evaluation_episodes", *(f"population.{x}" for x in ("seeds", "at_once", "microbatch")))
"""What members of one population may differ in, or what changes no member."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Runs beside each other: one number along training, and how it differs base by base from the first run."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of finished runs; the others are compared with the first."""
    measure: str = "return"
    """Which number of `course`: return, success, kl, entropy, …; a wrong one lists them."""
    against: Literal["update", "tokens", "kl"] = "update"
    """What it is drawn against; differences are also taken where all have come equally far in it."""
    as_one: bool = False
    """The runs are one population, such as jobs of a sweep: named by the options in which they differ, and joined
    where those are their seeds alone."""
    episodes: int = 1024
    """Behind returns, and up to 512 of them behind KL and entropy; a multiple of 64."""
    samples: int = 64
    """Attempts at each maze, k of pass@k."""
    mazes: int = 128
    """That are attempted."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


@dataclasses.dataclass(frozen=True)
class Difference:
    """What sets an arm apart from the first one, in one number at one place."""

    arm: str
    place: str
    """Such as a channel; empty where there is but one."""
    end: Estimate
    """The number itself, at the end of the arm's training."""
    less: Estimate
    """The arm less the first one at the end of both; of nothing for the first."""
    equally_far: Estimate
    """The same at `at`; of nothing for the first."""
    at: float
    """The furthest that every member of both has come, in updates, tokens or nats."""
    pairs: int
    """Bases that both have; 0 where they are not the same ones, and the difference is that of two samples."""


_NOTHING = Estimate.of(())


def measured(
    run: Run,
    name: str,
    against: str = "update",
    tell: Callable[[str], None] = lambda what: None,
    *,
    episodes: int = 1024,
    samples: int = 64,
    mazes: int = 128,
) -> xr.Dataset:
    """One number of a run at every checkpoint of its last stage, and what it is drawn against.

    Raises:
        RunError: the run has not finished that stage.
        ConfigError: there is no such number of its world.
    """
    steps = stretch(run)
    if steps[-1] != measure.ends(run)[-1]:
        raise RunError(f"{run.path}: not finished; go on with uv run train.py --resume {run.path}")
    told, known = xr.Dataset(), list[str]()
    for measurement, options, names in sources(run, episodes, samples, mazes):
        wanted = {name, *(["kl"] if against == "kl" else [])} & set(names)
        known += [one for one in names if one != "success" or run.world.has_goal]
        if wanted:
            part = chosen(measurement(run, steps, tell, **options), wanted, samples)
            told = told.assign(dict(part.data_vars))
    if name not in told:
        raise ConfigError(f"--measure={name}: {run.world.name} has no such number; choose one of {', '.join(known)}")
    if "kl" in told and against == "kl":
        told["kl"].attrs["table"] = 0
    for axis, values in zip(("updates", "tokens"), passed(run, steps), strict=True):
        everyone = np.repeat(values[:, None], len(run.kept), axis=1)
        told[axis] = (("checkpoint", "member"), everyone, {"long_name": axis, "units": "", "table": 0})
    return told


def named(opened: Sequence[Run]) -> list[str]:
    """What each run is called where they are one population: the options in which they differ.

    What a scale, a world or an algorithm brings along is not named beside it. Runs that differ by their seeds alone
    have one name, which is empty where all do.
    """
    swept = [{"population.sweep": " and ".join(run.config.members[0].values) or "none"} for run in opened]
    documents = [configs.by_path(configs.to_dict(run.config)) | of for run, of in zip(opened, swept, strict=True)]
    starts = [
        configs.by_path(configs.to_dict(configs.start(run.config.scale, run.config.world.name, run.config.algorithm)))
        for run in opened
    ]
    paths = ["scale", "world.name", "algorithm"]
    for document, start in zip(documents, starts, strict=True):
        paths += [path for path, x in document.items() if start.get(path) != x and path not in (*_ASIDE, *paths)]
    differ = [path for path in paths if len({repr(one.get(path)) for one in documents}) > 1]
    return [", ".join(f"{path}={_shown(document.get(path))}" for path in differ) for document in documents]


def joined(names: Sequence[str], opened: Sequence[Run], datasets: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """Runs of one name as one population, in which those that are twins at a checkpoint are so across runs, too.

    Raises:
        RunError: two of them have a member in common.
    """
    arms: dict[str, xr.Dataset] = {}
    for name in dict.fromkeys(names):
        mine = [place for place, one in enumerate(names) if one == name]
        seeds: dict[tuple, Path] = {}
        for run in (opened[place] for place in mine):
            for member in run.config.members:
                who = (member.seed, member.label)
                if who in seeds:
                    raise RunError(
                        f"{seeds[who]} and {run.path}: both have a member of seed {member.seed}; leave one out"
                    )
                seeds[who] = run.path
        parts: list[xr.Dataset] = []
        members, known = 0, dict[Hashable, int]()
        for run, dataset in ((opened[place], datasets[place]) for place in mine):
            everyone = [measure.who(run, str(step)) for step in dataset["checkpoint"].values]
            unit = [[known.setdefault(one, len(known)) for one in of_step] for of_step in everyone]
            moved = {"member": dataset["member"] + members, "unit": (("checkpoint", "member"), unit)}
            parts.append(dataset.assign_coords(moved))
            members = int(parts[-1]["member"].max()) + 1
        arms[name or "all"] = xr.concat(
            parts, "member", data_vars="minimal", coords="minimal", compat="override", join="inner",
            combine_attrs="override",
        )  # fmt: skip
    return arms


def differences(
    arms: Mapping[str, xr.Dataset], against: str, same_bases: Callable[[str, str], bool] = lambda one, other: True
) -> list[Difference]:
    """Every arm and point of the grid, and how it differs from the first of them.

    Args:
        arms: from `measured` or `joined`.
        against: one of `AXES`.
        same_bases: whether two arms, by name, pretrain alike but for what is swept, so that bases of equal seeds and
            equal swept values are equal.
    """
    axis, _, _ = AXES[against]
    told = list[Difference]()
    first_arm, first, references = "", xr.Dataset(), dict[str, xr.DataArray]()
    for arm, one in arms.items():
        for point, dataset in estimates.columns({arm: one}, followed=True).items():
            words = [arm if len(arms) > 1 or point == "mean" else "", point if point != "mean" else ""]
            label = ", ".join(filter(None, words))
            places = {", ".join(words): array for words, array in estimates.places(dataset, FOLLOWED)}
            for place, array in places.items():
                end, reference = array.isel(checkpoint=-1), references.get(place)
                if reference is None:
                    told.append(Difference(label, place, estimates.of(end), _NOTHING, _NOTHING, np.nan, 0))
                    continue
                at = min(float(part[axis].max("checkpoint").min()) for part in (dataset, first))
                reached = [transitions.at(part, of[axis], at) for part, of in ((array, dataset), (reference, first))]
                swept, first_swept = (part["pretraining"].values.tolist()[0] for part in (dataset, first))
                same = same_bases(arm, first_arm) and swept == first_swept
                less, pairs = _less(end, reference.isel(checkpoint=-1), same)
                equally_far, _ = _less(reached[0], reached[1], same)
                told.append(Difference(label, place, estimates.of(end), less, equally_far, at, pairs))
            if not references:
                first_arm, first, references = arm, dataset, places
    return told


def _less(one: xr.DataArray, other: xr.DataArray, same_bases: bool) -> tuple[Estimate, int]:
    """One mean less another, and the bases that both have: paired over them, or as two samples where there are none."""
    bases = [("member", array["base"].values) for array in (one, other)]
    bare = [array.reset_coords(drop=True) for array in (one, other)]
    means = [estimates.by_base(array.assign_coords(base=base)) for array, base in zip(bare, bases, strict=True)]
    shared = np.intersect1d(means[0]["member"], means[1]["member"]) if same_bases else []
    if len(shared):
        left, right = (mean.sel(member=shared) for mean in means)
        return Estimate.of(left.values - right.values), len(shared)
    a, b = (statistics.mean_of(mean.values) for mean in means)
    with np.errstate(invalid="ignore", divide="ignore"):  # Welch and Satterthwaite
        error = np.hypot(a.error, b.error)
        degrees = error**4 / (a.error**4 / a.degrees + b.error**4 / b.degrees)
    degrees = np.where(error == 0, np.minimum(a.degrees, b.degrees), degrees)  # any: the interval has no width
    difference = statistics.Mean(a.mean - b.mean, error, degrees, 0.0 * error, np.minimum(a.units, b.units))
    low, high = difference.interval()
    return Estimate(float(difference.mean), float(low), float(high), int(difference.units)), 0


def table(told: Sequence[Difference], against: str, what: str) -> Group:
    """What a person reads at the terminal: the arms at their ends, and what they differ where all have come as far."""
    _, factor, words = AXES[against]
    places = any(one.place for one in told)

    def begun(title: str, *columns: str) -> Table:
        shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for column in ("", *(["place"] if places else [])):
            shown.add_column(column, overflow="fold")
        for column in columns:
            shown.add_column(column, justify="right", no_wrap=True)
        return shown

    ends = begun(what, "at the end", "less the first", "paired over")
    far = begun(f"less the first at equal {words}", "less the first", "at")
    for one in told:
        name = [one.arm, *([one.place] if places else [])]
        paired = f"{one.pairs} base{'s' * (one.pairs != 1)}" if one.pairs else "not paired"
        first = one.arm == told[0].arm
        ends.add_row(*name, _text(one.end), *(("–", "–") if first else (_text(one.less), paired)))
        if not first:
            far.add_row(*name, _text(one.equally_far), numbers.shown(factor * one.at))
    return Group(ends, *([far] if far.row_count else []))


def _text(estimate: Estimate) -> str:
    return numbers.shown(estimate.mean, estimate.low, estimate.high)


def run(command: Command, console: Console) -> None:
    """Measure, print, draw, write.

    Raises:
        RunError, ConfigError: in one line what is wrong.
    """
    if not command.runs:
        raise ConfigError("which runs? give their directories: uv run -m analysis compare RUN RUN")
    command.output.check()
    if command.measure == command.against == "kl":
        raise ConfigError("--against=kl: KL against itself is a straight line; give another --measure")
    opened = [runs.open(path) for path in command.runs]
    names = named(opened) if command.as_one else [run.path.name for run in opened]
    if not command.as_one and len(set(names)) < len(names):
        raise ConfigError("two of the runs have the same name; rename one of their directories, or add --as-one")
    sizes = {"episodes": command.episodes, "samples": command.samples, "mazes": command.mazes}
    with console.status("reading") as status:
        datasets = [measured(run, command.measure, command.against, status.update, **sizes) for run in opened]
    arms = joined(names, opened, datasets)
    pretraining = {name or "all": run.config.pretraining for name, run in zip(names, opened, strict=True)}
    told = differences(arms, command.against, lambda one, other: pretraining[one] == pretraining[other])
    what = estimates.described(next(iter(arms.values()))[command.measure])
    console.print(table(told, command.against, what))
    console.print(
        "mean and 95 % interval; differences base by base where both start from the same", style="dim", highlight=False
    )
    caption = "; ".join(run.caption for run in opened)
    document = {"measure": command.measure, "against": command.against}
    written = command.output.write(
        lambda: document | {"differences": [dataclasses.asdict(one) for one in told]},
        lambda: drawn(arms, command.against),
        lambda: opened[0].figure(f"compare-{command.measure}-{command.against}"),
        f"{what[:1].upper()}{what[1:]}",
        caption if len(opened) <= 4 else f"{len(opened)} runs, from {opened[0].path.name} on",
    )
    reporting.written(console, written, caption)


def _shown(value: Any) -> str:
    text = numbers.told_apart(value) if isinstance(value, float) else str(value)
    return re.sub(r"\s+", " ", text)
