"""Mazes and rooms of other JAX libraries, with each library's own auto-reset and its default sizes."""

import types
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.stepping import Peer

LIBRARIES = ("navix", "xminigrid", "jumanji", "jaxued", "gymnax")
"""Packages of the extra `peers`, and gymnax, which we need ourselves."""


def environments() -> Iterator[Peer]:
    """All peers, built one at a time."""
    for name in ("Navix-Empty-8x8-v0", "Navix-FourRooms-v0"):
        yield _navix(name)
    for name in ("MiniGrid-Empty-8x8", "MiniGrid-FourRooms", "XLand-MiniGrid-R1-9x9"):
        yield _xland(name)
    yield _jumanji("Maze-v0")
    yield from (_jaxued(replay) for replay in (False, True))
    for name in ("FourRooms-misc", "MetaMaze-misc"):
        yield _gymnax(name)


def _navix(name: str) -> Peer:
    import navix

    world = navix.make(name)

    def step(key, timestep, action):
        timestep = world.step(timestep, action)
        return timestep, timestep.observation, timestep.reward

    return Peer(name, world.reset, step, len(world.action_set), keyed=False)


def _xland(name: str) -> Peer:
    import xminigrid
    from xminigrid.wrappers import GymAutoResetWrapper

    world, params = xminigrid.make(name)
    world = GymAutoResetWrapper(world)

    def step(key, timestep, action):
        timestep = world.step(params, timestep, action)
        return timestep, timestep.observation, timestep.reward

    label = name if name.startswith("XLand") else f"XLand-{name}"
    return Peer(label, lambda key: world.reset(params, key), step, world.num_actions(params), keyed=False)


def _jumanji(name: str) -> Peer:
    import jumanji
    from jumanji.wrappers import AutoResetWrapper

    world: Any = AutoResetWrapper(jumanji.make(name))

    def step(key, state, action):
        state, timestep = world.step(state, action)
        return state, timestep.observation, timestep.reward

    return Peer(f"Jumanji {name}", lambda key: world.reset(key)[0], step, 4, keyed=False)


def _jaxued(replay: bool) -> Peer:
    """The 13×13 maze with 25 walls of JaxUED's examples: a new level after every episode, or the same again."""
    from jaxued import wrappers
    from jaxued.environments.maze import Maze, make_level_generator
    from jaxued.wrappers import autoreplay, autoreset

    for module in (autoreplay, autoreset):  # version 0.0.1 calls `jax.tree_map`, which JAX has removed
        setattr(module, "jax", _OldJax("jax"))  # noqa: B010
    sample: Any = make_level_generator(13, 13, 25)
    inner = Maze()
    world = wrappers.AutoReplayWrapper(inner) if replay else wrappers.AutoResetWrapper(inner, sample)
    params = inner.default_params

    def reset(key):
        level_key, reset_key = jax.random.split(key)
        return world.reset_to_level(reset_key, sample(level_key), params)[1]

    def step(key, state, action):
        observation, state, reward, _, _ = world.step(key, state, action, params)
        return state, observation, reward

    return Peer(f"JaxUED Maze-13x13, {'one level again' if replay else 'new levels'}", reset, step, 3)


class _OldJax(types.ModuleType):
    """JAX with `tree_map` where it used to be."""

    def __getattr__(self, name: str) -> Any:
        return jax.tree.map if name == "tree_map" else getattr(jax, name)


def _gymnax(name: str) -> Peer:
    import gymnax

    world, params = gymnax.make(name)

    def step(key, state, action):
        observation, state, reward, *_ = world.step(key, state, action, params)
        return state, observation, reward

    return Peer(f"gymnax {name}", lambda key: world.reset(key, params)[1], step, world.num_actions)
