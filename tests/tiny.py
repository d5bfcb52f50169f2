"""A run so small that a test can afford several: 4 turns, 16 units, 4 updates."""

import dataclasses

import jax
import numpy as np

from agents.learning import population
from agents.learning.imitation import PretrainConfig
from agents.learning.rl import RLConfig
from agents.policies import PolicyConfig
from agents.runs import config as configs
from agents.runs import stages
from agents.runs.config import Config, PopulationConfig
from envs.maze import MazeOptions

CONFIG = Config(
    scale="smoke",
    world=MazeOptions(size=11, turns=4),
    policy=PolicyConfig(width=16, layers=1, heads=2, hidden=16),
    pretrain=PretrainConfig(updates=8, chunk=2, episodes=16, warmup=2),
    rl=RLConfig(updates=4, chunk=1, episodes=16, minibatches=2),
    population=PopulationConfig(seeds=2, microbatch=4),
    evaluation_episodes=1024,
)


def changed(**sections) -> Config:
    """`CONFIG` with fields of its sections changed, for example `changed(rl={"updates": 3}, seed=1)`."""
    changes = {
        name: dataclasses.replace(getattr(CONFIG, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return dataclasses.replace(CONFIG, **changes)


LONGER = changed(pretrain={"updates": 40}, rl={"updates": 12})
"""The same compiled programs, called more often: 20 and 12 chunks, so that a run can be stopped in many places."""

JOBS = {
    "split": changed(pretrain={"updates": 40}, rl={"updates": 12}, population={"seeds": 1}),
    "members": LONGER,
    "idle": changed(population={"seeds": 3}, rl={"episodes": 18}),
}
"""For two processes: a member split over both; a member each; all on one, as 3 members of 9 episodes do not divide."""

SMALLEST = {
    "attempts": {"samples": 3, "mazes": 4},
    "attention": {"episodes": 4},
    "attribution": {"episodes": 4},
    "beliefs": {"episodes": 4},
    "concepts": {"episodes": 120, "permutations": 3},
    "course": {"episodes": 64, "samples": 3, "mazes": 4},
    "divergence": {"episodes": 64},
    "ledger": {"mazes": 4, "episodes": 8},
    "lens": {"episodes": 4},
    "patching": {"episodes": 4},
    "probes": {"episodes": 8},
    "recruitment": {"extraction_episodes": 120, "episodes": 4},
    "returns": {"episodes": 64},
    "thoughts": {"episodes": 8, "shuffled": True},
    "steering": {"extraction_episodes": 120, "episodes": 2, "play_episodes": 4, "strengths": (-1.0, 0.0, 1.0)},
    "subnetwork": {"draws": 1, "episodes": 1024},
    "tracking": {"episodes": 120, "play_episodes": 16},
}
"""Options that make a measurement quick; a new one adds its own. The course asks for what its parts have compiled."""
MAZE = {"concepts", "recruitment", "steering", "tracking"}
"""Those of EmojiMaze-v0 alone."""
THINKING = {"thoughts"}
"""Those of worlds with plans alone."""
INSIDE = {"attention", "attribution", "lens"}
"""Those of transformers alone."""


def arguments(config: Config) -> list[str]:
    """The options of `train.py` that make a config."""
    wanted, scale = (flat(configs.to_dict(made)) for made in (config, configs.SCALES[config.scale]))
    options = [f"--scale={config.scale}"]
    for name, value in wanted.items():
        if value != scale.get(name):
            option = f"--{name.replace('_', '-')}"
            options += [option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]
    return options


def flat(section: dict, prefix: str = "") -> dict:
    """Values by their dotted names."""
    return {
        inner: leaf
        for name, value in section.items()
        for inner, leaf in (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        ).items()
    }


AS_USERS = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
"""Flags that fuse operations as it is done outside the tests; there are none from JAX 0.11 on, which always does."""


def train_stage(config: Config, name: str, parameters=None, chunks: int | None = None, mesh=None, options=None):
    """Run a stage without a run directory; the state on the host, and metrics [M, updates].

    `options` are the compiler's, for this program alone; `AS_USERS` where the last bit matters.
    """
    stage = stages.make_stage(config, name, mesh)
    program = stage.program
    arguments = program.place(stage.arguments)
    state, parts = program.place(stage.initial(parameters)), []
    if options:
        program.program = program.program.lower(state, *arguments).compile(compiler_options=options)
    for _ in range(stage.updates // stage.chunk if chunks is None else chunks):
        state, metrics = program(state, *arguments)
        parts.append(population.on_host(metrics))
    names = parts[0] if parts else ()
    metrics = {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}
    return population.on_host(state), metrics


def mesh(members: int, episodes: int, devices: int):
    """A mesh over the first few devices."""
    return population.mesh(members, episodes, jax.devices()[:devices])
