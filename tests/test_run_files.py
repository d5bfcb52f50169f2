"""Metrics parts and the disk beneath a run directory."""

import contextlib
import fcntl
import os
import pickle  # to prove that nothing is unpickled
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents import runs
from agents.runs import config as configs
from agents.runs import metrics
from tests import tiny
from tests.test_runs import assert_clear, chunk, snapshot

CONFIG = tiny.changed(seed=5, population={"seeds": 3})


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path / "run", configs.to_dict(CONFIG), members=3)


# Metrics


def rows(table: pa.Table) -> list[tuple]:
    return list(zip(*(table[key].to_pylist() for key in metrics.KEYS), strict=True))


def test_metric_rows(run):
    assert run.metrics().num_rows == 0
    run.write_metrics("rl", 0, chunk(2))
    run.write_metrics("rl", 2, chunk(2, start=2))
    run.write_metrics("pretrain", 0, {"loss": np.full((1, 3), np.nan)})
    table = run.metrics()
    assert rows(table) == [("pretrain", 0, m) for m in range(3)] + [("rl", u, m) for u in range(4) for m in range(3)]
    rl = run.metrics("rl")
    assert rl.schema.types[3:] == [pa.int32(), pa.float32(), pa.float32(), pa.float64()]
    np.testing.assert_array_equal(rl["loss"].to_numpy().reshape(4, 3)[2:], chunk(2, start=2)["loss"])
    np.testing.assert_array_equal(rl["episodes"].to_numpy()[:6], np.arange(6.0))
    assert table["return"].null_count == 3
    assert run.metrics("sft").num_rows == 0
    assert run.metrics("sft").schema.names == [*metrics.KEYS, metrics.SEED]


def test_rows_know_seed_and_swept_values(tmp_path):
    """Of all members, diverged ones too, from the config: nothing of it is on disk."""
    sweep = ("rl.learning_rate=0.001,0.01", "world.wind_probability=0.1,0.3")
    config = tiny.changed(seed=7, population={"seeds": 2, "sweep": sweep})
    run = runs.create(tmp_path / "run", configs.to_dict(config), members=8)
    run.write_metrics(
        "rl", 0, {"loss": np.where(np.arange(8) == 3, np.nan, 1.0)[None], "learning_rate": np.ones((1, 8))}
    )
    table = run.metrics()
    swept = ["rl.learning_rate", "world.wind_probability"]
    assert table.schema.names == [*metrics.KEYS, "seed", *swept, "loss", "learning_rate"]
    for member, row in zip(config.members, table.to_pylist(), strict=True):
        assert row["seed"] == member.seed
        assert {path: row[path] for path in member.values} == member.values
        assert row["learning_rate"] == 1
    labels = run.labels
    assert labels["member"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert labels["point"].tolist() == [member.label for member in run.population]
    np.testing.assert_array_equal(
        labels["world.wind_probability"], table["world.wind_probability"].to_numpy()[run.kept]
    )
    (part,) = (run.path / "metrics").iterdir()
    assert pq.ParquetFile(part).schema.names == [*metrics.KEYS, "loss", "learning_rate"]


def test_the_same_chunk_gives_the_same_bytes(run):
    for start in (0, 2, 4):
        run.write_metrics("rl", start, chunk(2, start=start))
    before = snapshot(run.path)
    for start in (0, 2, 4):
        run.write_metrics("rl", start, chunk(2, start=start))
        assert snapshot(run.path) == before


def test_other_chunk_size_after_a_resume(run):
    for start in (0, 4, 8):
        run.write_metrics("rl", start, chunk(4, start=start))
    for start in (4, 7, 10):
        run.write_metrics("rl", start, chunk(3, start=100 + start))
    table = run.metrics("rl")
    assert rows(table) == [("rl", u, m) for u in range(13) for m in range(3)]
    first = table["loss"].to_numpy().reshape(-1, 3)[:, 0]
    np.testing.assert_array_equal(first[:4], [0, 3, 6, 9])
    np.testing.assert_array_equal(first[[4, 7, 10]], [1040, 1070, 1100])


def test_overlapping_parts_count_once(run):
    run.write_metrics("rl", 2, chunk(4, start=2))
    kept = (run.path / "metrics" / "rl-000002.parquet").read_bytes()
    run.write_metrics("rl", 0, chunk(4))
    (run.path / "metrics" / "rl-000002.parquet").write_bytes(kept)
    table = run.metrics()
    assert rows(table) == [("rl", u, m) for u in range(6) for m in range(3)]
    np.testing.assert_array_equal(table["loss"].to_numpy(), [*range(6), *range(20, 32)])  # of what begins last


@pytest.mark.parametrize(
    "columns",
    [
        {"loss": np.zeros((2, 4))},
        {"loss": np.zeros(3)},
        {"loss": np.zeros((2, 3)), "x": np.zeros((1, 3))},
        {"update": np.zeros((2, 3))},
        {"seed": np.zeros((2, 3))},
        {"loss": 3.0},
    ],
)
def test_wrong_metrics_are_refused(run, columns):
    with pytest.raises(runs.RunError) as caught:
        run.write_metrics("rl", 0, columns)
    assert_clear(caught.value, "rl-000000.parquet", "[updates, members]")
    assert run.metrics().num_rows == 0


def test_damaged_and_foreign_parts(run):
    run.write_metrics("rl", 0, chunk(20))
    part = run.path / "metrics" / "rl-000000.parquet"
    for name in (".rl-000001.parquet.77.partial", "notes.txt", "rl.parquet", "other-000000.parquet"):
        (part.parent / name).write_bytes(b"not metrics")
    good = run.metrics()
    content = part.read_bytes()
    rng = random.Random(0)
    flips = [content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :] for i in rng.sample(range(len(content)), 60)]
    noticed = 0
    for bad in (b"", content[:-1], content[: len(content) // 2], pickle.dumps(1), *flips):
        part.write_bytes(bad)
        try:
            run.metrics()
        except runs.RunError as error:
            noticed += "\n" not in str(error) and str(part) in str(error) and "delete this file" in str(error)
    assert noticed > 20
    pq.write_table(pa.table({"update": [1], "loss": ["text"]}), part)
    with pytest.raises(runs.RunError, match="columns"):
        run.metrics()
    part.write_bytes(content)
    assert run.metrics() == good


# The disk


def test_vanished_directory(run):
    shutil.rmtree(run.path)
    for call in (
        lambda: run.save_parameters("rl", {"w": np.zeros(3)}),
        lambda: run.save_state("rl", 1, {"w": np.zeros(3)}),
        lambda: run.write_metrics("rl", 0, chunk(2)),
        lambda: run.write_summary({}),
        lambda: run.figure("x.png"),
        lambda: run.locked().__enter__(),
    ):
        with pytest.raises(runs.RunError) as caught:
            call()
        assert_clear(caught.value, run.path, "--run-dir")
    assert not run.path.exists()


def test_full_disk(run):
    tree = {"w": np.random.default_rng(0).normal(size=(3, 50_000))}
    run.save_parameters("init", {"w": np.zeros(3)})
    run.save_state("rl", 1, {"w": np.zeros(3)})
    run.write_metrics("rl", 0, chunk(1))
    run.write_summary({"a": 1})
    before = snapshot(run.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        for call in (
            lambda: run.save_parameters("init", tree),
            lambda: run.save_state("rl", 2, tree),
            lambda: run.write_metrics("rl", 0, {"x": tree["w"].T}),
            lambda: run.write_summary(tree),
        ):
            with pytest.raises(runs.RunError) as caught:
                call()
            assert_clear(caught.value, run.path, "cannot write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert snapshot(run.path) == before


def test_failing_rename_says_what_to_do(run, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(runs.RunError) as caught:
        run.write_summary({"a": 1})
    assert_clear(caught.value, "summary.json", "No space left", "free some space")
    assert [entry.name for entry in run.path.iterdir() if entry.name.endswith(".partial")] == []


HOLD = """
import sys, time
from agents.runs import metrics
from agents import runs
from tests.test_runs import assert_clear, chunk, run, snapshot
run = runs.open(sys.argv[1])
with run.locked():
    print("locked", flush=True)
    update, end = -1, time.monotonic() + 60
    while time.monotonic() < end:
        update += 1
        run.write_metrics("rl", update, {"loss": [[float(update)] * run.members]})
        run.write_summary({"update": update})
"""


@pytest.mark.slow
def test_lock_and_kill(run):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HOLD, run.path]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(runs.RunError) as caught, run.locked():
                pass
            while not (run.path / "summary.json").exists():
                time.sleep(0.01)
            time.sleep(0.1)
        finally:
            holder.kill()
    assert_clear(caught.value, run.path, "another process", "--run-dir")
    with run.locked():
        updates = run.metrics()["update"].to_pylist()
        assert updates == sorted(updates)
        assert run.summary()["update"] in (updates[-1], updates[-1] - 1)
        with pytest.raises(runs.RunError, match="another process"), run.locked():
            pass
    with run.locked():
        pass


def test_a_run_sweeps_what_the_dead_left_and_not_what_the_living_write(run):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    folders = [run.path, run.path / "metrics", run.figure("x").parent, run.analysis("x").parent]
    run.write_metrics("rl", 0, chunk(0))
    for folder in folders:
        for process in (dead.pid, os.getpid(), os.getppid(), 10**30, "x"):
            (folder / f".curve.pdf.{process}.partial").write_text("half")
    with contextlib.ExitStack() as written:
        for folder in folders:
            file = written.enter_context((folder / f".curve.pdf.{os.getppid()}.partial").open())
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        with run.locked():
            pass
        for folder in folders:
            left = {path.name for path in folder.iterdir() if path.name.endswith(".partial")}
            assert left == {f".curve.pdf.{os.getppid()}.partial"}
