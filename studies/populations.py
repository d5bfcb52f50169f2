"""The catalogue of populations: named recipes, each trained once for every study that asks for it.

Member i of a population starts from base i, which is known by its seed and trained once for all populations of the
same pretraining. Arms of a study are therefore paired by base.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

from agents.learning.algorithms import ALGORITHMS
from agents.runs import config as configs
from agents.runs.config import Config
from ground.terminal import ConfigError

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)
BASES: dict[Scale, int] = {"smoke": 2, "laptop": 8, "paper": 16}
"""Bases of each world; an arm has a member on each, at every point of its sweep."""
ORDERS: dict[Scale, int] = {"smoke": 2, "laptop": 12, "paper": 24}
"""Bases of a world whose tiles are permuted: a multiple of six puts every order of three emoji on as many."""
RATES: dict[Scale, tuple[float, ...]] = {
    "smoke": (1e-3, 2e-5),
    "laptop": (1e-3, 2e-4, 2e-5),
    "paper": (1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
}
"""Learning rates where they are the question, the usual one first."""


@dataclasses.dataclass(frozen=True)
class Population:
    """A recipe: what is trained, at every scale and from every seed."""

    name: str
    title: str
    """What figures and tables call it."""
    recipe: Callable[[Scale], Config]

    def config(self, scale: Scale, seed: int = 0) -> Config:
        """What is trained.

        Args:
            scale: how large.
            seed: of its first member and base; another one replicates a study on other bases.
        """
        config = dataclasses.replace(self.recipe(scale), seed=seed)
        configs.check(config)
        return config


CATALOGUE: dict[str, Population] = {}
"""By name, such as `maze/ppo`."""


def of(name: str) -> Population:
    """A population by name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CATALOGUE:
        raise ConfigError(f"{name}: no such population; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def add(name: str, title: str, recipe: Callable[[Scale], Config]) -> None:
    """Put a recipe into the catalogue."""
    assert name not in CATALOGUE, name
    CATALOGUE[name] = Population(name, title, recipe)


def recipe(
    scale: Scale, world: str = "EmojiMaze-v0", algorithm: str = "ppo", seeds: int | None = None, **sections: Any
) -> Config:
    """A config of a scale with a base for each seed, and fields of its sections changed.

    Args:
        scale, world, algorithm: to start from.
        seeds: members at each point of the grid; by default as many as the scale has bases.
        **sections: fields by section, such as `rl={"shuffle_rewards": True}`.
    """
    config = configs.start(scale, world, algorithm)
    sections["pretrain"] = {"shared": False} | sections.get("pretrain", {})
    sections["population"] = {"seeds": seeds or BASES[scale]} | sections.get("population", {})
    parts = {name: dataclasses.replace(getattr(config, name), **changes) for name, changes in sections.items()}
    return dataclasses.replace(config, **parts)


def without_rl(config: Config, episodes: int) -> Config:
    """Fine-tuning in place of RL, on about as many episodes."""
    updates = episodes // config.sft.episodes
    sft = dataclasses.replace(config.sft, updates=max(updates - updates % config.sft.chunk, config.sft.chunk))
    return dataclasses.replace(config, sft=sft, rl=dataclasses.replace(config.rl, updates=0))


def _narrated(scale: Scale, algorithm: str = "ppo", narration: float = 0.5, **rl: Any) -> Config:
    """Every emoji plays every role in pretraining, half of whose episodes are narrated, and in RL."""
    pretrain, population = {"tile_maps": "balanced", "narration": narration}, {"tile_maps": "permuted"}
    return recipe(scale, algorithm=algorithm, seeds=ORDERS[scale], pretrain=pretrain, population=population, rl=rl)


def _narrated_sft(scale: Scale) -> Config:
    config = _narrated(scale)
    return without_rl(config, config.rl.updates * config.rl.episodes)


def _rates(scale: Scale, algorithm: str = "ppo", dtype: str = "float32", section: str = "rl", most: int = 9) -> Config:
    """A sweep of learning rates."""
    sweep = f"{section}.learning_rate={','.join(f'{rate:g}' for rate in RATES[scale][:most])}"
    return recipe(scale, algorithm=algorithm, policy={"parameter_dtype": dtype}, population={"sweep": (sweep,)})


def _rates_sft(scale: Scale) -> Config:
    """As many optimiser steps as RL takes."""
    config = _rates(scale, section="sft")
    steps = config.rl.updates * config.rl.epochs * config.rl.minibatches
    return without_rl(config, steps * config.sft.episodes)


for _name in ("ppo", "dr_grpo", "reinforce"):
    add(f"narrated/{_name}", ALGORITHMS[_name].title, lambda scale, name=_name: _narrated(scale, name))
add("narrated/sft", "SFT on Alice", _narrated_sft)
add("narrated/shuffled", "PPO, rewards shuffled", lambda scale: _narrated(scale, shuffle_rewards=True))
add("unnarrated/ppo", "PPO, base without narrator", lambda scale: _narrated(scale, narration=0.0))
add("rates/ppo", "PPO, stored in float32", _rates)
add("rates/ppo_bfloat16", "PPO, stored in bfloat16", lambda scale: _rates(scale, dtype="bfloat16"))
add("rates/dr_grpo", "Dr. GRPO, stored in float32", lambda scale: _rates(scale, "dr_grpo", most=1))
add("rates/sft", "SFT, stored in float32", _rates_sft)
for _name in ALGORITHMS:
    add(
        f"labyrinth/{_name}",
        ALGORITHMS[_name].title,
        lambda scale, name=_name: recipe(scale, "EmojiLabyrinth-v0", name),
    )
