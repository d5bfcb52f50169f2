"""Mazes and rooms of other JAX libraries, with each library's own auto-reset and its default sizes."""

import types
from typing import Any

import jax

from benchmarks.cases.env import Stepped


def environments() -> list[Stepped]:
    """All of them."""
    return [
        *map(_navix, ("Navix-Empty-8x8-v0", "Navix-FourRooms-v0")),
        *map(_xland, ("MiniGrid-Empty-8x8", "MiniGrid-FourRooms", "XLand-MiniGrid-R1-9x9")),
        _jumanji("Maze-v0"),
        *map(_jaxued, ("new levels", "one level again")),
        *map(_gymnax, ("FourRooms-misc", "MetaMaze-misc")),
    ]


def _navix(name: str) -> Stepped:
    import navix

    world = navix.make(name)

    def step(key, timestep, action):
        timestep = world.step(timestep, action)
        return timestep, timestep.observation, timestep.reward

    return Stepped(name, world.reset, step, len(world.action_set), keyed=False)


def _xland(name: str) -> Stepped:
    import xminigrid
    from xminigrid.wrappers import GymAutoResetWrapper

    world, params = xminigrid.make(name)
    world = GymAutoResetWrapper(world)

    def step(key, timestep, action):
        timestep = world.step(params, timestep, action)
        return timestep, timestep.observation, timestep.reward

    label = name if name.startswith("XLand") else f"XLand-{name}"
    return Stepped(label, lambda key: world.reset(params, key), step, world.num_actions(params), keyed=False)


def _jumanji(name: str) -> Stepped:
    import jumanji
    from jumanji.wrappers import AutoResetWrapper

    world: Any = AutoResetWrapper(jumanji.make(name))

    def step(key, state, action):
        state, timestep = world.step(state, action)
        return state, timestep.observation, timestep.reward

    return Stepped(f"Jumanji {name}", lambda key: world.reset(key)[0], step, 4, keyed=False)


def _jaxued(levels: str) -> Stepped:
    """The 13×13 maze with 25 walls of JaxUED's examples: a new level after every episode, or the same again."""
    from jaxued import wrappers
    from jaxued.environments.maze import Maze, make_level_generator
    from jaxued.wrappers import autoreplay, autoreset

    for module in (autoreplay, autoreset):  # version 0.0.1 calls `jax.tree_map`, which JAX has removed
        setattr(module, "jax", _OldJax("jax"))  # noqa: B010
    sample: Any = make_level_generator(13, 13, 25)
    inner = Maze()
    fresh = levels == "new levels"
    world = wrappers.AutoResetWrapper(inner, sample) if fresh else wrappers.AutoReplayWrapper(inner)

    def reset(key):
        level_key, reset_key = jax.random.split(key)
        return world.reset_to_level(reset_key, sample(level_key), inner.default_params)[1]

    return Stepped(f"JaxUED Maze-13x13, {levels}", reset, _gym_step(world, inner.default_params), 3)


class _OldJax(types.ModuleType):
    """JAX with `tree_map` where it used to be."""

    def __getattr__(self, name: str) -> Any:
        return jax.tree.map if name == "tree_map" else getattr(jax, name)


def _gymnax(name: str) -> Stepped:
    import gymnax

    world, params = gymnax.make(name)
    step = _gym_step(world, params)
    return Stepped(f"gymnax {name}", lambda key: world.reset(key, params)[1], step, world.num_actions)


def _gym_step(world: Any, params: Any):
    """The step of worlds that return (observation, state, reward, …)."""

    def step(key, state, action):
        observation, state, reward, *_ = world.step(key, state, action, params)
        return state, observation, reward

    return step
