"""Parts of metrics are merged: nothing is lost at any moment, and few files stay."""

import threading
from pathlib import Path

import numpy as np
import pytest

from agents import runs
from agents.runs import metrics
from ground import files

MEMBERS, CHUNK = 3, 2
RNG = np.random.default_rng(5)
VALUES = {
    "loss": RNG.normal(size=(400 * CHUNK, MEMBERS)).astype(np.float32),
    "return": RNG.normal(size=(400 * CHUNK, MEMBERS)),
}
VALUES["loss"][3::7, 1] = np.nan


def write(folder: Path, index: int, settled: int, scale: float = 1.0) -> None:
    part = slice(index * CHUNK, (index + 1) * CHUNK)
    rows = {name: scale * values[part].astype(values.dtype) for name, values in VALUES.items()}
    metrics.write(folder, "rl", index * CHUNK, rows, MEMBERS, settled)


def check(folder: Path, chunks: int, scale: float = 1.0) -> None:
    table = metrics.read(folder, "rl", MEMBERS)
    assert table.num_rows == chunks * CHUNK * MEMBERS
    np.testing.assert_array_equal(table["update"].to_numpy(), np.repeat(np.arange(chunks * CHUNK), MEMBERS))
    for name, values in VALUES.items():
        found = table[name].to_numpy()
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found.reshape(-1, MEMBERS), scale * values[: chunks * CHUNK])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics"


def test_few_files_stay(folder):
    most = 0
    for index in range(400):
        write(folder, index, settled=max(index - 5, 0) * CHUNK)
        most = max(most, len(list(folder.iterdir())))
    check(folder, 400)
    # One block of 256 chunks, up to 15 of 16, and up to 15 + 6 single ones.
    assert most <= 1 + 2 * (metrics.TOGETHER - 1) + 7
    assert (folder / "rl-000000.parquet").stat().st_size > 3 * (folder / "rl-000512.parquet").stat().st_size


def test_what_training_may_go_back_behind_is_not_merged(folder):
    for index in range(40):
        write(folder, index, settled=metrics.TOGETHER * CHUNK - 1)
    assert len(list(folder.iterdir())) == 40
    write(folder, 40, settled=metrics.TOGETHER * CHUNK)
    assert len(list(folder.iterdir())) == 41 - metrics.TOGETHER + 1
    # Back to an older state, from where everything is written anew.
    for index in range(metrics.TOGETHER, 41):
        write(folder, index, settled=metrics.TOGETHER * CHUNK)
    check(folder, 41)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", range(metrics.TOGETHER + 1))
def test_killed_while_merging(folder, monkeypatch, at):
    done, real_write, real_unlink = [0], files.write, Path.unlink

    def struck(function):
        def call(*arguments):
            if done[0] == at:
                raise Killed
            done[0] += 1
            return function(*arguments)

        return call

    for index in range(metrics.TOGETHER + 3):
        write(folder, index, settled=0)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", struck(real_write))
        patch.setattr(Path, "unlink", struck(real_unlink))
        with pytest.raises(Killed):
            write(folder, metrics.TOGETHER + 3, settled=metrics.TOGETHER * CHUNK)
    check(folder, metrics.TOGETHER + 3 + (at > 0))
    write(folder, metrics.TOGETHER + 3, settled=metrics.TOGETHER * CHUNK)
    check(folder, metrics.TOGETHER + 4)
    assert len(list(folder.iterdir())) == 5


def test_a_stage_begun_again_replaces_everything(folder):
    for index in range(100):
        write(folder, index, settled=index * CHUNK)
    for index in range(100):
        write(folder, index, settled=max(index - 3, 0) * CHUNK, scale=2.0)
    check(folder, 100, scale=2.0)


def test_damage_is_left_to_the_reader(folder):
    for index in range(metrics.TOGETHER):
        write(folder, index, settled=0)
    damaged = folder / "rl-000004.parquet"
    damaged.write_bytes(b"PAR1")
    write(folder, metrics.TOGETHER, settled=metrics.TOGETHER * CHUNK)
    assert len(list(folder.iterdir())) == metrics.TOGETHER + 1
    with pytest.raises(files.RunError, match=r"rl-000004\.parquet: damaged metrics"):
        metrics.read(folder, "rl", MEMBERS)
    damaged.unlink()
    damaged.symlink_to(folder / "nowhere")
    with pytest.raises(files.RunError, match=r"rl-000004\.parquet: cannot read it"):
        metrics.read(folder, "rl", MEMBERS)


def test_reading_while_parts_are_merged(folder):
    sizes, ended = [], threading.Event()

    def look():
        while not ended.is_set():
            table = metrics.read(folder, "rl", MEMBERS)
            assert table["update"].to_pylist() == [u for u in range(table.num_rows // MEMBERS) for _ in range(MEMBERS)]
            sizes.append(table.num_rows)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for index in range(300):
            write(folder, index, settled=max(index - 1, 0) * CHUNK)
    finally:
        ended.set()
        reader.join()
    assert len(sizes) > 3
    assert sizes == sorted(sizes)


def test_a_run_merges_behind_its_older_state(tmp_path):
    run = runs.create(tmp_path / "run", {}, members=1)
    for update in range(50):
        run.write_metrics("rl", update, {"loss": [[float(update)]]})
        if update % 10 == 9:
            run.save_state("rl", update + 1, {"w": np.zeros(1)})
    names = sorted(path.stem for path in (run.path / "metrics").iterdir())
    # When the last part was written, the states 30 and 40 were kept.
    assert names[:2] == ["rl-000000", "rl-000016"]
    assert len(names) == 1 + 50 - 16
    assert run.metrics("rl")["loss"].to_pylist() == [float(update) for update in range(50)]
