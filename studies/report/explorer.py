"""The course explorer: what a study's runs have measured along training, as the script that a page draws it from.

Nothing is measured here. Whatever a run keeps of three checkpoints of its last stage or more becomes an entry of the
menu: each number of a measurement, and each of its places, such as a channel or a persona.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from agents import runs
from agents.runs import Run
from analysis import estimates
from analysis.measure import REGISTRY
from analysis.measures.course import passed, stretch
from ground import arrays, statistics
from ground.files import RunError
from ground.terminal import ConfigError

SCHEMA = 1
"""Version of the script; `explorer.js` and this file change together."""
VARIABLE = "emojimazeCourses"
"""The global object that the script assigns."""
FEWEST = 3
"""Checkpoints of the last stage below which there is no course."""
DIGITS = 5
"""Significant ones of every number on the page."""
_KL = ("course", "divergence", "ledger")
"""Measurements whose `kl` is KL from the base, nats per episode, over what other axes it has."""
_SHARES = ("share", "share of mazes", "share of the parameters")
"""Units of numbers that lie between 0 and 1, and so do the ends of their intervals."""
_FIRST = ("success", "return", "kl")
"""What is shown first, if it is there."""

Kept = Mapping[tuple[str, str], xr.Dataset]
"""By measurement and its options as JSON: float[checkpoint, member, ...] of the last stage."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A number of the menu."""

    group: str
    """Measurement, and the options that tell it from others of the same name."""
    label: str
    """What it is, and where."""
    name: str
    """Of its variable."""
    unit: str


def gather(paths: Mapping[str, Path]) -> tuple[dict[str, Any] | None, list[str]]:
    """The courses of some runs as plain values, and a line for what could not be read.

    Args:
        paths: of finished runs, by the name of their arm.

    Returns:
        `arms` are the lines' names, an arm at a point of its grid each; `courses` are positions along training, which
        several lines share; `measures` are entries of the menu with their lines, each a tuple of arm, course, bases,
        means, lower and upper ends, null where fewer than four bases have no interval. None if nothing is kept.
    """
    notes: list[str] = []
    opened: dict[str, Run] = {}
    found: dict[str, dict[tuple[str, str, int, str], dict[str, xr.Dataset]]] = {}
    for arm, path in paths.items():
        try:
            run = runs.open(path)
            found[arm] = _files(run, notes)
            opened[arm] = run
        except (RunError, ConfigError) as error:
            notes.append(f"{arm}: its course cannot be read. {str(error).replace(str(path), path.name)}")
    chosen = _chosen(found)
    kept = {arm: _joined(opened[arm], sets, chosen) for arm, sets in found.items()}
    return _document(opened, kept), notes


def nats(run: Run) -> dict[str, np.ndarray]:
    """KL from the base that the run keeps, float[member] of each checkpoint of its last stage, in their order.

    Empty where fewer than `FEWEST` checkpoints have it.
    """
    try:
        sets = _files(run, [])
    except (RunError, ConfigError):
        return {}
    kept = _joined(run, sets, _chosen({"run": sets}))
    for (name, _), dataset in kept.items():
        if (whole := _kl(name, dataset, {})) is not None:
            values = whole.transpose("checkpoint", "member").values
            return dict(zip(map(str, whole["checkpoint"].values), values, strict=True))
    return {}


def _files(run: Run, notes: list[str]) -> dict[tuple[str, str, int, str], dict[str, xr.Dataset]]:
    """What a run keeps of its last stage: by measurement, options, version and code, then by checkpoint."""
    names, sets = stretch(run), dict[tuple[str, str, int, str], dict[str, xr.Dataset]]()
    for path in sorted((run.path / "analysis").glob("*.nc")):
        try:
            dataset = arrays.read(path, "delete it to measure again")
            told = json.loads(dataset.attrs["identity"])
            key = (told["measurement"], json.dumps(told["options"], sort_keys=True), told["version"], told["code"])
            own = told["config"] == run.config_hash and told["members"] == run.kept.tolist()
        except (RunError, KeyError, TypeError, ValueError) as error:
            notes.append(f"{run.path.name}: {path.name} is left out. {str(error).replace(str(path), path.name)}")
            continue
        if own and told["checkpoint"] in names:
            sets.setdefault(key, {})[told["checkpoint"]] = dataset
    return {key: datasets for key, datasets in sets.items() if len(datasets) >= FEWEST}


def _chosen(found: Mapping[str, Mapping[tuple[str, str, int, str], Any]]) -> dict[tuple[str, str], tuple[int, str]]:
    """Of each measurement and options the version and code that counts: today's, else what most arms have."""
    counts: dict[tuple[str, str], dict[tuple[int, str], int]] = {}
    for name, options, version, code in itertools.chain.from_iterable(found.values()):
        of = counts.setdefault((name, options), {})
        of[version, code] = of.get((version, code), 0) + 1
    chosen = {}
    for key, versions in counts.items():
        now = REGISTRY.get(key[0])
        today = (now.version, now.code) if now else None
        chosen[key] = today if today in versions else max(versions, key=lambda one: (versions[one], one))
    return chosen


def _joined(
    run: Run,
    sets: Mapping[tuple[str, str, int, str], Mapping[str, xr.Dataset]],
    chosen: Mapping[tuple[str, str], tuple[int, str]],
) -> Kept:
    """Each measurement with its checkpoints in their order."""
    kept = {}
    for (name, options, version, code), datasets in sets.items():
        if chosen[name, options] == (version, code):
            parts = [datasets[checkpoint] for checkpoint in stretch(run) if checkpoint in datasets]
            kept[name, options] = xr.concat(
                parts, "checkpoint", data_vars="all", coords="minimal", compat="override", join="exact",
                combine_attrs="drop_conflicts",
            )  # fmt: skip
    return kept


def _document(opened: Mapping[str, Run], kept: Mapping[str, Kept]) -> dict[str, Any] | None:
    titles = _titles({key for sets in kept.values() for key in sets})
    arms: dict[str, int] = {}
    courses: list[dict[str, list[float | None]]] = []
    lines: dict[Entry, list[list[Any]]] = {}
    for arm, sets in kept.items():
        for key, dataset in sets.items():
            positions = _positions(opened[arm], dataset, _kl(key[0], dataset, sets))
            for point, part in estimates.columns({arm: dataset}, followed=True).items():
                label = arm if point == "mean" else f"{arm}, {point}"
                bases = part["base"].values
                at = arms.setdefault(label, len(arms))
                courses.append(_course(positions, np.isin(dataset["member"].values, part["member"].values)))
                for entry, values in _entries(titles[key], part):
                    if line := _line(values, bases, entry.unit):
                        lines.setdefault(entry, []).append([at, len(courses) - 1, *line])
    if not lines:
        return None
    first = min(lines, key=lambda entry: _rank(entry, lines[entry]))
    return {
        "schema": SCHEMA,
        "arms": list(arms),
        "courses": courses,
        "first": list(lines).index(first),
        "measures": [
            {"group": entry.group, "label": entry.label, "unit": entry.unit, "lines": of} for entry, of in lines.items()
        ],
    }


def _rank(entry: Entry, lines: list[list[Any]]) -> tuple[int, bool]:
    """How well it serves as what is shown first: known names before others, and what training moves before the rest."""
    still = all(len(set(means)) == 1 for _, _, _, means, _, _ in lines)
    return (_FIRST.index(entry.name) if entry.name in _FIRST and not still else len(_FIRST), still)


def _titles(keys: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What the menu calls measurements; options stand beside the name where it alone is not enough."""
    titles = {}
    for name, options in sorted(keys):
        others = [json.loads(text) for of, text in keys if of == name and text != options]
        own = json.loads(options)
        apart = {key: value for key, value in own.items() if any(other.get(key) != value for other in others)}
        titles[name, options] = ", ".join([name, *(f"{key} {value}" for key, value in apart.items())])
    return titles


def _kl(name: str, dataset: xr.Dataset, sets: Kept) -> xr.DataArray | None:
    """KL from the base at each checkpoint, float[checkpoint, member]: of the same measurement, or of another."""
    own = [dataset] if name in _KL else []
    others = [sets[key] for source in _KL for key in sets if key[0] == source]
    for source in own + others:
        if "kl" in source:
            whole = source["kl"]
            return whole.sum([dim for dim in whole.dims if dim not in ("checkpoint", "member")], skipna=False)
    return None


def _positions(run: Run, dataset: xr.Dataset, kl: xr.DataArray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Updates and tokens of the last stage, float[checkpoint] each, and KL, float[checkpoint, member]."""
    names = dataset["checkpoint"].values.tolist()
    updates, tokens = passed(run, names)
    if kl is None:
        return updates, tokens, np.full((len(names), dataset.sizes["member"]), np.nan)
    return updates, tokens, kl.reindex(checkpoint=names).transpose("checkpoint", "member").values


def _course(positions: tuple[np.ndarray, np.ndarray, np.ndarray], members: np.ndarray) -> dict[str, Any]:
    updates, tokens, nats = positions
    return {"update": _short(updates), "tokens": _short(tokens / 1e6), "kl": _short(nats[:, members].mean(axis=1))}


def _entries(group: str, dataset: xr.Dataset) -> Iterator[tuple[Entry, np.ndarray]]:
    """Every number that tables show, float[checkpoint, member] of each of its places."""
    for words, array in estimates.places(dataset, ("checkpoint", "member")):
        if array.dtype.kind in "fiub":
            said, unit = array.attrs.get("long_name", array.name), array.attrs.get("units", "")
            values = array.transpose("checkpoint", "member").values.astype(np.float64)
            yield Entry(group, ", ".join([str(said), *words]), str(array.name), str(unit)), values


def _line(values: np.ndarray, bases: np.ndarray, unit: str) -> list[Any] | None:
    """Bases, means and ends of the 95 % intervals over bases at every checkpoint; None without three numbers.

    Intervals of shares end at 0 and 1. Differences of shares, which may be negative, keep theirs.
    """
    mean = statistics.mean_of(values, axis=1, units=bases)
    if np.isfinite(mean.mean).sum() < FEWEST:
        return None
    interval = mean.interval()
    if unit in _SHARES and np.nanmin(values) >= 0 and np.nanmax(values) <= 1:
        interval = np.clip(interval, 0, 1)
    return [int(mean.units.max()), _short(mean.mean), *map(_short, interval)]


def _short(values: np.ndarray) -> list[float | int | None]:
    """Rounded to `DIGITS`."""
    return plain([float(f"{value:.{DIGITS}g}") for value in values])


def plain(values: Iterable[float]) -> list[float | int | None]:
    """Numbers as scripts have them: whole ones as such, null for what is not finite."""
    return [(int(x) if x == int(x) else float(x)) if math.isfinite(x) else None for x in values]


def script(document: Mapping[str, Any]) -> bytes:
    """The script that assigns the courses of a study."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return f"window.{VARIABLE} = {text};\n".encode("ascii")
