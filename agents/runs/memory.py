"""Training without a directory: a run in memory, and a function of a key for those who map it themselves."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from agents.learning import learner, population
from agents.runs import config as configs
from agents.runs import metrics, stages
from agents.runs.config import Config
from agents.runs.names import in_order
from agents.runs.run import Run, RunError
from ground import files, seeds
from ground.terminal import ConfigError

Values = Mapping[str, Any]
"""Swept field, such as `rl.learning_rate` → its value, float32[]."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Held(Run):
    """A run in memory: all that a `Run` tells, but for files. Measurements measure it anew whenever they are asked."""

    trees: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Checkpoint → parameters."""
    tables: dict[str, pa.Table] = dataclasses.field(default_factory=dict)
    """Stage → metrics, as they were written."""
    documents: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was written once: the summary."""
    on_disk = False

    @classmethod
    def of(cls, config: Config) -> "Held":
        """A run of which nothing was trained."""
        return cls(Path("memory"), files.plain(configs.to_dict(config), "config"), len(config.members))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def checkpoints(self) -> list[str]:
        return in_order(self.trees)

    def _write_tree(self, path: Path, tree: Any) -> None:
        self.trees[path.name] = jax.tree.map(np.array, tree)  # copies: what training goes on with is donated

    def _read_tree(self, path: Path) -> Any:
        return self.trees[path.name]

    def save_state(self, stage: str, update: int, tree: Any) -> None:
        pass

    def load_state(self, like_for: Callable[[str], Any]) -> None:
        return None

    def write_metrics(self, stage: str, first_update: int, columns: Mapping[str, Any]) -> None:
        told = metrics.rows(stage, first_update, columns, self.members, self.path)
        self.tables[stage] = metrics.once([told, self._metrics(stage)], self.members)

    def _metrics(self, stage: str) -> pa.Table:
        return self.tables[stage] if stage in self.tables else metrics.once([], self.members)

    @property
    def has_summary(self) -> bool:
        return "summary" in self.documents

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.documents["summary"] = files.plain(summary, "summary", finite=True)

    def summary(self) -> dict:
        if not self.has_summary:
            raise RunError(f"{self.path}: not trained to its end")
        return self.documents["summary"]

    def sessions(self) -> list[dict[str, Any]]:
        return []

    def _folder(self, *names: str) -> Path:
        raise RunError("this run is kept in memory and has no files; give train.train a run_dir")


def make_train(config: Config) -> Callable[..., dict[str, Any]]:
    """Training of one member as a function of its key, compiled: `vmap` it over keys or values as you like.

    It does what a run does, without evaluation: with `jax.random.key(seed)` it gives the bits of a run of that seed
    alone on one device. Under `vmap`, and beside other members, sums may round otherwise.

    Args:
        config: of the run; who is in its population does not matter.

    Returns:
        A function (key, values={}) → {"parameters": {"init": …, "pretrain": …, "rl": …}, "metrics": {stage: …}}.
        The key is key[], or uint32[2] as `jax.random.PRNGKey` has it; values are float32[] by the names of fields that
        can be swept, such as {"rl.learning_rate": 1e-3}. Parameters are nested dicts of arrays; metrics float32[U].

    Raises:
        ConfigError: the config cannot run, or is not that of one member.
    """
    configs.check(config)
    for path, value in (("sweep", config.population.sweep), ("tile_maps", config.population.tile_maps)):
        if value not in ((), "same"):
            raise ConfigError(f"--population.{path}={value}: this trains one member; give the function values instead")
    alone = dataclasses.replace(config, population=dataclasses.replace(config.population, seeds=1))
    mesh = population.mesh(1, 1, jax.devices()[:1])
    parts = [stages.make_stage(alone, name, mesh) for name in alone.stages]
    policy = alone.make_policy()
    known = [path for path in configs.sweepable(alone) if path.partition(".")[0] in alone.stages]

    # Each stage as a run compiles it, all of its updates; of arrays with one member on axis 0.
    compiled = [
        population.over_members(population.repeated(stage.update(0, 1), stage.updates, learner.Shards()), mesh)
        for stage in parts
    ]

    def train(arguments: Any, key: jax.Array, values: Values = {}) -> dict[str, Any]:  # noqa: B006 (never changed)
        for path in values:
            if path not in known:
                raise ConfigError(f"{path}: no number that may be given; there are {', '.join(known)}")
        own = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else seeds.stored(key)
        base = seeds.key(0) if config.pretrain.shared else own
        parameters = jax.vmap(policy.init)(seeds.branch(base, "init", config.pretrain.seed)[None])
        trained, metrics = {"init": parameters}, {}
        for stage, program, (stage_config, params) in zip(parts, compiled, arguments, strict=True):
            given = {path.partition(".")[2]: x for path, x in values.items() if path.startswith(f"{stage.name}.")}
            given = {field: jnp.asarray(x, jnp.float32)[None] for field, x in given.items()}
            root = base if stage.name == "pretrain" else own
            state = jax.vmap(stage.begin)(parameters, seeds.branch(root, stage.name, stage.salt)[None])
            # As in the programs of a run, nothing of what is before and after is fused with them.
            given = jax.lax.optimization_barrier((state, dataclasses.replace(stage_config, **given), params))
            state, metrics[stage.name] = jax.lax.optimization_barrier(program(*given))
            parameters = trained[stage.name] = state.parameters
        return jax.tree.map(lambda x: x[0], {"parameters": trained, "metrics": metrics})

    # Arguments, as in the programs of a run: what is constant is folded, and rounds otherwise.
    return functools.partial(jax.jit(train), [stage.arguments for stage in parts])
