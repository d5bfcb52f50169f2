"""What is measured, by the word on the command line."""

from collections.abc import Callable

from benchmarks.cases import analysis, env, policy, population, train
from benchmarks.measure import Benchmark

BENCHMARKS: dict[str, Callable[[bool], Benchmark]] = {
    "env": env.benchmark,
    "worlds": env.worlds,
    "policy": policy.benchmark,
    "train": train.benchmark,
    "population": population.benchmark,
    "analysis": analysis.benchmark,
}
"""Whether to measure peers, too → the benchmark, by its name."""
