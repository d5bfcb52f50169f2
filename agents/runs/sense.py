"""Options that would run together and not do what they say."""

from typing import TYPE_CHECKING

from ground.terminal import ConfigError

if TYPE_CHECKING:
    from agents.runs.config import Config


def check(config: "Config") -> None:
    """Refuse what would run and not do what it says; a run that is there is let through.

    Raises:
        ConfigError: one line that names the option, its value and the remedy.
    """
    rl = config.rl
    if rl.reference == "reward" and rl.advantage == "outcome":
        raise ConfigError("--rl.reference=reward: an outcome is what the world pays, whatever is charged; use loss")
    for member in config.members:
        bound = member.values.get("rl.clip_dual", rl.clip_dual)
        if 0 < bound <= 1:
            raise ConfigError(f"--rl.clip_dual={bound:g}: undoes the objective itself; use 0 for none, or more than 1")
    if config.world.towns and not config.world.town and (config.sft.updates or rl.updates):
        raise ConfigError(f"--world.town=0: say in which of the towns members play, 1 to {config.world.towns}")
