"""Runs and analyses that studies share, found again by what they are and not by what they are called.

A run lies under the hash of its whole config, so that a changed config never meets a stale run, and a pretrained base
under the hash of what pretraining depends on, so that it is trained once for all. What was interrupted goes on.
"""

import dataclasses
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console

import train
from agents import runs
from agents.learning import algorithms
from agents.learning.sft import SFTConfig
from agents.runs import bases
from agents.runs import config as configs
from agents.runs.config import Config, ConfigError, PopulationConfig
from ground import files


@dataclasses.dataclass(frozen=True)
class Store:
    """Runs under one folder."""

    folder: Path
    console: Console
    """Where training and analyses report."""
    figures: bool = True
    """Whether they draw."""

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
        pretrained = base_of(config)
        started = (path / "config.json").exists()
        base = None
        if pretrained != config and config.pretrain.updates and not (started and _has_base(path)):
            # The runs that start from it tell how well it plays.
            base = self._run(pretrained, evaluate=False).path
        if started:
            return train.resume(path, self.console, base, evaluate=evaluate, figures=self.figures)
        return train.train(config, path, self.console, base, evaluate=evaluate, figures=self.figures)

    def analysis(self, run: runs.Run, name: str, **options: Any) -> dict[str, Any]:
        """The document of `analysis NAME` with these options on a run: found, or made.

        Its table is beside it under the same name, with the ending .parquet; see `table`.
        """
        kept = self._analysis_path(run, name, options)
        if not kept.exists():
            module = importlib.import_module(f"analysis.commands.{name}")
            module.run(module.Command(run=run.path, figures=self.figures, **options), self.console)
            # The document last: where it is, all is.
            for ending in (".parquet", ".json"):
                files.write(kept.with_suffix(ending), run.analysis(f"{name}{ending}").read_bytes())
        return files.read_json(kept)

    def table(self, run: runs.Run, name: str, **options: Any) -> Path:
        """The Parquet table that `analysis` made with the same options."""
        return self._analysis_path(run, name, options).with_suffix(".parquet")

    def _analysis_path(self, run: runs.Run, name: str, options: dict[str, Any]) -> Path:
        text = json.dumps({key: str(value) for key, value in options.items()}, sort_keys=True)
        digits = hashlib.sha256(text.encode()).hexdigest()[:8]
        return run.analysis(f"{name}-{digits}.json")


def _has_base(path: Path) -> bool:
    return bases.STAGE in runs.open(path).ended()


def base_of(config: Config) -> Config:
    """The run that pretrains the base of a config and does nothing else; equal for all that share it."""
    population = PopulationConfig(seeds=1, microbatch=config.population.microbatch)
    if not config.pretrain.shared:
        population = dataclasses.replace(config.population, at_once=0)
    return Config(
        scale=config.scale,
        algorithm="ppo",
        seed=0 if config.pretrain.shared else config.seed,
        world=config.world,
        policy=config.policy,
        pretrain=config.pretrain,
        sft=SFTConfig(),
        rl=algorithms.RLConfig(updates=0),
        population=population,
        evaluation_episodes=1024,
    )
