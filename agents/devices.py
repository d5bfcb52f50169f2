"""Setting JAX up for a command, before anything starts its backend (importing gymnax does)."""

import os

import jax


def start() -> None:
    """One CPU device per core, so that members train side by side on a machine without an accelerator.

    `JAX_NUM_CPU_DEVICES` in the environment overrides this.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
