"""The whole command: a run from nothing to figures, resumed to the bit, interrupted, refused."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from agents import config as configs
from agents import replays, runs, stages
from agents.config import ConfigError
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return train.train(tiny.CONFIG, tmp_path_factory.mktemp("runs") / "whole")


def last_state(run: runs.Run) -> runs.State:
    """The newest training state, which must be one of rl."""
    stage = stages.make_stage(configs.from_dict(run.config), "rl")
    state = run.load_state(lambda name: jax.eval_shape(lambda: stage.initial(None)))
    assert state is not None
    return state


def same_training(one: runs.Run, other: runs.Run) -> None:
    """Parameters of every checkpoint, the whole last state, metrics and returns are equal to the bit."""
    assert one.checkpoints() == other.checkpoints()
    for name in one.checkpoints():
        jax.tree.map(np.testing.assert_array_equal, one.parameters(name), other.parameters(name))
    states = [last_state(run) for run in (one, other)]
    assert states[0].update == states[1].update == configs.from_dict(one.config).rl.updates
    jax.tree.map(np.testing.assert_array_equal, states[0].tree, states[1].tree)
    assert one.metrics().equals(other.metrics())
    timing = {"seconds", "tokens_per_second"}
    summaries = [{k: v for k, v in run.summary().items() if k not in timing} for run in (one, other)]
    assert summaries[0] == summaries[1]


def test_a_run_leaves_what_the_design_promises(whole):
    config = tiny.CONFIG
    assert whole.checkpoints() == ["init", "pretrain", "rl-000001", "rl-000002", "rl"]
    summary = whole.summary()
    assert summary["schema"] == 1
    assert summary["members"] == 2
    assert set(summary["return"]) == {
        "random", "personas", "greedy", "before_rl", "after_rl", "after_rl_interval",
    }  # fmt: skip
    assert list(summary["return"]["personas"]) == ["Larry", "Bob", "Alice"]
    assert len(summary["return"]["before_rl"]) == len(summary["return"]["after_rl"]) == 2
    assert summary["population"] == [{"seed": 0, "values": {}}, {"seed": 1, "values": {}}]
    assert set(summary["tokens_per_second"]) == {"pretrain", "rl"}
    table = whole.metrics()
    expected = [
        (stage, update, member)
        for stage, updates in (("pretrain", config.pretrain.updates), ("rl", config.rl.updates))
        for update in range(updates)
        for member in range(2)
    ]
    assert list(zip(*(table[key].to_pylist() for key in runs.KEYS), strict=True)) == expected
    for name in ("learning_curve.png", "learning_curve.pdf", "learning_curve.csv", "replay.gif"):
        assert whole.figure(name).stat().st_size > 100
    for name in ("pretrain", "rl"):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(whole.parameters(name))} == {2}
    assert configs.from_dict(whole.config) == config


def test_the_same_seed_gives_the_same_bits(whole, tmp_path):
    same_training(whole, train.train(tiny.CONFIG, tmp_path / "again"))


def test_a_finished_run_resumed_changes_nothing(whole):
    parts = {path: path.read_bytes() for path in (whole.path / "metrics").iterdir()}
    same_training(whole, train.resume(whole.path))
    assert parts == {path: path.read_bytes() for path in (whole.path / "metrics").iterdir()}


@pytest.mark.parametrize("after", [5, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 3, 4, 7))])
def test_an_interrupted_run_resumes_to_the_bit(whole, tmp_path, monkeypatch, after):
    """A signal after the given chunk: the four chunks of pretrain, then those of rl."""
    seen = 0
    write = runs.Run.write_metrics

    def counted(run, *arguments):
        nonlocal seen
        write(run, *arguments)
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs.Run, "write_metrics", counted)
    with pytest.raises(stages.Interrupted) as caught:
        train.train(tiny.CONFIG, tmp_path / "run")
    assert caught.value.exit_status == 143
    same_training(whole, train.resume(tmp_path / "run"))


def test_signal_handlers_are_put_back(whole):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stages.signals() as caught:
        assert caught() == 0
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_taken_directory_is_refused_and_left_alone(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    with pytest.raises(runs.RunError, match="exists; choose another --run-dir, or --resume it"):
        train.train(tiny.CONFIG, whole.path)
    assert before == {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}


def test_a_config_that_cannot_run_makes_no_directory(tmp_path):
    with pytest.raises(ConfigError):
        train.train(tiny.changed(world={"size": 5}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_members_diverging_stops_the_run(tmp_path):
    config = tiny.changed(rl={"learning_rate": 1e30, "max_gradient_norm": 1e30}, pretrain={"learning_rate": 1e30})
    with pytest.raises(stages.Diverged, match="NaN or infinite"):
        train.train(config, tmp_path / "run")


def test_replays_show_the_episode_that_was_played(whole):
    config = tiny.CONFIG
    _, params = config.world.make()
    parameters = jax.tree.map(lambda x: x[0], whole.parameters("rl"))
    replay = replays.record(config, parameters, params, jax.random.split(jax.random.key(1), 3), "x")[2]
    moves = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
    np.testing.assert_array_equal(replay.midpoints, replay.positions[:-1] + moves[replay.actions])
    pushed = np.where((replay.winds > 0)[:, None], moves[replay.winds - 1], 0)
    np.testing.assert_array_equal(replay.positions[1:], replay.midpoints + pushed)
    assert replay.probabilities is not None
    np.testing.assert_allclose(replay.probabilities.sum(-1), 1, rtol=1e-5)
    assert replay.tiles.shape == (5, 11, 11)


def run_command(*arguments: str, **environment: str) -> subprocess.Popen:
    """`train.py` as a process of its own, with the session's compilation cache."""
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip


def test_options_make_the_config_that_they_were_made_from():
    assert train.parse(tiny.arguments(tiny.LONGER)).config == tiny.LONGER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "Unrecognized options: --bogus"),
        (["--population.sweep", "rl.epochs=1,2"], "rl.epochs shapes the compiled program"),
        (["--world.size", "20"], "--world.size=20: too small for turns=15"),
        (["--world.wind-probability", "-0.5"], "--world.wind_probability=-0.5"),
        (["--resume", "tests"], "tests: not a run directory"),
        (["--resume", "nowhere"], "nowhere: no such run directory"),
        (["--run-dir", "tests"], "tests: exists; choose another --run-dir"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, message, capsys):
    assert train.main(arguments) == 2
    out, errors = capsys.readouterr()
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert out == ""


def test_the_command_as_a_process_ends_with_that_status():
    process = run_command("--world.size", "20")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert errors.startswith("train.py: --world.size=20: too small for turns=15")
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_with_their_status_and_a_checkpoint(tmp_path, number, status):
    process = run_command(*tiny.arguments(tiny.changed(rl={"updates": 4000})), "--run-dir", str(tmp_path / "run"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run" / "metrics").glob("rl-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert time.monotonic() - sent < 10
    assert "go on with --resume" in errors
    run = runs.open(tmp_path / "run")
    assert last_state(run).update == len(run.metrics("rl")) // run.members


MOMENTS = {"start": ("", ""), "pretrain": ("metrics", "pretrain"), "rl": ("metrics", "rl"), "end": ("figures", "")}
"""Where a run is killed: the folder and the beginning of the name of the new file that says it is nearly there."""
KILLS = ["start", "start", "start", "pretrain", "pretrain", "rl", "rl", "rl", "end", "end"]


def files(run: Path) -> set[tuple[str, str, int, int]]:
    """Folder and name of what lies in a run directory, hidden files too; one that was written again is another one."""
    found = set()
    for folder in ("", "metrics", "checkpoints", "checkpoints/state", "figures"):
        with contextlib.suppress(FileNotFoundError), os.scandir(run / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    status = entry.stat()
                    found.add((folder, entry.name, status.st_ino, status.st_mtime_ns))
    return found


def kill_at(process: subprocess.Popen, run: Path, moment: str, rng: random.Random) -> None:
    """Kill a process that has written something of this moment, a few files and a part of a gap later.

    The gap is that between its last two files, so that the machine's speed does not matter.
    """
    where, prefix = MOMENTS[moment]
    old, further, before = files(run), None, time.monotonic()
    while process.poll() is None:
        new = files(run) - old
        if not new:
            time.sleep(0.005)
            continue
        gap, before = time.monotonic() - before, time.monotonic()
        old |= new
        if further is None and any(folder.startswith(where) and name.startswith(prefix) for folder, name, *_ in new):
            further = rng.randint(1, 3)
        elif further:
            further -= 1
        if further == 0:
            time.sleep(rng.random() * gap)
            process.kill()


def found_at(run: Path) -> str:
    """The moment at which a run was killed."""
    if not list(run.glob("metrics/*.parquet")):
        return "start"
    if not (run / "checkpoints" / "pretrain").exists():
        return "pretrain"
    if not (run / "checkpoints" / "rl").exists():
        return "rl" if list(run.glob("metrics/rl-*.parquet")) else "between"
    return "end" if not (run / "summary.json").exists() else "over"


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed_equals_the_uninterrupted_run(tmp_path):
    """One run directory is killed and resumed again and again; a kill counts where it found the run as planned."""
    rng = random.Random(0)
    whole = train.train(tiny.LONGER, tmp_path / "whole")
    counted, finished, broken = [], 0, tmp_path / "broken-0"

    def go() -> subprocess.Popen:
        begun = (broken / "config.json").exists()
        again = ["--resume", str(broken)] if begun else [*tiny.arguments(tiny.LONGER), "--run-dir", str(broken)]
        return run_command(*again, JAX_NUM_CPU_DEVICES=str(jax.device_count()))

    def finish(process: subprocess.Popen) -> bool:
        """Whether it came to its end, and then that of the uninterrupted run; the next begins a new directory."""
        nonlocal finished, broken
        _, errors = process.communicate(timeout=300)
        if process.returncode == -signal.SIGKILL:
            return False
        assert process.returncode == 0, errors
        same_training(whole, runs.open(broken))
        finished += 1
        broken = tmp_path / f"broken-{finished}"
        return True

    for _ in range(40):
        if len(counted) == len(KILLS):
            break
        process, moment = go(), KILLS[len(counted)]
        try:
            kill_at(process, broken, moment, rng)
        finally:
            process.kill()
        if not finish(process) and found_at(broken) == moment:
            counted.append(moment)
    assert counted == KILLS
    assert (len(counted), counted[0]) == (10, "start")
    assert {"pretrain", "rl"} < set(counted)
    assert broken.exists()
    assert finish(go())
