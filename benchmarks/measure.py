"""Timing of compiled programs, their memory, and the machine they ran on."""

import contextlib
import dataclasses
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

MIN_SECONDS = 0.2
"""A timed repeat calls a short program as often as it takes to last this long."""

PAUSE_SECONDS = 0.3
"""Rest before each repeat: a library's threads may spin after its last call, on the cores of the next one."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one unit of a case costs, counted (see `counts`), whatever the program does."""

    flops: float = 0.0
    """Floating-point operations in matrix products, attention over the full square."""
    causal_flops: float = 0.0
    """The same with attention over the causal half."""
    operations: float = 0.0
    """Elementwise operations on integers and floats, as XLA counts them in the program."""
    bytes: float = 0.0
    """Bytes that must move: read once and written once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products."""
    in_cache: bool = True
    """Whether the data of a call fit in the cache, which decides whose bandwidth is the limit."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure."""

    name: str
    unit: str
    """What is counted per second."""
    count: float
    """Units of one call."""
    prepare: Callable[[], tuple[Callable[[], Any], Any]]
    """Compiles; → (a function to call, the compiled program for its memory analysis, or None)."""
    work: Work = Work()


@dataclasses.dataclass(frozen=True)
class Result:
    """One measured case."""

    case: str
    unit: str
    compile_seconds: float
    rates: list[float]
    """Units per second of every repeat."""
    work: Work = Work()
    peak_memory: int | None = None
    """Largest resident set of the process during the timed calls, bytes."""
    memory_before: int | None = None
    """Resident set before the case was compiled, bytes."""
    temporary_memory: int | None = None
    """Temporaries of the compiled program on one device, bytes, as XLA planned them."""

    @property
    def median(self) -> float:
        """Median rate."""
        return statistics.median(self.rates)

    def to_dict(self, ceilings: dict[str, float]) -> dict[str, Any]:
        """Plain JSON values, with the fraction of the limit that `ceilings` sets."""
        limit, of_what = roofline(self.work, ceilings)
        return {
            "case": self.case,
            "unit": self.unit,
            "median": self.median,
            "low": min(self.rates),
            "high": max(self.rates),
            "rates": self.rates,
            "compile_seconds": self.compile_seconds,
            **{name: getattr(self.work, name) or None for name in ("flops", "causal_flops", "operations", "bytes")},
            "limit": limit,
            "fraction": None if limit is None else self.median / limit,
            "of_what": of_what,
            "peak_memory": self.peak_memory,
            "memory_before": self.memory_before,
            "temporary_memory": self.temporary_memory,
        }


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure."""

    repeats: int = 5
    """Timed repeats of each case."""
    peers: bool = False
    """Whether to measure what others offer beside us."""
    only: str = ""
    """A regular expression: only groups of cases are measured of which one's name has a match."""

    def wants(self, *names: str) -> bool:
        """Whether one of the names of a group is asked for."""
        return any(re.search(self.only, name) for name in names)


@dataclasses.dataclass
class Report:
    """What a benchmark found."""

    results: list[Result] = dataclasses.field(default_factory=list)
    ratios: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Comparisons of medians of the same run: `what`, `ratio`, and the two cases in `of`."""

    def add(self, cases: Sequence[Case], options: Options) -> list[Result]:
        """Measure a group of cases in turn, unless `options.only` leaves it out."""
        if not options.wants(*(case.name for case in cases)):
            return []
        found = measure(cases, options.repeats)
        self.results += found
        return found

    def compare(self, what: str, ours: Result, other: Result) -> None:
        """Note how many times faster one result is than another."""
        self.ratios.append({"what": what, "ratio": ours.median / other.median, "of": [ours.case, other.case]})


def roofline(work: Work, ceilings: dict[str, float]) -> tuple[float | None, str | None]:
    """Units per second that the machine allows, and what sets that limit; None where nothing was counted."""
    bandwidth = "copy_in_cache" if work.in_cache else "copy_out_of_cache"
    costs = {f"matmul_{work.precision}": work.flops, "elementwise_int32": work.operations, bandwidth: work.bytes}
    limits = {name: ceilings[name] / cost for name, cost in costs.items() if cost and name in ceilings}
    if not limits:
        return None, None
    tightest = min(limits, key=lambda name: limits[name])
    return limits[tightest], tightest


def measure(cases: Sequence[Case], repeats: int = 5) -> list[Result]:
    """Compile each case, call it once unmeasured, then time all of them in turn, `repeats` times over.

    Cases that are to be compared belong in one call: what disturbs the machine then disturbs all of them.
    """
    ready = []
    for case in cases:
        before = resident()
        start = time.perf_counter()
        call, compiled = case.prepare()
        compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(call())
        calls = math.ceil(MIN_SECONDS / max(time.perf_counter() - start, 1e-6))
        ready.append((call, calls, compile_seconds, before, temporary_bytes(compiled)))
    rates: list[list[float]] = [[] for _ in cases]
    peaks: list[list[int]] = [[] for _ in cases]
    for _ in range(repeats):
        for index, (case, (call, calls, *_)) in enumerate(zip(cases, ready, strict=True)):
            time.sleep(PAUSE_SECONDS)
            reset_peak()
            start = time.perf_counter()
            for _ in range(calls - 1):
                call()
            jax.block_until_ready(call())
            rates[index].append(case.count * calls / (time.perf_counter() - start))
            peaks[index].append(peak())
    return [
        Result(
            case=case.name,
            unit=case.unit,
            compile_seconds=compile_seconds,
            rates=rates[index],
            work=case.work,
            peak_memory=max(peaks[index]),
            memory_before=before,
            temporary_memory=temporary,
        )
        for index, (case, (_, _, compile_seconds, before, temporary)) in enumerate(zip(cases, ready, strict=True))
    ]


def temporary_bytes(compiled: Any) -> int | None:
    """Bytes of temporaries that XLA planned for a compiled program on one device."""
    analysis = getattr(compiled, "memory_analysis", lambda: None)()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def resident() -> int:
    """Resident set of this process now, bytes; where the system does not tell, its largest so far."""
    return _status("VmRSS")


def peak() -> int:
    """Largest resident set since `reset_peak`, bytes; where the system cannot forget, since the process began."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Forget the largest resident set so far (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    devices = jax.devices()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def commit() -> str | None:
    """The commit that is measured, with `+` after it where files differ from it; None outside git."""

    def git(*arguments):
        root = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
