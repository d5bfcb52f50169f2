"""The whole command: a run from nothing to figures, resumed to the bit, interrupted, refused."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from agents import runs
from agents.learning import population
from agents.learning.rl import RLConfig
from agents.runs import metrics, stages
from agents.runs.config import ConfigError, Member
from analysis.figures import replays
from ground import signals, terminal
from tests import tiny
from tests.equality import last_state, same_training

ROOT = Path(__file__).resolve().parent.parent
SLOW, LONG = pytest.mark.slow, pytest.mark.long


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return train.train(tiny.CONFIG, tmp_path_factory.mktemp("runs") / "whole")


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
    assert list(zip(*(table[key].to_pylist() for key in metrics.KEYS), strict=True)) == expected
    for name in ("learning_curve.png", "learning_curve.pdf", "learning_curve.csv", "replay.gif"):
        assert whole.figure(name).stat().st_size > 100
    for name in ("pretrain", "rl"):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(whole.parameters(name))} == {2}
    assert whole.config == config


def test_the_same_seed_gives_the_same_bits(whole, tmp_path):
    same_training(whole, train.train(tiny.CONFIG, tmp_path / "again"))


def test_a_finished_run_resumed_changes_nothing(whole):
    parts = {path: path.read_bytes() for path in (whole.path / "metrics").iterdir()}
    same_training(whole, train.resume(whole.path))
    assert parts == {path: path.read_bytes() for path in (whole.path / "metrics").iterdir()}


LATER = {1: [SLOW, LONG], 4: SLOW, 3: [SLOW, LONG], 7: [SLOW, LONG]}


@pytest.mark.parametrize("after", [5, *(pytest.param(chunk, marks=marks) for chunk, marks in LATER.items())])
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
    with pytest.raises(signals.Interrupted) as caught:
        train.train(tiny.CONFIG, tmp_path / "run")
    assert caught.value.exit_status == 143
    same_training(whole, train.resume(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_without_a_state_goes_on_from_its_base_and_not_from_later_parameters(whole, tmp_path):
    """As after a kill between the last parameters and the first state."""
    shutil.copytree(whole.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "state")
    same_training(whole, train.resume(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "rl"])
def test_a_run_that_has_lost_metrics_is_refused_until_they_are_back_or_it_is_begun_again(whole, tmp_path, stage):
    shutil.copytree(whole.path, tmp_path / "run")
    path = tmp_path / "run" / "metrics" / f"{stage}-000000.parquet"
    path.rename(tmp_path / "aside")
    with pytest.raises(runs.RunError, match=f"metrics: update 0 of {stage} is missing; put the file back"):
        train.resume(tmp_path / "run")
    if stage == "pretrain":
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    else:
        (tmp_path / "aside").rename(path)
    same_training(whole, train.resume(tmp_path / "run"))


@pytest.mark.parametrize("stage", ["rl", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_signal_while_a_stage_compiles_ends_at_once(whole, tmp_path, monkeypatch, stage):
    compiled = population.Chunk.compile

    def struck(program, state, config, params):
        if isinstance(config, RLConfig) == (stage == "rl"):
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")
        compiled(program, state, config, params)

    monkeypatch.setattr(population.Chunk, "compile", struck)
    with pytest.raises(signals.Interrupted) as caught:
        train.train(tiny.CONFIG, tmp_path / "run")
    assert caught.value.exit_status == 130
    monkeypatch.undo()
    run = runs.open(tmp_path / "run")
    assert not list((run.path / "metrics").glob(f"{stage}-*"))
    same_training(whole, train.resume(run.path))


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


def test_a_command_that_trained_nothing_leaves_nothing(tmp_path, monkeypatch):
    """So that the corrected command may use the name."""

    def fails(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(population.Chunk, "compile", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        train.train(tiny.CONFIG, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    for name in ("link", "mine"):
        with pytest.raises(RuntimeError, match="out of memory"):
            train.train(tiny.CONFIG, tmp_path / name, track="tensorboard")
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "link", tmp_path / "mine"]


def test_a_command_that_trained_nothing_keeps_what_others_put_there(tmp_path, monkeypatch):
    def fails(*arguments):
        (tmp_path / "run" / "thesis.partial").write_text("mine")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train, "_train_and_evaluate", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        train.train(tiny.CONFIG, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.partial"]


@pytest.mark.slow
def test_a_command_that_trained_something_leaves_it(tmp_path, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("no picture")

    monkeypatch.setattr(train, "_draw", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        train.train(tiny.CONFIG, tmp_path / "run")
    assert runs.open(tmp_path / "run").checkpoints()[-1] == "rl"
    with pytest.raises(RuntimeError, match="no picture"):
        train.resume(tmp_path / "run")
    assert runs.open(tmp_path / "run").checkpoints()[-1] == "rl"


@pytest.mark.slow
def test_all_sessions_of_a_run_are_known_and_count(whole, tmp_path, monkeypatch):
    path = tmp_path / "[/run] :bug: $a"
    write, chunks = runs.Run.write_metrics, [0]

    def struck(run, *arguments):
        write(run, *arguments)
        chunks[0] += 1
        if chunks[0] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "write_metrics", struck)
        with pytest.raises(signals.Interrupted):
            train.train(tiny.CONFIG, path)
    (first,) = runs.open(path).sessions()
    assert first["seconds"]["pretrain"] > 0
    assert first["tokens"]["pretrain"] > first["tokens"]["rl"] > 0
    provenance = runs.sessions.provenance

    def elsewhere():
        mine = provenance()
        mine["packages"]["jax"] = "0.0.1"
        mine["settings"]["XLA_FLAGS"] = "--xla_other"
        return mine

    monkeypatch.setattr(runs.sessions, "provenance", elsewhere)
    console = terminal.console(markup=True, file=io.StringIO(), width=300)
    run = train.resume(path, console)
    assert f"jax {jax.__version__} → 0.0.1, XLA_FLAGS" in console.file.getvalue()
    assert f"directory  {path} " in console.file.getvalue()
    _, second = run.sessions()
    assert second["packages"]["jax"] == "0.0.1"
    seconds = run.summary()["seconds"]
    assert set(seconds) == {"compile", "pretrain", "rl", "evaluation", "total"}
    for name in ("pretrain", "rl", "total"):
        assert seconds[name] == pytest.approx(first["seconds"][name] + second["seconds"][name], abs=1e-6)
    tokens = first["tokens"]["pretrain"] + second["tokens"]["pretrain"]
    assert run.summary()["tokens_per_second"]["pretrain"] == pytest.approx(tokens / seconds["pretrain"])
    monkeypatch.undo()
    console = terminal.console(markup=True, file=io.StringIO(), width=300)
    train.resume(path, console, figures=False)
    assert f"jax 0.0.1 → {jax.__version__}" in console.file.getvalue()
    console = terminal.console(markup=True, file=io.StringIO(), width=300)
    train.resume(path, console, figures=False)
    assert "not as in the session before" not in console.file.getvalue()


def test_the_bar_of_a_stage_that_is_done_says_so(whole, tmp_path, monkeypatch):
    """Also where nothing of a later stage is left to be done."""
    shown = []
    progress = train.reporting.progress
    monkeypatch.setattr(train.reporting, "progress", lambda console: shown.append(progress(console)) or shown[-1])
    shutil.copytree(whole.path, tmp_path / "run")
    train.resume(tmp_path / "run", evaluate=False)
    pretrain, rl = tiny.CONFIG.pretrain.updates, tiny.CONFIG.rl.updates
    told = [(bar.description, bar.completed, bar.total, bar.fields["speed"]) for bar in shown[-1].tasks]
    assert told == [("pretrain", pretrain, pretrain, "done"), ("rl", rl, rl, "done")]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "state")  # so that RL is trained anew
    train.resume(tmp_path / "run", evaluate=False)
    first, last = shown[-1].tasks
    assert (first.completed, first.fields["speed"]) == (pretrain, "done")
    assert last.completed == rl
    assert last.fields["speed"].endswith("tok/s")


def test_runs_of_older_versions_tell_who_made_them(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "sessions.json").unlink()
    run = runs.open(tmp_path / "run")
    (made,) = run.sessions()
    assert made["packages"]["jax"] == jax.__version__
    same_training(whole, train.resume(run.path))
    assert [session.get("seconds") is None for session in run.sessions()] == [True, False]


def test_replays_show_the_episode_that_was_played(whole):
    config = tiny.CONFIG
    _, params = config.world.make()
    parameters = jax.tree.map(lambda x: x[0], whole.parameters("rl"))
    keys = jax.random.split(jax.random.key(1), 3)
    replay = replays.record(config, parameters, params, keys, "x")[2]
    moves = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
    np.testing.assert_array_equal(replay.midpoints, replay.positions[:-1] + moves[replay.actions])
    pushed = np.where((replay.winds > 0)[:, None], moves[replay.winds - 1], 0)
    np.testing.assert_array_equal(replay.positions[1:], replay.midpoints + pushed)
    assert replay.probabilities is not None
    np.testing.assert_allclose(replay.probabilities.sum(-1), 1, rtol=1e-5)
    assert replay.tiles.shape == (5, 11, 11)
    assert replay.values is not None
    swept = Member(0, {"rl.reward_scale": config.rl.reward_scale / 4})
    scaled = replays.record(config, parameters, params, keys, "x", member=swept)[2]
    assert scaled.values is not None
    np.testing.assert_allclose(scaled.values, 4 * replay.values, rtol=1e-6)


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


@pytest.mark.parametrize("begun", [False, True])
def test_who_is_stopped_is_told_whether_there_is_something_to_resume(whole, monkeypatch, capsys, begun):
    """Also where no directory was named."""

    def stopped(*arguments, **options):
        raise signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(train.runs, "fresh_name", lambda: whole.path)
    monkeypatch.setattr(train, "train" if begun else "parse", stopped)
    assert train.main(["--scale", "smoke"]) == 143
    end = f"; go on with --resume {whole.path}" if begun else " before it began"
    assert capsys.readouterr().err == f"train.py: stopped by SIGTERM{end}\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [pytest.param(signal.SIGINT, 130, marks=LONG), (signal.SIGTERM, 143)])
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


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}, {}],
)
def test_a_console_that_cannot_show_it_does_not_stop_training(tmp_path, environment):
    """Letters that it lacks, a full device: the run is made all the same."""
    command = [sys.executable, "train.py", *tiny.arguments(tiny.CONFIG), "--run-dir", str(tmp_path / "run")]
    with open(os.devnull if environment else "/dev/full", "w") as out:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | environment | {"PYTHONCOERCECLOCALE": "0"},
        )
    assert done.returncode == 0, done.stderr
    lament = "train.py: standard output is lost (No space left on device); the work goes on\n"
    assert done.stderr == ("" if environment else lament)
    assert runs.open(tmp_path / "run").summary()["members"] == 2


@pytest.mark.slow
def test_killed_at_some_file_operations_and_resumed_equals_the_uninterrupted_run():
    """As `python -m tests.endurance kills` does it 200 times."""
    command = [sys.executable, "-m", "tests.endurance", "kills", "--tries", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["tries"] == 6
