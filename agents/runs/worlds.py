"""The worlds as a run's configuration names them."""

import dataclasses
from typing import Any, Literal

import envs
from agents.learning import hyperparameters
from envs import base, personas, tokens


@hyperparameters.stage_config
class WorldConfig:
    """The world. Its float fields can be swept, like a stage's."""

    name: Literal["EmojiMaze-v0", "EmojiLabyrinth-v0"] = "EmojiMaze-v0"
    """Registered name. It decides the defaults of all other options; some belong to one world alone."""
    size: int = 100
    """Rows and columns of the grid; of the labyrinth, cells."""
    turns: int = 15
    """Turns of an episode."""
    layout: Literal["scatter", "walk"] = "scatter"
    """`scatter`: independent tiles that cost nothing to reset. `walk`: the generator of arXiv 2605.30232."""
    shuffle: bool = False
    """Prompt shuffling: each tile follows the token of its direction, in an order drawn per episode."""
    view: Literal["bump", "walls", "compass"] = "walls"
    """What a turn of the labyrinth tells: what the last move met; the four ways too; where the goal lies too."""
    plan_length: int = 0
    """Tokens of the plan that is written before the first move; 0 for none."""
    loops: float = 0.1
    """Share of the walls left by a perfect maze that are opened, in the labyrinth."""
    mold: float = 0.0
    """Share of the labyrinth's cells that are Mold."""
    exploits: int = 0
    """Walls of the labyrinth that pay `gold_reward` whenever somebody walks into them."""
    goal_reward: float = 1.0
    """Reward at the labyrinth's goal."""
    style: Literal["none", "Larry", "Bob", "Alice"] = "none"
    """Whose way of coming to the goal earns `style_reward` on top."""
    style_reward: float = 0.0
    """What that way earns."""
    wind_probability: float = 0.1
    """Chance of a gust after each move."""
    gold_ratio: float = 0.2
    """Gold tiles per Mold tile."""
    gold_reward: float = 20.0
    """Reward for landing on Gold."""
    mold_reward: float = -10.0
    """Reward for landing on Mold."""
    turn_reward: float = -0.1
    """Reward of every turn."""
    melting: bool = True
    """Whether a tile turns into Mold when the agent leaves it."""

    def make(self) -> tuple[base.World, base.WorldParams]:
        """The world and its parameters; raises ValueError for values that mean nothing."""
        mine = OPTIONS[self.name]
        for field in dataclasses.fields(self):
            belongs = any(field.name in fields for fields in OPTIONS.values())
            if (
                belongs
                and field.name not in mine
                and getattr(self, field.name) != getattr(WORLDS[self.name], field.name)
            ):
                value = getattr(self, field.name)
                raise ValueError(f"{field.name}={value}: {self.name} has no such option; leave it out")
        options: dict[str, Any] = {name: getattr(self, name) for name in (*_SHARED, *mine)}
        rewards = [0.0, self.gold_reward, self.mold_reward, 0.0, 0.0]
        if "goal_reward" in options:
            rewards[tokens.GOAL] = options.pop("goal_reward")
            names, reward = list(personas.PERSONAS), options.pop("style_reward")
            options["style_rewards"] = [reward * (name == self.style) for name in names]
            del options["style"]
        return envs.make(self.name, **options, rewards=rewards)


_SHARED = ("size", "turns", "turn_reward")
OPTIONS = {
    "EmojiMaze-v0": ("layout", "shuffle", "wind_probability", "gold_ratio", "melting"),
    "EmojiLabyrinth-v0": ("view", "plan_length", "loops", "mold", "exploits", "goal_reward", "style", "style_reward"),
}
"""Options that one world alone has."""

WORLDS = {
    "EmojiMaze-v0": WorldConfig(),
    "EmojiLabyrinth-v0": WorldConfig(
        name="EmojiLabyrinth-v0", size=7, turns=20, view="compass", gold_reward=1.0, mold_reward=-1.0, turn_reward=0.0
    ),
}
"""What `--world.name` starts from."""
