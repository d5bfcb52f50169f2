"""Jobs of two processes, for tests."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 560


def start(arguments, indices=(0, 1), more=((), ()), **environment) -> list[subprocess.Popen]:
    """Those of the two processes of a job, of `tests.worker`, whose `indices` are given."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"} | environment
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.worker", *map(str, arguments), *more[index]],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | job | {"JAX_PROCESS_ID": str(index)},
        )
        for index in indices
    ]  # fmt: skip


def finish(job) -> list[tuple[int, str, list[str]]]:
    """Exit status, output and lines of error of every process."""
    try:
        ends = [process.communicate(timeout=LIMIT) for process in job]
    finally:
        for process in job:
            with contextlib.suppress(OSError):
                process.kill()
    lines = [errors.strip().splitlines() for _, errors in ends]
    return [(process.returncode, out, own) for process, (out, _), own in zip(job, ends, lines, strict=True)]


def wait_for(pattern: str, directory: Path, job) -> None:
    deadline = time.monotonic() + LIMIT
    while not list(directory.glob(pattern)) and time.monotonic() < deadline:
        assert all(process.poll() is None for process in job), finish(job)
        time.sleep(0.01)


def close(one, other) -> None:
    """The same dtypes and shapes, and values but for the order in which episodes are summed."""
    for leaf, found in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (leaf.dtype, leaf.shape) == (found.dtype, found.shape)
        np.testing.assert_allclose(leaf, found, atol=2e-4)
