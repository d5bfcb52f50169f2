"""One member of a run as a run of its own: small enough to ship, opened and measured like any other."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agents.runs import config as configs
from agents.runs import sessions
from agents.runs.config import Config
from agents.runs.run import Run, create, open, refuse_what_is_used
from ground import files
from ground.terminal import ConfigError


def write(run: Run, member: int, checkpoint: str, directory: str | Path) -> Run:
    """Make a run directory of one member and one checkpoint.

    It holds the config that would train this member alone, its parameters, the metrics of the checkpoint's stage, what
    it earned, as far as the run says, and the sessions that trained the whole run. There is nothing to resume. It is
    made whole or not at all.

    Args:
        run: to take it from.
        member: its number in the run.
        checkpoint: one that the run has, such as `rl`.
        directory: to make; must not exist, or be empty.

    Raises:
        ConfigError: the run has no such member that has not diverged, or a config of one member cannot describe it.
        RunError: there is no such checkpoint, the directory is in use, or the disk is at fault.
    """
    if member not in run.kept:
        raise ConfigError(f"--member={member}: the run has {', '.join(map(str, run.kept))} that have not diverged")
    config = alone(run.config, member)
    place = int(np.flatnonzero(run.kept == member)[0])
    parameters = jax.tree.map(lambda x: np.asarray(x[place : place + 1]), run.kept_parameters(checkpoint))
    path, stage = Path(directory).resolve(), checkpoint.partition("-")[0]
    refuse_what_is_used(path)
    with files.reporting(path, "make"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, folder=True) as partial:
            excerpt = create(partial, configs.to_dict(config), members=1)
            excerpt.save_parameters(checkpoint, parameters)
            if stage in config.stages:
                excerpt.write_metrics(stage, 0, {name: x[:, [member]] for name, x in run.columns(stage).items()})
            files.write_json(partial / sessions.NAME, {"sessions": run.sessions()})
            excerpt.write_summary(_summary(run, excerpt, member))
    return open(directory)


def alone(config: Config, member: int) -> Config:
    """The config of a population of one, this member, with its seed and its values of the grid.

    Raises:
        ConfigError: its emoji are in an order that only a population can give it.
    """
    one = config.members[member]
    population = dataclasses.replace(config.population, seeds=1, sweep=(), tile_maps="same")
    own = configs.changed(dataclasses.replace(config, seed=one.seed, population=population), one.values)
    before, after = config.world_params(), own.world_params()
    if not np.array_equal(before.tile_map[member], after.tile_map[0]):
        raise ConfigError(f"--member={member}: its emoji are permuted; take a member that has the world's own order")
    return own


def _summary(run: Run, excerpt: Run, member: int) -> dict[str, Any]:
    """What the run says of one member, and of those that it met."""
    told: dict[str, Any] = run.summary() if run.has_summary else {"schema": 1}
    summary: dict[str, Any] = {
        "members": 1,
        "population": [{"seed": run.config.members[member].seed, "values": {}}],
        "diverged": {},
        "config_hash": excerpt.config_hash,
        "taken_from": {"config_hash": run.config_hash, "member": member},
    }
    remedy = f"restore it, or have it written anew by --resume {shlex.quote(str(run.path))}"
    with files.shaped(f"{run.path / 'summary.json'}: not the summary of such a run", remedy):
        summary["schema"] = told["schema"]
        for name in ("return", "success"):
            if name in told:
                own = {stage: [told[name][stage][member]] for stage in ("before_rl", "after_rl")}
                points = told[name].get("points", [told[name]])  # of a grid each has worlds, and so scripts, of its own
                values = dict(run.config.members[member].values)
                where = next(point for point in points if point.get("values", values) == values)
                summary[name] = {key: where[key] for key in ("random", "personas", "greedy")} | own
    return summary
