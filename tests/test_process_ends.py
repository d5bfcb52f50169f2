"""Runs of several processes: the same as of one, and an end in one line when a process is lost or told to stop."""

import functools
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import train
from agents import runs
from agents.runs import metrics
from tests import tiny
from tests.equality import last_state
from tests.jobs import ROOT, close, finish, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]


def same_as_alone(run: runs.Run, alone: runs.Run) -> None:
    """Metrics, the last state and parameters of every checkpoint as in one process, but for the order of sums."""
    assert run.checkpoints() == alone.checkpoints()
    for name in alone.checkpoints():
        close(alone.parameters(name), run.parameters(name))
    states = [last_state(each) for each in (alone, run)]
    assert states[0].update == states[1].update
    close(states[0].tree, states[1].tree)
    mine, other = run.metrics(), alone.metrics()
    for key in metrics.KEYS:
        assert mine[key].equals(other[key])
    for metric in ("loss", "return", "gradient_norm"):
        np.testing.assert_allclose(mine[metric].to_numpy(), other[metric].to_numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, by the name of its case."""
    path = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda case: train.train(tiny.JOBS[case], path / case))


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


@pytest.mark.parametrize(("number", "status", "who"), [(signal.SIGTERM, 143, (1,)), (signal.SIGINT, 130, (0, 1))])
def test_a_signal_to_one_or_all_stops_all_with_a_checkpoint_that_one_process_resumes(
    alone, tmp_path, number, status, who
):
    path = tmp_path / "run"
    job = start(["train", *tiny.arguments(tiny.JOBS["split"]), "--run-dir", path])
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
    same_as_alone(runs.open(path), alone("split"))
