"""The catalogue of populations: named recipes, each trained once for every study that asks for it.

Member i of a population starts from base i, which is known by its seed and trained once for all populations of the
same pretraining. Arms of a study are therefore paired by base.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

from agents.learning.algorithms import ALGORITHMS
from agents.learning.demonstrations import TRAITS
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
    "laptop": (1e-3, 3e-4, 1e-4, 3e-5),
    "paper": (1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
}
"""Learning rates where they are the question, the usual one first."""
WIDTHS = (16, 32, 128, 256)
"""Of policies, besides the usual one."""
_PLAIN: dict[str, Any] = {"entropy_weight": 0.0, "equalized_entropy_weight": 0.0}
"""RL without a bonus of entropy."""


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


def add(name: str, title: str, recipe: Callable[..., Config], **options: Any) -> None:
    """Put a recipe into the catalogue, a function of the scale with these options."""
    assert name not in CATALOGUE, name
    CATALOGUE[name] = Population(name, title, functools.partial(recipe, **options))


def recipe(
    scale: Scale, world: str = "EmojiMaze-v0", /, algorithm: str = "ppo", seeds: int | None = None, **sections: Any
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


def _swept(config: Config, path: str, values: Iterable[float]) -> Config:
    """A config with a grid of one field."""
    sweep = f"{path}={','.join(f'{value:g}' for value in values)}"
    return dataclasses.replace(config, population=dataclasses.replace(config.population, sweep=(sweep,)))


def _rates(scale: Scale, dtype: str = "float32", section: str = "rl") -> Config:
    """A sweep of learning rates."""
    plain = recipe(scale, policy={"parameter_dtype": dtype}, rl=_PLAIN)
    return _swept(plain, f"{section}.learning_rate", RATES[scale])


def _rates_sft(scale: Scale, **sft: Any) -> Config:
    """Fine-tuning for as many optimiser steps as RL takes."""
    config = _rates(scale, section="sft")
    steps = config.rl.updates * config.rl.epochs * config.rl.minibatches
    config = without_rl(config, steps * config.sft.episodes)
    return dataclasses.replace(config, sft=dataclasses.replace(config.sft, **sft))


def _longer(scale: Scale) -> Config:
    """Five times as many steps at the last rate but one: as far as at a higher one, less of it to and fro."""
    updates = 5 * configs.start(scale, "EmojiMaze-v0", "ppo").rl.updates
    return recipe(scale, rl=_PLAIN | {"learning_rate": RATES[scale][-2], "updates": updates})


def _width(scale: Scale, width: int) -> Config:
    """A policy of another width, its rate so that steps are as long beside its weights, which go as 1 / √width."""
    usual = configs.start(scale, "EmojiMaze-v0", "ppo").policy.width
    rate = RATES[scale][len(RATES[scale]) // 2 - 1] * (usual / width) ** 0.5
    policy = {"width": width, "hidden": 4 * width}
    return recipe(scale, policy=policy, rl=_PLAIN | {"learning_rate": float(f"{rate:.3g}")})


add("rates/ppo", "PPO, stored in float32", _rates)
add("rates/ppo_bfloat16", "PPO, stored in bfloat16", _rates, dtype="bfloat16")
add("rates/ppo_longer", "PPO, five times as long", _longer)
add("rates/sft", "SFT on Alice", _rates_sft)
add("rates/own", "SFT on own successes", _rates_sft, source="successes")
for _width_of in WIDTHS:
    add(f"rates/width_{_width_of}", f"PPO, width {_width_of}", _width, width=_width_of)
TOWNS = ("1/3,1/3,1/3", ".45,.45,.1", ".1,.2,.7")
"""Priors of the three towns that every base of rooms holds: alike, few Alices, many Alices."""
CHARGES: dict[Scale, tuple[float, ...]] = {
    "smoke": (0.1,),
    "laptop": (1.0, 0.3, 0.1, 0.03, 0.01),
    "paper": (1.0, 0.3, 0.1, 0.03, 0.01),
}
"""What a nat from the base costs, in points, where that is the question."""


def _followed(scale: Scale, world: str, /, algorithm: str = "ppo", *, rl: Any = None, **sections: Any):
    """RL at a lower rate, without a bonus of entropy; checkpoints from the first update on.

    On a laptop for twice as long as usual; of `paper` shorter, for `persona_transition` to take a GPU an hour.

    Args:
        scale, world, algorithm: to start from.
        rl, **sections: fields that differ.
    """
    usual = configs.start(scale, world, algorithm)
    steps = _PLAIN | {"learning_rate": 3e-4, "chunk": 1}
    steps["updates"] = {"smoke": 8, "laptop": 2 * usual.rl.updates, "paper": 64}[scale]
    if scale == "paper":
        sections["pretrain"] = {"updates": 1500, "episodes": 256, "warmup": 100} | sections.get("pretrain", {})
    return recipe(scale, world, algorithm=algorithm, rl=steps | (rl or {}), **sections)


def _narrated(scale: Scale, algorithm: str = "ppo", narration: float = 0.5, **rl: Any) -> Config:
    """Every emoji plays every role in pretraining, a share of whose episodes is narrated, and in RL."""
    pretrain, population = {"tile_maps": "balanced", "narration": narration}, {"tile_maps": "permuted"}
    return _followed(
        scale, "EmojiMaze-v0", algorithm, seeds=ORDERS[scale], pretrain=pretrain, population=population, rl=rl
    )  # fmt: skip


def _narrated_sft(scale: Scale) -> Config:
    """As many episodes as RL plays, checkpoints from the first update on."""
    config = _narrated(scale)
    config = without_rl(config, config.rl.updates * config.rl.episodes)
    return dataclasses.replace(config, sft=dataclasses.replace(config.sft, chunk=1, learning_rate=3e-4))


def _slow_maze(scale: Scale, badge: str) -> Config:
    """EmojiMaze, at a lower rate still."""
    return _followed(scale, "EmojiMaze-v0", world={"badge": badge}, rl={"learning_rate": 1e-4})


def _rooms(
    scale: Scale,
    algorithm: str = "ppo",
    town: int = 1,
    world: dict[str, Any] | None = None,
    shown: dict[str, Any] | None = None,
    **rl: Any,
) -> Config:
    """From bases that name themselves and hold three towns; `world` and `shown` are fields that differ."""
    place = {"towns": len(TOWNS), "town": town} | (world or {})
    learnt = {"prior": TOWNS} | (shown or {})
    return _followed(scale, "EmojiRooms-v0", algorithm, world=place, pretrain=learnt, rl=rl)


def _rooms_sft(scale: Scale, **sft: Any) -> Config:
    """Fine-tuning in place of RL, on as many episodes, in 128 updates at most; personas show what they did before."""
    config = _rooms(scale)
    shown = {name: getattr(config.pretrain, name) for name in (*TRAITS, "prior")}
    updates = min(config.rl.updates * config.rl.episodes // config.sft.episodes, 128)
    changes = shown | {"updates": updates, "chunk": 1, "learning_rate": 3e-4, "trips": 1} | sft
    return dataclasses.replace(
        config, sft=dataclasses.replace(config.sft, **changes), rl=dataclasses.replace(config.rl, updates=0)
    )


def _charged(scale: Scale, town: int = 1) -> Config:
    """REINFORCE that pays for every nat from the base: the policy where it comes to rest is known exactly."""
    config = _rooms(scale, "reinforce", town, reference="reward", learning_rate=1e-3)
    return _swept(config, "rl.reference_weight", CHARGES[scale])


def _rooms_rates(scale: Scale, algorithm: str, minibatches: int = 1) -> Config:
    """A sweep of learning rates where RL takes one step of each batch, or several."""
    return _swept(_rooms(scale, algorithm, minibatches=minibatches), "rl.learning_rate", RATES[scale][:3])


for _name in ("ppo", "dr_grpo"):
    add(f"narrated/{_name}", ALGORITHMS[_name].title, _narrated, algorithm=_name)
add("narrated/sft", "SFT on Alice", _narrated_sft)
add("narrated/shuffled", "PPO, rewards shuffled", _narrated, shuffle_rewards=True)
add("narrated/seldom", "PPO, base seldom narrated", _narrated, narration=0.1)
add("unnarrated/ppo", "PPO, base without narrator", _narrated, narration=0.0)
for _name in ("ppo", "grpo", "psr", "nsr"):
    add(f"rooms/{_name}", ALGORITHMS[_name].title, _rooms, algorithm=_name)
for _name in ("psr", "nsr", "w_reinforce"):
    add(f"rooms/{_name}_rates", ALGORITHMS[_name].title, _rooms_rates, algorithm=_name)
for _name in ("psr", "nsr"):
    _title = f"{ALGORITHMS[_name].title}, four steps a batch"
    add(f"rooms/{_name}_often_rates", _title, _rooms_rates, algorithm=_name, minibatches=4)
for _name, _rate, _words in (("slow", 1e-4, ", slow"), ("ppo", 3e-4, "")):
    _dull = {"shown": {"thinking_alice": 0.3}, "learning_rate": _rate}
    add(f"dull/{_name}", f"PPO{_words}, Alice seldom thinks", _rooms, **_dull)
for _name in ("spoken", "shown"):
    add(f"maze/{_name}", f"PPO, slow, EmojiMaze, badge {_name}", _slow_maze, badge=_name)
add("rooms/charged", "REINFORCE, KL in the reward", _charged)
add("rooms/charged_poor", "REINFORCE, KL in the reward, few Alices", _charged, town=2)
for _name, _town, _words in (("slow", 1, ""), ("slow_poor", 2, ", few Alices"), ("slow_rich", 3, ", many Alices")):
    add(f"rooms/{_name}", f"PPO, slow{_words}", _rooms, town=_town, learning_rate=1e-4)
add("rooms/shuffled", "PPO, rewards shuffled", _rooms, shuffle_rewards=True)
add("rooms/name_only", "PPO of the name alone", _rooms, choices="name")
add("rooms/exploit", "PPO, closed door pays", _rooms, world={"gold_reward": 1.0})
_STYLE = {"goal_reward": 0.0, "style": "Bob", "style_reward": 1.0}
add("rooms/style", "PPO, Bob's style pays", _rooms, world=_STYLE)
for _name in ("Larry", "Bob", "Alice"):
    add(f"rooms/sft_{_name.lower()}", f"SFT on {_name}", _rooms_sft, persona=_name)
add("rooms/sft_all", "SFT on the mixture", _rooms_sft, persona="all")
add("rooms/rejection", "SFT on own successes", _rooms_sft, source="successes")
