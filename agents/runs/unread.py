"""Numbers that nothing reads as a config stands: members that differ in one alone would be copies of each other."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agents.learning import hyperparameters
from agents.learning.demonstrations import TRAITS
from envs import base, personas
from ground.terminal import ConfigError

if TYPE_CHECKING:
    from agents.runs.config import Config


def check(config: "Config", world: base.World) -> None:
    """Refuse sweeps of numbers that nothing reads.

    Args:
        config: whose sweeps can be parsed.
        world: of the config.

    Raises:
        ConfigError: one line that names the field and what it needs.
    """
    swept = config.members[0].values
    for remedy, is_read, paths in conditions(config, world):
        for path in swept if not is_read else ():
            if path in paths:
                raise ConfigError(
                    f"--population.sweep {path}: nothing reads it, so members would be copies; it needs {remedy}"
                )


def conditions(config: "Config", world: base.World) -> Iterator[tuple[str, bool, list[str]]]:
    """What fields need to be read, whether it is so for every member, and the fields' paths."""
    rl, place = config.rl, config.world

    def never_zero(path: str) -> bool:
        section, _, name = path.partition(".")
        usual = getattr(getattr(config, section), name, 0.0)
        return all(member.values.get(path, usual) for member in config.members)

    for section in ("pretrain", "sft", "rl"):
        stage = getattr(config, section)
        every = [f"{section}.{name}" for name in hyperparameters.names(type(stage))]
        yield f"--{section}.updates above 0", stage.updates > 0, every
    # Another advantage than these teaches nothing of the values, and an outcome is the world's own.
    valued = never_zero("rl.value_weight")
    paid = rl.advantage != "outcome" or rl.normalise == "returns" or valued
    traced = rl.advantage == "gae" or valued
    discounted = traced or rl.advantage == "to_go" or rl.shuffle_rewards
    charged = rl.reference == "loss" or (rl.reference == "reward" and paid)
    mixed = rl.imitation == "sft"
    yield "--rl.reference loss", charged, ["rl.reference_weight"]
    yield "--rl.imitation sft", mixed, ["rl.imitation_weight", "rl.final_imitation_weight"]
    yield "--rl.updates above 1", rl.updates > 1, ["rl.final_imitation_weight", "rl.final_plan_budget"]
    yield "--rl.advantage gae, or --rl.value-weight above 0", traced, ["rl.trace_decay"]
    yield "--rl.advantage gae or to_go, or --rl.value-weight above 0", discounted, ["rl.discount"]
    yield "another --rl.advantage, or --rl.value-weight above 0", paid, ["rl.reward_scale"]
    yield "--world.plan-length above 0", world.plan_length > 0, ["rl.plan_budget", "rl.final_plan_budget"]

    yield "--world.style", getattr(place, "style", "") != "none", ["world.style_reward"]
    if world.has_goal:  # elsewhere chance lays Gold and Mold
        board = world.board
        gold = getattr(place, "exploits", 0) > 0 or "$" in board
        mold = getattr(place, "mold_rooms", 0) > 0 or never_zero("world.mold") or "M" in board
        yield "doors or walls of Gold, --world.exploits", gold, ["world.gold_reward"]
        yield "Mold, --world.mold or --world.mold-rooms", mold, ["world.mold_reward"]
        yield "no --world.board", not board, ["world.loops"]

    for section in ("pretrain", "sft"):
        shown = getattr(config, section)
        whose, thoughts = shown.persona, [f"{section}.thinking_{name.lower()}" for name in personas.PERSONAS]
        by_personas = getattr(shown, "source", "personas") == "personas"
        every = [f"{section}.{name}" for name in (*TRAITS, "badge_probability", "narration")]
        yield f"--{section}.source personas", by_personas, every
        yield "--world.badge shown", world.badge == "shown", [f"{section}.badge_probability"]
        yield "a world with feelings", world.has_feelings, [f"{section}.narration"]
        yield "a world with a goal", world.has_goal, [f"{section}.skill"]
        yield "--world.name EmojiRooms-v0", world.named_rooms, thoughts
        plans = [f"{section}.plan_following", f"{section}.plan_slip", *thoughts]
        yield "--world.plan-length above 0", world.plan_length > 0, plans
        for name, thought in zip(personas.PERSONAS, thoughts, strict=True):
            yield f"--{section}.persona all", whose in ("all", name), [thought]
        yield f"--{section}.persona all", whose in ("all", "Alice"), [f"{section}.skill"]
