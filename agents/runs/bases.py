"""Pretrained bases that one run takes from another, so that each is trained once for many experiments."""

from pathlib import Path

import jax
import numpy as np

from agents import runs
from agents.runs import Run
from agents.runs import config as configs
from agents.runs.config import Config, Member
from ground import processes
from ground.terminal import ConfigError

STAGE = "pretrain"
"""The stage that is taken over."""


def open(directory: str | Path, config: Config) -> Run:
    """The run that bases are taken from, checked for the config of the run that takes them, before it is made.

    Raises:
        RunError: it is no run, or has no pretrained base yet.
        ConfigError: its bases are others than those the config asks for.
    """
    run = runs.open(directory)
    theirs = configs.by_path(run.config.pretraining)
    for path, value in configs.by_path(config.pretraining).items():
        if value != theirs.get(path):
            remedy = f"that run has {theirs.get(path)}; give the same, or leave --base out"
            raise ConfigError(f"--{path}={value}: differs from --base {directory}: {remedy}")
    for base in config.bases:
        if base not in run.config.bases:
            kept = ", ".join(_name(other) for other in run.config.bases)
            raise ConfigError(f"--base {directory}: no base of {_name(base)}; it has {kept}")
    if STAGE not in run.ended():
        raise ConfigError(f"--base {directory}: it has not finished pretraining; --resume it first")
    return run


def adopt(run: Run, source: Run) -> None:
    """Take the bases of another run: their metrics, their parameters before, and those after.

    The last are written last: a kill before leaves a run that pretrains by itself, to the same end.
    """
    config, theirs = run.config, source.config
    holders = theirs.base_of.tolist()
    rows = np.array([holders.index(theirs.bases.index(config.base(member))) for member in config.members])
    columns = source.columns(STAGE) if processes.first() else {}
    run.write_metrics(STAGE, 0, {name: values[:, rows] for name, values in columns.items()})
    kept = rows[:1] if len(config.bases) == 1 else rows
    for name in ("init", STAGE):
        run.save_parameters(name, jax.tree.map(lambda x: np.asarray(x)[kept], source.parameters(name)))


def _name(base: Member) -> str:
    return f"seed {base.seed}" + (f" with {base.label}" if base.label else "")
