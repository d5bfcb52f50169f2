"""Measurements: registered functions from a run to an `xarray.Dataset`, kept beside the run and found again.

    @measure(version=1)
    def divergence(run: Run, checkpoint: str, *, episodes: int = 1024) -> xr.Dataset:
        \"\"\"How far a policy is from its base.

Args:
            episodes: played by each member.
        \"\"\"

A function that takes a `checkpoint` can be followed through training: it measures one, and is asked for each. What it
returns has a `member` axis, the run's kept members in their order, which gets its labels here. The keyword-only
parameters are its options, from Python and on the command line alike; their help is the docstring's.

`measures.divergence(run, checkpoints="all", episodes=64)` finds what was measured before with the same options,
defaults included, by the same version of the function, and measures the rest.
"""

import dataclasses
import datetime
import hashlib
import inspect
import io
import json
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np
import xarray as xr

from agents import runs
from agents.runs import Run
from ground import files
from ground.files import RunError
from ground.terminal import ConfigError

REGISTRY: dict[str, "Measurement"] = {}
"""Every measurement, by its name and its other names."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A keyword-only parameter of a measurement."""

    type: Any
    default: Any
    help: str


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A registered function; calling it measures a run, or finds what was measured."""

    name: str
    function: Callable[..., xr.Dataset]
    version: int
    """Of what it computes; a new one forgets what older ones have measured."""
    default: Callable[[Run], Sequence[str]]
    """The checkpoints that are measured unless others are asked for."""
    panels: Callable[[Mapping[str, xr.Dataset]], Sequence[Any]] | None
    """From arms to the panels of its figure; None draws every number that the table shows."""
    summary: str
    options: Mapping[str, Option]

    @property
    def followed(self) -> bool:
        """Whether it measures checkpoints, and not the run as a whole."""
        return "checkpoint" in inspect.signature(self.function).parameters

    def __call__(
        self,
        run: Run | str | Path,
        checkpoints: str | Iterable[str] | None = None,
        tell: Callable[[str], None] = lambda what: None,
        **options: Any,
    ) -> xr.Dataset:
        """Measure a run, or find what was measured.

        Args:
            run: the run, or its directory.
            checkpoints: names, or `all`; by default what the measurement is about. The run must have them.
            tell: is told what is being measured.
            **options: see `options`.

        Returns:
            The measurement's variables with labels on `member`: `seed`, `base` (the seed of its base), `point` (of the
            grid, in words), each swept value under its own name, and `unit`, equal for members that are exact twins.
            Those that can be followed have a `checkpoint` axis too, labelled with `stage` and `update`.

        Raises:
            RunError: the run or one of its files is at fault.
            ConfigError: an option is.
        """
        run = run if isinstance(run, Run) else runs.open(run)
        values = {name: options.pop(name, option.default) for name, option in self.options.items()}
        if options:
            raise ConfigError(f"--{next(iter(options))}: {self.name} has no such option; it has {', '.join(values)}")
        if not self.followed:
            if checkpoints:
                raise ConfigError(f"--checkpoints: {self.name} measures a run as a whole; leave it out")
            return self._one(run, None, values, tell)
        parts = [self._one(run, name, values, tell) for name in self._names(run, checkpoints)]
        return xr.concat(parts, "checkpoint", data_vars="all", coords="minimal", compat="override", join="exact")

    def _names(self, run: Run, checkpoints: str | Iterable[str] | None) -> list[str]:
        there = run.checkpoints()
        if checkpoints is None:
            names = list(dict.fromkeys(self.default(run)))
        elif checkpoints == "all":
            names = there
        else:
            names = checkpoints.split(",") if isinstance(checkpoints, str) else list(checkpoints)
        for name in names:
            if name not in there:
                kept = f"there are {', '.join(there)}" if there else "there is none yet"
                raise RunError(f"{run.path}: no checkpoint {str(name)[:80]!r}; {kept}")
        return names

    def _one(
        self, run: Run, checkpoint: str | None, options: dict[str, Any], tell: Callable[[str], None]
    ) -> xr.Dataset:
        identity = {"measurement": self.name, "version": self.version, "options": options, "checkpoint": checkpoint}
        text = json.dumps(files.plain(identity, self.name), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = "-".join([self.name, *([checkpoint] if checkpoint else []), digest]) + ".nc"
        if (run.path / "analysis" / name).exists():
            return _read(run.path / "analysis" / name)
        tell(f"{run.path.name}: {self.name}{f' of {checkpoint}' if checkpoint else ''}")
        arguments = (run, checkpoint) if checkpoint else (run,)
        dataset = _labelled(run, self.function(*arguments, **options), checkpoint, self.name)
        dataset.attrs |= {
            "identity": text,
            "config_hash": run.config_hash,
            "commit": json.dumps(runs.provenance()["git"]),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        _write(run.analysis(name), dataset)
        return dataset


def ends(run: Run) -> list[str]:
    """The checkpoint that training set out from, and its end; one in a run that only pretrains."""
    config = run.config
    if config.rl.updates:
        return [config.before_rl, "rl"]
    return ["pretrain", "sft"] if config.sft.updates else ["pretrain"]


def end(run: Run) -> list[str]:
    """The checkpoint at the end."""
    return ends(run)[-1:]


def arms(run: Run) -> list[str]:
    """The untrained parameters, what training set out from, and its end."""
    return ["init", *ends(run)]


def twins(run: Run, checkpoint: str | None) -> np.ndarray:
    """int[K], equal labels for kept members that are exact twins; without a checkpoint, of the run as a whole."""
    trained = checkpoint is None or checkpoint.partition("-")[0] in ("sft", "rl")
    return (np.arange(run.members) if trained else run.config.starts)[run.kept]


def once(run: Run, checkpoint: str | None) -> tuple[np.ndarray, np.ndarray]:
    """One of each set of twins, int[U] among the kept members, and which of those every kept member equals, int[K]."""
    _, first, copies = np.unique(twins(run, checkpoint), return_index=True, return_inverse=True)
    return first, copies


def measure(
    version: int = 1,
    also: Sequence[str] = (),
    checkpoints: Callable[[Run], Sequence[str]] = ends,
    panels: Callable[[Mapping[str, xr.Dataset]], Sequence[Any]] | None = None,
) -> Callable[[Callable[..., xr.Dataset]], Measurement]:
    """Register a function as a measurement under its own name.

    Args:
        version: raise it whenever what the function computes changes.
        also: further names on the command line.
        checkpoints: those that are measured by default.
        panels: of its figure; see `analysis.figures.panels`.
    """

    def register(function: Callable[..., xr.Dataset]) -> Measurement:
        described = docstring_parser.parse(inspect.getdoc(function) or "")
        helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in described.params}
        hints = typing.get_type_hints(function)
        options = {
            name: Option(hints[name], parameter.default, helps.get(name, ""))
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        name = function.__name__.replace("_", "-")
        summary = described.short_description or ""
        measurement = Measurement(name, function, version, checkpoints, panels, summary, options)
        for known in (name, *also):
            assert known not in REGISTRY, known
            REGISTRY[known] = measurement
        return measurement

    return register


def variable(dims: str, values: Any, long_name: str, units: str = "", **attributes: Any) -> tuple[Any, Any, Any]:
    """A variable of a dataset: its dims by their names, blanks between; `table=0` leaves it out of the table."""
    return dims.split(), values, {"long_name": long_name, "units": units, **attributes}


def _labelled(run: Run, dataset: xr.Dataset, checkpoint: str | None, name: str) -> xr.Dataset:
    """With the labels of members and of the checkpoint."""
    if dataset.sizes.get("member") != len(run.kept):
        raise ValueError(f"{name}: {dict(dataset.sizes)} where the member axis must have {len(run.kept)}")
    config, population = run.config, run.population
    labels: dict[str, Any] = {
        "member": run.kept.astype(np.int32),
        "seed": ("member", np.array([member.seed for member in population], np.int32)),
        "base": ("member", np.array([config.base(member).seed for member in population], np.int32)),
        "point": ("member", np.array([member.label for member in population], np.str_)),
        **{path: ("member", np.array([member.values[path] for member in population])) for path in population[0].values},
    }
    unit = twins(run, checkpoint).astype(np.int32)
    if checkpoint is None:
        return dataset.assign_coords(labels | {"unit": ("member", unit)})
    stage, _, update = checkpoint.partition("-")
    updates = int(update) if update else 0 if stage == "init" else getattr(config, stage).updates
    labels |= {
        "checkpoint": [checkpoint],
        "stage": ("checkpoint", [stage]),
        "update": ("checkpoint", np.array([updates], np.int32)),
        "unit": (("checkpoint", "member"), unit[None]),
    }
    return dataset.expand_dims("checkpoint").assign_coords(labels)


def _write(path: Path, dataset: xr.Dataset) -> None:
    dataset = _plain(dataset)
    dataset.attrs["crc32"] = _checksum(dataset)
    drawn = io.BytesIO(bytes(dataset.to_netcdf(engine="scipy")))
    files.write(path, drawn.getvalue())


def _read(path: Path) -> xr.Dataset:
    with files.reporting(path, "read"):
        data = path.read_bytes()
    try:
        dataset = xr.load_dataset(io.BytesIO(data), engine="scipy")
        intact = dataset.attrs.pop("crc32", None) == _checksum(dataset)
    except Exception as error:  # scipy and xarray raise errors of many types
        raise RunError(
            f"{path}: not readable ({' '.join(str(error).split())[:200]}); delete it to measure again"
        ) from error
    if not intact:
        raise RunError(f"{path}: has changed since it was written; delete it to measure again")
    return dataset


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """Of types that NetCDF 3 has: integers of 32 bits, floats of 32 or 64, text and truth values."""

    def plain(array: xr.DataArray) -> xr.DataArray:
        kind = array.dtype.kind
        if kind in "iu" and array.dtype.itemsize != 4:
            return array.astype(np.int32)
        return array.astype(np.float32) if kind == "f" and array.dtype.itemsize < 4 else array

    variables = {name: plain(array) for name, array in dataset.data_vars.items()}
    coordinates = {name: plain(array) for name, array in dataset.coords.items()}
    return xr.Dataset(variables, coordinates, dataset.attrs)


def _checksum(dataset: xr.Dataset) -> str:
    total = zlib.crc32(json.dumps({k: v for k, v in dataset.attrs.items() if k != "crc32"}, sort_keys=True).encode())
    for name in sorted(map(str, dataset.variables)):
        array = dataset[name]
        values = np.asarray(array.values)
        text = values.dtype.kind in "OSU"
        data = "\n".join(map(str, values.ravel())).encode() if text else np.ascontiguousarray(values).tobytes()
        total = zlib.crc32(data, zlib.crc32(f"{name}{array.dims}{'' if text else values.dtype}".encode(), total))
    return f"{total:08x}"
