"""Setting JAX up for a command, before anything starts its backend (importing gymnax does)."""

import os

import jax

from ground import processes


def start(command: str | None = None) -> None:
    """One CPU device per core, so that members train side by side on a machine without an accelerator.

    `JAX_NUM_CPU_DEVICES` in the environment overrides this.

    Args:
        command: name of a command that several processes run together, for `processes.start`; None where each is
            on its own.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
    if command:
        processes.start(command)
