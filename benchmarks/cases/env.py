"""Stepping mazes under a random policy, and with `--peers` everybody else's mazes and rooms, in the one harness.

It is `jit(scan(vmap(step)))`. Observations and rewards are summed, so that the compiler cannot leave them out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import envs
from benchmarks import counts, measure
from benchmarks.measure import Benchmark, Case, Ratio, Work

SIZES = (1024, 64, 8192)
"""Mazes side by side; the first is what peers are compared at."""

MAZES: dict[str, tuple[str, dict[str, Any], int]] = {
    "EmojiMaze scatter 100x100": ("EmojiMaze-v0", {"layout": "scatter"}, 8),
    "EmojiMaze walk 100x100": ("EmojiMaze-v0", {"layout": "walk"}, 1),
    "EmojiLabyrinth 7x7": ("EmojiLabyrinth-v0", {"size": 7}, 2),
    "EmojiRooms 10": ("EmojiRooms-v0", {"size": 10}, 8),
}
"""Our worlds: name, options, and the episodes that every one plays in a call."""
COMPARED = tuple(MAZES)[:2]
"""Those that are put beside peers', which neither tell a map nor take thoughts."""

STEPS = 32
"""Steps that every environment of a peer takes in a call."""


@dataclasses.dataclass(frozen=True)
class Stepped:
    """An environment as single-example functions."""

    name: str
    reset: Callable[[jax.Array], Any]
    """key uint32[2] → state"""
    step: Callable[[jax.Array, Any, jax.Array], tuple[Any, Any, Any]]
    """(key uint32[2], state, action int32[]) → (state, observation, reward)"""
    actions: int
    keyed: bool = True
    """Whether every environment has a key of its own in a step; otherwise all share one."""
    turns: int = 0
    """Steps after which the whole batch is reset; 0 where each environment resets itself, in its library's way."""
    episodes: int = 1
    """Episodes of each environment in a call, where the batch is reset."""
    work: Work = Work()


def benchmark(peers: bool) -> Benchmark:
    """Turns per second of EmojiMaze, then the peers; ratios compare the better of one device and all."""
    ours = [maze(name) for name in COMPARED]
    groups = [cases(world, size) for size in SIZES for world in ours]
    if not peers:
        return Benchmark(groups)
    from benchmarks.peers import libraries

    theirs = libraries.environments()
    ratios = [
        Ratio(f"{our.name.rpartition(' ')[0]} / {their.name}", *(_name(world, SIZES[0]) for world in (our, their)))
        for their in theirs
        for our in ours
    ]
    return Benchmark(groups + [cases(their, SIZES[0]) for their in theirs], ratios)


def worlds(peers: bool) -> Benchmark:
    """Turns per second of every world; nobody offers the like."""
    del peers
    return Benchmark([cases(maze(name), SIZES[0]) for name in MAZES])


def maze(name: str) -> Stepped:
    """One of `MAZES`: a fresh maze after every episode of full length, reset once for the whole batch."""
    kind, options, episodes = MAZES[name]
    world, params = envs.make(kind, **options)

    def step(key, state, action):
        observation, state, reward, _, _ = world.step_env(jax.random.wrap_key_data(key), state, action, params)
        return state, observation, reward

    return Stepped(
        name=name,
        reset=lambda key: world.reset_env(jax.random.wrap_key_data(key), params)[1],
        step=step,
        actions=world.num_actions,
        keyed=False,
        turns=world.turns,
        episodes=episodes,
        work=counts.stepping(world, params),
    )


def cases(world: Stepped, count: int) -> list[Case]:
    """One device whose threads share the work, and all devices side by side."""
    every = len(jax.devices())
    return [case(world, count, devices) for devices in sorted({1, every if count % every == 0 else 1})]


def case(world: Stepped, count: int, devices: int) -> Case:
    """`count` environments on so many devices; those that reset themselves go on from call to call."""
    mine = count // devices

    def reset(key):
        return jax.vmap(world.reset)(_raw(jax.random.split(key, mine)))

    def walk(states, key, steps):
        def step(states, key):
            action_key, step_key = jax.random.split(key)
            # A byte for each action, so that the drawing does not outweigh the stepping.
            actions = jax.random.bits(action_key, (mine,), jnp.uint8) % jnp.uint8(world.actions)
            keys = _raw(jax.random.split(step_key, mine) if world.keyed else step_key)
            step = jax.vmap(world.step, in_axes=(0 if world.keyed else None, 0, 0))
            states, observation, reward = step(keys, states, actions.astype(jnp.int32))
            return states, _sum((observation, reward))

        return jax.lax.scan(step, states, jax.random.split(key, steps))

    def episode(key):
        reset_key, turn_key = jax.random.split(key)
        return walk(reset(reset_key), turn_key, world.turns)[1]

    def play(states, key):
        if world.turns:
            return states, jax.lax.map(episode, jax.random.split(key, world.episodes))
        return walk(states, key, STEPS)

    def prepare():
        keys = jax.random.split(jax.random.key(0), devices)
        states = () if world.turns else jax.jit(measure.side_by_side(reset, devices))(keys)
        return measure.compiled(measure.side_by_side(play, devices), states, keys, carries=True)

    unit, steps = ("turns", world.episodes * world.turns) if world.turns else ("steps", STEPS)
    name = f"{_name(world, count)}, {devices} device{'s' * (devices > 1)}"
    return Case(name, unit, count * steps, prepare, world.work)


def _name(world: Stepped, count: int) -> str:
    return f"{world.name}, {count:,}"


def _raw(keys: jax.Array) -> jax.Array:
    """Keys as uint32[..., 2], which every library takes."""
    return jax.random.key_data(keys)


def _sum(tree: Any) -> jax.Array:
    """The sum of every number of a tree of arrays, float32[]."""
    leaves = [x for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return jnp.stack([x.astype(jnp.float32).sum() for x in leaves]).sum()
