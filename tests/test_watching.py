"""A run in other tools: what they hold is what the run directory holds, series by series."""

import io
import json
import sys
import time

import numpy as np
import pytest
from PIL import Image

import train
from agents import runs
from agents.runs import reporting, watching
from ground import terminal
from ground.terminal import ConfigError
from tests import tiny

GRID = tiny.changed(population={"seeds": 2, "sweep": ("rl.learning_rate=1e-4,1e-2",)})
POINTS = ["rl.learning_rate=0.0001", "rl.learning_rate=0.01"]


class Kept:
    """A tool that keeps what it is told, or fails."""

    def __init__(self, fails=False):
        self.fails, self.told, self.closed = fails, [], 0

    def numbers(self, stage, first, series):
        if self.fails:
            raise OSError(28, "No space left on device")
        self.told.append((stage, first, series))

    def keep(self, kind, paths, document):
        self.told.append((kind, paths, document))

    def close(self):
        self.closed += 1


def test_there_is_a_series_for_each_member_and_each_point():
    series = watching.series_of(GRID)
    assert series == {
        f"{POINTS[0]}/mean": [0, 1], f"{POINTS[1]}/mean": [2, 3],
        f"{POINTS[0]}/seed-0": [0], f"{POINTS[0]}/seed-1": [1],
        f"{POINTS[1]}/seed-0": [2], f"{POINTS[1]}/seed-1": [3],
    }  # fmt: skip
    assert list(watching.series_of(tiny.CONFIG)) == ["mean", "seed-0", "seed-1"]


def test_means_leave_out_who_has_diverged():
    sink = Kept()
    tracker = watching.Tracker(sink, watching.series_of(GRID))
    tracker.update("rl", 4, {"loss": np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan], [5.0, np.nan]])})
    ((stage, first, series),) = sink.told
    assert (stage, first) == ("rl", 4)
    np.testing.assert_array_equal(series[f"{POINTS[0]}/mean"]["loss"], [2.0, 2.0])
    np.testing.assert_array_equal(series[f"{POINTS[1]}/mean"]["loss"], [5.0, np.nan])
    np.testing.assert_array_equal(series[f"{POINTS[1]}/seed-1"]["loss"], [5.0, np.nan])


def test_a_tool_that_fails_is_dropped_in_one_line(tmp_path):
    said, sink = [], Kept(fails=True)
    tracker = watching.Tracker(sink, watching.series_of(GRID), said.append)
    for _ in range(2):
        tracker.update("rl", 0, {"loss": np.zeros((4, 1))})
    tracker.keep("summary", [tmp_path / "none.png"], {})
    tracker.close()
    assert said == ["tracking failed (No space left on device); the work goes on without"]
    assert not sink.told


def test_without_a_tool_nothing_is_imported(tmp_path):
    with watching.watch(None, tmp_path, {}) as tracker:
        tracker.update("rl", 0, {"loss": np.zeros((4, 1))})
        tracker.keep("summary", [], {})
    assert not list(tmp_path.iterdir())
    watching.check(None)


@pytest.mark.parametrize("tool", ["tensorboard", "wandb", "trackio"])
def test_a_tool_that_is_not_installed_is_refused_before_a_run_is_made(tool, monkeypatch, tmp_path):
    parts = [name for name in sys.modules if name.startswith(f"{tool}.")]  # other tests may have imported some
    for name in (tool, *parts):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"--track={tool}: .*; start it by uv run --(extra tracking|with trackio)"):
        watching.check(tool)
    with pytest.raises(ConfigError, match=f"--track={tool}"):
        train.train(tiny.CONFIG, tmp_path / "run", track=tool)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run that TensorBoard has watched, and what it said in a log."""
    pytest.importorskip("tensorboard")
    console = terminal.console(markup=True, file=io.StringIO(), width=120)
    path = tmp_path_factory.mktemp("runs") / "run"
    run = train.train(tiny.CONFIG, path, console, evaluate=False, track="tensorboard")
    return run, console.file.getvalue()


def accumulated(folder):
    """An event file as TensorBoard reads it."""
    from tensorboard.backend.event_processing import event_accumulator

    (_,) = folder.glob("events.out.tfevents.*")
    return event_accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0}).Reload()


@pytest.mark.slow
def test_tensorboard_reads_back_every_metric_of_every_member(tracked):
    run, _ = tracked
    folder = run.path / "tensorboard"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"mean", "seed-0", "seed-1"}
    for stage in ("pretrain", "rl"):
        table = run.metrics(stage)
        names = [name for name in table.column_names if name not in ("stage", "update", "member", "seed")]
        values = {name: table[name].to_numpy().reshape(-1, 2) for name in names}
        for series, members in {"mean": [0, 1], "seed-0": [0], "seed-1": [1]}.items():
            events = accumulated(folder / series)
            assert {tag for tag in events.Tags()["scalars"] if tag.startswith(f"{stage}/")} == {
                f"{stage}/{name}" for name in names
            }
            for name in names:
                read = events.Scalars(f"{stage}/{name}")
                assert [event.step for event in read] == list(range(len(values[name])))
                expected = values[name][:, members].mean(axis=1)
                np.testing.assert_allclose([event.value for event in read], expected, rtol=1e-6)


def test_config_and_summary_are_texts(tracked):
    run, _ = tracked
    events = accumulated(run.path / "tensorboard")
    for tag, document in (("config", run.document), ("summary", run.summary())):
        (event,) = events.Tensors(tag)
        lines = event.tensor_proto.string_val[0].decode().splitlines()
        assert all(line.startswith("    ") for line in lines)
        assert json.loads("\n".join(lines)) == json.loads(json.dumps(document))


def test_figures_are_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    paths = [tmp_path / "curve.png", tmp_path / "replay.gif", tmp_path / "curve.csv"]
    for path in paths[:2]:
        Image.new("RGB", (7, 5)).save(path)
    paths[2].write_text("x")
    with watching.watch("tensorboard", tmp_path, {}) as tracker:
        tracker.keep("summary", paths, {"answer": 42})
    events = accumulated(tmp_path / "tensorboard")
    assert set(events.Tags()["images"]) == {"summary/curve", "summary/replay"}
    (image,) = events.Images("summary/curve")
    assert (image.width, image.height) == (7, 5)
    assert Image.open(io.BytesIO(image.encoded_image_string)).format == "PNG"


def transaction_log(path):
    """The records of a `.wandb` file: seven bytes, then blocks of 32 KiB with pieces of records, as in LevelDB."""
    data, at, piece = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if room < 7 or not kind:
            at += room
            continue
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield piece
            piece = b""


def test_weights_and_biases_keep_it_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Image.new("RGB", (7, 5)).save(tmp_path / "curve.png")
    document = {"pretrain": {"updates": 8}, "rl": {"updates": 4}}
    with watching.watch("wandb", tmp_path / "run", document, watching.series_of(GRID)) as tracker:
        tracker.update("rl", 0, {"return": np.arange(8.0).reshape(4, 2)})
        tracker.keep("summary", [tmp_path / "curve.png"], {"return": {"after_rl": [1.0, 2.0]}})
    assert wandb.run is None
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    rows, kinds, totals, records = [], [], {}, []
    for _ in range(300):  # a process of its own writes it
        records = [messages.Record.FromString(data) for data in transaction_log(path)]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        elif record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact"):
            kinds.append(record.request.log_artifact.artifact.type)
        elif record.WhichOneof("record_type") == "artifact":
            kinds.append(record.artifact.type)
        elif record.WhichOneof("record_type") == "summary":
            totals |= {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
    told = [row for row in rows if "rl/update" in row]
    assert [(row["_step"], row["rl/update"]) for row in told] == [(8, 0), (9, 1)]
    assert [row[f"rl/return/{POINTS[1]}/mean"] for row in told] == [5.0, 6.0]
    assert [row[f"rl/return/{POINTS[0]}/seed-1"] for row in told] == [2.0, 3.0]
    assert any(key.startswith("summary/curve") for row in rows for key in row)
    assert "summary" in kinds
    assert json.loads(totals["summary.return.after_rl.1"]) == 2.0


class Recorder:
    """A module of a tool that notes how it is called."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments, **options: self.calls.append((name, arguments, options))


def test_trackio_is_told_the_same(tmp_path, monkeypatch):
    tool = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", tool)
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    document = {"pretrain": {"updates": 8}, "sft": {"updates": 0}, "rl": {"updates": 4}}
    with watching.watch("trackio", tmp_path, document, watching.series_of(tiny.CONFIG)) as tracker:
        tracker.update("rl", 2, {"return": np.array([[1.0, 2.0], [3.0, 6.0]])})
        tracker.keep("summary", [tmp_path / "none.png"], {"a": {"b": [1, None]}})
    (begun, _, how), *told = tool.calls
    assert (begun, how["project"], how["config"], how["resume"]) == ("init", "mine", document, "allow")
    assert how["name"] == f"{tmp_path.name}-{watching._identity(tmp_path)}"
    rows = [{"rl/return/mean": 2.0, "rl/return/seed-0": 1.0, "rl/return/seed-1": 3.0}]
    rows += [{"rl/return/mean": 4.0, "rl/return/seed-0": 2.0, "rl/return/seed-1": 6.0}]
    assert told == [
        ("log", ({"rl/update": 2, **rows[0]},), {"step": 10}),
        ("log", ({"rl/update": 3, **rows[1]},), {"step": 11}),
        ("log", ({"summary/a.b.0": 1.0},), {}),
        ("finish", (), {}),
    ]


# In a log


def test_off_a_terminal_a_stage_says_how_far_it_is(tracked):
    _, text = tracked
    lines = text.splitlines()
    assert lines.index("pretrain: compiling") < lines.index("rl: compiling")
    (line,) = (line for line in lines if line.startswith("pretrain: update 2 of 8, return "))
    assert line.endswith(" left")
    assert "tok/s" in line
    assert sum(": update " in line for line in lines) <= 2  # thirty seconds apart


def test_lines_are_apart_and_only_in_logs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    lines = reporting.Lines(terminal.console(file=file, width=120))
    for now in (0.0, 29.0, 31.0, 60.0, 62.0):
        clock[0] = now
        lines.tell("rl", int(now), 100, "+1.5", "3 k tok/s", 100 - now)
    assert file.getvalue().splitlines() == [
        "rl: update 0 of 100, return +1.5, 3 k tok/s, 100 s left",
        "rl: update 31 of 100, return +1.5, 3 k tok/s, 69 s left",
        "rl: update 62 of 100, return +1.5, 3 k tok/s, 38 s left",
    ]
    file = io.StringIO()
    lines = reporting.Lines(terminal.console(file=file, force_terminal=True))
    lines.say("rl: compiling")
    lines.tell("rl", 1, 2, "+1", "1 k tok/s", 1.0)
    assert not file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")]
)
def test_times_in_words(seconds, words):
    assert reporting.left(seconds) == words


def test_a_run_may_be_resumed_with_a_tool(tmp_path):
    command = train.parse(["--resume", str(tmp_path), "--track", "tensorboard"])
    assert (command.resume, command.track) == (tmp_path, "tensorboard")
    with pytest.raises(ConfigError, match="give no other option"):
        train.parse(["--resume", str(tmp_path), "--track=wandb", "--seed", "1"])


def test_runs_have_names_of_their_own(tmp_path):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        runs.create(folder, {"seed": 1}, members=1)
    names = {watching._identity(folder) for folder in (*folders, *folders)}
    assert len(names) == 2
