"""Weak scaling: the same PPO work per device on one device, on two of one process, and on two processes.

uv run -m benchmarks.scaling

Every device has a core of its own. `members` gives each device a member; `split` gives each half of the episodes of
one member, so that every optimiser step sums gradients. `apart` runs two programs that know nothing of each other: what
two cores cost each other by sharing caches and memory, without any communication.
"""

import os
import socket
import statistics
import subprocess
import sys
import time

REPEATS = 7
EPISODES = 128
"""Episodes of a device and update."""


def measure(case: str) -> None:
    """Time updates of rl in this process, which may be one of several; print the median milliseconds."""
    from ground import devices

    devices.start("benchmarks.scaling")
    import jax
    import numpy as np

    from agents.learning import learner
    from agents.learning.rl import RLConfig
    from agents.runs import config as configs
    from agents.runs import stages
    from ground import processes

    count = jax.device_count()
    members, episodes = (count, EPISODES) if case == "members" else (1, count * EPISODES)
    config = configs.Config(
        population=configs.PopulationConfig(seeds=members), rl=RLConfig(episodes=episodes, updates=1000)
    )
    stage = stages.make_stage(config, "rl")
    arguments, state = stage.program.place(stage.arguments), stage.program.place(stage.initial(None))
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        state, metrics = stage.program(state, *arguments)
        processes.meet()
        np.asarray(learner.on_host(metrics)["loss"])
        seconds.append(time.perf_counter() - start)
    if processes.first():
        timed = [1000 * x for x in seconds[1:]]
        print(f"{statistics.median(timed):.1f} {min(timed):.1f} {max(timed):.1f}")


def run(case: str, processes: int, devices: int, together: bool = True) -> list[float]:
    """Median, least and greatest milliseconds of an update."""
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = []
    for index in range(processes):
        own = cores[index * devices : (index + 1) * devices]
        job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | (job if together else {})
        command = ["taskset", "--cpu-list", ",".join(map(str, own)), sys.executable, "-m", "benchmarks.scaling", case]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    lines = [process.communicate()[0] for process in started]
    return [float(x) for x in lines[0].split()]


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1])
    else:
        for case in ("members", "split"):
            base = run(case, 1, 1)
            for name, found in (
                ("1 process x 1 device", base),
                ("2 apart", run(case, 2, 1, together=False)),
                ("1 process x 2 devices", run(case, 1, 2)),
                ("2 processes x 1 device", run(case, 2, 1)),
            ):
                print(
                    f"{case:8} {name:23} {found[0]:7.1f} ms ({found[1]:.1f}-{found[2]:.1f})  {found[0] / base[0]:.2f}"
                )
