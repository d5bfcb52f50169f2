"""A sweep larger than one program: an array of jobs, each a population; started again, each goes on where it stopped.

uv run --with submitit==1.5.4 docs/sweep.py           as a Slurm array
uv run --with submitit==1.5.4 docs/sweep.py local     the same jobs on this machine
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import submitit  # pyright: ignore[reportMissingImports]

OPTIONS = ("--scale", "smoke", "--population.seeds", "2", "--population.sweep", "rl.learning_rate=3e-4,1e-3")
SWEEP = {f"clip-{clip}": ("--rl.clip-high", clip) for clip in ("0.1", "0.2", "0.3")}
"""Run directories under `runs`, and the options of each. What one program can hold as members stays inside a job."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A job of the sweep."""

    name: str
    """Of the run directory."""

    def __call__(self) -> str:
        """Begin or resume the run; returns its directory."""
        run = Path("runs", self.name)
        begun = (run / "config.json").exists()
        options = ["--resume", run] if begun else [*OPTIONS, *SWEEP[self.name], "--run-dir", run]
        subprocess.run([sys.executable, "train.py", *options], check=True)
        return str(run)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to submit in its place when the job is preempted or runs out of time."""
        return submitit.helpers.DelayedSubmission(self)


if __name__ == "__main__":
    executor = submitit.AutoExecutor("runs/jobs", cluster=sys.argv[1] if sys.argv[1:] else "slurm")
    executor.update_parameters(timeout_min=60, cpus_per_task=1, slurm_array_parallelism=2)
    with executor.batch():
        jobs = [executor.submit(Point(name)) for name in SWEEP]
    for job in jobs:
        print(job.job_id, job.result())
