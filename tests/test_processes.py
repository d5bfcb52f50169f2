"""Several processes: they find each other, train as one does, and refuse with one voice."""

import jax
import numpy as np
import pytest

from ground import processes
from tests import tiny
from tests.jobs import close, finish, start


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
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "JAX_COORDINATOR_ADDRESS": "node1:1234"}, "Slurm task 1 of 2"),
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


def test_options_of_any_bytes_are_compared():
    assert processes.same("--run-dir caf\udce9")


@pytest.mark.slow
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
        pytest.param(
            ["--population.sweep", "rl.epochs=1,2"], "rl.epochs shapes the compiled program", marks=pytest.mark.long
        ),
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
