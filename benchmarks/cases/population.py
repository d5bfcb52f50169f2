"""Populations: one program against one run after another, memory, and scaling over devices."""

import dataclasses
import json
import os
import subprocess
import sys

import jax

from agents.runs.config import SCALES
from benchmarks import counts
from benchmarks.cases import train
from benchmarks.measure import Case, Options, Report, Result

MEMBERS = 8

UPDATES = (15, 60)
"""Updates of the two runs whose peak memory is compared."""


def run(options: Options) -> Report:
    """All of them at the `laptop` scale; memory of whole runs at a small one."""
    report, config = Report(), SCALES["laptop"]
    together = train.stage_case(
        train.members(config, MEMBERS), "rl", 1, f"PPO of {MEMBERS} members, one program"
    )  # fmt: skip
    found = report.add([together, _one_after_another()], options)
    if found:
        report.compare(f"{MEMBERS} members in one program / {MEMBERS} runs one after another", *found)
    for at_once in (1, 2, MEMBERS // len(jax.devices()) or 1):
        name = f"PPO of {MEMBERS} members, --population.at-once {at_once}"
        report.add([train.stage_case(train.members(config, MEMBERS, at_once=at_once), "rl", 1, name)], options)
    if hasattr(os, "sched_setaffinity") and jax.default_backend() == "cpu":
        _scaling(report, options)
    _memory(report, options)
    return report


def _one_after_another() -> Case:
    """The same members as so many runs of one: each may use all devices, and the compiled program is shared."""
    config = train.members(SCALES["laptop"], 1)
    first = train.stage_case(config, "rl", 1)
    stage, arguments, _ = train.ready(config, "rl", 1)

    def prepare():
        states = [train.ready(config, "rl", 1)[2] for _ in range(MEMBERS)]
        stage.program.compile(states[0], *arguments)

        def call():
            metrics = []
            for index, state in enumerate(states):
                states[index], metric = stage.program(state, *arguments)
                jax.block_until_ready(metric)
                metrics.append(metric)
            return metrics

        return call, stage.program.program

    name = f"PPO of {MEMBERS} members, one run after another"
    return dataclasses.replace(first, name=name, count=first.count * MEMBERS, prepare=prepare)


def _scaling(report: Report, options: Options) -> None:
    """Weak scaling: one member on one core, then a member on each core; each in a process bound to its cores."""
    names = {cores: f"PPO, {cores} core{'s' * (cores > 1)}, a member on each" for cores in (1, len(jax.devices()))}
    if len(names) < 2 or not options.wants(*names.values()):
        return
    found = [_worker(name, "scaling", cores, options.repeats) for cores, name in names.items()]
    report.results += found
    report.compare(f"throughput of {len(jax.devices())} cores / 1 core", found[1], found[0])


def _memory(report: Report, options: Options) -> None:
    """Peak memory of whole runs, metrics and checkpoints included, against their number of updates."""
    names = {updates: f"small run of {updates} updates" for updates in UPDATES}
    if options.wants(*names.values()):
        report.results += [_worker(name, "memory", updates) for updates, name in names.items()]


def _worker(name: str, *arguments: str | int) -> Result:
    """What `benchmarks.worker` measures in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.worker", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return Result(case=name, unit="tokens", work=counts.stage(SCALES["laptop"], "rl"), **found)
