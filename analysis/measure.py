"""Measurements: registered functions from a run to an `xarray.Dataset`, kept beside the run and found again.

    @measure(version=1)
    def divergence(run: Run, checkpoint: str, *, episodes: int = 1024) -> xr.Dataset:
        \"\"\"How far a policy is from its base.\"\"\"

A function that takes a `checkpoint` can be followed through training: it measures one, and is asked for each. What it
returns has a `member` axis, the run's kept members in their order, which gets its labels here. The keyword-only
parameters are its options, from Python and on the command line alike; their help is the docstring's section `Args`.

`measures.divergence(run, checkpoints="all", episodes=64)` finds what was measured before with the same options,
defaults included, of the same members, by the same version and the same code of the function's file, and measures the
rest. Whoever changes what that file calls raises the version.
"""

import ast
import contextlib
import contextvars
import dataclasses
import datetime
import functools
import hashlib
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import jax
import numpy as np
import xarray as xr

from agents import runs
from agents.learning import population
from agents.policies import Policy
from agents.runs import Run
from agents.runs.config import Config
from envs import base
from ground import arrays, files
from ground.files import RunError
from ground.terminal import ConfigError

REGISTRY: dict[str, "Measurement"] = {}
"""Every measurement, by its name and its other names."""

_PROGRESS: contextvars.ContextVar[Callable[[float], None]] = contextvars.ContextVar(
    "progress", default=lambda share: None
)


@functools.cache
def _say(what: str) -> None:
    """Once, on standard error."""
    print(what, file=sys.stderr)


_FOREIGN: contextvars.ContextVar[Callable[[str], None]] = contextvars.ContextVar("foreign", default=_say)


@contextlib.contextmanager
def hearing(tell: Callable[[str], None]) -> Iterator[None]:
    """Within, `tell` is told, instead of standard error, what was measured with other code, settings or devices."""
    token = _FOREIGN.set(tell)
    try:
        yield
    finally:
        _FOREIGN.reset(token)


LIMIT = 65_536
"""Most episodes, attempts, draws: of whatever a measurement counts."""
AT_ONCE = 64
"""Episodes of a member that are played or read side by side."""
_LEAST, _LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


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
    made_of: Sequence["Measurement"]
    """Those that it brings together: what they have measured in another way, it does not find either."""
    beside: Callable[[Mapping[str, Any]], Any] | None
    """From its options to what tells apart what it reads beside the run, such as another run."""
    panels: Callable[[Mapping[str, xr.Dataset]], Sequence[Any]] | None
    """From arms to the panels of its figure; None draws every number that the table shows."""
    text: str
    """Of the function's file as it was registered, not as it may be edited since."""
    summary: str
    options: Mapping[str, Option]

    @property
    def followed(self) -> bool:
        """Whether it measures checkpoints, and not the run as a whole."""
        return "checkpoint" in inspect.signature(self.function).parameters

    @functools.cached_property
    def code(self) -> str:
        """Digest of what the function's file does; comments, docstrings, layout and the panels do not count.

        Of a function of a notebook or a script it is the function's own.
        """
        tree, drawn = ast.parse(textwrap.dedent(self.text)), getattr(self.panels, "__name__", "")
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                kept = [part for part in body if getattr(part, "name", None) != drawn and not _is_text(part)]
                node.body = kept  # pyright: ignore[reportAttributeAccessIssue]
        parts = [f"{part.name} {part.version} {part.code}" for part in self.made_of]
        return hashlib.sha256("\n".join([ast.unparse(tree), *parts]).encode()).hexdigest()[:12]

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
            The measurement's variables with labels on `member`: `seed`, `base` (the seed of its base) and `pretraining`
            (what is swept of that one's, in words), `point` (of the grid, in words), each swept value under its own
            name, and `unit`, equal for members that are exact twins. Those that can be followed have a `checkpoint`
            axis too, labelled with `stage` and `update`. The attribute `options` holds the options as JSON.

        Raises:
            RunError: the run or one of its files is at fault. Where it cannot be written, a line on standard error says
                so and what was measured is returned all the same.
            ConfigError: an option is.
        """
        run = run if isinstance(run, Run) else runs.open(run)
        values = {name: options.pop(name, option.default) for name, option in self.options.items()}
        # As the command line has it, so that 1 and 1.0 are found alike.
        values |= {name: float(x) for name, x in values.items() if self.options[name].type is float}
        if options:
            there = f"it has {', '.join(map(_dashed, values))}" if values else "it has none"
            raise ConfigError(f"--{_dashed(next(iter(options)))}: {self.name} has no such option; {there}")
        for name, value in values.items():
            _check(_dashed(name), self.options[name].type, value)
        if not self.followed:
            if checkpoints:
                raise ConfigError(f"--checkpoints: {self.name} measures a run as a whole; leave it out")
            return self._one(run, None, values, tell)
        parts = [self._one(run, name, values, tell) for name in self._names(run, checkpoints)]
        return xr.concat(
            parts, "checkpoint", data_vars="all", coords="minimal", compat="override", join="exact",
            combine_attrs="drop_conflicts",
        )  # fmt: skip

    def _names(self, run: Run, checkpoints: str | Iterable[str] | None) -> list[str]:
        there = run.checkpoints()
        if checkpoints is None:
            names = self.default(run)
        elif checkpoints == "all":
            names = there
        else:
            names = checkpoints.split(",") if isinstance(checkpoints, str) else checkpoints
        names = list(dict.fromkeys(names))
        if not names:
            raise ConfigError("--checkpoints: names none; give all, or names with commas between")
        for name in names:
            if name not in there:
                kept = f"there are {', '.join(there)}" if there else "there is none yet"
                raise RunError(f"{run.path}: no checkpoint {str(name)[:80]!r}; {kept}")
        return names

    def _one(
        self, run: Run, checkpoint: str | None, options: dict[str, Any], tell: Callable[[str], None]
    ) -> xr.Dataset:
        identity = {
            "measurement": self.name,
            "version": self.version,
            "code": self.code,
            "options": options,
            "checkpoint": checkpoint,
            "config": run.config_hash,
            "members": run.kept,
        }
        if self.beside and (beside := self.beside(options)):
            identity["beside"] = beside
        text = json.dumps(files.plain(identity, self.name), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        path = run.path / "analysis" / ("-".join([self.name, *([checkpoint] if checkpoint else []), digest]) + ".nc")
        if not path.exists():
            doing = f"{run.path.name}: {self.name}{f' of {checkpoint}' if checkpoint else ''}"
            tell(doing)
            provenance = runs.provenance()  # of before: measuring may take longer than the next commit
            token = _PROGRESS.set(lambda share: tell(f"{doing}, {share:.0%}"))
            try:
                measured = self.function(*((run, checkpoint) if checkpoint else (run,)), **options)
            finally:
                _PROGRESS.reset(token)
            dataset = _labelled(run, measured, checkpoint, self.name)
            dataset.attrs |= {
                "identity": text,
                "options": json.dumps(files.plain(options, self.name)),
                "config_hash": run.config_hash,
                "provenance": json.dumps(provenance),
                "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            if not run.on_disk:
                return dataset
            try:
                arrays.write(run.analysis(path.name), dataset)
            except RunError as error:
                _say(f"{path.parent}: cannot be written ({files.one_line(error.__cause__ or error)}); nothing is kept")
                return dataset
            return arrays.read(path, "delete it to measure again")
        dataset = arrays.read(path, "delete it to measure again")
        # What was kept before there was one of the labels gets it.
        dataset = dataset.assign_coords({name: x for name, x in _labels(run).items() if name not in dataset.coords})
        if changes := runs.differences(json.loads(dataset.attrs.get("provenance", "{}")), runs.provenance()):
            _FOREIGN.get()(f"{path.parent}: not measured as now: {', '.join(changes)}; delete it to measure again")
        return dataset


def progress(share: float) -> None:
    """Tell the person who waits how far the measurement under way is, from 0 to 1."""
    _PROGRESS.get()(share)


def twins(run: Run, checkpoint: str | None) -> np.ndarray:
    """Who is an exact twin of whom: equal labels for kept members that are one policy in one world, int32[K].

    Args:
        run: whose members.
        checkpoint: when; None for the end.
    """
    config = _untrained(run, checkpoint)
    return (config.starts[run.kept] if config else run.kept).astype(np.int32)


def who(run: Run, checkpoint: str) -> list[Hashable]:
    """Who each kept member is at a checkpoint: equal for exact twins, also across runs that differ by seeds alone."""
    config = _untrained(run, checkpoint)
    return [config.before(member) if config else member for member in run.population]


def _untrained(run: Run, checkpoint: str | None) -> Config | None:
    """A config whose members before RL are those of a checkpoint; None where RL has trained them."""
    config, stage = run.config, (checkpoint or "rl").partition("-")[0]
    if stage == "rl" and config.rl.updates:
        return None
    if stage in ("init", "pretrain"):
        return dataclasses.replace(config, sft=dataclasses.replace(config.sft, updates=0))
    return config


def once(run: Run, *checkpoints: str) -> tuple[np.ndarray, np.ndarray]:
    """One of each set of twins, int[U] among the kept members, and which of those every kept member equals, int[K].

    So that what is the same is measured once: measure `x[first]`, and repeat what comes of it as `y[again]`. Of several
    checkpoints, twins are those who are twins at each of them.
    """
    labels = [twins(run, name) for name in checkpoints]
    _, first, again = np.unique(labels, axis=1, return_index=True, return_inverse=True)
    return first, again.reshape(-1)


def each(
    function: Callable[..., Any],
    run: Run,
    *checkpoints: str,
    own: Sequence[Any] = (),
    shared: Sequence[Any] = (),
    **static: Any,
) -> Any:
    """What a function says of every kept member, NumPy arrays with the member as axis 0; of twins it is asked once.

    Args:
        function: of one member, at the top of its module: `function(policy, world, *parameters, params, *own, *shared,
            **static)`, with its parameters at each checkpoint and those of its world.
        run: whose members.
        *checkpoints: whose parameters it reads.
        own: arrays of every kept member, axis 0 the member; those of twins are equal.
        shared: arrays and numbers that are the same for all members.
        **static: what else it takes; every other value is another program.
    """
    first, again = once(run, *checkpoints)
    trees = (*(run.kept_parameters(name) for name in checkpoints), run.params, *own)
    members = jax.tree.map(lambda x: np.asarray(x)[first], trees)
    told = mapped(function, run.policy, run.world, tuple(static.items()), members, shared)
    return jax.tree.map(lambda x: x[again], told)


def mapped(
    function: Callable[..., Any],
    policy: Policy,
    world: base.World,
    static: tuple[tuple[str, Any], ...],
    members: Sequence[Any],
    shared: Sequence[Any],
) -> Any:
    """A function of `each` over members: trees whose axis 0 is the member. NumPy arrays."""
    return population.in_turn(functools.partial(_mapped, function, policy, world, static, shared), *members)


@functools.partial(jax.jit, static_argnames=("function", "policy", "world", "static"))
def _mapped(function, policy, world, static, shared, *members):
    def member(*trees):
        return function(policy, world, *trees, *shared, **dict(static))

    mesh = population.mesh(len(jax.tree.leaves(members)[0]), 1)
    return population.over_members(member, mesh)(*members)


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


def measure(
    version: int = 1,
    also: Sequence[str] = (),
    checkpoints: Callable[[Run], Sequence[str]] = ends,
    panels: Callable[[Mapping[str, xr.Dataset]], Sequence[Any]] | None = None,
    made_of: Sequence[Measurement] = (),
    beside: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Callable[[Callable[..., xr.Dataset]], Measurement]:
    """Register a function as a measurement under its own name.

    Args:
        version: raise it whenever what the function's file calls elsewhere comes to compute something else.
        also: further names on the command line.
        checkpoints: those that are measured by default.
        panels: of its figure; see `analysis.figures.panels`.
        made_of: other measurements that it brings together.
        beside: from its options to what tells apart what it reads beside the run.
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
        taken = {"run", "runs", "checkpoints", "tell", "output", "json", "figures", "width", "plain"} & set(options)
        assert not taken, f"{function.__name__}: every command has an option {taken} already"
        name = _dashed(function.__name__)
        summary = described.short_description or ""
        how = (version, checkpoints, made_of, beside, panels)
        measurement = Measurement(name, function, *how, _text(function), summary, options)
        for known in (name, *also):
            assert known not in REGISTRY, known
            REGISTRY[known] = measurement
        return measurement

    return register


def _text(function: Callable[..., Any]) -> str:
    """The text of a function's file, or of the function alone in a notebook or a script; empty where it is unknown."""
    try:
        alone = function.__module__ == "__main__"
        return inspect.getsource(function if alone else sys.modules[function.__module__])
    except (KeyError, OSError, TypeError):
        return ""


def variable(dims: str, values: Any, long_name: str, units: str = "", **attributes: Any) -> tuple[Any, Any, Any]:
    """A variable of a dataset: its dims by their names, blanks between; `table=0` leaves it out of the table.

    `independent="base"` where it is the base's own, so that members of one base count once, and `"point"` where it is
    the world's, the same for all members of a point of the grid; see `estimates.of`.
    """
    return dims.split(), values, {"long_name": long_name, "units": units, **attributes}


def _labels(run: Run) -> dict[str, Any]:
    """The labels of its members."""
    return {name: ("member", values) for name, values in run.labels.items()}


def _labelled(run: Run, dataset: xr.Dataset, checkpoint: str | None, name: str) -> xr.Dataset:
    """With the labels of members and of the checkpoint."""
    if dataset.sizes.get("member") != len(run.kept):
        raise ValueError(f"{name}: {dict(dataset.sizes)} where the member axis must have {len(run.kept)}")
    config = run.config
    labels, unit = _labels(run), twins(run, checkpoint)
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


def at_least(least: int, **counts: int) -> None:
    """Refuse options that count less; raises ConfigError."""
    for name, value in counts.items():
        if value < least:
            raise ConfigError(f"--{_dashed(name)}={value}: use {least} to {LIMIT}")


def check_episodes(episodes: int) -> None:
    """Refuse numbers of episodes that cannot be taken in equal parts of `AT_ONCE`; raises ConfigError."""
    if episodes < 2 or (episodes > AT_ONCE and episodes % AT_ONCE):
        raise ConfigError(f"--episodes={episodes}: use 2 to {AT_ONCE}, or a multiple of {AT_ONCE} up to {LIMIT}")


def _check(name: str, kind: Any, value: Any) -> None:
    """Refuse words that an option does not know, numbers that 32 bits cannot hold, and counts that memory cannot."""
    if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
        raise ConfigError(f"--{name}={value}: use {', '.join(typing.get_args(kind))}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not (number == 0 or _LEAST <= abs(number) <= _LARGEST):
            raise ConfigError(
                f"--{name}={number:g}: use a finite number of 32 bits, 0 or at least {_LEAST:.3g} in size"
            )
        if isinstance(number, int) and not -(2**31) <= number < 2**31:
            raise ConfigError(f"--{name}={number}: use a 32-bit integer")
        if isinstance(number, int) and number > LIMIT and name != "seed":
            raise ConfigError(f"--{name}={number}: use {LIMIT} at most")


def _dashed(name: str) -> str:
    """A Python name as the command line has it."""
    return name.replace("_", "-")


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
