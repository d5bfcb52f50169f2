"""What is measured, by the word on the command line."""

from collections.abc import Callable

from benchmarks.cases import analysis, env, policy, population, train
from benchmarks.measure import Options, Report

CASES: dict[str, Callable[[Options], Report]] = {
    "env": env.run,
    "policy": policy.run,
    "train": train.run,
    "population": population.run,
    "analysis": analysis.run,
}
"""Benchmarks by name."""
