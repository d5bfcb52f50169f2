import json
import pickle  # to prove that nothing is unpickled
import random
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import runs
from tests.test_checkpoints import Bomb, assert_same, files_of

CONFIG = {"seed": 3, "stages": ["pretrain", "rl"], "rl": {"learning_rate": 1e-4, "clip_high": float("inf")}}


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path / "run", CONFIG, members=3)


def chunk(updates: int, members: int = 3, start: int = 0) -> dict:
    values = start * 10.0 + np.arange(updates * members, dtype=np.float32).reshape(updates, members)
    return {"loss": values, "return": jnp.asarray(values + 0.5, jnp.bfloat16), "episodes": values.astype(np.int32)}


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in files_of(folder)}


def assert_clear(error: BaseException, *words: object) -> None:
    """One line that contains the words and offers a remedy."""
    message = str(error)
    assert "\n" not in message
    assert "; " in message
    assert [word for word in words if str(word) not in message] == []


# Making and opening


def test_create_then_open(run):
    again = runs.open(run.path)
    assert (again.path, again.document, again.members) == (run.path, run.document, run.members)
    assert again.document == CONFIG
    assert again.members == 3
    document = json.loads((run.path / "config.json").read_text())
    assert document["schema"] == 1
    assert document["packages"]["jax"] == jax.__version__
    assert document["device"]["platform"] == jax.default_backend()
    assert set(document["git"]) == {"commit", "dirty", "changes"}
    assert [entry.name for entry in run.path.iterdir() if not entry.name.startswith(".")] == ["config.json"]


def test_create_refuses_what_exists(run, tmp_path):
    before = snapshot(tmp_path)
    with pytest.raises(runs.RunError) as caught:
        runs.create(run.path, {}, members=1)
    assert_clear(caught.value, f"{run.path}: exists", "--run-dir", "--resume")
    (tmp_path / "file").touch()
    with pytest.raises(runs.RunError, match="file: cannot make it"):
        runs.create(tmp_path / "file", {}, members=1)
    (tmp_path / "file").unlink()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["theirs.txt", "thesis.partial", ".theirs"])
def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    with pytest.raises(runs.RunError, match="exists"):
        runs.create(tmp_path, {}, members=1)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_create_in_what_a_killed_create_left(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.json.123.partial").write_text("{")
    assert runs.create(tmp_path / "run", {}, members=1).members == 1


def test_config_must_be_plain(tmp_path):
    with pytest.raises(runs.RunError) as caught:
        runs.create(tmp_path / "run", {"rl": {"advantages": [1, object()]}}, members=1)
    assert_clear(caught.value, "config.rl.advantages[1] is of type object")
    with pytest.raises(runs.RunError, match="at least one member"):
        runs.create(tmp_path / "run", {}, members=0)
    run = runs.create(tmp_path / "run", {"a": (1, np.float32(2)), "path": Path("x"), "none": None}, members=1)
    assert run.document == {"a": [1, 2.0], "path": "x", "none": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b"[" * 200_000, "not readable as JSON"),
        (b'{"a":' * 200_000, "not readable as JSON"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "not readable as JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"{}", "schema is missing"),
        (b'{"schema": true, "members": 1, "config": {}}', "schema is missing or wrong"),
        (b'{"schema": "1", "members": 1, "config": {}}', "schema is missing or wrong"),
        (b'{"schema": 0, "members": 1, "config": {}}', "schema is missing or wrong"),
        (b'{"schema": 2}', "schema 2 is newer"),
        (b'{"schema": 1, "members": 1.0, "config": {}}', "members is missing or wrong"),
        (b'{"schema": 1, "members": 0, "config": {}}', "members is missing or wrong"),
        (b'{"schema": 1, "members": 99999999999, "config": {}}', "members is missing or wrong"),
        (b'{"schema": 1, "members": NaN, "config": {}}', "members is missing or wrong"),
        (b'{"schema": 1, "members": 1, "config": []}', "config is missing or wrong"),
        (pickle.dumps(Bomb(Path("/nonexistent"))), "not readable as JSON"),
    ],
    ids=range(19),
)
def test_hostile_config(run, content, words):
    (run.path / "config.json").write_bytes(content)
    with pytest.raises(runs.RunError) as caught:
        runs.open(run.path)
    assert_clear(caught.value, run.path, words)
    (run.path / "summary.json").write_bytes(content)
    if b"{}" not in content and b"schema" not in content:
        with pytest.raises(runs.RunError, match=r"summary\.json: "):
            run.summary()


def test_open_refuses_other_folders(tmp_path):
    for path, words in (
        (tmp_path / "gone", "no such run directory"),
        (tmp_path, "no config.json"),
        (tmp_path / ("x" * 300), "cannot open it"),
        ("\0", "no such run directory"),
    ):
        with pytest.raises(runs.RunError) as caught:
            runs.open(path)
        assert_clear(caught.value, words)


def test_fresh_names(tmp_path):
    """Of jobs that begin in the same minute, before any of them has made its directory."""
    names = [runs.fresh_name(tmp_path / "runs", "maze").name for _ in range(50)]
    assert all(re.fullmatch(r"maze-\d{4}-\d\d-\d\d-\d{4}-[0-9a-f]{6}", name) for name in names)
    assert len(set(names)) == 50
    assert not list(tmp_path.iterdir())


def test_a_command_to_copy_is_quoted(tmp_path):
    run = runs.create(tmp_path / "a run; rm -r $HOME", {}, members=1)
    with pytest.raises(runs.RunError) as caught:
        run.summary()
    words = shlex.split(str(caught.value).partition("finish the run with ")[2])
    assert words == ["--resume", str(run.path)]


# Parameters


def test_parameters_and_their_order(run):
    tree = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "inner": {"b": jnp.ones((3,), jnp.bfloat16)}}
    names = ["init", "pretrain-000010", "pretrain", "sft", "rl-000001", "rl-000010", "rl-1000000", "rl"]
    for name in random.Random(0).sample(names, len(names)):
        run.save_parameters(name, tree)
    (run.path / "checkpoints" / "notes").mkdir()
    (run.path / "checkpoints" / ".rl.partial-12").mkdir()
    run.save_state("rl", 4, tree)
    assert run.checkpoints() == names
    loaded = run.parameters("rl-000010")
    assert_same(loaded, tree)
    assert isinstance(loaded["inner"]["b"], np.ndarray)
    assert runs.checkpoint_name("rl", 10) == "rl-000010"
    assert runs.checkpoint_name("sft") == "sft"


def test_shared_base_is_broadcast(run):
    run.save_parameters("pretrain", {"w": np.arange(4.0).reshape(1, 4), "s": np.ones((1,), jnp.bfloat16)})
    loaded = run.parameters("pretrain")
    assert loaded["s"].shape == (3,)
    assert loaded["s"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded["w"], np.tile(np.arange(4.0), (3, 1)))
    for shape in ((2, 4), (), (0,)):
        with pytest.raises(runs.RunError) as caught:
            run.save_parameters("rl", {"w": np.zeros(shape)})
        assert_clear(caught.value, "['w']", "3 members")
    assert run.checkpoints() == ["pretrain"]


@pytest.mark.parametrize(
    "name", ["rl", "", "..", "../../etc", "state", "rl-4", "rl-٠٠٠٠٠٠", "pretrain-0000000", "x-000001"]
)
def test_unknown_checkpoints(run, name):
    with pytest.raises(runs.RunError, match="there is none yet"):
        run.parameters(name)
    run.save_parameters("init", {"w": np.zeros(3)})
    run.save_parameters("pretrain", {"w": np.zeros(3)})
    with pytest.raises(runs.RunError) as caught:
        run.parameters(name)
    assert_clear(caught.value, "there are init, pretrain")
    if name != "rl":
        with pytest.raises(runs.RunError, match="no name of a checkpoint"):
            run.save_parameters(name, {"w": np.zeros(3)})


def test_damaged_parameters(run):
    run.save_parameters("rl", {"w": np.zeros(3)})
    next((run.path / "checkpoints" / "rl" / "arrays").rglob("*.ocdbt")).write_bytes(b"")
    with pytest.raises(runs.RunError) as caught:
        run.parameters("rl")
    assert_clear(caught.value, "checkpoints/rl", "damaged")


# Training states


def state_tree(value: int) -> dict:
    parameters = {"w": jnp.full((3, 4), value, jnp.float32)}
    return {"p": parameters, "o": optax.adamw(1e-3).init(parameters), "key": np.array([1, value], np.uint32)}


def abstract_state(stage: str) -> dict:
    assert stage in runs.STAGES
    return jax.eval_shape(lambda: state_tree(0))


def damage(folder: Path) -> None:
    file = next((folder / "arrays").rglob("*.ocdbt"))
    file.write_bytes(file.read_bytes()[:-3])


def test_states_keep_the_newest_two(run):
    assert run.load_state(abstract_state) is None
    for i, (stage, update) in enumerate([("pretrain", 10), ("pretrain", 20), ("rl", 5), ("rl", 10)]):
        run.save_state(stage, update, state_tree(i))
        state = run.load_state(abstract_state)
        assert state is not None
        assert (state.stage, state.update, state.note) == (stage, update, None)
        assert_same(state.tree, state_tree(i))
    assert sorted(entry.name for entry in (run.path / "checkpoints" / "state").iterdir()) == ["rl-000005", "rl-000010"]
    assert run.checkpoints() == []


def test_damaged_state_falls_back(run, capfd):
    run.save_state("pretrain", 20, state_tree(1))
    run.save_state("rl", 5, state_tree(2))
    damage(run.path / "checkpoints" / "state" / "rl-000005")
    state = run.load_state(abstract_state)
    assert (state.stage, state.update) == ("pretrain", 20)
    assert_same(state.tree, state_tree(1))
    assert "rl-000005 damaged; resuming from pretrain-000020" in state.note
    run.save_state("rl", 3, state_tree(3))  # the continuation forgets the damaged one
    state = run.load_state(abstract_state)
    assert (state.stage, state.update, state.note) == ("rl", 3, None)
    for folder in (run.path / "checkpoints" / "state").iterdir():
        damage(folder)
    with pytest.raises(runs.RunError) as caught:
        run.load_state(abstract_state)
    assert_clear(caught.value, "rl-000003, pretrain-000020 damaged", "delete this folder")
    assert capfd.readouterr() == ("", "")


def test_state_of_another_config_is_no_damage(run):
    run.save_state("rl", 4, state_tree(1))
    run.save_state("rl", 5, {"other": np.zeros(2)})
    with pytest.raises(runs.RunError) as caught:
        run.load_state(abstract_state)
    assert_clear(caught.value, "rl-000005", "does not fit")


def test_a_path_that_is_not_utf_8_is_refused_as_such(run):
    run.save_state("rl", 4, state_tree(1))
    path = run.path.rename(run.path.with_name("caf\udce9"))
    moved = runs.open(path)
    for call in (
        lambda: moved.load_state(abstract_state),
        lambda: moved.save_parameters("rl", {"w": np.zeros(3)}),
        lambda: runs.create(path / "new", {}, members=1),
    ):
        with pytest.raises(runs.RunError) as caught:
            call()
        assert_clear(caught.value, path, "its path is not UTF-8, which checkpoints need; rename the folder")
    assert [entry.name for entry in path.rglob("*") if entry.name in ("new", "rl")] == []
    state = runs.open(path.rename(run.path)).load_state(abstract_state)
    assert state
    assert state.update == 4


def test_unknown_stage(run):
    for call in (
        lambda: run.save_state("play", 1, {}),
        lambda: run.write_metrics("play", 1, {}),
        lambda: run.metrics("x"),
    ):
        with pytest.raises(runs.RunError) as caught:
            call()
        assert_clear(caught.value, "the stages are pretrain, sft, rl")
    with pytest.raises(runs.RunError):
        run.save_state("rl", -1, {})


# Summary and figures


def test_summary(run):
    with pytest.raises(runs.RunError) as caught:
        run.summary()
    assert_clear(caught.value, "no summary.json", "--resume")
    summary = {
        "schema": 1,
        "return": {"greedy": float("nan"), "after_rl": np.array([1.5, np.inf, -np.inf], np.float32)},
        "tokens": jnp.int32(4),
        "text": "🟩",
    }
    run.write_summary(summary)
    expected = {"schema": 1, "return": {"greedy": None, "after_rl": [1.5, None, None]}, "tokens": 4, "text": "🟩"}
    assert run.summary() == expected
    assert b"NaN" not in (run.path / "summary.json").read_bytes()
    with pytest.raises(runs.RunError, match=r"summary\.json\.a is of type set"):
        run.write_summary({"a": {1}})
    assert run.summary() == expected


def test_figure_and_analysis(run):
    assert run.figure("curve.pdf") == run.path / "figures" / "curve.pdf"
    assert run.analysis("updates.json") == run.path / "analysis" / "updates.json"
    assert (run.path / "figures").is_dir()
    assert (run.path / "analysis").is_dir()
