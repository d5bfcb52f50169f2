"""Populations: one program against one run after another, members at once, and scaling over cores."""

import dataclasses
import os
import subprocess
import sys

import jax

from benchmarks.cases.train import LAPTOP, case, members
from benchmarks.measure import Benchmark, Case, Program, Ratio

MEMBERS = 8


def benchmark(peers: bool) -> Benchmark:
    """All of them PPO at the `laptop` scale."""
    devices, on_cpu = len(jax.devices()), jax.default_backend() == "cpu"
    config, name = members(LAPTOP, MEMBERS), f"PPO of {MEMBERS} members"
    together = case(config, "rl", label=f"{name}, one program")
    apart = case(members(LAPTOP, 1), "rl", label=f"{name}, one run after another", in_turn=MEMBERS)
    ratios = [Ratio(f"{MEMBERS} members in one program / {MEMBERS} runs one after another", together.name, apart.name)]
    groups = [[together, apart]]
    for at_once in sorted({1, 2, max(1, MEMBERS // devices)}):
        label = f"{name}, --population.at-once {at_once}"
        groups.append([case(members(LAPTOP, MEMBERS, at_once=at_once), "rl", label=label)])
    if on_cpu and devices > 1 and hasattr(os, "sched_setaffinity"):
        one, every = bound_to(1), bound_to(devices)
        groups.append([one, every])
        ratios.append(Ratio(f"throughput of {devices} cores / 1 core", every.name, one.name))
    return Benchmark(groups, ratios)


def bound_to(cores: int) -> Case:
    """Weak scaling: a member on each of so many cores, in a process bound to them (`benchmarks.worker`)."""

    def prepare():
        numbers = map(str, sorted(os.sched_getaffinity(0))[:cores])
        command = [sys.executable, "-m", "benchmarks.worker", *numbers]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin
        assert worker.stdout
        asked, answers = worker.stdin, worker.stdout

        def answer():
            if not answers.readline():
                raise RuntimeError(f"{' '.join(command)} ended")

        def call():
            print(file=asked, flush=True)
            answer()

        answer()
        return Program(call, process=worker.pid)

    name = f"PPO, {cores} core{'s' * (cores > 1)}, a member on each"
    return dataclasses.replace(case(members(LAPTOP, cores), "rl", label=name), prepare=prepare)
