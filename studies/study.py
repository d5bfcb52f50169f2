"""What a study is, and how it is run: train or find its populations, measure, judge, draw, write."""

import ast
import dataclasses
import datetime
import functools
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from rich.console import Console

from agents import runs
from agents.runs import Run, reporting, sessions, watching
from agents.runs import config as configs
from agents.runs.config import Config
from analysis import estimates, measure
from analysis.estimates import by_base as by_base
from analysis.figures import panels
from analysis.figures.panels import Panel
from ground import files, git, numbers
from ground.estimates import Estimate
from ground.terminal import ConfigError
from studies import populations, questions, store
from studies.populations import SCALES as SCALES
from studies.populations import Scale
from studies.questions import Question
from studies.questions import ask as ask
from studies.store import Store

SCHEMA = 2
"""Version of `verdict.json`."""
VERDICT = "verdict.json"
TAKEAWAYS = Path(__file__).with_name("takeaways.toml")
"""What was learnt, in words: by study and `variant`, with the verdict for which it was written."""

Options = Mapping[str, Mapping[str, Any]]
"""Of measurements, by their names."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study has measured."""

    estimates: dict[str, Estimate]
    """By name; criteria and controls refer to these names."""
    panels: list[Panel]
    """Of its figure."""
    meaning: str
    """One line that says how to read the figure."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A number of a paper beside ours."""

    what: str
    paper: str
    """The paper's number, with its place."""
    ours: str
    """Name of an estimate."""
    differs: str
    """What differs: sizes, rates, steps, temperature."""


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
    arms: Mapping[str, str]
    """What it calls its arms → populations of the catalogue."""
    options: Mapping[Scale, Options]
    """Of its measurements, at each scale."""
    measure: Callable[[Mapping[str, Run], Options], Results]
    """From finished runs by arm to estimates and panels."""
    skip: Mapping[Scale, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Arms that a scale leaves out."""
    compared: tuple[Comparison, ...] = ()

    def configs(self, scale: Scale, seed: int = 0) -> dict[str, Config]:
        """What its arms train."""
        left_out = self.skip.get(scale, ())
        names = {arm: name for arm, name in self.arms.items() if arm not in left_out}
        return {arm: populations.of(name).config(scale, seed) for arm, name in names.items()}

    def titles(self) -> dict[str, str]:
        """What figures call its arms."""
        return {arm: populations.of(name).title for arm, name in self.arms.items()}


def of(array: xr.DataArray, meaning: str = "", control: str = "") -> Estimate:
    """The mean over bases of an array over members, or over members and mazes, with its interval.

    Args:
        array: float[member] or float[member, maze]; see `by_base`, which makes arms of any sizes and sweeps pair.
        meaning: what it is, with its unit, where its name in the study does not say it.
        control: name of the estimate to read beside it.
    """
    return estimates.of(by_base(array), meaning, control, units="base")


def minutes(arms: Iterable[Config], scale: Scale) -> float:
    """A rough forecast of training on this machine, or for `paper` on one GPU; what several arms share counts once."""
    needed: dict[str, Config] = {}
    for config in arms:
        alone = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, updates=0))
        needed[repr(alone)] = alone
        needed[repr((config.pretraining, config.bases))] = store.only_bases(config)
    devices, platform = len(jax.devices()), jax.default_backend()
    if scale == "paper" and platform == "cpu":
        devices, platform = 1, "gpu"
    return sum(reporting.expected_minutes(config, devices, platform) for config in needed.values())


def variant(scale: Scale, seed: int = 0) -> str:
    """What the results at a scale are called, and their folder; those of other seeds than 0 stand beside them."""
    return f"{scale}-seed-{seed}" if seed else scale


def run(
    study: Study, scale: Scale, out: Path, console: Console, seed: int = 0, track: watching.Tool | None = None
) -> dict[str, Any]:
    """Run a study to its verdict; what was done before is found again.

    Args:
        study: which.
        scale: how large.
        out: folder of all studies; runs lie in its `runs`.
        console: where to report.
        seed: of the first member and base of every arm.
        track: a tool that shows what is trained, and the verdict.

    Returns:
        What `verdict.json` holds.

    Raises:
        RunError, ConfigError, Diverged, Interrupted: as `train.train`; what is finished stays.
    """
    started = time.perf_counter()
    watching.check(track)
    takeaways()  # refused before anything is trained
    shelf = Store(out / "runs", console, figures=scale != "smoke", track=track)
    trained: dict[str, Run] = {}
    foreign: list[str] = []
    arms = study.configs(scale, seed)
    for number, (arm, config) in enumerate(arms.items(), start=1):
        known = " (found)" if shelf.finished(config) else ""
        console.print(f"{study.name}, arm {number} of {len(arms)}: {arm}{known}", highlight=False, markup=False)
        trained[arm] = shelf.run(config)
        if changes := sessions.foreign(trained[arm].path):
            foreign.append(f"{trained[arm].path}: not trained as now: {', '.join(changes)}")
        if lost := trained[arm].diverged():
            # Arms are compared base by base.
            who = "; ".join(f"{trained[arm].name_of(member)} diverged in {where}" for member, where in lost.items())
            raise runs.RunError(
                f"{trained[arm].path}: {who}; a study needs every member of every arm: lower the learning rate in "
                "studies/populations.py"
            )
    with console.status("measuring"), measure.hearing(foreign.append):
        results = study.measure(trained, study.options[scale])
    foreign = list(dict.fromkeys(foreign))
    for line in foreign:
        console.print(line, style="yellow", highlight=False, markup=False, emoji=False, soft_wrap=True)
    document = verdict(study, results, scale, seed)
    folder = out / study.name / variant(scale, seed)
    with files.reporting(folder, "make"):
        folder.mkdir(parents=True, exist_ok=True)
    identity = runs.config_hash({arm: configs.to_dict(config) for arm, config in arms.items()})
    headline = f"{study.title}: {document['words']}"
    footer = f"{study.name}, scale {scale}, {document['bases']} bases, configs {identity}"
    figure = panels.draw(results.panels, width=11.0, title=headline, meaning=results.meaning, footer=footer)
    paths = panels.save(figure, folder / study.name, results.panels, headline, results.meaning, footer)
    document |= {
        "figure": f"{study.name}.png",
        "files": [path.name for path in paths],
        "runs": {arm: _described(one, out) for arm, one in trained.items()},
        "config_hash": identity,
        "command": f"uv run -m studies run {study.name} --scale {scale}" + (f" --seed {seed}" if seed else ""),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "seconds_of_runs": sum(one.summary()["seconds"]["total"] for one in trained.values()),
        **_judged([line.replace(f"{out}/", "") for line in foreign]),
    }
    files.write_json(folder / VERDICT, document)
    with watching.watch(track, folder, {"study": study.name, "scale": scale}, name=f"{study.name}-{scale}") as tracker:
        tracker.keep("verdict", paths, files.plain(document, VERDICT))
    return document


def verdict(study: Study, results: Results, scale: Scale, seed: int = 0) -> dict[str, Any]:
    """What follows from the estimates, and what was asked, as plain values."""
    judged = questions.judge(study.questions, results.estimates)
    return {
        "schema": SCHEMA,
        "study": study.name,
        **{name: getattr(study, name) for name in ("title", "claim", "source", "method", "limits")},
        "scale": scale,
        "seed": seed,
        "bases": max((estimate.members for estimate in results.estimates.values()), default=0),
        **judged,
        "takeaway": takeaway(study, variant(scale, seed), judged["verdict"]),
        "criteria": stated(Path(__file__).with_name(f"{study.name}.py")),
        "estimates": {name: _plain(name, estimate) for name, estimate in results.estimates.items()},
        "compared": [dataclasses.asdict(comparison) for comparison in study.compared],
        "meaning": results.meaning,
        "alt": alternative(results),
    }


def takeaways() -> dict[str, dict[str, dict[str, str]]]:
    """What was learnt, in words: by study and variant, `verdict` and `text`.

    Raises:
        ConfigError: the file is damaged or lacks one of them; one line says what is wrong.
    """
    complaint, remedy = f"{TAKEAWAYS}: not as it should be", "mend it, [study.variant] with both texts"
    with files.shaped(complaint, remedy, ConfigError, also=(OSError,)):
        written = tomllib.loads(TAKEAWAYS.read_text(encoding="utf-8"))
        for name, variants in written.items():
            for variant, told in variants.items():
                if not isinstance(told["verdict"], str) or not isinstance(told["text"], str):
                    raise TypeError(f"{name}.{variant}: verdict and text must be text")
    return written


def takeaway(study: Study, variant: str, answer: str) -> str | None:
    """The sentence of what was learnt, if one was written for this verdict at this scale and seed."""
    written = takeaways().get(study.name, {}).get(variant, {})
    return written.get("text") if written.get("verdict") == answer else None


def stated(file: Path) -> dict[str, Any]:
    """When the criteria in a study's file were last changed: the commit, its date, and whether the file differs now.

    Commits that changed nothing but comments, layout and `limits`, which may be learnt later, do not count.
    """
    ask_git = functools.partial(git.answer, file.parent)

    def asked(commit: str) -> str:
        """Without its limits; empty where git does not show it or it is no Python."""
        try:
            tree = ast.parse(text := ask_git("show", f"{commit}:./{file.name}") or "")
        except SyntaxError:
            return ""
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "limits"]
        return ast.dump(tree) if text else ""

    history = [line.split(" ") for line in (ask_git("log", "--format=%H %cI", "--", file.name) or "").splitlines()]
    commit, date = history[0] if history else ("", "")
    now = asked(commit) if commit else ""
    for earlier, then in history[1:]:
        if not now or asked(earlier) != now:
            break
        commit, date = earlier, then
    dirty = bool(ask_git("status", "--short", "--", file.name))
    return {"file": f"studies/{file.name}", "commit": commit, "date": date, "dirty": dirty}


def alternative(results: Results) -> str:
    """What the figure shows, for those who do not see it."""
    shown = [f"{name}: {numbers.shown(estimate.mean)}" for name, estimate in results.estimates.items()]
    words = "; ".join(panel.words for panel in results.panels)
    return f"{len(results.panels)} panels: {words}. {'; '.join(shown[:12])}."


def _judged(foreign: list[str]) -> dict[str, Any]:
    """Provenance of the process that judges; its commit is the verdict's only if it, and as it is, made everything."""
    judge = runs.provenance()
    return judge | {"git": None if foreign else judge["git"], "judge": judge["git"], "foreign": foreign}


def _described(run: Run, out: Path) -> dict[str, Any]:
    gits = [session.get("git") for session in run.sessions()]
    return {
        "path": str(run.path.relative_to(out)),
        "config_hash": run.config_hash,
        "members": run.members,
        "git": gits[-1],
        "commits": list(dict.fromkeys(each["commit"] for each in gits if each and each["commit"])),
        "created": files.read_json(run.path / "config.json").get("created"),
    }


def _plain(name: str, estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON values."""
    values = dataclasses.asdict(estimate) | {"meaning": estimate.meaning or name}
    low, high = values.pop("low"), values.pop("high")
    return values | {"interval": [low, high] if np.isfinite([low, high]).all() else None}
