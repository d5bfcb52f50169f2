"""What the machine can do at best, measured in the same run as everything else: the denominators.

Each ceiling is the best of several sizes and of two ways to use the machine: one operation on one device, whose
threads share it, and one operation per device side by side, as training uses simulated CPU devices.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LABELS = {
    "matmul_float32": ("matrix product, float32", 1e9, "GFLOP/s"),
    "matmul_bfloat16": ("matrix product, bfloat16", 1e9, "GFLOP/s"),
    "elementwise_int32": ("elementwise, int32, in cache", 1e9, "Gop/s"),
    "copy_in_cache": ("copy, in cache, read + write", 1e9, "GB/s"),
    "copy_out_of_cache": ("copy, out of cache, read + write", 1e9, "GB/s"),
}
"""Ceiling → name, unit size, unit."""

_ROUNDS = 16
_MIX = 8
_STEPS = 256


def measured(repeats: int = 3, seconds: float = 0.1) -> dict[str, float]:
    """Every ceiling, in operations or bytes per second.

    Args:
        repeats: timed repeats of each size; the best counts.
        seconds: how long a repeat lasts, at least.
    """
    accelerator = jax.default_backend() != "cpu"
    sizes = {"matmul": (4096, 8192) if accelerator else (512, 1024, 2048), "small": 2**18, "large": 2**26}
    best: dict[str, float] = {}
    for name, count, call in _programs(sizes):
        jax.block_until_ready(call())
        for _ in range(repeats):
            start, calls = time.perf_counter(), 0
            while True:
                result = call()
                calls += 1
                if calls % 8 == 0 or not accelerator:
                    jax.block_until_ready(result)
                    elapsed = time.perf_counter() - start
                    if elapsed >= seconds:
                        break
            best[name] = max(best.get(name, 0.0), count * calls / elapsed)
    return best


def higher(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The higher of two measurements of every ceiling."""
    return {name: max(value, second.get(name, 0.0)) for name, value in first.items()}


def _programs(sizes: dict[str, Any]) -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """(ceiling, operations or bytes of a call, the call)."""
    for devices in sorted({1, len(jax.devices())}):
        mesh = Mesh(jax.devices()[:devices], ("device",))
        sharding = NamedSharding(mesh, PartitionSpec("device"))
        for dtype in (jnp.float32, jnp.bfloat16):
            for size in sizes["matmul"]:
                a = jax.device_put(jnp.ones((devices, size, size), dtype), sharding)
                yield f"matmul_{dtype.__name__}", 2.0 * devices * size**3, _each(mesh, lambda x: x @ x, a)
        numbers = jax.device_put(jnp.arange(devices * 2**14, dtype=jnp.uint32).reshape(devices, -1), sharding)
        for last in (jnp.add, jnp.multiply):
            operations = 3.0 * _MIX * _STEPS * numbers.size
            yield "elementwise_int32", operations, _each(mesh, functools.partial(_scramble, last), numbers)
        for name, size in (("copy_in_cache", sizes["small"]), ("copy_out_of_cache", sizes["large"])):
            x = jax.device_put(jnp.ones((devices, size // devices), jnp.float32), sharding)
            yield name, 8.0 * size * _ROUNDS, _in_place(mesh, x)


def _each(mesh: Mesh, function: Callable, x: jax.Array) -> Callable[[], Any]:
    """A function of one device's [n, …], called on all devices at once."""
    spec = PartitionSpec("device")
    program = jax.jit(
        jax.shard_map(lambda part: function(part[0])[None], mesh=mesh, in_specs=spec, out_specs=spec)
    ).lower(x).compile()  # fmt: skip
    return lambda: program(x)


def _in_place(mesh: Mesh, x: jax.Array) -> Callable[[], Any]:
    """x ← 1 - x, `_ROUNDS` times in the buffer that it lies in: no fresh memory, which would measure page faults."""

    def rounds(part):
        # The barrier keeps the compiler from taking two rounds at a time.
        body = lambda _, y: jax.lax.optimization_barrier(1.0 - y)  # noqa: E731
        return jax.lax.fori_loop(0, _ROUNDS, body, part)

    spec = PartitionSpec("device")
    program = jax.jit(jax.shard_map(rounds, mesh=mesh, in_specs=spec, out_specs=spec), donate_argnums=0)
    program = program.lower(x).compile()
    kept = [x]

    def call():
        kept[0] = program(kept[0])
        return kept[0]

    return call


def _scramble(last: Callable, x: jax.Array) -> jax.Array:
    """Shift, exclusive or, and a third operation, over and over, on data that stay in the first caches."""

    def step(_, y):
        for _ in range(_MIX):
            y = last(y ^ (y >> 16), jnp.uint32(0x7FEB352D))
        return y

    return jax.lax.fori_loop(0, _STEPS, step, x)
