"""Timing of compiled programs, and the machine they ran on."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Result:
    """One measured case."""

    case: str
    unit: str
    """What is counted per second."""
    compile_seconds: float
    rates: list[float]
    """Units per second of every repeat."""

    @property
    def median(self) -> float:
        """Median rate."""
        return statistics.median(self.rates)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with median, lowest and highest rate."""
        return dataclasses.asdict(self) | {"median": self.median, "low": min(self.rates), "high": max(self.rates)}


def measure(case: str, unit: str, count: int, compile: Callable[[], Callable[[], Any]], repeats: int = 5) -> Result:
    """Compile a program, call it once unmeasured, then time it.

    Args:
        case: name of the case.
        unit: what is counted.
        count: units of one call.
        compile: makes the program ready and returns it; timed by itself.
        repeats: timed calls, each waited for.
    """
    start = time.perf_counter()
    program = compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(program())
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program())
        rates.append(count / (time.perf_counter() - start))
    return Result(case, unit, compile_seconds, rates)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    devices = jax.devices()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
