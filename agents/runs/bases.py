"""A pretrained base that one run takes from another, so that it is trained once for many experiments."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from agents.runs import Run, joint
from agents.runs import config as configs
from agents.runs.config import Config, ConfigError
from agents.runs.metrics import KEYS
from ground import processes

STAGE = "pretrain"
"""The stage that is taken over."""


def open(directory: str | Path, config: Config) -> Run:
    """The run that a base is taken from, checked before anything is written.

    Args:
        directory: of the run.
        config: of the run that takes it.

    Raises:
        RunError: it is no run, or has no pretrained base yet.
        ConfigError: its base is another than the one the config asks for.
    """
    base = joint.open(directory)
    theirs, mine = configs.of_run(base.path, base.config).pretraining, config.pretraining
    for path, value in _leaves(mine).items():
        other = _leaves(theirs).get(path)
        if value != other:
            remedy = f"that run has {other}; give the same, or leave --base out"
            raise ConfigError(f"--{path}={value}: differs from --base {directory}: {remedy}")
    if STAGE not in base.ended():
        raise ConfigError(f"--base {directory}: it has not finished pretraining; --resume it first")
    return base


def adopt(run: Run, config: Config, base: Run) -> None:
    """Take the pretrained base of another run: its metrics, its parameters before, and those after.

    The last are written last: a kill before leaves a run that pretrains by itself, to the same end.
    """
    kept = 1 if config.pretrain.shared else run.members
    columns: dict[str, np.ndarray] = {}
    if processes.first():
        table = base.metrics(STAGE)
        for name in table.column_names:
            if name not in KEYS:
                values = table[name].to_numpy().reshape(-1, base.members)
                columns[name] = np.broadcast_to(values[:, :kept], (len(values), run.members))
    run.write_metrics(STAGE, 0, columns)
    for name in ("init", STAGE):
        run.save_parameters(name, jax.tree.map(lambda x: np.asarray(x[:kept]), base.parameters(name)))


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Values of nested dicts by dotted path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name, part in tree.items() for k, v in _leaves(part, f"{path}.{name}" if path else name).items()}
