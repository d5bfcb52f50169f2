"""Watching a run in other tools: TensorBoard, Weights & Biases, Trackio.

A run is there once, whatever its population: a series for each member and one for each point of the grid, the mean of
its members. They are what the run directory holds anyway; a tool that fails ends nothing but its own part.
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
import socket
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np

from agents.runs.config import Config
from ground import files
from ground.terminal import ConfigError

Tool = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "emojimaze"
"""What Weights & Biases and Trackio call the whole; `WANDB_PROJECT` and `TRACKIO_PROJECT` override it."""
MEAN = "mean"
"""Name of the series of a point of the grid."""


class Sink(Protocol):
    """One tool."""

    def numbers(self, stage: str, first: int, series: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Some updates of a stage from `first` on: series → metric → float64[updates]."""

    def keep(self, kind: str, paths: Sequence[Path], document: Mapping[str, Any]) -> None:
        """Files and a document, such as figures and a summary."""

    def close(self) -> None:
        """The last call."""


def series_of(config: Config) -> dict[str, list[int]]:
    """The series of a population: name → the members whose mean it is.

    A member is called by its point of the grid and its seed, as `rl.learning_rate=0.001/seed-3`; without a sweep it is
    `seed-3`.
    """
    single: dict[str, list[int]] = {}
    means: dict[str, list[int]] = {}
    for index, member in enumerate(config.members):
        point = f"{member.label}/" if member.label else ""
        single[f"{point}seed-{member.seed}"] = [index]
        means.setdefault(f"{point}{MEAN}", []).append(index)
    return means | single


class Tracker:
    """What a command tells of its work; nothing where no tool was asked for.

    Args:
        sink: the tool, if any.
        series: from `series_of`.
        complain: is told once, when the tool fails.
    """

    def __init__(
        self,
        sink: Sink | None,
        series: Mapping[str, Sequence[int]],
        complain: Callable[[str], None] = lambda what: None,
    ):
        self._sink, self._series, self._complain = sink, series, complain

    def update(self, stage: str, first: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Tell some updates of a stage.

        Args:
            stage: its name.
            first: number of the first of them.
            metrics: name → float[M, updates], of all members of the run. The mean leaves out who is not finite.
        """
        if self._sink is None:
            return
        told: dict[str, dict[str, np.ndarray]] = {}
        for name, members in self._series.items():
            rows = {metric: np.asarray(values, np.float64)[list(members)] for metric, values in metrics.items()}
            told[name] = {metric: _mean(values) for metric, values in rows.items()}
        self._try(lambda sink: sink.numbers(stage, first, told))

    def keep(self, kind: str, paths: Iterable[Path], document: Mapping[str, Any]) -> None:
        """Hand over files and a document at the end of something.

        Args:
            kind: what they are, such as `summary` or `verdict`.
            paths: pictures and other files.
            document: plain JSON values.
        """
        there = [path for path in paths if path.is_file()]
        self._try(lambda sink: sink.keep(kind, there, document))

    def close(self) -> None:
        """The last call."""
        self._try(lambda sink: sink.close())
        self._sink = None

    def _try(self, call: Callable[[Sink], None]) -> None:
        try:
            if self._sink is not None:
                call(self._sink)
        except Exception as error:  # of any library, network or disk
            self._sink = None
            self._complain(f"tracking failed ({files.one_line(error)[:200]}); the work goes on without")


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 of what is finite, float64[N]; NaN where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(axis=0) / finite.sum(axis=0)


@contextlib.contextmanager
def watch(
    tool: Tool | None,
    folder: Path,
    document: Mapping[str, Any],
    series: Mapping[str, Sequence[int]] = MappingProxyType({}),
    complain: Callable[[str], None] = lambda what: None,
    name: str = "",
) -> Iterator[Tracker]:
    """A tracker for as long as the work lasts.

    Args:
        tool: which; None tracks nothing.
        folder: of the run; TensorBoard's files lie in its `tensorboard`, offline files of Weights & Biases in its
            `wandb`.
        document: the config, plain JSON values.
        series: from `series_of`.
        complain: is told once, when the tool fails.
        name: what the tool calls it; that of the folder by default.

    Raises:
        ConfigError: the tool is not installed, or does not start.
    """
    tracker = Tracker(_SINKS[tool](folder, document, name or folder.name) if tool else None, series, complain)
    try:
        yield tracker
    finally:
        tracker.close()


def check(tool: Tool | None) -> None:
    """Refuse a tool that is not installed, before anything is done; raises ConfigError."""
    if tool:
        _package(tool, tool)


def _package(tool: Tool, *names: str) -> list[Any]:
    """Modules of a tool's package, imported now.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        extra = "--with trackio" if tool == "trackio" else "--extra tracking"
        raise ConfigError(f"--track={tool}: {error}; start it by uv run {extra}, or leave --track out") from None


def _flat(document: Any, prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested dicts and short lists, by their dotted names."""
    if isinstance(document, Mapping):
        items = [(str(name), value) for name, value in document.items()]
    elif isinstance(document, (list, tuple)):
        items = [(str(place), value) for place, value in enumerate(document)]
    else:
        number = isinstance(document, (int, float)) and not isinstance(document, bool) and math.isfinite(document)
        return {prefix: float(document)} if number else {}
    return {k: v for name, value in items for k, v in _flat(value, f"{prefix}.{name}" if prefix else name).items()}


class TensorBoard:
    """Event files, as TensorBoard reads them: a folder for each series; no thread and no open file in between."""

    def __init__(self, folder: Path, document: Mapping[str, Any], name: str):
        self._events, self._summaries, self._tensors, self._types, self._records = _package(
            "tensorboard",
            "tensorboard.compat.proto.event_pb2",
            "tensorboard.compat.proto.summary_pb2",
            "tensorboard.compat.proto.tensor_pb2",
            "tensorboard.compat.proto.types_pb2",
            "tensorboard.summary.writer.record_writer",
        )
        self._folder = folder / "tensorboard"
        self._name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._write("", [(0, [self._text("config", document)])])

    def numbers(self, stage: str, first: int, series: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        for name, metrics in series.items():
            rows = _rows(first, {f"{stage}/{metric}": values for metric, values in metrics.items()})
            one = self._summaries.Summary.Value
            steps = [(step, [one(tag=tag, simple_value=value) for tag, value in row.items()]) for step, row in rows]
            self._write(name, steps)

    def keep(self, kind: str, paths: Sequence[Path], document: Mapping[str, Any]) -> None:
        from PIL import Image  # late, so that a wrong option is answered at once

        values = [self._text(kind, document)]
        for path in paths:
            if path.suffix in (".png", ".gif"):
                with Image.open(path) as picture:
                    width, height = picture.size
                image = self._summaries.Summary.Image(
                    width=width, height=height, colorspace=4, encoded_image_string=path.read_bytes()
                )
                values.append(self._summaries.Summary.Value(tag=f"{kind}/{path.stem}", image=image))
        self._write("", [(0, values)])

    def close(self) -> None:
        pass

    def _text(self, tag: str, document: Mapping[str, Any]) -> Any:
        """A document for the tab of texts, as a block of Markdown."""
        words = "    " + json.dumps(document, indent=2, ensure_ascii=False).replace("\n", "\n    ")
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING, string_val=[words.encode()])
        plugin = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        metadata = self._summaries.SummaryMetadata(plugin_data=plugin)
        return self._summaries.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)

    def _write(self, series: str, steps: Sequence[tuple[int, Sequence[Any]]]) -> None:
        path = self._folder / series / self._name
        path.parent.mkdir(parents=True, exist_ok=True)
        now, fresh = time.time(), not path.exists()
        events = [self._events.Event(wall_time=now, file_version="brain.Event:2")] if fresh else []
        for step, values in steps:
            summary = self._summaries.Summary(value=values)
            events.append(self._events.Event(wall_time=now, step=step, summary=summary))
        with path.open("ab") as file:
            writer = self._records.RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())


class _Service:
    """What Weights & Biases and Trackio have in common: rows of all series on one axis, of all stages' updates."""

    _run: Any
    """What is told."""

    def _begin(self, tool: Tool, document: Mapping[str, Any], remedy: str, **options: Any) -> Any:
        """Start the tool; what its `init` gives."""
        (self._module,) = _package(tool, tool)
        updates = {stage: int((document.get(stage) or {}).get("updates", 0)) for stage in ("pretrain", "sft", "rl")}
        self._start = dict(zip(updates, np.cumsum([0, *updates.values()]).tolist(), strict=False))
        project = os.environ.get(f"{tool.upper()}_PROJECT", PROJECT)
        try:
            return self._module.init(project=project, config=dict(document), resume="allow", **options)
        except Exception as error:  # of disk, network, account or package
            raise ConfigError(f"--track={tool}: {files.one_line(error)}; {remedy}") from None

    def numbers(self, stage: str, first: int, series: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        columns = {f"{stage}/{metric}/{name}": x for name, metrics in series.items() for metric, x in metrics.items()}
        for update, row in _rows(first, columns):
            self._run.log({f"{stage}/update": update, **row}, step=self._start[stage] + update)

    def close(self) -> None:
        self._run.finish()


class Wandb(_Service):
    """Weights & Biases; `WANDB_MODE=offline` writes files that `wandb sync` sends later."""

    def __init__(self, folder: Path, document: Mapping[str, Any], name: str):
        folder.mkdir(parents=True, exist_ok=True)
        settings, remedy = {"console": "off", "silent": True}, "log in by wandb login, or set WANDB_MODE=offline"
        own = {"dir": str(folder), "name": name, "id": _identity(folder), "settings": settings}
        self._run = self._begin("wandb", document, remedy, **own)
        for stage in self._start:
            self._run.define_metric(f"{stage}/update")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/update")

    def keep(self, kind: str, paths: Sequence[Path], document: Mapping[str, Any]) -> None:
        self._run.summary.update({f"{kind}.{name}": value for name, value in _flat(document).items()})
        for path in paths:
            if path.suffix == ".png":
                self._run.log({f"{kind}/{path.stem}": self._module.Image(str(path))})
        artifact = self._module.Artifact(f"{kind}-{self._run.id}", type=kind)
        for path in paths:
            artifact.add_file(str(path))
        with artifact.new_file(f"{kind}.json", encoding="utf-8") as file:
            json.dump(document, file, indent=2, ensure_ascii=False)
        self._run.log_artifact(artifact)


class Trackio(_Service):
    """Trackio, whose files lie in `TRACKIO_DIR` on this machine unless it is told to go elsewhere."""

    def __init__(self, folder: Path, document: Mapping[str, Any], name: str):
        self._begin("trackio", document, "leave --track out", name=f"{name}-{_identity(folder)}")
        self._run = self._module

    def keep(self, kind: str, paths: Sequence[Path], document: Mapping[str, Any]) -> None:
        told: dict[str, Any] = {f"{kind}/{name}": value for name, value in _flat(document).items()}
        pictures = [path for path in paths if path.suffix == ".png"]
        told |= {f"{kind}/{path.stem}": self._module.Image(str(path)) for path in pictures}
        self._run.log(told)


def _rows(first: int, columns: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, float]]]:
    """Each update from the first on, and its numbers by name, of columns [updates]."""
    for place, row in enumerate(zip(*columns.values(), strict=True)):
        yield first + place, dict(zip(columns, map(float, row), strict=True))


def _identity(folder: Path) -> str:
    """A name that a run keeps when it is resumed and shares with no other: of its directory and when it was made."""
    config = folder / "config.json"
    made = files.read_json(config).get("created", "") if config.exists() else ""
    return hashlib.sha256(f"{folder.name} {made} {folder.resolve()}".encode()).hexdigest()[:12]


_SINKS: Mapping[str, Callable[[Path, Mapping[str, Any], str], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}
assert set(_SINKS) == set(typing.get_args(Tool))
