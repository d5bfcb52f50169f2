"""Several processes: the same training as one, one voice, and an end in one line when a process is lost."""

import contextlib
import functools
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

import train
from agents import processes, runs
from tests import tiny
from tests.test_train import ROOT, last_state

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


@pytest.mark.slow
def test_two_processes_meet_hand_on_what_they_have_and_pretrain_as_one_does(tmp_path):
    out = tmp_path / "found.npz"
    assert [(status, lines) for status, _, lines in finish(start([out]))] == [(0, []), (0, [])]
    found = np.load(out)
    state, metrics = tiny.train_stage(tiny.JOBS["split"], "pretrain", mesh=tiny.mesh(1, 1, 1))
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        close(leaf, found[jax.tree_util.keystr(path)])
    for metric in ("loss", "return", "gradient_norm"):
        np.testing.assert_allclose(metrics[metric], found[metric], rtol=1e-4, atol=1e-4)


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
        pytest.param(["--resume", "nowhere"], "nowhere: no such run directory", marks=pytest.mark.long),
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
    job = start(["train", *tiny.arguments(tiny.CONFIG), "--run-dir", tmp_path / "run"], more=((), ("--seed", "1")))
    ends = finish(job)
    assert [status for status, _, _ in ends] == [2, 2]
    assert [len(lines) for _, _, lines in ends] == [1, 0]
    assert "given different options" in ends[0][2][0]
    assert not (tmp_path / "run").exists()


def same_as_alone(run: runs.Run, alone: runs.Run) -> None:
    """Metrics, the last state and parameters of every checkpoint as in one process, but for the order of sums."""
    assert run.checkpoints() == alone.checkpoints()
    for name in alone.checkpoints():
        close(alone.parameters(name), run.parameters(name))
    states = [last_state(each) for each in (alone, run)]
    assert states[0].update == states[1].update
    close(states[0].tree, states[1].tree)
    mine, other = run.metrics(), alone.metrics()
    for key in runs.KEYS:
        assert mine[key].equals(other[key])
    for metric in ("loss", "return", "gradient_norm"):
        np.testing.assert_allclose(mine[metric].to_numpy(), other[metric].to_numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, by the name of its case."""
    path = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda case: train.train(tiny.JOBS[case], path / case))


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.JOBS)
def test_the_command_of_two_processes_makes_the_run_of_one(alone, tmp_path, case):
    job = start(["train", *tiny.arguments(tiny.JOBS[case]), "--run-dir", tmp_path / "run"])
    ends = finish(job)
    assert [(status, lines) for status, _, lines in ends] == [(0, []), (0, [])]
    assert "emojimaze" in ends[0][1]
    assert "emojimaze" not in ends[1][1]
    run = runs.open(tmp_path / "run")
    same_as_alone(run, alone(case))
    for key in ("before_rl", "after_rl"):
        np.testing.assert_allclose(
            run.summary()["return"][key], alone(case).summary()["return"][key], rtol=1e-2, atol=0.2
        )


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_job_in_one_line_and_resume_finishes(alone, tmp_path, lost):
    job = start(["train", *tiny.arguments(tiny.JOBS["split"]), "--run-dir", tmp_path / "run"])
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
    close(alone("split").parameters("rl"), runs.open(tmp_path / "run").parameters("rl"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "who"), [(signal.SIGTERM, 143, (1,)), (signal.SIGINT, 130, (0, 1))])
def test_a_signal_to_one_or_all_stops_all_with_a_checkpoint_that_one_process_resumes(
    alone, tmp_path, number, status, who
):
    path = tmp_path / "run"
    job = start(["train", *tiny.arguments(tiny.JOBS["members"]), "--run-dir", path])
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
    same_as_alone(runs.open(path), alone("members"))
