"""Runs that studies share, found again by what they are and not by what they are called.

A run lies under the hash of its whole config, so that a changed config never meets a stale run. The bases that it
starts from are taken from any run that has them, and else trained in one of their own. What was interrupted goes on.
"""

import contextlib
import dataclasses
from pathlib import Path

from rich.console import Console

import train
from agents import runs
from agents.learning import algorithms
from agents.learning.imitation import SFTConfig
from agents.runs import bases, watching
from agents.runs import config as configs
from agents.runs.config import Config, PopulationConfig
from ground.terminal import ConfigError


@dataclasses.dataclass(frozen=True)
class Store:
    """Runs under one folder."""

    folder: Path
    console: Console
    """Where training reports."""
    figures: bool = True
    """Whether runs draw."""
    track: watching.Tool | None = None
    """A tool that shows what is trained."""

    def path(self, config: Config) -> Path:
        """Where the run of a config lies."""
        kind = config.algorithm if config.rl.updates else "sft" if config.sft.updates else "base"
        return self.folder / f"{kind}-{runs.config_hash(configs.to_dict(config))}"

    def finished(self, config: Config) -> bool:
        """Whether the run of a config is there, to its end."""
        return (self.path(config) / "summary.json").exists()

    def run(self, config: Config) -> runs.Run:
        """The finished run of a config: found, taken up where it stopped, or trained.

        Raises:
            RunError, ConfigError, Diverged, Interrupted: as `train.train`.
        """
        return self._run(config, evaluate=True)

    def _run(self, config: Config, *, evaluate: bool) -> runs.Run:
        configs.check(config)
        path = self.path(config)
        if self.finished(config):
            run = runs.open(path)
            if run.config != config:
                raise ConfigError(f"{path}: holds another config than its name says; move it away")
            if not evaluate or "return" in run.summary():
                return run
        started = (path / "config.json").exists()
        source = None
        has_bases = started and bases.STAGE in runs.open(path).ended()
        if only_bases(config) != config and config.pretrain.updates and not has_bases:
            source = self._bases(config)
        if started:
            return train.resume(path, self.console, source, evaluate=evaluate, figures=self.figures, track=self.track)
        return train.train(
            config, path, self.console, source, evaluate=evaluate, figures=self.figures, track=self.track
        )

    def _bases(self, config: Config) -> Path:
        """A run that has the bases of a config: any in the folder, or one trained for them alone."""
        own = only_bases(config)
        for entry in sorted(self.folder.glob("base-*")):
            with contextlib.suppress(runs.RunError, ConfigError):  # others, unfinished, or of another version
                return bases.open(entry, own).path
        return self._run(own, evaluate=False).path  # the runs that start from them tell how well they play


def only_bases(config: Config) -> Config:
    """The run that pretrains the bases of a config and does nothing else; equal for all that need the same."""
    shared = config.pretrain.shared
    sweep = tuple(text for text in config.population.sweep if text.startswith(("pretrain.", "world.")))
    seeds = 1 if shared else config.population.seeds
    return Config(
        scale=config.scale,
        seed=0 if shared else config.seed,
        world=config.world,
        policy=config.policy,
        pretrain=config.pretrain,
        sft=SFTConfig(),
        rl=algorithms.RLConfig(updates=0),
        population=PopulationConfig(
            seeds=seeds, sweep=() if shared else sweep, microbatch=config.population.microbatch
        ),
        evaluation_episodes=1024,
    )
