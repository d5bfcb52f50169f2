"""Several processes: the same training as one, one voice, and an end in one line when a process is lost."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from agents import processes, runs
from tests import tiny, worker
from tests.test_train import ROOT, TINY, last_state

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
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """A member split over both, a member each, members on one of them, and pretraining.

    Tolerances are those of several devices in one process: sums over episodes are taken in another order.
    """
    out = tmp_path / "found.npz"
    assert [(status, lines) for status, _, lines in finish(start([out]))] == [(0, []), (0, [])]
    found = np.load(out)
    for case, (name, members) in worker.CASES.items():
        config = tiny.changed(population={"seeds": members}, rl={"episodes": 18} if case == "idle" else {})
        state, metrics = tiny.train_stage(config, name, mesh=tiny.mesh(members, 1, 1))
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            other = found[f"{case}{jax.tree_util.keystr(path)}"]
            assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape)
            np.testing.assert_allclose(leaf, other, atol=2e-4)
        for metric in ("loss", "return", "gradient_norm"):
            np.testing.assert_allclose(metrics[metric], found[f"{case} {metric}"], rtol=1e-4, atol=1e-4)


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({}, None),
        (ADDRESS, "process 1 of 2 at node1:1234"),
        (ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, "Slurm task 1 of 2"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),  # a batch script, without srun
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
         "MPI rank 3 of 4"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "TPU worker 1"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "1"}, None),  # pods of their own
    ],
)  # fmt: skip
def test_a_job_is_found_in_the_environment(environment, where):
    found = processes.detect(environment)
    assert (found and found[0]) == where


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "without JAX_PROCESS_ID; set all three, or none"),
        ({"JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": ""}, "without JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2, JAX_NUM_PROCESSES=2: use 0 up to"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "JAX_COORDINATOR_ADDRESS=node1: give the host and port"),
    ],
)
def test_wrong_variables_are_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        processes.detect(ADDRESS | change)
    assert "\n" not in str(caught.value)


def test_a_process_without_the_others_ends_with_one_line_and_status_2():
    ((status, out, lines),) = finish(start(["unused"], indices=(1,), CONNECT_SECONDS="2"))
    assert (status, out, len(lines)) == (2, "", 1)
    assert "process 1 of 2 at localhost:" in lines[0]
    assert "found no other process of this job" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-dir", "tests"], "tests: exists; choose another --run-dir"),
        (["--resume", "nowhere"], "nowhere: no such run directory"),
        (["--population.sweep", "rl.epochs=1,2"], "rl.epochs shapes the compiled program"),
    ],
)
def test_bad_input_is_one_line_of_one_process_and_status_2(arguments, message):
    ends = finish(start(["train", *arguments]))
    assert [status for status, _, _ in ends] == [2, 2]
    assert [len(lines) for _, _, lines in ends] == [1, 0]
    assert message in ends[0][2][0]


@pytest.mark.slow
def test_different_options_are_refused(tmp_path):
    job = start(["train", *TINY, "--run-dir", tmp_path / "run"], more=((), ("--seed", "1")))
    ends = finish(job)
    assert [status for status, _, _ in ends] == [2, 2]
    assert [len(lines) for _, _, lines in ends] == [1, 0]
    assert "given different options" in ends[0][2][0]
    assert not (tmp_path / "run").exists()


def same_as_alone(run: runs.Run, alone: runs.Run) -> None:
    """Metrics and parameters of every checkpoint as in one process, but for the order of sums."""
    assert run.checkpoints() == alone.checkpoints()
    for name in alone.checkpoints():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4), run.parameters(name), alone.parameters(name)
        )
    mine, other = run.metrics(), alone.metrics()
    for key in runs.KEYS:
        assert mine[key].equals(other[key])
    for metric in ("loss", "return"):
        np.testing.assert_allclose(mine[metric].to_numpy(), other[metric].to_numpy(), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, by the number of members."""
    made = {}

    def run(members: int) -> runs.Run:
        if members not in made:
            path = tmp_path_factory.mktemp("alone") / "run"
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
            command = [sys.executable, "train.py", *TINY, f"--population.seeds={members}", "--run-dir", str(path)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
            made[members] = runs.open(path)
        return made[members]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_the_command_of_two_processes_makes_the_run_of_one(alone, tmp_path, members):
    job = start(["train", *TINY, f"--population.seeds={members}", "--run-dir", tmp_path / "run"])
    ends = finish(job)
    assert [(status, lines) for status, _, lines in ends] == [(0, []), (0, [])]
    assert "emojimaze" in ends[0][1]
    assert "emojimaze" not in ends[1][1]
    run = runs.open(tmp_path / "run")
    same_as_alone(run, alone(members))
    for key in ("before_rl", "after_rl"):
        np.testing.assert_allclose(
            run.summary()["return"][key], alone(members).summary()["return"][key], rtol=1e-2, atol=0.2
        )


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_job_in_one_line_and_resume_finishes(alone, tmp_path, lost):
    job = start(["train", *TINY, "--rl.chunk=2", "--population.seeds=1", "--run-dir", tmp_path / "run"])
    wait_for("checkpoints/rl-*", tmp_path / "run", job)
    job[lost].kill()
    killed = time.monotonic()
    survivor = finish([job[1 - lost]])[0]
    assert time.monotonic() - killed < 60
    assert survivor[0] == 3
    assert len(survivor[2]) == 1
    assert "another process of this job is gone; go on with --resume" in survivor[2][0]
    job[lost].communicate()
    assert last_state(runs.open(tmp_path / "run")) is not None
    assert [status for status, _, _ in finish(start(["train", "--resume", tmp_path / "run"]))] == [0, 0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4),
        runs.open(tmp_path / "run").parameters("rl"),
        alone(1).parameters("rl"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "who"), [(signal.SIGTERM, 143, (1,)), (signal.SIGINT, 130, (0, 1))])
def test_a_signal_to_one_or_all_stops_all_with_a_checkpoint_that_one_process_resumes(
    alone, tmp_path, number, status, who
):
    path = tmp_path / "run"
    job = start(["train", *TINY, "--population.seeds=2", "--run-dir", path])
    wait_for("metrics/rl-*", path, job)
    for index in who:
        job[index].send_signal(number)
    ends = finish(job)
    assert [end[0] for end in ends] == [status, status], ends
    assert [len(lines) for _, _, lines in ends] == [1, 0]
    assert f"stopped by {number.name}; go on with --resume" in ends[0][2][0]
    run = runs.open(path)
    assert last_state(run).update == len(run.metrics("rl")) // run.members
    command = [sys.executable, "train.py", "--resume", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    same_as_alone(runs.open(path), alone(2))
