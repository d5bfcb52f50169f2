"""The whole command: a run from nothing to figures, resumed to the bit, interrupted, refused."""

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
TINY = [
    "--scale", "smoke", "--world.size", "11", "--world.turns", "4", "--policy.width", "16", "--policy.layers", "1",
    "--policy.hidden", "16", "--pretrain.updates", "40", "--pretrain.chunk", "2", "--rl.updates", "12",
    "--population.microbatch", "4",
]  # fmt: skip


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


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7])
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


def run_command(*arguments: str) -> subprocess.Popen:
    """`train.py` as a process of its own, with the session's compilation cache."""
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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
def test_bad_input_is_one_line_and_exit_status_2(arguments, message):
    process = run_command(*arguments)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert out == ""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_with_their_status_and_a_checkpoint(tmp_path, number, status):
    process = run_command(*TINY, "--rl.updates", "4000", "--run-dir", str(tmp_path / "run"))
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


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed_equals_the_uninterrupted_run(tmp_path):
    rng = random.Random(0)
    process = run_command(*TINY, "--run-dir", str(tmp_path / "whole"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

    start = time.monotonic()
    process = run_command(*TINY, "--run-dir", str(tmp_path / "timed"))
    while not list((tmp_path / "timed").glob("metrics/*")):
        time.sleep(0.02)
    begins = time.monotonic() - start
    process.communicate(timeout=300)
    trains = time.monotonic() - start - begins

    whole, kills, attempt = runs.open(tmp_path / "whole"), 0, 0
    while kills < 10 and attempt < 40:
        attempt += 1
        broken = tmp_path / f"broken-{attempt}"
        process = run_command(*TINY, "--run-dir", str(broken))
        try:
            process.communicate(timeout=begins + rng.uniform(-0.1, 0.95) * trains)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode != -signal.SIGKILL:  # it was faster than the run that was timed; so will others be
            begins, trains = 0.9 * begins, 0.9 * trains
            continue
        kills += 1
        begun = (broken / "config.json").exists()
        again = ["--resume", str(broken)] if begun else [*TINY, "--run-dir", str(broken)]
        process = run_command(*again)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        same_training(whole, runs.open(broken))
    assert kills == 10
