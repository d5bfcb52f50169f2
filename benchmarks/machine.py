"""The machine, and what it can do at best, measured in the same run as everything else: the denominators.

Each ceiling is the best of several sizes and of two ways to use the machine: one operation on one device, whose
threads share it, and one operation per device side by side, as training uses simulated CPU devices.
"""

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from agents import runs
from benchmarks import measure
from benchmarks.measure import Case

CEILINGS = {
    "matmul_float32": ("matrix product, float32", "FLOP/s"),
    "matmul_bfloat16": ("matrix product, bfloat16", "FLOP/s"),
    "elementwise_int32": ("elementwise, int32, in cache", "op/s"),
    "copy_in_cache": ("copy, in cache, read + write", "B/s"),
    "copy_out_of_cache": ("copy, out of cache, read + write", "B/s"),
}
"""Name → label, unit."""

_COPIES, _COPIED = 16, {"copy_in_cache": 2**18, "copy_out_of_cache": 2**26}
_STEPS, _MIXED = 256, 8


def ceilings(repeats: int = 3, seconds: float = 0.1) -> dict[str, float]:
    """Every ceiling, in operations or bytes per second: the best repeat of the best way.

    Args:
        repeats: timed repeats of each way.
        seconds: how long a repeat lasts, about.
    """
    best = dict.fromkeys(CEILINGS, 0.0)
    for case in _ways():
        (result,) = measure.measure([case], repeats, seconds, pause=0.0)
        best[case.name] = max(best[case.name], *result.rates)
    return best


def _ways() -> Iterator[Case]:
    sizes = (512, 1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    for devices in sorted({1, len(jax.devices())}):
        way = functools.partial(_way, devices)
        for dtype in (jnp.float32, jnp.bfloat16):
            for size in sizes:
                yield way(f"matmul_{dtype.__name__}", 2.0 * size**3, lambda x: x @ x, (size, size), dtype)
        for last in (jnp.add, jnp.multiply):
            scramble = functools.partial(_scramble, last)
            yield way("elementwise_int32", 3.0 * _MIXED * _STEPS * 2**14, scramble, (2**14,), jnp.uint32)
        for name, numbers in _COPIED.items():
            size = numbers // devices
            yield way(name, 8.0 * _COPIES * size, _copy, (size,), jnp.float32, carries=True)


def _way(
    devices: int, name: str, count: float, function: Callable, shape: tuple[int, ...], dtype: Any, carries: bool = False
) -> Case:
    """A function of one device's array, `count` operations or bytes, on each of so many devices."""

    def prepare():
        numbers = jnp.ones((devices, *shape), dtype)
        return measure.compiled(measure.side_by_side(function, devices), numbers, carries=carries)

    return Case(name, CEILINGS[name][1], devices * count, prepare)


def _copy(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x ← 1 - x, `_COPIES` times in the buffer that it lies in: no fresh memory, which would measure page faults."""
    # The barrier keeps the compiler from taking two rounds at a time.
    x = jax.lax.fori_loop(0, _COPIES, lambda _, y: jax.lax.optimization_barrier(1.0 - y), x)
    return x, x[:1]


def _scramble(last: Callable, x: jax.Array) -> jax.Array:
    """Shift, exclusive or, and a third operation, over and over, on data that stay in the first caches."""

    def step(_, y):
        for _ in range(_MIXED):
            y = last(y ^ (y >> 16), jnp.uint32(0x7FEB352D))
        return y

    return jax.lax.fori_loop(0, _STEPS, step, x)


def about() -> dict[str, Any]:
    """`machine`, what is measured on, and `commit`, what is measured, with `+` after it where files differ from it."""
    known = runs.provenance()
    git, device = known["git"], known["device"]
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device["kind"],
        "devices": device["devices"],
        "python": known["python"],
        "jax": known["packages"]["jax"],
    }
    return {"machine": machine, "commit": git["commit"] and git["commit"][:12] + "+" * bool(git["dirty"])}


def _processor() -> str:
    lines = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
