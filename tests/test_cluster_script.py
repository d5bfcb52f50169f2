"""The job script of docs/clusters.md, with a Slurm of our own: what it starts, and how it ends."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "slurm.sh"


@pytest.fixture
def slurm(tmp_path):
    """Runs the script where `srun` and `scontrol` only note what they were given; returns its end and the notes."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("srun", "scontrol"):
        (tools / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> notes\nexit "${{{name.upper()}:-0}}"\n')
        (tools / name).chmod(0o755)

    def job(*arguments, **variables):
        path = f"{tools}:{os.environ['PATH']}"
        environment = {"PATH": path, "SLURM_JOB_ID": "77", **{name: str(value) for name, value in variables.items()}}
        notes = tmp_path / "notes"
        notes.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", SCRIPT, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done, notes.read_text().splitlines() if notes.exists() else []

    return job


TRAIN = "srun --kill-on-bad-exit=1 uv run --no-sync train.py"


@pytest.mark.parametrize("status", [1, 2, 3, 130, 134, 137, 139])
def test_a_job_fails_as_its_run_does(slurm, status):
    done, notes = slurm("runs/x", SRUN=status)
    assert (done.returncode, notes) == (status, [f"{TRAIN} --run-dir runs/x"])


def test_a_run_that_ends_ends_the_job(slurm):
    done, notes = slurm("runs/x", "--scale", "paper", "--population.sweep", "rl.learning_rate=1e-3,1e-2")
    assert (done.returncode, done.stderr) == (0, "")
    assert notes == [f"{TRAIN} --run-dir runs/x --scale paper --population.sweep rl.learning_rate=1e-3,1e-2"]


def test_a_run_that_was_stopped_is_queued_again_and_then_resumes(slurm, tmp_path):
    done, notes = slurm("runs/x", "--scale", "smoke", SRUN=143)
    assert (done.returncode, notes[1:]) == (0, ["scontrol requeue 77"])
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.json").touch()
    done, notes = slurm("runs/x", "--scale", "smoke")
    assert (done.returncode, notes) == (0, [f"{TRAIN} --resume runs/x"])


def test_where_a_job_cannot_be_queued_again_it_fails(slurm):
    done, notes = slurm("runs/x", SRUN=143, SCONTROL=1)
    assert (done.returncode, notes[1:]) == (143, ["scontrol requeue 77"])


def test_each_job_of_an_array_has_a_line_of_its_own(slurm, tmp_path):
    (tmp_path / "sweep.txt").write_text("--rl.clip-high 0.1 --seed 0\n--rl.clip-high 0.3 --seed 8\n")
    for number, line in enumerate(("--rl.clip-high 0.1 --seed 0", "--rl.clip-high 0.3 --seed 8"), start=1):
        done, notes = slurm("runs/sweep", "sweep.txt", "--scale", "smoke", SLURM_ARRAY_TASK_ID=number)
        assert (done.returncode, notes) == (0, [f"{TRAIN} --run-dir runs/sweep/{number} {line} --scale smoke"])
    done, notes = slurm("runs/sweep", "sweep.txt", SLURM_ARRAY_TASK_ID=3)
    assert (done.returncode, notes) == (2, [])
    assert done.stderr == "sweep.txt: no line 3; give --array the numbers of its lines\n"


@pytest.mark.parametrize(("array", "words"), [({}, "which run?"), ({"SLURM_ARRAY_TASK_ID": 1}, "which sweep?")])
def test_what_is_missing_is_said(slurm, array, words):
    done, notes = slurm(*(["runs/x"] if array else []), **array)
    assert done.returncode
    assert not notes
    assert words in done.stderr


def test_it_asks_slurm_for_all_that_a_job_needs():
    asked = [line for line in SCRIPT.read_text().splitlines() if line.startswith(("#SBATCH", "##SBATCH"))]
    for option in ("--time=", "--gpus-per-node=", "--output=", "--requeue", "--signal=TERM@", "--ntasks="):
        assert any(option in line for line in asked), option
    text = (ROOT / "docs" / "clusters.md").read_text()
    assert "(slurm.sh)" in text
    assert "(sweep.py)" in text
    assert not re.search(r"uv run[^`\n]*(--no-sync[^`\n]*--extra|--extra[^`\n]*--no-sync)", text)
