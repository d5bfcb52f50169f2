"""The one harness in which every environment is stepped: `jit(scan(vmap(step)))` under a random policy.

Observations and rewards are summed, so that the compiler cannot leave them out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import envs
from benchmarks import counts
from benchmarks.measure import Case, Work

ROUNDS = {"scatter": 8, "walk": 1}
"""Episodes that every one of our mazes plays in a call, by layout."""

STEPS = 32
"""Steps that every environment of a peer takes in a call."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """An environment of another library, single-example functions, that resets itself in the library's own way."""

    name: str
    reset: Callable[[jax.Array], Any]
    """key uint32[2] → state"""
    step: Callable[[jax.Array | None, Any, jax.Array], tuple[Any, Any, Any]]
    """(key uint32[2], state, action int32[]) → (state, observation, reward)"""
    actions: int
    keyed: bool = True
    """Whether the library wants a key per environment and step; otherwise `step` is given None."""


def ours(layout: str, mazes: int, devices: int) -> Case:
    """Turns of EmojiMaze-v0, 100×100: a fresh maze after every 15 turns, reset once for the whole batch."""
    world, params = envs.make("EmojiMaze-v0", layout=layout)
    mine = mazes // devices

    def play(key):
        def episode(key):
            reset_key, turn_key = jax.random.split(key)
            _, states = jax.vmap(world.reset_env, in_axes=(0, None))(jax.random.split(reset_key, mine), params)

            def turn(states, key):
                action_key, step_key = jax.random.split(key)
                actions = _actions(action_key, mine, world.num_actions)
                observation, states, reward, _, _ = jax.vmap(world.step_env, in_axes=(None, 0, 0, None))(
                    step_key, states, actions, params
                )
                return states, _sums((observation, reward))

            return jax.lax.scan(turn, states, jax.random.split(turn_key, world.turns))[1]

        return jax.lax.map(episode, jax.random.split(key, ROUNDS[layout]))

    def prepare():
        key = _keys(devices)
        program = _over(devices, play).lower(key).compile()
        return lambda: program(key), program

    name = _name(f"EmojiMaze {layout} 100x100", mazes, devices)
    return Case(name, "turns", mazes * ROUNDS[layout] * world.turns, prepare, counts.stepping(world, params))


def theirs(peer: Peer, environments: int, devices: int) -> Case:
    """Steps of a peer's environments; the states go from call to call."""
    mine = environments // devices

    def first(key):
        return jax.vmap(peer.reset)(_raw(jax.random.split(key, mine)))

    def play(key, states):
        def one(states, key):
            action_key, step_key = jax.random.split(key)
            actions = _actions(action_key, mine, peer.actions)
            keys = _raw(jax.random.split(step_key, mine)) if peer.keyed else None
            states, observation, reward = jax.vmap(peer.step)(keys, states, actions)
            return states, _sums((observation, reward))

        return jax.lax.scan(one, states, jax.random.split(key, STEPS))

    def prepare():
        key = _keys(devices)
        states = [_over(devices, first)(key)]
        program = _over(devices, play).lower(key, states[0]).compile()

        def call():
            states[0], sums = program(key, states[0])
            return sums

        return call, program

    return Case(_name(peer.name, environments, devices), "steps", environments * STEPS, prepare, Work())


def _actions(key: jax.Array, count: int, choices: int) -> jax.Array:
    """Random actions int32[count] from a byte each, so that the drawing does not outweigh the stepping."""
    return (jax.random.bits(key, (count,), jnp.uint8) % jnp.uint8(choices)).astype(jnp.int32)


def device_counts(environments: int) -> list[int]:
    """How the machine may be used: one device whose threads share the work, and all devices side by side."""
    every = len(jax.devices())
    return sorted({1, every if environments % every == 0 else 1})


def _name(what: str, environments: int, devices: int) -> str:
    return f"{what}, {environments:,}, {devices} device{'s' * (devices > 1)}"


def _keys(devices: int) -> jax.Array:
    keys = jax.random.split(jax.random.key(0), devices)
    return jax.device_put(keys, NamedSharding(_mesh(devices), PartitionSpec("device")))


def _raw(keys: jax.Array) -> jax.Array:
    """Keys as uint32[..., 2], which every library takes."""
    return jax.random.key_data(keys)


def _mesh(devices: int) -> Mesh:
    return Mesh(jax.devices()[:devices], ("device",))


def _over(devices: int, function: Callable) -> Any:
    """A function of one device's arguments as a program of [devices, …] arguments."""

    def part(*arguments):
        arguments = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*arguments))

    spec = PartitionSpec("device")
    return jax.jit(jax.shard_map(part, mesh=_mesh(devices), in_specs=spec, out_specs=spec, check_vma=False))


def _sums(tree: Any) -> jax.Array:
    """The sum of every number of a tree of arrays, float32[]."""
    leaves = [x for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return jnp.stack([x.astype(jnp.float32).sum() for x in leaves]).sum()
