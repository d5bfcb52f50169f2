"""What a study is, and how it is run: train or find its runs, measure, draw, judge, write."""

import csv
import dataclasses
import datetime
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from rich.console import Console

from agents import runs
from agents.runs import config as configs
from agents.runs import reporting
from agents.runs.config import Config
from ground import files
from studies import claims, store
from studies.claims import Estimate, Question
from studies.store import Store

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
SCHEMA = 1
"""Version of `verdict.json`."""
VERDICT = "verdict.json"

Table = Mapping[str, Sequence[Any]]
"""Column name → values."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a study has measured."""

    estimates: Mapping[str, Estimate]
    """By name; criteria and controls refer to these names."""
    tables: Mapping[str, Table]
    """The data behind the figure, by file name without an ending; written as CSV."""
    alt: str
    """What the figure shows, for those who do not see it."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A claim from the literature and how it is tried here."""

    name: str
    """As on the command line."""
    title: str
    claim: str
    """In one sentence."""
    source: str
    """Papers, by arXiv number."""
    method: str
    """What is trained and measured."""
    limits: tuple[str, ...]
    """What it cannot show, a sentence each."""
    questions: tuple[Question, ...]
    arms: Callable[[Scale], dict[str, Config]]
    """The runs it needs at a scale, by the name that its report calls them."""
    measure: Callable[[Store, Mapping[str, runs.Run], Scale], Findings]
    """From finished runs to numbers."""
    draw: Callable[[Findings, str, Path, str], list[Path]]
    """Findings, headline, path without an ending, small print → the figure's files, the PNG first."""


def minutes(study: Study, scale: Scale) -> float:
    """A rough forecast of training on this machine, or for `paper` on one GPU; what several arms share counts once."""
    needed: dict[str, Config] = {}
    for config in study.arms(scale).values():
        alone = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, updates=0))
        for part in (alone, store.base_of(config)):
            needed[runs.config_hash(configs.to_dict(part))] = part
    devices, platform = len(jax.devices()), jax.default_backend()
    if scale == "paper" and platform == "cpu":
        devices, platform = 1, "gpu"
    return sum(reporting.expected_minutes(config, devices, platform) for config in needed.values())


def directory(out: Path, study: Study, scale: Scale) -> Path:
    """Where the results of a study lie."""
    return out / study.name / scale


def run(study: Study, scale: Scale, out: Path, console: Console) -> dict[str, Any]:
    """Run a study to its verdict; what was done before is found again.

    Args:
        study: which.
        scale: how large.
        out: folder of all studies; runs lie in its `runs`.
        console: where to report.

    Returns:
        What `verdict.json` holds.

    Raises:
        RunError, ConfigError, Diverged, Interrupted: as `train.train`; what is finished stays.
    """
    started = time.perf_counter()
    shelf = Store(out / "runs", console, figures=scale != "smoke")
    arms = study.arms(scale)
    made = {}
    for number, (name, config) in enumerate(arms.items(), start=1):
        known = " (found)" if shelf.finished(config) else ""
        console.print(f"[bold]{study.name}[/], arm {number} of {len(arms)}: {name}{known}", highlight=False)
        made[name] = shelf.run(config)
        if lost := made[name].summary().get("diverged"):
            # Arms are compared member by member.
            raise runs.RunError(
                f"{made[name].path}: {'; '.join(f'{who} diverged in {where}' for who, where in lost.items())}; a study "
                "needs every member of every arm: lower the learning rate in the study's file"
            )
    findings = study.measure(shelf, made, scale)
    judged = claims.judge(study.questions, findings.estimates)

    folder = directory(out, study, scale)
    with files.reporting(folder, "make"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = runs.config_hash({name: configs.to_dict(config) for name, config in arms.items()})
    members = max(run.members for run in made.values())
    footer = f"{study.name}, scale {scale}, {members} members, configs {identity}"
    figures = study.draw(findings, f"{study.title}: {judged['verdict']}", folder / study.name, footer)
    for name, table in findings.tables.items():
        files.write(folder / "data" / f"{name}.csv", _csv(table).encode())
    document = {
        "schema": SCHEMA,
        "study": study.name,
        "title": study.title,
        "claim": study.claim,
        "source": study.source,
        "method": study.method,
        "scale": scale,
        "members": members,
        **judged,
        "estimates": {name: _plain(each) for name, each in findings.estimates.items()},
        "limits": study.limits,
        "figure": figures[0].name,
        "alt": findings.alt,
        "data": [f"data/{name}.csv" for name in findings.tables],
        "runs": {
            name: {
                "path": str(each.path.relative_to(out)),
                "config_hash": each.config_hash,
                "members": each.members,
                "git": files.read_json(each.path / "config.json").get("git"),
            }
            for name, each in made.items()
        },
        "config_hash": identity,
        "command": f"uv run -m studies run {study.name} --scale {scale}",
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "seconds_of_runs": sum(each.summary()["seconds"]["total"] for each in made.values()),
        **runs.provenance(),
    }
    files.write_json(folder / VERDICT, document)
    return document


def _plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON values."""
    found = dataclasses.asdict(estimate)
    low, high = found.pop("low"), found.pop("high")
    return found | {"interval": [low, high] if np.isfinite([low, high]).all() else None}


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([f"{value:.7g}" if isinstance(value, (float, np.floating)) else value for value in row])
    return text.getvalue()
