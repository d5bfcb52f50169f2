"""Cases, and how they are timed: compiled first, called once unmeasured, then repeated in turn."""

import contextlib
import dataclasses
import functools
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

SECONDS = 0.2
"""A timed repeat calls a short program as often as it takes to last this long."""

PAUSE = 0.3
"""Seconds of rest before a repeat: a library's threads may spin after its last call, on the cores of the next one."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What one unit of a case costs, counted (see `counts`), whatever the program does."""

    flops: float = 0.0
    """Floating-point operations in matrix products, attention over the full square."""
    causal_flops: float = 0.0
    """The same with attention over the causal half."""
    operations: float = 0.0
    """Elementwise operations on integers and floats that the program asks for."""
    bytes: float = 0.0
    """Bytes that must move: read once and written once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products."""
    in_cache: bool = True
    """Whether the data of a call fit in the cache, which decides whose bandwidth is the limit."""

    def limit(self, ceilings: dict[str, float]) -> tuple[float | None, str | None]:
        """Units per second that the machine allows, and which ceiling says so; None where nothing was counted."""
        bandwidth = "copy_in_cache" if self.in_cache else "copy_out_of_cache"
        costs = {f"matmul_{self.precision}": self.flops, "elementwise_int32": self.operations, bandwidth: self.bytes}
        limits = {name: ceilings[name] / cost for name, cost in costs.items() if cost}
        tightest = min(limits, key=limits.__getitem__, default=None)
        return (None, None) if tightest is None else (limits[tightest], tightest)


class Program(NamedTuple):
    """What is timed."""

    call: Callable[[], Any]
    compiled: Any = None
    """For its memory analysis; None where there is none."""
    process: int | str = "self"
    """Whose memory counts."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure."""

    name: str
    unit: str
    """What is counted per second."""
    count: float
    """Units of one call."""
    prepare: Callable[[], Program]
    """Compiles."""
    work: Work = Work()


class Ratio(NamedTuple):
    """How many times faster something is than something else."""

    what: str
    first: str
    """How the names of its cases begin; the fastest of them counts."""
    second: str
    """The same of what it is compared with."""


class Benchmark(NamedTuple):
    """What a word on the command line measures."""

    groups: Sequence[Sequence[Case]]
    """The cases of a group are timed in turn."""
    ratios: Sequence[Ratio] = ()


@dataclasses.dataclass
class Result:
    """One measured case."""

    case: str
    unit: str
    work: Work
    compile_seconds: float
    rates: list[float] = dataclasses.field(default_factory=list)
    """Units per second of every repeat."""
    peak_memory: int = 0
    """Largest resident set of the process during the timed calls, bytes."""
    memory_before: int = 0
    """Resident set of this process before the case was compiled, bytes."""
    temporary_memory: int | None = None
    """Temporaries of the compiled program on one device, bytes, as XLA planned them."""

    @property
    def median(self) -> float:
        """Median rate."""
        return statistics.median(self.rates)

    def to_dict(self, ceilings: dict[str, float]) -> dict[str, Any]:
        """Plain JSON values, with the fraction of the limit that `ceilings` sets."""
        values = dataclasses.asdict(self)
        work = values.pop("work")
        limit, of_what = self.work.limit(ceilings)
        return {
            **values,
            **{name: work[name] or None for name in ("flops", "causal_flops", "operations", "bytes")},
            **{"median": self.median, "low": min(self.rates), "high": max(self.rates)},
            **{"limit": limit, "of_what": of_what, "fraction": None if limit is None else self.median / limit},
        }


def measure(cases: Sequence[Case], repeats: int = 5, seconds: float = SECONDS, pause: float = PAUSE) -> list[Result]:
    """Compile each case, call it once unmeasured, then time all of them in turn, `repeats` times over.

    Cases that are to be compared belong in one call: what disturbs the machine then disturbs all of them.
    """
    results: list[Result] = []
    programs: list[tuple[Program, int]] = []
    for case in cases:
        before, start = memory("VmRSS"), time.perf_counter()
        program = case.prepare()
        result = Result(case.name, case.unit, case.work, time.perf_counter() - start, memory_before=before)
        if program.compiled and (analysis := program.compiled.memory_analysis()):
            result.temporary_memory = int(analysis.temp_size_in_bytes)
        results.append(result)
        programs.append((program, math.ceil(seconds / _duration(program, 1))))
    for _ in range(repeats):
        for case, result, (program, calls) in zip(cases, results, programs, strict=True):
            time.sleep(pause)
            forget_peak(program.process)
            result.rates.append(case.count * calls / _duration(program, calls))
            result.peak_memory = max(result.peak_memory, memory("VmHWM", program.process))
    return results


def _duration(program: Program, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls - 1):
        program.call()
    jax.block_until_ready(program.call())
    return time.perf_counter() - start


def compared(ratios: Sequence[Ratio], results: Sequence[Result]) -> list[dict[str, Any]]:
    """The ratios of medians, each with the two cases in `of`; those that lack a side are left out."""
    rows = []
    for what, *beginnings in ratios:
        sides = [[result for result in results if result.case.startswith(name)] for name in beginnings]
        if all(sides):
            first, second = (max(side, key=lambda result: result.median) for side in sides)
            rows.append({"what": what, "ratio": first.median / second.median, "of": [first.case, second.case]})
    return rows


def compiled(function: Callable, *arguments: Any, carries: bool = False) -> Program:
    """A function compiled for these arguments, which are laid out as it wants them.

    Args:
        function: of the arguments; → anything.
        arguments: trees of arrays.
        carries: the function is (state, …) → (state, result), its state donated and handed on to the next call.
    """
    program = jax.jit(function, donate_argnums=0 if carries else ()).lower(*arguments).compile()
    arguments = jax.device_put(arguments, program.input_shardings[0])
    return carrying(program, *arguments) if carries else Program(functools.partial(program, *arguments), program)


def carrying(program: Any, state: Any, *arguments: Any) -> Program:
    """A compiled (state, …) → (state, result), each call of which goes on from the state that the last one left."""

    def call():
        nonlocal state
        state, result = program(state, *arguments)
        return result

    return Program(call, program)


def side_by_side(function: Callable, devices: int) -> Callable:
    """A function of one device's arguments, on so many devices at once; axis 0 of every array is the device."""

    def one(*arguments):
        arguments = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*arguments))

    mesh, spec = Mesh(jax.devices()[:devices], ("device",)), PartitionSpec("device")
    return jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def memory(field: str, process: int | str = "self") -> int:
    """A process's resident set, bytes: VmRSS now, VmHWM at its largest since `forget_peak`.

    Where the system does not tell, this process's largest so far.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak(process: int | str = "self") -> None:
    """Forget the largest resident set so far (Linux)."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5", encoding="ascii")
