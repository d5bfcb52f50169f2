import contextlib
import json
import os
import pickle  # to prove that nothing is unpickled
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ground import checkpoints

DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "int4", "complex64"),
)
SHAPES = ((), (1,), (5,), (2, 3), (0,), (3, 0))


def random_bits(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any bit pattern of the dtype: NaN payloads, negative zeros, subnormals."""
    rng = np.random.default_rng(abs(hash((dtype, shape))))
    kind = jnp.dtype(dtype)
    if dtype in ("bool", "int4"):
        return rng.integers(0, 2, shape).astype(kind)
    data = rng.integers(0, 256, (*shape, kind.itemsize), dtype=np.uint8)
    return data.view(kind).reshape(shape)


def assert_same(left, right) -> None:
    """Equal structure, types of containers, dtypes, shapes and bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def tree() -> dict:
    return {
        "layer": {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.ones((2, 3), jnp.bfloat16)},
        "count": np.array(7, np.int32),
        "empty": np.zeros((2, 0), np.float32),
        "mask": np.array([True, False]),
    }


@pytest.fixture
def saved(tmp_path: Path, tree: dict) -> Path:
    checkpoints.save(tmp_path / "x", tree)
    return tmp_path / "x"


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_every_dtype_and_shape_is_bit_equal(tmp_path):
    tree: dict = {dtype: {str(shape): random_bits(dtype, shape) for shape in SHAPES} for dtype in DTYPES}
    tree["negative zero"] = {"a": -np.zeros((4, 4), np.float32)}
    tree["odd layouts"] = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::-3],
        "scalar": np.float32(3),
    }
    checkpoints.save(tmp_path / "x", tree)
    assert_same(checkpoints.load(tmp_path / "x"), jax.tree.map(np.asarray, tree))
    assert_same(checkpoints.load(tmp_path / "x", tree), tree)


@pytest.mark.parametrize(
    "keys", [["a/b", "a.b", "", ".", "..", "🟩", "%2F", "a'b", '"', "a\nb", "x" * 300], [0, 1, 10]]
)
def test_odd_keys(tmp_path, keys):
    tree = {key: {"a": np.full(2, i)} for i, key in enumerate(keys)}
    checkpoints.save(tmp_path / "x", tree)
    assert_same(checkpoints.load(tmp_path / "x"), tree)


@pytest.mark.parametrize(
    "tree", [{}, {"a": np.zeros(0)}, np.arange(3)], ids=["no leaf", "nothing stored", "bare array"]
)
def test_small_trees(tmp_path, tree):
    checkpoints.save(tmp_path / "x", tree)
    assert_same(checkpoints.load(tmp_path / "x"), tree)
    assert_same(checkpoints.load(tmp_path / "x", tree), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_optimiser_state_with_like(tmp_path, dtype):
    parameters = {"w": jnp.ones((2, 3), dtype), "b": jnp.zeros((), dtype)}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = optimiser.init(parameters)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer count
        state = optimiser.update(parameters, state, parameters)[1]
    injected = optax.inject_hyperparams(optax.adamw)(1e-3).init(parameters)
    tree = (parameters, state, injected, [jax.random.key_data(jax.random.key(3)), None])
    checkpoints.save(tmp_path / "x", tree)
    for like in (tree, jax.eval_shape(lambda: tree)):
        loaded = checkpoints.load(tmp_path / "x", like)
        assert_same(loaded, tree)
    with pytest.raises(checkpoints.CheckpointError, match="`like`"):
        checkpoints.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"extra": np.zeros(2)}, "['extra'] is absent, expected float64[2]"),
        (lambda t: {k: v for k, v in t.items() if k != "count"}, "['count'] is int32[], expected absent"),
        (lambda t: t | {"count": np.zeros(1, np.int32)}, "['count'] is int32[], expected int32[1]"),
        (lambda t: t | {"mask": np.zeros(2, np.int8)}, "['mask'] is bool[2], expected int8[2]"),
        (lambda t: t | {"empty": np.zeros((0, 2), np.float32)}, "['empty'] is float32[2, 0], expected float32[0, 2]"),
        (lambda t: list(t.values()), "(and "),
    ],
)
def test_mismatch_says_what_differs(saved, tree, change, words):
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load(saved, change(tree))
    assert type(caught.value) is checkpoints.CheckpointError
    message = str(caught.value)
    assert words in message
    assert str(saved) in message
    assert "use the config" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "leaf",
    [3, 2.5, "text", jax.random.key(0), np.array(["text"]), np.array([object()])],
    ids=["int", "float", "str", "key", "strings", "objects"],
)
def test_leaves_that_are_no_arrays_are_refused(tmp_path, leaf):
    with pytest.raises(checkpoints.CheckpointError, match=r"leaf \['a'\]\['b'\] is "):
        checkpoints.save(tmp_path / "x", {"a": {"b": leaf}})
    assert not list(tmp_path.iterdir())


def test_missing_checkpoint(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint there"):
        checkpoints.load(tmp_path / "x")
    with pytest.raises(checkpoints.CheckpointError, match="use a folder that exists"):
        checkpoints.save(tmp_path / "gone" / "x", {"a": np.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_damage_to_any_file_is_noticed_or_harmless(saved, tree, capfd):
    rng = random.Random(0)
    messages = []
    for file in files_of(saved):
        harmless = file.name == "manifest.json"  # a changed space or line ending
        good = file.read_bytes()
        cuts = [good[: len(good) // 2], b"", good[:-1], good + b"\x00", None]
        flips = [bytearray(good) for _ in range(8)]
        for flip in flips:
            flip[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        for bad in (*cuts, *flips):
            if bad is None:
                file.unlink()
            else:
                file.write_bytes(bad)
            for like in (None, tree):
                try:
                    assert_same(checkpoints.load(saved, like), tree)
                    assert harmless
                except checkpoints.DamagedError as error:
                    messages.append(str(error))
        file.write_bytes(good)
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)
    assert capfd.readouterr() == ("", "")
    assert_same(checkpoints.load(saved), tree)


def test_every_part_of_the_manifest_counts(saved, tree):
    file = saved / "manifest.json"
    good = file.read_bytes()
    for i in range(0, len(good), 5):
        file.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        try:
            checkpoints._read_manifest(saved)
        except checkpoints.DamagedError:
            continue
        assert json.loads(file.read_bytes()) == json.loads(good)  # white space


def test_arrays_that_differ_from_the_manifest_are_noticed(saved, monkeypatch):
    leaves, files = checkpoints._read_manifest(saved)
    for change in ({"crc32": 0}, {"dtype": "uint8"}, {"shape": [2, 12]}):
        altered = [leaf | change if leaf["path"] == "['layer']['w']" else leaf for leaf in leaves]
        monkeypatch.setattr(checkpoints, "_read_manifest", lambda path, altered=altered: (altered, files))
        with pytest.raises(checkpoints.DamagedError, match=r"leaf .* is not as it was written"):
            checkpoints.load(saved)


def test_whole_files_that_cannot_be_read_are_not_called_damaged(saved, monkeypatch):
    def fails():
        raise MemoryError("no room")

    monkeypatch.setattr(checkpoints, "_checkpointer", fails)
    with pytest.raises(checkpoints.CheckpointError, match=r"cannot be read \(no room\), though its files") as caught:
        checkpoints.load(saved)
    assert not isinstance(caught.value, checkpoints.DamagedError)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "null", "{}", '{"crc32": 0}', '{"crc32": 0, "leaves": 1}', "\xff"]
)
def test_hostile_manifest(saved, text):
    (saved / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(checkpoints.DamagedError, match="manifest"):
        checkpoints.load(saved)


def test_newer_format_is_refused(saved, monkeypatch):
    monkeypatch.setattr(checkpoints, "SCHEMA", 0)
    with pytest.raises(checkpoints.CheckpointError, match="update emojimaze"):
        checkpoints.load(saved)


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_planted_pickle_is_not_executed(saved, tmp_path):
    marker = tmp_path / "executed"
    payload = pickle.dumps(Bomb(marker))
    for name in ("planted.pkl", "arrays/planted.pickle"):
        (saved / name).write_bytes(payload)
    checkpoints.load(saved)
    (saved / "arrays" / "checkpoint").write_bytes(payload)  # the name of a legacy format that orbax looks for
    for file in files_of(saved):
        good = file.read_bytes()
        file.write_bytes(payload)
        with contextlib.suppress(checkpoints.CheckpointError):
            checkpoints.load(saved)
        file.write_bytes(good)
    assert not marker.exists()


def test_save_replaces_and_sweeps_leftovers(saved, tree, tmp_path):
    leftover = tmp_path / ".y.partial-0123"
    leftover.mkdir()
    (leftover / "junk").touch()
    checkpoints.save(saved, {"other": np.ones(3)})
    assert_same(checkpoints.load(saved), {"other": np.ones(3)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_full_disk_keeps_the_old_checkpoint(saved, tree, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    big = np.random.default_rng(0).normal(size=100_000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(checkpoints.CheckpointError, match="free some space") as caught:
            checkpoints.save(saved, {"a": big})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert_same(checkpoints.load(saved), tree)


def test_remove(saved, tmp_path):
    checkpoints.remove(saved)
    assert not list(tmp_path.iterdir())
    with pytest.raises(checkpoints.RunError, match="cannot delete it"):
        checkpoints.remove(saved)


def test_silent_and_quick(tmp_path, tree, capfd):
    checkpoints.save(tmp_path / "x", tree)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        checkpoints.save(tmp_path / "x", tree)
        checkpoints.load(tmp_path / "x")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # 0.02 s on an idle machine
    assert capfd.readouterr() == ("", "")


SAVE_FOREVER = """
import os, sys, warnings
warnings.simplefilter("ignore")  # a fork before any JAX backend starts is safe
import numpy as np
from ground import checkpoints
for line in sys.stdin:
    if not (child := os.fork()):
        i = 0
        while True:
            for name in "xy":
                checkpoints.save(f"{sys.argv[1]}/{name}", {"a": np.full((50, 50), i), "b": {"c": np.full(7, i)}})
            i += 1
            print(os.getpid(), flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_kill_during_save(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    parent = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, tmp_path],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    rng = random.Random(1)
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(10):
            parent.stdin.write("go\n")
            parent.stdin.flush()
            saver = int(parent.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
            os.kill(saver, signal.SIGKILL)
            while parent.stdout.readline() != "ended\n":
                pass
            for path in (entry for entry in tmp_path.iterdir() if not entry.name.startswith(".")):
                loaded = checkpoints.load(path)
                assert len({*loaded["a"].flat, *loaded["b"]["c"].flat}) == 1
    checkpoints.save(tmp_path / "z", {"a": np.ones(2)})
    assert {entry.name for entry in tmp_path.iterdir()} <= {"x", "y", "z"}


def test_a_checkpoint_does_not_tell_where_it_was_made(tmp_path):
    checkpoints.save(tmp_path / "here", {"x": np.arange(3.0)})
    told = b"".join(file.read_bytes() for file in (tmp_path / "here").rglob("*") if file.is_file())
    assert str(tmp_path).encode() not in told
