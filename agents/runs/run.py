"""One run: its directory of config, metrics, checkpoints, training states and summary, and what its config stands for.

Every file is written under a hidden name, flushed and renamed, so a kill at any moment leaves a readable directory.
"""

import contextlib
import dataclasses
import datetime
import functools
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from agents.policies import Parameters, Policy
from agents.runs import config as configs
from agents.runs import inline, metrics, sessions
from agents.runs.config import Config, Member
from agents.runs.names import STAGES, checkpoint_name, config_hash, in_order
from envs import base
from ground import checkpoints, files
from ground.files import RunError
from ground.processes import by_first, first, meet, on_first
from ground.terminal import ConfigError

LOSS = "loss"
"""The metric that is finite where an update was made."""
FOLDERS = ("checkpoints", "metrics", "figures", "analysis", "tensorboard", "wandb")
"""Folders that training may make in a run directory."""
SCHEMA = 1
"""Version of the run directory; `open` refuses newer ones."""


class State(NamedTuple):
    """A training state read by `Run.load_state`."""

    stage: str
    """The stage under way."""
    update: int
    """Updates of that stage done so far."""
    tree: Any
    """The state as saved."""
    note: str | None
    """One line to show the user where a newer state was damaged, else None."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A run directory, made by `create` and `open`. Its methods raise RunError where the disk or a file is at fault.

    In a job of several processes, process 0 alone reads and writes it, so that it need not lie where all machines see
    it. They all call `create`, `open` and the methods that training needs, in the same order; each of those ends with
    a meeting, so that an error of process 0's disk ends them all.
    """

    path: Path
    """The run directory."""
    document: dict
    """The whole resolved config, as plain JSON values."""
    members: int
    """Size of the population."""
    made: bool = False
    """Whether `create` made the directory, too."""
    on_disk = True
    """Whether there is a directory; see `agents.runs.memory`."""

    def __repr__(self) -> str:
        return inline.words(self)

    def _repr_html_(self) -> str:
        return inline.html(self)

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits that name the configuration."""
        return config_hash(self.document)

    @functools.cached_property
    def config(self) -> Config:
        """The config, typed and checked; raises ConfigError, which names the file."""
        where = self.path / "config.json"
        try:
            config = configs.from_dict(self.document)
            configs.check(config, stored=True)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if len(config.members) != self.members:
            raise RunError(
                f"{where}: {self.members} members where the config makes {len(config.members)}; "
                "restore the file, or train again"
            )
        return config

    @functools.cached_property
    def policy(self) -> Policy:
        """Its policy family."""
        return self.config.make_policy()

    @functools.cached_property
    def world(self) -> base.World:
        """The world that it plays in."""
        return self.config.world.make()[0]

    def diverged(self) -> dict[int, str]:
        """Members whose training has failed, and the update that they could not make, such as "update 12 of rl".

        A member whose loss, gradient or new parameters are not finite stays as it was before that update (see
        `population.Chunk`), so that its parameters stay finite and it meets the same failure in every later update:
        its loss tells, as NaN.
        """
        failures: dict[int, str] = {}
        for stage in self.config.stages:
            failed = ~np.isfinite(self.columns(stage).get(LOSS, np.zeros((0, self.members))))
            for member in np.flatnonzero(failed.any(axis=0)):
                failures.setdefault(int(member), f"update {int(np.argmax(failed[:, member])) + 1} of {stage}")
        return failures

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """int[K], the members that have not diverged as the run stands; only they are measured.

        Raises:
            RunError: all have.
        """
        kept = np.setdiff1d(np.arange(self.members), list(self.diverged()))
        if not len(kept):
            raise RunError(f"{self.path}: every member has diverged; train again with a lower learning rate")
        return kept

    @property
    def population(self) -> list[Member]:
        """Who is kept."""
        return [self.config.members[index] for index in self.kept]

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """What is known of each kept member, by name.

        Its number `member`, its `seed`, the seed of its `base` and what of that one's `pretraining` is swept, in words,
        its `point` of the grid in words, and each swept value under its own name, such as `rl.learning_rate`.
        """
        return {name: values[self.kept] for name, values in self._labels().items()}

    def _labels(self) -> dict[str, np.ndarray]:
        """`labels` of all members."""
        everyone = self.config.members
        return {
            "member": np.arange(len(everyone), dtype=np.int32),
            "seed": np.array([member.seed for member in everyone], np.int32),
            "base": np.array([self.config.base(member).seed for member in everyone], np.int32),
            "pretraining": np.array([self.config.base(member).label for member in everyone], np.str_),
            "point": np.array([member.label for member in everyone], np.str_),
            **{path: np.array([member.values[path] for member in everyone]) for path in everyone[0].values},
        }

    @functools.cached_property
    def params(self) -> base.WorldParams:
        """The world's parameters of the kept members, axis 0."""
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[self.kept]), self.config.world_params())

    @property
    def caption(self) -> str:
        """What stands under every figure and table: the run, its config, who was looked at."""
        gone = self.members - len(self.kept)
        left_out = f", {gone} diverged and left out" if gone else ""
        return f"{self.path.name}, config {self.config_hash}, {len(self.kept)} members{left_out}"

    def name_of(self, member: int) -> str:
        """What messages call a member: its number, its seed, its point of the grid."""
        one = self.config.members[member]
        return f"member {member} (seed {one.seed}{', ' + one.label if one.label else ''})"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this job; a second holder is refused. The kernel lets go when the process dies."""
        with contextlib.ExitStack() as stack:
            if first():
                stack.enter_context(files.lock(self.path))
                for folder in ("", *FOLDERS):
                    files.sweep(self.path / folder)
            meet()
            yield

    def checkpoints(self) -> list[str]:
        """Names of the stored parameters: init, then per stage the intermediate ones by update, then its end."""
        return in_order(entry.name for entry in files.entries(self.path / "checkpoints") if entry.is_dir())

    @on_first
    def ended(self) -> list[str]:
        """Names of the stages whose last parameters are stored."""
        return [name for name in self.checkpoints() if name in STAGES]

    @on_first
    def save_parameters(self, name: str, tree: Any) -> None:
        """Store parameters as checkpoint `name`, replacing it.

        Args:
            name: as `checkpoint_name` makes it.
            tree: nested dict of arrays, leading axis M (members), or 1 for a base that all members share.
        """
        path = self.path / "checkpoints" / name
        if not in_order([name]):
            raise RunError(f"{path}: no name of a checkpoint; use init, a stage, or <stage>-<update>")
        self._check_members(path, tree)
        self._write_tree(path, tree)

    @on_first
    def parameters(self, name: str) -> Any:
        """Read checkpoint `name`: nested dict of numpy arrays, leading axis M (broadcast, read-only)."""
        names = self.checkpoints()
        if name not in names:
            there = f"there are {', '.join(names)}" if names else "there is none yet"
            raise RunError(f"{self.path}: no checkpoint {str(name)[:80]!r}; {there}")
        path = self.path / "checkpoints" / name
        tree = self._read_tree(path)
        self._check_members(path, tree)
        return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self.members, *leaf.shape[1:])), tree)

    def kept_parameters(self, name: str) -> Parameters:
        """Checkpoint `name` of the kept members: nested dict of NumPy arrays, axis 0 the member.

        Raises:
            RunError: there is no such checkpoint, its arrays are not those of the run's policy, or hold NaN.
        """
        tree = jax.tree.map(lambda x: x[self.kept], self.parameters(name))
        stored, wanted = _leaves(tree), _leaves(jax.eval_shape(self.policy.init, jax.random.key(0)))
        shapes = {label: list(leaf.shape[1:]) for label, leaf in stored.items()}
        expected = {label: list(leaf.shape) for label, leaf in wanted.items()}
        where = self.path / "checkpoints" / name
        for label in expected | shapes:
            if (shape := shapes.get(label)) != (other := expected.get(label)):
                words = f"{label} has shape {shape} where the run's policy has {other}"
                raise RunError(f"{where}: {words}; give checkpoints of one policy")
            finite = np.isfinite(np.asarray(stored[label], np.float32)).reshape(len(self.kept), -1).all(axis=1)
            if not finite.all():
                member = int(self.kept[np.argmin(finite)])
                raise RunError(f"{where}: {label} of member {member} is not finite; choose an earlier checkpoint")
        return tree

    @on_first
    def save_state(self, stage: str, update: int, tree: Any) -> None:
        """Store the whole training state after `update` updates of `stage`; any tree `checkpoints.save` takes.

        Keeps this state and the one before it. Later ones, which training has gone back behind, are deleted.
        """
        folder, name = self.path / "checkpoints" / "state", checkpoint_name(stage, update)
        with files.reporting(folder / name, "write"):
            self._folder("checkpoints", "state")
            checkpoints.save(folder / name, tree)
            names = self._states()
            newest = names.index(name)
            for other in (*names[: max(newest - 1, 0)], *names[newest + 1 :]):
                checkpoints.remove(folder / other)

    def load_state(self, like_for: Callable[[str], Any]) -> State | None:
        """Read the newest intact training state, or None where none was saved.

        Args:
            like_for: from a stage to the abstract state expected there. A state that does not fit it is an error:
                only a damaged one is passed over for the one before, which the result's `note` then says.
        """
        state = by_first(lambda: self._newest_state(like_for))
        if state is None:
            return None
        structure = jax.tree.structure(like_for(state["stage"]))
        return State(**{**state, "tree": structure.unflatten(state["tree"].values())})

    def _newest_state(self, like_for: Callable[[str], Any]) -> dict[str, Any] | None:
        """The fields of a `State`, its tree as numbered leaves."""
        folder = self.path / "checkpoints" / "state"
        damaged = []
        with files.reporting(folder, "read"):
            for name in reversed(self._states()):
                stage, _, update = name.partition("-")
                try:
                    leaves = jax.tree.leaves(checkpoints.load(folder / name, like_for(stage)))
                except checkpoints.DamagedError:
                    damaged.append(name)
                    continue
                note = f"{folder}: {', '.join(damaged)} damaged; resuming from {name}" if damaged else None
                return {"stage": stage, "update": int(update), "tree": dict(enumerate(leaves)), "note": note}
        if damaged:
            raise RunError(f"{folder}: {', '.join(damaged)} damaged; delete this folder to begin the run again")
        return None

    @on_first
    def write_metrics(self, stage: str, first_update: int, columns: Mapping[str, Any]) -> None:
        """Write the metrics of one chunk, each [updates, M]; see `metrics.write`."""
        checkpoint_name(stage, first_update)
        metrics.write(self._folder("metrics"), stage, first_update, columns, self.members)

    def metrics(self, stage: str | None = None) -> pa.Table:
        """All metrics, or one stage's, as rows sorted by stage, update and member, each of which occurs once.

        Each row has the member's seed and swept values besides. A metric that a part lacks is null there.
        """
        names = STAGES if stage is None else [checkpoint_name(stage)]
        table = pa.concat_tables([self._metrics(name) for name in names], promote_options="permissive")
        place, member, labels = len(metrics.KEYS), table["member"].to_numpy(), self._labels()
        for name in [path for path in labels if path not in ("member", "base", "pretraining", "point")][::-1]:
            table = table.add_column(place, name, pa.array(labels[name][member]))
        return table

    def _metrics(self, stage: str) -> pa.Table:
        """A stage's metrics as they were written."""
        return metrics.read(self.path / "metrics", stage, self.members)

    def columns(self, stage: str) -> dict[str, np.ndarray]:
        """A stage's metrics of all members by name, each [U, M] of the dtype in which it was written."""
        table = self._metrics(checkpoint_name(stage))
        names = [name for name in table.column_names if name not in metrics.KEYS]
        return {name: table[name].to_numpy().reshape(-1, self.members) for name in names}

    def metric(self, stage: str, name: str) -> np.ndarray:
        """A metric of the kept members in every update of a stage, float64[U, K].

        Raises:
            RunError: the stage has no such metric.
        """
        columns = self.columns(stage)
        if name not in columns:
            raise RunError(f"{self.path}: no metric {name!r} of {stage}; there are {', '.join(columns) or 'none'}")
        return columns[name].astype(np.float64)[:, self.kept]

    def check_metrics(self, stage: str, updates: int) -> None:
        """Refuse metrics that lack one of the first `updates` updates of a stage."""
        missing = np.setdiff1d(np.arange(updates), self._metrics(stage)["update"].to_numpy())
        if len(missing):
            raise RunError(
                f"{self.path / 'metrics'}: update {missing[0]} of {stage} is missing; put the file back that held it, "
                f"or delete {self.path / 'checkpoints'} to train the run again"
            )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`: dicts, lists, text, numbers and arrays; NaN and infinities become null."""
        files.write_json(self.path / "summary.json", summary)

    @property
    def has_summary(self) -> bool:
        """Whether it was trained to its end."""
        return (self.path / "summary.json").exists()

    def summary(self) -> dict:
        """Read `summary.json`."""
        if not self.has_summary:
            raise RunError(
                f"{self.path}: no summary.json yet; finish the run with --resume {shlex.quote(str(self.path))}"
            )
        return files.read_json(self.path / "summary.json")

    def sessions(self) -> list[dict[str, Any]]:
        """Every process that has trained this run, oldest first, as `sessions.read` has it."""
        return sessions.read(self.path)

    def figure(self, name: str) -> Path:
        """Path of the figure called `name` (with its ending), its folder made."""
        return self._folder("figures") / name

    def analysis(self, name: str) -> Path:
        """Path of the analysis file called `name` (with its ending), its folder made."""
        return self._folder("analysis") / name

    def _folder(self, *names: str) -> Path:
        """A folder of the run, made where it is not there; the run directory itself is not made anew."""
        folder = self.path
        for name in names:
            folder = folder / name
            with files.reporting(folder, "make"):
                folder.mkdir(exist_ok=True)
        return folder

    def _write_tree(self, path: Path, tree: Any) -> None:
        with files.reporting(path, "write"):
            self._folder("checkpoints")
            checkpoints.save(path, tree)

    def _read_tree(self, path: Path) -> Any:
        with files.reporting(path, "read"):
            return checkpoints.load(path)

    def _states(self) -> list[str]:
        """Names of the training states, oldest first."""
        entries = files.entries(self.path / "checkpoints" / "state")
        return in_order(entry.name for entry in entries if entry.is_dir() and "-" in entry.name)

    def _check_members(self, path: Path, tree: Any) -> None:
        for label, leaf in _leaves(tree).items():
            if not np.ndim(leaf) or np.shape(leaf)[0] not in (1, self.members):
                raise RunError(
                    f"{path}: {label} has shape {list(np.shape(leaf))}; its leading axis must be the run's "
                    f"{self.members} members (or 1, shared by all)"
                )


def _leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by their key paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def create(directory: str | Path, config: Mapping[str, Any], *, members: int) -> Run:
    """Make a new run directory.

    Args:
        directory: must not exist, or be empty.
        config: the whole resolved config, of dicts, lists, text and numbers (infinities and NaN are kept).
        members: size of the population.

    Raises:
        RunError: the directory is in use or not empty, cannot be written, or the config holds other values.
    """
    return _opened(lambda: _create(Path(directory), config, members))


def open(directory: str | Path) -> Run:
    """Open an existing run directory; raises RunError where it is none, or is newer than this code or damaged."""
    return _opened(lambda: _read(Path(directory)))


def _opened(facts: Callable[[], list]) -> Run:
    path, *others = by_first(facts)
    return Run(Path(path), *others)


def _create(path: Path, config: Mapping[str, Any], members: int) -> list:
    if not 0 < members < 2**31:
        raise RunError(f"{path}: a population of {members}; use at least one member")
    checkpoints.absolute(path)  # refused before anything is made
    with files.reporting(path, "make"):
        made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
    refuse_what_is_used(path)  # before the lock, which would leave a file in somebody's folder
    with files.lock(path):
        refuse_what_is_used(path)
        document = {
            "schema": SCHEMA,
            "members": members,
            "config": files.plain(config, "config"),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            **sessions.provenance(),
        }
        files.write_json(path / "config.json", document, finite=False)
    return [*_read(path), made]


def withdraw(run: Run) -> None:
    """Undo `create`, where nothing was trained: delete what the run wrote, and its directory if `create` made it."""
    for folder in FOLDERS:
        shutil.rmtree(run.path / folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # a directory in which others have put something stays
        for name in ("config.json", sessions.NAME, ".lock"):
            (run.path / name).unlink(missing_ok=True)
        if run.made:
            run.path.rmdir()


def refuse_what_is_used(path: Path) -> None:
    """Raise RunError where a directory holds anything but what a killed process leaves."""
    if any(entry.name != ".lock" for entry in files.others(path)):
        raise RunError(f"{path}: exists; choose another --run-dir, or --resume it")


def _read(path: Path) -> list:
    """Path, config and members of a run directory."""
    with files.reporting(path, "open"):
        if not path.is_dir():
            raise RunError(f"{path}: no such run directory; check the path")
        if not (path / "config.json").is_file():
            raise RunError(f"{path}: not a run directory (no config.json); give the folder that train.py made")
    document = files.read_json(path / "config.json")
    schema, members, config = (document.get(key) for key in ("schema", "members", "config"))
    if type(schema) is int and schema > SCHEMA:
        raise RunError(f"{path}: schema {schema} is newer than {SCHEMA}, known here; update emojimaze")
    for key, good in (
        ("schema", type(schema) is int and schema == SCHEMA),
        ("members", type(members) is int and 0 < members < 2**31),
        ("config", isinstance(config, dict)),
    ):
        if not good:
            raise RunError(f"{path / 'config.json'}: {key} is missing or wrong; restore the file, or train again")
    return [str(path), config, members]
