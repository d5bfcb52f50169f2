"""A run opened for analysis: its config, world and checkpoints, checked before anything is computed.

The only place, with the commands, where an analysis meets files.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agents import runs
from agents.policies import Parameters, Policy
from agents.runs.config import Config, Member
from envs import base
from ground import files

SCHEMA = 1
"""Version of the documents that analyses write."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What an analysis looks at."""

    run: runs.Run
    config: Config
    policy: Policy
    world: base.World
    params: base.WorldParams
    """Of every member, axis 0."""
    kept: np.ndarray
    """int[M], the run's members that have not diverged; only they are looked at."""

    @property
    def members(self) -> int:
        """How many are looked at, M."""
        return len(self.kept)

    @property
    def population(self) -> list[Member]:
        """Who they are."""
        return [self.config.members[index] for index in self.kept]

    @property
    def caption(self) -> str:
        """What stands under every figure and table: the run, its config, who was looked at."""
        gone = self.run.members - self.members
        left_out = f", {gone} diverged and left out" if gone else ""
        return f"{self.run.path.name}, config {self.run.config_hash}, {self.members} members{left_out}"

    def metric(self, stage: str, name: str) -> np.ndarray:
        """A metric in every update of a stage, float64[U, M]."""
        values = self.run.metrics(stage)[name].to_numpy().astype(np.float64)
        return values.reshape(-1, self.run.members)[:, self.kept]

    def parameters(self, name: str) -> Parameters:
        """Checkpoint `name`: nested dict of NumPy arrays, axis 0 the member.

        Raises:
            RunError: there is no such checkpoint, its arrays are not those of the run's policy, or hold NaN.
        """
        tree = jax.tree.map(lambda x: x[self.kept], self.run.parameters(name))
        expected = jax.eval_shape(self.policy.init, jax.random.key(0))
        wanted, found = (dict(jax.tree_util.tree_flatten_with_path(x)[0]) for x in (expected, tree))
        where = self.run.path / "checkpoints" / name
        for path in [*wanted, *found]:
            label = jax.tree_util.keystr(path)
            shapes = [list(x[path].shape) if path in x else None for x in (found, wanted)]
            if shapes[0] is not None:
                shapes[0] = shapes[0][1:]
            if shapes[0] != shapes[1]:
                raise runs.RunError(
                    f"{where}: {label} has shape {shapes[0]} where the run's policy has {shapes[1]}; "
                    "give checkpoints of one policy"
                )
            finite = np.isfinite(np.asarray(found[path], np.float32)).reshape(self.members, -1).all(axis=1)
            if not finite.all():
                member = int(self.kept[np.argmin(finite)])
                raise runs.RunError(f"{where}: {label} of member {member} is not finite; choose an earlier checkpoint")
        return tree

    def _left_out(self) -> dict[str, Any]:
        """What documents say of members that have diverged; nothing where there are none."""
        if self.members == self.run.members:
            return {}
        return {"diverged": sorted(set(range(self.run.members)) - set(self.kept.tolist()))}

    def write(self, name: str, document: Mapping[str, Any], rows: Mapping[str, Any]) -> list[Path]:
        """Write `name`.json and `name`.parquet, with the hash of the config, in the run's `analysis` folder.

        Args:
            name: of the analysis.
            document: plain values and arrays; NaN becomes null.
            rows: a table, column name → values.

        Returns:
            The paths written.
        """
        paths = [self.run.analysis(f"{name}{ending}") for ending in (".json", ".parquet")]
        sink = pa.BufferOutputStream()
        made = pa.table({key: pa.array(values) for key, values in rows.items()})
        pq.write_table(made.replace_schema_metadata({"config_hash": self.run.config_hash}), sink)
        files.write_json(
            paths[0],
            {
                "schema": SCHEMA,
                "analysis": name,
                "config_hash": self.run.config_hash,
                "members": self.members,
                **self._left_out(),
                **document,
            },
        )
        files.write(paths[1], sink.getvalue().to_pybytes())
        return paths


def open(directory: str | Path) -> Subject:
    """Open a run directory for analysis.

    Raises:
        RunError, ConfigError: one line that says why it cannot be.
    """
    run = runs.open(directory)
    config = run.config
    world, _ = config.world.make()
    kept = run.kept
    params = jax.tree.map(lambda x: x[kept], config.world_params())
    return Subject(run, config, config.make_policy(), world, params, kept)
