"""Parts of metrics grow until they are full: nothing is lost at any moment, and few files stay."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents.runs import metrics
from ground import files
from tests.thrift import some

MEMBERS, CHUNK = 3, 2
RNG = np.random.default_rng(5)
VALUES = {
    "loss": RNG.normal(size=(400 * CHUNK, MEMBERS)).astype(np.float32),
    "return": RNG.normal(size=(400 * CHUNK, MEMBERS)),
}
VALUES["loss"][3::7, 1] = np.nan


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Parts that are full after some forty chunks."""
    monkeypatch.setattr(metrics, "FULL", 6000)


def write(folder: Path, index: int, scale: float = 1.0) -> None:
    part = slice(index * CHUNK, (index + 1) * CHUNK)
    rows = {name: scale * values[part].astype(values.dtype) for name, values in VALUES.items()}
    metrics.write(folder, "rl", index * CHUNK, rows, MEMBERS)


def check(folder: Path, chunks: int, scale: float = 1.0) -> None:
    table = metrics.read(folder, "rl", MEMBERS)
    assert table.num_rows == chunks * CHUNK * MEMBERS
    np.testing.assert_array_equal(table["update"].to_numpy(), np.repeat(np.arange(chunks * CHUNK), MEMBERS))
    for name, values in VALUES.items():
        column = table[name].to_numpy()
        assert column.dtype == values.dtype
        np.testing.assert_array_equal(column.reshape(-1, MEMBERS), scale * values[: chunks * CHUNK])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics"


def test_few_files_stay_and_none_grows_without_end(folder):
    for index in range(400):
        write(folder, index)
    check(folder, 400)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert 3 <= len(sizes) <= 20
    assert max(sizes) < 6000 + 3000


class Killed(Exception):
    pass


@pytest.mark.parametrize("chunks", [1, 17, 100])
def test_killed_while_a_part_is_written(folder, monkeypatch, chunks):
    for index in range(chunks):
        write(folder, index)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def struck(self, target):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", struck)
        with pytest.raises(Killed):
            write(folder, chunks)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write(folder, chunks)
    check(folder, chunks + 1)


@pytest.mark.parametrize("back_to", some([37, 0, 3, 99], 2))
def test_training_that_goes_back_replaces_what_it_writes_again(folder, back_to):
    for index in range(100):
        write(folder, index)
    for index in range(back_to, 100):
        write(folder, index, scale=2.0)
    table = metrics.read(folder, "rl", MEMBERS)
    loss = table["loss"].to_numpy().reshape(-1, MEMBERS)
    expected = VALUES["loss"][: 100 * CHUNK] * np.where(np.arange(100 * CHUNK) < back_to * CHUNK, 1, 2)[:, None]
    np.testing.assert_array_equal(loss, expected.astype(np.float32))


def test_parts_of_older_versions_are_read_and_gone_on_with(folder):
    """One part per chunk, some merged, and one that a kill left beside the part it had been merged into."""
    for first, last in [(0, 16), (10, 11), (16, 17), (17, 18), (18, 19)]:
        rows = slice(first * CHUNK, last * CHUNK)
        count = (last - first) * CHUNK
        table = pa.table({
            "stage": pa.repeat("rl", count * MEMBERS),
            "update": np.repeat(np.arange(first * CHUNK, last * CHUNK, dtype=np.int32), MEMBERS),
            "member": np.tile(np.arange(MEMBERS, dtype=np.int32), count),
            **{name: values[rows].reshape(-1) for name, values in VALUES.items()},
        })  # fmt: skip
        pq.write_table(table, folder / f"rl-{first * CHUNK:06d}.parquet", write_page_checksum=True)
    check(folder, 19)
    for index in range(17, 60):
        write(folder, index)
        check(folder, max(index + 1, 19))


def test_damage_is_left_to_the_reader(folder):
    for index in range(4):
        write(folder, index)
    damaged = folder / "rl-000000.parquet"
    good = damaged.read_bytes()
    damaged.write_bytes(b"PAR1")
    write(folder, 4)
    write(folder, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["rl-000000.parquet", "rl-000008.parquet"]
    with pytest.raises(files.RunError, match=r"rl-000000\.parquet: damaged metrics"):
        metrics.read(folder, "rl", MEMBERS)
    damaged.unlink()
    damaged.symlink_to(folder / "nowhere")
    with pytest.raises(files.RunError, match=r"rl-000000\.parquet: cannot read it"):
        metrics.read(folder, "rl", MEMBERS)
    damaged.unlink()
    damaged.write_bytes(good)
    check(folder, 6)


@pytest.mark.slow
def test_reading_while_chunks_are_written(folder):
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
            write(folder, index)
    finally:
        ended.set()
        reader.join()
    assert len(sizes) > 3
    assert sizes == sorted(sizes)
